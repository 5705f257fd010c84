//! One node of a scope: its names, what is behind it, and what is under way with it.

use super::nodes::PlaceId;
use super::scopes::ScopeId;
use crate::fs::attr::Attr;
use crate::fs::epoch::Release;
use crate::store::media::home::{FileId, Orphan};
use crate::tree::{LayerPath, NodeId};
use rustix::fs::Stat;
use std::sync::Arc;

/// What is behind a node.
#[derive(Clone, Debug)]
pub(super) enum Backing {
    /// A directory: whatever the layers have at its path.
    Dir,
    /// A file of the upper layer.
    Upper(FileId),
    /// A file or symlink of a release.
    Lower {
        /// The release, kept mapped as long as the node is.
        release: Arc<Release>,
        /// Its number there.
        index: u32,
        /// Its node there.
        node: NodeId,
    },
    /// Nothing any more: the disk gave the number of its file to another one.
    Gone,
}

impl Backing {
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dir, Self::Dir) | (Self::Gone, Self::Gone) => true,
            (Self::Upper(a), Self::Upper(b)) => a == b,
            (Self::Lower { node: a, .. }, Self::Lower { node: b, .. }) => a == b,
            _ => false,
        }
    }
}

/// How a file looked after our own last change or look at it: another look is somebody else's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    size: i64,
    /// Seconds since 1970, and nanoseconds.
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Look {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime: (stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }

    /// Whether a file that may have been renamed since holds the same as it did.
    pub(super) fn same_content(self, stat: &Stat) -> bool {
        let now = Self::of(stat);
        (self.size, self.mtime) == (now.size, now.mtime)
    }
}

/// A node.
#[derive(Debug)]
pub(super) struct MediaNode {
    /// Its names; several for hard links that were looked up, none if it was unlinked or its name moved on.
    pub(super) names: Vec<PlaceId>,
    /// The scope that it lies in: names never leave theirs.
    pub(super) scope: ScopeId,
    /// The device that what is behind it lies on; of what a release has, that of the directory above it.
    pub(super) disk: u64,
    /// Where it is kept after its last name went.
    pub(super) orphan: Option<Orphan>,
    /// How it looks after it was removed, of a directory.
    pub(super) removed: Option<Box<Attr>>,
    /// What is behind it.
    pub(super) backing: Backing,
    /// How its file looked after our own last change or look.
    pub(super) look: Option<Look>,
    /// Changes of ours that are under way: until they are over, nobody can say whose a change is.
    pub(super) changing: u32,
    /// How many changes of ours began.
    pub(super) changes: u64,
    /// Steps under way that change its names: until they are over, nobody else does.
    pub(super) moving: u32,
    /// How often it was looked up.
    pub(super) looks: u64,
}

/// What a node was at one moment, and where: for the work that is done without a lock.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// The first of its names.
    pub(super) path: Option<LayerPath>,
    /// As of the node.
    pub(super) scope: ScopeId,
    /// As of the node.
    pub(super) orphan: Option<Orphan>,
    /// As of the node.
    pub(super) backing: Backing,
}

impl Held {
    /// Whether it is found at the same place as before.
    pub(super) fn same_place(&self, before: &Self) -> bool {
        let orphaned = self.orphan.is_some() == before.orphan.is_some();
        self.path == before.path && orphaned && self.backing.same(&before.backing)
    }
}
