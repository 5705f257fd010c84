//! Pure: what a tree is, what names its nodes, and in what two trees differ. No I/O, no locks, no log.

mod changes;
mod entry;
mod node;
mod path;
#[cfg(test)]
mod plain;
pub mod union;

pub use changes::{CarriedFile, ChangeSet, ChangedDir, ChangedEntry, Side, change_set};
pub use entry::{EntryName, Kind, Owner, ReleaseName};
pub use node::{Digest, NodeId, StoredId, name_key};
pub use path::{LayerId, LayerPath, is_within, path_in, split};

use crate::error::Result;
use std::ops::Range;

/// A tree whose nodes are numbered from 0, the root: what a manifest is to the rest of verfs.
///
/// Children of a directory are contiguous and sorted bytewise. Reading may fail, because a tree lies on a disk.
pub trait Tree {
    /// What is said of the node with this number.
    fn node(&self, index: u32) -> Result<Node>;
    /// Its name in its directory; empty for the root.
    fn name(&self, index: u32) -> Result<&[u8]>;
    /// The numbers of a directory's entries.
    fn children(&self, index: u32) -> Result<Range<u32>>;
    /// A file's content, a symlink's target or a directory's whole subtree, as a hash.
    fn digest(&self, index: u32) -> Result<Digest>;
}

/// What a tree says of a node, its name and digest apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// How the kernel knows it.
    pub nodeid: NodeId,
    /// File, directory or symlink.
    pub kind: Kind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u16,
    /// User and group.
    pub owner: Owner,
    /// Length of the content or target in bytes; 0 for a directory.
    pub size: u64,
    /// Bytes of it that lie on a disk; the others are holes.
    pub on_disk: u64,
    /// When its content first appeared at its path in the store: nanoseconds since 1970.
    pub mtime: i64,
    /// Number of its directory; 0 for the root.
    pub parent: u32,
}
