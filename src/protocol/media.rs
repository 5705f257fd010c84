//! The writable layer: `media adopt`, `media restore`, `status --shadowed`.

use super::EncodedPath;
use serde::{Deserialize, Serialize};

/// Uploads that were taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Adopted {
    /// The scope that they are now.
    pub scope: String,
    /// How they came there.
    pub way: Way,
    /// Where they lie now.
    pub dir: EncodedPath,
}

/// How a directory came into a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// It was renamed: it is not where it was any more.
    Renamed,
    /// Its files share their blocks with those of the scope; it is still where it was.
    Cloned,
    /// It was copied; it is still where it was.
    Copied,
}

/// Names that show the release's file again. On the socket this is a page of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Restored {
    /// The names.
    pub restored: Vec<EncodedPath>,
    /// How many there are in all, listed here or not.
    pub count: u64,
    /// How many names are gone that only the user had. 0 if an older daemon does not say.
    #[serde(default)]
    pub given_up: u64,
    /// Where the next page begins; none if this is the last one.
    pub next: Option<u64>,
}

/// What the writable layer hides of the active release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Shadowed {
    /// The names; of a directory that is hidden whole, only itself.
    pub shadowed: Vec<ShadowedName>,
}

/// A name of the release that is hidden.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ShadowedName {
    /// The path in the docroot.
    pub path: EncodedPath,
    /// How.
    pub how: How,
}

/// How a name of the release is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// It was removed.
    Removed,
    /// Something else stands there.
    Replaced,
}
