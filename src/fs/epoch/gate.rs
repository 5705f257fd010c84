//! The gate before the swap: a thread in the middle of a file finishes with it, every other one waits for the swap.
//!
//! Programs look a file up more than once: for its length, then to open it (Apache, nginx, rsync). A swap in between
//! gives the length of one release with the content of another: for a web server's visitor a torn file. So before the
//! swap a thread gets answers for names that it has asked for before, and for others while it is at it; every other
//! lookup of a changed name waits some milliseconds. No thread of ours is blocked: a request that waits is kept, and
//! answered after the swap.

use crate::fs::threads::is_running;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Between two looks at whether everybody is through.
const GLANCE: Duration = Duration::from_micros(250);

/// A request, and how it is run.
type Parked = Box<dyn FnOnce(Turn) + Send>;

/// Who runs a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The thread that took it from the kernel.
    Own,
    /// The thread of the switch, after the swap: it waits for no disk.
    Switch,
}

/// One gate belongs to one transition. Its lock is a leaf: nothing is taken or called under it.
#[derive(Default)]
pub struct Gate(Mutex<State>);

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}

#[derive(Default)]
struct State {
    phase: Phase,
    /// When a thread, as the kernel numbers it, asked for a name last.
    asked: HashMap<(u32, u64), Instant>,
    /// When a thread asked for anything last.
    active: HashMap<u32, Instant>,
    /// When anybody passed.
    last: Option<Instant>,
    waiting: Vec<(u32, Parked)>,
}

#[derive(Clone, Copy, Default)]
enum Phase {
    /// Everybody passes and is remembered.
    #[default]
    Open,
    /// A thread passes for a name that it asked for within `longest`, and for any while it was active within `pause`.
    Closed { longest: Duration, pause: Duration },
    /// The swap is done, or will not be.
    Over,
}

impl Gate {
    /// Gives the request of a thread for a changed name back if it may be answered now; else keeps it for the end.
    pub fn pass(&self, thread: u32, name: u64, request: Parked) -> Option<Parked> {
        let now = Instant::now();
        let mut state = self.0.lock();
        let within = |then: Option<Instant>, time: Duration| then.is_some_and(|then| now.duration_since(then) <= time);
        let same = state.asked.insert((thread, name), now);
        let any = state.active.insert(thread, now);
        match state.phase {
            Phase::Over => return Some(request),
            Phase::Closed { longest, pause } if !within(same, longest) && !within(any, pause) => {
                state.waiting.push((thread, request));
                return None;
            }
            Phase::Open | Phase::Closed { .. } => {}
        }
        state.last = Some(now);
        Some(request)
    }

    /// Closes the gate to newcomers and returns when no thread is in the middle of a file any more: none has passed for
    /// a while, a fifth of `longest` at first, and none that passed is running. At once if none asked; in any case
    /// after 2.2 times `longest`: the fifth below, and twice `longest` with the gate closed.
    ///
    /// `dropped` is when the kernel had forgotten the changed names: a thread whose first call needed no lookup before
    /// that is not known here, and gets a fifth of `longest` from then on for its second.
    pub fn close(&self, longest: Duration, dropped: Instant) {
        if longest.is_zero() || self.0.lock().last.is_none() {
            return;
        }
        std::thread::sleep((longest / 5).saturating_sub(dropped.elapsed()));
        let end = Instant::now() + longest * 2;
        let (mut pause, mut halved) = (longest / 5, Instant::now());
        while Instant::now() < end {
            let middle = {
                let mut state = self.0.lock();
                state.phase = Phase::Closed { longest, pause };
                let quiet = state.last.is_none_or(|last| last.elapsed() >= pause);
                quiet.then(|| state.in_the_middle(longest))
            };
            // Looking at other threads takes a while: not with the lock held.
            if middle.is_some_and(|threads| !threads.into_iter().any(is_running)) {
                return;
            }
            std::thread::sleep(GLANCE);
            // Threads that go from one file to the next without a pause are given less and less of it.
            if halved.elapsed() > pause * 2 && pause > GLANCE {
                (pause, halved) = (pause / 2, Instant::now());
            }
        }
    }

    /// Opens for good, after the swap or without one, and answers the requests that waited.
    pub fn end(&self) {
        let waiting = {
            let mut state = self.0.lock();
            state.phase = Phase::Over;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(|(_, request)| request(Turn::Switch));
    }
}

impl State {
    /// Threads that asked a moment ago and do not wait here.
    fn in_the_middle(&self, longest: Duration) -> HashSet<u32> {
        let waits = |thread: u32| self.waiting.iter().any(|(waiting, _)| *waiting == thread);
        let recent = self.asked.iter().filter(|(_, then)| then.elapsed() < longest);
        recent.map(|((thread, _), _)| *thread).filter(|thread| !waits(*thread)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn newcomers_wait_for_the_end_and_those_in_the_middle_pass() {
        let gate = Gate::default();
        let answered = Arc::new(AtomicU32::new(0));
        let request = |number: u32| -> Parked {
            let answered = answered.clone();
            Box::new(move |_| {
                answered.fetch_add(number, Ordering::Relaxed);
            })
        };
        gate.pass(1, 77, request(1)).expect("the gate is open")(Turn::Own);
        let longest = Duration::from_secs(60);
        gate.0.lock().phase = Phase::Closed { longest, pause: Duration::ZERO };
        gate.pass(1, 77, request(10)).expect("it is in the middle of this name")(Turn::Own);
        assert!(gate.pass(2, 77, request(100)).is_none(), "another thread waits");
        assert!(gate.pass(1, 78, request(1000)).is_none(), "and so does the same for another name");
        assert_eq!(answered.load(Ordering::Relaxed), 11);
        gate.end();
        assert_eq!(answered.load(Ordering::Relaxed), 1111);
        gate.pass(3, 77, request(10_000)).expect("the gate is gone")(Turn::Own);
        assert_eq!(answered.load(Ordering::Relaxed), 11_111);
    }

    #[test]
    fn closing_waits_a_while_for_who_asked_and_not_for_ever() {
        let gate = Gate::default();
        let begun = Instant::now();
        gate.close(Duration::from_secs(600), begun);
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody asked");
        // This very thread asked, and it runs all the time: it is waited for until the limit.
        let own = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        assert!(gate.pass(own, 5, Box::new(|_| {})).is_some());
        gate.close(Duration::from_millis(20), Instant::now());
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }
}
