//! InFlight under way: what keeps a node from being forgotten between the look at its name and the count of the reply
//! that names it.
//!
//! A FORGET takes away what earlier replies told. An answer that is being made may tell the same node anew: the kernel
//! then knows it and we would not. So a node goes only when no answer is under way that began before it was last
//! looked up.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// More than there are threads that answer (`serve.threads` is at most 256).
const SLOTS: usize = 512;

/// The answers in flight, by when they began.
pub struct InFlight {
    clock: AtomicU64,
    /// The time at which an answer began; 0 where there is none.
    begun: [AtomicU64; SLOTS],
}

/// An answer under way, until it is dropped.
#[must_use]
pub struct AnswerGuard<'a>(&'a AtomicU64);

impl Default for InFlight {
    fn default() -> Self {
        Self { clock: AtomicU64::new(1), begun: [const { AtomicU64::new(0) }; SLOTS] }
    }
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InFlight")
    }
}

impl InFlight {
    /// An answer begins: it has looked at nothing yet.
    pub fn begin(&self) -> AnswerGuard<'_> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            /// Where this thread looks for a free slot first.
            static FIRST: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        let now = self.clock.fetch_add(1, Ordering::SeqCst);
        let mut at = FIRST.get();
        loop {
            let slot = &self.begun[at % SLOTS];
            if slot.compare_exchange(0, now, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                return AnswerGuard(slot);
            }
            at += 1;
        }
    }

    /// A time that is later than the beginning of every answer that has looked at anything.
    pub fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    /// When the oldest answer began that is under way.
    pub fn oldest(&self) -> u64 {
        let begun = self.begun.iter().map(|slot| slot.load(Ordering::SeqCst));
        begun.filter(|begun| *begun > 0).min().unwrap_or(u64::MAX)
    }
}

impl Drop for AnswerGuard<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_answer_is_that_which_began_first_and_has_not_ended() {
        let in_flight = InFlight::default();
        assert_eq!(in_flight.oldest(), u64::MAX);
        let first = in_flight.begin();
        let between = in_flight.now();
        let second = in_flight.begin();
        assert!(in_flight.oldest() < between);
        drop(first);
        assert!(in_flight.oldest() >= between && in_flight.oldest() < in_flight.now());
        drop(second);
        assert_eq!(in_flight.oldest(), u64::MAX);
    }
}
