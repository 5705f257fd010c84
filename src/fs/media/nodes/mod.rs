//! Who a file in a scope is: the names of each node, and what is behind it.
//!
//! The number of a node is a pure function where it can be: of a release's directory that of its path, of a release's
//! file that of its release node, of what is in the upper layer a hash of its inode. A node keeps its number when it is
//! copied up or its name moves; a mark on the disk has it then (store/media/home/number.rs). This table sees to it that
//! no two nodes have one number.
//!
//! Disk and table are two things: a step changes the disk first and is noted here afterwards. So each step is announced
//! ([`Nodes::begin_step`]) and ends here ([`Nodes::end_step`]), and a look without a lock learns whether it still holds
//! ([`Nodes::outran`]).

mod places;
mod steps;
#[cfg(test)]
mod tests;
mod unused;

pub(super) use places::PlaceId;
pub(super) use steps::{StepOutcome, paths_of};
pub use unused::Unused;

use super::node::{Backing, Held, MediaNode};
use super::scopes::ScopeId;
use crate::error::{Errno, Error, Result};
use crate::fs::epoch::Release;
use crate::fs::mount::{LookupRef, Mount};
use crate::store::media::home::{FileId, Inode, Orphan};
use crate::tree::{LayerPath, Node, NodeId};
use lru::LruCache;
use places::Places;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Counters of ended steps: looks at two directories that share one are made once more at times.
const COUNTERS: usize = 4096;
/// How many moves of directories are remembered for the looks that they overlap.
const MOVES: usize = 64;
/// How many names of a node are looked at or let go of at a time: there may be thousands, and requests wait.
const NAMES: usize = 64;

/// When a look at the names of a directory began: how many steps there, and how many moves of directories, had ended.
#[derive(Debug)]
pub(in crate::fs::media) struct Seen {
    pub(in crate::fs::media) dir: LayerPath,
    ended: u64,
    moved: u64,
    dropped: u64,
}

/// All nodes of a store.
#[derive(Debug)]
pub(in crate::fs::media) struct Nodes {
    mount: Arc<Mount>,
    /// Those that were looked up last come first.
    nodes: LruCache<NodeId, MediaNode>,
    /// Where they lie. The node of a place has the place among its names, and the other way round.
    places: Places,
    by_file: HashMap<Inode, NodeId>,
    serial: u64,
    /// How many steps ended, by directory; seeded, so that no user can choose whose looks are done again.
    ended: Box<[u64; COUNTERS]>,
    hasher: RandomState,
    /// Directories that are being moved.
    moving: Vec<LayerPath>,
    /// How many were moved, and the last of them: where each was and where it went.
    moved: u64,
    last_moved: VecDeque<[LayerPath; 2]>,
    /// How many names among the orphans were dropped.
    dropped: u64,
}

impl Nodes {
    pub(in crate::fs::media) fn new(mount: Arc<Mount>) -> Self {
        Self {
            mount,
            nodes: LruCache::unbounded(),
            places: Places::default(),
            by_file: HashMap::new(),
            serial: 0,
            ended: Box::new([0; COUNTERS]),
            hasher: RandomState::new(),
            moving: Vec::new(),
            moved: 0,
            last_moved: VecDeque::new(),
            dropped: 0,
        }
    }

    pub(in crate::fs::media) fn get(&self, node: NodeId) -> Option<&MediaNode> {
        self.nodes.peek(&node)
    }

    pub(in crate::fs::media) fn get_mut(&mut self, node: NodeId) -> Option<&mut MediaNode> {
        self.nodes.peek_mut(&node)
    }

    pub(in crate::fs::media) fn at(&self, path: &LayerPath) -> Option<NodeId> {
        Some(self.places.node(self.places.find(path)?)?.0)
    }

    /// A path of a node; `None` if it has none any more.
    pub(in crate::fs::media) fn path(&self, node: NodeId) -> Result<Option<LayerPath>> {
        let held = self.nodes.peek(&node).ok_or(Error::answer(Errno::STALE))?;
        held.names.first().map_or(Ok(None), |name| self.places.path(*name))
    }

    /// The path of a directory.
    pub(in crate::fs::media) fn dir_path(&self, dir: NodeId) -> Result<LayerPath> {
        self.path(dir)?.ok_or(Error::answer(Errno::NOENT))
    }

