//! Whiteouts: an empty file hides the release's entry of its name and all below it.

use super::times::mtime_alone;
use super::{Home, In, absent, names, or_here, rename_to_free};
use crate::error::{Errno, OnDisk, Result};
use crate::fault;
use crate::tree::LayerPath;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec};
use std::os::fd::OwnedFd;

/// What hides the release's entry at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteout {
    /// Nothing.
    None,
    /// A whiteout of the very name.
    Here,
    /// A whiteout of a directory above it.
    Above,
}

impl Home {
    /// What hides the release's entry at a path.
    pub fn whiteout(&self, path: &LayerPath) -> Result<Whiteout> {
        let found = self
            .dir_above(In::Whiteouts, path)
            .and_then(|dir| rustix::fs::statat(&dir, or_here(path.name()), AtFlags::SYMLINK_NOFOLLOW));
        match found {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => Ok(Whiteout::Here),
            Err(Errno::NOTDIR) => Ok(Whiteout::Above),
            Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::XDEV) => Ok(Whiteout::None),
            Err(error) => Err(error).on_disk("looking at", || self.show_in(In::Whiteouts, path)),
        }
    }

    /// The names that are hidden one by one in a directory, one after the other.
    pub fn each_whiteout(&self, path: &LayerPath, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        let shown = || self.show_in(In::Whiteouts, path);
        let opened = absent(self.open_at(In::Whiteouts, path, OFlags::RDONLY | OFlags::DIRECTORY));
        let Some(dir) = opened.on_disk("opening", shown)? else { return Ok(()) };
        for entry in rustix::fs::Dir::read_from(&dir).on_disk("listing", shown)? {
            let entry = entry.on_disk("listing", shown)?;
            if entry.file_type() == FileType::RegularFile {
                take(entry.file_name().to_bytes());
            }
        }
        Ok(())
    }

    /// The names under which a directory of the tree of whiteouts has anything: a whiteout, or a directory that leads
    /// deeper.
    pub fn names_in_whiteouts(&self, path: &LayerPath) -> Result<Vec<Vec<u8>>> {
        let shown = || self.show_in(In::Whiteouts, path);
        let opened = absent(self.open_at(In::Whiteouts, path, OFlags::RDONLY | OFlags::DIRECTORY));
        let Some(dir) = opened.on_disk("opening", shown)? else { return Ok(Vec::new()) };
        names(dir).on_disk("listing", shown)
    }

    /// Makes one directory of whiteouts. It has hidden nothing yet, so its mtime is 0; that of the one above stays.
    pub fn make_whiteouts_dir(&self, path: &LayerPath) -> Result<()> {
        self.with_reserve(|| {
            let above = self.dir_above(In::Whiteouts, path)?;
            let temporary = self.temporary();
            rustix::fs::mkdirat(&self.tmp, &temporary[..], Mode::from_raw_mode(0o755))?;
            let never = mtime_alone(Timespec { tv_sec: 0, tv_nsec: 0 });
            let placed =
                rustix::fs::utimensat(&self.tmp, &temporary[..], &never, AtFlags::SYMLINK_NOFOLLOW).and_then(|()| {
                    self.leaving.mtime(&above, || rename_to_free(&self.tmp, &temporary, &above, path.name()))
                });
            if placed.is_err() {
                let _ = rustix::fs::unlinkat(&self.tmp, &temporary[..], AtFlags::REMOVEDIR);
            }
            match placed {
                // A change in another directory needed it too, and came first.
                Err(Errno::EXIST) => Ok(()),
                placed => placed,
            }
        })
        .on_disk("hiding the release's entry by", || self.show_in(In::Whiteouts, path))
    }

    /// Hides the release's entry at a path; its directory of whiteouts is there. What was below in the tree of
    /// whiteouts goes in the same instant, by an exchange: a name that it hid must not come back for a moment.
    pub(super) fn put_whiteout(&self, path: &LayerPath) -> Result<()> {
        self.with_reserve(|| self.make_whiteout(path))
            .on_disk("hiding the release's entry by", || self.show_in(In::Whiteouts, path))
    }

    fn make_whiteout(&self, path: &LayerPath) -> rustix::io::Result<()> {
        let name = path.name();
        fault::point("upper.whiteout");
        let dir = self.dir_above(In::Whiteouts, path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(());
        }
        let temporary = self.temporary();
        rustix::fs::openat(&self.tmp, &temporary[..], flags, Mode::from_raw_mode(0o644))?;
        let exchanged = self.exchange_whiteout(&temporary, &dir, name);
        if exchanged.is_err() {
            let _ = rustix::fs::unlinkat(&self.tmp, &temporary[..], AtFlags::empty());
        }
        exchanged
    }

    /// Gives a whiteout in the work space the place of a directory of whiteouts.
    fn exchange_whiteout(&self, temporary: &[u8], dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
        match rustix::fs::renameat_with(&self.tmp, temporary, dir, name, RenameFlags::EXCHANGE) {
            // NFS: stopped between the two, what was hidden below shows again.
            Err(Errno::INVAL) => {
                let aside = self.temporary();
                rustix::fs::renameat(dir, name, &self.tmp, &aside[..])?;
                rustix::fs::renameat(&self.tmp, temporary, dir, name)?;
                self.removed.lock().push(aside);
            }
            exchanged => {
                exchanged?;
                fault::point("upper.exchanged");
                self.removed.lock().push(temporary.to_vec());
            }
        }
        Ok(())
    }

    /// Lets the release's entry at a path show again. An upper directory there shows others by that: its mtime moves
    /// afterwards, so that who listed it before lists it again, and beforehand, should that not come.
    pub(super) fn remove_whiteout(&self, path: &LayerPath) -> Result<()> {
        self.touch_dir(path)?;
        self.dir_above(In::Whiteouts, path)
            .and_then(|dir| rustix::fs::unlinkat(dir, path.name(), AtFlags::empty()))
            .on_disk("removing", || self.show_in(In::Whiteouts, path))?;
        self.touch_dir(path)
    }
}
