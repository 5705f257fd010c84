//! Faults of the disks below a mount: what could not be done to what, since when, how often, and whether it works
//! again.
//!
//! A fault is an operation of a disk, its error number, and the path; of a fault that is the whole disk's the path does
//! not count. It is over when the same request works, or when a probe says so (`fs/probe.rs`).
//!
//! A user of the mount may make requests that meet a fault as fast as he can, on as many paths as he likes. So all is
//! bounded: the faults that are kept, the bytes of each, the lines in the log; and what is done under the lock is to
//! look through the few that are kept.

use super::counters::Operation;
use crate::error::{Errno, Error, Verdict, errno_name};
use crate::protocol::Time;
use crate::tree::NodeId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many different faults are kept; more are only counted.
const MOST: usize = 64;
/// How many of them the status tells, and the most kinds that it counts: all within a line of the protocol.
const SHOWN: usize = 10;
const KINDS: usize = 40;
/// Bytes of a path, or of a sentence with one, in the log and in the status.
const LONGEST: usize = 300;
/// A fault is logged at most once in this time, and in all at most this many lines.
const MINUTE: Duration = Duration::from_secs(60);
const LINES: u32 = 60;
/// When a fault is probed first, and how far apart the probes may come: each is as slow as the disk.
const FIRST_PROBE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Which disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// That of the store, for what releases are read from.
    Store,
    /// That of the writable layer, which may be the same.
    Media,
}

/// What the kernel asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The operation.
    pub operation: Operation,
    /// The node, of a name its directory.
    pub node: NodeId,
    /// The name in it, if the operation has one.
    pub name: &'a [u8],
    /// The bytes that were to be read.
    pub range: Range<u64>,
}

impl<'a> Asked<'a> {
    /// An operation on a node itself.
    pub fn of(operation: Operation, node: NodeId) -> Self {
        Self::named(operation, node, b"")
    }

    /// An operation on a name in a directory.
    pub fn named(operation: Operation, node: NodeId, name: &'a [u8]) -> Self {
        Self { operation, node, name, range: 0..u64::MAX }
    }

    /// A read of these bytes.
    pub fn range(node: NodeId, offset: u64, len: u32) -> Self {
        Self { range: offset..offset.saturating_add(len.into()), ..Self::of(Operation::Read, node) }
    }
}

/// A request that met a fault, kept to try it again.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The disk that failed.
    pub disk: Disk,
    /// What was asked for.
    pub operation: Operation,
    /// The node.
    pub node: NodeId,
    /// The name in it.
    pub name: Vec<u8>,
    /// The first of the bytes that were to be read.
    pub offset: u64,
}

/// What a disk said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Errno(i32),
    Damage,
    Other,
}

