//! File contents: a bounded cache of open objects.

use crate::error::{Errno, Error, OnDisk, Result};
use crate::store::release::objects::{self, Content, Objects};
use crate::tree::Digest;
use lru::LruCache;
use parking_lot::Mutex;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Open objects, the least recently used let go first.
#[derive(Debug)]
pub struct Contents {
    objects: Objects,
    open: Mutex<LruCache<Digest, Content>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Contents {
    /// Keeps up to `limit` objects open.
    pub fn new(objects: Objects, limit: usize) -> Self {
        let limit = NonZeroUsize::new(limit).unwrap_or(NonZeroUsize::MIN);
        Self { objects, open: Mutex::new(LruCache::new(limit)), hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// Where the objects lie.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// An open object. A pack is open all the time, so what lies in one takes no place here.
    pub fn open(&self, digest: Digest, len: u64) -> Result<Content> {
        if let Some(content) = self.open.lock().get(&digest) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(content.clone());
        }
        let content = self.objects.open(digest, len)?;
        if content.is_packed() {
            return Ok(content);
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let let_go = self.open.lock().push(digest, content.clone());
        // Closed here, and not under the lock.
        drop(let_go);
        Ok(content)
    }

    /// Reads up to `len` bytes of an object. `kept`: the kernel keeps them in the pages of the mount.
    pub fn read(&self, content: &Content, offset: u64, len: usize, kept: bool) -> Result<ReadBytes> {
        let bytes = content.read(offset, len).map_err(|error| {
            // The next reader opens it anew: it may have been put right by then.
            let bad = self.open.lock().pop(&content.digest());
            drop(bad);
            self.unreadable(content, error)
        })?;
        Ok(match content.as_large().filter(|_| kept) {
            Some(file) => ReadBytes::held_twice(bytes, file.clone(), offset),
            None => bytes.into(),
        })
    }

    /// SEEK_DATA and SEEK_HOLE in an object.
    pub fn seek(&self, content: &Content, offset: i64, whence: i32) -> Result<i64> {
        content.seek(offset, whence).on_disk("seeking in", || self.path(content))
    }

    /// The error for an object that could not be read or copied.
    pub fn unreadable(&self, content: &Content, errno: Errno) -> Error {
        match (errno, content.is_whole()) {
            (Errno::IO, Ok(false)) => Error::damaged(format!(
                "the object {} cannot be read to its end; restore it from a backup",
                self.objects.show(content.digest())
            )),
            _ => Error::Disk { operation: "reading", path: self.path(content), errno },
        }
    }

    /// The file that a content lies in.
    fn path(&self, content: &Content) -> Vec<u8> {
        self.objects.file_of(content).into_os_string().into_encoded_bytes()
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

/// Bytes for the kernel. When they go, the page cache lets go of them too if it holds them twice: by then the kernel
/// has them.
#[derive(Debug)]
pub struct ReadBytes {
    bytes: Vec<u8>,
    held_twice: Option<(Arc<File>, u64)>,
}

impl ReadBytes {
    /// Bytes that were read from a file at this offset, and that the kernel keeps in the pages of the mount too.
    pub fn held_twice(bytes: Vec<u8>, file: Arc<File>, offset: u64) -> Self {
        Self { bytes, held_twice: Some((file, offset)) }
    }
}

impl From<Vec<u8>> for ReadBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, held_twice: None }
    }
}

impl Extend<u8> for ReadBytes {
    fn extend<T: IntoIterator<Item = u8>>(&mut self, more: T) {
        self.bytes.extend(more);
    }
}

impl Deref for ReadBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for ReadBytes {
    fn drop(&mut self) {
        if let Some((file, offset)) = &self.held_twice {
            objects::let_go(file, *offset, self.bytes.len());
        }
    }
}
