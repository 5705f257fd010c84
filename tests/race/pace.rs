//! Stops all readers at a gate between bursts, with whatever they hold still held.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};

#[derive(Default)]
struct State {
    members: usize,
    waiting: usize,
    closed: bool,
    over: bool,
}

/// The gate.
#[derive(Default)]
pub struct Pace {
    state: Mutex<State>,
    bell: Condvar,
    /// Something at the gate is not as usual: look.
    look: AtomicBool,
}

/// A reader that the gate counts; it leaves when dropped, by a panic too.
pub struct Member<'a>(&'a Pace);

impl Pace {
    /// One more reader.
    pub fn join(&self) -> Member<'_> {
        self.state.lock().unwrap().members += 1;
        Member(self)
    }

    /// Closes the gate and waits until every reader stands before it.
    pub fn close(&self) {
        let mut state = self.state.lock().unwrap();
        state.closed = true;
        self.look.store(true, SeqCst);
        while state.waiting < state.members {
            state = self.bell.wait(state).unwrap();
        }
    }

    /// Lets the readers go on.
    pub fn open(&self) {
        let mut state = self.state.lock().unwrap();
        state.closed = false;
        self.look.store(state.over, SeqCst);
        self.bell.notify_all();
    }

    /// Sends every reader home.
    pub fn end(&self) {
        let mut state = self.state.lock().unwrap();
        state.over = true;
        state.closed = false;
        self.look.store(true, SeqCst);
        self.bell.notify_all();
    }
}

impl Member<'_> {
    /// True if there is more to do; waits while the gate is closed.
    pub fn goes_on(&self) -> bool {
        let pace = self.0;
        if !pace.look.load(SeqCst) {
            return true;
        }
        let mut state = pace.state.lock().unwrap();
        state.waiting += 1;
        pace.bell.notify_all();
        while state.closed {
            state = pace.bell.wait(state).unwrap();
        }
        state.waiting -= 1;
        !state.over
    }

    /// True if the gate is closed or the race is over: something long should be cut short.
    pub fn is_called(&self) -> bool {
        self.0.look.load(SeqCst)
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.state.lock() {
            state.members -= 1;
        }
        self.0.bell.notify_all();
    }
}
