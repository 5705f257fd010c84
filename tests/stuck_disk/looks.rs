//! What must be answered while something is held up, and how it is seen that it was.

use super::gate::Gate;
use super::support::deadline;
use super::support::frozen::Frozen;
use std::any::Any;
use std::fmt;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// After so long without an answer there will be none: what is held up is let go, so that the test comes to its end.
/// On a right verfs nothing ever waits for this.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same where there are many small things, one after the other.
pub const SHORT_PATIENCE: Duration = Duration::from_secs(8);
/// Between two looks at something that is awaited.
const GLANCE: Duration = Duration::from_millis(2);

/// Something that is held up until it is let go.
pub trait Hold: Sync {
    /// Lets it go on. Once more does nothing.
    fn let_go(&self);
}

impl Hold for Frozen {
    fn let_go(&self) {
        self.thaw();
    }
}

impl Hold for Gate {
    fn let_go(&self) {
        self.open();
    }
}

/// Lets go when it is dropped: on every way out.
pub struct LetGo<'a>(pub &'a dyn Hold);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// Things to do at the same time, each with what it is called.
#[derive(Default)]
pub struct Looks<'a> {
    patience: Option<Duration>,
    all: Vec<(String, Box<dyn FnOnce() + Send + 'a>)>,
}

impl<'a> Looks<'a> {
    /// None yet.
    pub fn new() -> Looks<'a> {
        Looks::default()
    }

    /// With so much patience, where an answer takes long by itself.
    pub fn patient(patience: Duration) -> Looks<'a> {
        Looks { patience: Some(patience), all: Vec::new() }
    }

    /// With one more.
    pub fn with(mut self, what: impl Into<String>, look: impl FnOnce() + Send + 'a) -> Looks<'a> {
        self.all.push((what.into(), Box::new(look)));
        self
    }

    /// Does all of them, each on a thread of its own. Gives what was not answered before `hold` had to be let go; it
    /// is still held if that is nothing. A look that panics makes this panic.
    #[must_use]
    pub fn unanswered(self, hold: &dyn Hold) -> Vec<String> {
        let patience = self.patience.unwrap_or(PATIENCE);
        let (late, panic) = thread::scope(|threads| {
            let running: Vec<_> = self.all.into_iter().map(|(what, look)| (what, threads.spawn(look))).collect();
            let end = Instant::now() + patience;
            let answered = wait_for(end, || running.iter().all(|(_, look)| look.is_finished()));
            let late = running.iter().filter(|(_, look)| !look.is_finished()).map(|(what, _)| what.clone()).collect();
            if !answered {
                hold.let_go();
            }
            let panic: Option<Box<dyn Any + Send>> = running.into_iter().find_map(|(_, look)| look.join().err());
            (late, panic)
        });
        match panic {
            Some(panic) => std::panic::resume_unwind(panic),
            None => late,
        }
    }

    /// Does all of them; each must be answered while `hold` is held.
    pub fn are_answered(self, hold: &dyn Hold, meanwhile: &str) {
        let late = self.unanswered(hold);
        assert!(late.is_empty(), "{meanwhile}, these were not answered: {late:#?}");
    }
}

/// Waits until something is so; false if it is not by then.
pub fn wait_for(end: Instant, done: impl Fn() -> bool) -> bool {
    while !done() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(GLANCE);
    }
    true
}

/// Waits until something is so, which it soon must be.
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    assert!(wait_for(Instant::now() + PATIENCE, done), "{what}: not within {PATIENCE:?}");
}

/// Waits until so many requests of a mount have no answer: those that came and those that are still in the kernel. Only
/// what stays so counts: somebody may be on his way still.
pub fn wait_for_requests(connection: u32, at_least: usize) {
    let waiting = || deadline::waiting(connection);
    let enough = || waiting().parse::<usize>().is_ok_and(|waiting| waiting >= at_least);
    let stays = || {
        (0..10).all(|_| {
            thread::sleep(GLANCE);
            enough()
        })
    };
    assert!(
        wait_for(Instant::now() + PATIENCE, stays),
        "{at_least} requests of those who are stuck were to wait, there are {}",
        waiting()
    );
}

/// Asserts that none of those who are stuck came back.
pub fn still_stuck<T>(stuck: &[ScopedJoinHandle<'_, T>]) {
    let back = stuck.iter().filter(|thread| thread.is_finished()).count();
    assert_eq!(back, 0, "of {} that were to be stuck some came back", stuck.len());
}

/// Joins threads, and gives a panic of theirs on.
pub fn join<T>(threads: Vec<ScopedJoinHandle<'_, T>>) -> Vec<T> {
    let joined = threads.into_iter().map(|thread| thread.join());
    joined.map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
}

/// How long each of some things took: for the reader, nothing is decided by it.
#[derive(Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Does something, and notes how long it took.
    pub fn note<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.0.push(begun.elapsed());
        done
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort();
        let at = |share: usize| sorted.get((sorted.len() * share / 1000).min(sorted.len().saturating_sub(1)));
        let ms = |share| at(share).map_or(0.0, |time| time.as_secs_f64() * 1000.0);
        write!(
            f,
            "{} in all; median {:.2} ms, 99 of 100 {:.2} ms, 999 of 1,000 {:.2} ms, longest {:.2} ms",
            sorted.len(),
            ms(500),
            ms(990),
            ms(999),
            ms(1000)
        )
    }
}
