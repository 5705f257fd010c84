//! What the control socket answers.

use super::restore;
use crate::control::server::{Answer, Peer};
use crate::error::{Error, Result};
use crate::fs::media::KnownName;
use crate::fs::refused::Refusal;
use crate::fs::{Fs, Media};
use crate::fuse::Mountpoint;
use crate::protocol::request::{Own, Restore, Rollback, Switch};
use crate::protocol::{
    self, Descriptors, Done, EncodedPath, FaultKind, Faults, Limit, MAX_LINE, PinnedPage, Refused, Reloaded, Reply,
    Request, StoreStatus, Switching, Tidy, Time, fitting,
};
use crate::store::Store;
use crate::store::journal::Asker;
use crate::store::media::scope::Scope;
use crate::switch::{self, Kernel, Switched, Switcher, Target, UnderWay, Use, holders};
use crate::tree::{Digest, Kind, Tree};
use parking_lot::Mutex;
use rustix::mount::UnmountFlags;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that a page of hashes or names may take: a line, less what stands around it.
const PAGE: usize = MAX_LINE - 1024;

/// How many refused writes the status shows, how much of a path, and how many bytes they take at most: it is one line.
const SHOWN: usize = 10;
const LONGEST: usize = 1500;
const REFUSALS: usize = MAX_LINE / 2;

/// How long a busy mount is tried again.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers requests for a mounted store.
pub(super) struct Service {
    switcher: Switcher,
    fs: Arc<Fs>,
    kernel: Arc<dyn Kernel>,
    mountpoint: Arc<Mountpoint>,
    /// What the last scan for objects in use found: its pages are asked for one after the other.
    pinned: Mutex<Vec<Digest>>,
    last_restore: Mutex<LastRestore>,
}

/// What the last `restore` did: pages of its names are asked for one after the other.
#[derive(Default)]
struct LastRestore {
    path: EncodedPath,
    /// Without those, if any, that are too long for a line.
    names: Vec<EncodedPath>,
    count: u64,
    given_up: u64,
}

impl Service {
    pub(super) fn new(switcher: Switcher, fs: Arc<Fs>, kernel: Arc<dyn Kernel>, mountpoint: Arc<Mountpoint>) -> Self {
        Self { switcher, fs, kernel, mountpoint, pinned: Mutex::default(), last_restore: Mutex::default() }
    }

    /// Lets go of removed releases that nobody uses.
    pub(super) fn let_go(&self) -> Result<()> {
        self.switcher.let_go()
    }

