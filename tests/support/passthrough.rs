//! A disk that a test can hold up: a FUSE file system over a directory, with a gate before each operation.
//!
//! Owns: the mount and its gate. What it says is valid for no time, so each look from above asks again, and requests
//! overlap. Nothing is synced, nobody is refused, there are no extended attributes; what is below lies in memory.

use super::below::{Below, Owner, attr, link, nothing, open_at, owner, timespec};
use super::gate::{Asked, Gate};
use super::support::deadline;
use super::support::disk::SmallDisk;
use super::support::guardian::Guardian;
use fuser::{
    BackgroundSession, BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timestamps, Uid};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

/// Threads that take requests. What has to wait gets a thread of its own.
const THREADS: usize = 4;
/// How long the kernel believes that a name is not there: names are made through this mount only.
const NOT_THERE_FOR: Duration = Duration::from_secs(3600);

/// See the head of this file. Dropping it lets everything go, and then takes the mount away.
pub struct Passthrough {
    mountpoint: PathBuf,
    disk: Disk,
    _session: BackgroundSession,
    _guardian: Guardian,
    _below: SmallDisk,
}

impl Passthrough {
    /// Mounts it at `dir/slow`, over `dir/below`; both are made.
    pub fn mount(dir: &Path) -> Passthrough {
        let (mountpoint, below) = (dir.join("slow"), dir.join("below"));
        fs::create_dir(&mountpoint).unwrap();
        fs::create_dir(&below).unwrap();
        let in_memory = SmallDisk::in_memory(&below);
        let disk = Disk { gate: Arc::default(), below: Arc::new(Below::over(&below)) };
        // By hand, because this mount ends lazily: whoever has a file open here must not keep it.
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("passthrough", &mountpoint, "fuse", flags, options.as_c_str()).unwrap();
        let mut config = fuser::Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        let session = Session::from_fd(disk.clone(), OwnedFd::from(device), SessionACL::All, config).unwrap();
        // The threads of a test that ends may wait for what only they could answer.
        let connection = deadline::connection_of(&mountpoint).unwrap();
        let _shown = deadline::waiting(connection);
        let last =
            format!("echo 1 >/sys/fs/fuse/connections/{connection}/abort; umount --lazy \"$0/slow\" \"$0/below\"");
        let guardian = Guardian::start(&last, dir);
        Passthrough { mountpoint, disk, _session: session.spawn().unwrap(), _guardian: guardian, _below: in_memory }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// What requests pass.
    pub fn gate(&self) -> &Gate {
        &self.disk.gate
    }
}

impl Drop for Passthrough {
    fn drop(&mut self) {
        self.gate().open();
        if let Err(error) = rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.mountpoint.display());
        }
    }
}

/// The file system as fuser calls it.
#[derive(Clone)]
struct Disk {
    gate: Arc<Gate>,
    below: Arc<Below>,
}

/// Calls a method of the reply with what was done, or `error`.
macro_rules! answer {
    ($reply:ident, $done:expr, $value:pat => $ok:expr) => {
        match $done {
            Ok($value) => $ok,
            Err(error) => $reply.error(Errno::from(io::Error::from(error))),
        }
    };
}

fn entry(reply: ReplyEntry, made: io::Result<FileAttr>) {
    answer!(reply, made, attr => reply.entry(&Duration::ZERO, &attr, Generation(0)));
}

fn empty(reply: ReplyEmpty, done: io::Result<()>) {
    answer!(reply, done, () => reply.ok());
}

impl Disk {
    /// Does a request when the gate lets it pass, on a thread of its own if it may have to wait.
    fn pass(
        &self,
        operation: &'static str,
        (ino, name, offset): (INodeNo, &OsStr, u64),
        work: impl FnOnce(&Below) + Send + 'static,
    ) {
        if self.gate.is_open() {
            return work(&self.below);
        }
        let path = self.below.path(ino);
        let path = if name.is_empty() { path } else { path.join(name) };
        let asked = Asked { operation, path, offset };
        if self.gate.is_free(&asked) {
            return work(&self.below);
        }
        let disk = self.clone();
        thread::spawn(move || {
            disk.gate.pass(&asked);
            work(&disk.below);
        });
    }

