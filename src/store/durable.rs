//! Writes that are there after a power cut or were never there, and a reserve for a full disk.

use crate::error::{Context, Result};
use crate::fault;
use crate::store::{look, trust};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, Stat};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Room kept for a rollback on a full disk: the `active` file, a journal line, 40,000 stamps.
const RESERVE: u64 = 1 << 20;
const RESERVE_NAME: &str = "reserve";

/// A directory whose files are replaced durably. None of them is reached through a symlink.
#[derive(Debug)]
pub struct Dir {
    file: File,
    path: PathBuf,
}

impl Dir {
    /// Opens a directory at a path that has no symlink in it.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = trust::open_dir(path).context(|| format!("opening {}", path.display()))?;
        Ok(Self::of(dir, path))
    }

    /// One that is open.
    pub(crate) fn of(dir: OwnedFd, path: &Path) -> Self {
        Self { file: dir.into(), path: path.to_owned() }
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How the directory looks.
    pub(crate) fn stat(&self) -> Result<Stat> {
        rustix::fs::fstat(&self.file).context(|| format!("looking at {}", self.path.display()))
    }

    /// Opens a file in it; see [`trust::open_file_in`].
    pub(crate) fn open_file(&self, name: &str, flags: OFlags) -> Result<File> {
        match trust::open_file_in(&self.file, name, flags) {
            Err(rustix::io::Errno::LOOP) => Err(trust::swapped(&self.path.join(name))),
            opened => opened.context(|| format!("opening {}", self.path.join(name).display())),
        }
    }

    /// What a file in it holds; `None` if it is not there.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let mut file = match self.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK) {
            Err(error) if error.is_not_found() => return Ok(None),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).context(|| format!("reading {}", self.path.join(name).display()))?;
        Ok(Some(bytes))
    }

    /// The names in it that are UTF-8, as all names of verfs's are.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let listed = rustix::fs::Dir::read_from(&self.file).and_then(|all| {
            all.map(|entry| Ok(entry?.file_name().to_str().ok().map(str::to_owned)))
                .collect::<rustix::io::Result<Vec<_>>>()
        });
        let names = listed.context(|| format!("reading {}", self.path.display()))?;
        Ok(names.into_iter().flatten().collect())
    }

    /// Refuses a name in it that is somebody else's, that others may write, or that is a symlink.
    pub(crate) fn check(&self, name: &str) -> Result<()> {
        trust::check_in(&self.file, name, &self.path.join(name))
    }

    /// Takes the right to write a file in it from others; see [`trust::keep_from_others_in`].
    pub(crate) fn keep_from_others(&self, name: &str) -> Result<()> {
        trust::keep_from_others_in(&self.file, name, &self.path.join(name))
    }

    /// Replaces a file: after a crash it holds the old bytes or the new ones.
    pub fn replace(&self, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
        self.place(name, bytes, mode, RenameFlags::empty())
    }

    /// Makes a file that must not be there yet; EEXIST if it is.
    pub fn create(&self, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
        self.place(name, bytes, mode, RenameFlags::NOREPLACE)
    }

    fn place(&self, name: &str, bytes: &[u8], mode: u32, flags: RenameFlags) -> Result<()> {
        let temporary = format!(".{name}.{}", std::process::id());
        let written = self.write_temporary(&temporary, bytes, mode).and_then(|()| {
            fault::point("atomic.synced");
            rustix::fs::renameat_with(&self.file, &*temporary, &self.file, name, flags)
                .context(|| format!("placing {}", self.path.join(name).display()))
        });
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&self.file, &*temporary, AtFlags::empty());
        }
        written?;
        self.sync()
    }

    fn write_temporary(&self, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let what = || format!("writing {}", self.path.join(name).display());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file =
            File::from(rustix::fs::openat(&self.file, name, flags, Mode::from_raw_mode(mode)).context(what)?);
        file.write_all(bytes).context(what)?;
        fault::point("atomic.written");
        file.sync_all().context(what)
    }

    /// Makes renames and unlinks in the directory durable.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().context(|| format!("syncing {}", self.path.display()))
    }

    /// Makes everything that was written to the directory's file system durable.
    pub fn sync_file_system(&self) -> Result<()> {
        rustix::fs::syncfs(&self.file).context(|| format!("syncing the file system of {}", self.path.display()))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Sets room aside. A full disk is no error here: the reserve is made when there is room again.
pub(crate) fn make_reserve(dir: &Dir) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match rustix::fs::openat(&dir.file, RESERVE_NAME, flags, Mode::from_raw_mode(0o600)) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOSPC) => return Ok(()),
        Err(error) => return Err(error).context(|| format!("making {}/{RESERVE_NAME}", dir.path.display())),
    };
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE) {
        Ok(()) | Err(rustix::io::Errno::NOSPC | rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error).context(|| format!("making {}/{RESERVE_NAME}", dir.path.display())),
    }
}

