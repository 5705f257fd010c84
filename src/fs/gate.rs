//! The gate before the swap: who has asked for a changed name a moment ago goes on asking, everybody else waits for
//! the swap.
//!
//! Programs look a file up twice: for its length, then to open it (Apache, nginx, rsync). A swap in between gives the
//! length of one release with the content of another: for a web server's visitor a torn file. So before the swap
//! threads that are in the middle of something are let through, and newcomers wait some milliseconds. No thread of
//! ours is blocked: a request that waits is kept, and answered after the swap.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Below this a thread can no more be told from one that has just ended its work.
const LEAST_PATIENCE: Duration = Duration::from_micros(100);
/// Between two looks at whether everybody is through.
const GLANCE: Duration = Duration::from_micros(250);

type Request = Box<dyn FnOnce() + Send>;

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
    /// When a thread, as the kernel numbers it, asked last for a changed name.
    asked: HashMap<u32, Instant>,
    /// When any of them did.
    last: Option<Instant>,
    waiting: Vec<Request>,
}

impl State {
    fn remember(&mut self, thread: u32, now: Instant) {
        self.asked.insert(thread, now);
        self.last = Some(now);
    }
}

#[derive(Clone, Copy, Default)]
enum Phase {
    /// Everybody passes and is remembered.
    #[default]
    Open,
    /// Only who asked within `patience` passes.
    Closed { patience: Duration },
    /// The swap is done, or will not be.
    Over,
}

impl Gate {
    /// Gives the request of a thread back if it may be answered now; else keeps it for the end.
    pub fn pass(&self, thread: u32, request: Request) -> Option<Request> {
        let now = Instant::now();
        let mut state = self.0.lock();
        match state.phase {
            Phase::Over => return Some(request),
            Phase::Open => {}
            Phase::Closed { patience } => {
                if state.asked.get(&thread).is_none_or(|then| now.duration_since(*then) >= patience) {
                    state.waiting.push(request);
                    return None;
                }
            }
        }
        state.remember(thread, now);
        Some(request)
    }

    /// Remembers a thread whose request is answered at once in any case.
    pub fn note(&self, thread: u32) {
        self.0.lock().remember(thread, Instant::now());
    }

    /// Closes the gate to newcomers and returns when nobody has passed for `patience`: at once if nobody asks.
    /// Threads that never pause are given less and less of it, so that this takes four times as long at most.
    ///
    /// `dropped` is when the kernel had forgotten the changed names: a thread whose first call needed no lookup before
    /// that is not known here, and gets `patience` from then on for its second.
    pub fn close(&self, mut patience: Duration, dropped: Instant) {
        if self.0.lock().last.is_some() {
            std::thread::sleep(patience.saturating_sub(dropped.elapsed()));
        }
        let mut begun = Instant::now();
        while patience >= LEAST_PATIENCE {
            {
                let mut state = self.0.lock();
                state.phase = Phase::Closed { patience };
                if state.last.is_none_or(|last| last.elapsed() >= patience) {
                    return;
                }
            }
            std::thread::sleep(GLANCE);
            if begun.elapsed() > patience * 2 {
                begun = Instant::now();
                patience /= 2;
            }
        }
    }

    /// Lets everybody go: after the swap, and also if there will be none.
    pub fn end(&self) {
        let waiting = {
            let mut state = self.0.lock();
            state.phase = Phase::Over;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(|request| request());
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
        let request = |number: u32| -> Request {
            let answered = answered.clone();
            Box::new(move || {
                answered.fetch_add(number, Ordering::Relaxed);
            })
        };
        gate.pass(1, request(1)).expect("the gate is open")();
        gate.0.lock().phase = Phase::Closed { patience: Duration::from_secs(60) };
        gate.pass(1, request(10)).expect("it is in the middle")();
        assert!(gate.pass(2, request(100)).is_none(), "a newcomer waits");
        assert_eq!(answered.load(Ordering::Relaxed), 11);
        gate.end();
        assert_eq!(answered.load(Ordering::Relaxed), 111);
        gate.pass(3, request(1000)).expect("the gate is gone")();
        assert_eq!(answered.load(Ordering::Relaxed), 1111);
    }

    #[test]
    fn closing_comes_to_an_end_though_somebody_never_pauses() {
        let gate = Arc::new(Gate::default());
        let stop = Arc::new(AtomicU32::new(0));
        let restless = {
            let (gate, stop) = (gate.clone(), stop.clone());
            std::thread::spawn(move || {
                while stop.load(Ordering::Relaxed) == 0 {
                    gate.note(7);
                }
            })
        };
        gate.close(Duration::from_millis(4), Instant::now());
        stop.store(1, Ordering::Relaxed);
        restless.join().expect("it ends");
    }
}
