//! Each operation of the FUSE protocol: call, match, reply. What changes something stands together at the end.

use super::convert::{file_attr, file_type, nothing, times, ttl};
use super::notify::Kernel;
use crate::error::{Error, Result};
use crate::fs::media::{Caller, Changes, New, Permissions, Reading, Writing};
use crate::fs::{Entry, Fs, Listed, Operation, Position};
use crate::tree::NodeId;
use crate::tree::union::Onto;
use fuser::{
    AccessFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

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
    acls: bool,
}

impl Adapter {
    pub fn new(fs: Arc<Fs>, kernel: Arc<OnceLock<Kernel>>, acls: bool) -> Self {
        Self { fs, kernel, plain_fit: AtomicUsize::new(MOST_ENTRIES), plus_fit: AtomicUsize::new(MOST_ENTRIES), acls }
    }

    fn count(&self, operation: Operation) {
        self.fs.counters.count(operation);
    }

    /// The number for an error of a change; what was refused outside the scopes is counted.
    fn refuse(&self, error: &Error) -> fuser::Errno {
        if matches!(error, Error::Refused) {
            self.count(Operation::Refused);
        }
        errno(error)
    }

    fn done(&self, reply: ReplyEmpty, result: Result<()>) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.refuse(&error)),
        }
    }

    fn make(&self, req: &Request, dir: INodeNo, name: &OsStr, new: New<'_>, mode: Permissions, reply: ReplyEntry) {
        let _answering = self.fs.answering();
        self.entry(reply, self.fs.make(caller(req), NodeId(dir.0), name.as_bytes(), new, mode));
    }

    fn entry(&self, reply: ReplyEntry, made: Result<Entry>) {
        match made {
            Ok(entry) => told(&self.fs, &entry, reply),
            Err(error) => reply.error(self.refuse(&error)),
        }
    }
}

fn errno(error: &Error) -> fuser::Errno {
    fuser::Errno::from_i32(error.errno().raw_os_error())
}

fn lookup(fs: &Fs, dir: NodeId, name: &[u8], reply: ReplyEntry) {
    fs.answer(
        |epoch| fs.lookup(epoch, dir, name),
        |epoch, answer| match answer {
            Ok(entry) => {
                entry.attr.iter().for_each(|attr| fs.attrs_sent(epoch, attr.node));
                told(fs, &entry, reply);
            }
            Err(error) => reply.error(errno(&error)),
        },
    );
}

/// Tells the kernel of an entry.
fn told(fs: &Fs, entry: &Entry, reply: ReplyEntry) {
    if let Some(attr) = &entry.attr {
        fs.count_lookup(attr.node);
    }
    let attr = entry.attr.as_ref().map_or_else(nothing, file_attr);
    reply.entry_with_ttls(&ttl(entry.attr_ttl), &ttl(entry.entry_ttl), &attr, Generation(0));
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), thread: req.pid() }
}

fn empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

