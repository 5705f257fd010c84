//! Renames and links of large release files. Their copy is made before the kernel holds the directory.
//!
//! While a RENAME or LINK is answered the kernel holds the lock of its directories (vfs_rename, vfs_link), and a look
//! at a name in one of them that it does not know waits for that lock. So the first request gets ESTALE, and then
//! the file is copied up. The kernel takes ESTALE for a sign that its names are old: it lets go of the locks, looks
//! the path up again, and asks a second time (`retry_estale` in include/linux/namei.h); once only, so the second
//! request is answered whatever comes out. The looks of that thread, the first thing that it asks for, wait for the
//! copy. Where the caller named a path without a directory there is no look outside of the lock, and it is held until
//! the copy is there.

use crate::error::Result;
use crate::tree::NodeId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Threads that were asked to come again, at most. Others wait within the lock.
const MOST: usize = 64;
/// How long after its copy a thread may come again. One that was killed does not.
const AGAIN: Duration = Duration::from_secs(60);

/// A look that waits for a copy.
type Look = Box<dyn FnOnce() + Send>;

enum Stage {
    /// The copy is being made, and perhaps a look waits for it.
    Copying,
    CopyingFor(Look),
    /// The copy ended then.
    Copied(Instant),
}

/// The threads that were asked to come again.
#[derive(Default)]
pub(super) struct CopyFirst {
    stages: Mutex<HashMap<u32, Stage>>,
    /// How many there are, to be read without the lock.
    len: AtomicUsize,
}

/// Copies that are being made for a thread, until this is dropped.
#[must_use]
pub(super) struct Copying<'a> {
    first: &'a CopyFirst,
    thread: u32,
    nodes: Vec<NodeId>,
}

impl CopyFirst {
    /// Whether a thread is to be asked to come again, after these are copied up. It was not yet; there is something to
    /// copy; and it is one that the kernel can name.
    pub(super) fn begin(&self, thread: u32, wanted: impl FnOnce() -> Vec<NodeId>) -> Option<Copying<'_>> {
        if self.take(thread).is_some() || thread == 0 {
            return None;
        }
        let nodes = wanted();
        if nodes.is_empty() {
            return None;
        }
        let mut stages = self.stages.lock();
        stages.retain(|_, stage| !matches!(stage, Stage::Copied(at) if at.elapsed() > AGAIN));
        if stages.len() >= MOST {
            return None;
        }
        stages.insert(thread, Stage::Copying);
        self.len.store(stages.len(), Ordering::Release);
        Some(Copying { first: self, thread, nodes })
    }

    /// A thread comes again.
    fn take(&self, thread: u32) -> Option<Stage> {
        if self.len.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut stages = self.stages.lock();
        let stage = stages.remove(&thread);
        self.len.store(stages.len(), Ordering::Release);
        stage
    }

    /// Runs a look, once the copy that its thread waits for is made.
    pub(super) fn after(&self, thread: u32, look: impl FnOnce() + Send + 'static) {
        if self.len.load(Ordering::Acquire) > 0
            && let Some(stage @ Stage::Copying) = self.stages.lock().get_mut(&thread)
        {
            *stage = Stage::CopyingFor(Box::new(look));
            return;
        }
        look();
    }
}

impl Copying<'_> {
    /// Copies them up. What fails is told when the thread comes again.
    pub(super) fn make(self, copy_up: impl Fn(NodeId) -> Result<()>) {
        for node in &self.nodes {
            if copy_up(*node).is_err() {
                break;
            }
        }
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        let copied = |stage: &mut Stage| std::mem::replace(stage, Stage::Copied(Instant::now()));
        let stage = self.first.stages.lock().get_mut(&self.thread).map(copied);
        if let Some(Stage::CopyingFor(look)) = stage {
            look();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::Arc;

    fn some() -> Vec<NodeId> {
        vec![NodeId(20)]
    }

    #[test]
    fn a_thread_is_asked_to_come_again_once_and_its_look_waits_for_the_copy() {
        let first = CopyFirst::default();
        let looks = Arc::new(AtomicUsize::new(0));
        let look = |thread| {
            let counted = looks.clone();
            first.after(thread, move || {
                counted.fetch_add(1, Ordering::Relaxed);
            });
            looks.load(Ordering::Relaxed)
        };
        assert!(first.begin(7, Vec::new).is_none(), "nothing is to be copied");
        let copying = first.begin(7, some).unwrap();
        assert_eq!(look(8), 1, "another thread's look waits for nothing");
        assert_eq!(look(7), 1, "the thread's own waits");
        drop(copying);
        assert_eq!(looks.load(Ordering::Relaxed), 2);
        assert_eq!(look(7), 3, "the copy is there");
        assert!(first.begin(7, some).is_none(), "the second request is answered");
        drop(first.begin(7, some).unwrap());
        assert!(first.begin(0, some).is_none(), "a thread that the kernel cannot name");
    }

    #[test]
    fn those_who_never_come_again_keep_nobody_out_for_long_and_take_bounded_room() {
        let first = CopyFirst::default();
        let copying: Vec<_> = (1..=MOST as u32).map(|thread| first.begin(thread, some).unwrap()).collect();
        assert!(first.begin(1000, some).is_none(), "no more than so many");
        drop(copying);
        let long_ago = Instant::now().checked_sub(AGAIN * 2).unwrap();
        first.stages.lock().values_mut().for_each(|stage| *stage = Stage::Copied(long_ago));
        assert!(first.begin(1000, some).is_some());
        assert_eq!(first.stages.lock().len(), 1);
    }
}
