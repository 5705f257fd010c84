//! Directories that were removed and may be open, or somebody's working directory. The disk has them no more: what
//! fstat(2) tells of one is kept in memory as long as the kernel holds the node, and changed there.

use super::Media;
use super::attrs::Changes;
use super::mutate::Changing;
use super::node::Backing;
use crate::error::{Errno, Error, Result};
use crate::fs::attr::Attr;
use crate::store::active::stamps::Stamp;
use crate::store::since_epoch;
use crate::tree::{LayerPath, NodeId};

impl Changing<'_> {
    /// How the directory at a path will look when it is removed. What cannot be looked at can be removed all the same.
    pub(super) fn dir_to_remove(&self, path: &LayerPath) -> Option<Box<Attr>> {
        let node = {
            let nodes = self.media.nodes.lock();
            nodes.at(path).filter(|node| nodes.get(*node).is_some_and(|held| matches!(held.backing, Backing::Dir)))?
        };
        let attr = self.attr(node, path, &self.look(path).ok()?).ok()?;
        Some(Box::new(Attr { links: 0, ctime: now(), ..attr }))
    }
}

impl Media {
    /// The attributes of a directory that was removed.
    pub(super) fn removed_dir(&self, node: NodeId) -> Result<Attr> {
        let nodes = self.nodes.lock();
        let removed = nodes.get(node).filter(|held| held.names.is_empty()).and_then(|held| held.removed.as_deref());
        removed.copied().ok_or(Error::answer(Errno::NOENT))
    }

    /// Changes the attributes of a directory if it was removed; else nothing, and false.
    pub(super) fn change_removed_dir(&self, node: NodeId, changes: &Changes) -> bool {
        let mut nodes = self.nodes.lock();
        let held = nodes.get_mut(node).filter(|held| held.names.is_empty());
        let Some(attr) = held.and_then(|held| held.removed.as_deref_mut()) else { return false };
        attr.ctime = now();
        attr.mode = changes.mode.map_or(attr.mode, |mode| (mode & 0o7777) as u16);
        attr.owner.uid = changes.uid.unwrap_or(attr.owner.uid);
        attr.owner.gid = changes.gid.unwrap_or(attr.owner.gid);
        if let Some(times) = &changes.times {
            for (stamp, time) in [(&mut attr.atime, times.last_access), (&mut attr.mtime, times.last_modification)] {
                match time.tv_nsec {
                    rustix::fs::UTIME_OMIT => {}
                    rustix::fs::UTIME_NOW => *stamp = attr.ctime,
                    nanos => *stamp = Stamp { second: time.tv_sec, nanos: nanos as u32 },
                }
            }
        }
        true
    }
}

fn now() -> Stamp {
    let since = since_epoch();
    Stamp { second: since.as_secs() as i64, nanos: since.subsec_nanos() }
}
