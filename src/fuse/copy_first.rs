//! Renames and links of large release files. Their copy is made before the kernel holds the directory.
//!
//! While a RENAME or LINK is answered the kernel holds the lock of its directories (vfs_rename, vfs_link), and a look
//! at a name in one of them that it does not know waits for that lock. So the first request gets ESTALE, and then the
//! file is copied up. The kernel takes ESTALE for a sign that its names are old: it lets go of the locks, looks the
//! path up again, and asks a second time (`retry_estale` in include/linux/namei.h); once only, so the second request is
//! answered whatever comes out. The looks of that thread at the names on the way to the file, the first thing that it
//! asks for, wait for the copy; no others, because who looks up a name that the kernel does not know holds the lock of
//! its directory. Where the caller named a path without a directory there is no look outside of the lock, and it is
//! held until the copy is there.

use crate::error::{Errno, Error, Result};
use crate::fs::media::LargeCopies;
use crate::tree::NodeId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Threads that were asked to come again, at most. Others wait within the lock.
const MOST: usize = 64;
/// How long after its copy a thread may come again. One that was killed does not.
const AGAIN: Duration = Duration::from_secs(60);
/// How long a look waits for a copy: the disk may stand still. After that the request waits, within the lock.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A look that waits for a copy.
type Look = Box<dyn FnOnce() + Send>;

enum Stage {
    Copying {
        begun: Instant,
        /// The names on the way to the file.
        names: Vec<(NodeId, Vec<u8>)>,
        look: Option<Look>,
    },
    Copied {
        at: Instant,
        /// What the thread is told when it comes again: another copy would find no room either.
        full: Option<Errno>,
    },
}

/// The threads that were asked to come again.
#[derive(Default)]
pub(super) struct CopyFirst {
    stages: Mutex<HashMap<u32, Stage>>,
    /// How many there are, and how many of them wait for a copy, to be read without the lock.
    known: AtomicUsize,
    copying: AtomicUsize,
}

/// What becomes of a request.
pub(super) enum Request<'a> {
    /// It is answered.
    Answer,
    /// Its thread is asked to come again.
    CopyFirst(Copying<'a>),
    /// There was no room for its copy.
    Full(Errno),
}

/// Copies that are being made for a thread, until this is dropped.
#[must_use]
pub(super) struct Copying<'a> {
    first: &'a CopyFirst,
    thread: u32,
    nodes: Vec<NodeId>,
    full: Option<Errno>,
}

impl CopyFirst {
    /// A request of a thread, which the kernel numbers so; 0 if it has no number for it.
    pub(super) fn begin(&self, thread: u32, wanted: impl FnOnce() -> LargeCopies) -> Request<'_> {
        match self.take(thread) {
            Some(Stage::Copied { full: Some(errno), .. }) => return Request::Full(errno),
            Some(_) => return Request::Answer,
            None if thread == 0 => return Request::Answer,
            None => {}
        }
        let LargeCopies { nodes, names } = wanted();
        if nodes.is_empty() {
            return Request::Answer;
        }
        let mut stages = self.stages.lock();
        stages.retain(|_, stage| !matches!(stage, Stage::Copied { at, .. } if at.elapsed() > AGAIN));
        if stages.len() >= MOST {
            return Request::Answer;
        }
        stages.insert(thread, Stage::Copying { begun: Instant::now(), names, look: None });
        self.known.store(stages.len(), Ordering::Release);
        self.copying.fetch_add(1, Ordering::AcqRel);
        Request::CopyFirst(Copying { first: self, thread, nodes, full: None })
    }

    /// A thread comes again.
    fn take(&self, thread: u32) -> Option<Stage> {
        if self.known.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut stages = self.stages.lock();
        let stage = stages.remove(&thread);
        self.known.store(stages.len(), Ordering::Release);
        stage
    }

    /// Runs a look at a name in a directory; once the copy is made, if its thread waits for one. Says whether it waits.
    pub(super) fn after(&self, thread: u32, at: (NodeId, &[u8]), run: impl FnOnce() + Send + 'static) -> bool {
        if self.copying.load(Ordering::Acquire) > 0 {
            let mut stages = self.stages.lock();
            if let Some(Stage::Copying { begun, names, look: look @ None }) = stages.get_mut(&thread)
                && begun.elapsed() < PATIENCE
                && names.iter().any(|(dir, name)| (*dir, &name[..]) == at)
            {
                *look = Some(Box::new(run));
                return true;
            }
        }
        run();
        false
    }

    /// Lets a look go on that waited long.
    pub(super) fn give_up(&self, thread: u32) {
        let look = match self.stages.lock().get_mut(&thread) {
            Some(Stage::Copying { begun, look, .. }) if begun.elapsed() >= PATIENCE => look.take(),
            _ => None,
        };
        if let Some(look) = look {
            look();
        }
    }
}

