//! Each operation of the FUSE protocol: what is asked, and in which lane it is answered. Changes stand together at the
//! end.

use super::convert::times;
use super::copy_first::PATIENCE;
use super::dispatch::{Adapter, caller, look_up, own};
use super::lanes::Class;
use super::requests::NewEntry;
use crate::fs::media::{Changes, Permissions, Reading, Writing};
use crate::fs::{Operation, Position};
use crate::tree::NodeId;
use crate::tree::union::Onto;
use fuser::{
    AccessFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// How many background requests, reads ahead above all, the kernel may have under way.
const MOST_BACKGROUND: u16 = 4096;

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
        // Reads ahead that wait for a disk must not keep those of releases waiting (fs/fuse/dev.c, fuse_block_alloc).
        let _ = config.set_max_background(MOST_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(Operation::Lookup, || {
            let (dir, name) = (NodeId(parent.0), own(name));
            let (requests, lanes) = (self.requests.clone(), self.lanes.clone());
            // The number is the thread's (fuse_in_header.pid).
            let thread = req.pid();
            let look = (dir, name.clone());
            let run = move || look_up(requests, lanes, thread, look, reply);
            if self.requests.copy_first.after(thread, (dir, &name), run) {
                let requests = self.requests.clone();
                self.lanes.later(PATIENCE, move || requests.copy_first.give_up(thread));
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.serve(Operation::Forget, || {
            self.requests.fs.forget(NodeId(ino.0), nlookup);
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(Operation::Getattr, || {
            let node = NodeId(ino.0);
            self.look(node, move |requests| requests.getattr(node, reply));
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(Operation::Readlink, || {
            let node = NodeId(ino.0);
            self.look(node, move |requests| requests.readlink(node, reply));
        });
    }

    /// ENOSYS once, and the kernel opens files without asking for the life of the connection.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(Operation::Open, || {
            reply.error(fuser::Errno::ENOSYS);
        });
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
        self.serve(Operation::Read, || {
            let how = Reading { thread: req.pid(), direct: flags.0 & libc::O_DIRECT != 0 };
            let node = NodeId(ino.0);
            self.look(node, move |requests| requests.read(node, offset, size, how, reply));
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.serve(Operation::Flush, || {
            reply.error(fuser::Errno::ENOSYS);
        });
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
        self.serve(Operation::Release, || {
            reply.ok();
        });
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.serve(Operation::Fsync, || {
            let node = NodeId(ino.0);
            self.change(node, move |requests| requests.fsync(node, datasync, reply));
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(Operation::Opendir, || {
            self.requests.opendir(NodeId(ino.0), reply);
        });
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.serve(Operation::Readdir, || {
            let (node, from) = (NodeId(ino.0), Position { handle: fh.0, cookie: offset });
            let disk = self.requests.fs.disk_to_list(node);
            self.run(disk, Class::Look, move |requests| requests.readdir(node, from, reply));
        });
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.serve(Operation::Readdirplus, || {
            let (node, from) = (NodeId(ino.0), Position { handle: fh.0, cookie: offset });
            let disk = self.requests.fs.disk_to_list(node);
            self.run(disk, Class::Look, move |requests| requests.readdirplus(node, from, reply));
        });
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.serve(Operation::Releasedir, || {
            self.requests.fs.end_listing(NodeId(ino.0), fh.0);
            reply.ok();
        });
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.serve(Operation::Fsync, || {
            let node = NodeId(ino.0);
            self.change(node, move |requests| requests.fsync_dir(node, reply));
        });
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.serve(Operation::Statfs, || {
            let node = NodeId(ino.0);
            // What a release holds of a scope waits too: the question is about the disk.
            let disk = self.requests.fs.disk_to_change(node);
            self.run(disk, Class::Look, move |requests| requests.statfs(node, reply));
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.serve(Operation::Getxattr, || {
            let (node, name) = (NodeId(ino.0), own(name));
            self.look(node, move |requests| requests.getxattr(node, &name, size, reply));
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(Operation::Listxattr, || {
            let node = NodeId(ino.0);
            self.look(node, move |requests| requests.listxattr(node, size, reply));
        });
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.serve(Operation::Lseek, || {
            let node = NodeId(ino.0);
            self.look(node, move |requests| requests.seek(node, offset, whence, reply));
        });
    }

    /// Never asked with default_permissions; ENOSYS keeps it so.
    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.serve(Operation::Access, || {
            reply.error(fuser::Errno::ENOSYS);
        });
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
        self.serve(Operation::Ioctl, || {
            reply.error(fuser::Errno::ENOTTY);
        });
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
        self.serve(Operation::Poll, || {
            reply.poll(events);
        });
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
        self.serve(Operation::Setattr, || {
            let changes = Changes { mode, uid, gid, size, times: times(atime, mtime) };
            let (caller, node) = (caller(req), NodeId(ino.0));
            self.change(node, move |requests| requests.setattr(caller, node, changes, reply));
        });
    }

    fn mknod(&self, req: &Request, dir: INodeNo, name: &OsStr, mode: u32, umask: u32, _: u32, reply: ReplyEntry) {
        self.serve(Operation::Mknod, || {
            let new = match mode & libc::S_IFMT {
                libc::S_IFREG | 0 => NewEntry::File,
                libc::S_IFIFO => NewEntry::Fifo,
                libc::S_IFSOCK => NewEntry::Socket,
                // A device in a web server's uploads is nobody's wish.
                _ => return reply.error(fuser::Errno::EPERM),
            };
            self.make(req, dir, name, new, Permissions { mode, umask }, reply);
        });
    }

    fn mkdir(&self, req: &Request, dir: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.serve(Operation::Mkdir, || {
            self.make(req, dir, name, NewEntry::Dir, Permissions { mode, umask }, reply);
        });
    }

    fn symlink(&self, req: &Request, dir: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.serve(Operation::Symlink, || {
            let new = NewEntry::Symlink(own(target.as_os_str()));
            self.make(req, dir, name, new, Permissions { mode: 0o777, umask: 0 }, reply);
        });
    }

    fn create(&self, req: &Request, dir: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        self.serve(Operation::Create, || {
            let (caller, dir, name) = (caller(req), NodeId(dir.0), own(name));
            let mode = Permissions { mode, umask };
            self.change(dir, move |requests| requests.create(caller, (dir, &name), mode, flags, reply));
        });
    }

    fn unlink(&self, req: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Operation::Unlink, || {
            let (caller, dir, name) = (caller(req), NodeId(dir.0), own(name));
            self.change(dir, move |requests| requests.unlink(caller, dir, &name, reply));
        });
    }

    fn rmdir(&self, req: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Operation::Rmdir, || {
            let (caller, dir, name) = (caller(req), NodeId(dir.0), own(name));
            self.change(dir, move |requests| requests.rmdir(caller, dir, &name, reply));
        });
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
        self.serve(Operation::Rename, || {
            let onto = match flags.bits() {
                0 => Onto::Replace,
                libc::RENAME_NOREPLACE => Onto::Nothing,
                libc::RENAME_EXCHANGE => Onto::Exchange,
                _ => return reply.error(fuser::Errno::EINVAL),
            };
            let (caller, from, to) = (caller(req), (NodeId(dir.0), own(name)), (NodeId(newdir.0), own(newname)));
            self.change(from.0, move |requests| requests.rename(caller, (from.0, &from.1), (to.0, &to.1), onto, reply));
        });
    }

    fn link(&self, req: &Request, ino: INodeNo, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(Operation::Link, || {
            let (caller, node, dir, name) = (caller(req), NodeId(ino.0), NodeId(dir.0), own(name));
            self.change(dir, move |requests| requests.link(caller, node, dir, &name, reply));
        });
    }

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
        self.serve(Operation::Write, || {
            let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
            let how = Writing {
                append: flags.0 & libc::O_APPEND != 0 && !mapped,
                mapped,
                direct: flags.0 & libc::O_DIRECT != 0,
                sync: flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0,
                drop_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            };
            let (caller, node) = (caller(req), NodeId(ino.0));
            // Mostly the write is done here, from the bytes as they lie. They are copied only if it has to wait.
            let Some(disk) = self.requests.fs.disk_to_change(node) else {
                return self.requests.write(caller, node, offset, data, how, reply);
            };
            match self.lanes.hold(disk, Class::Change) {
                Some(_held) => self.requests.write(caller, node, offset, data, how, reply),
                None => {
                    let (requests, bytes) = (self.requests.clone(), data.to_vec());
                    self.lanes.queue_bytes((disk, Class::Change), bytes.len(), reply, move |reply| match reply {
                        Ok(reply) => requests.write(caller, node, offset, &bytes, how, reply),
                        // Nothing is written yet: the caller may write again.
                        Err(full) => full.error(fuser::Errno::EINTR),
                    });
                }
            }
        });
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
        self.serve(Operation::Fallocate, || {
            let (caller, node) = (caller(req), NodeId(ino.0));
            self.change(node, move |requests| requests.fallocate(caller, node, (offset, len), mode, reply));
        });
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
        self.serve(Operation::CopyFileRange, || {
            let (from, to) = ((NodeId(ino_in.0), offset_in), (NodeId(ino_out.0), offset_out));
            let caller = caller(req);
            self.change(to.0, move |requests| requests.copy_range(caller, from, to, len, reply));
        });
    }

    fn setxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32, reply: ReplyEmpty) {
        self.serve(Operation::Setxattr, || {
            let (caller, node, name, value) = (caller(req), NodeId(ino.0), own(name), value.to_vec());
            self.change(node, move |requests| {
                requests.setxattr(caller, node, &name, Some((&value, flags as u32)), reply);
            });
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Operation::Removexattr, || {
            let (caller, node, name) = (caller(req), NodeId(ino.0), own(name));
            self.change(node, move |requests| requests.setxattr(caller, node, &name, None, reply));
        });
    }
}
