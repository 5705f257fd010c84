//! Contents of media nodes: read, written, synced.

use super::descriptors::Access;
use super::node::{Backing, Held, Look};
use super::{Media, Task};
use crate::error::{Errno, Error, OnDisk, Result};
use crate::fs::{Contents, ReadBytes};
use crate::store::release::objects::{self, Content};
use crate::sys::AsCaller;
use crate::tree::{NodeId, Tree};
use rustix::fs::{FallocateFlags, Mode, Stat};
use rustix::io::ReadWriteFlags;
use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// For a file that is read on and on the kernel soon asks in pieces of at least this length. Shorter ones, at the end
/// of a log perhaps, may be written to again soon, and are left in the page cache.
const READ_ON: usize = 128 << 10;
/// How long after the last write a file is on disk: dropping its pages before would make its reader wait for the disk.
const WRITTEN_OUT: Duration = Duration::from_secs(60);

impl Media {
    /// What a node's content is read from.
    pub fn source(&self, descriptors: &Contents, node: NodeId) -> Result<Source> {
        if let Some(file) = self.opened(node, Access::Read) {
            return Ok(Source::Upper(file));
        }
        match self.node(node)? {
            Held { backing: Backing::Lower { release, index, .. }, .. } => {
                let manifest = &release.manifest;
                let content = descriptors.open(manifest.digest(index)?, manifest.node(index)?.size)?;
                Ok(Source::Release(content))
            }
            _ => Ok(Source::Upper(self.open_anew(node, Access::Read)?)),
        }
    }

    /// Reads from a file.
    pub fn read(&self, descriptors: &Contents, node: NodeId, offset: u64, len: u32, how: Reading) -> Result<ReadBytes> {
        let source = self.source(descriptors, node)?;
        let truncations = &self.truncations;
        truncations.note_request(node, how.thread);
        let mut bytes = match &source {
            Source::Upper(file) => {
                let bytes = read_to(file, offset, len as usize).on_disk("reading", || self.shown(node))?;
                match !how.direct && bytes.len() >= READ_ON && is_held_twice(file) {
                    true => ReadBytes::held_twice(bytes, file.clone(), offset),
                    false => bytes.into(),
                }
            }
            Source::Release(content) => descriptors.read(content, offset, len as usize, !how.direct)?,
        };
        if bytes.len() < len as usize && !how.direct {
            let met = offset + bytes.len() as u64;
            bytes.extend(truncations.beyond(node, how.thread, met, offset + u64::from(len)));
        }
        Ok(bytes)
    }

    /// The file behind a node for a change of its content, copied up if it must be.
    fn writable(&self, task: Task<'_>, node: NodeId) -> Result<Arc<File>> {
        self.may_change(node, task.caller)?;
        self.bring_up(task, node, None)?;
        self.open(node, Access::Write)
    }

    /// Writes, in the caller's name. `append`: at the end, wherever that is by now.
    pub fn write(
        &self,
        task: Task<'_>,
        node: NodeId,
        offset: u64,
        bytes: &[u8],
        how: Writing,
    ) -> Result<(u32, SetBits)> {
        let file = self.writable(task, node)?;
        let stat = rustix::fs::fstat(&*file).on_disk("looking at", || self.shown(node))?;
        let begin = if how.append { stat.st_size as u64 } else { offset };
        let _growth = self.grow(node, task.caller, &file, begin..begin.saturating_add(bytes.len() as u64))?;
        let (uid, gid) = if how.mapped { (stat.st_uid, stat.st_gid) } else { (task.caller.uid, task.caller.gid) };
        let change = self.begin_change(node);
        let mut done = 0;
        {
            let _caller = AsCaller::new(uid, gid).on_disk("writing", || self.shown(node))?;
            while done < bytes.len() {
                let flags = if how.append { ReadWriteFlags::APPEND } else { ReadWriteFlags::empty() };
                let slice = [std::io::IoSlice::new(&bytes[done..])];
                match rustix::io::pwritev2(&*file, &slice, offset + done as u64, flags) {
                    Ok(0) => break,
                    Ok(len) => done += len,
                    Err(Errno::INTR) => {}
                    Err(_) if done > 0 => break,
                    failed => {
                        failed.on_disk("writing", || self.shown(node))?;
                    }
                }
            }
        }
        if how.drop_privileges {
            drop_privileges(&file).on_disk("changing the mode of", || self.shown(node))?;
        }
        if how.sync || self.home.tells_late() {
            rustix::fs::fdatasync(&*file).on_disk("syncing", || self.shown(node))?;
        }
        change.done(&*file)?;
        if !how.mapped && !how.direct {
            self.writeback.wrote(node, begin, begin + done as u64, || self.open(node, Access::Read));
        }
        Ok((done as u32, SetBits::after(&stat, &file)))
    }

