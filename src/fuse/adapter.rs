//! Each operation of the FUSE protocol: call, match, reply. What a release refuses stands together at the end.

use super::notify::Kernel;
use crate::error::Error;
use crate::fs::{self, Attr, Entry, Fs, Listed, Operation, Position, Ttl};
use crate::store::stamps::Stamp;
use crate::tree::{Kind, NodeId};
use fuser::{
    AccessFlags, CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// "For ever", as far as the kernel's clock counts: ten years.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Most entries that are computed for one reply to a listing.
const MOST_ENTRIES: usize = 1024;

/// The file system as fuser calls it.
pub struct Adapter {
    fs: Arc<Fs>,
    /// Set once the session is there; refused writes drop what the writer dirtied.
    kernel: Arc<OnceLock<Kernel>>,
    /// How many entries fitted into the last replies: the buffer's size is not told beforehand.
    plain_fit: AtomicUsize,
    plus_fit: AtomicUsize,
}

impl Adapter {
    pub fn new(fs: Arc<Fs>, kernel: Arc<OnceLock<Kernel>>) -> Self {
        Self { fs, kernel, plain_fit: AtomicUsize::new(64), plus_fit: AtomicUsize::new(32) }
    }

    fn count(&self, operation: Operation) {
        self.fs.counters.count(operation);
    }
}

fn errno(error: &Error) -> fuser::Errno {
    fuser::Errno::from_i32(error.errno().raw_os_error())
}

fn fail(error: &Error) -> fuser::Errno {
    fs::report(error);
    errno(error)
}

fn ttl(ttl: Ttl) -> Duration {
    match ttl {
        Ttl::Zero => Duration::ZERO,
        Ttl::Forever => FOREVER,
    }
}

fn time(stamp: Stamp) -> SystemTime {
    let nanos = Duration::from_nanos(stamp.nanos.into());
    match u64::try_from(stamp.second) {
        Ok(second) => UNIX_EPOCH + Duration::from_secs(second) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(stamp.second.unsigned_abs()) + nanos,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Dir => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    let mtime = time(attr.mtime);
    FileAttr {
        ino: INodeNo(attr.node.0),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(attr.kind),
        perm: attr.mode,
        // 1 for directories too: it says that subdirectories are not counted (as btrfs and overlayfs say it).
        nlink: 1,
        uid: attr.owner.uid,
        gid: attr.owner.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// An entry that says "nothing here": nodeid 0 with a TTL, which the kernel keeps.
fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(NodeId::NONE.0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn send_xattr(reply: ReplyXattr, size: u32, value: crate::error::Result<Vec<u8>>) {
    match value {
        Err(error) => reply.error(errno(&error)),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

/// Fills a reply with `add` until it is full, and remembers how many fitted.
fn fill(listed: &[Listed], fit: &AtomicUsize, mut add: impl FnMut(&Listed) -> bool) {
    let fitted = listed.iter().take_while(|entry| !add(entry)).count();
    let next = if fitted == listed.len() { fitted * 2 } else { fitted + 8 };
    fit.store(next.clamp(16, MOST_ENTRIES), Ordering::Relaxed);
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each only where the kernel offers it: 5.15 lacks HAS_RESEND.
        let wanted = [
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_HAS_RESEND,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                log::debug!("this kernel does not offer {flag:?}");
            }
        }
        if !config.capabilities().contains(InitFlags::FUSE_NO_OPEN_SUPPORT) {
            return Err(io::Error::other("the kernel cannot leave out OPEN; verfs needs Linux 5.15 or later"));
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Operation::Lookup);
        let (dir, name) = (NodeId(parent.0), name.as_bytes());
        self.fs.answer(
            |view| Fs::lookup(view, dir, name),
            |answer| match answer {
                Ok(Entry { attr, entry_ttl, attr_ttl }) => {
                    let attr = attr.as_ref().map_or_else(nothing, file_attr);
                    reply.entry_with_ttls(&ttl(attr_ttl), &ttl(entry_ttl), &attr, Generation(0));
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {
        self.count(Operation::Forget);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Operation::Getattr);
        self.fs.answer(
            |view| Fs::getattr(view, NodeId(ino.0)),
            |answer| match answer {
                Ok((attr, valid)) => reply.attr(&ttl(valid), &file_attr(&attr)),
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Operation::Readlink);
        match self.fs.readlink(NodeId(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(fail(&error)),
        }
    }

    /// ENOSYS once, and the kernel opens files without asking for the life of the connection.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Open);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Operation::Read);
        match self.fs.read(NodeId(ino.0), offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(fail(&error)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.count(Operation::Flush);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Release);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.count(Operation::Fsync);
        reply.ok();
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Opendir);
        self.fs.answer(
            |view| view.find(NodeId(ino.0)).map(|_| u64::from(view.switch)),
            |answer| match answer {
                Ok(switch) => reply.opened(FileHandle(switch), FopenFlags::empty()),
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.count(Operation::Readdir);
        let from = Position { switch: fh.0, cookie: offset };
        let most = self.plain_fit.load(Ordering::Relaxed);
        self.fs.answer(
            |view| self.fs.list(view, NodeId(ino.0), from, most),
            |answer| match answer {
                Ok(listed) => {
                    fill(&listed, &self.plain_fit, |entry| {
                        let (ino, kind) = (INodeNo(entry.attr.node.0), file_type(entry.attr.kind));
                        reply.add(ino, entry.cookie, kind, OsStr::from_bytes(&entry.name))
                    });
                    reply.ok();
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.count(Operation::Readdirplus);
        let from = Position { switch: fh.0, cookie: offset };
        let most = self.plus_fit.load(Ordering::Relaxed);
        self.fs.answer(
            |view| self.fs.list(view, NodeId(ino.0), from, most),
            |answer| match answer {
                Ok(listed) => {
                    fill(&listed, &self.plus_fit, |entry| {
                        let attr = file_attr(&entry.attr);
                        let name = OsStr::from_bytes(&entry.name);
                        reply.add(attr.ino, entry.cookie, name, &ttl(entry.ttl), &attr, Generation(0))
                    });
                    reply.ok();
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.count(Operation::Releasedir);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.count(Operation::Fsync);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.count(Operation::Statfs);
        match self.fs.statfs() {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                stat.f_bsize as u32,
                255,
                stat.f_frsize as u32,
            ),
            Err(error) => reply.error(fail(&error)),
        }
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Operation::Getxattr);
        self.fs
            .answer(|view| Fs::getxattr(view, NodeId(ino.0), name.as_bytes()), |value| send_xattr(reply, size, value));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Operation::Listxattr);
        self.fs.answer(|view| Fs::listxattr(view, NodeId(ino.0)), |names| send_xattr(reply, size, names));
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.count(Operation::Lseek);
        match self.fs.seek(NodeId(ino.0), offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(fail(&error)),
        }
    }

    /// Never asked with default_permissions; ENOSYS keeps it so.
    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.count(Operation::Access);
        reply.error(fuser::Errno::ENOSYS);
    }

    /// ENOTTY, as for any file that knows no ioctl: ENOSYS would be said for ever.
    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Operation::Ioctl);
        reply.error(fuser::Errno::ENOTTY);
    }

    /// Always ready, as poll(2) says of regular files.
    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.count(Operation::Poll);
        reply.poll(events);
    }

    // What a release refuses, all of it with EROFS. The writable layer will answer for its scopes here.

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    /// Root can open a release file for writing, since OPEN is not asked, and dirty a shared mapping of it. The
    /// write is refused here, and the page that the kernel made dirty is dropped.
    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
        if let Some(kernel) = self.kernel.get() {
            kernel.drop_pages_later(NodeId(ino.0));
        }
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Refused);
        reply.error(fuser::Errno::EROFS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_those_of_the_stamp() {
        let before = time(Stamp { second: -2, nanos: 500_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(before).expect("before"), Duration::from_millis(1500));
        assert_eq!(time(Stamp { second: 3, nanos: 7 }), UNIX_EPOCH + Duration::new(3, 7));
        assert_eq!(errno(&Error::Errno(crate::error::Errno::ROFS)), fuser::Errno::EROFS);
    }
}