    /// The same for a name in a directory, which `work` is given.
    fn pass_name(
        &self,
        operation: &'static str,
        (dir, name): (INodeNo, &OsStr),
        work: impl FnOnce(&Below, io::Result<Arc<File>>, &OsStr) + Send + 'static,
    ) {
        let own = name.to_owned();
        self.pass(operation, (dir, name, 0), move |disk| work(disk, disk.file(dir), &own));
    }

    /// The same for something that is made at a name.
    fn make(
        &self,
        operation: &'static str,
        at: (INodeNo, &OsStr),
        (by, mode): (Owner, Option<u32>),
        reply: ReplyEntry,
        make: impl FnOnce(&File, &OsStr) -> rustix::io::Result<()> + Send + 'static,
    ) {
        self.pass_name(operation, at, move |disk, dir, name| {
            let made = dir.and_then(|dir| {
                make(&dir, name)?;
                disk.made(&dir, name, by, mode)
            });
            entry(reply, made);
        });
    }
}

const NO_NAME: &str = "";

fn node(ino: INodeNo) -> (INodeNo, &'static OsStr, u64) {
    (ino, OsStr::new(NO_NAME), 0)
}

impl Filesystem for Disk {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        let _ = config.set_max_background(4096);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.pass_name("lookup", (parent, name), |disk, dir, name| match dir.and_then(|dir| disk.look(&dir, name)) {
            // The kernel lets one at a time ask for a name that is not there and not believed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                reply.entry(&NOT_THERE_FOR, &nothing(), Generation(0));
            }
            found => entry(reply, found),
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.pass("getattr", node(ino), move |disk| {
            let meta = disk.file(ino).and_then(|file| file.metadata());
            answer!(reply, meta, meta => reply.attr(&Duration::ZERO, &attr(ino.0, &meta)));
        });
    }

    fn setattr(
        &self,
        _req: &Request,
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
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.pass("setattr", node(ino), move |disk| {
            let change = || {
                let file = disk.file(ino)?;
                if let Some(size) = size {
                    File::options().write(true).open(link(&file))?.set_len(size)?;
                }
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                rustix::fs::chownat(&file, "", uid, gid, AtFlags::EMPTY_PATH)?;
                if let Some(mode) = mode {
                    rustix::fs::chmod(link(&file), Mode::from_raw_mode(mode & 0o7777))?;
                }
                let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
                rustix::fs::utimensat(&file, "", &times, AtFlags::EMPTY_PATH)?;
                file.metadata()
            };
            answer!(reply, change(), meta => reply.attr(&Duration::ZERO, &attr(ino.0, &meta)));
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.pass("readlink", node(ino), move |disk| {
            let target = disk.file(ino).and_then(|file| Ok(rustix::fs::readlinkat(&file, "", Vec::new())?));
            answer!(reply, target, target => reply.data(target.as_bytes()));
        });
    }

    fn mknod(&self, req: &Request, dir: INodeNo, name: &OsStr, mode: u32, _umask: u32, _rdev: u32, reply: ReplyEntry) {
        self.make("mknod", (dir, name), (owner(req), Some(mode)), reply, move |dir, name| {
            let kind = rustix::fs::FileType::from_raw_mode(mode);
            rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode & 0o7777), 0)
        });
    }

