//! Attributes of media nodes: modes, owners, times, lengths, and extended attributes.

use super::content::drop_privileges;
use super::descriptors::Access;
use super::lookup::Visible;
use super::node::Backing;
use super::{Media, Rights, Task};
use crate::error::{Errno, Error, OnDisk, Result};
use crate::fs::attr::{Attr, Ttl};
use crate::fs::epoch::Epoch;
use crate::store::media::home::{is_acl, set_xattr, xattr, xattrs};
use crate::sys::AsCaller;
use crate::tree::NodeId;
use crate::tree::union::Shown;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timestamps, UTIME_OMIT, Uid};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What setattr changes.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// User.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Times; `UTIME_OMIT` where one stays.
    pub times: Option<Timestamps>,
}

impl Changes {
    fn leaves_mtime(&self) -> bool {
        self.size.is_none() && self.times.as_ref().is_none_or(|times| times.last_modification.tv_nsec == UTIME_OMIT)
    }
}

/// Where the extended attributes of a node are.
enum Attributed {
    /// In a release: these.
    Release(Vec<(Vec<u8>, Vec<u8>)>),
    /// At what this stands for in the upper layer.
    Upper(OwnedFd),
    /// Nowhere.
    Nothing,
}

impl Media {
    /// What is behind a node in the upper layer: to change its attributes, or to read a symlink.
    pub(super) fn handle(&self, node: NodeId) -> Result<OwnedFd> {
        self.by_name(node, |held| match (&held.backing, &held.orphan, &held.path) {
            (Backing::Upper(_), Some(orphan), _) => self.home.open_orphan_path(orphan),
            (Backing::Upper(id), None, Some(path)) => self.home.open_path(path, *id),
            (Backing::Dir, _, Some(path)) => self.home.open_dir_path(path),
            (Backing::Dir, _, None) => Err(Error::answer(Errno::NOENT)),
            _ => Err(Error::answer(Errno::STALE)),
        })
        .or_else(|error| self.open_moved(node, OFlags::PATH, error).map(OwnedFd::from))
    }

    /// chmod, chown, truncate, utimens. The kernel has checked that the caller may.
    pub fn setattr(&self, task: Task<'_>, node: NodeId, changes: Changes) -> Result<(Attr, Ttl)> {
        if changes.size.is_some() {
            self.may_change(node, task.caller)?;
        }
        if self.change_removed_dir(node, &changes) {
            return self.getattr(task.epoch, node);
        }
        self.bring_up(task, node, changes.size)?;
        let change = self.begin_change(node);
        if let Some(size) = changes.size {
            self.truncate(task, node, size)?;
        }
        let handle = self.handle(node)?;
        if changes.leaves_mtime() {
            self.keep_mtime(task, node, &change, &handle)?;
        }
        let owner = (changes.uid.map(Uid::from_raw), changes.gid.map(Gid::from_raw));
        if owner.0.is_some() || owner.1.is_some() {
            rustix::fs::chownat(&handle, "", owner.0, owner.1, AtFlags::EMPTY_PATH)
                .on_disk("changing the owner of", || self.shown(node))?;
        }
        if let Some(mode) = changes.mode {
            // An O_PATH descriptor has no fchmod; its link in /proc leads to the very file.
            let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
            rustix::fs::chmod(link, Mode::from_raw_mode(mode & 0o7777))
                .on_disk("changing the mode of", || self.shown(node))?;
        }
        if let Some(times) = &changes.times {
            self.set_times(task, node, &handle, times)?;
        }
        change.done(&handle)?;
        self.getattr(task.epoch, node)
    }

    fn set_times(&self, task: Task<'_>, node: NodeId, handle: &OwnedFd, times: &Timestamps) -> Result<()> {
        let dir = self.times_of_dir(node)?;
        rustix::fs::utimensat(handle, "", times, AtFlags::EMPTY_PATH)
            .on_disk("changing the times of", || self.shown(node))?;
        match &dir {
            Some((_, path)) if times.last_modification.tv_nsec != rustix::fs::UTIME_OMIT => {
                self.note_mtime_set(task, path, handle)
            }
            _ => Ok(()),
        }
    }

