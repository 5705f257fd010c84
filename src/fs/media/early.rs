//! Large files go to disk while they are still being written.
//!
//! Left to itself the kernel keeps for half a minute what was written (proc_sys_vm(5), dirty_expire_centisecs), twice: in the
//! pages of the mount and in those of the file below. So an fsync at the end of an upload waits for all of it, and everybody
//! else's behind it. Here the disk is told of each step that is complete, and what it has taken is let go of below.
//!
//! Nothing depends on it: what an fsync promises and reports is the same without.

use rustix::fs::Advice;
use std::fs::File;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Files smaller than this are left to the kernel: most are short-lived, or soon wanted from below again.
const STEP: u64 = 8 << 20;
/// How far back each step looks for what the disk did not take yet: not to the beginning, which on a slow disk would cost
/// more with each step.
const BACK: u64 = 256 << 20;
/// How many steps may wait. One more is left out: the next of its file takes it along.
const WAITING: usize = 16;

/// Where complete steps are told.
#[derive(Debug)]
pub struct EarlyWrites(SyncSender<Step>);

/// What of a file: offset and length.
type Step = (Arc<File>, u64, NonZeroU64);

impl EarlyWrites {
    /// With a thread of its own, since a disk whose queue is full makes the one wait who asks it.
    pub fn start() -> Self {
        let (sender, steps) = sync_channel(WAITING);
        if let Err(error) = std::thread::Builder::new().name("verfs-early".into()).spawn(|| write_out(steps)) {
            log::error!("starting the thread that writes large files early: {error}");
        }
        Self(sender)
    }

    /// A file was written to from `begin` to `end`.
    pub fn wrote(&self, file: &Arc<File>, begin: u64, end: u64) {
        let complete = end / STEP * STEP;
        let from = complete.saturating_sub(BACK);
        if let Some(length) = NonZeroU64::new(complete - from).filter(|_| begin < complete) {
            let _ = self.0.try_send((file.clone(), from, length));
        }
    }
}

fn write_out(steps: Receiver<Step>) {
    for (file, from, length) in steps {
        // Begins to write what is dirty, and lets go of what is not (mm/fadvise.c). Advice: if it fails, the kernel does it later.
        let _ = rustix::fs::fadvise(&*file, from, Some(length), Advice::DontNeed);
    }
}