    /// Unmounts. A busy mount names who holds it, unless `lazy`: then it goes when they let go.
    pub(super) fn unmount(&self, lazy: bool) -> Result<()> {
        let mountpoint = self.mountpoint.path();
        let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        let begun = Instant::now();
        let done = loop {
            match self.mountpoint.unmount(flags) {
                // A request that is being served, or a process that is just being started, holds it for a moment.
                Err(rustix::io::Errno::BUSY) if begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                done => break done,
            }
        };
        match done {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::BUSY) => {
                let names: Vec<String> = holders(mountpoint).iter().map(ToString::to_string).collect();
                let who = if names.is_empty() { "the kernel".to_owned() } else { names.join("; ") };
                Err(Error::busy(format!(
                    "{} is busy: {who}. End what holds it, or use `verfs umount --lazy`",
                    mountpoint.display()
                )))
            }
            Err(error) => Err(Error::io(format!("unmounting {}", mountpoint.display()), error)),
        }
    }

    /// Reads the settings again. Says which of them take effect only at the next mount.
    pub(super) fn reload(&self) -> Result<Reloaded> {
        let now = Store::open(self.switcher.store().root())?.settings().clone();
        // Against what it was mounted with: what an earlier reload left for the next mount is still left for it.
        let was = self.switcher.store().settings();
        let mut later = Vec::new();
        if now.serve != was.serve {
            later.push("serve".to_owned());
        }
        if now.access != was.access {
            later.push("access".to_owned());
        }
        if now.media != was.media {
            later.push("media".to_owned());
        }
        // The rules of a scope can change under a mount. Its place, its owner and its mode cannot.
        let fixed = |scope: &Scope| (scope.path.clone(), scope.per_release, scope.owner.clone(), scope.mode);
        let same = |a: &[Scope], b: &[Scope]| a.iter().map(fixed).eq(b.iter().map(fixed));
        if !same(&now.scopes, &was.scopes) {
            later.push("scope".to_owned());
        } else if let Some(media) = &self.fs.media {
            media.scopes.set_rules(&now.scopes);
        }
        self.switcher.set_settings(now);
        log::info!("settings read again");
        Ok(Reloaded { reloaded: true, at_next_mount: later })
    }

    fn status(&self) -> StoreStatus {
        let snapshot = self.switcher.snapshot();
        let (open, limit) = self.fs.descriptors.occupancy();
        let (hits, misses) = self.fs.descriptors.hits_and_misses();
        let limits = self.fs.media.as_ref().map_or(Vec::new(), Media::limits);
        let faults = self.fs.faults.report();
        let mut degraded = faults.degraded;
        if snapshot.tidy_pending {
            degraded
                .push("a stuck client keeps the kernel from forgetting old names: the next switch does it".to_owned());
        }
        StoreStatus {
            mountpoint: Some(EncodedPath::from(self.mountpoint.path())),
            switches: snapshot.switches,
            switching: snapshot.under_way.as_ref().map(show_under_way),
            worker_pid: Some(std::process::id()),
            upcalls: self.fs.counters.all().map(|(name, count)| (name.to_owned(), count)).collect(),
            descriptors: Some(Descriptors { open: open as u64, limit: limit as u64, hits, misses }),
            limits: limits.iter().map(show_limit).collect(),
            refused: show_refused(self.fs.refused.most(SHOWN)),
            tidy: if snapshot.tidy_pending { Tidy::Pending } else { Tidy::Done },
            degraded,
            faults: Faults { total: faults.total, kinds: faults.kinds.into_iter().map(show_kind).collect() },
            ..self.switcher.store().status(snapshot.active.as_ref())
        }
    }

    /// Lets what is hidden at a path show again.
    fn restore(&self, path: &EncodedPath, own: Own) -> Result<protocol::Restored> {
        let media = self.fs.media.as_ref().ok_or_else(|| Error::request("the store has no scopes"))?;
        let (contents, served) = (&self.fs.descriptors, || self.fs.epochs.load());
        let shown = restore::restore((media, contents), &self.switcher, served, (&path.decode(), own))?;
        let restored = shown.done.restored.iter().map(|restored| &restored.known);
        for KnownName { dir, name, node } in shown.done.given_up.iter().chain(restored) {
            self.kernel.drop_entry(*dir, name)?;
            self.kernel.drop_attributes(*dir)?;
            // Its count of links.
            node.iter().try_for_each(|node| self.kernel.drop_attributes(*node))?;
        }
        for node in &shown.nodes {
            self.kernel.drop_attributes(node.scoped())?;
        }
        shown.outwait();
        let done = shown.done.whole()?;
        let (count, given_up) = (done.restored.len() as u64, done.given_up.len() as u64);
        let names = done.restored.iter().map(|restored| EncodedPath::from(&restored.path[..]));
        let names = names.filter(|name| fitting(std::slice::from_ref(name), PAGE) == 1).collect();
        let restore = LastRestore { path: path.clone(), names, count, given_up };
        let first = restore.page(0);
        *self.last_restore.lock() = if first.next.is_some() { restore } else { LastRestore::default() };
        Ok(first)
    }

    /// A later page of what the last `restore` let show again.
    fn restored_page(&self, path: &EncodedPath, after: u64) -> Result<protocol::Restored> {
        let last = self.last_restore.lock();
        if last.path != *path {
            return Err(Error::not_found(format!("{path} was not what was restored last, so its names are not known")));
        }
        Ok(last.page(after))
    }

    /// Hashes of objects that the kernel may still ask for, of releases that were removed from the store.
    fn pinned(&self, after: u64) -> Result<PinnedPage> {
        let mut pinned = self.pinned.lock();
        if after == 0 {
            *pinned = self.scan()?;
        }
        let (objects, next) = page(&pinned, after);
        Ok(PinnedPage { objects, next })
    }

    fn scan(&self) -> Result<Vec<Digest>> {
        let mut held = BTreeSet::new();
        for release in self.fs.epochs.releases() {
            let manifest = &release.manifest;
            if manifest.is_bad() || self.switcher.is_there(&release)? {
                continue;
            }
            for index in 0..manifest.len() {
                let node = manifest.node(index)?;
                if node.kind == Kind::File && self.kernel.holds(node.nodeid)? == Use::Held {
                    held.insert(manifest.digest(index)?);
                }
            }
        }
        // In scopes the kernel knows them by other numbers.
        for (release, index) in self.fs.media.as_ref().map_or(Vec::new(), Media::held_of_releases) {
            let manifest = &release.manifest;
            if manifest.is_bad() || self.switcher.is_there(&release)? {
                continue;
            }
            // A symlink has no content.
            if manifest.node(index)?.kind == Kind::File {
                held.insert(manifest.digest(index)?);
            }
        }
        Ok(held.into_iter().collect())
    }
}

