//! Another release becomes the active one: `switch`, `rollback`, `switch --dry-run`, `diff`.

use super::{EncodedPath, Time};
use serde::{Deserialize, Serialize};

/// What a switch did, with a mount or without.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Switched {
    /// The release before; none if it was the first one.
    pub from: Option<String>,
    /// The release now.
    pub to: String,
    /// Changed directory entries.
    pub changed: u64,
    /// How many of them the writable layer hides; not known if its disk does not answer.
    pub hidden: Option<u64>,
    /// Time of the call, without the wait for a second of its own.
    pub call_us: u64,
    /// How long the swap kept readers out.
    pub swap_us: f64,
    /// How long it waited for a second of its own.
    pub waited_us: u64,
    /// The second of the last switch that changed content: the mtime of what it changed.
    pub second: Time,
    /// Whether the kernel forgot everything that changed.
    pub tidy: Tidy,
    /// Whether the store is mounted; if not, the next mount serves the release.
    pub mounted: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Whether the kernel forgot all names that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Tidy {
    /// It did.
    Done,
    /// A stuck client keeps some, which nobody is shown any more; the next switch drops them.
    Pending,
}

/// What a switch would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DryRun {
    /// The active release.
    pub from: Option<String>,
    /// The release that would be.
    pub to: String,
    /// How many of the changes the writable layer would hide.
    pub hidden: u64,
    /// The paths in which they differ.
    pub changes: Vec<Difference>,
}

/// A path in which two releases differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Difference {
    /// In what.
    pub change: Change,
    /// The path in the docroot.
    pub path: EncodedPath,
}

/// In what way a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Only the second release has it.
    Added,
    /// Only the first release has it.
    Deleted,
    /// Another content, or another target of a symlink.
    Content,
    /// A file, a directory or a symlink instead of another of these.
    Kind,
    /// Another mode or owner, and nothing else.
    Permission,
}
