//! The accepting thread: gives each connection a slot and a session, or refuses it.

use super::address;
use super::connections::Connections;
use super::lines::Lines;
use super::server::{Answer, Limits, Rights};
use super::session::Session;
use crate::error::Error;
use crate::protocol::encode_reply;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a new client may wait for a slot before it is refused.
const SLOT_WAIT: Duration = Duration::from_millis(500);

/// Time to tell a client that it is refused; the message fits into the empty buffer of a new socket.
const REFUSAL_WAIT: Duration = Duration::from_millis(100);

/// After a failed accept (no descriptors left, say): the pause before the next.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What the accepting thread works with.
pub(super) struct Acceptor {
    pub(super) socket: UnixListener,
    pub(super) stop: Arc<OwnedFd>,
    pub(super) limits: Limits,
    pub(super) own_uid: u32,
    pub(super) connections: Arc<Connections>,
    pub(super) answer: Arc<dyn Answer>,
}

impl Acceptor {
    /// Accepts until the server stops.
    pub(super) fn run(self) {
        // After one client has waited in vain the next ones do not wait: the queue behind them must move.
        let mut patient = true;
        loop {
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            if let Err(error) = poll(&mut fds, None)
                && error != rustix::io::Errno::INTR
            {
                log::error!("control: cannot wait for clients: {error}");
                self.pause();
            }
            if self.connections.stopping() {
                return;
            }
            match self.socket.accept() {
                Ok((stream, _)) => patient = self.admit(Arc::new(stream), patient),
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

    /// Starts a session for a new connection, or refuses it. Answers whether the next one may wait for a slot.
    fn admit(&self, stream: Arc<UnixStream>, patient: bool) -> bool {
        let peer = match address::peer(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                log::warn!("control: cannot tell who connected, so it goes unanswered: {error}");
                return patient;
            }
        };
        let wait = if patient { SLOT_WAIT } else { Duration::ZERO };
        let most = self.limits.most(Rights::of(peer, self.own_uid));
        let Some(slot) = self.connections.enter(&stream, most, Instant::now() + wait) else {
            log::warn!("control: {most} clients at once: process {} of uid {} is refused", peer.pid, peer.uid);
            refuse(stream, &format!("the daemon is busy: {most} clients ask it at this moment; try again"));
            return false;
        };
        let session = Session {
            lines: Lines::new(Arc::clone(&stream)),
            peer,
            own_uid: self.own_uid,
            limits: self.limits,
            answer: Arc::clone(&self.answer),
            slot,
        };
        let thread = std::thread::Builder::new().name("control-client".into());
        if let Err(error) = thread.spawn(move || session.run()) {
            log::warn!("control: cannot start a thread for a client: {error}");
            refuse(stream, "the daemon is busy: it cannot start another thread; try again");
        }
        true
    }
}

/// Says why, if that can be said at once.
fn refuse(stream: Arc<UnixStream>, why: &str) {
    let reply = encode_reply(&Err(Error::busy(why)));
    if let Err(error) = Lines::new(stream).send(&reply, Instant::now() + REFUSAL_WAIT) {
        log::debug!("control: could not even say so: {error}");
    }
}