impl Copying<'_> {
    /// Copies them up. What fails is told when the thread comes again.
    pub(super) fn make(mut self, copy_up: impl Fn(NodeId) -> Result<()>) {
        let failed = self.nodes.iter().find_map(|node| copy_up(*node).err());
        self.full = failed.as_ref().map(Error::errno).filter(|errno| matches!(*errno, Errno::NOSPC | Errno::DQUOT));
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        self.first.copying.fetch_sub(1, Ordering::AcqRel);
        let copied = Stage::Copied { at: Instant::now(), full: self.full };
        let stage = self.first.stages.lock().get_mut(&self.thread).map(|stage| std::mem::replace(stage, copied));
        if let Some(Stage::Copying { look: Some(look), .. }) = stage {
            look();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::Arc;

    const DIR: NodeId = NodeId(30);

    fn some() -> LargeCopies {
        LargeCopies { nodes: vec![NodeId(20)], names: vec![(DIR, b"media".to_vec())] }
    }

    fn copying(first: &CopyFirst, thread: u32) -> Option<Copying<'_>> {
        match first.begin(thread, some) {
            Request::CopyFirst(copying) => Some(copying),
            Request::Answer | Request::Full(_) => None,
        }
    }

    #[test]
    fn a_thread_is_asked_to_come_again_once_and_its_look_on_the_way_waits_for_the_copy() {
        let first = CopyFirst::default();
        let looks = Arc::new(AtomicUsize::new(0));
        let look = |thread, at| {
            let counted = looks.clone();
            let parked = first.after(thread, at, move || {
                counted.fetch_add(1, Ordering::Relaxed);
            });
            (parked, looks.load(Ordering::Relaxed))
        };
        let on_the_way: (NodeId, &[u8]) = (DIR, b"media");
        assert!(matches!(first.begin(7, LargeCopies::default), Request::Answer), "nothing is to be copied");
        let copy = copying(&first, 7).unwrap();
        assert_eq!(look(8, on_the_way), (false, 1), "another thread's look waits for nothing");
        assert_eq!(look(7, (DIR, b"other")), (false, 2), "nor does one elsewhere");
        assert_eq!(look(7, on_the_way), (true, 2));
        first.give_up(7);
        assert_eq!(looks.load(Ordering::Relaxed), 2, "it did not wait for long");
        drop(copy);
        assert_eq!(looks.load(Ordering::Relaxed), 3);
        assert_eq!(look(7, on_the_way), (false, 4), "the copy is there");
        assert!(copying(&first, 7).is_none(), "the second request is answered");
        copying(&first, 7).unwrap().make(|_| Err(Error::answer(Errno::DQUOT)));
        assert!(matches!(first.begin(7, some), Request::Full(Errno::DQUOT)), "it is not copied twice to fail twice");
        assert!(copying(&first, 0).is_none(), "a thread that the kernel cannot name");
        assert_eq!(first.copying.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_look_waits_for_no_disk_that_stands_still() {
        let first = CopyFirst::default();
        let _copying = copying(&first, 7).unwrap();
        let looks = Arc::new(AtomicUsize::new(0));
        let look = || {
            let counted = looks.clone();
            first.after(7, (DIR, b"media"), move || {
                counted.fetch_add(1, Ordering::Relaxed);
            })
        };
        assert!(look());
        let long_ago = Instant::now().checked_sub(PATIENCE).unwrap();
        if let Some(Stage::Copying { begun, .. }) = first.stages.lock().get_mut(&7) {
            *begun = long_ago;
        }
        first.give_up(7);
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        assert!(!look(), "nor does the next one");
    }

    #[test]
    fn those_who_never_come_again_keep_nobody_out_for_long_and_take_bounded_room() {
        let first = CopyFirst::default();
        let all: Vec<_> = (1..=MOST as u32).map(|thread| copying(&first, thread).unwrap()).collect();
        assert!(copying(&first, 1000).is_none(), "no more than so many");
        drop(all);
        let long_ago = Instant::now().checked_sub(AGAIN * 2).unwrap();
        first.stages.lock().values_mut().for_each(|stage| *stage = Stage::Copied { at: long_ago, full: None });
        assert!(copying(&first, 1000).is_some());
        assert_eq!(first.stages.lock().len(), 1);
    }
}
