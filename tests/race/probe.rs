//! Single operations on the mount, as system calls; what they saw, with no opinion about it.

use crate::chance::Chance;
use crate::world::Listed;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

/// What a stat told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// File, directory, symlink.
    pub kind: FileType,
    /// Bytes.
    pub size: u64,
    /// Whole seconds of the mtime.
    pub second: i64,
    /// Nanoseconds of the mtime.
    pub nanosecond: u64,
    /// The inode number.
    pub ino: u64,
}

impl From<Stat> for Seen {
    fn from(stat: Stat) -> Seen {
        Seen {
            kind: FileType::from_raw_mode(stat.st_mode),
            size: stat.st_size as u64,
            second: stat.st_mtime,
            nanosecond: stat.st_mtime_nsec,
            ino: stat.st_ino,
        }
    }
}

/// lstat of a path below a directory.
pub fn stat(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Seen, Errno> {
    Ok(rustix::fs::statat(dir, path, AtFlags::SYMLINK_NOFOLLOW)?.into())
}

/// fstat of a descriptor.
pub fn fstat(fd: impl AsFd) -> Result<Seen, Errno> {
    Ok(rustix::fs::fstat(fd)?.into())
}

/// The target of a symlink.
pub fn readlink(dir: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>, Errno> {
    Ok(rustix::fs::readlinkat(dir, path, Vec::new())?.into_bytes())
}

/// Opens what is at a path; a symlink there is refused with ELOOP.
pub fn open(dir: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, path, flags, Mode::empty())
}

/// Opens the directory at a path.
pub fn open_dir(dir: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, path, flags, Mode::empty())
}

/// Reads an open file to its end, `step` bytes at a time.
pub fn read(file: &OwnedFd, step: usize) -> Result<Vec<u8>, Errno> {
    let mut content = Vec::new();
    loop {
        let start = content.len();
        content.resize(start + step, 0);
        let got = rustix::io::pread(file, &mut content[start..], start as u64)?;
        content.truncate(start + got);
        if got == 0 {
            return Ok(content);
        }
    }
}

/// How a listing is read.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// In one go.
    Whole,
    /// A few names at a time, with pauses of up to so many microseconds in between.
    Piecewise(usize),
}

/// Names, kinds and inode numbers of an open directory from where it stands; unsorted.
pub fn list(dir: &OwnedFd, manner: Manner, chance: &mut Chance) -> Result<Vec<(Listed, u64)>, Errno> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 * 1024];
    let room = match manner {
        Manner::Whole => buffer.len(),
        Manner::Piecewise(_) => 300 + chance.below(2_000),
    };
    let mut names = Vec::new();
    let mut raw = RawDir::new(dir, &mut buffer[..room]);
    loop {
        if let Manner::Piecewise(pause) = manner
            && raw.is_buffer_empty()
            && chance.percent(60)
        {
            thread::sleep(Duration::from_micros(chance.below(pause + 1) as u64));
        }
        let Some(entry) = raw.next() else {
            return Ok(names);
        };
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(((name.to_vec(), entry.file_type()), entry.ino()));
        }
    }
}