fn send_xattr(reply: ReplyXattr, size: u32, value: Result<Vec<u8>>) {
    match value {
        Err(error) => reply.error(errno(&error)),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

/// Fills a reply with `add` until it is full, and remembers how many fitted. `most` were computed, unless the listing was
/// over before: then nothing is known of how many would have fitted.
fn fill(listed: &[Listed], most: usize, fit: &AtomicUsize, mut add: impl FnMut(&Listed) -> bool) {
    let fitted = listed.iter().take_while(|entry| !add(entry)).count();
    let next = match fitted == listed.len() {
        false => fitted + 8,
        true if fitted >= most => fitted * 2,
        true => return,
    };
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
        // With access lists the umask counts only where no list is inherited, which we know and the kernel does not.
        let lists = [InitFlags::FUSE_POSIX_ACL, InitFlags::FUSE_DONT_MASK];
        for flag in wanted.into_iter().chain(lists.into_iter().filter(|_| self.acls)) {
            if config.add_capabilities(flag).is_err() {
                log::debug!("this kernel does not offer {flag:?}");
            }
        }
        if !config.capabilities().contains(InitFlags::FUSE_NO_OPEN_SUPPORT) {
            return Err(io::Error::other("the kernel cannot leave out OPEN; verfs needs Linux 5.15 or later"));
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Operation::Lookup);
        let (dir, fs, own) = (NodeId(parent.0), self.fs.clone(), name.as_bytes().to_vec());
        // The number is the thread's (fuse_in_header.pid).
        self.fs.gated(dir, name.as_bytes(), req.pid(), move || lookup(&fs, dir, &own, reply));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.count(Operation::Forget);
        self.fs.forget(NodeId(ino.0), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Operation::Getattr);
        self.fs.answer(
            |epoch| self.fs.getattr(epoch, NodeId(ino.0)),
            |epoch, answer| match answer {
                Ok((attr, valid)) => {
                    self.fs.attrs_sent(epoch, attr.node);
                    reply.attr(&ttl(valid), &file_attr(&attr));
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Operation::Readlink);
        match self.fs.readlink(NodeId(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    /// ENOSYS once, and the kernel opens files without asking for the life of the connection.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Open);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Operation::Read);
        let how = Reading { thread: req.pid(), direct: flags.0 & libc::O_DIRECT != 0 };
        match self.fs.read(NodeId(ino.0), offset, size, how) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(&error)),
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

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.count(Operation::Fsync);
        empty(reply, self.fs.fsync(NodeId(ino.0), datasync));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Opendir);
        self.fs.answer(
            |epoch| self.fs.begin_listing(epoch, NodeId(ino.0)),
            |_, answer| match answer {
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
            |epoch| self.fs.list(epoch, NodeId(ino.0), from, most, false),
            |_, answer| match answer {
                Ok(listed) => {
                    fill(&listed, most, &self.plain_fit, |entry| {
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
            |epoch| self.fs.list(epoch, NodeId(ino.0), from, most, true),
            |epoch, answer| match answer {
                Ok(listed) => {
                    fill(&listed, most, &self.plus_fit, |entry| {
                        let attr = file_attr(&entry.attr);
                        let name = OsStr::from_bytes(&entry.name);
                        let full = reply.add(attr.ino, entry.cookie, name, &ttl(entry.ttl), &attr, Generation(0));
                        // The kernel counts what it is told of, but for the two that it knows already.
                        if !full && !matches!(&entry.name[..], b"." | b"..") {
                            self.fs.count_lookup(entry.attr.node);
                            self.fs.attrs_sent(epoch, entry.attr.node);
                        }
                        full
                    });
                    reply.ok();
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.count(Operation::Releasedir);
        self.fs.end_listing(NodeId(ino.0), fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.count(Operation::Fsync);
        empty(reply, self.fs.fsync_dir(NodeId(ino.0)));
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
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Operation::Getxattr);
        self.fs.answer(
            |epoch| self.fs.getxattr(epoch, NodeId(ino.0), name.as_bytes()),
            |_, value| send_xattr(reply, size, value),
        );
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Operation::Listxattr);
        self.fs.answer(|epoch| self.fs.listxattr(epoch, NodeId(ino.0)), |_, names| send_xattr(reply, size, names));
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.count(Operation::Lseek);
        match self.fs.seek(NodeId(ino.0), offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(errno(&error)),
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

    // Changes: in a scope the writable layer's, elsewhere EROFS.

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Operation::Setattr);
        let changes = Changes { mode, uid, gid, size, times: times(atime, mtime) };
        match self.fs.setattr(caller(req), NodeId(ino.0), changes) {
            Ok((attr, valid)) => reply.attr(&ttl(valid), &file_attr(&attr)),
            Err(error) => reply.error(self.refuse(&error)),
        }
    }

    fn mknod(&self, req: &Request, dir: INodeNo, name: &OsStr, mode: u32, umask: u32, _: u32, reply: ReplyEntry) {
        self.count(Operation::Mknod);
        let new = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => New::File,
            libc::S_IFIFO => New::Fifo,
            libc::S_IFSOCK => New::Socket,
            // A device in a web server's uploads is nobody's wish.
            _ => return reply.error(fuser::Errno::EPERM),
        };
        self.make(req, dir, name, new, Permissions { mode, umask }, reply);
    }

    fn mkdir(&self, req: &Request, dir: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.count(Operation::Mkdir);
        self.make(req, dir, name, New::Dir, Permissions { mode, umask }, reply);
    }

    fn symlink(&self, req: &Request, dir: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.count(Operation::Symlink);
        self.make(
            req,
            dir,
            name,
            New::Symlink(target.as_os_str().as_bytes()),
            Permissions { mode: 0o777, umask: 0 },
            reply,
        );
    }

    fn create(&self, req: &Request, dir: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        self.count(Operation::Create);
        let mode = Permissions { mode, umask };
        let _answering = self.fs.answering();
        match self.fs.create(caller(req), NodeId(dir.0), name.as_bytes(), mode, flags) {
            Ok(entry) => {
                let attr = entry.attr.as_ref().map_or_else(nothing, file_attr);
                self.fs.count_lookup(NodeId(attr.ino.0));
                // fuser has one time for both here.
                let valid = ttl(entry.entry_ttl.min(entry.attr_ttl));
                reply.created(&valid, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => reply.error(self.refuse(&error)),
        }
    }

    fn unlink(&self, req: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Unlink);
        self.done(reply, self.fs.unlink(caller(req), NodeId(dir.0), name.as_bytes()));
    }

    fn rmdir(&self, req: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Rmdir);
        self.done(reply, self.fs.rmdir(caller(req), NodeId(dir.0), name.as_bytes()));
    }

    fn rename(
        &self,
        req: &Request,
        dir: INodeNo,
        name: &OsStr,
        newdir: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Rename);
        let onto = match flags.bits() {
            0 => Onto::Replace,
            libc::RENAME_NOREPLACE => Onto::Nothing,
            libc::RENAME_EXCHANGE => Onto::Exchange,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let (from, to) = ((NodeId(dir.0), name.as_bytes()), (NodeId(newdir.0), newname.as_bytes()));
        self.done(reply, self.fs.rename(caller(req), from, to, onto));
    }

    fn link(&self, req: &Request, ino: INodeNo, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Operation::Link);
        let _answering = self.fs.answering();
        self.entry(reply, self.fs.link(caller(req), NodeId(ino.0), NodeId(dir.0), name.as_bytes()));
    }

    /// Root can open a release file for writing, since OPEN is not asked, and dirty a shared mapping of it. Outside
    /// the scopes the write is refused here, and the page that the kernel made dirty is dropped.
    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Operation::Write);
        let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let how = Writing {
            append: flags.0 & libc::O_APPEND != 0 && !mapped,
            mapped,
            direct: flags.0 & libc::O_DIRECT != 0,
            sync: flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0,
            drop_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        match self.fs.write(caller(req), NodeId(ino.0), offset, data, how) {
            Ok(len) => reply.written(len),
            Err(error) => {
                reply.error(self.refuse(&error));
                if let Some(kernel) = self.kernel.get() {
                    kernel.drop_pages_later(NodeId(ino.0));
                }
            }
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Fallocate);
        self.done(reply, self.fs.fallocate(caller(req), NodeId(ino.0), (offset, len), mode));
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Operation::CopyFileRange);
        let (from, to) = ((NodeId(ino_in.0), offset_in), (NodeId(ino_out.0), offset_out));
        match self.fs.copy_range(caller(req), from, to, len) {
            Ok(len) => reply.written(len),
            Err(error) => reply.error(self.refuse(&error)),
        }
    }

    fn setxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32, reply: ReplyEmpty) {
        self.count(Operation::Setxattr);
        let value = Some((value, flags as u32));
        self.done(reply, self.fs.setxattr(caller(req), NodeId(ino.0), name.as_bytes(), value));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Removexattr);
        self.done(reply, self.fs.setxattr(caller(req), NodeId(ino.0), name.as_bytes(), None));
    }
}
