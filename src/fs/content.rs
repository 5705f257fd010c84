//! File contents: a bounded cache of open objects, and reading from them.

use crate::error::{Errno, Error, Result};
use crate::store::objects::Objects;
use crate::tree::Digest;
use lru::LruCache;
use parking_lot::Mutex;
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Open objects, the least recently used let go first.
pub struct Descriptors {
    objects: Objects,
    open: Mutex<LruCache<Digest, Arc<File>>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Descriptors {
    /// Keeps up to `limit` objects open.
    pub fn new(objects: Objects, limit: usize) -> Self {
        let limit = NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN);
        Self { objects, open: Mutex::new(LruCache::new(limit)), hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// Where the objects lie.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// An open object.
    pub fn open(&self, digest: Digest, len: u64) -> Result<Arc<File>> {
        if let Some(file) = self.open.lock().get(&digest) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(file.clone());
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(self.objects.open(digest, len)?);
        let let_go = self.open.lock().push(digest, file.clone());
        // Closed here, and not under the lock.
        drop(let_go);
        Ok(file)
    }

    /// How many are open, and how many may be.
    pub fn occupancy(&self) -> (usize, usize) {
        let open = self.open.lock();
        (open.len(), open.cap().get())
    }

    /// How often an object was found open, and how often it was not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

/// Reads `len` bytes, which the object must have.
pub fn read_exactly(object: &File, offset: u64, len: usize, path: impl Fn() -> PathBuf) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(object, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => {
                return Err(Error::damaged(format!(
                    "the object {} became shorter while it was open; restore it from a backup",
                    path().display()
                )));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io(format!("reading the object {}", path().display()), error)),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// lseek(2) with SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
pub fn seek(object: &File, size: u64, offset: i64, whence: i32) -> Result<i64> {
    use rustix::fs::{SeekFrom, seek};
    let from = u64::try_from(offset).ok().filter(|from| *from < size).ok_or(Error::Errno(Errno::NXIO))?;
    let to = match whence {
        libc::SEEK_DATA => seek(object, SeekFrom::Data(from)),
        libc::SEEK_HOLE => seek(object, SeekFrom::Hole(from)),
        _ => return Err(Errno::INVAL.into()),
    };
    Ok(to? as i64)
}
