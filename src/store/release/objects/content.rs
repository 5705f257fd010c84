//! A content that is open for reading: an object of its own, or a range of a pack.

use super::pack::{Extent, Pack};
use crate::error::Errno;
use crate::tree::Digest;
use rustix::fs::{Advice, SeekFrom};
use rustix::io::ReadWriteFlags;
use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::sync::Arc;

/// How much is read into the page cache around a packed content: its neighbours in the tree lie there, and a disk gives
/// many at the price of one.
const AROUND: u64 = 256 << 10;

/// A file of at least this length is let go of by the page cache while it is read: it is in the mount's pages then.
pub const LARGE: u64 = 1 << 20;
/// No folio of a file is longer (a PMD of x86-64 and arm64 with pages of 4 KiB), and each begins at a multiple of its
/// length.
const LARGEST_FOLIO: u64 = 2 << 20;

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Content {
    digest: Digest,
    file: Arc<File>,
    start: u64,
    len: u64,
    packed: bool,
}

impl Content {
    /// All of a file.
    pub fn whole(digest: Digest, file: File, len: u64) -> Self {
        Self { digest, file: Arc::new(file), start: 0, len, packed: false }
    }

    /// What lies at an extent of a pack.
    pub fn of_pack(digest: Digest, pack: &Pack, extent: Extent) -> Self {
        let file = pack.file().clone();
        Self { digest, file, start: extent.offset, len: extent.len.into(), packed: true }
    }

    /// Its hash.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether it lies in a pack.
    pub fn is_packed(&self) -> bool {
        self.packed
    }

    /// The file, and the range of it, from this offset on.
    pub fn range(&self, offset: u64) -> (&Arc<File>, u64, u64) {
        let offset = offset.min(self.len);
        (&self.file, self.start + offset, self.len - offset)
    }

    /// The file, if all of it is this content: then it can be cloned (ioctl_ficlone(2)), and has holes.
    pub fn as_file(&self) -> Option<&Arc<File>> {
        (!self.packed).then_some(&self.file)
    }

    /// Whether the file is as long as it must be.
    pub fn is_whole(&self) -> rustix::io::Result<bool> {
        Ok(rustix::fs::fstat(&self.file)?.st_size as u64 >= self.start + self.len)
    }

    /// Reads up to `len` bytes, fewer only at the end. EIO if the file became shorter.
    pub fn read(&self, offset: u64, len: usize) -> rustix::io::Result<Vec<u8>> {
        let (file, start, most) = self.range(offset);
        let len = most.min(len as u64) as usize;
        let mut bytes = if self.packed { self.cached(start, len) } else { Vec::with_capacity(len) };
        while bytes.len() < len {
            let at = start + bytes.len() as u64;
            let room = len - bytes.len();
            bytes.reserve_exact(room);
            match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(Errno::IO),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    /// The file, if it should not stay in the page cache when the pages of the mount have it too.
    pub fn as_large(&self) -> Option<&Arc<File>> {
        self.as_file().filter(|_| self.len >= LARGE)
    }

    /// What of a range the page cache holds; if that is not all of it, the disk is asked for it and what lies around.
    fn cached(&self, start: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut into = [IoSliceMut::new(&mut bytes)];
        // Whatever is wrong, the reading that follows says it.
        let read = rustix::io::preadv2(&self.file, &mut into, start, ReadWriteFlags::NOWAIT).unwrap_or(0);
        bytes.truncate(read);
        if read < len {
            let begin = start / AROUND * AROUND;
            let end = (start + len as u64).next_multiple_of(AROUND);
            // Advice: what it cannot do is done by the reading.
            let _ = rustix::fs::fadvise(&self.file, begin, NonZeroU64::new(end - begin), Advice::WillNeed);
        }
        bytes
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
    pub fn seek(&self, offset: i64, whence: i32) -> rustix::io::Result<i64> {
        let from = u64::try_from(offset).ok().filter(|from| *from < self.len).ok_or(Errno::NXIO)?;
        match (self.as_file(), whence) {
            (Some(file), _) => seek(file, from, whence),
            (None, _) => seek_in_data(self.len, offset, whence),
        }
    }
}

/// Drops the range of a large file that was just read from the page cache, at once, so that the next range is read into
/// the same memory. The kernel drops only whole folios, so the part of a folio before the range goes too.
pub fn let_go(file: &File, offset: u64, len: usize) {
    let begin = offset / LARGEST_FOLIO * LARGEST_FOLIO;
    if let Some(length) = NonZeroU64::new(offset + len as u64 - begin) {
        let _ = rustix::fs::fadvise(file, begin, Some(length), Advice::DontNeed);
    }
}

/// SEEK_DATA and SEEK_HOLE in a content of this length that has no holes, or none that are known: the offset itself,
/// and the end. ENXIO at the end and past it, as lseek(2) says.
pub fn seek_in_data(len: u64, offset: i64, whence: i32) -> rustix::io::Result<i64> {
    u64::try_from(offset).ok().filter(|from| *from < len).ok_or(Errno::NXIO)?;
    match whence {
        libc::SEEK_DATA => Ok(offset),
        libc::SEEK_HOLE => Ok(len as i64),
        _ => Err(Errno::INVAL),
    }
}

/// SEEK_DATA and SEEK_HOLE in a plain file.
fn seek(file: &File, from: u64, whence: i32) -> rustix::io::Result<i64> {
    let to = match whence {
        libc::SEEK_DATA => SeekFrom::Data(from),
        libc::SEEK_HOLE => SeekFrom::Hole(from),
        _ => return Err(Errno::INVAL),
    };
    rustix::fs::seek(file, to).map(|to| to as i64)
}
