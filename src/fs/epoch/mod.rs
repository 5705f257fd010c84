//! The epoch: what is served between two switches, as an immutable snapshot.
//!
//! - `cell` holds the current one; its lock is the epoch lock.
//! - `transition` is what a switch under way makes uncertain, with the `gate` that lookups pass shortly before the
//!   swap.
//! - `pending_attrs` are the nodes whose changed attributes the kernel has not asked for since the last switch.

mod cell;
mod gate;
mod pending_attrs;
mod transition;

pub use cell::Epochs;
pub use gate::Turn;
pub use transition::Transition;

use crate::error::{Errno, Error, Result};
use crate::fs::attr::{Attr, Entry, Ttl};
use crate::store::Store;
use crate::store::active::Active;
use crate::store::active::stamps::{Stamp, Stamps};
use crate::store::release::manifest::Manifest;
use crate::tree::{ChangeSet, Node, NodeId, ReleaseName, Side, Tree};
use pending_attrs::PendingAttrs;
use std::sync::Arc;

/// A release whose manifest is open.
#[derive(Debug)]
pub struct Release {
    /// Its name.
    pub name: ReleaseName,
    /// Its metadata.
    pub manifest: Manifest,
}

/// Where a node was found.
#[derive(Clone, Copy, Debug)]
pub struct Located<'a> {
    /// The release that answers for it.
    pub release: &'a Arc<Release>,
    /// Its number there.
    pub index: u32,
    /// Whether that is the active release. What is said of other nodes gets TTL 0.
    pub live: bool,
}

impl Located<'_> {
    /// The manifest of the release.
    pub fn manifest(&self) -> &Manifest {
        &self.release.manifest
    }
}

/// What is served at one time.
#[derive(Debug)]
pub struct Epoch {
    /// The number of the switch that made it.
    pub switch: u32,
    /// The active release.
    pub release: Arc<Release>,
    /// Releases that were active before, the latest first: they answer for nodes that the active one lacks,
    /// until they are removed and the kernel holds no such node.
    pub earlier: Vec<Arc<Release>>,
    /// Which switch last changed which node.
    pub stamps: Arc<Stamps>,
    /// The earliest mtime of what was in a release's own layer when that release was shown.
    pub arrival: Option<Stamp>,
    /// The switch that is under way.
    pub transition: Option<Arc<Transition>>,
    /// Nodes whose attributes a switch changed and that the kernel has not asked for since.
    pending: Arc<PendingAttrs>,
}

impl Epoch {
    /// What a mount of a store begins with: the release that is active there.
    pub fn first(store: &Store, active: &Active) -> Result<Self> {
        let name = active.release()?;
        let manifest = store.manifest(&name)?;
        let stamps = Arc::new(store.read_stamps(active.stamps_len)?);
        Ok(Self::new(active.switch, Arc::new(Release { name, manifest }), stamps).arriving(active.arrival))
    }

    /// A release as one switch made it active, with no other before it.
    pub fn new(switch: u32, release: Arc<Release>, stamps: Arc<Stamps>) -> Self {
        let (earlier, pending) = (Vec::new(), Arc::default());
        Self { switch, release, earlier, stamps, arrival: None, transition: None, pending }
    }

    /// The same, where the release arrives in this second.
    pub fn arriving(self, second: Option<i64>) -> Self {
        let arrival = second.map(|second| Stamp { second, nanos: self.switch });
        Self { arrival, ..self }
    }

