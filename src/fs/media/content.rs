//! Contents and attributes of media nodes: by node, through a bounded cache of descriptors.

use super::listing::ListedEntry;
use super::lookup::print_of;
use super::nodes::{Backing, MediaNode, Print};
use super::truncation::Truncations;
use super::writeback::Writeback;
use super::{Media, Rights, Task};
use crate::error::{Errno, Error, Result};
use crate::fs::attr::{Attr, Ttl};
use crate::fs::{Contents, ReadBytes};
use crate::store::media::home::is_acl;
use crate::store::release::objects::{self, Content};
use crate::sys::AsCaller;
use crate::tree::{NodeId, Tree};
use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FallocateFlags, Gid, Mode, OFlags, Timestamps, Uid};
use rustix::io::ReadWriteFlags;
use std::fs::{File, Metadata};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Contents of media files that are kept open.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// How long an idle one is kept: a file that is open for writing cannot be executed (ETXTBSY).
const IDLE: Duration = Duration::from_secs(1);
/// Listings that are kept between two calls.
const LISTINGS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// Who reads on and on is soon asked for in pieces of at least this length. A short one, at the end of a log perhaps, may be
/// written to again soon, and is left in the page cache.
const READ_ON: usize = 128 << 10;
/// How long after the last write a file is on disk: letting go of it before would make its reader wait for the writing.
const WRITTEN_OUT: Duration = Duration::from_secs(60);

/// Called when somebody changed a file behind the mount.
type Notice = Box<dyn Fn(NodeId) + Send + Sync>;

struct Open {
    file: Arc<File>,
    used: Instant,
}

/// The descriptors.
pub struct Files {
    open: Mutex<LruCache<(NodeId, bool), Open>>,
    pub listings: Mutex<LruCache<u64, Arc<Vec<ListedEntry>>>>,
    notice: std::sync::OnceLock<Notice>,
    truncations: Truncations,
    writeback: Writeback,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            open: Mutex::new(LruCache::new(OPEN_FILES)),
            listings: Mutex::new(LruCache::new(LISTINGS)),
            notice: std::sync::OnceLock::new(),
            truncations: Truncations::default(),
            writeback: Writeback::default(),
        }
    }
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Files")
    }
}

impl Files {
    /// Lets go the descriptors of a node.
    pub fn close(&self, node: NodeId) {
        let mut open = self.open.lock();
        let gone = (open.pop(&(node, false)), open.pop(&(node, true)));
        drop(open);
        drop(gone);
        self.writeback.end(node);
    }

    /// Lets go of all that is kept of a node: its number may be given to another file.
    pub fn forget(&self, node: NodeId) {
        self.close(node);
        self.truncations.cancel(node);
    }

    pub fn changed_behind(&self, node: NodeId) {
        if let Some(notice) = self.notice.get() {
            notice(node);
        }
    }
}

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

impl Media {
    /// Told of files that somebody changed behind the mount.
    pub fn on_change_behind(&self, notice: impl Fn(NodeId) + Send + Sync + 'static) {
        let _ = self.files.notice.set(Box::new(notice));
    }

    /// Closes descriptors that nobody used for a while, and lets go of what truncations took and what the kernel forgot.
    pub fn close_idle(&self) {
        self.files.truncations.forget_old();
        self.files.writeback.forget_old();
        self.sweep();
        let mut open = self.files.open.lock();
        let idle: Vec<_> = open.iter().filter(|(_, open)| open.used.elapsed() > IDLE).map(|(key, _)| *key).collect();
        let gone: Vec<_> = idle.iter().filter_map(|key| open.pop(key)).collect();
        drop(open);
        drop(gone);
    }

    /// The descriptor of a node's file in the upper layer, if it is open.
    fn opened(&self, node: NodeId, write: bool) -> Option<Arc<File>> {
        let mut files = self.files.open.lock();
        let open = files.get_mut(&(node, write))?;
        open.used = Instant::now();
        Some(open.file.clone())
    }

    /// Opens a node's file in the upper layer.
    fn open(&self, node: NodeId, write: bool) -> Result<Arc<File>> {
        match self.opened(node, write) {
            Some(file) => Ok(file),
            None => self.open_anew(node, self.node(node)?, write),
        }
    }