    fn mkdir(&self, req: &Request, dir: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        self.make("mkdir", (dir, name), (owner(req), Some(mode)), reply, move |dir, name| {
            rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode & 0o7777))
        });
    }

    fn symlink(&self, req: &Request, dir: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.to_owned();
        self.make("symlink", (dir, name), (owner(req), None), reply, move |dir, name| {
            rustix::fs::symlinkat(target, dir, name)
        });
    }

    fn unlink(&self, _req: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.pass_name("unlink", (dir, name), |_, dir, name| {
            empty(reply, dir.and_then(|dir| Ok(rustix::fs::unlinkat(&dir, name, AtFlags::empty())?)));
        });
    }

    fn rmdir(&self, _req: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.pass_name("rmdir", (dir, name), |_, dir, name| {
            empty(reply, dir.and_then(|dir| Ok(rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)?)));
        });
    }

    fn rename(
        &self,
        _req: &Request,
        dir: INodeNo,
        name: &OsStr,
        new_dir: INodeNo,
        new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let new = new.to_owned();
        self.pass_name("rename", (dir, name), move |disk, dir, name| {
            let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
            let renamed =
                dir.and_then(|dir| Ok(rustix::fs::renameat_with(&dir, name, &disk.file(new_dir)?, &*new, flags)?));
            empty(reply, renamed);
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.pass_name("link", (dir, name), move |disk, dir, name| {
            let linked = dir.and_then(|dir| {
                let from = link(&*disk.file(ino)?);
                rustix::fs::linkat(rustix::fs::CWD, from, &dir, name, AtFlags::SYMLINK_FOLLOW)?;
                disk.look(&dir, name)
            });
            entry(reply, linked);
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.pass("open", node(ino), move |disk| {
            let access = OFlags::from_bits_retain(flags.0 as u32) & OFlags::ACCMODE;
            let opened = disk.file(ino).and_then(|file| {
                let file = rustix::fs::open(link(&file), access | OFlags::CLOEXEC, Mode::empty())?;
                Ok(disk.opened(File::from(file)))
            });
            answer!(reply, opened, handle => reply.opened(handle, FopenFlags::empty()));
        });
    }

    fn create(
        &self,
        req: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let by = owner(req);
        self.pass_name("create", (dir, name), move |disk, dir, name| {
            let access = OFlags::from_bits_retain(flags as u32) & (OFlags::ACCMODE | OFlags::EXCL);
            let made = dir.and_then(|dir| {
                let file = open_at(&dir, name, access | OFlags::CREATE, Mode::from_raw_mode(0o600))?;
                let attr = disk.made(&dir, name, by, Some(mode))?;
                Ok((attr, disk.opened(File::from(file))))
            });
            answer!(reply, made, (attr, handle) => {
                reply.created(&Duration::ZERO, &attr, Generation(0), handle, FopenFlags::empty());
            });
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.pass("read", (ino, OsStr::new(NO_NAME), offset), move |disk| {
            let read = disk.by_handle(handle).and_then(|file| {
                let mut bytes = vec![0; size as usize];
                let mut done = 0;
                while done < bytes.len() {
                    match file.read_at(&mut bytes[done..], offset + done as u64)? {
                        0 => break,
                        more => done += more,
                    }
                }
                bytes.truncate(done);
                Ok(bytes)
            });
            answer!(reply, read, bytes => reply.data(&bytes));
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_owned();
        self.pass("write", (ino, OsStr::new(NO_NAME), offset), move |disk| {
            let wrote = disk.by_handle(handle).and_then(|file| file.write_all_at(&data, offset));
            answer!(reply, wrote, () => reply.written(data.len() as u32));
        });
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.below.close(handle);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.pass("fsync", node(ino), |_| reply.ok());
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.pass("fsyncdir", node(ino), |_| reply.ok());
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.pass("opendir", node(ino), move |disk| {
            let listed = disk.file(ino).and_then(|dir| disk.list(&dir));
            answer!(reply, listed, listed => {
                reply.opened(disk.listed(listed), FopenFlags::empty());
            });
        });
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.pass("readdir", node(ino), move |disk| {
            let listing = disk.listing(handle);
            for (at, listed) in listing.iter().enumerate().skip(offset as usize) {
                if reply.add(INodeNo(listed.number), at as u64 + 1, listed.kind, &listed.name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.below.close(handle);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.pass("statfs", node(ino), move |disk| {
            answer!(reply, disk.room(), stat => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                stat.f_bsize as u32,
                255,
                stat.f_frsize as u32,
            ));
        });
    }
}
