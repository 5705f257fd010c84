//! The one error type: what happened, to what, and what to do.
//!
//! It is translated at three doors only: `fuse/` asks for [`Error::errno`], `control/` sends text, code and kind,
//! and `cli/` exits with [`Error::exit_code`]. What is a fault of a disk is said by one table, [`verdict`].

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

    /// What the kernel is to be told; no fault.
    pub fn answer(errno: Errno) -> Self {
        Self::Errno(errno)
    }

    /// Whether it is a fault that an operator must know of, while a mount is served.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Errno(_) | Self::Refused => Verdict::Answer,
            Self::Disk { operation, errno, .. } => verdict(operation, *errno),
            Self::Io { .. } => verdict("", self.errno()),
            Self::Request(_) | Self::Failed(_) | Self::Damaged(_) | Self::Reported { .. } => Verdict::FileFault,
        }
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
            Self::Errno(errno) | Self::Disk { errno, .. } => ErrorKind::of_errno(errno.raw_os_error()),
            Self::Refused => ErrorKind::Refused,
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
            Self::Errno(errno) | Self::Disk { errno, .. } => *errno,
            Self::Refused => Errno::ROFS,
            Self::Io { source, .. } => source.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
            // Not EINVAL: a request of the kernel's is never malformed by its user.
            Self::Request(_) | Self::Failed(_) | Self::Damaged(_) | Self::Reported { .. } => Errno::IO,
        }
    }

    /// Whether the disk had no room for what was tried.
    pub fn is_no_space(&self) -> bool {
        matches!(self.errno(), Errno::NOSPC | Errno::DQUOT)
    }

    /// Whether the thing asked for is not there.
    pub fn is_not_found(&self) -> bool {
        self.errno() == Errno::NOENT
    }

    /// Whether this user may not do what was tried.
    pub fn is_denied(&self) -> bool {
        matches!(self.errno(), Errno::ACCESS | Errno::PERM)
    }
}

/// What a disk's error number says of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A plain answer to what was asked: the caller is told, nobody else.
    Answer,
    /// A fault, perhaps of this one file.
    FileFault,
    /// A fault of the whole disk, or of the machine.
    DiskFault,
}

/// The one place where an answer is told from a fault. An operation is named as [`Error::Disk`] names it.
///
/// Any user of the mount can provoke an answer on a sound disk, and nobody can provoke a fault. So a number that is not
/// listed counts as a fault: it is better seen once too often.
pub fn verdict(operation: &str, errno: Errno) -> Verdict {
    match (operation, errno) {
        // SEEK_DATA and SEEK_HOLE past the last byte (lseek(2)); anywhere else ENXIO says that the device is gone.
        ("seeking in", Errno::NXIO) => Verdict::Answer,

        // The disk is full, or the user's share of it: whoever writes is told, `df` and `quota` show it.
        (_, Errno::NOSPC | Errno::DQUOT)
        // What is there, or is not, or is of another kind.
        | (_, Errno::NOENT | Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR | Errno::LOOP)
        // The disk checks once more, for a caller who is not root: an immutable file, an export that squashes root.
        | (_, Errno::ACCESS | Errno::PERM)
        // A file was replaced behind the mount. An NFS server that was set up anew says the same: then all is ESTALE,
        // and only a new mount of the disk helps.
        | (_, Errno::STALE)
        // Limits of the disk's format: names that are too long, or are not UTF-8 where they must be; lengths, links.
        | (_, Errno::NAMETOOLONG | Errno::ILSEQ | Errno::FBIG | Errno::MLINK | Errno::TOOBIG)
        | (_, Errno::OVERFLOW | Errno::RANGE)
        // In use as what is run, or as a mountpoint.
        | (_, Errno::TXTBSY | Errno::BUSY)
        // What this disk cannot do, or nobody: an attribute without a value, a rename to another disk, odd arguments.
        | (_, Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::SPIPE)
        | (_, Errno::XDEV | Errno::INVAL)
        // Try again.
        | (_, Errno::INTR | Errno::AGAIN) => Verdict::Answer,

        // Made read-only, by hand or by the kernel after an error. Our own refusal is `Error::Refused`.
        (_, Errno::ROFS)
        // The device is gone or switched off.
        | (_, Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM | Errno::SHUTDOWN)
        // The server, or the network to it.
        | (_, Errno::NOTCONN | Errno::TIMEDOUT | Errno::HOSTDOWN | Errno::HOSTUNREACH | Errno::NETDOWN)
        | (_, Errno::NETUNREACH | Errno::CONNREFUSED | Errno::CONNRESET | Errno::CONNABORTED | Errno::NOLINK)
        // Not the disk but this machine has too little. No user can bring it about: descriptors are bounded.
        | (_, Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Verdict::DiskFault,

        // EIO, EUCLEAN, EBADMSG, EREMOTEIO: what cannot be read may be one block.
        _ => Verdict::FileFault,
    }
}

/// The name of an error number.
pub fn errno_name(errno: Errno) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno.raw_os_error()))
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
            Self::Refused => f.write_str("the path lies in no scope, so it cannot be written"),
            Self::Disk { operation, path, errno } => write!(f, "{operation} {}: {errno}", Shown(path)),
        }
    }
}

