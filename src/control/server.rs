//! The daemon's end of the control socket.
//!
//! Owns the listening socket, its file, and one thread for each client. What is answered is the daemon's business,
//! behind [`Answer`]. Invariants:
//!
//! - Nobody connects before the file has its final owner and mode: it is created 0600 and listens last.
//! - A request that changes something reaches [`Answer`] only from uid 0 or the daemon's own uid.
//! - No client can keep a thread for longer than the time limits, nor all of the places: some are kept for those who
//!   may change something.
//! - A request that was handed to [`Answer`] gets its reply, also while the server stops.

use super::hall::{Hall, Seat};
use super::lines::{Line, Lines};
use super::place::{self, Place};
use super::protocol::{self, MAX_LINE, Request};
use crate::error::{Error, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{AtFlags, Gid, Mode};
use serde_json::Value;
use std::any::Any;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections that the kernel queues before they are accepted; it cuts this to net.core.somaxconn.
const BACKLOG: i32 = 1024;

/// How long a new client may wait for a place before it is told "busy".
const ENTRY_WAIT: Duration = Duration::from_millis(500);

/// How long a daemon that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(2);

/// How long a listener found at our path may take to let us connect before we call it alive all the same.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// Time for a message to somebody who is turned away; it fits into the empty buffer of a new socket.
const TURN_AWAY: Duration = Duration::from_millis(100);

/// After a failed accept (no descriptors left, say): the pause before the next.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Who asks: what the kernel knew when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Process id in our namespace; 0 if it has none there.
    pub pid: i32,
}

/// What the daemon does with a request. Called from one thread a client, several at once.
pub trait Answer: Send + Sync + 'static {
    /// The value for the reply. The server has checked that `peer` may ask this. A panic here becomes an error reply.
    ///
    /// # Errors
    /// Go to the client as text and exit code.
    fn answer(&self, request: Request, peer: Peer) -> Result<Value>;
}

/// How much and how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time for a request line, counted from the reply before it: an idle client is disconnected after it, one that
    /// dawdles inside a line is told so.
    pub idle: Duration,
    /// Time for a client to take its reply.
    pub write: Duration,
    /// How long [`Server::shutdown`] waits for answers that have begun.
    pub drain: Duration,
    /// Clients at once.
    pub clients: usize,
    /// How many of them only uid 0 and the daemon's own uid may take.
    pub reserved: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            idle: Duration::from_secs(10),
            write: Duration::from_secs(10),
            drain: Duration::from_secs(10),
            clients: 128,
            reserved: 16,
        }
    }
}

impl Limits {
    /// How many clients there may be before one more comes in.
    fn room(&self, rights: Rights) -> usize {
        match rights {
            Rights::Change => self.clients,
            Rights::Read => self.clients.saturating_sub(self.reserved),
        }
    }
}

/// What a peer may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    Read,
    Change,
}

/// The control socket of one daemon. Dropping it shuts it down.
#[derive(Debug)]
pub struct Server {
    place: Place,
    /// Device and inode of our socket file: at the end nobody else's is removed.
    file: Option<(u64, u64)>,
    /// Until `serve` takes it.
    listener: Option<UnixListener>,
    /// Readable once the accept thread shall end.
    stop: Arc<OwnedFd>,
    accepting: Option<JoinHandle<()>>,
    limits: Limits,
    hall: Arc<Hall>,
}

