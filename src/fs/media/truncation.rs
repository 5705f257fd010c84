//! Truncations beside readers: nobody is shown a byte that nobody wrote.
//!
//! A READ that meets the end of a file makes the kernel fill the page with zeros. They show in two ways.
//!
//! Until the kernel has used our answer to a truncation it shows them up to the length that it still believes in
//! (fs/fuse/file.c, FUSE_I_SIZE_UNSTABLE). Such a READ cannot be made to wait: it keeps the page's lock, which the
//! truncation needs to end. So the bytes that a truncation takes are kept, and such a READ gets them, as if it had come
//! before. The kernel keeps the inode locked until it has used the answer, so any further change of the file says that
//! it has, and so does a request of the same thread.
//!
//! And a reader that got its page, but no processor yet, takes as much of it as the file is long when it runs
//! (mm/filemap.c, filemap_read): too much, if the file was truncated and written anew meanwhile. So the first change
//! after a truncation waits until the readers that met the end have run.

use crate::fs::threads::wait_until_they_ran;
use crate::tree::NodeId;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The most that is kept of one file, in bytes.
const MOST_OF_ONE: u64 = 1 << 20;
/// The most that is kept in all.
const MOST_OF_ALL: usize = 16 << 20;
/// How long the bytes of a file that was emptied are kept if nothing tells that the answer arrived. Then the kernel
/// reads nothing of it, so it may be long.
const EMPTIED: Duration = Duration::from_secs(10);
/// The same for any other truncation, and how long a read waits that cannot be told what it asks for.
const SHORTENED: Duration = Duration::from_millis(10);
/// The kernel reads whole pages, and no page past the one with the end that it believes in.
const PAGE: u64 = 4096;

/// How long ago a reader can have been answered and not have run, and how long it is waited for.
const STARVED: Duration = Duration::from_millis(200);
/// How many readers are remembered.
const READERS: usize = 256;

/// A truncation.
struct Truncation {
    /// The new length, the old one, and what was between them; nothing if it was too much.
    from: u64,
    to: u64,
    kept: Vec<u8>,
    /// The thread that asked.
    thread: u32,
    begun: Instant,
    /// Whether that thread is known to have its answer.
    answered: bool,
}

impl Truncation {
    fn is_over(&self) -> bool {
        self.answered || self.begun.elapsed() > if self.is_kept() && self.from == 0 { EMPTIED } else { SHORTENED }
    }

    fn is_kept(&self) -> bool {
        self.kept.len() as u64 == self.to - self.from
    }

    /// What a read up to `end` that met the end at `at` gets; `None` if it may have been asked with the new length
    /// known, or the bytes were too many to be kept.
    fn beyond(&self, at: u64, end: u64) -> Option<Vec<u8>> {
        if !self.is_kept() || end <= self.from.next_multiple_of(PAGE) {
            return None;
        }
        let kept = self.kept.get(at.checked_sub(self.from)? as usize..)?;
        Some(kept[..kept.len().min((end - at) as usize)].to_vec())
    }
}

/// A read that met the end of a file.
struct MetEnd {
    node: NodeId,
    /// For which thread.
    thread: u32,
    when: Instant,
}

/// Those that may be under way.
#[derive(Default)]
pub(super) struct Truncations {
    under_way: Mutex<HashMap<NodeId, Truncation>>,
    /// How many there are: most reads need not take the lock.
    count: AtomicUsize,
    /// The last ones.
    readers: Mutex<VecDeque<MetEnd>>,
}

impl Truncations {
    /// A file is about to be truncated for this thread.
    pub(super) fn begin(&self, node: NodeId, thread: u32, file: &File, size: u64) -> rustix::io::Result<()> {
        let to = rustix::fs::fstat(file)?.st_size as u64;
        if size >= to {
            return Ok(());
        }
        let in_all: usize = self.under_way.lock().values().map(|truncation| truncation.kept.len()).sum();
        let kept = match to - size {
            len if len <= MOST_OF_ONE && in_all < MOST_OF_ALL => super::content::read_to(file, size, len as usize)?,
            _ => Vec::new(),
        };
        let truncation = Truncation { from: size, to, kept, thread, begun: Instant::now(), answered: false };
        let mut under_way = self.under_way.lock();
        under_way.insert(node, truncation);
        self.count.store(under_way.len(), Ordering::Release);
        Ok(())
    }

    /// A change of this node begins, so the kernel has the answer to a truncation before it.
    pub(super) fn end(&self, node: NodeId) {
        if !self.remove(|of, _| of == node) {
            return;
        }
        let recent = |met: &&MetEnd| met.node == node && met.when.elapsed() < STARVED;
        let readers: HashSet<u32> = self.readers.lock().iter().filter(recent).map(|met| met.thread).collect();
        wait_until_they_ran(readers, STARVED);
    }

    /// The truncation failed, or the node is gone.
    pub(super) fn cancel(&self, node: NodeId) {
        self.remove(|of, _| of == node);
    }

    /// This thread asks for something of the node: so it has the answer to what it asked before.
    pub(super) fn note_request(&self, node: NodeId, thread: u32) {
        if self.count.load(Ordering::Acquire) > 0
            && let Some(truncation) = self.under_way.lock().get_mut(&node)
        {
            truncation.answered |= truncation.thread == thread;
        }
    }

    /// Lets go of those that were answered long ago.
    pub(super) fn forget_old(&self) {
        self.remove(|_, truncation| truncation.begun.elapsed() > EMPTIED);
    }

    fn remove(&self, which: impl Fn(NodeId, &Truncation) -> bool) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut under_way = self.under_way.lock();
        under_way.retain(|node, truncation| !which(*node, truncation));
        self.count.swap(under_way.len(), Ordering::AcqRel) != under_way.len()
    }

    /// What a read of `at..end` gets that met the end of the file at `at`.
    pub(super) fn beyond(&self, node: NodeId, thread: u32, at: u64, end: u64) -> Vec<u8> {
        let bytes = self.taken(node, at, end);
        let mut readers = self.readers.lock();
        if readers.len() == READERS {
            readers.pop_front();
        }
        readers.push_back(MetEnd { node, thread, when: Instant::now() });
        bytes
    }

    fn taken(&self, node: NodeId, at: u64, end: u64) -> Vec<u8> {
        while self.count.load(Ordering::Acquire) > 0 {
            {
                let under_way = self.under_way.lock();
                let Some(truncation) = under_way.get(&node).filter(|truncation| !truncation.is_over()) else { break };
                if let Some(bytes) = truncation.beyond(at, end) {
                    return bytes;
                }
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Vec::new()
    }
}