impl Answer for Service {
    fn answer(&self, request: Request, peer: Peer) -> Result<Reply> {
        let asker = |sudo_uid| Asker { uid: peer.uid, sudo_uid };
        match request {
            Request::Status(_) => Ok(Reply::Status(Box::new(self.status()))),
            Request::Switch(Switch { release, message, uid }) => {
                let to = Target { to: Some(release), rollback: false };
                self.switcher.switch(&to, message, asker(uid)).map(|switched| Reply::Switched(report(switched)))
            }
            Request::Rollback(Rollback { release, message, uid }) => {
                let to = Target { to: release, rollback: true };
                self.switcher.switch(&to, message, asker(uid)).map(|switched| Reply::Switched(report(switched)))
            }
            Request::Reload(_) => self.reload().map(Reply::Reloaded),
            Request::Umount(umount) => self.unmount(umount.lazy).map(|()| Reply::Done(Done {})),
            Request::Pinned(pinned) => self.pinned(pinned.after).map(Reply::Pinned),
            Request::Repacked(_) => {
                self.fs.descriptors.objects().refresh()?;
                Ok(Reply::Done(Done {}))
            }
            Request::Restore(Restore { path, after: 0, own }) => self.restore(&path, own).map(Reply::Restored),
            Request::Restore(Restore { path, after, .. }) => self.restored_page(&path, after).map(Reply::Restored),
        }
    }
}

impl LastRestore {
    fn page(&self, after: u64) -> protocol::Restored {
        let (restored, next) = page(&self.names, after);
        protocol::Restored { restored, count: self.count, given_up: self.given_up, next }
    }
}

/// The items of a list from `after` on that fit into a line, and where the next page begins.
fn page<T: serde::Serialize + Clone>(items: &[T], after: u64) -> (Vec<T>, Option<u64>) {
    let rest = usize::try_from(after).ok().and_then(|after| items.get(after..)).unwrap_or_default();
    let count = fitting(rest, PAGE);
    let next = (count < rest.len()).then_some(after + count as u64);
    (rest[..count].to_vec(), next)
}

fn show_limit((path, limit, used): &(Vec<u8>, u64, Option<u64>)) -> Limit {
    Limit { path: EncodedPath::from(&path[..]), limit_bytes: *limit, used_bytes: *used }
}

fn show_kind((operation, error, count): (&str, String, u64)) -> FaultKind {
    FaultKind { operation: operation.to_owned(), error, count }
}

fn show_under_way(under_way: &UnderWay) -> Switching {
    Switching {
        from: under_way.from.clone(),
        to: under_way.to.clone(),
        phase: under_way.stage.word().to_owned(),
        since: Time(under_way.since),
    }
}

fn show_refused((total, most): (u64, Vec<Refusal>)) -> Refused {
    let show = |refusal: &Refusal| protocol::Refusal {
        path: EncodedPath::from(&refusal.path[..refusal.path.len().min(LONGEST)]),
        uid: refusal.uid,
        count: refusal.count,
        why: refusal.why.text().to_owned(),
        last: Time(refusal.last),
    };
    let mut most: Vec<protocol::Refusal> = most.iter().map(show).collect();
    most.truncate(fitting(&most, REFUSALS));
    Refused { total, most }
}

/// What a switch did, as it is answered and printed, with a mount and without.
pub(crate) fn report(switched: Switched) -> protocol::Switched {
    let mut warnings = switched.warnings;
    let shown = fitting(&warnings, PAGE);
    if shown < warnings.len() {
        // Each was logged when it was found.
        let more = warnings.len() - shown;
        warnings.truncate(shown);
        warnings.push(format!("and {more} more; see the log"));
    }
    protocol::Switched {
        from: switched.from,
        to: switched.to,
        changed: switched.changed as u64,
        hidden: switched.shadowed.map(|shadowed| shadowed as u64),
        call_us: switched.call.as_micros() as u64,
        swap_us: switched.swap.as_nanos() as f64 / 1000.0,
        waited_us: switched.waited.as_micros() as u64,
        second: Time(switched.second),
        tidy: if switched.tidy == switch::Tidy::Done { Tidy::Done } else { Tidy::Pending },
        mounted: switched.mounted,
        warnings,
    }
}
