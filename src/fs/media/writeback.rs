//! Large files go to disk while they are still being written.
//!
//! Left to itself the kernel waits up to half a minute before it begins (dirty_expire_centisecs), and keeps all of it
//! twice meanwhile: in the pages of the mount and in those of the file below. So an fsync at the end of an upload waits
//! for the whole of it, and everybody else's behind it. Here a thread writes out each step of a large file as it is
//! complete, and drops the pages below that the disk has taken.

use crate::error::Result;
use crate::sys::to_the_end;
use crate::tree::NodeId;
use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::Advice;
use std::fs::File;
use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Less than this in a row is left to the kernel: most such files are short-lived, or soon wanted from below again. A
/// run begins when the file is this long, so the first step of a new file is written out at twice this.
const STEP: u64 = 8 << 20;
/// How far each step looks back for what the disk had not taken by the one before.
const BACK: u64 = 64 << 20;
/// At most this many files; the least recently written one falls back to the kernel's write-back.
const FILES: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// How long a file is kept open that nobody writes to. The kernel has written it by then.
const IDLE: Duration = Duration::from_secs(60);

/// Files that are being written on and on.
#[derive(Debug)]
pub(super) struct Writeback {
    runs: Arc<Mutex<LruCache<NodeId, Run>>>,
    ready: OnceLock<SyncSender<NodeId>>,
}

/// What was written in a row.
#[derive(Debug)]
struct Run {
    flushed_to: u64,
    end: u64,
    /// Whether the thread knows of it.
    waits: bool,
    /// Open for reading, since a step was flushed: that keeps the inode, and with it an error of the disk's, for the
    /// fsync.
    file: Option<Arc<File>>,
    used: Instant,
}

impl Run {
    fn new(begin: u64) -> Self {
        Self { flushed_to: begin, end: begin, waits: false, file: None, used: Instant::now() }
    }

    /// A write from `begin` to `end`; true if a step is complete that nobody waits to write out.
    fn grow(&mut self, begin: u64, end: u64) -> bool {
        if begin != self.end {
            (self.flushed_to, self.end) = (begin, begin);
        }
        self.end = end;
        self.used = Instant::now();
        !self.waits && self.end - self.flushed_to >= STEP
    }

    /// What is to be written out now.
    fn take(&mut self) -> Range<u64> {
        let from = self.flushed_to.saturating_sub(BACK);
        self.waits = false;
        self.flushed_to = self.end;
        from..self.end
    }
}

impl Default for Writeback {
    fn default() -> Self {
        Self { runs: Arc::new(Mutex::new(LruCache::new(FILES))), ready: OnceLock::new() }
    }
}

impl Writeback {
    /// A file was written to from `begin` to `end`; `open` opens it for reading.
    pub(super) fn wrote(&self, node: NodeId, begin: u64, end: u64, open: impl FnOnce() -> Result<Arc<File>>) {
        // Most files never come this far, and must not displace those that do.
        if end < STEP {
            return;
        }
        let Some(file) = self.grow(node, begin, end) else { return };
        // Without it the kernel writes it later.
        let Ok(file) = file.map_or_else(open, Ok) else { return };
        let ready = self.ready.get_or_init(|| start(self.runs.clone()));
        let mut runs = self.runs.lock();
        let before = runs.get_mut(&node).and_then(|run| {
            run.waits = ready.try_send(node).is_ok();
            run.file.replace(file)
        });
        // Closed with no lock held: closing may wait for the disk.
        drop(runs);
        drop(before);
    }

    /// Notes a write. Gives the file's descriptor, if it has one, once a step is complete that nobody waits to write
    /// out.
    fn grow(&self, node: NodeId, begin: u64, end: u64) -> Option<Option<Arc<File>>> {
        let mut runs = self.runs.lock();
        let displaced = if runs.contains(&node) { None } else { runs.push(node, Run::new(begin)) };
        let run = runs.get_mut(&node)?;
        let complete = run.grow(begin, end).then(|| run.file.clone());
        // As above.
        drop(runs);
        drop(displaced);
        complete
    }

