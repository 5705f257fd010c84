//! The connections that are open, counted and reachable.
//!
//! Owns the count and a handle on each connection's stream. Invariant: a stream stands here exactly as long as its
//! [`Slot`] lives, so when none is left, every session has said all that it had to say. The lock is held over no I/O
//! that can wait.

use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The open connections.
#[derive(Debug)]
pub(super) struct Connections {
    stopping: AtomicBool,
    open: Mutex<Open>,
    one_closed: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    streams: HashMap<u64, Arc<UnixStream>>,
    next: u64,
}

/// One connection's slot; freed on drop.
#[derive(Debug)]
pub(super) struct Slot {
    connections: Arc<Connections>,
    number: u64,
}

impl Slot {
    /// Whether the server stops.
    pub(super) fn stopping(&self) -> bool {
        self.connections.stopping()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.open.lock().streams.remove(&self.number);
        self.connections.one_closed.notify_all();
    }
}

impl Connections {
    pub(super) fn new() -> Connections {
        Connections { stopping: AtomicBool::new(false), open: Mutex::new(Open::default()), one_closed: Condvar::new() }
    }

    /// From now on no request is begun.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// A slot, if fewer than `most` connections are open by `deadline`.
    pub(super) fn enter(
        self: &Arc<Connections>,
        stream: &Arc<UnixStream>,
        most: usize,
        deadline: Instant,
    ) -> Option<Slot> {
        let mut open = self.open.lock();
        while open.streams.len() >= most {
            if self.one_closed.wait_until(&mut open, deadline).timed_out() && open.streams.len() >= most {
                return None;
            }
        }
        let number = open.next;
        open.next += 1;
        open.streams.insert(number, Arc::clone(stream));
        Some(Slot { connections: Arc::clone(self), number })
    }

    /// Ends all connections: idle ones at once, the others when their answer is sent or `drain` is over.
    pub(super) fn close_all(&self, drain: Duration) {
        let deadline = Instant::now() + drain;
        let mut open = self.open.lock();
        shut_down(&open, Shutdown::Read);
        while !open.streams.is_empty() {
            if self.one_closed.wait_until(&mut open, deadline).timed_out() && !open.streams.is_empty() {
                log::warn!("control: {} clients still wait for an answer; not any longer", open.streams.len());
                return shut_down(&open, Shutdown::Both);
            }
        }
    }
}

/// Wakes the threads that read (or, with `Both`, write): they find the end of the stream.
fn shut_down(open: &Open, how: Shutdown) {
    for stream in open.streams.values() {
        // The only error is that the peer has gone already.
        let _ = stream.shutdown(how);
    }
}
