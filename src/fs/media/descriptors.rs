//! Descriptors of media files, kept open for a moment.

use super::Media;
use super::node::{Backing, Held, MediaNode};
use crate::error::{Errno, Error, Result};
use crate::fs::attr::{Entry, Type};
use crate::store::media::home::Leaf;
use crate::tree::NodeId;
use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many are kept open.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// How long an idle one is kept that somebody may be in want of: a file that is open for writing cannot be executed
/// (ETXTBSY), and the disk of one cannot be unmounted, if it is another than that of the writable layer.
const IDLE: Duration = Duration::from_secs(1);

/// What a descriptor is open for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Access {
    Read,
    /// And for reading.
    Write,
}

#[derive(Debug)]
struct Open {
    file: Arc<File>,
    used: Instant,
    kept: Kept,
    /// The file has no name on its disk any more, and the kernel was told.
    removed: bool,
}

/// How long a descriptor is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Until it is idle for a moment.
    Briefly,
    /// Until so many others were wanted later, or the kernel forgets the node: so an open file can be read that was
    /// removed behind the mount.
    Long,
}

/// The descriptors, by node. The lock is a leaf; what falls out is closed by the caller, with no lock held, since
/// closing may wait for the disk.
#[derive(Debug)]
pub(super) struct Descriptors(Mutex<LruCache<(NodeId, Access), Open>>);

/// Descriptors that are closed when this is dropped.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Closing(Vec<Arc<File>>);

impl Default for Descriptors {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(OPEN_FILES)))
    }
}

impl Descriptors {
    /// The descriptor of a node, if it is open.
    fn get(&self, node: NodeId, access: Access) -> Option<Arc<File>> {
        let mut all = self.0.lock();
        let open = all.get_mut(&(node, access))?;
        open.used = Instant::now();
        Some(open.file.clone())
    }

    fn keep(&self, node: NodeId, access: Access, file: Arc<File>, kept: Kept) -> Closing {
        let open = Open { file, used: Instant::now(), kept, removed: false };
        Closing(self.0.lock().push((node, access), open).into_iter().map(|(_, open)| open.file).collect())
    }

    /// Takes out those of a node.
    fn take(&self, node: NodeId) -> Closing {
        let mut all = self.0.lock();
        let taken = [Access::Read, Access::Write].into_iter().filter_map(|access| all.pop(&(node, access)));
        Closing(taken.map(|open| open.file).collect())
    }

    /// Takes out those that nobody used for a while.
    fn take_idle(&self) -> Vec<((NodeId, Access), Arc<File>)> {
        let mut all = self.0.lock();
        let idle: Vec<_> = all
            .iter()
            .filter(|(_, open)| open.kept == Kept::Briefly && open.used.elapsed() > IDLE)
            .map(|(key, _)| *key)
            .collect();
        idle.into_iter().filter_map(|key| all.pop(&key).map(|open| (key, open.file))).collect()
    }

    /// The nodes whose file has no name on its disk any more, and that are not told as such yet.
    pub(super) fn removed(&self) -> Vec<NodeId> {
        let long: Vec<_> = {
            let all = self.0.lock();
            let long = all.iter().filter(|(_, open)| open.kept == Kept::Long && !open.removed);
            long.map(|((node, _), open)| (*node, open.file.clone())).collect()
        };
        let is_removed = |file: &File| rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0);
        long.into_iter().filter(|(_, file)| is_removed(file)).map(|(node, _)| node).collect()
    }

    /// The kernel was told of a removed file.
    pub(super) fn told_removed(&self, node: NodeId) {
        if let Some(open) = self.0.lock().peek_mut(&(node, Access::Read)) {
            open.removed = true;
        }
    }
}

/// Whether a name led to another file, or to none.
pub(super) fn is_lost(error: &Error) -> bool {
    matches!(error.errno(), Errno::NOENT | Errno::STALE | Errno::NOTDIR)
}

impl Media {
    /// The descriptor of a node's file in the upper layer, if it is open.
    pub(super) fn opened(&self, node: NodeId, access: Access) -> Option<Arc<File>> {
        self.descriptors.get(node, access)
    }

