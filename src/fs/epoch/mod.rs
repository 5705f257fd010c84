//! The view: what is served, as an immutable snapshot, and the board on which the current one hangs.
//!
//! **Lock order.** The view lock (`Board::current`) is taken for an instant at a time: the read side to clone
//! the view or to send a reply, the write side to hang up another view. Under it at most `Transition::noted`
//! or a shard of the stamps is taken, and nothing is waited for: no disk, no notification.

mod gate;

use crate::error::{Errno, Result};
use crate::fault::{self, Skip};
use crate::fs::attr::{Attr, Entry, Ttl};
use crate::store::Store;
use crate::store::active::Active;
use crate::store::active::stamps::{Stamp, Stamps};
use crate::store::release::manifest::Manifest;
use crate::tree::{ChangeSet, Node, NodeId, ReleaseName, Side, Tree, name_key};
use dashmap::DashSet;
use gate::Gate;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
pub struct Found<'a> {
    /// The release that answers for it.
    pub release: &'a Arc<Release>,
    /// Its number there.
    pub index: u32,
    /// Whether that is the active release. What is said of other nodes gets TTL 0.
    pub live: bool,
}

impl Found<'_> {
    /// The manifest of the release.
    pub fn manifest(&self) -> &Manifest {
        &self.release.manifest
    }
}

/// What is served at one time.
#[derive(Debug)]
pub struct View {
    /// The number of the switch that made it.
    pub switch: u32,
    /// The active release.
    pub release: Arc<Release>,
    /// Releases that were active before, the latest first: they answer for nodes that the active one lacks.
    pub earlier: Vec<Arc<Release>>,
    /// Which switch last changed what.
    pub stamps: Arc<Stamps>,
    /// The switch that is under way.
    pub transition: Option<Arc<Transition>>,
    /// What the last switch gave other attributes, as far as the kernel has not asked for them since.
    untold: Arc<Untold>,
}

/// How many nodes are carried over from one switch to the next, so that they do not take more and more memory.
const MOST_UNTOLD: usize = 100_000;

/// Nodes that got other attributes and that the kernel may know. The first answer for each holds for no time, because
/// the kernel believes an answer an instant before it has taken it over (fuse_change_attributes_common sets `i_time` first,
/// and stat(2) takes no lock): who looks in that instant would see what was before.
/// Two answers at once about the same node can still let it happen.
#[derive(Debug, Default)]
struct Untold {
    nodes: DashSet<NodeId>,
    left: AtomicUsize,
}

impl Untold {
    fn new(nodes: impl Iterator<Item = NodeId>) -> Self {
        let nodes: DashSet<NodeId> = nodes.collect();
        Self { left: AtomicUsize::new(nodes.len()), nodes }
    }

    fn holds(&self, node: NodeId) -> bool {
        self.left.load(Ordering::Relaxed) > 0 && self.nodes.contains(&node)
    }

    fn let_go(&self, node: NodeId) {
        let was_there = self.holds(node) && self.nodes.remove(&node).is_some();
        self.left.fetch_sub(was_there.into(), Ordering::Relaxed);
    }
}

/// What a switch under way makes uncertain.
#[derive(Debug, Default)]
pub struct Transition {
    names: HashSet<u64>,
    nodes: HashSet<NodeId>,
    /// Who may still ask shortly before the swap.
    pub gate: Gate,
    /// Changed names that were told to the kernel since the transition began.
    noted: Mutex<HashSet<(NodeId, Vec<u8>)>>,
}

impl Transition {
    /// For a switch with these changes; `names` are the keys of the changed names.
    pub fn new(changes: &ChangeSet, names: HashSet<u64>) -> Self {
        let dirs = changes.dirs.iter().map(|dir| dir.node);
        let nodes = dirs.chain(changes.leaves.iter().copied()).collect();
        Self { names, nodes, gate: Gate::default(), noted: Mutex::default() }
    }

    /// Whether the switch changes what the name stands for.
    pub fn changes(&self, dir: NodeId, name: &[u8]) -> bool {
        self.names.contains(&name_key(dir, name))
    }

    /// Whether the name changes; if so it is noted as told to the kernel.
    fn tells(&self, dir: NodeId, name: &[u8]) -> bool {
        if fault::skips(Skip::Ttl0) || !self.changes(dir, name) {
            return false;
        }
        self.noted.lock().insert((dir, name.to_vec()));
        true
    }

    fn touches(&self, node: NodeId) -> bool {
        !fault::skips(Skip::Ttl0) && self.nodes.contains(&node)
    }

    /// The names that were told since the transition began.
    pub fn noted(&self) -> Vec<(NodeId, Vec<u8>)> {
        self.noted.lock().iter().cloned().collect()
    }
}

impl View {
    /// What a mount of a store begins with: the release that is active there.
    pub fn first(store: &Store, active: &Active) -> Result<Self> {
        let name = active.release()?;
        let manifest = store.manifest(&name)?;
        let stamps = Arc::new(store.read_stamps(active.stamps_len)?);
        Ok(Self::new(active.switch, Arc::new(Release { name, manifest }), stamps))
    }

    /// A release as one switch made it active, with no other before it.
    pub fn new(switch: u32, release: Arc<Release>, stamps: Arc<Stamps>) -> Self {
        Self { switch, release, earlier: Vec::new(), stamps, transition: None, untold: Arc::default() }
    }