    fn open_anew(&self, node: NodeId, held: MediaNode, write: bool) -> Result<Arc<File>> {
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let open = |held: &MediaNode| match (&held.backing, &held.orphan, held.paths.first()) {
            (Backing::Dir, ..) => Err(Errno::ISDIR.into()),
            (_, Some(orphan), _) => self.home.open_orphan(orphan, flags),
            (Backing::Upper(id), None, Some(path)) => self.home.open_file(path, *id, flags),
            _ => Err(Errno::STALE.into()),
        };
        let file = Arc::new(self.while_names_move(node, held, open)?);
        let open = Open { file: file.clone(), used: Instant::now() };
        let gone = self.files.open.lock().push((node, write), open);
        drop(gone);
        Ok(file)
    }

    /// What a node's content is read from.
    pub fn source(&self, descriptors: &Contents, node: NodeId) -> Result<Source> {
        if let Some(file) = self.opened(node, false) {
            return Ok(Source::Upper(file));
        }
        match self.node(node)? {
            MediaNode { backing: Backing::Lower { release, index, .. }, .. } => {
                let manifest = &release.manifest;
                let content = descriptors.open(manifest.digest(index)?, manifest.node(index)?.size)?;
                Ok(Source::Release(content))
            }
            held => Ok(Source::Upper(self.open_anew(node, held, false)?)),
        }
    }

    /// Does something by a name of a node. Between a change on disk and its note in the table the name may be another
    /// file's: then it is done once more while no name changes.
    fn while_names_move<T>(&self, node: NodeId, held: MediaNode, work: impl Fn(&MediaNode) -> Result<T>) -> Result<T> {
        work(&held).or_else(|_| {
            let _names = self.names.lock();
            work(&self.node(node)?)
        })
    }