    /// Says that a change of ours begins; it is over when what this gives is dropped.
    pub(super) fn begin_change(&self, node: NodeId) -> OwnChange<'_> {
        self.truncations.end(node);
        let mut began = None;
        if let Some(held) = self.nodes.lock().get_mut(node) {
            held.changes += 1;
            began = (held.changing == 0).then_some(held.changes);
            held.changing += 1;
        }
        OwnChange { media: self, node, began, look: None }
    }

    /// fallocate(2).
    pub fn fallocate(&self, task: Task<'_>, node: NodeId, (offset, len): (u64, u64), mode: i32) -> Result<SetBits> {
        let file = self.writable(task, node)?;
        let before = rustix::fs::fstat(&*file).on_disk("looking at", || self.shown(node))?;
        let takes = mode as u32 & FallocateFlags::PUNCH_HOLE.bits() == 0;
        let end = if takes { offset.saturating_add(len) } else { offset };
        let _growth = self.grow(node, task.caller, &file, offset..end)?;
        let change = self.begin_change(node);
        self.keep_mtime(task, node, &change, &*file)?;
        {
            let _caller = AsCaller::new(task.caller.uid, task.caller.gid).on_disk("changing", || self.shown(node))?;
            rustix::fs::fallocate(&*file, FallocateFlags::from_bits_retain(mode as u32), offset, len)
                .on_disk("allocating", || self.shown(node))?;
        }
        if task.caller.uid != 0 {
            drop_privileges(&file).on_disk("changing the mode of", || self.shown(node))?;
        }
        change.done(&*file)?;
        Ok(SetBits::after(&before, &file))
    }

    /// copy_file_range(2) between two media files.
    pub fn copy_range(
        &self,
        task: Task<'_>,
        from: (Source, u64),
        to: (NodeId, u64),
        len: u64,
    ) -> Result<(u32, SetBits)> {
        let target = self.writable(task, to.0)?;
        let before = rustix::fs::fstat(&*target).on_disk("looking at", || self.shown(to.0))?;
        let _growth = self.grow(to.0, task.caller, &target, to.1..to.1.saturating_add(len))?;
        let change = self.begin_change(to.0);
        let (source, mut at, most) = match &from.0 {
            Source::Upper(file) => (file, from.1, len),
            Source::Release(content) => content.range(from.1),
        };
        let (len, mut into) = (len.min(most), to.1);
        let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
        let copied = {
            let _caller = AsCaller::new(task.caller.uid, task.caller.gid).on_disk("changing", || self.shown(to.0))?;
            rustix::fs::copy_file_range(&**source, Some(&mut at), &*target, Some(&mut into), len)
                .on_disk("copying to", || self.shown(to.0))?
        };
        if let (Source::Release(content), 0, 1..) = (&from.0, copied, len) {
            return Err(task.contents.unreadable(content, Errno::IO));
        }
        if task.caller.uid != 0 {
            drop_privileges(&target).on_disk("changing the mode of", || self.shown(to.0))?;
        }
        change.done(&*target)?;
        Ok((copied as u32, SetBits::after(&before, &target)))
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE: all is data. What was stored through a shared mapping comes here only
    /// when the kernel writes it back, and OPEN is not asked, so no hole of the file below is known to be one. Nor can
    /// the kernel be asked to write back first: it would wait for a WRITE, which may need this very thread.
    pub fn seek(&self, descriptors: &Contents, node: NodeId, offset: i64, whence: i32) -> Result<i64> {
        let size = match self.source(descriptors, node)? {
            Source::Release(content) => content.range(0).2,
            Source::Upper(file) => rustix::fs::fstat(&*file).on_disk("looking at", || self.shown(node))?.st_size as u64,
        };
        objects::seek_in_data(size, offset, whence).map_err(Error::answer)
    }

    /// fsync(2) and fdatasync(2); a file of a release is on disk.
    pub fn fsync(&self, node: NodeId, data_only: bool) -> Result<()> {
        match self.nodes.lock().get(node).ok_or(Error::answer(Errno::STALE))?.backing {
            Backing::Upper(_) => {}
            Backing::Gone => return Err(Error::answer(Errno::STALE)),
            Backing::Dir | Backing::Lower { .. } => return Ok(()),
        }
        let file = self.open(node, Access::Read)?;
        let synced = if data_only { rustix::fs::fdatasync(&*file) } else { rustix::fs::fsync(&*file) };
        drop(self.writeback.end(node));
        synced.on_disk("syncing", || self.shown(node))
    }

    /// fsync(2) of a directory.
    pub fn fsync_dir(&self, node: NodeId) -> Result<()> {
        let path = self.nodes.lock().path(node)?;
        match path {
            Some(path) => self.home.sync_dir(&path),
            // It has no names that could be made durable.
            None => self.removed_dir(node).map(drop),
        }
    }
}