/// An operation of a disk, and what it said.
type Kind = (&'static str, Cause);

#[derive(Debug)]
struct Fault {
    kind: Kind,
    whole_disk: bool,
    /// Hash of the path; of the whole disk 0.
    path: u64,
    failed: Failed,
    /// The last of it, in a sentence.
    text: String,
    count: u64,
    /// Seconds since 1970.
    since: i64,
    logged: Option<Instant>,
    /// Whether the log has it, and not yet that it is over.
    is_open_in_log: bool,
    over: Option<Instant>,
    probe: Instant,
    pause: Duration,
}

/// The faults of a mount.
#[derive(Debug, Default)]
pub struct Faults {
    /// A bit for each operation that meets a fault: what works costs one load.
    failing: AtomicU64,
    seen: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    faults: Vec<Fault>,
    total: u64,
    kinds: BTreeMap<Kind, u64>,
    /// Begin of the minute in which lines are counted, and their number.
    minute: Option<(Instant, u32)>,
}

/// What the status says of the faults.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Those that are not over, a sentence each.
    pub degraded: Vec<String>,
    /// How many requests have met a fault since the mount.
    pub total: u64,
    /// The same by operation of the disk and error, the most frequent first.
    pub kinds: Vec<(&'static str, String, u64)>,
}

impl Faults {
    /// A request failed by this. What is no fault is not kept.
    pub fn note(&self, asked: &Asked<'_>, disk: Disk, error: &Error) {
        if error.verdict() != Verdict::Answer {
            self.note_at(asked, disk, error, Instant::now(), crate::store::now());
        }
    }

    fn note_at(&self, asked: &Asked<'_>, disk: Disk, error: &Error, now: Instant, second: i64) {
        let described = Described::of(error);
        let line = {
            let mut seen = self.seen.lock();
            let line = seen.note(asked, disk, described, now, second);
            self.failing.store(seen.failing(), Ordering::Relaxed);
            line
        };
        // A log may be slow: not under the lock.
        if let Some(line) = line {
            log::error!("{line}");
        }
    }

    /// A request worked.
    pub fn worked(&self, asked: &Asked<'_>, disk: Disk) {
        if self.failing.load(Ordering::Relaxed) & bit(asked.operation) != 0 {
            self.end(|fault| fault.ends_with(asked, disk));
        }
    }

    /// Tries again what has failed, where that is due. `works` is asked without a lock.
    pub fn probe(&self, works: impl Fn(&Failed) -> bool) {
        self.probe_at(works, Instant::now());
    }

    fn probe_at(&self, works: impl Fn(&Failed) -> bool, now: Instant) {
        if self.failing.load(Ordering::Relaxed) == 0 {
            return;
        }
        let due: Vec<(Kind, u64, Failed)> = {
            let mut seen = self.seen.lock();
            let due = seen.faults.iter_mut().filter(|fault| fault.over.is_none() && fault.probe <= now);
            due.map(|fault| {
                fault.probe = now + fault.pause;
                fault.pause = (fault.pause * 2).min(LAST_PAUSE);
                (fault.kind, fault.path, fault.failed.clone())
            })
            .collect()
        };
        for (kind, path, failed) in due {
            if works(&failed) {
                self.end(|fault| (fault.kind, fault.path, fault.failed.disk) == (kind, path, failed.disk));
            }
        }
    }

    fn end(&self, ends: impl Fn(&Fault) -> bool) {
        let mut over = Vec::new();
        {
            let mut seen = self.seen.lock();
            for fault in seen.faults.iter_mut().filter(|fault| fault.over.is_none() && ends(fault)) {
                fault.over = Some(Instant::now());
                // As many lines as there are of faults.
                if std::mem::take(&mut fault.is_open_in_log) {
                    over.push(format!("{}; works again", fault.sentence()));
                }
            }
            self.failing.store(seen.failing(), Ordering::Relaxed);
        }
        over.iter().for_each(|line| log::info!("{line}"));
    }

    /// For the status.
    pub fn report(&self) -> Report {
        let seen = self.seen.lock();
        let mut present: Vec<&Fault> = seen.faults.iter().filter(|fault| fault.over.is_none()).collect();
        present.sort_by_key(|fault| fault.since);
        let mut degraded: Vec<String> = present.iter().take(SHOWN).map(|fault| fault.sentence()).collect();
        if present.len() > SHOWN {
            degraded.push(format!("and {} more faults: the log names them", present.len() - SHOWN));
        }
        let name = |cause: &Cause| match cause {
            Cause::Errno(errno) => errno_name(Errno::from_raw_os_error(*errno)),
            Cause::Damage => "damaged".to_owned(),
            Cause::Other => "failed".to_owned(),
        };
        let mut kinds: Vec<_> =
            seen.kinds.iter().map(|((operation, cause), count)| (*operation, name(cause), *count)).collect();
        kinds.sort_by_key(|(.., count)| std::cmp::Reverse(*count));
        kinds.truncate(KINDS);
        Report { degraded, total: seen.total, kinds }
    }
}

impl Registry {
    /// Counts a fault; gives the line for the log, if one is due.
    fn note(&mut self, asked: &Asked<'_>, disk: Disk, met: Described, now: Instant, second: i64) -> Option<String> {
        let Described { kind, whole_disk, path, text } = met;
        self.total += 1;
        *self.kinds.entry(kind).or_default() += 1;
        let known = |fault: &Fault| (fault.kind, fault.path, fault.failed.disk) == (kind, path, disk);
        let number = match self.faults.iter().position(known) {
            Some(number) => number,
            None => self.room()?,
        };
        let failed = Failed {
            disk,
            operation: asked.operation,
            node: asked.node,
            name: asked.name.to_vec(),
            offset: asked.range.start,
        };
        if number == self.faults.len() {
            self.faults.push(Fault {
                kind,
                whole_disk,
                path,
                failed: failed.clone(),
                text: String::new(),
                count: 0,
                since: second,
                logged: None,
                is_open_in_log: false,
                over: None,
                probe: now + FIRST_PROBE,
                pause: FIRST_PROBE * 2,
            });
        }
        let fault = &mut self.faults[number];
        // One that comes back at once was never over.
        if let Some(over) = fault.over.take() {
            (fault.probe, fault.pause) = (now + FIRST_PROBE, FIRST_PROBE * 2);
            if now.duration_since(over) > MINUTE {
                (fault.since, fault.count) = (second, 0);
            }
        }
        fault.count += 1;
        (fault.failed, fault.text) = (failed, text);
        if fault.logged.is_some_and(|logged| now.duration_since(logged) < MINUTE) {
            return None;
        }
        fault.logged = Some(now);
        let line = fault.sentence();
        let may = self.may_log(now);
        self.faults[number].is_open_in_log |= may;
        may.then_some(line)
    }

    /// The place of a new fault: that of the first that is over, if there is no room for one more.
    fn room(&mut self) -> Option<usize> {
        if self.faults.len() == MOST {
            let oldest = self.faults.iter().enumerate().filter(|(_, fault)| fault.over.is_some());
            let (number, _) = oldest.min_by_key(|(_, fault)| fault.over)?;
            self.faults.swap_remove(number);
        }
        Some(self.faults.len())
    }

    fn may_log(&mut self, now: Instant) -> bool {
        let (begun, lines) = self.minute.filter(|(begun, _)| now.duration_since(*begun) < MINUTE).unwrap_or((now, 0));
        self.minute = Some((begun, lines + 1));
        lines < LINES
    }

    fn failing(&self) -> u64 {
        let present = self.faults.iter().filter(|fault| fault.over.is_none());
        present.fold(0, |bits, fault| bits | bit(fault.failed.operation))
    }
}

impl Fault {
    /// Whether it is over when this request has worked.
    fn ends_with(&self, asked: &Asked<'_>, disk: Disk) -> bool {
        let Failed { operation, node, name, offset, .. } = &self.failed;
        if *operation != asked.operation {
            return false;
        }
        match self.whole_disk {
            true => self.failed.disk == disk,
            false => (*node, &name[..]) == (asked.node, asked.name) && asked.range.contains(offset),
        }
    }

    fn sentence(&self) -> String {
        match self.count {
            0 | 1 => format!("{}; since {}", self.text, Time(self.since)),
            count => format!("{}; {count} times since {}", self.text, Time(self.since)),
        }
    }
}

const _: () = assert!((Operation::Refused as u32) < u64::BITS, "the last of them has a bit");

/// The bit of an operation.
fn bit(operation: Operation) -> u64 {
    1 << operation as u32
}

/// What is kept of an error.
struct Described {
    kind: Kind,
    whole_disk: bool,
    path: u64,
    text: String,
}

impl Described {
    fn of(error: &Error) -> Self {
        let whole_disk = error.verdict() == Verdict::DiskFault;
        let (kind, path, text) = match error {
            Error::Disk { operation, path, errno } => {
                ((*operation, Cause::Errno(errno.raw_os_error())), hash(path), error.to_string())
            }
            error => {
                let kind = match error {
                    Error::Damaged(_) => ("reading", Cause::Damage),
                    Error::Io { .. } => ("serving", Cause::Errno(error.errno().raw_os_error())),
                    _ => ("serving", Cause::Other),
                };
                let text = error.to_string();
                (kind, hash(text.as_bytes()), String::from_utf8_lossy(cut(text.as_bytes())).into_owned())
            }
        };
        Self { kind, whole_disk, path: if whole_disk { 0 } else { path }, text }
    }
}

/// A message about damage names a file of the store and what to do: longer than a path, and nobody's to choose.
fn cut(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(LONGEST)]
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests;
