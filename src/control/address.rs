//! Where the socket lies, and who is at the other end of it.
//!
//! An address of a Unix socket has room for 107 bytes (unix(7)), a store's path may have 4,095. So an [`Address`] keeps
//! a descriptor of the socket's directory: a long path is reached as `/proc/self/fd/N/NAME`. A short one is used as it
//! is, so that `ss` and `lsof` show where it lies.

use super::server::Peer;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a path that fit into a socket address with their NUL: `sun_path` has 108.
const MAX_ADDRESS: usize = 107;

/// A name in a directory that is held open.
#[derive(Debug)]
pub(super) struct Address {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
}

impl Address {
    /// Opens the directory of `path`; the socket itself need not exist.
    pub(super) fn open(path: &Path) -> io::Result<Address> {
        let name = path.file_name().ok_or(rustix::io::Errno::INVAL)?.to_owned();
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Address { path: path.to_owned(), directory, name })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// What to bind or connect to.
    pub(super) fn to_sockaddr(&self) -> io::Result<SocketAddrUnix> {
        if self.path.as_os_str().as_bytes().len() <= MAX_ADDRESS {
            return Ok(SocketAddrUnix::new(&self.path)?);
        }
        let directory = PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()));
        Ok(SocketAddrUnix::new(directory.join(&self.name))?)
    }

    /// Connects. A listener whose queue is full for longer than `wait` gives `WouldBlock`.
    pub(super) fn connect(&self, wait: Duration) -> io::Result<UnixStream> {
        let socket = socket()?;
        let sockaddr = self.to_sockaddr()?;
        // connect(2) of a Unix socket waits for the queue, and heeds the time limit for sending.
        set_socket_timeout(&socket, Timeout::Send, Some(wait))?;
        rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &sockaddr))?;
        set_socket_timeout(&socket, Timeout::Send, None)?;
        Ok(UnixStream::from(socket))
    }

    /// What lies there, without following a symlink.
    pub(super) fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Whether a socket lies there.
    pub(super) fn is_socket(&self) -> io::Result<bool> {
        Ok(FileType::from_raw_mode(self.stat()?.st_mode) == FileType::Socket)
    }

    pub(super) fn unlink(&self) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty())?)
    }
}

/// A stream socket that is not yet anywhere, closed on exec.
pub(super) fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// The process at the other end: it connected, or called listen(2) (SO_PEERCRED, unix(7)). nix is used because rustix
/// holds that no process has the number 0, and a peer outside of our pid namespace has.
pub(super) fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = getsockopt(stream, PeerCredentials)?;
    Ok(Peer { uid: credentials.uid(), pid: credentials.pid() })
}
