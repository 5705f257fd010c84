//! How much a scope takes on disk, and whether more fits (`limit` in verfs.toml).
//!
//! It is measured in the background: at the mount, from time to time, and when something did not fit, since files may
//! have been removed behind the mount. In between our own changes are counted. Until it was measured once, all fits.
//!
//! Room is kept free before a change, and counted as what the change took when it is over. So changes beside each other
//! do not pass the limit together.

use super::scopes::{ScopeId, Scopes};
use super::{Caller, Media};
use crate::error::{Errno, Error, OnDisk, Result};
use crate::fs::refused::Why;
use crate::store::media::scope::NAME;
use crate::tree::{LayerPath, NodeId};
use parking_lot::Mutex;
use rustix::fs::{FileType, SeekFrom, Stat};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// The disk gives room in blocks of this many bytes, mostly (stat(2), st_blksize).
const BLOCK: u64 = 4096;

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
    /// Kept free for changes under way.
    reserved: u64,
    measured: Option<Instant>,
    /// Whether something did not fit since.
    full: bool,
}

impl Used {
    fn in_all(&self) -> u64 {
        self.bytes.max(0) as u64
    }
}

/// Bytes that a file takes on disk.
pub(super) fn disk_bytes(stat: &Stat) -> i64 {
    stat.st_blocks.saturating_mul(512)
}

impl Usage {
    /// Keeps so many bytes free, if they stay within the limit.
    fn reserve(&self, scope: ScopeId, limit: u64, more: u64) -> Option<Reserved<'_>> {
        let mut all = self.0.lock();
        let used = all.entry(scope).or_default();
        let wanted = used.in_all().saturating_add(used.reserved).saturating_add(more);
        if more > 0 && used.measured.is_some() && wanted > limit {
            return None;
        }
        used.reserved = used.reserved.saturating_add(more);
        Some(Reserved { usage: self, scope, bytes: more })
    }

    /// Something did not fit: it is measured again soon.
    fn note_full(&self, scope: ScopeId) {
        self.0.lock().entry(scope).or_default().full = true;
    }

    /// So many names were made, or removed.
    pub(super) fn add_names(&self, scope: ScopeId, names: i64) {
        self.add(scope, names * NAME as i64);
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
        all.get(&scope).filter(|used| used.measured.is_some()).map(Used::in_all)
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

/// Bytes that are kept free for a change, until it is over.
#[derive(Debug)]
#[must_use]
pub(super) struct Reserved<'a> {
    usage: &'a Usage,
    scope: ScopeId,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut all = self.usage.0.lock();
        let used = all.entry(self.scope).or_default();
        used.reserved = used.reserved.saturating_sub(self.bytes);
    }
}

/// A change that may grow or shrink a file of a scope with a limit: what came of it is counted at the end.
#[must_use]
pub(super) struct UsageGuard<'a> {
    reserved: Reserved<'a>,
    file: BorrowedFd<'a>,
    before: i64,
}

impl Drop for UsageGuard<'_> {
    fn drop(&mut self) {
        if let Ok(stat) = rustix::fs::fstat(self.file)
            && !FileType::from_raw_mode(stat.st_mode).is_dir()
        {
            self.reserved.usage.add(self.reserved.scope, disk_bytes(&stat) - self.before);
        }
    }
}

