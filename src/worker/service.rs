//! What the control socket answers.

use crate::control::protocol::{Request, decode_path, json_path};
use crate::control::server::{Answer, Peer};
use crate::error::{Error, Result};
use crate::fs::media::{Caller, Restored, Task};
use crate::fs::refused::Refusal;
use crate::fs::{Fs, Media, Release};
use crate::store::journal::{Asker, rfc3339};
use crate::store::media::scope::Scope;
use crate::store::{Store, look};
use crate::switch::{Kernel, Switched, Switcher, Target, Tidy, UnderWay, Use, holders};
use crate::tree::{Digest, Kind, Tree};
use parking_lot::Mutex;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Hashes in one reply to `pinned`: 64 digits and punctuation each, within a line of the protocol.
const PAGE: usize = 800;

/// How many refused writes the status shows, and how much of a path: all within a line of the protocol.
const SHOWN: usize = 10;
const LONGEST: usize = 1500;

/// How long a busy mount is tried again.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers requests for a mounted store.
pub struct Service {
    switcher: Switcher,
    fs: Arc<Fs>,
    kernel: Arc<dyn Kernel>,
    mountpoint: PathBuf,
    /// What the last scan for objects in use found: its pages are asked for one after the other.
    pinned: Mutex<Vec<Digest>>,
}

impl Service {
    pub fn new(switcher: Switcher, fs: Arc<Fs>, kernel: Arc<dyn Kernel>, mountpoint: PathBuf) -> Self {
        Self { switcher, fs, kernel, mountpoint, pinned: Mutex::default() }
    }

    /// Unmounts. A busy mount names who holds it, unless `lazy`: then it goes when they let go.
    pub fn unmount(&self, lazy: bool) -> Result<()> {
        let mountpoint = &self.mountpoint;
        let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        let begun = Instant::now();
        let done = loop {
            match unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
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
                Err(Error::failed(format!(
                    "{} is busy: {who}. End what holds it, or use `verfs umount --lazy`",
                    mountpoint.display()
                )))
            }
            Err(error) => Err(Error::io(format!("unmounting {}", mountpoint.display()), error)),
        }
    }

    /// Reads the settings again. Says which of them take effect only at the next mount.
    pub fn reload(&self) -> Result<Value> {
        let now = Store::open(self.switcher.store().root())?.settings().clone();
        // Against what it was mounted with: what an earlier reload left for the next mount is still left for it.
        let was = self.switcher.store().settings();
        let mut later = Vec::new();
        if now.serve != was.serve {
            later.push("serve");
        }
        if now.access != was.access {
            later.push("access");
        }
        if now.media != was.media {
            later.push("media");
        }
        // What can change while it is mounted is set; where a scope is, and what it is made with, cannot.
        let fixed = |scope: &Scope| (scope.path.clone(), scope.per_release, scope.owner.clone(), scope.mode);
        let same = |a: &[Scope], b: &[Scope]| a.iter().map(fixed).eq(b.iter().map(fixed));
        if !same(&now.scopes, &was.scopes) {
            later.push("scope");
        } else if let Some(media) = &self.fs.media {
            media.scopes.set_rules(&now.scopes);
        }
        self.switcher.set_settings(now);
        log::info!("settings read again");
        Ok(json!({ "reloaded": true, "at_next_mount": later }))
    }

    fn status(&self) -> Value {
        let snapshot = self.switcher.snapshot();
        let active = snapshot.active.as_ref();
        let upcalls: serde_json::Map<String, Value> =
            self.fs.counters.all().map(|(name, count)| (name.to_owned(), count.into())).collect();
        let (open, limit) = self.fs.descriptors.occupancy();
        let (hits, misses) = self.fs.descriptors.hits_and_misses();
        let (refused, most) = self.fs.refused.most(SHOWN);
        let most: Vec<Value> = most.iter().map(show_refusal).collect();
        let limits = self.fs.media.as_ref().map_or(Vec::new(), Media::limits);
        let limits: Vec<Value> = limits
            .iter()
            .map(|(path, limit, used)| json!({ "path": json_path(path), "limit": limit, "used": used }))
            .collect();
        let faults = self.fs.faults.report();
        let mut degraded = faults.degraded;
        if snapshot.tidy_pending {
            degraded
                .push("a stuck client keeps the kernel from forgetting old names: the next switch does it".to_owned());
        }
        json!({
            "store": self.switcher.store().root().display().to_string(),
            "mountpoint": self.mountpoint.display().to_string(),
            "release": active.map(|active| &active.release),
            "previous": active.and_then(|active| active.previous.as_ref()),
            "since": active.map(|active| rfc3339(active.since)),
            "switch": active.map_or(0, |active| active.switch),
            "switches": snapshot.switches,
            "switching": snapshot.under_way.as_ref().map(show_under_way),
            // The keeper is the process that will hold the connection over a worker's death.
            "keeper_pid": Value::Null,
            "worker_pid": std::process::id(),
            "upcalls": upcalls,
            "descriptors": { "open": open, "limit": limit, "hits": hits, "misses": misses },
            "limits": limits,
            "refused": { "total": refused, "most": most },
            "inflight_tidy": snapshot.tidy_pending,
            "degraded": degraded,
            "faults": {
                "total": faults.total,
                "kinds": faults.kinds.iter().map(|(operation, error, count)| {
                    json!({ "operation": operation, "error": error, "count": count })
                }).collect::<Vec<_>>(),
            },
        })
    }

    /// Lets what is hidden at a path show again.
    fn restore(&self, path: &[u8]) -> Result<Value> {
        let media = self.fs.media.as_ref().ok_or_else(|| Error::request("the store has no scopes"))?;
        let epoch = self.fs.epochs.load();
        let task = Task { epoch: &epoch, contents: &self.fs.descriptors, caller: Caller::ROOT };
        let restored = media.restore(task, path)?;
        for Restored { dir, name, .. } in &restored {
            self.kernel.drop_entry(*dir, name)?;
            self.kernel.drop_attributes(*dir)?;
        }
        // Within a line of the protocol.
        let names: Vec<String> = restored.iter().take(PAGE / 20).map(|restored| json_path(&restored.path)).collect();
        Ok(json!({ "restored": names, "count": restored.len() }))
    }

    /// Hashes of objects that the kernel may still ask for, of releases that were removed from the store.
    fn pinned(&self, after: u64) -> Result<Value> {
        let mut pinned = self.pinned.lock();
        if after == 0 {
            *pinned = self.scan()?;
        }
        let page: Vec<String> = pinned.iter().skip(after as usize).take(PAGE).map(|digest| digest.to_hex()).collect();
        let next = after + page.len() as u64;
        let more = next < pinned.len() as u64;
        Ok(json!({ "objects": page, "next": more.then_some(next) }))
    }

    fn scan(&self) -> Result<Vec<Digest>> {
        let mut held = BTreeSet::new();
        for release in self.fs.epochs.releases() {
            let manifest = &release.manifest;
            if manifest.is_bad() || self.is_there(&release)? {
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
            if !release.manifest.is_bad() && !self.is_there(&release)? {
                held.insert(release.manifest.digest(index)?);
            }
        }
        Ok(held.into_iter().collect())
    }

    /// Whether the store still has a release as it is mounted.
    fn is_there(&self, release: &Release) -> Result<bool> {
        let store = self.switcher.store();
        let there = look::is_there(&store.manifest_path(&release.name))?;
        Ok(there && store.manifest(&release.name)?.identity() == release.manifest.identity())
    }
}

