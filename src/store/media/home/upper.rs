//! What the upper layer has at a path, and in a directory.

use super::{FileId, Home, In, Inode, Leaf, absent, or_here};
use crate::error::{Errno, OnDisk, Result};
use crate::sys::Handle;
use crate::tree::LayerPath;
use crate::tree::union::UpperKind;
use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use std::ops::ControlFlow;
use std::os::fd::AsFd;

/// What the upper layer has at a path.
#[derive(Clone, Copy, Debug)]
pub enum Upper {
    /// Nothing.
    None,
    /// A directory.
    Dir(Stat),
    /// Anything else.
    Leaf(Leaf),
    /// Nothing: an entry above it is no directory, and hides all below.
    BeneathLeaf,
}

/// A name in a directory of the upper layer.
#[derive(Clone, Debug)]
pub struct UpperName {
    /// The name.
    pub name: Vec<u8>,
    /// What it stands for.
    pub inode: Inode,
    /// Of what type that is.
    pub kind: FileType,
}

impl Home {
    /// The upper entry at a path; `None` if there is none.
    pub fn stat(&self, path: &LayerPath) -> Result<Option<Stat>> {
        Ok(match self.find(path)? {
            Upper::Dir(stat) | Upper::Leaf(Leaf { stat, .. }) => Some(stat),
            Upper::None | Upper::BeneathLeaf => None,
        })
    }

    /// What the upper layer has at a path.
    pub fn find(&self, path: &LayerPath) -> Result<Upper> {
        let found = self.dir_above(In::Media, path).and_then(|dir| {
            let name = or_here(path.name());
            let stat = self.leaving.look(|| rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW))?;
            Ok(match upper_kind(&stat) {
                UpperKind::Dir => Upper::Dir(stat),
                UpperKind::Leaf => {
                    let handle = Handle::of(dir.as_fd(), path.name())?;
                    Upper::Leaf(Leaf { id: FileId::new(Inode::of(&stat), handle), stat })
                }
            })
        });
        match found {
            Ok(found) => Ok(found),
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(Upper::BeneathLeaf),
            Err(Errno::NOENT | Errno::XDEV) => Ok(Upper::None),
            Err(error) => Err(error).on_disk("looking at", || self.show(path)),
        }
    }

    /// The names in a directory of the upper layer; none if it is not there.
    pub fn list(&self, path: &LayerPath) -> Result<Vec<UpperName>> {
        let mut found = Vec::new();
        self.each(path, |name, inode, kind| {
            found.push(UpperName { name: name.to_vec(), inode, kind });
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// The same, one after the other, for as long as `take` goes on.
    pub fn each(
        &self,
        path: &LayerPath,
        mut take: impl FnMut(&[u8], Inode, FileType) -> ControlFlow<()>,
    ) -> Result<()> {
        let shown = || self.show(path);
        let opened = absent(self.open_at(In::Media, path, OFlags::RDONLY | OFlags::DIRECTORY));
        let Some(dir) = opened.on_disk("opening", shown)? else { return Ok(()) };
        let device = rustix::fs::fstat(&dir).on_disk("looking at", shown)?.st_dev;
        for entry in rustix::fs::Dir::read_from(&dir).on_disk("listing", shown)? {
            let entry = entry.on_disk("listing", shown)?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..")
                && take(name, Inode::listed(device, entry.ino()), entry.file_type()).is_break()
            {
                break;
            }
        }
        Ok(())
    }
}

/// What the upper layer has at a path, of a stat.
pub fn upper_kind(stat: &Stat) -> UpperKind {
    match FileType::from_raw_mode(stat.st_mode).is_dir() {
        true => UpperKind::Dir,
        false => UpperKind::Leaf,
    }
}
