//! The clients that are connected, counted and reachable.
//!
//! Owns the count and a handle on each client's stream. Invariant: a stream stands here exactly as long as its
//! [`Seat`] lives, so a hall without clients is one whose threads have said all they had to say. The lock is held over
//! no I/O that can wait.

use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The clients that are here.
#[derive(Debug)]
pub(super) struct Hall {
    stopping: AtomicBool,
    clients: Mutex<Clients>,
    someone_left: Condvar,
}

#[derive(Debug, Default)]
struct Clients {
    streams: HashMap<u64, Arc<UnixStream>>,
    next: u64,
}

/// A client's place; freed on drop.
#[derive(Debug)]
pub(super) struct Seat {
    hall: Arc<Hall>,
    number: u64,
}

impl Seat {
    pub(super) fn hall(&self) -> &Hall {
        &self.hall
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hall.clients.lock().streams.remove(&self.number);
        self.hall.someone_left.notify_all();
    }
}

impl Hall {
    pub(super) fn new() -> Hall {
        Hall { stopping: AtomicBool::new(false), clients: Mutex::new(Clients::default()), someone_left: Condvar::new() }
    }

    /// From now on no request is begun.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// A seat, if there are fewer than `room` clients by `deadline`.
    pub(super) fn enter(self: &Arc<Hall>, stream: &Arc<UnixStream>, room: usize, deadline: Instant) -> Option<Seat> {
        let mut clients = self.clients.lock();
        while clients.streams.len() >= room {
            if self.someone_left.wait_until(&mut clients, deadline).timed_out() && clients.streams.len() >= room {
                return None;
            }
        }
        let number = clients.next;
        clients.next += 1;
        clients.streams.insert(number, Arc::clone(stream));
        Some(Seat { hall: Arc::clone(self), number })
    }

    /// Sends everybody home: who is idle at once, who waits for an answer when he has it, or when `drain` is over.
    pub(super) fn empty(&self, drain: Duration) {
        let deadline = Instant::now() + drain;
        let mut clients = self.clients.lock();
        close(&clients, Shutdown::Read);
        while !clients.streams.is_empty() {
            if self.someone_left.wait_until(&mut clients, deadline).timed_out() && !clients.streams.is_empty() {
                log::warn!("control: {} clients still wait for an answer; not any longer", clients.streams.len());
                return close(&clients, Shutdown::Both);
            }
        }
    }
}

/// Wakes the threads that read (or, with `Both`, write): they find the end of the stream.
fn close(clients: &Clients, how: Shutdown) {
    for stream in clients.streams.values() {
        // The only error is that the peer has gone already.
        let _ = stream.shutdown(how);
    }
}
