//! The number of a file or directory of the writable layer: a hash of that of its inode, or what its mark says.
//!
//! ```text
//! trusted.verfs.number:   0 number u64   8 BLAKE3 of the number and the handle, first 8 bytes   little-endian
//! ```
//!
//! A mark is put on what goes on with another number than its inode's: a release's file when it is copied up, a
//! directory that is made for a release's. It counts for the very file, by its handle: not for a copy that was made
//! behind the mount, nor for what came from a backup. Only root can set such an attribute (xattr(7)).

use super::{Home, In, Inode, proc_link};
use crate::error::{Errno, OnDisk, Result};
use crate::sys::Handle;
use crate::tree::union::UpperKind;
use crate::tree::{LayerPath, NodeId};
use rustix::fs::{Mode, OFlags, XattrFlags};
use std::os::fd::{AsFd, OwnedFd};

const NAME: &str = "trusted.verfs.number";
const LENGTH: usize = 16;

/// What the mark of a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Its number.
    Number(NodeId),
    /// There is none that counts.
    None,
    /// The disk takes none, or gives no handles.
    Unknown,
}

/// The mark of this number for the file of this handle.
fn encode(number: NodeId, handle: Handle) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    let (head, check) = bytes.split_at_mut(8);
    head.copy_from_slice(&number.0.to_le_bytes());
    let hash = blake3::Hasher::new().update(head).update(&handle.to_bytes()).finalize();
    check.copy_from_slice(&hash.as_bytes()[..8]);
    bytes
}

fn decode(bytes: &[u8], handle: Handle) -> Option<NodeId> {
    let number = NodeId(u64::from_le_bytes(*bytes.first_chunk()?));
    let counts = handle.is_known() && number.is_scoped() && encode(number, handle) == *bytes;
    counts.then_some(number)
}

/// Puts a mark on what a name stands for. A disk that takes none, or is full, does without: then the number is another
/// one after the next mount.
pub(super) fn mark(dir: &OwnedFd, name: &[u8], number: NodeId) {
    let put = || -> rustix::io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        let handle = Handle::of(file.as_fd(), b"")?;
        match handle.is_known() {
            true => rustix::fs::setxattr(proc_link(&file), NAME, &encode(number, handle), XattrFlags::empty()),
            false => Err(Errno::OPNOTSUPP),
        }
    };
    if let Err(error) = put() {
        log::debug!("noting the number of {}: {error}", name.escape_ascii());
    }
}

impl Home {
    /// The number of what has this inode, if its mark says nothing else. Where the writable layer lies it does not
    /// depend on the device, which may have another number after each boot.
    pub fn number_of_inode(&self, inode: Inode, kind: UpperKind) -> NodeId {
        let dev = if inode.dev == self.device { 0 } else { inode.dev };
        let mut hasher = blake3::Hasher::new();
        // The inode of a removed directory may be a file's before the kernel has forgotten the directory.
        hasher.update(if kind == UpperKind::Dir { b"dir" } else { b"leaf" });
        hasher.update(&dev.to_le_bytes()).update(&inode.ino.to_le_bytes());
        let mut bytes = [0; 8];
        hasher.finalize_xof().fill(&mut bytes);
        NodeId(u64::from_le_bytes(bytes) >> 2).scoped()
    }

    /// What the mark of an upper entry says.
    pub fn marked(&self, path: &LayerPath) -> Result<Mark> {
        let read = || -> rustix::io::Result<Mark> {
            let file = self.open_at(In::Media, path, OFlags::PATH)?;
            let handle = Handle::of(file.as_fd(), b"")?;
            if !handle.is_known() {
                return Ok(Mark::Unknown);
            }
            let mut value = [0; LENGTH];
            let len = rustix::fs::getxattr(proc_link(&file), NAME, &mut value[..])?;
            let number = decode(value.get(..len).unwrap_or_default(), handle);
            Ok(number.map_or(Mark::None, Mark::Number))
        };
        match read() {
            Err(Errno::OPNOTSUPP) => Ok(Mark::Unknown),
            Err(error @ (Errno::IO | Errno::NOMEM | Errno::MFILE | Errno::NFILE)) => {
                Err(error).on_disk("reading the attributes of", || self.show(path))
            }
            // It has none, has a longer one that is not ours, or something else has its place by now.
            mark => Ok(mark.unwrap_or(Mark::None)),
        }
    }

    /// An upper entry goes on with another number than its inode's.
    pub fn mark(&self, path: &LayerPath, number: NodeId) {
        if let Ok((dir, name)) = self.parent_of(path) {
            mark(&dir, &name, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_counts_for_its_file_alone_and_no_flipped_bit_is_believed() {
        let dirs = ["/", "/proc"].map(|dir| {
            let dir = rustix::fs::open(dir, OFlags::PATH, Mode::empty()).expect("a directory");
            Handle::of(dir.as_fd(), b"").expect("an answer")
        });
        let number = NodeId(77).scoped();
        for handle in dirs.into_iter().filter(|handle| handle.is_known()) {
            let mark = encode(number, handle);
            assert_eq!(decode(&mark, handle), Some(number));
            for bit in 0..LENGTH * 8 {
                let mut bad = mark;
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(&bad, handle), None, "bit {bit}");
            }
            assert_eq!(decode(&mark[..15], handle), None);
            assert_eq!(dirs.map(|of| decode(&mark, of).is_some()), dirs.map(|of| of == handle));
        }
        assert_eq!(decode(&encode(number, Handle::default()), Handle::default()), None, "nobody knows whose it is");
    }
}
