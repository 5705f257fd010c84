//! How much the files of a scope take on disk, and whether more fits (`limit` in verfs.toml).
//!
//! It is measured in the background: at the mount, from time to time, and when something did not fit, since files may
//! have been removed behind the mount. In between our own changes are counted. Until it was measured once, all fits.

use super::scopes::{ScopeId, Scopes};
use parking_lot::Mutex;
use rustix::fs::Stat;
use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How old a measurement may be.
const OLD: Duration = Duration::from_secs(600);
/// The same when something did not fit.
const OLD_WHEN_FULL: Duration = Duration::from_secs(5);

/// What the scopes take.
#[derive(Debug, Default)]
pub(super) struct Usage(Mutex<HashMap<ScopeId, Used>>);

#[derive(Debug, Default)]
struct Used {
    /// Bytes as last measured, with our own changes since.
    bytes: i64,
    /// Changes of ours since the measurement that is under way began.
    since: i64,
    measured: Option<Instant>,
    /// Whether something did not fit since.
    full: bool,
}

/// Bytes that a file takes on disk.
pub(super) fn disk_bytes(stat: &Stat) -> i64 {
    stat.st_blocks.saturating_mul(512)
}

impl Usage {
    /// Whether so many bytes more stay within the limit.
    pub(super) fn fits(&self, scope: ScopeId, limit: u64, more: u64) -> bool {
        let mut all = self.0.lock();
        let used = all.entry(scope).or_default();
        let fits = used.measured.is_none() || used.bytes.max(0) as u64 + more <= limit;
        used.full |= !fits;
        fits
    }

    /// A change of ours took so many bytes, or gave them back.
    pub(super) fn add(&self, scope: ScopeId, bytes: i64) {
        let mut all = self.0.lock();
        let used = all.entry(scope).or_default();
        used.bytes += bytes;
        used.since += bytes;
    }

    /// Bytes that a scope takes, if they were measured.
    pub(super) fn bytes(&self, scope: ScopeId) -> Option<u64> {
        let all = self.0.lock();
        all.get(&scope).filter(|used| used.measured.is_some()).map(|used| used.bytes.max(0) as u64)
    }

    /// Measures the scopes that have a limit and are due.
    pub(super) fn measure(&self, scopes: &Scopes, measure: impl Fn(ScopeId) -> crate::error::Result<u64>) {
        for scope in scopes.ids().filter(|scope| scopes.rules(*scope).limit.is_some()) {
            {
                let mut all = self.0.lock();
                let used = all.entry(scope).or_default();
                let old = if used.full { OLD_WHEN_FULL } else { OLD };
                if used.measured.is_some_and(|measured| measured.elapsed() < old) {
                    continue;
                }
                (used.since, used.full) = (0, false);
            }
            match measure(scope) {
                Ok(bytes) => {
                    let mut all = self.0.lock();
                    let used = all.entry(scope).or_default();
                    // A change in between may count twice, until the next measurement.
                    used.bytes = bytes as i64 + used.since;
                    used.measured = Some(Instant::now());
                }
                Err(error) => log::error!("measuring the scope {}: {error}", scopes.path(scope).escape_ascii()),
            }
        }
    }
}

/// A change that may grow or shrink a file of a scope with a limit: what came of it is counted at the end.
#[must_use]
pub(super) struct UsageGuard<'a> {
    pub usage: &'a Usage,
    pub scope: ScopeId,
    pub file: Arc<File>,
    pub before: i64,
}

impl Drop for UsageGuard<'_> {
    fn drop(&mut self) {
        if let Ok(stat) = rustix::fs::fstat(&*self.file) {
            self.usage.add(self.scope, disk_bytes(&stat) - self.before);
        }
    }
}
