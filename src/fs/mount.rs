//! What one kernel was told of the nodes in scopes: how often it looked each up, and the listings that it reads.
//!
//! A lookup is counted when the node is found, and taken back if the reply that names it is not sent ([`LookupRef`]).
//! So a node whose count is 0 is one that the kernel does not know and that no reply on its way can name.
//!
//! The locks here are leaves: nothing is taken and nothing is waited for under them.

use super::media::Window;
use crate::tree::NodeId;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the listings that are kept between two calls, in all. A reader whose listing was dropped has its directory
/// read again.
const LISTINGS: usize = 16 << 20;
/// Handles of listings in scopes are past every number of a switch.
const FIRST_HANDLE: u64 = 1 << 32;
/// With more forgotten nodes than this the reaper is woken once for as many FORGETs.
const MANY: usize = 64;

/// The state of one mount.
#[derive(Debug)]
pub(crate) struct Mount {
    lookups: Mutex<Lookups>,
    listings: Mutex<Listings>,
    next_handle: AtomicU64,
}

/// The entries of an open directory that come next.
pub(crate) type KeptListing = Arc<Window>;

#[derive(Debug)]
struct Listings {
    kept: LruCache<u64, KeptListing>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Lookups {
    counts: HashMap<NodeId, u64>,
    /// Nodes whose count came to 0.
    forgotten: Vec<NodeId>,
}

impl Default for Mount {
    fn default() -> Self {
        Self {
            lookups: Mutex::default(),
            listings: Mutex::new(Listings { kept: LruCache::unbounded(), bytes: 0 }),
            next_handle: AtomicU64::new(FIRST_HANDLE),
        }
    }
}

impl Mount {
    /// Counts a lookup of a node.
    pub(crate) fn count(self: &Arc<Self>, node: NodeId) -> LookupRef {
        *self.lookups.lock().counts.entry(node).or_default() += 1;
        LookupRef { mount: Some(self.clone()), node }
    }

    /// Takes lookups of a node back. Says whether the reaper is to be woken.
    pub(crate) fn forget(&self, node: NodeId, times: u64) -> bool {
        let mut lookups = self.lookups.lock();
        if let Some(count) = lookups.counts.get_mut(&node) {
            *count = count.saturating_sub(times);
            if *count == 0 {
                lookups.counts.remove(&node);
                lookups.forgotten.push(node);
            }
        }
        let waiting = lookups.forgotten.len();
        waiting <= MANY || waiting.is_multiple_of(MANY)
    }

    /// A node lost its last name: if the kernel does not know it, it can go.
    pub(crate) fn lost_names(&self, node: NodeId) {
        let mut lookups = self.lookups.lock();
        if !lookups.counts.contains_key(&node) {
            lookups.forgotten.push(node);
        }
    }

    /// The nodes that were forgotten since the last call. A later lookup may have counted one anew: ask
    /// [`Mount::knows`] under the lock of the nodes.
    pub(crate) fn take_forgotten(&self) -> Vec<NodeId> {
        std::mem::take(&mut self.lookups.lock().forgotten)
    }

    /// Whether the kernel knows a node, or a reply on its way names it.
    pub(crate) fn knows(&self, node: NodeId) -> bool {
        self.lookups.lock().counts.contains_key(&node)
    }

    /// A handle for a listing that begins.
    pub(crate) fn begin_listing(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// The listing of a handle, if it is kept.
    pub(crate) fn listing(&self, handle: u64) -> Option<KeptListing> {
        self.listings.lock().kept.get(&handle).cloned()
    }

    /// Keeps the listing of a handle, and drops others that were not read for the longest time if there are too many.
    pub(crate) fn keep_listing(&self, handle: u64, listing: KeptListing) {
        let mut gone = Vec::new();
        let mut listings = self.listings.lock();
        listings.bytes += size_of_listing(&listing);
        gone.extend(listings.kept.push(handle, listing).map(|(_, before)| before));
        listings.bytes -= gone.iter().map(size_of_listing).sum::<usize>();
        while listings.bytes > LISTINGS
            && listings.kept.len() > 1
            && let Some((_, oldest)) = listings.kept.pop_lru()
        {
            listings.bytes -= size_of_listing(&oldest);
            gone.push(oldest);
        }
        drop(listings);
        drop(gone);
    }

    /// A listing is over.
    pub(crate) fn end_listing(&self, handle: u64) {
        let mut listings = self.listings.lock();
        let gone = listings.kept.pop(&handle);
        listings.bytes -= gone.as_ref().map_or(0, size_of_listing);
        drop(listings);
        drop(gone);
    }
}

/// What keeping a listing takes, an empty one too.
fn size_of_listing(listing: &KeptListing) -> usize {
    listing.bytes() + 256
}

/// A lookup that was counted: say [`LookupRef::sent`] when the reply that names the node is sent; dropped, the lookup
/// does not count.
#[derive(Debug)]
#[must_use]
pub struct LookupRef {
    mount: Option<Arc<Mount>>,
    node: NodeId,
}

impl LookupRef {
    /// The reply was sent: from now on the kernel's FORGET takes the lookup back.
    pub fn sent(mut self) {
        self.mount = None;
    }
}

impl Drop for LookupRef {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.forget(self.node, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lookup_counts_until_it_is_forgotten_or_its_reply_is_not_sent() {
        let (mount, node) = (Arc::new(Mount::default()), NodeId(7).scoped());
        mount.count(node).sent();
        let unsent = mount.count(node);
        assert!(mount.forget(node, 1));
        assert!(mount.knows(node), "a reply on its way names it");
        assert_eq!(mount.take_forgotten(), []);
        drop(unsent);
        assert!(!mount.knows(node));
        assert_eq!(mount.take_forgotten(), [node]);
        // The kernel never takes back more lookups than it made; if it did, the count would stop at 0.
        mount.count(node).sent();
        mount.forget(node, 5);
        mount.count(node).sent();
        assert!(mount.knows(node));
        mount.lost_names(node);
        assert_eq!(mount.take_forgotten(), [node], "of the lookup that was forgotten");
    }
}