impl Media {
    /// Whether a new name and so many bytes fit, at a path if there is one; they are kept free until what this gives is
    /// dropped.
    pub(super) fn may_take(
        &self,
        (scope, path): (ScopeId, Option<&LayerPath>),
        caller: Caller,
        bytes: u64,
    ) -> Result<Option<Reserved<'_>>> {
        let Some(limit) = self.scopes.rules(scope).limit else { return Ok(None) };
        match self.usage.reserve(scope, limit, NAME + bytes) {
            Some(reserved) => Ok(Some(reserved)),
            None => self.is_full(scope, path, caller),
        }
    }

    fn is_full<T>(&self, scope: ScopeId, path: Option<&LayerPath>, caller: Caller) -> Result<T> {
        self.usage.note_full(scope);
        self.refuse(path.map_or(self.scopes.path(scope), LayerPath::in_docroot), caller, Why::Limit)
    }

    /// Before a change of this range of a file: whether the blocks fit that it may add, and what counts them. Nothing
    /// without a limit. Room for the whole range is asked for first; only if there is none, for what lies behind the
    /// first hole in it.
    pub(super) fn grow<'a>(
        &'a self,
        node: NodeId,
        caller: Caller,
        file: &'a File,
        range: Range<u64>,
    ) -> Result<Option<UsageGuard<'a>>> {
        let more = |from: u64| match from < range.end {
            true => range.end.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX) - from / BLOCK * BLOCK,
            false => 0,
        };
        self.change_of(node, caller, file.as_fd(), [&|| more(range.start), &|| more(first_hole(file, range.start))])
    }

    /// Before an extended attribute of so many bytes is set: as [`Media::grow`]. Those of directories are not counted
    /// afterwards, as directories are not.
    pub(super) fn grow_attributes<'a>(
        &'a self,
        node: NodeId,
        caller: Caller,
        handle: BorrowedFd<'a>,
        size: u64,
    ) -> Result<Option<UsageGuard<'a>>> {
        self.change_of(node, caller, handle, [&|| size, &|| size])
    }

    /// What counts a change, if what it may take fits: by the first estimate, or by the second, which costs more.
    fn change_of<'a>(
        &'a self,
        node: NodeId,
        caller: Caller,
        file: BorrowedFd<'a>,
        estimates: [&dyn Fn() -> u64; 2],
    ) -> Result<Option<UsageGuard<'a>>> {
        let scope = self.nodes.lock().get(node).ok_or(Error::answer(Errno::STALE))?.scope;
        let Some(limit) = self.scopes.rules(scope).limit else { return Ok(None) };
        let stat = rustix::fs::fstat(file).on_disk("looking at", || self.shown(node))?;
        match estimates.iter().find_map(|more| self.usage.reserve(scope, limit, more())) {
            Some(reserved) => Ok(Some(UsageGuard { reserved, file, before: disk_bytes(&stat) })),
            None => {
                let path = self.nodes.lock().path(node)?;
                self.is_full(scope, path.as_ref(), caller)
            }
        }
    }

    /// Measures what scopes with a limit take on disk, where that is due.
    pub fn measure(&self) {
        self.usage.measure(&self.scopes, |scope| match self.scopes.is_per_release(scope) {
            false => self.home.disk_usage(&LayerPath::shared(self.scopes.path(scope))),
            true => self.home.own_disk_usage(self.scopes.path(scope)),
        });
    }

    /// Path, limit and use in bytes of each scope that has a limit; the use is not known at once.
    pub fn limits(&self) -> Vec<(Vec<u8>, u64, Option<u64>)> {
        let limit = |scope| {
            let limit = self.scopes.rules(scope).limit?;
            Some((self.scopes.path(scope).to_vec(), limit, self.usage.bytes(scope)))
        };
        self.scopes.ids().filter_map(limit).collect()
    }
}

/// Where the first hole of a file at or behind `from` begins: its end at the latest. Room that was allocated and not
/// yet written to counts as a hole.
fn first_hole(file: &File, from: u64) -> u64 {
    // Past the end there is nothing but a hole.
    rustix::fs::seek(file, SeekFrom::Hole(from)).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::media::scope::Scope;

    #[test]
    fn changes_beside_each_other_do_not_pass_a_limit_together() {
        let scopes = Scopes::new(&[Scope::new("media", false, "")]);
        let scope = scopes.ids().next().expect("a scope");
        let usage = Usage::default();
        let fits = |more| usage.reserve(scope, 1000, more);
        assert!(fits(5000).is_some(), "until it was measured all fits");
        usage.0.lock().get_mut(&scope).expect("known").measured = Some(Instant::now());
        let first = fits(600).expect("room");
        assert!(fits(600).is_none());
        assert!(fits(400).is_some());
        usage.add(scope, 300);
        drop(first);
        assert!(fits(701).is_none() && fits(700).is_some());
        usage.add(scope, 1000);
        assert!(fits(1).is_none() && fits(0).is_some(), "what adds nothing goes on");
        usage.add(scope, -1300);
        usage.add_names(scope, 1);
        assert_eq!(usage.bytes(scope), Some(NAME));
        usage.add_names(scope, -1);
        assert_eq!(usage.bytes(scope), Some(0));
    }
}