    /// Finds the release that answers for a node: the active one, else the one that had it and was active last.
    pub fn find(&self, node: NodeId) -> Result<Located<'_>> {
        if let Some(index) = self.release.manifest.find_node(node)? {
            return Ok(Located { release: &self.release, index, live: true });
        }
        for release in self.earlier.iter().filter(|release| !release.manifest.is_bad()) {
            if let Some(index) = release.manifest.find_node(node)? {
                return Ok(Located { release, index, live: false });
            }
        }
        Err(Error::answer(Errno::STALE))
    }

    /// The release of this name, if it was active in this mount.
    pub fn named(&self, name: &ReleaseName) -> Option<&Arc<Release>> {
        std::iter::once(&self.release).chain(&self.earlier).find(|release| release.name == *name)
    }

    /// What a name in a directory stands for.
    pub fn entry(&self, dir: NodeId, name: &[u8]) -> Result<Entry> {
        let at = self.find(dir)?;
        let child = at.manifest().find_child_of(at.index, name)?;
        let certain = at.live && !self.changes(dir, name);
        let entry_ttl = Ttl::forever_if(certain);
        let Some(index) = child else {
            return Ok(Entry { attr: None, entry_ttl, attr_ttl: Ttl::Zero, lookup: None });
        };
        let attr = self.attr(Located { index, ..at })?;
        let attr_ttl = Ttl::forever_if(certain && !self.is_uncertain(attr.node));
        Ok(Entry { attr: Some(attr), entry_ttl, attr_ttl, lookup: None })
    }

    /// The attributes of a node, and how long they hold.
    pub fn attributes(&self, node: NodeId) -> Result<(Attr, Ttl)> {
        let at = self.find(node)?;
        Ok((self.attr(at)?, Ttl::forever_if(at.live && !self.is_uncertain(node))))
    }

    /// The attributes of a node that was found.
    pub fn attr(&self, at: Located<'_>) -> Result<Attr> {
        let node = at.manifest().node(at.index)?;
        Ok(Attr::of(&node, self.mtime(&node)))
    }

    /// The mtime that is served of a node of a manifest.
    pub fn mtime(&self, node: &Node) -> Stamp {
        self.stamps.get(node.nodeid, self.switch).unwrap_or_else(|| Stamp::from_nanos(node.mtime))
    }

    /// Whether a switch under way changes what the name stands for; if so the name is noted.
    pub fn changes(&self, dir: NodeId, name: &[u8]) -> bool {
        self.changes_as(dir, name, || dir)
    }

    /// The same of a name in a directory that the kernel knows by another number than a release's.
    pub fn changes_as(&self, dir: NodeId, name: &[u8], known_as: impl FnOnce() -> NodeId) -> bool {
        self.transition.as_ref().is_some_and(|transition| transition.note_if_changed(dir, name, known_as))
    }

    /// Whether a switch under way changes the attributes of the node.
    fn touches(&self, node: NodeId) -> bool {
        self.transition.as_ref().is_some_and(|transition| transition.touches(node))
    }

    /// Whether what is said of a node's attributes holds for no time.
    pub fn is_uncertain(&self, node: NodeId) -> bool {
        self.touches(node) || self.pending.contains(node)
    }

    /// The same of a directory that is known by another number: it is asked for by that from now on.
    pub fn is_uncertain_as(&self, dir: NodeId, known_as: NodeId) -> bool {
        self.pending.rename(dir, known_as);
        self.touches(dir) || self.pending.contains(known_as)
    }

    /// A node's attributes are being sent.
    pub fn attrs_sent(&self, node: NodeId) {
        self.pending.sent(node);
    }

    /// The manifest of the active release, if it went bad since it was opened. Earlier ones that did are
    /// passed over.
    pub fn bad(&self) -> Option<&Manifest> {
        Some(&self.release.manifest).filter(|manifest| manifest.is_bad())
    }

    /// The same epoch with a switch under way, or without one.
    pub fn with_transition(&self, transition: Option<Arc<Transition>>) -> Self {
        Self {
            switch: self.switch,
            release: self.release.clone(),
            earlier: self.earlier.clone(),
            stamps: self.stamps.clone(),
            arrival: self.arrival,
            transition,
            pending: self.pending.clone(),
        }
    }

    /// The same epoch without a release that was active before.
    pub(super) fn without(&self, release: &Arc<Release>) -> Self {
        let mut epoch = self.with_transition(self.transition.clone());
        epoch.earlier.retain(|other| !Arc::ptr_eq(other, release));
        epoch
    }

    /// The epoch after a switch to `release`, which changes this.
    pub fn after(&self, switch: u32, release: Arc<Release>, changes: &ChangeSet) -> Self {
        // What got another mtime, mode or owner, and what an earlier switch changed and nobody has asked for yet.
        let dirs = changes.dirs.iter().filter(|dir| dir.side == Side::New).map(|dir| dir.node);
        let changed = dirs.chain(changes.stamped.iter().copied()).chain(changes.carried.iter().map(|file| file.new));
        let pending = PendingAttrs::new(changed, &self.pending);
        let mut earlier = vec![self.release.clone()];
        earlier.extend(self.earlier.iter().cloned());
        earlier.retain(|other| !Arc::ptr_eq(other, &release));
        let stamps = self.stamps.clone();
        Self { switch, release, earlier, stamps, arrival: self.arrival, transition: None, pending: Arc::new(pending) }
    }
}
