//! When the entries of a directory changed last.
//!
//! The mtime of a directory of the upper layer tells of what was made, removed and renamed there; what was made there
//! to hold what the release has (a copy-up) leaves it. The mtime of a directory of whiteouts tells when a whiteout was
//! put there or taken away; a directory that leads deeper leaves it, and is itself made with the time 0. So no change
//! needs a second write, and a removal no more room. Stopped between an entry and the mtime that is to stay, the mtime
//! is later than the change.
//!
//! A time that a user sets may be earlier than that of the release's directory or of its whiteouts. The attribute
//! `trusted.verfs.mtime` of the upper directory then has these two, which are over:
//!
//! ```text
//! seconds since 1970, i64 | nanoseconds, u32 | the same of its whiteouts      little-endian
//! ```

use super::xattrs::{proc_link, set_xattr};
use super::{Home, In, Inode, absent, upper_kind};
use crate::error::{Errno, OnDisk, Result};
use crate::fault;
use crate::store::active::stamps::Stamp;
use crate::tree::LayerPath;
use crate::tree::union::UpperKind;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, OFlags, Stat, Timespec, Timestamps, getxattr};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// Root's: users neither see nor change it.
const OVER: &[u8] = b"trusted.verfs.mtime";

/// Earlier than any time.
const NEVER: Stamp = Stamp { second: i64::MIN, nanos: 0 };

/// When what a directory shows of the release changed last.
#[derive(Clone, Copy, Debug)]
pub struct LowerChanged {
    /// By a switch.
    pub release: Stamp,
    /// Because an entry was hidden, or shown again.
    pub whiteouts: Stamp,
}

impl LowerChanged {
    /// The later of the two.
    pub fn last(self) -> Stamp {
        self.release.max(self.whiteouts)
    }

    /// The later of those that came after.
    pub fn last_after(self, over: Self) -> Stamp {
        let after = |changed, over| if changed > over { changed } else { NEVER };
        after(self.release, over.release).max(after(self.whiteouts, over.whiteouts))
    }
}

fn decode(value: &[u8]) -> Option<LowerChanged> {
    let stamp = |bytes: &[u8; 12]| {
        let (second, nanos) = bytes.split_first_chunk::<8>()?;
        Some(Stamp { second: i64::from_le_bytes(*second), nanos: u32::from_le_bytes(nanos.try_into().ok()?) })
    };
    let (release, whiteouts) = value.split_first_chunk::<12>()?;
    Some(LowerChanged { release: stamp(release)?, whiteouts: stamp(whiteouts.try_into().ok()?)? })
}

/// Directories that get an entry and are to keep their mtime: that, while the disk has another. So no look shows the
/// other, which the kernel might believe for long.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// Seconds since 1970, and nanoseconds.
    under_way: Mutex<HashMap<Inode, (i64, i64)>>,
    /// How many are over.
    over: AtomicU64,
}

impl Leaving {
    /// Gives a directory an entry and leaves its mtime. Nobody else may change the directory meanwhile.
    pub(super) fn mtime(&self, dir: &OwnedFd, add: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
        let before = rustix::fs::fstat(dir)?;
        let mtime = (before.st_mtime, before.st_mtime_nsec as i64);
        self.under_way.lock().insert(Inode::of(&before), mtime);
        let _ends = Ends(self, Inode::of(&before));
        add()?;
        fault::point("upper.added");
        let mtime = mtime_alone(Timespec { tv_sec: mtime.0, tv_nsec: mtime.1 as _ });
        if let Err(error) = rustix::fs::utimensat(dir, "", &mtime, AtFlags::EMPTY_PATH) {
            // The entry is there, and a later time misleads nobody.
            log::debug!("leaving the mtime of a directory of the writable layer: {error}");
        }
        Ok(())
    }

    /// What a look finds; of a directory, the mtime that it keeps.
    pub(super) fn look(&self, look: impl Fn() -> rustix::io::Result<Stat>) -> rustix::io::Result<Stat> {
        loop {
            let over = self.over.load(Ordering::Acquire);
            let mut stat = look()?;
            if upper_kind(&stat) != UpperKind::Dir {
                return Ok(stat);
            }
            let under_way = self.under_way.lock();
            if let Some((second, nanos)) = under_way.get(&Inode::of(&stat)) {
                (stat.st_mtime, stat.st_mtime_nsec) = (*second, *nanos as _);
                return Ok(stat);
            }
            // One that ended beside the look may have been this directory's: then it looks otherwise now.
            if self.over.load(Ordering::Acquire) == over {
                return Ok(stat);
            }
        }
    }
}

/// It is over, whatever came of it.
struct Ends<'a>(&'a Leaving, Inode);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let mut under_way = self.0.under_way.lock();
        under_way.remove(&self.1);
        self.0.over.fetch_add(1, Ordering::Release);
    }
}

/// Sets an mtime, and leaves the atime.
pub(super) fn mtime_alone(mtime: Timespec) -> Timestamps {
    let omitted = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    Timestamps { last_access: omitted, last_modification: mtime }
}

impl Home {
    /// Moves the mtime of an upper directory, if there is one.
    pub(super) fn touch_dir(&self, path: &LayerPath) -> Result<()> {
        let now = mtime_alone(Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW });
        let touch = |dir: OwnedFd| rustix::fs::utimensat(&dir, "", &now, AtFlags::EMPTY_PATH);
        absent(self.dir(In::Media, path).and_then(touch)).map(drop).on_disk("changing the times of", || self.show(path))
    }

    /// When a whiteout was put into a directory, or taken away, last.
    pub fn whiteouts_changed(&self, path: &LayerPath) -> Result<Stamp> {
        let stat = self.whiteouts_dir(path)?.filter(|stat| stat.st_mtime > 0);
        Ok(stat.map_or(NEVER, |stat| Stamp { second: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 }))
    }

    /// The directory of whiteouts at a path, if there is one.
    pub fn whiteouts_dir(&self, path: &LayerPath) -> Result<Option<Stat>> {
        let opened = self.open_at(In::Whiteouts, path, OFlags::PATH | OFlags::DIRECTORY);
        absent(opened.and_then(|dir| self.leaving.look(|| rustix::fs::fstat(&dir))))
            .on_disk("looking at", || self.show_in(In::Whiteouts, path))
    }

    /// Up to when the changes of the release's directory, and of its whiteouts, are over: the mtime of the upper
    /// directory was set since, to an earlier one.
    pub fn over_until(&self, path: &LayerPath) -> Result<LowerChanged> {
        let mut value = [0; 24];
        let read = self.dir(In::Media, path).and_then(|dir| getxattr(proc_link(&dir), OVER, &mut value[..]));
        let len = match read {
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => None,
            read => absent(read).on_disk("reading the attributes of", || self.show(path))?,
        };
        let found = len.and_then(|len| decode(value.get(..len)?));
        Ok(found.unwrap_or(LowerChanged { release: NEVER, whiteouts: NEVER }))
    }

    /// Notes that in an upper directory. Where the disk keeps no such attributes or has no room, or the daemon is not
    /// root, the later time goes on to show.
    pub fn set_over(&self, path: &LayerPath, dir: &OwnedFd, until: LowerChanged) -> Result<()> {
        let value = [until.release, until.whiteouts]
            .map(|stamp| [&stamp.second.to_le_bytes()[..], &stamp.nanos.to_le_bytes()].concat())
            .concat();
        match set_xattr(dir, OVER, Some((&value, 0))) {
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::NOSPC | Errno::DQUOT) => Ok(()),
            set => set.on_disk("changing the times of", || self.show(path)),
        }
    }
}