    fn truncate(&self, task: Task<'_>, node: NodeId, size: u64) -> Result<()> {
        let file = self.open(node, Access::Write)?;
        // What a truncation adds is a hole.
        let _growth = self.grow(node, task.caller, &file, 0..0)?;
        let begun = self.truncations.begin(node, task.caller.thread, &file, size);
        begun.on_disk("reading", || self.shown(node))?;
        let truncated = {
            let _caller = AsCaller::new(task.caller.uid, task.caller.gid).on_disk("changing", || self.shown(node))?;
            rustix::fs::ftruncate(&*file, size)
        };
        if truncated.is_err() {
            self.truncations.cancel(node);
        }
        truncated.on_disk("truncating", || self.shown(node))?;
        match task.caller.uid {
            0 => Ok(()),
            _ => drop_privileges(&file).on_disk("changing the mode of", || self.shown(node)),
        }
    }

    /// Extended attributes of the user's, of what is behind a node.
    pub fn getxattr(&self, epoch: &Epoch, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.check_attribute(name)?;
        let found = match self.attributed(epoch, node)? {
            Attributed::Release(all) => all.into_iter().find(|(key, _)| key == name).map(|(_, value)| value),
            Attributed::Upper(handle) => {
                xattr(&handle, name).on_disk("reading the attributes of", || self.shown(node))?
            }
            Attributed::Nothing => None,
        };
        found.ok_or(Error::answer(Errno::NODATA))
    }

    /// All of them.
    pub fn xattrs(&self, epoch: &Epoch, node: NodeId) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut found = match self.attributed(epoch, node)? {
            Attributed::Release(all) => return Ok(all),
            Attributed::Upper(handle) => xattrs(&handle).on_disk("reading the attributes of", || self.shown(node))?,
            Attributed::Nothing => Vec::new(),
        };
        found.retain(|(name, _)| self.check_attribute(name).is_ok());
        Ok(found)
    }

    /// What has the extended attributes of a node.
    fn attributed(&self, epoch: &Epoch, node: NodeId) -> Result<Attributed> {
        let held = self.node(node)?;
        if let Backing::Lower { release, index, .. } = held.backing {
            return Ok(Attributed::Release(release.manifest.xattrs(index)?));
        }
        match self.handle(node) {
            Ok(handle) => return Ok(Attributed::Upper(handle)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        // A directory that only a release has, or one that is gone.
        let Some(path) = held.path else { return Ok(Attributed::Nothing) };
        let layered = Visible { media: self, epoch }.look(&path)?;
        match (layered.layers.shown(), layered.lower) {
            (Shown::Lower(_), Some(lower)) => Ok(Attributed::Release(lower.release.manifest.xattrs(lower.index)?)),
            _ => Ok(Attributed::Nothing),
        }
    }

    /// The attributes that are kept: the user's, and access lists if they decide.
    fn check_attribute(&self, name: &[u8]) -> Result<()> {
        match name.starts_with(b"user.") || self.rights == Rights::Acls && is_acl(name) {
            true => Ok(()),
            false => Err(Error::answer(Errno::OPNOTSUPP)),
        }
    }

    /// Sets an extended attribute, or removes it.
    pub fn setxattr(&self, task: Task<'_>, node: NodeId, name: &[u8], value: Option<(&[u8], u32)>) -> Result<()> {
        self.check_attribute(name)?;
        self.bring_up(task, node, None)?;
        let handle = self.handle(node)?;
        let size = value.map_or(0, |(value, _)| (name.len() + value.len()) as u64);
        let _growth = self.grow_attributes(node, task.caller, handle.as_fd(), size)?;
        let change = self.begin_change(node);
        self.keep_mtime(task, node, &change, &handle)?;
        set_xattr(&handle, name, value).on_disk("changing the attributes of", || self.shown(node))?;
        change.done(&handle)
    }
}
