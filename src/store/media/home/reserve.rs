//! Room on the disk of media that is kept for whiteouts, so that what a release has can be removed on a full disk.
//!
//! It is the file `tmp/reserve`. A whiteout that finds no room is made again after a piece of the file was given up, as
//! often as there are pieces; when there is room again the file gets back what it lacks.

use super::Home;
use crate::error::Errno;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

const NAME: &str = "reserve";
/// Bytes: 256 blocks of 4 KiB, each a new directory of the tree of whiteouts, or 100 names in one.
const WHOLE: u64 = 1 << 20;
/// Bytes that are given up at a time: a file system gives them to whoever asks first.
const PIECE: u64 = 64 << 10;

fn is_full(error: Errno) -> bool {
    matches!(error, Errno::NOSPC | Errno::DQUOT)
}

impl Home {
    /// Gives the reserve what it lacks, if the disk has twice as much room. Where a disk cannot set room aside it stays
    /// as it is.
    pub fn keep_reserve(&self) {
        if !self.reserve_lacks.swap(false, Ordering::Relaxed) {
            return;
        }
        match self.fill_reserve() {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => {
                self.reserve_lacks.store(true, Ordering::Relaxed);
                log::debug!("no room is set aside for removals in {}: {error}", self.path.display());
            }
        }
    }

    fn fill_reserve(&self) -> rustix::io::Result<()> {
        let room = rustix::fs::fstatvfs(&self.tmp)?;
        if room.f_bavail.saturating_mul(room.f_frsize) < 2 * WHOLE {
            return Err(Errno::NOSPC);
        }
        rustix::fs::fallocate(self.open_reserve(OFlags::CREATE)?, FallocateFlags::empty(), 0, WHOLE)
    }

    fn open_reserve(&self, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.tmp, NAME, flags, Mode::from_raw_mode(0o600))
    }

    /// Does `make`, and again for each piece of the reserve that it needs.
    pub(super) fn with_reserve(&self, make: impl Fn() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
        for _ in 0..WHOLE / PIECE {
            match make() {
                Err(error) if is_full(error) && self.give_up_a_piece() => {}
                made => return made,
            }
        }
        make()
    }

    /// Whether there was one.
    fn give_up_a_piece(&self) -> bool {
        let given_up = self.open_reserve(OFlags::empty()).and_then(|file| {
            let len = rustix::fs::fstat(&file)?.st_size as u64;
            rustix::fs::ftruncate(&file, len.saturating_sub(PIECE))?;
            // Only then it is free on ext4.
            rustix::fs::fsync(&file)?;
            Ok(len)
        });
        self.reserve_lacks.store(true, Ordering::Relaxed);
        if given_up == Ok(WHOLE) {
            log::warn!("the disk of {} is full; its reserve is in use: free some space", self.path.display());
        }
        given_up.is_ok_and(|len| len > 0)
    }
}
