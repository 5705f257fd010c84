//! The one error type: what happened, to what, and what to do.
//!
//! It is translated at three doors only: `fuse/` asks for [`Error::errno`], `control/` sends text and code,
//! and `main.rs` exits with [`Error::exit_code`].

use std::fmt;
use std::io;

pub use rustix::io::Errno;

/// The result of everything in verfs that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Debug)]
pub enum Error {
    /// The request was wrong; nothing was tried. Exit code 2.
    Request(String),
    /// The request was right and could not be carried out. Exit code 1.
    Failed(String),
    /// A system call failed; `context` names what was being done to what. Exit code 1.
    Io {
        /// What was being done, to what.
        context: String,
        /// The error as the system gave it.
        source: io::Error,
    },
    /// Something on disk is not what it was when it was written. Exit code 1, EIO to the kernel.
    Damaged(String),
    /// A plain answer to the kernel, such as ENOENT: no fault of anybody's, never logged.
    Errno(Errno),
    /// A write outside the scopes: EROFS to the kernel. Another thing than a disk that was remounted read-only.
    Refused,
    /// A call on a disk failed while the mount was served. Exit code 1.
    Disk {
        /// What was being done, as a verb: "reading".
        operation: &'static str,
        /// The path that it was done to, as far as it is known.
        path: Vec<u8>,
        /// What the disk said.
        errno: Errno,
    },
}

impl Error {
    /// A wrong request (exit code 2).
    pub fn request(text: impl Into<String>) -> Self {
        Self::Request(text.into())
    }

    /// A right request that failed (exit code 1).
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    /// Damage on disk (exit code 1).
    pub fn damaged(text: impl Into<String>) -> Self {
        Self::Damaged(text.into())
    }

    /// A failed system call, with what was being done to what.
    pub fn io(context: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { context: context.into(), source: source.into() }
    }

    /// What the kernel is to be told; no fault.
    pub fn answer(errno: Errno) -> Self {
        Self::Errno(errno)
    }

    /// The process's exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Request(_) => 2,
            _ => 1,
        }
    }

    /// The number that the kernel is given for this error.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Errno(errno) | Self::Disk { errno, .. } => *errno,
            Self::Refused => Errno::ROFS,
            Self::Io { source, .. } => source.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
            // Not EINVAL: a request of the kernel's is never malformed by its user.
            Self::Request(_) | Self::Failed(_) | Self::Damaged(_) => Errno::IO,
        }
    }

    /// Whether the disk had no room for what was tried.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::NOSPC | Errno::DQUOT)))
    }

    /// Whether the thing asked for is not there.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Errno(errno) | Self::Disk { errno, .. } => *errno == Errno::NOENT,
            _ => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(text) | Self::Failed(text) | Self::Damaged(text) => f.write_str(text),
            Self::Io { context, source } => write!(f, "{context}: {source}"),
            Self::Errno(errno) => write!(f, "{errno}"),
            Self::Refused => f.write_str("the path lies in no scope, so it cannot be written"),
            Self::Disk { operation, path, errno } => write!(f, "{operation} {}: {errno}", path.escape_ascii()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// Adds what was being done to an error of the system.
pub trait Context<T> {
    /// `what` is called only on an error.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::io(what(), source))
    }
}

/// Keeps what was being done on a disk, and to what, with an error of the disk's.
pub trait OnDisk<T> {
    /// `path` is called only on an error.
    fn on_disk<P: Into<Vec<u8>>>(self, operation: &'static str, path: impl FnOnce() -> P) -> Result<T>;
}

impl<T, E: Into<io::Error>> OnDisk<T> for std::result::Result<T, E> {
    fn on_disk<P: Into<Vec<u8>>>(self, operation: &'static str, path: impl FnOnce() -> P) -> Result<T> {
        self.map_err(|error| {
            let errno = error.into().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            Error::Disk { operation, path: path().into(), errno }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_errno_and_exit_code() {
        let io = |code| Error::io("reading x", io::Error::from_raw_os_error(code));
        let table = [
            (Error::request("r"), Errno::IO, 2),
            (Error::failed("f"), Errno::IO, 1),
            (Error::damaged("d"), Errno::IO, 1),
            (io(libc::ENOSPC), Errno::NOSPC, 1),
            (Error::io("x", io::Error::other("no number")), Errno::IO, 1),
            (Error::Errno(Errno::ROFS), Errno::ROFS, 1),
        ];
        for (error, errno, code) in table {
            assert_eq!((error.errno(), error.exit_code()), (errno, code), "{error}");
        }
        assert!(io(libc::EDQUOT).is_no_space() && !io(libc::EIO).is_no_space());
        assert!(io(libc::ENOENT).is_not_found() && Error::Errno(Errno::NOENT).is_not_found());
    }

    #[test]
    fn message_names_what_was_being_done() {
        let error = Error::io("opening /x", io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error.to_string(), "opening /x: No such file or directory (os error 2)");
    }
}
