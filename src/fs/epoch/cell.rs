//! The cell that holds the current epoch.
//!
//! **Locks.** The epoch lock (`Epochs::current`) is taken for an instant at a time: the read side to clone the epoch or
//! to send a reply, the write side to publish another epoch. Under the read side three leaves are taken: a shard of the
//! pending attributes, the lookup counts of the mount, where an entry did not fit into the reply, and open listings.
//! Nothing is waited for but write(2) to /dev/fuse: no disk, no notification.

use super::{Epoch, Release};
use crate::error::Result;
use crate::tree::NodeId;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which release each switch made active, in order.
type Past = Arc<Vec<(u32, Arc<Release>)>>;

/// The cell that holds the current epoch.
#[derive(Debug)]
pub struct Epochs {
    current: RwLock<Arc<Epoch>>,
    /// The last time of each release, and what open listings need.
    past: RwLock<Past>,
    /// How many listings are open that began under which switch.
    listings: Mutex<BTreeMap<u32, u64>>,
}

impl Epochs {
    /// Begins with this epoch.
    pub fn new(epoch: Epoch) -> Self {
        let past = Arc::new(vec![(epoch.switch, epoch.release.clone())]);
        Self { current: RwLock::new(Arc::new(epoch)), past: RwLock::new(past), listings: Mutex::default() }
    }

    /// The current epoch.
    pub fn load(&self) -> Arc<Epoch> {
        self.current.read().clone()
    }

    /// The current epoch, which stays so while the guard lives: for sending a reply, and for nothing else.
    pub fn lock(&self) -> RwLockReadGuard<'_, Arc<Epoch>> {
        self.current.read()
    }

    /// Publishes another epoch; gives how long that kept the lock. Only who has the turn of the switch may call it.
    pub fn publish(&self, epoch: Epoch) -> Duration {
        let next = Arc::new(epoch);
        let past = self.past.read().clone();
        if past.last().is_none_or(|(switch, _)| *switch != next.switch) {
            let more = past.iter().cloned().chain([(next.switch, next.release.clone())]).collect();
            *self.past.write() = Arc::new(more);
        }
        let mut current = self.current.write();
        let begun = Instant::now();
        let before = std::mem::replace(&mut *current, next);
        drop(current);
        let held = begun.elapsed();
        drop(before);
        self.forget_past();
        held
    }

    /// Forgets what no listing can need. A release answers those that began from when it became active until it did so
    /// again; one that begins now may need the last time of each, and none begins under a past switch any more.
    fn forget_past(&self) {
        let past = self.past.read().clone();
        let mut again = HashMap::new();
        let mut needed = Vec::new();
        for (made, release) in past.iter().rev() {
            let until = again.insert(Arc::as_ptr(release), *made);
            if until.is_none_or(|until| self.has_listing(*made..until)) {
                needed.push((*made, release.clone()));
            }
        }
        if needed.len() < past.len() {
            needed.reverse();
            *self.past.write() = Arc::new(needed);
        }
    }

    /// Whether a listing is open that began under one of these switches.
    fn has_listing(&self, switches: Range<u32>) -> bool {
        self.listings.lock().range(switches).next().is_some()
    }

    /// The release that a listing of `dir` shows if it began under this switch: the one active then, or the
    /// last active one before it that had the directory.
    pub fn release_for_listing(&self, switch: u32, dir: NodeId) -> Result<Option<(Arc<Release>, u32)>> {
        let past = self.past.read().clone();
        for (_, release) in past.iter().rev().skip_while(|(made, _)| *made > switch) {
            if let Some(index) = release.manifest.find_node(dir)? {
                return Ok(Some((release.clone(), index)));
            }
        }
        Ok(None)
    }

    /// A listing begins under this switch, the current one: called under the epoch lock.
    pub(in crate::fs) fn listing_begins(&self, switch: u32) {
        *self.listings.lock().entry(switch).or_default() += 1;
    }

    /// A listing that began under this switch is over.
    pub(in crate::fs) fn listing_ends(&self, switch: u32) {
        let mut listings = self.listings.lock();
        if let Some(open) = listings.get_mut(&switch) {
            *open -= 1;
            if *open == 0 {
                listings.remove(&switch);
            }
        }
    }

    /// Whether a listing from before the last switch is open that this release, which is active no more, may show.
    pub fn is_listed(&self, release: &Arc<Release>) -> bool {
        let mut until = self.load().switch;
        let past = self.past.read().clone();
        past.iter().rev().filter(|(_, other)| Arc::ptr_eq(other, release)).any(|(made, _)| {
            let listed = self.has_listing(*made..until);
            until = *made;
            listed
        })
    }

    /// Lets go of a release that is active no more and not listed: it answers for nothing from now on. Only who has
    /// the turn of the switch may call it.
    pub fn let_go(&self, release: &Arc<Release>) {
        let past = self.past.read().clone();
        let others = past.iter().filter(|(_, other)| !Arc::ptr_eq(other, release)).cloned().collect();
        *self.past.write() = Arc::new(others);
        self.publish(self.load().without(release));
    }

    /// All releases that were active in this mount and are not let go, the active one first, then the latest first.
    pub fn releases(&self) -> Vec<Arc<Release>> {
        let epoch = self.load();
        std::iter::once(epoch.release.clone()).chain(epoch.earlier.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::release::manifest::{BuildNode, Builder, Manifest};
    use crate::tree::{ChangeSet, Kind};
    use std::path::Path;

    fn release(name: &str) -> Arc<Release> {
        let bytes = Builder::new(BuildNode::new(b"", Kind::Dir, 0o755)).encode(0).expect("a manifest");
        let manifest = Manifest::from_bytes(bytes, Path::new(name)).expect("whole");
        Arc::new(Release { name: name.parse().expect("a name"), manifest })
    }

    #[test]
    fn past_switches_are_kept_for_open_listings_and_for_nothing_else() {
        let releases = [release("a"), release("b"), release("c")];
        let epochs = Epochs::new(Epoch::new(1, releases[0].clone(), Arc::default()));
        let switch = |to: u32| {
            let changes = ChangeSet::default();
            epochs.publish(epochs.load().after(to, releases[to as usize % 3].clone(), &changes));
        };
        let shown = |began: u32| {
            let found = epochs.release_for_listing(began, NodeId::ROOT).expect("it can be read");
            found.expect("it is kept").0.name.clone()
        };
        (2..1000).for_each(switch);
        assert_eq!(epochs.past.read().len(), 3);
        epochs.listing_begins(999);
        epochs.listing_begins(999);
        switch(1000);
        epochs.listing_begins(1000);
        (1001..2000).for_each(switch);
        // What three releases were then, and the later two of them once more at the second.
        assert_eq!(epochs.past.read().len(), 3 + 4);
        assert_eq!((shown(999), shown(1000)), (releases[0].name.clone(), releases[1].name.clone()));
        epochs.listing_ends(999);
        assert!(releases.iter().all(|release| epochs.is_listed(release)));
        epochs.listing_ends(999);
        epochs.listing_ends(1000);
        epochs.listing_ends(1000);
        assert!(!epochs.is_listed(&releases[0]) && !epochs.is_listed(&releases[2]));
        switch(2000);
        assert_eq!(epochs.past.read().len(), 3);
        epochs.let_go(&releases[0]);
        assert_eq!(epochs.past.read().len(), 2);
    }
}
