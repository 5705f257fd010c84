//! The one error type: what happened, to what, and what to do.
//!
//! It is translated at three doors only: `fuse/` asks for [`Error::errno`], `control/` sends text, code and kind,
//! and `main.rs` exits with [`Error::exit_code`].

use serde::{Deserialize, Serialize};
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
    /// An error whose kind says more than the variants above: made here, or read from a daemon's reply.
    Reported {
        /// What kind of failure it was.
        kind: ErrorKind,
        /// The exit code, 1 or 2.
        code: u8,
        /// What happened, to what, and what to do.
        text: String,
    },
}

/// The kind of a failure in one word, for scripts; the text beside it is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request was wrong in itself: a name, a path or an option that cannot be.
    Request,
    /// What was asked for is not there.
    NotFound,
    /// The request was understood, and the rules of the store forbid it.
    Refused,
    /// Who asked may not.
    PermissionDenied,
    /// Somebody holds what is needed; try again.
    Busy,
    /// The disk, or a quota, has no room.
    NoSpace,
    /// Something on disk is not what it was when it was written.
    Damaged,
    /// Anything else. A kind that this version does not know yet is read as this one.
    #[serde(other)]
    Failed,
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

    /// The thing asked for is not there (exit code 2).
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::reported(ErrorKind::NotFound, 2, text)
    }

    /// The store's rules forbid what was asked (exit code 2).
    pub fn refused(text: impl Into<String>) -> Self {
        Self::reported(ErrorKind::Refused, 2, text)
    }

    /// Somebody holds what is needed (exit code 1).
    pub fn busy(text: impl Into<String>) -> Self {
        Self::reported(ErrorKind::Busy, 1, text)
    }

    /// An error of this kind. An exit code that is neither 1 nor 2 counts as 1.
    pub fn reported(kind: ErrorKind, code: u8, text: impl Into<String>) -> Self {
        Self::Reported { kind, code: if code == 2 { 2 } else { 1 }, text: text.into() }
    }

    /// A failed system call, with what was being done to what.
    pub fn io(context: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { context: context.into(), source: source.into() }
    }

    /// The process's exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Request(_) => 2,
            Self::Reported { code, .. } => *code,
            _ => 1,
        }
    }

    /// The kind of failure, for scripts.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Request(_) => ErrorKind::Request,
            Self::Failed(_) => ErrorKind::Failed,
            Self::Damaged(_) => ErrorKind::Damaged,
            Self::Io { source, .. } => source.raw_os_error().map_or(ErrorKind::Failed, ErrorKind::of_errno),
            Self::Errno(errno) => ErrorKind::of_errno(errno.raw_os_error()),
            Self::Reported { kind, .. } => *kind,
        }
    }

    /// Whether the request was wrong, so that nothing was tried (exit code 2).
    pub fn is_request(&self) -> bool {
        self.exit_code() == 2
    }

    /// The number that the kernel is given for this error.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Errno(errno) => *errno,
            Self::Io { source, .. } => source.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
            // Not EINVAL: a request of the kernel's is never malformed by its user.
            Self::Request(_) | Self::Failed(_) | Self::Damaged(_) | Self::Reported { .. } => Errno::IO,
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
            Self::Errno(errno) => *errno == Errno::NOENT,
            _ => false,
        }
    }
}

impl ErrorKind {
    fn of_errno(number: i32) -> Self {
        match Errno::from_raw_os_error(number) {
            Errno::NOENT => Self::NotFound,
            Errno::ACCESS | Errno::PERM => Self::PermissionDenied,
            Errno::BUSY => Self::Busy,
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace,
            _ => Self::Failed,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(text) | Self::Failed(text) | Self::Damaged(text) | Self::Reported { text, .. } => {
                f.write_str(text)
            }
            Self::Io { context, source } => write!(f, "{context}: {source}"),
            Self::Errno(errno) => write!(f, "{errno}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_errno_exit_code_and_kind() {
        let io = |code| Error::io("reading x", io::Error::from_raw_os_error(code));
        let table = [
            (Error::request("r"), Errno::IO, 2, ErrorKind::Request),
            (Error::failed("f"), Errno::IO, 1, ErrorKind::Failed),
            (Error::damaged("d"), Errno::IO, 1, ErrorKind::Damaged),
            (Error::not_found("n"), Errno::IO, 2, ErrorKind::NotFound),
            (Error::refused("r"), Errno::IO, 2, ErrorKind::Refused),
            (Error::busy("b"), Errno::IO, 1, ErrorKind::Busy),
            (Error::reported(ErrorKind::NoSpace, 77, "n"), Errno::IO, 1, ErrorKind::NoSpace),
            (io(libc::ENOSPC), Errno::NOSPC, 1, ErrorKind::NoSpace),
            (io(libc::EDQUOT), Errno::DQUOT, 1, ErrorKind::NoSpace),
            (io(libc::EACCES), Errno::ACCESS, 1, ErrorKind::PermissionDenied),
            (io(libc::EBUSY), Errno::BUSY, 1, ErrorKind::Busy),
            (io(libc::EIO), Errno::IO, 1, ErrorKind::Failed),
            (Error::io("x", io::Error::other("no number")), Errno::IO, 1, ErrorKind::Failed),
            (Error::Errno(Errno::NOENT), Errno::NOENT, 1, ErrorKind::NotFound),
            (Error::Errno(Errno::ROFS), Errno::ROFS, 1, ErrorKind::Failed),
        ];
        for (error, errno, code, kind) in table {
            assert_eq!((error.errno(), error.exit_code(), error.kind()), (errno, code, kind), "{error}");
            assert_eq!(error.is_request(), code == 2, "{error}");
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