/// Bytes of a path that a message shows: users choose it, and it may be as long as they like.
const SHOWN: usize = 300;

/// A path as a message shows it: escaped, and cut if it is long.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..SHOWN).filter(|shown| shown.len() < self.0.len()) {
            Some(shown) => write!(f, "{}...", shown.escape_ascii()),
            None => write!(f, "{}", self.0.escape_ascii()),
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
        assert!(io(libc::EACCES).is_denied() && !Error::failed("f").is_denied());
    }

    #[test]
    fn faults_of_a_disk_are_told_from_its_answers() {
        use Verdict::{Answer, DiskFault, FileFault};
        let table = [
            ("opening", libc::EROFS, DiskFault),
            ("reading", libc::EIO, FileFault),
            ("reading", libc::EUCLEAN, FileFault),
            ("reading", libc::EBADMSG, FileFault),
            ("reading", libc::ENODEV, DiskFault),
            ("reading", libc::ENXIO, DiskFault),
            ("seeking in", libc::ENXIO, Answer),
            ("looking at", libc::ENOTCONN, DiskFault),
            ("looking at", libc::ESHUTDOWN, DiskFault),
            ("writing", libc::ETIMEDOUT, DiskFault),
            ("writing", libc::EHOSTDOWN, DiskFault),
            ("opening", libc::EMFILE, DiskFault),
            ("opening", libc::ENOMEM, DiskFault),
            ("writing", libc::ENOSPC, Answer),
            ("writing", libc::EDQUOT, Answer),
            ("opening", libc::ENOENT, Answer),
            ("making", libc::EEXIST, Answer),
            ("removing", libc::ENOTEMPTY, Answer),
            ("opening", libc::EACCES, Answer),
            ("removing", libc::EPERM, Answer),
            ("making", libc::ENAMETOOLONG, Answer),
            ("opening", libc::ETXTBSY, Answer),
            ("opening", libc::ESTALE, Answer),
            ("making", libc::EILSEQ, Answer),
            // One that the table does not list.
            ("opening", libc::EKEYREVOKED, FileFault),
        ];
        for (operation, code, says) in table {
            let error = io::Error::from_raw_os_error(code);
            let error = Err::<(), _>(error).on_disk(operation, || "x").expect_err("it failed");
            assert_eq!((error.verdict(), error.errno().raw_os_error()), (says, code), "{error}");
        }
        assert_eq!(Error::Refused.verdict(), Answer);
        assert_eq!(Error::answer(Errno::IO).verdict(), Answer, "whoever says it has told of it");
        assert_eq!(Error::damaged("d").verdict(), FileFault);
        assert_eq!(errno_name(Errno::ROFS), "EROFS");
    }

    #[test]
    fn an_error_of_a_disk_names_operation_and_path() {
        let error = Err::<(), _>(Errno::IO).on_disk("reading", || b"/srv/a\n".to_vec()).expect_err("it failed");
        assert_eq!(error.to_string(), "reading /srv/a\\n: Input/output error (os error 5)");
    }

    #[test]
    fn message_names_what_was_being_done() {
        let error = Error::io("opening /x", io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error.to_string(), "opening /x: No such file or directory (os error 2)");
    }
}