    /// Who answers for a node: the active release, else the one that had it and was active last.
    pub fn find(&self, node: NodeId) -> Result<Found<'_>> {
        if let Some(index) = self.release.manifest.find_node(node)? {
            return Ok(Found { release: &self.release, index, live: true });
        }
        for release in self.earlier.iter().filter(|release| !release.manifest.is_bad()) {
            if let Some(index) = release.manifest.find_node(node)? {
                return Ok(Found { release, index, live: false });
            }
        }
        Err(Errno::STALE.into())
    }

    /// The release of this name, if it was active in this mount.
    pub fn named(&self, name: &[u8]) -> Option<&Arc<Release>> {
        std::iter::once(&self.release).chain(&self.earlier).find(|release| release.name.as_str().as_bytes() == name)
    }

    /// What a name in a directory stands for.
    pub fn entry(&self, dir: NodeId, name: &[u8]) -> Result<Entry> {
        let at = self.find(dir)?;
        let child = at.manifest().find_child_of(at.index, name)?;
        let certain = at.live && !self.changes(dir, name);
        let entry_ttl = Ttl::forever_if(certain);
        let Some(index) = child else {
            return Ok(Entry { attr: None, entry_ttl, attr_ttl: Ttl::Zero });
        };
        let attr = self.attr(Found { index, ..at })?;
        let attr_ttl = Ttl::forever_if(certain && !self.is_uncertain(attr.node));
        Ok(Entry { attr: Some(attr), entry_ttl, attr_ttl })
    }

    /// The attributes of a node, and how long they hold.
    pub fn attributes(&self, node: NodeId) -> Result<(Attr, Ttl)> {
        let at = self.find(node)?;
        Ok((self.attr(at)?, Ttl::forever_if(at.live && !self.is_uncertain(node))))
    }

    /// The attributes of a node that was found.
    pub fn attr(&self, at: Found<'_>) -> Result<Attr> {
        let node = at.manifest().node(at.index)?;
        Ok(Attr::of(&node, self.mtime(&node)))
    }

    /// The mtime that is served of a node of a manifest.
    pub fn mtime(&self, node: &Node) -> Stamp {
        self.stamps.get(node.nodeid, self.switch).unwrap_or_else(|| Stamp::from_nanos(node.mtime))
    }

    /// Whether a switch under way changes what the name stands for; if so the name is noted.
    pub fn changes(&self, dir: NodeId, name: &[u8]) -> bool {
        self.transition.as_ref().is_some_and(|transition| transition.tells(dir, name))
    }

    /// Whether a switch under way changes the attributes of the node.
    fn touches(&self, node: NodeId) -> bool {
        self.transition.as_ref().is_some_and(|transition| transition.touches(node))
    }

    /// Whether what is said of a node's attributes holds for no time.
    pub fn is_uncertain(&self, node: NodeId) -> bool {
        self.touches(node) || self.untold.holds(node)
    }

    /// The kernel is being told of a node's attributes.
    pub fn told(&self, node: NodeId) {
        self.untold.let_go(node);
    }

    /// The manifest of the active release, if it went bad since it was opened. Earlier ones that did are
    /// passed over.
    pub fn bad(&self) -> Option<&Manifest> {
        Some(&self.release.manifest).filter(|manifest| manifest.is_bad())
    }

    /// The same view with a switch under way, or without one.
    pub fn with_transition(&self, transition: Option<Arc<Transition>>) -> Self {
        Self {
            switch: self.switch,
            release: self.release.clone(),
            earlier: self.earlier.clone(),
            stamps: self.stamps.clone(),
            transition,
            untold: self.untold.clone(),
        }
    }

    /// The view after a switch to `release`, which changes this.
    pub fn after(&self, switch: u32, release: Arc<Release>, changes: &ChangeSet) -> Self {
        // What got another mtime, mode or owner, and what an earlier switch changed and nobody has asked for yet.
        let dirs = changes.dirs.iter().filter(|dir| dir.at.0 == Side::New).map(|dir| dir.node);
        let changed = dirs.chain(changes.stamped.iter().copied()).chain(changes.carried.iter().map(|(_, new, _)| *new));
        let before = self.untold.nodes.iter().map(|node| *node).take(MOST_UNTOLD);
        let untold = Untold::new(changed.chain(before));
        let mut earlier = vec![self.release.clone()];
        earlier.extend(self.earlier.iter().cloned());
        earlier.retain(|other| !Arc::ptr_eq(other, &release));
        Self { switch, release, earlier, stamps: self.stamps.clone(), transition: None, untold: Arc::new(untold) }
    }
}

/// Where the current view hangs.
#[derive(Debug)]
pub struct Board {
    current: RwLock<Arc<View>>,
    /// Which release each switch of this mount made active, in order: listings are pinned by it.
    past: RwLock<Vec<(u32, Arc<Release>)>>,
}

impl Board {
    /// Begins with this view.
    pub fn new(view: View) -> Self {
        let past = vec![(view.switch, view.release.clone())];
        Self { current: RwLock::new(Arc::new(view)), past: RwLock::new(past) }
    }

    /// The current view.
    pub fn view(&self) -> Arc<View> {
        self.current.read().clone()
    }

    /// The current view, which stays so while the guard lives: for sending a reply, and for nothing else.
    pub fn lock(&self) -> RwLockReadGuard<'_, Arc<View>> {
        self.current.read()
    }

    /// Hangs up another view; gives how long that kept the lock.
    pub fn hang(&self, view: View) -> Duration {
        let next = Arc::new(view);
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
        let view = self.view();
        std::iter::once(view.release.clone()).chain(view.earlier.iter().cloned()).collect()
    }
}
