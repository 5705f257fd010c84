//! File handles: what a file system itself knows a file by (name_to_handle_at(2)). Where the number of an inode is
//! given out again, its handle is another.
#![allow(unsafe_code)]

use rustix::io::{Errno, Result};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

/// Bytes of a handle that are kept: ext4, tmpfs and xfs need up to 12, btrfs 20. Longer ones are not used.
const LENGTH: usize = 24;

/// A handle, or nothing where the file system gives none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Handle {
    kind: i32,
    length: u8,
    bytes: [u8; LENGTH],
}

/// The struct file_handle of the kernel (include/linux/fs.h), with room behind it.
#[repr(C)]
struct Raw {
    length: libc::c_uint,
    kind: libc::c_int,
    bytes: [u8; LENGTH],
}

impl Handle {
    /// That of a name in a directory, never of what a symlink leads to; of the empty name, of the descriptor itself.
    pub fn of(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Self> {
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let mut raw = Raw { length: LENGTH as libc::c_uint, kind: 0, bytes: [0; LENGTH] };
        let mut mount = 0;
        let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
        // SAFETY: the name ends with NUL; `raw` has the layout of struct file_handle and as much room behind it as its
        // length says; `mount` is an int. The kernel keeps none of them.
        let done = unsafe {
            let handle = (&raw mut raw).cast();
            libc::name_to_handle_at(dir.as_raw_fd(), name.as_ptr(), handle, &raw mut mount, flags)
        };
        match done {
            0 => Ok(Self { kind: raw.kind, length: raw.length.min(LENGTH as u32) as u8, bytes: raw.bytes }),
            _ => match Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL) {
                // The file system has none, or longer ones.
                Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::NOSYS => Ok(Self::default()),
                error => Err(error),
            },
        }
    }

    /// All of it, of one length.
    pub fn to_bytes(self) -> [u8; LENGTH + 5] {
        let mut all = [0; LENGTH + 5];
        all[..4].copy_from_slice(&self.kind.to_le_bytes());
        all[4] = self.length;
        all[5..].copy_from_slice(&self.bytes);
        all
    }

    /// Whether there is one.
    pub fn is_known(self) -> bool {
        self.length > 0
    }

    /// Opens the file, wherever it is by now, on the file system of this descriptor, which is no O_PATH one. ESTALE: it
    /// is gone. The caller looks where it is.
    pub fn open(self, beside: BorrowedFd<'_>, flags: i32) -> Result<File> {
        if !self.is_known() {
            return Err(Errno::STALE);
        }
        let mut raw = Raw { length: self.length.into(), kind: self.kind, bytes: self.bytes };
        // SAFETY: as above; what is returned is a new descriptor that nobody else has, or -1.
        let opened = unsafe { libc::open_by_handle_at(beside.as_raw_fd(), (&raw mut raw).cast(), flags) };
        match opened {
            -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::STALE)),
            // SAFETY: it was just opened.
            opened => Ok(unsafe { File::from_raw_fd(opened) }),
        }
    }
}
