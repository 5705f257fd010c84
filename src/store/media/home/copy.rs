//! Copies of a release's files on their way up.

use super::{Home, Orphan, number};
use crate::error::{Errno, OnDisk, Result};
use crate::store::release::objects::Content;
use crate::tree::{LayerPath, Node, NodeId, Owner};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use std::fs::File;
use std::os::fd::OwnedFd;

/// Reading the object and writing the copy of it are one call; which of the two failed the kernel does not say.
pub const COPYING: &str = "copying a file of a release to";
pub(super) const DRESSING: &str = "setting the attributes of";

/// A copy of a release's file in the work space. If it gets no name it goes.
#[derive(Debug)]
pub struct Copy<'a> {
    home: &'a Home,
    /// Empty once it has a name elsewhere.
    temporary: Vec<u8>,
}

impl Copy<'_> {
    /// Gives it its name.
    pub fn place(mut self, path: &LayerPath) -> Result<()> {
        self.home.take_place(&std::mem::take(&mut self.temporary), path)
    }

    /// Makes it an orphan at once: the name of its file has moved on.
    pub fn orphan(mut self) -> Result<Orphan> {
        let number = self.home.next_orphan();
        rustix::fs::renameat(&self.home.tmp, &self.temporary[..], &self.home.orphans, number.to_string())
            .on_disk("making", || self.home.show_orphan(number))?;
        self.temporary.clear();
        Ok(Orphan::Named(number))
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        if !self.temporary.is_empty() {
            let _ = rustix::fs::unlinkat(&self.home.tmp, &self.temporary[..], AtFlags::empty());
        }
    }
}

impl Home {
    /// Copies a file of a release: its first `keep` bytes, its mode, owner, times and attributes. The copy has no name
    /// yet, and goes on with the number that it is `known_as`.
    pub fn copy(
        &self,
        (node, known_as): (&Node, NodeId),
        object: &Content,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        keep: u64,
    ) -> Result<Copy<'_>> {
        let temporary = self.temporary();
        let shown = || self.show_beside("tmp", &temporary);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&self.tmp, &temporary[..], flags, Mode::from_raw_mode(0o600));
        let file = File::from(made.on_disk("making", shown)?);
        let copy = Copy { home: self, temporary: temporary.clone() };
        fill(&file, object, node.size.min(keep), keep >= node.size).on_disk(COPYING, shown)?;
        for (name, value) in xattrs {
            rustix::fs::fsetxattr(&file, &name[..], value, rustix::fs::XattrFlags::empty()).on_disk(DRESSING, shown)?;
        }
        dress(&self.tmp, &copy.temporary, node).on_disk(DRESSING, shown)?;
        number::mark(&self.tmp, &copy.temporary, known_as);
        if keep < node.size {
            // Another content than the release's, and it stays if we are stopped before the truncation comes.
            let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
            rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: now })
                .on_disk(DRESSING, shown)?;
        }
        // It must not take the release's place before it is all there.
        rustix::fs::fsync(&file).on_disk("syncing", shown)?;
        Ok(copy)
    }

    /// Copies a symlink of the release up; it goes on with the number that it is `known_as`.
    pub fn copy_up_symlink(&self, path: &LayerPath, (node, known_as): (&Node, NodeId), target: &[u8]) -> Result<()> {
        let temporary = self.temporary();
        rustix::fs::symlinkat(target, &self.tmp, &temporary[..]).on_disk("making", || self.show(path))?;
        dress(&self.tmp, &temporary, node).on_disk(DRESSING, || self.show(path))?;
        number::mark(&self.tmp, &temporary, known_as);
        self.take_place(&temporary, path)
    }
}

fn fill(file: &File, object: &Content, len: u64, whole: bool) -> rustix::io::Result<()> {
    if whole && object.as_file().is_some_and(|object| rustix::fs::ioctl_ficlone(file, object).is_ok()) {
        // Of one that was cut off, the copy would lack what the release has.
        return if rustix::fs::fstat(file)?.st_size as u64 == len { Ok(()) } else { Err(Errno::IO) };
    }
    // What is a file of its own may have holes. They stay holes: the copy may lie on a disk without room for them.
    let Some(source) = object.as_file() else { return copy_piece(file, object, 0, len) };
    if (rustix::fs::fstat(source)?.st_size as u64) < len {
        return Err(Errno::IO);
    }
    rustix::fs::ftruncate(file, len)?;
    let mut at = 0;
    while at < len {
        let begin = match object.seek(at as i64, libc::SEEK_DATA) {
            Ok(begin) if (begin as u64) < len => begin,
            // No data up to the end.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        at = (object.seek(begin, libc::SEEK_HOLE)? as u64).min(len);
        copy_piece(file, object, begin as u64, at)?;
    }
    Ok(())
}

/// Copies the bytes of an object from `to` on, up to `len`.
fn copy_piece(file: &File, object: &Content, mut to: u64, len: u64) -> rustix::io::Result<()> {
    let (source, mut from, _) = object.range(to);
    while to < len {
        let chunk = usize::try_from(len - to).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), file, Some(&mut to), chunk) {
            Ok(0) => return Err(Errno::IO),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                return copy_by_hand(file, object, to, len);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Between file systems that cannot copy by themselves: media may be another disk's mount.
fn copy_by_hand(file: &File, object: &Content, mut at: u64, len: u64) -> rustix::io::Result<()> {
    while at < len {
        let bytes = object.read(at, (len - at).min(1 << 16) as usize)?;
        let mut done = 0;
        while done < bytes.len() {
            done += rustix::io::pwrite(file, &bytes[done..], at + done as u64)?;
        }
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Owner, then mode, then time. A release's file has no write bits where it is served; the copy gets those back
/// that the source had.
pub(super) fn dress(dir: &OwnedFd, name: &[u8], node: &Node) -> rustix::io::Result<()> {
    let Owner { uid, gid } = node.owner;
    let owner = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    rustix::fs::chownat(dir, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
    if node.kind != crate::tree::Kind::Symlink {
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(node.mode.into()), AtFlags::empty())?;
    }
    let time =
        Timespec { tv_sec: node.mtime.div_euclid(1_000_000_000), tv_nsec: node.mtime.rem_euclid(1_000_000_000) as _ };
    rustix::fs::utimensat(
        dir,
        name,
        &Timestamps { last_access: time, last_modification: time },
        AtFlags::SYMLINK_NOFOLLOW,
    )
}