    /// Reads from a file.
    pub fn read(&self, descriptors: &Contents, node: NodeId, offset: u64, len: u32, how: Reading) -> Result<ReadBytes> {
        let source = self.source(descriptors, node)?;
        let truncations = &self.files.truncations;
        truncations.note_request(node, how.thread);
        let mut bytes = match &source {
            Source::Upper(file) => {
                let bytes = read_to(file, offset, len as usize)?;
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
        self.bring_up(task, node, None)?;
        self.open(node, true)
    }

    /// Writes, in the caller's name. `append`: at the end, wherever that is by now.
    pub fn write(&self, task: Task<'_>, node: NodeId, offset: u64, bytes: &[u8], how: Writing) -> Result<u32> {
        let file = self.writable(task, node)?;
        let stat = rustix::fs::fstat(&*file)?;
        let begin = if how.append { stat.st_size as u64 } else { offset };
        let _growth = self.grow(node, task.caller, &file, begin.saturating_add(bytes.len() as u64))?;
        let (uid, gid) = if how.mapped { (stat.st_uid, stat.st_gid) } else { (task.caller.uid, task.caller.gid) };
        let change = self.begin_change(node);
        let mut done = 0;
        {
            let _caller = AsCaller::new(uid, gid);
            while done < bytes.len() {
                let flags = if how.append { ReadWriteFlags::APPEND } else { ReadWriteFlags::empty() };
                let slice = [std::io::IoSlice::new(&bytes[done..])];
                match rustix::io::pwritev2(&*file, &slice, offset + done as u64, flags) {
                    Ok(0) => break,
                    Ok(len) => done += len,
                    Err(Errno::INTR) => {}
                    Err(_) if done > 0 => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if how.drop_privileges {
            drop_privileges(&file)?;
        }
        if how.sync || self.home.tells_late() {
            rustix::fs::fdatasync(&*file)?;
        }
        change.done(&*file)?;
        if !how.mapped && !how.direct {
            self.files.writeback.wrote(node, begin, begin + done as u64, || self.open(node, false));
        }
        Ok(done as u32)
    }

    /// Layers that a change of ours begins; it is over when what this gives is dropped.
    fn begin_change(&self, node: NodeId) -> OwnChange<'_> {
        self.files.truncations.end(node);
        if let Some(held) = self.nodes.lock().get_mut(node) {
            held.changing += 1;
        }
        OwnChange { media: self, node, print: None }
    }

    /// fallocate(2).
    pub fn fallocate(&self, task: Task<'_>, node: NodeId, (offset, len): (u64, u64), mode: i32) -> Result<()> {
        let file = self.writable(task, node)?;
        let takes = mode as u32 & FallocateFlags::PUNCH_HOLE.bits() == 0;
        let _growth = self.grow(node, task.caller, &file, if takes { offset.saturating_add(len) } else { 0 })?;
        let change = self.begin_change(node);
        {
            let _caller = AsCaller::new(task.caller.uid, task.caller.gid);
            rustix::fs::fallocate(&*file, FallocateFlags::from_bits_retain(mode as u32), offset, len)?;
        }
        if task.caller.uid != 0 {
            drop_privileges(&file)?;
        }
        change.done(&*file)
    }

    /// copy_file_range(2) between two media files.
    pub fn copy_range(&self, task: Task<'_>, from: (Source, u64), to: (NodeId, u64), len: u64) -> Result<u32> {
        let target = self.writable(task, to.0)?;
        let _growth = self.grow(to.0, task.caller, &target, to.1.saturating_add(len))?;
        let change = self.begin_change(to.0);
        let (source, mut at, most) = match &from.0 {
            Source::Upper(file) => (file, from.1, len),
            Source::Release(content) => content.range(from.1),
        };
        let (len, mut into) = (len.min(most), to.1);
        let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
        let copied = {
            let _caller = AsCaller::new(task.caller.uid, task.caller.gid);
            rustix::fs::copy_file_range(&**source, Some(&mut at), &*target, Some(&mut into), len)?
        };
        if let (Source::Release(content), 0, 1..) = (&from.0, copied, len) {
            return Err(task.contents.unreadable(content, Errno::IO));
        }
        if task.caller.uid != 0 {
            drop_privileges(&target)?;
        }
        change.done(&*target)?;
        Ok(copied as u32)
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE.
    pub fn seek(&self, descriptors: &Contents, node: NodeId, offset: i64, whence: i32) -> Result<i64> {
        match self.source(descriptors, node)? {
            Source::Release(content) => Ok(content.seek(offset, whence)?),
            Source::Upper(file) => {
                let size = rustix::fs::fstat(&*file)?.st_size as u64;
                let from = u64::try_from(offset).ok().filter(|from| *from < size).ok_or(Errno::NXIO)?;
                Ok(objects::seek(&file, from, whence)?)
            }
        }
    }

    /// fsync(2) and fdatasync(2); a file of a release is on disk.
    pub fn fsync(&self, node: NodeId, data_only: bool) -> Result<()> {
        match self.nodes.lock().get(node).ok_or(Errno::STALE)?.backing {
            Backing::Upper(_) => {}
            _ => return Ok(()),
        }
        let file = self.open(node, false)?;
        let synced = if data_only { rustix::fs::fdatasync(&*file) } else { rustix::fs::fsync(&*file) };
        self.files.writeback.end(node);
        synced.map_err(Into::into)
    }

    /// fsync(2) of a directory.
    pub fn fsync_dir(&self, node: NodeId) -> Result<()> {
        let path = self.dir_path(node)?;
        self.home.sync_dir(&path)
    }

    /// What is behind a node in the upper layer: to change its attributes, or to read a symlink.
    pub(super) fn handle(&self, node: NodeId) -> Result<OwnedFd> {
        self.while_names_move(node, self.node(node)?, |held| match (&held.backing, &held.orphan, held.paths.first()) {
            (Backing::Upper(_), Some(orphan), _) => self.home.open_orphan_path(orphan),
            (Backing::Upper(id), None, Some(path)) => self.home.open_path(path, *id),
            (Backing::Dir, _, Some(path)) => self.home.open_dir_path(path),
            _ => Err(Errno::STALE.into()),
        })
    }

    /// chmod, chown, truncate, utimens. The kernel has checked that the caller may.
    pub fn setattr(&self, task: Task<'_>, node: NodeId, changes: Changes) -> Result<(Attr, Ttl)> {
        self.bring_up(task, node, changes.size)?;
        let change = self.begin_change(node);
        if let Some(size) = changes.size {
            self.truncate(task, node, size)?;
        }
        let handle = self.handle(node)?;
        let owner = (changes.uid.map(Uid::from_raw), changes.gid.map(Gid::from_raw));
        if owner.0.is_some() || owner.1.is_some() {
            rustix::fs::chownat(&handle, "", owner.0, owner.1, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = changes.mode {
            // An O_PATH descriptor has no fchmod; its link in /proc leads to the very file.
            let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
            rustix::fs::chmod(link, Mode::from_raw_mode(mode & 0o7777))?;
        }
        if let Some(times) = &changes.times {
            rustix::fs::utimensat(&handle, "", times, AtFlags::EMPTY_PATH)?;
        }
        change.done(&handle)?;
        self.getattr(task.epoch, node)
    }

    fn truncate(&self, task: Task<'_>, node: NodeId, size: u64) -> Result<()> {
        let file = self.open(node, true)?;
        // What a truncation adds is a hole.
        let _growth = self.grow(node, task.caller, &file, 0)?;
        self.files.truncations.begin(node, task.caller.thread, &file, size)?;
        let truncated = {
            let _caller = AsCaller::new(task.caller.uid, task.caller.gid);
            rustix::fs::ftruncate(&*file, size)
        };
        if let Err(error) = truncated {
            self.files.truncations.cancel(node);
            return Err(error.into());
        }
        if task.caller.uid != 0 {
            drop_privileges(&file)?;
        }
        Ok(())
    }

    /// Extended attributes of the user's, of what is behind a node.
    pub fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.check_attribute(name)?;
        Ok(self.xattrs(node)?.into_iter().find(|(key, _)| key == name).ok_or(Errno::NODATA)?.1)
    }

    /// All of them.
    pub fn xattrs(&self, node: NodeId) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let backing = self.nodes.lock().get(node).ok_or(Errno::STALE)?.backing.clone();
        if let Backing::Lower { release, index, .. } = backing {
            return release.manifest.xattrs(index);
        }
        let link = match self.handle(node) {
            Ok(handle) => handle,
            // A directory that only a release has, or one that is gone.
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = crate::store::media::home::xattrs(&link)?;
        found.retain(|(name, _)| self.check_attribute(name).is_ok());
        Ok(found)
    }

    /// The attributes that are kept: the user's, and access lists if they decide.
    fn check_attribute(&self, name: &[u8]) -> Result<()> {
        match name.starts_with(b"user.") || self.rights == Rights::Acls && is_acl(name) {
            true => Ok(()),
            false => Err(Error::Errno(Errno::OPNOTSUPP)),
        }
    }

    /// Sets an extended attribute, or removes it.
    pub fn setxattr(&self, task: Task<'_>, node: NodeId, name: &[u8], value: Option<(&[u8], u32)>) -> Result<()> {
        self.check_attribute(name)?;
        self.bring_up(task, node, None)?;
        let handle = self.handle(node)?;
        let change = self.begin_change(node);
        crate::store::media::home::set_xattr(&handle, name, value)?;
        change.done(&handle)
    }
}

/// A change of our own, under way.
struct OwnChange<'a> {
    media: &'a Media,
    node: NodeId,
    print: Option<Print>,
}

impl OwnChange<'_> {
    /// It was done, and the file looks so now.
    fn done(mut self, file: impl AsFd) -> Result<()> {
        self.print = Some(print_of(&rustix::fs::fstat(file)?));
        Ok(())
    }
}

impl Drop for OwnChange<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.media.nodes.lock().get_mut(self.node) {
            held.changing -= 1;
            // Of two at once, or of one that failed half-way, neither can say how the file looks.
            held.print = self.print.filter(|_| held.changing == 0);
        }
        if self.print.is_none() {
            self.media.files.changed_behind(self.node);
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
pub(super) fn read_to(file: &File, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
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

/// suid goes, and sgid where the group may execute, as write(2) and truncate(2) do it for those without CAP_FSETID.
fn drop_privileges(file: &File) -> Result<()> {
    let mode = rustix::fs::fstat(file)?.st_mode;
    let sgid = if mode & 0o010 != 0 { 0o2000 } else { 0 };
    if mode & (0o4000 | sgid) != 0 {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o7777 & !(0o4000 | sgid)))?;
    }
    Ok(())
}
