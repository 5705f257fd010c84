//! What readers saw, and what of it was wrong.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// The ways in which a served answer can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// An error that no release explains.
    Error,
    /// Right for a release that had been switched away before the operation began, and for none since.
    Stale,
    /// Right for no release that was ever active.
    Torn,
    /// Right for an active release, but this reader had already seen a later one.
    Back,
    /// A listing that is no release's.
    Mixed,
    /// Found by an audit, while nothing switched.
    Audit,
    /// A switch that failed or answered what is not so.
    Switch,
}

const KINDS: [Wrong; 7] =
    [Wrong::Error, Wrong::Stale, Wrong::Torn, Wrong::Back, Wrong::Mixed, Wrong::Audit, Wrong::Switch];

/// So many findings are kept word for word.
const KEPT: usize = 25;

/// Counts, and the first findings in words.
#[derive(Default)]
pub struct Tally {
    operations: AtomicU64,
    slowest_us: AtomicU64,
    wrong: [AtomicUsize; KINDS.len()],
    notes: Mutex<Vec<String>>,
}

impl Tally {
    /// One more operation, and how long it took.
    pub fn operation(&self, took: Duration) {
        self.operations.fetch_add(1, Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.slowest_us.fetch_max(us, Relaxed);
    }

    /// One more finding.
    pub fn wrong(&self, wrong: Wrong, note: impl FnOnce() -> String) {
        self.wrong[wrong as usize].fetch_add(1, Relaxed);
        let mut notes = self.notes.lock().unwrap();
        if notes.len() < KEPT {
            notes.push(format!("{wrong:?}: {}", note()));
        }
    }

    /// How often something was wrong in this way.
    pub fn count(&self, wrong: Wrong) -> usize {
        self.wrong[wrong as usize].load(Relaxed)
    }

    /// How often something was wrong in any way.
    pub fn total(&self) -> usize {
        KINDS.iter().map(|wrong| self.count(*wrong)).sum()
    }

    /// How often what was served was wrong.
    pub fn served_wrong(&self) -> usize {
        self.total() - self.count(Wrong::Switch) - self.count(Wrong::Error)
    }

    /// The first findings, one a line.
    pub fn notes(&self) -> String {
        self.notes.lock().unwrap().join("\n")
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operations = self.operations.load(Relaxed);
        let slowest = self.slowest_us.load(Relaxed) as f64 / 1_000.0;
        write!(to, "{operations} operations, slowest {slowest:.1} ms;")?;
        for wrong in KINDS {
            write!(to, " {wrong:?} {}", self.count(wrong))?;
        }
        Ok(())
    }
}