impl Server {
    /// Creates the socket at `path`, of any length, and listens; clients are queued until [`Server::serve`]. The
    /// socket has mode 0660 and `group`, or 0600 without one; its directory must be the daemon's own. What a dead
    /// daemon left is removed: between two daemons that start at once the caller's lock on the store decides.
    ///
    /// The peer that clients see is the process that calls this, so fork before, not after.
    ///
    /// # Errors
    /// A live daemon listens there, something that is no socket lies there, or the system refuses: exit code 1.
    pub fn bind(path: &Path, group: Option<u32>) -> Result<Server> {
        let failed = |error| Error::io(format!("cannot listen on {}", path.display()), error);
        let place = Place::open(path).map_err(failed)?;
        clear_stale(&place)?;
        let socket = place::socket().map_err(failed)?;
        // Linux gives the file the mode of the socket (less umask): there is no moment with a wider one.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
        let address = place.address().map_err(failed)?;
        rustix::net::bind(&socket, &address).map_err(|error| failed(error.into()))?;
        let mut server = Server {
            file: None,
            listener: None,
            stop: Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?),
            accepting: None,
            limits: Limits::default(),
            hall: Arc::new(Hall::new()),
            place,
        };
        // From here on a failure drops the server, which removes the file.
        server.file = Some(server.place.stat().map(|stat| (stat.st_dev, stat.st_ino)).map_err(failed)?);
        admit_group(&server.place, group).map_err(failed)?;
        rustix::net::listen(&socket, BACKLOG).map_err(|error| failed(error.into()))?;
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true).map_err(failed)?;
        server.listener = Some(listener);
        Ok(server)
    }

    /// Other limits than the default ones. Before [`Server::serve`].
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Server {
        self.limits = limits;
        self
    }

    /// Starts to accept, in a thread of its own. `answer` must not own this server.
    ///
    /// # Errors
    /// It serves already, or no thread can be made: exit code 1.
    pub fn serve(&mut self, answer: Arc<dyn Answer>) -> Result<()> {
        let listener = self
            .listener
            .take()
            .ok_or_else(|| Error::failed(format!("{} is served already", self.place.path().display())))?;
        let reception = Reception {
            listener,
            stop: Arc::clone(&self.stop),
            limits: self.limits,
            own_uid: rustix::process::geteuid().as_raw(),
            hall: Arc::clone(&self.hall),
            answer,
        };
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || reception.accept_until_stopped())
            .map_err(|error| Error::io("cannot start the thread of the control socket", error))?;
        self.accepting = Some(thread);
        Ok(())
    }

    /// Removes the socket, accepts nobody any more, lets the answers that have begun be sent (for at most
    /// [`Limits::drain`]), and ends all connections. A second call does nothing. Not to be called from an answer,
    /// which would wait for itself until that limit.
    pub fn shutdown(&mut self) {
        self.remove_file();
        self.hall.stop();
        if let Err(error) = rustix::io::write(&*self.stop, &1u64.to_ne_bytes()) {
            log::warn!("control: cannot wake the accepting thread: {error}");
        }
        if let Some(thread) = self.accepting.take()
            && thread.join().is_err()
        {
            log::error!("control: the accepting thread had panicked");
        }
        self.listener = None;
        self.hall.empty(self.limits.drain);
    }

    fn remove_file(&mut self) {
        let Some(file) = self.file.take() else { return };
        let removed = match self.place.stat() {
            Ok(stat) if (stat.st_dev, stat.st_ino) == file => self.place.unlink(),
            // Another's, or none.
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            log::warn!("control: cannot remove {}: {error}", self.place.path().display());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Removes the socket file of a daemon that is no more.
fn clear_stale(place: &Place) -> Result<()> {
    let path = place.path().display();
    let alive = |who: String| {
        Error::failed(format!("{path}: {who} listens there already; `verfs umount` ends it, `verfs status` asks it"))
    };
    let begun = Instant::now();
    let connected = loop {
        match place.connect(PROBE_WAIT) {
            // The kernel takes connections for a process that was killed until its last descriptor is closed.
            Ok(_) if begun.elapsed() < DYING => std::thread::sleep(Duration::from_millis(10)),
            connected => break connected,
        }
    };
    match connected {
        Ok(stream) => {
            Err(alive(place::peer(&stream).map_or("a daemon".into(), |peer| format!("process {}", peer.pid))))
        }
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock => Err(alive("a daemon that accepts nobody".into())),
            ErrorKind::NotFound => Ok(()),
            // Linux says this of every file that is no socket, too.
            ErrorKind::ConnectionRefused => match place.is_socket() {
                Ok(true) => {
                    log::info!("control: removing {path}, left by a daemon that is no more");
                    place.unlink().map_err(|error| Error::io(format!("cannot remove the stale socket {path}"), error))
                }
                Ok(false) => Err(Error::failed(format!("{path} is in the way: it is not a socket; move it away"))),
                Err(error) => Err(Error::io(format!("looking at {path}"), error)),
            },
            _ => Err(Error::io(format!("cannot tell whether a daemon listens on {path}"), error)),
        },
    }
}

/// Gives the socket its group and its final mode: to connect takes the right to write (unix(7)).
fn admit_group(place: &Place, group: Option<u32>) -> io::Result<()> {
    let owner = Mode::RUSR | Mode::WUSR;
    let mode = match group {
        None => owner,
        Some(group) => {
            let group = Some(Gid::from_raw(group));
            rustix::fs::chownat(place.directory(), place.name(), None, group, AtFlags::SYMLINK_NOFOLLOW)?;
            owner | Mode::RGRP | Mode::WGRP
        }
    };
    Ok(rustix::fs::chmodat(place.directory(), place.name(), mode, AtFlags::empty())?)
}

/// The accepting thread.
struct Reception {
    listener: UnixListener,
    stop: Arc<OwnedFd>,
    limits: Limits,
    own_uid: u32,
    hall: Arc<Hall>,
    answer: Arc<dyn Answer>,
}

impl Reception {
    fn accept_until_stopped(self) {
        // After one client has waited in vain the next ones do not wait: the queue behind them must move.
        let mut patient = true;
        loop {
            let mut fds = [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            if let Err(error) = poll(&mut fds, None)
                && error != rustix::io::Errno::INTR
            {
                log::error!("control: cannot wait for clients: {error}");
                self.pause();
            }
            if self.hall.stopping() {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => patient = self.receive(Arc::new(stream), patient),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => {
                        log::warn!("control: cannot accept a client: {error}");
                        self.pause();
                    }
                },
            }
        }
    }

    /// A moment, unless it is time to stop.
    fn pause(&self) {
        // An error here only makes the pause shorter.
        let _ = poll(&mut [PollFd::new(&self.stop, PollFlags::IN)], Some(&ACCEPT_PAUSE));
    }

    /// Gives a new client a thread, or turns it away. Answers whether the next one may wait for a place.
    fn receive(&self, stream: Arc<UnixStream>, patient: bool) -> bool {
        let peer = match place::peer(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                log::warn!("control: cannot tell who connected, so it goes unanswered: {error}");
                return patient;
            }
        };
        let wait = if patient { ENTRY_WAIT } else { Duration::ZERO };
        let room = self.limits.room(rights(peer, self.own_uid));
        let Some(seat) = self.hall.enter(&stream, room, Instant::now() + wait) else {
            log::warn!("control: {room} clients at once: process {} of uid {} is turned away", peer.pid, peer.uid);
            turn_away(stream, &format!("the daemon is busy: {room} clients ask it at this moment; try again"));
            return false;
        };
        let conversation = Conversation {
            lines: Lines::new(Arc::clone(&stream)),
            peer,
            own_uid: self.own_uid,
            limits: self.limits,
            answer: Arc::clone(&self.answer),
            seat,
        };
        let thread = std::thread::Builder::new().name("control-client".into());
        if let Err(error) = thread.spawn(move || conversation.hold()) {
            log::warn!("control: cannot start a thread for a client: {error}");
            turn_away(stream, "the daemon is busy: it cannot start another thread; try again");
        }
        true
    }
}

