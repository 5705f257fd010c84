//! Locks between processes: flock(2) on a directory of the store, so that nothing is left behind by a crash.

use crate::error::{Context, Result};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// Whether others may hold the lock beside us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Beside other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

/// A lock that is let go when dropped, or when the process ends in any way.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held for its descriptor")] File);

impl Lock {
    /// Takes the lock on a directory, waiting for it.
    pub fn take(dir: &Path, hold: Hold) -> Result<Self> {
        let file = File::open(dir).context(|| format!("opening {}", dir.display()))?;
        let operation = match hold {
            Hold::Shared => FlockOperation::LockShared,
            Hold::Exclusive => FlockOperation::LockExclusive,
        };
        flock(&file, operation).context(|| format!("locking {}", dir.display()))?;
        Ok(Self(file))
    }

    /// Takes the lock on a directory; `None` if another process has it.
    pub fn try_take(dir: &Path, hold: Hold) -> Result<Option<Self>> {
        Self::try_take_in(rustix::fs::CWD, dir, hold, dir)
    }

    /// The same of a directory by its path below an open one: `.` is that one itself. `shown` is for messages.
    pub(crate) fn try_take_in(dir: impl AsFd, path: &Path, hold: Hold, shown: &Path) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, path, flags, Mode::empty());
        let file = File::from(file.context(|| format!("opening {}", shown.display()))?);
        let operation = match hold {
            Hold::Shared => FlockOperation::NonBlockingLockShared,
            Hold::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(&file, operation) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).context(|| format!("locking {}", shown.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_holders_keep_an_exclusive_one_out() {
        let dir = tempfile::tempdir().expect("scratch");
        let take = |hold| Lock::try_take(dir.path(), hold).expect("lock");
        let first = take(Hold::Shared);
        let second = take(Hold::Shared);
        assert!(first.is_some() && second.is_some());
        assert!(take(Hold::Exclusive).is_none());
        drop((first, second));
        assert!(take(Hold::Exclusive).is_some());
    }
}
