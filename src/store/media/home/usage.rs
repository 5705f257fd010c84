//! How much files take on disk.

use super::below::{Go, list, walk};
use super::{Home, In, absent, names, open_below};
use crate::error::{OnDisk, Result};
use crate::store::media::scope::NAME;
use crate::tree::LayerPath;
use rustix::fs::{AtFlags, FileType, OFlags};
use std::collections::HashSet;
use std::os::fd::OwnedFd;

impl Home {
    /// Bytes that the files and names below a path take on disk, whiteouts among them.
    pub fn disk_usage(&self, path: &LayerPath) -> Result<u64> {
        let mut bytes = 0;
        for tree in [In::Media, In::Whiteouts] {
            let (root, below) = self.at(tree, path.layer(), path.in_docroot());
            bytes += disk_usage_below(root, &below, || self.show_in(tree, path))?;
        }
        Ok(bytes)
    }

    /// The same of a scope that each release has to itself, of all releases.
    pub fn own_disk_usage(&self, scope: &[u8]) -> Result<u64> {
        let mut bytes = 0;
        for release in names(&self.own).on_disk("listing", || self.show_beside("own", b""))? {
            for tree in [In::Media, In::Whiteouts] {
                let below = [&release[..], tree.name(), scope].join(&b'/');
                bytes += disk_usage_below(&self.own, &below, || self.show_beside("own", &below))?;
            }
        }
        Ok(bytes)
    }
}

/// What files take below a path, which may not be there.
fn disk_usage_below(root: &OwnedFd, path: &[u8], shown: impl Fn() -> Vec<u8>) -> Result<u64> {
    let top = absent(open_below(root, path, OFlags::RDONLY | OFlags::DIRECTORY));
    let Some(top) = top.on_disk("opening", &shown)? else { return Ok(0) };
    disk_usage(&top).on_disk("measuring what lies below", &shown)
}

/// What files and names take below a directory; a file with several names counts once, and each of its names.
fn disk_usage(top: &OwnedFd) -> rustix::io::Result<u64> {
    let (mut bytes, mut linked) = (0, HashSet::new());
    let mut count = |dir: &OwnedFd, name: &[u8]| {
        // Gone meanwhile.
        let Some(stat) = absent(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW))? else { return Ok(Go::On) };
        bytes += NAME;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(Go::In);
        }
        if stat.st_nlink == 1 || linked.insert((stat.st_dev, stat.st_ino)) {
            bytes += stat.st_blocks as u64 * 512;
        }
        Ok(Go::On)
    };
    let first = list(top, &mut count)?;
    walk(top, first, count, |_, _| Ok(Go::On))?;
    Ok(bytes)
}