/// A change of our own, under way.
pub(super) struct OwnChange<'a> {
    media: &'a Media,
    node: NodeId,
    /// How many had begun by then, if no other was under way.
    began: Option<u64>,
    look: Option<Look>,
}

impl OwnChange<'_> {
    /// Whether no other was under way since it began.
    pub(super) fn is_alone(&self) -> bool {
        let nodes = self.media.nodes.lock();
        nodes.get(self.node).is_none_or(|held| held.changing == 1 && Some(held.changes) == self.began)
    }

    /// It was done, and the file looks so now.
    pub(super) fn done(mut self, file: impl AsFd) -> Result<()> {
        let stat = rustix::fs::fstat(file).on_disk("looking at", || self.media.shown(self.node))?;
        self.look = Some(Look::of(&stat));
        Ok(())
    }
}

impl Drop for OwnChange<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.media.nodes.lock().get_mut(self.node) {
            held.changing -= 1;
            // After two changes at once, or one that failed half-way, nobody can say how the file looks.
            held.look = self.look.filter(|_| held.changing == 0);
        }
        if self.look.is_none() {
            self.media.changed_behind(self.node);
        }
    }
}

/// What a content is read from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file of the upper layer.
    Upper(Arc<File>),
    /// A file of a release.
    Release(Content),
}

/// Reads up to `len` bytes; fewer only at the end.
pub(super) fn read_to(file: &File, offset: u64, len: usize) -> rustix::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Whether a file is large, and on disk: then the pages of the mount are enough.
fn is_held_twice(file: &File) -> bool {
    let written = |meta: &Metadata| meta.modified().ok()?.elapsed().ok();
    file.metadata()
        .is_ok_and(|meta| meta.len() >= objects::LARGE && written(&meta).is_some_and(|ago| ago > WRITTEN_OUT))
}

/// How bytes are read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The thread that reads, as the kernel numbers it.
    pub thread: u32,
    /// Past the kernel's pages (O_DIRECT).
    pub direct: bool,
}

/// How bytes are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Writing {
    /// At the end.
    pub append: bool,
    /// Pages of a mapping, which the kernel writes back in nobody's name: they count as their file's owner's.
    pub mapped: bool,
    /// Past the kernel's pages (O_DIRECT).
    pub direct: bool,
    /// On disk before the answer.
    pub sync: bool,
    /// The kernel says that suid and sgid must go.
    pub drop_privileges: bool,
}

/// What a change of a content did to suid and sgid, by us or by the disk itself: the kernel is not told by the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetBits {
    /// They are as they were.
    Kept,
    /// One of them is gone, or it cannot be said.
    Cleared,
}

impl SetBits {
    fn after(before: &Stat, file: &File) -> Self {
        let cleared =
            before.st_mode & 0o6000 != 0 && !rustix::fs::fstat(file).is_ok_and(|now| now.st_mode == before.st_mode);
        if cleared { Self::Cleared } else { Self::Kept }
    }
}

/// suid goes, and sgid where the group may execute, as write(2) and truncate(2) do it for those without CAP_FSETID.
pub(super) fn drop_privileges(file: &File) -> rustix::io::Result<()> {
    let mode = rustix::fs::fstat(file)?.st_mode;
    let sgid = if mode & 0o010 != 0 { 0o2000 } else { 0 };
    if mode & (0o4000 | sgid) != 0 {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o7777 & !(0o4000 | sgid)))?;
    }
    Ok(())
}