/// Does `write`; if the disk is full, gives up the reserve and does it once more.
pub(crate) fn with_reserve<T>(dir: &Dir, mut write: impl FnMut() -> Result<T>) -> Result<T> {
    let first = write();
    match &first {
        Err(error) if error.is_no_space() => {}
        _ => return first,
    }
    match rustix::fs::unlinkat(&dir.file, RESERVE_NAME, AtFlags::empty()) {
        Ok(()) => {
            dir.sync()?;
            log::warn!("the disk of {} is full; its reserve is in use: free some space", dir.path.display());
            write()
        }
        Err(_) => first,
    }
}

/// Removes what an interrupted [`Dir::replace`] left: files of its naming, of processes that are gone.
pub(crate) fn sweep_temporaries(path: &Path) -> Result<Vec<PathBuf>> {
    let mut swept = Vec::new();
    for entry in std::fs::read_dir(path).context(|| format!("reading {}", path.display()))? {
        let entry = entry.context(|| format!("reading {}", path.display()))?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix('.')?.rsplit_once('.')?.1.parse::<u32>().ok())
        else {
            continue;
        };
        if !look::is_process(pid)? {
            std::fs::remove_file(entry.path()).context(|| format!("removing {}", entry.path().display()))?;
            swept.push(entry.path());
        }
    }
    Ok(swept)
}

/// Free bytes for this process on the file system of a path.
pub(crate) fn free_bytes(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).context(|| format!("asking for the free space of {}", path.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn replaced_file_holds_the_new_bytes_and_no_temporary_stays() {
        let scratch = tempfile::tempdir().expect("scratch");
        let dir = Dir::open(scratch.path()).expect("open");
        dir.replace("active", b"one", 0o644).expect("first");
        dir.replace("active", b"two", 0o644).expect("second");
        assert_eq!(std::fs::read(scratch.path().join("active")).expect("read"), b"two");
        let error = dir.create("active", b"three", 0o644).expect_err("it is there");
        let there = matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists);
        assert!(there, "{error}");
        assert_eq!(std::fs::read_dir(scratch.path()).expect("list").count(), 1);
    }

    #[test]
    fn full_disk_gives_up_the_reserve_once() {
        let scratch = tempfile::tempdir().expect("scratch");
        let dir = Dir::open(scratch.path()).expect("open");
        make_reserve(&dir).expect("reserve");
        let mut tries = 0;
        let full = || Error::io("writing", std::io::Error::from_raw_os_error(libc::ENOSPC));
        let done = with_reserve(&dir, || {
            tries += 1;
            if scratch.path().join("reserve").exists() { Err(full()) } else { Ok(tries) }
        });
        assert_eq!(done.expect("second try"), 2);
        let again: Result<()> = with_reserve(&dir, || Err(full()));
        assert!(again.expect_err("no reserve left").is_no_space());
    }
}
