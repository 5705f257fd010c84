//! The life of a mount: `mount`, `reload`, `umount`.

use super::EncodedPath;
use serde::{Deserialize, Serialize};

/// A mount that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Serving {
    /// The release that is served.
    pub release: String,
    /// Where, without symlinks.
    pub mountpoint: EncodedPath,
    /// The process that serves it.
    pub pid: u32,
}

/// Settings that were read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reloaded {
    /// Always true: an error is told as one.
    pub reloaded: bool,
    /// The tables of verfs.toml that changed and take effect only at the next mount.
    pub at_next_mount: Vec<String>,
}

/// A mount that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Unmounted {
    /// Where it was.
    pub unmounted: EncodedPath,
}

/// It was done, and there is nothing to say of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Done {}
