//! The listening socket and its file.
//!
//! A [`Listener`] is bound here, or adopted: made from the descriptor of one that another process has bound, whose file
//! lies there already. Invariants: nobody connects before the file has its final owner and mode (it is created 0600 and
//! listens last); and at the end no file is removed but the one that belongs to this socket.

use super::address::{self, Address};
use crate::error::{Error, Result};
use rustix::fs::{AtFlags, Gid, Mode};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, getsockname};
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// Connections that the kernel queues before they are accepted; it cuts this to net.core.somaxconn.
const BACKLOG: i32 = 1024;

/// How long a daemon that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(2);

/// How long a listener found at our path may take to let us connect before we call it alive all the same.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// A socket that listens. Dropping it removes its file.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: UnixListener,
    pub(super) file: SocketFile,
}

/// The name by which clients find the socket; removed on drop.
#[derive(Debug)]
pub(super) struct SocketFile {
    address: Address,
    /// Device and inode: a file that somebody else put there is not removed. None: there is nothing to remove.
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Creates the socket at `path`, of any length, and listens; the kernel queues clients until somebody accepts. The
    /// socket has mode 0660 and `group`, or 0600 without one; its directory must be the daemon's own. What a dead
    /// daemon left is removed: between two daemons that start at once the caller's lock on the store decides.
    ///
    /// The peer that clients see is the process that calls this, so fork before, not after.
    ///
    /// # Errors
    /// A live daemon listens there, something that is no socket lies there, or the system refuses: exit code 1.
    pub fn bind(path: &Path, group: Option<u32>) -> Result<Listener> {
        let failed = |error| Error::io(format!("cannot listen on {}", path.display()), error);
        let address = Address::open(path).map_err(failed)?;
        clear_stale(&address)?;
        let socket = address::socket().map_err(failed)?;
        // Linux gives the file the mode of the socket (less umask): there is no moment with a wider one.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
        let sockaddr = address.to_sockaddr().map_err(failed)?;
        rustix::net::bind(&socket, &sockaddr).map_err(|error| failed(error.into()))?;
        // From here on a failure drops `file`, which removes it.
        let file = SocketFile::at(address).map_err(failed)?;
        admit_group(&file.address, group).map_err(failed)?;
        rustix::net::listen(&socket, BACKLOG).map_err(|error| failed(error.into()))?;
        Listener::of(socket, file).map_err(failed)
    }

    /// Takes over a socket that another process has bound to `path` and listens on. Queued clients stay queued.
    /// The peer that clients see stays the process that called listen(2).
    ///
    /// # Errors
    /// It is no listening socket, or one that was bound to another name: exit code 1.
    pub fn adopt(socket: OwnedFd, path: &Path) -> Result<Listener> {
        let failed = |error| Error::io(format!("cannot take over the socket {}", path.display()), error);
        let address = Address::open(path).map_err(failed)?;
        check_adoptable(&socket, &address)
            .map_err(|why| Error::failed(format!("cannot take over the socket {}: {why}", path.display())))?;
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let file = SocketFile::at(address).map_err(failed)?;
        if file.identity.is_none() {
            log::warn!("control: {} is gone, so no new client finds the daemon", path.display());
        }
        Listener::of(socket, file).map_err(failed)
    }

    /// Gives the socket away, for another process to adopt; its file stays.
    pub fn into_fd(mut self) -> OwnedFd {
        self.file.identity = None;
        self.socket.into()
    }

    fn of(socket: OwnedFd, file: SocketFile) -> io::Result<Listener> {
        let socket = UnixListener::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Listener { socket, file })
    }
}

impl SocketFile {
    /// What lies at the address now, if anything does.
    fn at(address: Address) -> io::Result<SocketFile> {
        let identity = match address.stat() {
            Ok(stat) => Some((stat.st_dev, stat.st_ino)),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(SocketFile { address, identity })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(identity) = self.identity.take() else { return };
        let ours = self.address.stat().is_ok_and(|stat| (stat.st_dev, stat.st_ino) == identity);
        if ours && let Err(error) = self.address.unlink() {
            log::warn!("control: cannot remove {}: {error}", self.address.path().display());
        }
    }
}

/// Whether a descriptor is a listening socket with this name; else why not.
fn check_adoptable(socket: &OwnedFd, address: &Address) -> std::result::Result<(), String> {
    let no_socket = |error: rustix::io::Errno| format!("it is no socket ({error})");
    let kind = (socket_domain(socket).map_err(no_socket)?, socket_type(socket).map_err(no_socket)?);
    if kind != (AddressFamily::UNIX, SocketType::STREAM) {
        return Err("it is no stream socket of the Unix domain".to_owned());
    }
    if !socket_acceptconn(socket).map_err(no_socket)? {
        return Err("it does not listen".to_owned());
    }
    let bound = getsockname(socket).map_err(no_socket)?;
    let bound = SocketAddrUnix::try_from(bound).map_err(no_socket)?;
    // Only the last name says something: of a long path it is bound through a descriptor of the directory.
    let path = bound.path_bytes().unwrap_or_default();
    // The NUL after a path of 107 bytes, the longest one, is counted to it.
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    match Path::new(OsStr::from_bytes(path)).file_name() {
        Some(name) if name == address.name() => Ok(()),
        _ => Err(format!("it is bound to {:?}", OsStr::from_bytes(path))),
    }
}

/// Removes the socket file of a daemon that is no more.
fn clear_stale(address: &Address) -> Result<()> {
    let path = address.path().display();
    let alive = |who: String| {
        Error::busy(format!("{path}: {who} listens there already; `verfs umount` ends it, `verfs status` asks it"))
    };
    let begun = Instant::now();
    let connected = loop {
        match address.connect(PROBE_WAIT) {
            // The kernel takes connections for a process that was killed until its last descriptor is closed.
            Ok(_) if begun.elapsed() < DYING => std::thread::sleep(Duration::from_millis(10)),
            connected => break connected,
        }
    };
    match connected {
        Ok(stream) => {
            Err(alive(address::peer(&stream).map_or("a daemon".into(), |peer| format!("process {}", peer.pid))))
        }
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock => Err(alive("a daemon that accepts nobody".into())),
            ErrorKind::NotFound => Ok(()),
            // Linux says this of every file that is no socket, too.
            ErrorKind::ConnectionRefused if address.is_socket().unwrap_or(false) => {
                log::info!("control: removing {path}, left by a daemon that is no more");
                address.unlink().map_err(|error| Error::io(format!("cannot remove the stale socket {path}"), error))
            }
            ErrorKind::ConnectionRefused => {
                Err(Error::failed(format!("{path} is in the way: it is not a socket; move it away")))
            }
            _ => Err(Error::io(format!("cannot tell whether a daemon listens on {path}"), error)),
        },
    }
}

/// Gives the socket its group and its final mode: to connect takes the right to write (unix(7)).
fn admit_group(address: &Address, group: Option<u32>) -> io::Result<()> {
    let owner = Mode::RUSR | Mode::WUSR;
    let mode = match group {
        None => owner,
        Some(group) => {
            let group = Some(Gid::from_raw(group));
            rustix::fs::chownat(address.directory(), address.name(), None, group, AtFlags::SYMLINK_NOFOLLOW)?;
            owner | Mode::RGRP | Mode::WGRP
        }
    };
    Ok(rustix::fs::chmodat(address.directory(), address.name(), mode, AtFlags::empty())?)
}
