//! Changes, by whichever layer answers for the node: in a scope the writable one, elsewhere EROFS.

use super::Fs;
use super::attr::{Attr, Entry, Ttl, Type};
use super::counters::Operation;
use super::epoch::Epoch;
use super::faults::Asked;
use super::media::{Caller, Changes, LargeCopies, New, Permissions, SetBits, Source, Task, Writing};
use crate::error::{Errno, Error, Result};
use crate::tree::NodeId;
use crate::tree::union::Onto;

impl Fs {
    fn task<'a>(&'a self, epoch: &'a Epoch, caller: Caller) -> Task<'a> {
        Task { epoch, contents: &self.descriptors, caller }
    }

    /// The handle of a listing that begins.
    pub fn begin_listing(&self, epoch: &Epoch, dir: NodeId) -> Result<u64> {
        if let Some(media) = self.media_of(dir) {
            return Ok(media.begin_listing());
        }
        self.noted(&Asked::of(Operation::Opendir, dir), epoch.find(dir).map(|_| u64::from(epoch.switch)))
    }

    /// The handle of a listing is about to be sent, under the epoch lock.
    pub fn listing_begun(&self, dir: NodeId, handle: u64) {
        if let (None, Ok(switch)) = (self.media_of(dir), u32::try_from(handle)) {
            self.epochs.listing_begins(switch);
        }
    }

    /// A listing is over.
    pub fn end_listing(&self, dir: NodeId, handle: u64) {
        match self.media_of(dir) {
            Some(media) => media.end_listing(handle),
            None => self.epochs.listing_ends(u32::try_from(handle).unwrap_or(u32::MAX)),
        }
    }

    /// Makes an entry.
    pub fn make(&self, caller: Caller, dir: NodeId, name: &[u8], new: New<'_>, mode: Permissions) -> Result<Entry> {
        let made = self.writable(caller, dir, name)?.make(self.task(&self.epochs.load(), caller), dir, name, new, mode);
        self.noted(&Asked::named(Operation::Create, dir, name), made)
    }

    /// open(2) with O_CREAT. The kernel believed that there was nothing; somebody may have made it meanwhile.
    pub fn create(&self, caller: Caller, dir: NodeId, name: &[u8], mode: Permissions, flags: i32) -> Result<Entry> {
        match self.make(caller, dir, name, New::File, mode) {
            Err(error) if error.errno() == Errno::EXIST && flags & libc::O_EXCL == 0 => {}
            made => return made,
        }
        let entry = self.lookup(&self.epochs.load(), dir, name)?;
        let attr = entry.attr.ok_or(Error::answer(Errno::NOENT))?;
        if flags & libc::O_TRUNC == 0 || attr.kind != Type::File {
            return Ok(entry);
        }
        let changes = Changes { size: Some(0), ..Changes::default() };
        let (attr, _) = self.setattr(caller, attr.node, changes)?;
        Ok(Entry { attr: Some(attr), ..entry })
    }

    /// unlink(2).
    pub fn unlink(&self, caller: Caller, dir: NodeId, name: &[u8]) -> Result<()> {
        let removed = self.writable(caller, dir, name)?.unlink(self.task(&self.epochs.load(), caller), dir, name);
        self.noted(&Asked::named(Operation::Unlink, dir, name), removed)
    }

    /// rmdir(2).
    pub fn rmdir(&self, caller: Caller, dir: NodeId, name: &[u8]) -> Result<()> {
        let removed = self.writable(caller, dir, name)?.rmdir(self.task(&self.epochs.load(), caller), dir, name);
        self.noted(&Asked::named(Operation::Rmdir, dir, name), removed)
    }

    /// rename(2) and renameat2(2). Into a scope and out of one is another device's.
    pub fn rename(&self, caller: Caller, from: (NodeId, &[u8]), to: (NodeId, &[u8]), onto: Onto) -> Result<()> {
        if from.0.is_scoped() != to.0.is_scoped() {
            return Err(Error::answer(Errno::XDEV));
        }
        let media = self.writable(caller, from.0, from.1)?;
        let renamed = media.rename(self.task(&self.epochs.load(), caller), from, to, onto);
        self.noted(&Asked::named(Operation::Rename, from.0, from.1), renamed)
    }

    /// Large files of the release that a rename would copy up, before it is asked for in earnest.
    pub fn copies_to_rename(
        &self,
        caller: Caller,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        onto: Onto,
    ) -> LargeCopies {
        match (self.media_of(from.0), self.media_of(to.0)) {
            (Some(media), Some(_)) => media.copies_to_rename(self.task(&self.epochs.load(), caller), from, to, onto),
            _ => LargeCopies::default(),
        }
    }

