//! What a file of the writable layer is known by.

use super::{Home, In};
use crate::error::{Errno, Error, OnDisk, Result};
use crate::sys::Handle;
use crate::tree::LayerPath;
use rustix::fs::{OFlags, Stat};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

/// The number of a file on its disk, which may be another file's once it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inode {
    pub(super) dev: u64,
    pub(super) ino: u64,
}

impl Inode {
    /// That of a file that was looked at.
    pub fn of(stat: &Stat) -> Self {
        Self { dev: stat.st_dev, ino: stat.st_ino }
    }

    /// That of an entry of a listing, in a directory on this device.
    pub fn listed(dev: u64, ino: u64) -> Self {
        Self { dev, ino }
    }
}

/// What a file is known by: its number, and its handle where its file system gives one. A file that got the number of a
/// removed one has another handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    inode: Inode,
    handle: Handle,
}

impl FileId {
    /// That of a file, of which these were found.
    pub fn new(inode: Inode, handle: Handle) -> Self {
        Self { inode, handle }
    }

    /// Its number.
    pub fn inode(self) -> Inode {
        self.inode
    }

    /// Whether the same id can only be the same file.
    pub fn is_sure(self) -> bool {
        self.handle.is_known()
    }
}

/// A leaf of the upper layer as it was found.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// What it is known by.
    pub id: FileId,
    /// How it looks.
    pub stat: Stat,
}

impl Leaf {
    /// What an open file is.
    pub fn of(file: impl AsFd) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstat(&file)?;
        Ok(Self { id: FileId::new(Inode::of(&stat), Handle::of(file.as_fd(), b"")?), stat })
    }
}

impl Home {
    /// The leaf at a path; `None` if there is none, or a directory.
    pub fn leaf(&self, path: &LayerPath) -> Result<Option<Leaf>> {
        Ok(match self.find(path)? {
            super::Upper::Leaf(leaf) => Some(leaf),
            super::Upper::Dir(_) | super::Upper::None | super::Upper::BeneathLeaf => None,
        })
    }

    /// Opens a file of the upper layer by what it is known by, wherever it was moved behind the mount, if that is still
    /// in the writable layer. ESTALE: it is not.
    pub fn open_moved(&self, id: FileId, flags: OFlags) -> Result<File> {
        let shown = || self.show_in(In::Media, &LayerPath::shared(""));
        if id.inode.dev != self.device() {
            return Err(Error::answer(Errno::STALE));
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = id.handle.open(self.media.as_fd(), flags.bits() as i32).on_disk("opening by its handle", shown)?;
        let place = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}"));
        let is_below = |dir: i32| -> std::io::Result<bool> {
            let (at, dir) = (place(file.as_raw_fd())?, place(dir)?);
            let below = at.as_os_str().as_bytes().strip_prefix(dir.as_os_str().as_bytes());
            Ok(below.is_some_and(|below| below.starts_with(b"/")))
        };
        let dirs = [self.media.as_raw_fd(), self.own.as_raw_fd()];
        if !dirs.into_iter().any(|dir| is_below(dir).is_ok_and(|below| below)) {
            return Err(Error::answer(Errno::STALE));
        }
        Ok(file)
    }
}
