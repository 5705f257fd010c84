//! The directory that is mounted on. It is held open from the moment it is checked, and so is the one that it is a name
//! in: whatever somebody makes of its path meanwhile, nothing else is mounted on, and nothing else unmounted.

use crate::error::{Context, Error, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Mountpoint {
    path: PathBuf,
    dir: OwnedFd,
    above: OwnedFd,
    name: OsString,
}

impl Mountpoint {
    /// Opens a directory at a path that has no symlink in it. `/` is none.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let name = path.file_name().ok_or(rustix::io::Errno::BUSY)?.to_owned();
        let open = |dir: BorrowedFd<'_>, path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat2(dir, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        };
        let above = open(CWD, path.parent().unwrap_or(Path::new("/")))?;
        let dir = open(above.as_fd(), Path::new(&name))?;
        Ok(Self { path, dir, above, name })
    }

    /// Where it was when it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        let what = || format!("reading {}", self.path.display());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.dir, ".", flags, Mode::empty()).context(what)?;
        for entry in rustix::fs::Dir::new(dir).context(what)? {
            if !matches!(entry.context(what)?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Its type and mode.
    pub(super) fn mode(&self) -> rustix::io::Result<u32> {
        Ok(rustix::fs::fstat(&self.dir)?.st_mode)
    }

    /// Mounts on it.
    ///
    /// # Errors
    /// It is no longer the directory at its path: nothing stays mounted.
    pub(super) fn mount(&self, source: &str, flags: MountFlags, data: &CStr) -> Result<()> {
        let what = || format!("mounting {}", self.path.display());
        // The link of an open file leads to the very directory, whatever its path is now (proc_pid_fd(5)).
        rustix::mount::mount(source, link(&self.dir), "fuse.verfs", flags, Some(data)).context(what)?;
        // From here on nobody renames it (rename(2), EBUSY). RESOLVE_NO_XDEV refuses to enter a mount.
        let (flags, resolve) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS);
        let found = rustix::fs::openat2(&self.above, &self.name, flags, Mode::empty(), resolve);
        if matches!(found, Err(rustix::io::Errno::XDEV)) {
            return Ok(());
        }
        let now = std::fs::read_link(link(&self.dir)).context(what)?;
        Self::open(now).and_then(|now| Ok(now.unmount(UnmountFlags::DETACH)?)).context(what)?;
        Err(Error::failed(format!(
            "somebody put something else at {} while it was being mounted, so nothing is mounted; see who may write in \
             the directory above it, and mount again",
            self.path.display()
        )))
    }

    /// Unmounts what is mounted on it.
    pub(crate) fn unmount(&self, flags: UnmountFlags) -> rustix::io::Result<()> {
        rustix::mount::unmount(link(&self.above).join(&self.name), flags | UnmountFlags::NOFOLLOW)
    }

    /// The device number of what is mounted on it.
    pub(crate) fn device(&self) -> Result<u64> {
        let stat = rustix::fs::statat(&self.above, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        stat.map(|stat| stat.st_dev).context(|| format!("looking at {}", self.path.display()))
    }
}

fn link(dir: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}