    /// The same for a link.
    pub fn copies_to_link(&self, caller: Caller, node: NodeId, dir: NodeId, name: &[u8]) -> LargeCopies {
        match (self.media_of(node), self.media_of(dir)) {
            (Some(media), Some(_)) => media.copies_to_link(self.task(&self.epochs.load(), caller), node, dir, name),
            _ => LargeCopies::default(),
        }
    }

    /// Copies a file of the release up.
    pub fn copy_up(&self, caller: Caller, node: NodeId) -> Result<()> {
        let copied = self
            .media_of(node)
            .map_or(Ok(()), |media| media.bring_up(self.task(&self.epochs.load(), caller), node, None));
        self.noted(&Asked::of(Operation::Rename, node), copied)
    }

    /// link(2).
    pub fn link(&self, caller: Caller, node: NodeId, dir: NodeId, name: &[u8]) -> Result<Entry> {
        let media = self.writable(caller, dir, name)?;
        if !node.is_scoped() {
            return Err(Error::answer(Errno::XDEV));
        }
        let linked = media.link(self.task(&self.epochs.load(), caller), node, dir, name);
        self.noted(&Asked::named(Operation::Link, dir, name), linked)
    }

    /// chmod, chown, truncate, utimens.
    pub fn setattr(&self, caller: Caller, node: NodeId, changes: Changes) -> Result<(Attr, Ttl)> {
        let media = self.writable(caller, node, b"")?;
        let done = media.setattr(self.task(&self.epochs.load(), caller), node, changes);
        self.noted(&Asked::of(Operation::Setattr, node), done)
    }

    /// write(2).
    pub fn write(
        &self,
        caller: Caller,
        node: NodeId,
        offset: u64,
        bytes: &[u8],
        how: Writing,
    ) -> Result<(u32, SetBits)> {
        let media = self.writable(caller, node, b"")?;
        let done = media.write(self.task(&self.epochs.load(), caller), node, offset, bytes, how);
        self.noted(&Asked::of(Operation::Write, node), done)
    }

    /// fallocate(2).
    pub fn fallocate(&self, caller: Caller, node: NodeId, range: (u64, u64), mode: i32) -> Result<SetBits> {
        let media = self.writable(caller, node, b"")?;
        let done = media.fallocate(self.task(&self.epochs.load(), caller), node, range, mode);
        self.noted(&Asked::of(Operation::Fallocate, node), done)
    }

    /// copy_file_range(2), from anywhere into a scope.
    pub fn copy_range(
        &self,
        caller: Caller,
        from: (NodeId, u64),
        to: (NodeId, u64),
        len: u64,
    ) -> Result<(u32, SetBits)> {
        let media = self.writable(caller, to.0, b"")?;
        let source = match from.0.is_scoped() {
            true => media.source(&self.descriptors, from.0),
            false => self.open_content(from.0).map(Source::Release),
        };
        let source = self.noted(&Asked::of(Operation::CopyFileRange, from.0), source)?;
        let copied = media.copy_range(self.task(&self.epochs.load(), caller), (source, from.1), to, len);
        self.noted(&Asked::of(Operation::CopyFileRange, to.0), copied)
    }

    /// Sets an extended attribute, or removes it.
    pub fn setxattr(&self, caller: Caller, node: NodeId, name: &[u8], value: Option<(&[u8], u32)>) -> Result<()> {
        let media = self.writable(caller, node, b"")?;
        let done = media.setxattr(self.task(&self.epochs.load(), caller), node, name, value);
        self.noted(&Asked::of(Operation::Setxattr, node), done)
    }

    /// fsync(2); what a release holds is on disk.
    pub fn fsync(&self, node: NodeId, data_only: bool) -> Result<()> {
        match self.media.as_ref().filter(|_| node.is_scoped()) {
            Some(media) => self.noted(&Asked::of(Operation::Fsync, node), media.fsync(node, data_only)),
            None => Ok(()),
        }
    }

    /// fsync(2) of a directory.
    pub fn fsync_dir(&self, node: NodeId) -> Result<()> {
        match self.media.as_ref().filter(|_| node.is_scoped()) {
            Some(media) => self.noted(&Asked::of(Operation::Fsync, node), media.fsync_dir(node)),
            None => Ok(()),
        }
    }
}