    /// A file was synced, or is not what it was. Gives its descriptor: closing it may wait for the disk.
    pub(super) fn end(&self, node: NodeId) -> Option<Arc<File>> {
        self.runs.lock().pop(&node)?.file
    }

    /// Lets go of files that nobody writes to any more.
    pub(super) fn forget_old(&self) {
        let mut runs = self.runs.lock();
        let idle: Vec<_> = runs.iter().filter(|(_, run)| run.used.elapsed() > IDLE).map(|(node, _)| *node).collect();
        let gone: Vec<_> = idle.iter().filter_map(|node| runs.pop(node)).collect();
        drop(runs);
        drop(gone);
    }
}

/// Starts the thread. A disk whose queue is full makes its caller wait, and that must not be a thread that serves the
/// mount.
fn start(runs: Arc<Mutex<LruCache<NodeId, Run>>>) -> SyncSender<NodeId> {
    let (ready, nodes) = sync_channel(FILES.get());
    if let Err(error) = std::thread::Builder::new()
        .name("verfs-writeback".into())
        .spawn(move || to_the_end(|| write_out(&runs, &nodes)))
    {
        log::error!("starting the thread that writes large files early: {error}");
    }
    ready
}

fn write_out(runs: &Mutex<LruCache<NodeId, Run>>, nodes: &Receiver<NodeId>) {
    for node in nodes {
        let taken = runs.lock().peek_mut(&node).map(|run| (run.file.clone(), run.take()));
        let Some((Some(file), range)) = taken else { continue };
        // Begins to write what is dirty, and lets go of what is not (mm/fadvise.c). Advice: if it fails, the kernel
        // does it later.
        let length = NonZeroU64::new(range.end - range.start);
        let _ = rustix::fs::fadvise(&*file, range.start, length, Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ranges that a row of writes has written out, if the thread comes after each.
    fn written_out(writes: &[(u64, u64)]) -> Vec<Range<u64>> {
        let mut run = Run::new(writes[0].0);
        let mut ranges = Vec::new();
        for (begin, end) in writes {
            if run.grow(*begin, *end) {
                ranges.push(run.take());
            }
        }
        ranges
    }

    #[test]
    fn who_writes_on_and_on_has_every_step_written_out() {
        let writes: Vec<_> = (0..40).map(|mib: u64| (mib << 20, (mib + 1) << 20)).collect();
        let ranges: Vec<_> = (1..=5).map(|step| 0..step * STEP).collect();
        assert_eq!(written_out(&writes), ranges);
        // Each looks back so far and no further.
        let far = 1 << 40;
        let writes: Vec<_> = (0..16).map(|mib: u64| (far + (mib << 20), far + ((mib + 1) << 20))).collect();
        assert_eq!(written_out(&writes), [far - BACK..far + STEP, far + STEP - BACK..far + 2 * STEP]);
        assert_eq!(written_out(&[(5, 5 + STEP)]).first(), Some(&(0..5 + STEP)));
    }

    #[test]
    fn who_writes_here_and_there_is_left_alone() {
        // Across the bounds of steps, back and forth, and over the same again.
        let writes: Vec<_> = (1..1000).map(|n: u64| (n * STEP - 100, n * STEP + 100)).collect();
        assert_eq!(written_out(&writes), []);
        let again: Vec<_> = std::iter::repeat_n((0, STEP - 1), 100).collect();
        assert_eq!(written_out(&again), []);
        let apart: Vec<_> = (0..100).map(|n: u64| ((n % 2) << 40, ((n % 2) << 40) + (1 << 20))).collect();
        assert_eq!(written_out(&apart), []);
    }

    #[test]
    fn steps_that_nobody_could_take_are_taken_with_the_next() {
        let mut run = Run::new(0);
        assert!(run.grow(0, STEP));
        run.waits = true;
        assert!(!run.grow(STEP, 3 * STEP));
        assert_eq!(run.take(), 0..3 * STEP);
        assert!(!run.grow(3 * STEP, 3 * STEP + 1));
    }
}