    /// Opens a file that is looked up or made: it may be opened now, which nobody is told, and replaced behind the
    /// mount before it is read.
    pub(super) fn hold_file(&self, entry: &Entry) {
        if let Some(attr) = entry.attr.filter(|attr| attr.kind == Type::File) {
            self.hold(attr.node);
        }
    }

    /// The same for the file of a node.
    pub(super) fn hold(&self, node: NodeId) {
        let is_upper = |held: &MediaNode| matches!(held.backing, Backing::Upper(_));
        if self.home.tells_late() {
            return;
        }
        if self.nodes.lock().get(node).is_some_and(is_upper) && self.opened(node, Access::Read).is_none() {
            // Whoever reads it gets the error, if it is one still.
            let _ = self.open_anew(node, Access::Read);
        }
    }

    /// Opens a node's file in the upper layer.
    pub(super) fn open(&self, node: NodeId, access: Access) -> Result<Arc<File>> {
        match self.opened(node, access) {
            Some(file) => Ok(file),
            None => self.open_anew(node, access),
        }
    }

    pub(super) fn open_anew(&self, node: NodeId, access: Access) -> Result<Arc<File>> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
        };
        let open = |held: &Held| match (&held.backing, &held.orphan, &held.path) {
            (Backing::Dir, ..) => Err(Error::answer(Errno::ISDIR)),
            (_, Some(orphan), _) => self.home.open_orphan(orphan, flags),
            (Backing::Upper(id), None, Some(path)) => self.home.open_file(path, *id, flags),
            _ => Err(Error::answer(Errno::STALE)),
        };
        let file = self.by_name(node, open).or_else(|error| self.open_moved(node, flags, error))?;
        let file = Arc::new(file);
        drop(self.descriptors.keep(node, access, file.clone(), self.kept(node, access)));
        Ok(file)
    }

    fn kept(&self, node: NodeId, access: Access) -> Kept {
        match access {
            // A server's file that is open and removed would get another name there.
            Access::Read if self.disk_of(node) == self.home.device() && !self.home.tells_late() => Kept::Long,
            Access::Read | Access::Write => Kept::Briefly,
        }
    }

    /// Opens the file of a node that none of its names leads to any more: it was moved behind the mount, or one of the
    /// directories above it was. `error`: what its names led to.
    pub(super) fn open_moved(&self, node: NodeId, flags: OFlags, error: Error) -> Result<File> {
        match self.node(node)?.backing {
            Backing::Upper(id) if is_lost(&error) => self.home.open_moved(id, flags).map_err(|_| error),
            _ => Err(error),
        }
    }

    /// Takes out the descriptors of a node whose file is another one from now on.
    pub(super) fn close(&self, node: NodeId) -> Closing {
        let mut closing = self.descriptors.take(node);
        closing.0.extend(self.writeback.end(node));
        closing
    }

    /// Closes descriptors that nobody used for a while, and lets go of what truncations took. A file that was open for
    /// writing stays open for reading: whoever wrote it may have it open still.
    pub fn close_idle(&self) {
        self.truncations.forget_old();
        self.writeback.forget_old();
        for ((node, access), file) in self.descriptors.take_idle() {
            if access == Access::Write && self.kept(node, Access::Read) == Kept::Long {
                self.go_on_reading(node, &file);
            }
        }
    }

    /// Keeps the file of a descriptor open for reading. If it fails, the file is found by its name or its handle.
    fn go_on_reading(&self, node: NodeId, file: &File) {
        if self.opened(node, Access::Read).is_some() {
            return;
        }
        let Ok(reading) = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())) else { return };
        let Ok(leaf) = Leaf::of(&reading) else { return };
        drop(self.descriptors.keep(node, Access::Read, Arc::new(reading), Kept::Long));
        // Whoever gave the node another file meanwhile has not seen this one.
        let is_still = |held: &MediaNode| matches!(held.backing, Backing::Upper(id) if id == leaf.id);
        if !self.nodes.lock().get(node).is_some_and(is_still) {
            drop(self.descriptors.take(node));
        }
    }
}
