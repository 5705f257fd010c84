//! Times of what lies in a release's own layer. When the release is shown it takes the place of what another release
//! has there, so all of it counts as changed at that moment, its arrival: no mtime is earlier, unless it was set since.
//!
//! The disk is not written to for that. What was changed since has a later ctime, and then its mtime holds as it is. So
//! whoever moves the ctime and not the mtime writes the mtime that is shown first.

use super::content::OwnChange;
use super::lookup::Visible;
use super::mutate::Changing;
use super::scopes::ScopeId;
use super::{Media, Task};
use crate::error::{Errno, Error, OnDisk, Result};
use crate::fs::attr::Attr;
use crate::fs::epoch::Epoch;
use crate::store::active::stamps::Stamp;
use crate::tree::union::{Onto, Step};
use crate::tree::{LayerId, LayerPath, Node, NodeId};
use rustix::fs::{AtFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use std::os::fd::AsFd;

/// Whether a path lies in a release's own layer.
pub(super) fn is_own(path: &LayerPath) -> bool {
    *path.layer() != LayerId::Shared
}

impl Visible<'_> {
    /// As it is shown, in a release's own layer or not.
    pub(super) fn arrived(&self, own: bool, mut attr: Attr) -> Attr {
        if let Some(arrival) = self.epoch.arrival.filter(|arrival| own && attr.ctime.second < arrival.second) {
            attr.mtime = attr.mtime.max(arrival);
            attr.ctime = attr.ctime.max(arrival);
        }
        attr
    }
}

impl Media {
    /// Whether a node lies in a release's own layer.
    pub(super) fn is_own(&self, node: NodeId) -> Result<bool> {
        let scope = self.nodes.lock().get(node).ok_or(Error::answer(Errno::STALE))?.scope;
        Ok(self.scopes.is_per_release(scope))
    }

    /// The mtime that is shown of a release's node in a scope.
    pub(super) fn mtime_in(&self, scope: ScopeId, epoch: &Epoch, node: &Node) -> Stamp {
        let mtime = epoch.mtime(node);
        match self.scopes.is_per_release(scope) {
            true => epoch.arrival.map_or(mtime, |arrival| mtime.max(arrival)),
            false => mtime,
        }
    }

    /// Writes the mtime that is shown to the disk, as a part of a change that moves the ctime alone. `file` may be a
    /// path alone (O_PATH).
    pub(super) fn keep_mtime(
        &self,
        task: Task<'_>,
        node: NodeId,
        change: &OwnChange<'_>,
        file: impl AsFd,
    ) -> Result<()> {
        match task.epoch.arrival {
            Some(arrival) if self.is_own(node)? => {
                let written = write_mtime(arrival, &file).and_then(|written| change.after_mtime(written, &file));
                written.on_disk("setting the times of", || self.shown(node))
            }
            _ => Ok(()),
        }
    }
}

impl Changing<'_> {
    /// The same before a step that moves the ctime of what it renames, links or takes a name of. Whatever becomes of
    /// the times, nothing keeps a name from being removed.
    pub(super) fn keep_mtimes(&self, step: &Step) -> Result<()> {
        match step {
            Step::Rename(from, to, Onto::Exchange) => self.keep_mtime_at(from).and_then(|()| self.keep_mtime_at(to)),
            Step::Rename(from, to, _) => {
                let _ = self.keep_mtime_at(to);
                self.keep_mtime_at(from)
            }
            Step::Link(from, _) => self.keep_mtime_at(from),
            Step::Unlink(path) => {
                let _ = self.keep_mtime_at(path);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn keep_mtime_at(&self, path: &LayerPath) -> Result<()> {
        let Some(arrival) = self.epoch.arrival.filter(|_| is_own(path)) else { return Ok(()) };
        let Some(file) = self.media.home.open_any_path(path)? else { return Ok(()) };
        // A change ends what waits for the end of truncations, which may take a while: nobody should for nothing.
        let stat = rustix::fs::statat(&file, "", AtFlags::EMPTY_PATH);
        if !is_earlier(&stat.on_disk("looking at", || self.media.home.show(path))?, arrival) {
            return Ok(());
        }
        let known = self.media.nodes.lock().at(path);
        let change = known.map(|node| self.media.begin_change(node));
        let written = write_mtime(arrival, &file).and_then(|written| match &change {
            Some(change) => change.after_mtime(written, &file),
            None => Ok(()),
        });
        written.on_disk("setting the times of", || self.media.home.show(path))?;
        change.map_or(Ok(()), |change| change.done(&file))
    }
}

impl OwnChange<'_> {
    /// The mtime was written. The kernel lets changes of one file come one after the other, but for what it writes back
    /// of a mapping: then the content is as young as that.
    fn after_mtime(&self, written: bool, file: impl AsFd) -> rustix::io::Result<()> {
        match written && !self.is_alone() {
            true => set_mtime(Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }, file),
            false => Ok(()),
        }
    }
}

/// Writes the mtime that is shown, if that is another; says whether.
fn write_mtime(arrival: Stamp, file: impl AsFd) -> rustix::io::Result<bool> {
    if !is_earlier(&rustix::fs::statat(&file, "", AtFlags::EMPTY_PATH)?, arrival) {
        return Ok(false);
    }
    set_mtime(Timespec { tv_sec: arrival.second, tv_nsec: arrival.nanos.into() }, file).map(|()| true)
}

/// Whether a file shows the moment of arrival, which is not its own mtime.
fn is_earlier(stat: &Stat, arrival: Stamp) -> bool {
    stat.st_ctime < arrival.second && Stamp { second: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 } < arrival
}

fn set_mtime(mtime: Timespec, file: impl AsFd) -> rustix::io::Result<()> {
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access, last_modification: mtime };
    rustix::fs::utimensat(&file, "", &times, AtFlags::EMPTY_PATH)
}