    /// The path of a name in a directory.
    pub(in crate::fs::media) fn below(&self, dir: NodeId, name: &[u8]) -> Result<LayerPath> {
        Ok(self.dir_path(dir)?.join(name))
    }

    /// The path of a name of a node for which something holds, among the first of them.
    pub(in crate::fs::media) fn find_name(
        &self,
        node: NodeId,
        holds: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<LayerPath>> {
        let held = self.nodes.peek(&node).ok_or(Error::answer(Errno::STALE))?;
        let named = |place: &&PlaceId| self.places.name(**place).is_some_and(&holds);
        held.names.iter().take(NAMES).find(named).map_or(Ok(None), |place| self.places.path(*place))
    }

    /// A node as it is now, and where.
    pub(in crate::fs::media) fn held(&self, node: NodeId) -> Result<Held> {
        let held = self.nodes.peek(&node).ok_or(Error::answer(Errno::STALE))?;
        Ok(Held {
            path: self.path(node)?,
            scope: held.scope,
            orphan: held.orphan.clone(),
            backing: held.backing.clone(),
        })
    }

    /// The device that a directory lies on, if it is known.
    pub(in crate::fs::media) fn disk_of(&self, dir: &LayerPath) -> Option<u64> {
        Some(self.nodes.peek(&self.at(dir)?)?.disk)
    }

    /// The place of a directory whose entries are listed, if any of them is known.
    pub(in crate::fs::media) fn place(&self, dir: &LayerPath) -> Option<PlaceId> {
        self.places.find(dir)
    }

    /// The node of a name in a directory.
    pub(in crate::fs::media) fn in_place(&self, dir: Option<PlaceId>, name: &[u8]) -> Option<NodeId> {
        Some(self.places.node(self.places.find_in(dir?, name)?)?.0)
    }

    /// Whether a release's file is known as this node.
    pub(in crate::fs::media) fn is_lower(&self, node: NodeId, lower: &Node) -> bool {
        let backing = self.nodes.peek(&node).map(|held| &held.backing);
        matches!(backing, Some(Backing::Lower { node: was, .. }) if *was == lower.nodeid)
    }

    /// The node of an upper file.
    pub(in crate::fs::media) fn of_inode(&self, inode: Inode) -> Option<NodeId> {
        self.by_file.get(&inode).copied()
    }

    /// The number by which the kernel knows a directory, or would if nobody moved one.
    pub(in crate::fs::media) fn number_of_dir(&self, dir: &LayerPath) -> NodeId {
        self.at(dir).unwrap_or_else(|| dir.dir_node())
    }

    /// The node of this very file.
    fn of_file(&self, id: FileId) -> Option<NodeId> {
        let node = *self.by_file.get(&id.inode())?;
        matches!(self.nodes.peek(&node)?.backing, Backing::Upper(known) if known == id).then_some(node)
    }

    /// The node of this file if it is known, and known under other names only.
    pub(in crate::fs::media) fn elsewhere(&self, id: FileId, path: &LayerPath) -> Option<(NodeId, &MediaNode)> {
        let node = self.of_file(id)?;
        let held = self.nodes.peek(&node)?;
        (self.at(path) != Some(node)).then_some((node, held))
    }

    fn counter(&self, dir: &LayerPath) -> usize {
        self.hasher.hash_one(dir) as usize % COUNTERS
    }

    /// A look at names of this directory begins.
    pub(in crate::fs::media) fn seen(&self, dir: LayerPath) -> Seen {
        Seen { ended: self.ended[self.counter(&dir)], moved: self.moved, dropped: self.dropped, dir }
    }

    /// Whether what a look saw may not hold any more: a step ended meanwhile. At most one step at a time is under way
    /// in a directory, and a look that one step overlaps sees the state before it or the one after it.
    pub(in crate::fs::media) fn outran(&self, seen: &Seen) -> bool {
        let since = (self.moved - seen.moved) as usize;
        let mut moves = self.last_moved.iter().take(since).flatten();
        self.ended[self.counter(&seen.dir)] != seen.ended
            || since > MOVES
            || moves.any(|moved| seen.dir.is_within(moved))
    }

    /// Whether a file's number of links may count a name among the orphans that was dropped meanwhile.
    pub(in crate::fs::media) fn miscounts(&self, seen: &Seen, links: u64) -> bool {
        links > 1 && self.dropped != seen.dropped
    }

    /// Whether a directory, or one above it, is being moved: what is in it may be found at neither place.
    pub(in crate::fs::media) fn is_moving(&self, dir: &LayerPath) -> bool {
        self.moving.iter().any(|from| dir.is_within(from))
    }

    /// The disk gave the place of the node's file to another one: the node stays without a file.
    pub(in crate::fs::media) fn lose_file(&mut self, node: NodeId) {
        self.set_backing(node, Backing::Gone);
    }

    /// Says what is behind a node: the index of files follows.
    fn set_backing(&mut self, node: NodeId, backing: Backing) {
        let Some(held) = self.nodes.peek_mut(&node) else { return };
        let inode = |backing: &Backing| match backing {
            Backing::Upper(id) => Some(id.inode()),
            _ => None,
        };
        let now = inode(&backing);
        let was = inode(&std::mem::replace(&mut held.backing, backing));
        if let Some(inode) = was.filter(|was| Some(*was) != now && self.by_file.get(was) == Some(&node)) {
            self.by_file.remove(&inode);
        }
        let Some(before) = now.and_then(|inode| self.by_file.insert(inode, node)).filter(|before| *before != node)
        else {
            return;
        };
        // The number was another file's, which is removed by now.
        if let Some(held) = self.nodes.peek_mut(&before) {
            held.backing = Backing::Gone;
        }
    }

    /// The node for what is at a path now, with one lookup counted; a node that was there for something else loses that
    /// name. A node that a step under way changes is left to the step. `None`: it is not known, and the number that is
    /// its own is to be found out.
    pub(in crate::fs::media) fn settle(
        &mut self,
        path: &LayerPath,
        (scope, disk): (ScopeId, u64),
        backing: Backing,
        number: Option<NodeId>,
    ) -> Option<(NodeId, LookupRef)> {
        let known = match &backing {
            Backing::Upper(id) => self.of_file(*id),
            _ => self.at(path).filter(|node| self.nodes.get(node).is_some_and(|held| held.backing.same(&backing))),
        };
        let is_moving = |node: &NodeId| self.nodes.peek(node).is_some_and(|held| held.moving > 0);
        // Of a file that is being copied up the look may have met the copy, which is not noted yet.
        let known = known.or_else(|| self.at(path).filter(is_moving));
        let Some(node) = known else {
            let node = self.insert(number?, scope, disk, backing);
            self.give_name(node, path);
            return Some((node, self.mount.count(node)));
        };
        if let Some(held) = self.nodes.peek_mut(&node).filter(|held| held.moving == 0) {
            // The release may be another one, with other extended attributes: they do not count for the number.
            held.disk = disk;
            self.set_backing(node, backing);
            self.give_name(node, path);
        }
        if let Some(held) = self.nodes.get_mut(&node) {
            held.looks += 1;
        }
        Some((node, self.mount.count(node)))
    }

    fn insert(&mut self, mut number: NodeId, scope: ScopeId, disk: u64, backing: Backing) -> NodeId {
        while self.nodes.contains(&number) {
            // Taken by a node that is still held: any number will do that no earlier mount gave.
            self.serial += 1;
            number = NodeId(self.hasher.hash_one(self.serial) >> 2).scoped();
        }
        let node = MediaNode {
            names: Vec::new(),
            scope,
            disk,
            orphan: None,
            removed: None,
            backing: Backing::Gone,
            look: None,
            changing: 0,
            changes: 0,
            moving: 0,
            looks: 0,
        };
        self.nodes.push(number, node);
        self.set_backing(number, backing);
        number
    }

    fn give_name(&mut self, node: NodeId, path: &LayerPath) {
        let place = self.places.make(path);
        match self.places.node(place) {
            Some((known, _)) if known == node => return,
            // A file of another release may still have it, which the name will show again and is not this node.
            Some(_) => self.take_name(place),
            None => {}
        }
        if let Some(held) = self.nodes.peek_mut(&node) {
            self.places.set_node(place, Some((node, held.names.len())));
            held.names.push(place);
            // A new name moves the ctime.
            held.look = None;
        }
    }

    /// A file that lost the last name we knew of, and that has another: it is no orphan. Gives what it is kept as,
    /// which is to be dropped.
    pub(in crate::fs::media) fn found_again(&mut self, node: NodeId) -> Option<Orphan> {
        let held = self.nodes.peek_mut(&node).filter(|held| held.moving == 0 && !held.names.is_empty())?;
        held.orphan.take_if(|orphan| matches!(orphan, Orphan::Gone));
        held.orphan.clone()
    }

    /// What a node was kept as is dropped.
    pub(in crate::fs::media) fn dropped_orphan(&mut self, node: NodeId) {
        self.dropped += 1;
        if let Some(held) = self.nodes.peek_mut(&node) {
            let has_names = !held.names.is_empty();
            held.orphan = held.orphan.take().filter(|_| !has_names).map(|_| Orphan::Gone);
        }
    }

    /// The name stands for this node no more. A node that nobody holds is let go with its last name.
    pub(in crate::fs::media) fn lose_name(&mut self, node: NodeId, path: &LayerPath) {
        if let Some(place) = self.places.find(path)
            && self.places.node(place).is_some_and(|(known, _)| known == node)
        {
            self.take_name(place);
            self.places.tidy(place);
        }
    }

    /// The node at a place loses that name. The place stays.
    fn take_name(&mut self, place: PlaceId) {
        let Some((node, slot)) = self.places.node(place) else { return };
        self.places.set_node(place, None);
        let Some(held) = self.nodes.peek_mut(&node) else { return };
        if held.names.get(slot) == Some(&place) {
            held.names.swap_remove(slot);
        }
        if let Some(moved) = held.names.get(slot) {
            self.places.set_node(*moved, Some((node, slot)));
        }
        held.look = None;
        if held.names.is_empty() {
            self.mount.lost_names(node);
        }
    }

    /// A file was copied up: the node stays.
    pub(in crate::fs::media) fn copied_up(&mut self, node: NodeId, id: FileId, disk: u64) {
        if let Some(held) = self.nodes.peek_mut(&node) {
            held.disk = disk;
            held.look = None;
            self.set_backing(node, Backing::Upper(id));
        }
    }

    /// Files and symlinks of releases that the kernel holds.
    pub(in crate::fs::media) fn held_of_releases(&self) -> Vec<(Arc<Release>, u32)> {
        let held = self.nodes.iter().filter_map(|(node, held)| match &held.backing {
            Backing::Lower { release, index, .. } if self.mount.knows(*node) => Some((release.clone(), *index)),
            _ => None,
        });
        held.collect()
    }

    /// Lets go of a node if the kernel does not know it and nothing is under way with it. `dropped`: what it was kept
    /// as is dropped already. Until then it is known: who looks at its file by another name must not count that as a
    /// link.
    pub(in crate::fs::media) fn let_go(&mut self, node: NodeId, dropped: bool) -> LetGo {
        if dropped {
            self.dropped_orphan(node);
        }
        match self.nodes.peek(&node) {
            _ if self.mount.knows(node) => return LetGo::Stays,
            None => return LetGo::Stays,
            Some(held) if held.moving > 0 || held.changing > 0 => return LetGo::Later,
            Some(MediaNode { orphan: Some(orphan), scope, .. }) if !dropped => {
                return LetGo::Drop(*scope, orphan.clone());
            }
            Some(_) => {}
        }
        for _ in 0..NAMES {
            let Some(place) = self.nodes.peek_mut(&node).and_then(|held| held.names.pop()) else { break };
            self.places.set_node(place, None);
            self.places.tidy(place);
        }
        if self.nodes.peek(&node).is_some_and(|held| !held.names.is_empty()) {
            return LetGo::Later;
        }
        self.set_backing(node, Backing::Gone);
        match self.nodes.pop(&node) {
            Some(_) => LetGo::Gone,
            None => LetGo::Stays,
        }
    }
}

/// What became of a forgotten node.
#[derive(Debug)]
pub(in crate::fs::media) enum LetGo {
    /// The kernel knows it again, or it is gone already.
    Stays,
    /// Something is under way with it.
    Later,
    /// What it is kept as is to be dropped first.
    Drop(ScopeId, Orphan),
    /// It is gone.
    Gone,
}
