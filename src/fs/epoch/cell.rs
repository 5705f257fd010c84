//! The cell that holds the current epoch.
//!
//! **Locks.** The epoch lock (`Epochs::current`) is taken for an instant at a time: the read side to clone the epoch or
//! to send a reply, the write side to publish another epoch. Under the read side two leaves are taken: a shard of the
//! pending attributes, and the lookup counts of the mount, where an entry did not fit into the reply. Nothing is waited
//! for but write(2) to /dev/fuse: no disk, no notification.

use super::{Epoch, Release};
use crate::error::Result;
use crate::tree::NodeId;
use parking_lot::{RwLock, RwLockReadGuard};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The cell that holds the current epoch.
#[derive(Debug)]
pub struct Epochs {
    current: RwLock<Arc<Epoch>>,
    /// Which release each switch of this mount made active, in order: listings are pinned by it.
    past: RwLock<Vec<(u32, Arc<Release>)>>,
}

impl Epochs {
    /// Begins with this epoch.
    pub fn new(epoch: Epoch) -> Self {
        let past = vec![(epoch.switch, epoch.release.clone())];
        Self { current: RwLock::new(Arc::new(epoch)), past: RwLock::new(past) }
    }

    /// The current epoch.
    pub fn load(&self) -> Arc<Epoch> {
        self.current.read().clone()
    }

    /// The current epoch, which stays so while the guard lives: for sending a reply, and for nothing else.
    pub fn lock(&self) -> RwLockReadGuard<'_, Arc<Epoch>> {
        self.current.read()
    }

    /// Publishes another epoch; gives how long that kept the lock.
    pub fn publish(&self, epoch: Epoch) -> Duration {
        let next = Arc::new(epoch);
        {
            let mut past = self.past.write();
            if past.last().is_none_or(|(switch, _)| *switch != next.switch) {
                past.push((next.switch, next.release.clone()));
            }
        }
        let mut current = self.current.write();
        let begun = Instant::now();
        let before = std::mem::replace(&mut *current, next);
        drop(current);
        let held = begun.elapsed();
        drop(before);
        held
    }

    /// The release that a listing of `dir` shows if it began under this switch: the one active then, or the
    /// last active one before it that had the directory.
    pub fn release_for_listing(&self, switch: u32, dir: NodeId) -> Result<Option<(Arc<Release>, u32)>> {
        let upto = {
            let past = self.past.read();
            past.partition_point(|(made, _)| *made <= switch)
        };
        for at in (0..upto).rev() {
            let release = self.past.read()[at].1.clone();
            if let Some(index) = release.manifest.find_node(dir)? {
                return Ok(Some((release, index)));
            }
        }
        Ok(None)
    }

    /// All releases that were ever active in this mount.
    pub fn releases(&self) -> Vec<Arc<Release>> {
        let epoch = self.load();
        std::iter::once(epoch.release.clone()).chain(epoch.earlier.iter().cloned()).collect()
    }
}