impl Answer for Service {
    fn answer(&self, request: Request, peer: Peer) -> Result<Value> {
        let asker = |sudo_uid| Asker { uid: peer.uid, sudo_uid };
        match request {
            Request::Status => Ok(self.status()),
            Request::Switch { release, message, uid } => {
                let to = Target { to: Some(release.parse()?), rollback: false };
                self.switcher.switch(&to, message, asker(uid)).map(|switched| report(&switched))
            }
            Request::Rollback { release, message, uid } => {
                let to = release.map(|name| name.parse()).transpose()?;
                let request = Target { to, rollback: true };
                self.switcher.switch(&request, message, asker(uid)).map(|switched| report(&switched))
            }
            Request::Reload => self.reload(),
            Request::Umount { lazy } => self.unmount(lazy).map(|()| json!({ "unmounted": true })),
            Request::Pinned { after } => self.pinned(after),
            Request::Repacked => {
                self.fs.descriptors.objects().refresh()?;
                Ok(json!({}))
            }
            Request::Restore { path } => self.restore(&decode_path(&path)),
        }
    }
}

fn show_refusal(refusal: &Refusal) -> Value {
    json!({
        "path": json_path(&refusal.path[..refusal.path.len().min(LONGEST)]),
        "uid": refusal.uid,
        "count": refusal.count,
        "why": refusal.why.text(),
        "last": rfc3339(refusal.last),
    })
}

fn show_under_way(under_way: &UnderWay) -> Value {
    json!({
        "from": under_way.from,
        "to": under_way.to,
        "phase": under_way.stage.word(),
        "since": rfc3339(under_way.since),
    })
}

/// What a switch did, as it is answered and printed, with a mount and without.
pub fn report(switched: &Switched) -> Value {
    json!({
        "from": switched.from,
        "to": switched.to,
        "changed": switched.changed,
        "call_us": switched.call.as_micros() as u64,
        "swap_us": switched.swap.as_nanos() as f64 / 1000.0,
        "waited_ms": switched.waited.as_millis() as u64,
        "second": switched.second,
        "hidden": switched.shadowed,
        "tidy": if switched.tidy == Tidy::Done { "done" } else { "pending" },
        "mounted": switched.mounted,
        "warnings": switched.warnings,
    })
}
