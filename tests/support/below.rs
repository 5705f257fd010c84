//! The directory below a passthrough: its files by number, and those that are open by handle.
//!
//! Files keep their numbers for its life.

use fuser::{FileAttr, FileHandle, FileType, INodeNo, Request, TimeOrNow};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, UTIME_NOW, UTIME_OMIT, Uid};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

/// The number of the top, which the kernel gives it.
const TOP: u64 = 1;

/// See the head of this file.
pub struct Below {
    top: PathBuf,
    table: Mutex<Table>,
    open: Mutex<HashMap<u64, Arc<File>>>,
    listings: Mutex<HashMap<u64, Arc<Vec<Listed>>>>,
    handles: AtomicU64,
}

/// Files by their numbers, and numbers by device and inode. Nothing is ever taken out: a handle (O_PATH) keeps the disk
/// below from giving the inode to another file.
struct Table {
    numbers: HashMap<(u64, u64), u64>,
    files: HashMap<u64, Arc<File>>,
}

/// An entry of a directory.
pub struct Listed {
    pub number: u64,
    pub kind: FileType,
    pub name: OsString,
}

impl Below {
    pub fn over(top: &Path) -> Below {
        let handle = File::from(open_at(rustix::fs::CWD, top.as_os_str(), OFlags::PATH, Mode::empty()).unwrap());
        let meta = handle.metadata().unwrap();
        let numbers = HashMap::from([((meta.dev(), meta.ino()), TOP)]);
        Below {
            top: top.to_owned(),
            table: Mutex::new(Table { numbers, files: HashMap::from([(TOP, Arc::new(handle))]) }),
            open: Mutex::default(),
            listings: Mutex::default(),
            handles: AtomicU64::new(1),
        }
    }

    fn number(&self, dev: u64, ino: u64) -> u64 {
        let numbers = &mut self.table.lock().unwrap().numbers;
        let next = numbers.len() as u64 + TOP;
        *numbers.entry((dev, ino)).or_insert(next)
    }

    pub fn file(&self, ino: INodeNo) -> io::Result<Arc<File>> {
        self.table.lock().unwrap().files.get(&ino.0).cloned().ok_or(io::ErrorKind::NotFound.into())
    }

    /// What is at a name, which has a number from now on.
    pub fn look(&self, dir: &File, name: &OsStr) -> io::Result<FileAttr> {
        let handle = File::from(open_at(dir, name, OFlags::PATH, Mode::empty())?);
        let meta = handle.metadata()?;
        let number = self.number(meta.dev(), meta.ino());
        self.table.lock().unwrap().files.entry(number).or_insert_with(|| Arc::new(handle));
        Ok(attr(number, &meta))
    }

    /// What was made at a name belongs to who asked for it.
    pub fn made(&self, dir: &File, name: &OsStr, by: Owner, mode: Option<u32>) -> io::Result<FileAttr> {
        let (uid, gid) = (Uid::from_raw(by.0), Gid::from_raw(by.1));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if let Some(mode) = mode {
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
        }
        self.look(dir, name)
    }

    /// A file is open, under this handle, until it is closed.
    pub fn opened(&self, file: File) -> FileHandle {
        let handle = self.handles.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap().insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    pub fn by_handle(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        self.open.lock().unwrap().get(&handle.0).cloned().ok_or(io::ErrorKind::NotFound.into())
    }

    /// Closes a file or a listing.
    pub fn close(&self, handle: FileHandle) {
        self.open.lock().unwrap().remove(&handle.0);
        self.listings.lock().unwrap().remove(&handle.0);
    }

    /// Where in the directory a file is.
    pub fn path(&self, ino: INodeNo) -> PathBuf {
        let at = self.file(ino).and_then(|file| std::fs::read_link(link(&file))).unwrap_or_default();
        at.strip_prefix(&self.top).map(Path::to_owned).unwrap_or_default()
    }

    /// A listing is open, under this handle, until it is closed.
    pub fn listed(&self, listing: Vec<Listed>) -> FileHandle {
        let handle = self.handles.fetch_add(1, Ordering::Relaxed);
        self.listings.lock().unwrap().insert(handle, Arc::new(listing));
        FileHandle(handle)
    }

    /// What was in a directory when its listing was opened.
    pub fn listing(&self, handle: FileHandle) -> Arc<Vec<Listed>> {
        self.listings.lock().unwrap().get(&handle.0).cloned().unwrap_or_default()
    }

    /// Room on its disk.
    pub fn room(&self) -> io::Result<rustix::fs::StatVfs> {
        Ok(rustix::fs::statvfs(&self.top)?)
    }

    /// Everything in a directory.
    pub fn list(&self, dir: &File) -> io::Result<Vec<Listed>> {
        let dev = dir.metadata()?.dev();
        let dir = rustix::fs::open(link(dir), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut found = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir)? {
            let entry = entry?;
            found.push(Listed {
                number: self.number(dev, entry.ino()),
                kind: kind(entry.file_type().as_raw_mode()),
                name: OsString::from_vec(entry.file_name().to_bytes().to_vec()),
            });
        }
        Ok(found)
    }
}

/// Who asks: user and group.
pub type Owner = (u32, u32);

pub fn owner(req: &Request) -> Owner {
    (req.uid(), req.gid())
}

pub fn open_at(dir: impl std::os::fd::AsFd, name: &OsStr, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)?)
}

/// The way to what an O_PATH descriptor stands for.
pub fn link(handle: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

pub fn kind(mode: u32) -> FileType {
    match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::Fifo => FileType::NamedPipe,
        rustix::fs::FileType::Socket => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

pub fn attr(number: u64, meta: &Metadata) -> FileAttr {
    let time = |second: i64, nanos: i64| UNIX_EPOCH + Duration::new(second as u64, nanos as u32);
    FileAttr {
        ino: INodeNo(number),
        size: meta.size(),
        blocks: meta.blocks(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: kind(meta.mode()),
        perm: (meta.mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Number 0: there is nothing.
pub fn nothing() -> FileAttr {
    let time = UNIX_EPOCH;
    let (kind, ino) = (FileType::RegularFile, INodeNo(0));
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub fn timespec(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() }
        }
    }
}
