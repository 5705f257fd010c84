//! The daemon's end of the control socket: who may ask what, how many at once, and for how long.
//!
//! Owns the accepting thread, and by it one thread for each connection. What is answered is the daemon's business,
//! behind [`Answer`]. Invariants:
//!
//! - A request that changes something reaches [`Answer`] only from uid 0 or the daemon's own uid.
//! - No client can keep a thread for longer than the time limits, nor all of the slots: some are kept for those who
//!   may change something.
//! - A request that was handed to [`Answer`] gets its reply, also while the server stops.

use super::acceptor::Acceptor;
use super::connections::Connections;
use super::listener::{Listener, SocketFile};
use crate::error::{Error, Result};
use crate::protocol::{Reply, Request};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Who asks: what the kernel knew when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Process id in our namespace; 0 if it has none there.
    pub pid: i32,
}

/// What the daemon does with a request. Called from one thread a connection, several at once.
pub trait Answer: Send + Sync + 'static {
    /// The reply, of the type that belongs to the request. The server has checked that `peer` may ask this. A panic
    /// here becomes an error reply.
    ///
    /// # Errors
    /// Go to the client as text, exit code and kind.
    fn answer(&self, request: Request, peer: Peer) -> Result<Reply>;
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
    /// Connections at once.
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
    /// How many connections may be open when a client with these rights has come in.
    pub(super) fn most(&self, rights: Rights) -> usize {
        match rights {
            Rights::Change => self.clients,
            Rights::Read => self.clients.saturating_sub(self.reserved),
        }
    }
}

/// What a peer may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    Read,
    Change,
}

impl Rights {
    /// Root may do anything, and so may the user who runs the daemon.
    pub(super) fn of(peer: Peer, own_uid: u32) -> Rights {
        if peer.uid == 0 || peer.uid == own_uid { Rights::Change } else { Rights::Read }
    }
}

/// A control socket that is served. Dropping it shuts it down.
#[derive(Debug)]
pub struct Server {
    /// Until the shutdown removes it.
    file: Option<SocketFile>,
    /// Readable once the accepting thread shall end.
    stop: Arc<OwnedFd>,
    accepting: Option<JoinHandle<()>>,
    drain: Duration,
    connections: Arc<Connections>,
}

impl Server {
    /// Starts to accept, in a thread of its own. `answer` must not own the server.
    ///
    /// # Errors
    /// No thread or descriptor can be made: exit code 1.
    pub fn start(listener: Listener, limits: Limits, answer: Arc<dyn Answer>) -> Result<Server> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|error| Error::io("cannot make the descriptor that ends the control socket", error))?;
        let Listener { socket, file } = listener;
        let stop = Arc::new(stop);
        let connections = Arc::new(Connections::new());
        let acceptor = Acceptor {
            socket,
            stop: Arc::clone(&stop),
            limits,
            own_uid: rustix::process::geteuid().as_raw(),
            connections: Arc::clone(&connections),
            answer,
        };
        let accepting = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || acceptor.run())
            .map_err(|error| Error::io("cannot start the thread of the control socket", error))?;
        Ok(Server { file: Some(file), stop, accepting: Some(accepting), drain: limits.drain, connections })
    }

    /// Removes the socket, accepts nobody any more, lets the answers that have begun be sent (for at most
    /// [`Limits::drain`]), and ends all connections. A second call does nothing. Not to be called from an answer,
    /// which would wait for itself until that limit.
    pub fn shutdown(&mut self) {
        self.file = None;
        self.connections.stop();
        if let Err(error) = rustix::io::write(&*self.stop, &1u64.to_ne_bytes()) {
            log::warn!("control: cannot wake the accepting thread: {error}");
        }
        if let Some(thread) = self.accepting.take()
            && thread.join().is_err()
        {
            log::error!("control: the accepting thread had panicked");
        }
        self.connections.close_all(self.drain);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
    }
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
            assert_eq!(Rights::of(Peer { uid, pid: 1 }, own_uid), expected, "{uid} asks a daemon of {own_uid}");
        }
    }

    #[test]
    fn readers_cannot_take_every_slot_and_a_hundred_have_room() {
        let limits = Limits::default();
        assert_eq!(limits.most(Rights::Change), 128);
        assert!(limits.most(Rights::Read) >= 100);
        assert!(limits.most(Rights::Read) < limits.most(Rights::Change));
    }
}
