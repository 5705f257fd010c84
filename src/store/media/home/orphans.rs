//! Leaves that lost their last name and may be open: kept by a name in `orphans/`, or where the disk has no room for
//! one by a descriptor.

use super::{Home, Leaf, names};
use crate::error::{Errno, Error, OnDisk, Result};
use crate::tree::LayerPath;
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A leaf that lost its last name and may be open.
#[derive(Clone, Debug)]
pub enum Orphan {
    /// It has this name in `orphans/`.
    Named(u64),
    /// The disk had no room for a name.
    Open(Arc<File>),
    /// Nor could it be opened.
    Gone,
}

impl Home {
    /// Opens an orphan.
    pub fn open_orphan(&self, orphan: &Orphan, flags: OFlags) -> Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match orphan {
            Orphan::Named(number) => {
                let opened = rustix::fs::openat(&self.orphans, number.to_string(), flags, Mode::empty());
                opened.map(File::from).on_disk("opening", || self.show_orphan(*number))
            }
            Orphan::Open(file) => file.try_clone().on_disk("opening", || "an unlinked file"),
            Orphan::Gone => Err(Error::answer(Errno::STALE)),
        }
    }

    /// How an orphan looks.
    pub fn stat_orphan(&self, orphan: &Orphan) -> Result<Stat> {
        match orphan {
            Orphan::Named(number) => {
                let stat = rustix::fs::statat(&self.orphans, number.to_string(), AtFlags::SYMLINK_NOFOLLOW);
                let mut stat = stat.on_disk("looking at", || self.show_orphan(*number))?;
                // Its name here is not one that anybody gave it.
                stat.st_nlink = stat.st_nlink.saturating_sub(1);
                Ok(stat)
            }
            Orphan::Open(file) => rustix::fs::fstat(file).on_disk("looking at", || "an unlinked file"),
            Orphan::Gone => Err(Error::answer(Errno::STALE)),
        }
    }

    /// What an orphan is, and how it looks.
    pub fn leaf_of_orphan(&self, orphan: &Orphan) -> Result<Leaf> {
        let file = self.open_orphan_path(orphan)?;
        let leaf = Leaf::of(&file).on_disk("looking at", || "an unlinked file")?;
        Ok(Leaf { stat: self.stat_orphan(orphan)?, ..leaf })
    }

    /// As [`Home::open_path`], of an orphan.
    pub fn open_orphan_path(&self, orphan: &Orphan) -> Result<OwnedFd> {
        self.open_orphan(orphan, OFlags::PATH).map(OwnedFd::from)
    }

    pub(super) fn show_orphan(&self, number: u64) -> Vec<u8> {
        self.show_beside("orphans", number.to_string().as_bytes())
    }

    pub(super) fn next_orphan(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// Gives a leaf, of which the directory is open, a second name among the orphans, or opens it where the disk has no
    /// room for one.
    pub(super) fn keep(&self, dir: &OwnedFd, path: &LayerPath) -> Result<Orphan> {
        let name = path.name();
        let number = self.next_orphan();
        match rustix::fs::linkat(dir, name, &self.orphans, number.to_string(), AtFlags::empty()) {
            Ok(()) => Ok(Orphan::Named(number)),
            Err(Errno::DQUOT | Errno::NOSPC | Errno::MLINK) => {
                let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
                let file = rustix::fs::openat(dir, name, flags, Mode::empty());
                // A file that cannot be opened, whatever the reason, can be removed all the same.
                Ok(file.map_or(Orphan::Gone, |file| Orphan::Open(Arc::new(File::from(file)))))
            }
            Err(error) => Err(error).on_disk("removing", || self.show(path)),
        }
    }

    /// Takes a leaf out of the tree and keeps it.
    pub(super) fn orphan(&self, path: &LayerPath) -> Result<Orphan> {
        let (dir, name) = self.parent_of(path)?;
        let number = self.next_orphan();
        match rustix::fs::renameat(&dir, &name[..], &self.orphans, number.to_string()) {
            Ok(()) => Ok(Orphan::Named(number)),
            // A quota of btrfs lets nothing be renamed when it is used up, but lets it be removed.
            Err(Errno::DQUOT | Errno::NOSPC) => {
                let orphan = self.keep(&dir, path)?;
                rustix::fs::unlinkat(&dir, &name[..], AtFlags::empty()).on_disk("removing", || self.show(path))?;
                Ok(orphan)
            }
            Err(error) => Err(error).on_disk("removing", || self.show(path)),
        }
    }

    /// Removes the orphans of a daemon that is no more. They are leaves with numbers for names; all else is not ours.
    pub(super) fn sweep_orphans(&self) -> Result<()> {
        for name in names(&self.orphans).on_disk("listing", || self.show_beside("orphans", b""))? {
            let shown = || self.show_beside("orphans", &name);
            let removed = match name.iter().all(u8::is_ascii_digit) {
                true => rustix::fs::unlinkat(&self.orphans, &name[..], AtFlags::empty()),
                false => Err(Errno::ISDIR),
            };
            match removed {
                Err(Errno::ISDIR) => log::warn!("{} is no file of verfs's; move it away", shown().escape_ascii()),
                removed => removed.on_disk("removing", shown)?,
            }
        }
        Ok(())
    }

    /// Nobody has it open any more.
    pub fn drop_orphan(&self, orphan: &Orphan) {
        if let Orphan::Named(number) = orphan
            && let Err(error) = rustix::fs::unlinkat(&self.orphans, number.to_string(), AtFlags::empty())
        {
            log::warn!("removing an unlinked file for good: {error}; the next mount does it");
        }
    }
}