/// Says why, if that can be said at once.
fn turn_away(stream: Arc<UnixStream>, why: &str) {
    let reply = protocol::encode_reply(&Err(Error::failed(why)));
    if let Err(error) = Lines::new(stream).send(&reply, Instant::now() + TURN_AWAY) {
        log::debug!("control: could not even say so: {error}");
    }
}

/// Root may do anything, and so may who runs the daemon.
fn rights(peer: Peer, own_uid: u32) -> Rights {
    if peer.uid == 0 || peer.uid == own_uid { Rights::Change } else { Rights::Read }
}

/// One client's thread.
struct Conversation {
    lines: Lines,
    peer: Peer,
    own_uid: u32,
    limits: Limits,
    answer: Arc<dyn Answer>,
    /// The last field: when the seat is free, all else is gone.
    seat: Seat,
}

impl Conversation {
    /// Answers line by line until one of the two has enough.
    fn hold(mut self) {
        loop {
            let (reply, go_on) = match self.lines.next(Instant::now() + self.limits.idle) {
                Ok(Line::Whole(_)) if self.seat.hall().stopping() => {
                    (Err(Error::failed("the daemon is stopping")), false)
                }
                Ok(Line::Whole(line)) => (self.reply(&line), true),
                Ok(Line::TooLong) => (Err(protocol::too_long()), false),
                Ok(Line::Cut) => (Err(Error::request("the request is cut: there is no newline at its end")), false),
                Ok(Line::Unfinished) => {
                    let seconds = self.limits.idle.as_secs_f64();
                    (Err(Error::request(format!("the request is not complete after {seconds:.1} seconds"))), false)
                }
                Ok(Line::Silent | Line::End) => return,
                Err(error) => return log::debug!("control: cannot read from process {}: {error}", self.peer.pid),
            };
            if let Err(error) = self.lines.send(&protocol::encode_reply(&reply), Instant::now() + self.limits.write) {
                return log::debug!("control: cannot answer process {}: {error}", self.peer.pid);
            }
            if !go_on {
                return;
            }
        }
    }

    fn reply(&self, line: &[u8]) -> Result<Value> {
        debug_assert!(line.len() <= MAX_LINE);
        let request = protocol::decode(line)?;
        let op = request.op();
        if request.mutates() && rights(self.peer, self.own_uid) != Rights::Change {
            log::warn!("control: {op} refused to uid {} (process {})", self.peer.uid, self.peer.pid);
            return Err(Error::request(format!(
                "{op} is for {} only; you are uid {}",
                if self.own_uid == 0 { "root".into() } else { format!("root and uid {}", self.own_uid) },
                self.peer.uid
            )));
        }
        // What the daemon guards with locks does not poison; a request that panics half-way is its own to repair.
        catch_unwind(AssertUnwindSafe(|| self.answer.answer(request, self.peer))).unwrap_or_else(|panic| {
            let why = panic_text(&*panic);
            log::error!("control: {op} panicked: {why}");
            Err(Error::failed(format!("the daemon failed inside while it answered {op}: {why}")))
        })
    }
}

/// What a panic said, if it said something.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_daemons_own_uid_may_change_something() {
        let table = [
            (0, 0, Rights::Change),
            (0, 33, Rights::Change),
            (33, 33, Rights::Change),
            (33, 0, Rights::Read),
            (1000, 33, Rights::Read),
            (u32::MAX, 0, Rights::Read),
        ];
        for (uid, own_uid, expected) in table {
            assert_eq!(rights(Peer { uid, pid: 1 }, own_uid), expected, "{uid} asks a daemon of {own_uid}");
        }
    }

    #[test]
    fn readers_cannot_take_every_place_and_a_hundred_have_room() {
        let limits = Limits::default();
        assert_eq!(limits.room(Rights::Change), 128);
        assert!(limits.room(Rights::Read) >= 100);
        assert!(limits.room(Rights::Read) < limits.room(Rights::Change));
    }
}
