//! What requests pass on their way to a disk: each may take its time there, or be held until the test lets it go.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A request, as a rule sees it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The operation, as FUSE names it: `lookup`, `read`, `create`, ...
    pub operation: &'static str,
    /// What it is done to, below the disk's top.
    pub path: PathBuf,
    /// Where in a file it begins.
    pub offset: u64,
}

/// Which requests are held.
type Rule = Box<dyn Fn(&Asked) -> bool + Send>;

/// See the head of this file.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    each: Duration,
    rule: Option<Rule>,
    held: usize,
}

impl Gate {
    /// Every request takes so long from now on; they do not wait for each other.
    pub fn slow(&self, each: Duration) {
        self.state().each = each;
        self.changed.notify_all();
    }

    /// Holds the requests that a rule names, in place of those that an earlier one named.
    pub fn hold(&self, rule: impl Fn(&Asked) -> bool + Send + 'static) {
        self.state().rule = Some(Box::new(rule));
        self.changed.notify_all();
    }

    /// Lets everything go, at once, from now on.
    pub fn open(&self) {
        let mut state = self.state();
        (state.each, state.rule) = (Duration::ZERO, None);
        drop(state);
        self.changed.notify_all();
    }

    /// Whether nothing waits here.
    pub fn is_open(&self) -> bool {
        let state = self.state();
        state.each.is_zero() && state.rule.is_none()
    }

    /// Whether this request need not wait.
    pub fn is_free(&self, asked: &Asked) -> bool {
        let state = self.state();
        state.each.is_zero() && !state.rule.as_ref().is_some_and(|rule| rule(asked))
    }

    /// How many requests a rule holds now.
    pub fn held(&self) -> usize {
        self.state().held
    }

    /// Waits as long as this request has to.
    pub fn pass(&self, asked: &Asked) {
        let begun = Instant::now();
        let mut state = self.state();
        loop {
            if state.rule.as_ref().is_some_and(|rule| rule(asked)) {
                state.held += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.held -= 1;
                continue;
            }
            let left = state.each.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A rule that panicked must not keep others from being let go.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
