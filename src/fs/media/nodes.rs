//! Who a file in a scope is: the names of each node, and what is behind it.
//!
//! The number of a node is a pure function where it can be: of a directory that of its path, of a release's file that
//! of its release node, of an upper file a hash of its device and inode. A node keeps its number when its file is
//! copied up or its name moves; then this table alone knows.
//!
//! Disk and table are two things: a step changes the disk first and is noted here afterwards. So each step is announced
//! ([`Nodes::begin_step`]) and ends here ([`Nodes::end_step`]), and a look without a lock learns whether it still holds
//! ([`Nodes::outran`]).

use super::node::{Backing, MediaNode, pure_of_file};
use super::scopes::ScopeId;
use crate::error::{Errno, Error, Result};
use crate::fs::epoch::Release;
use crate::fs::mount::{LookupRef, Mount};
use crate::store::media::home::{FileId, Orphan};
use crate::tree::union::{Onto, Step};
use crate::tree::{Kind, LayerPath, Node, NodeId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Counters of ended steps: looks at two directories that share one are made once more at times.
const COUNTERS: usize = 4096;
/// How many moves of directories are remembered for the looks that they overlap.
const MOVES: usize = 64;

/// When a look at the names of a directory began: how many steps there, and how many moves of directories, had ended.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) dir: LayerPath,
    ended: u64,
    moved: u64,
}

/// A step under way: the nodes whose names it changes.
#[derive(Debug)]
pub(super) struct Announced<'s> {
    step: &'s Step,
    from: Option<NodeId>,
    to: Option<NodeId>,
    /// Directories that it moves, by the names that they have before.
    dirs: Vec<&'s LayerPath>,
}

/// What came of a step.
#[derive(Debug)]
pub(super) enum StepOutcome {
    /// It failed.
    Failed,
    /// It was done; the leaf that it took out of the tree, and that is kept.
    Done(Option<Orphan>),
    /// It was a whiteout, and left nothing at its name.
    NameGone,
}

/// All nodes of a store.
#[derive(Debug)]
pub(super) struct Nodes {
    mount: Arc<Mount>,
    nodes: HashMap<NodeId, MediaNode>,
    by_path: BTreeMap<LayerPath, NodeId>,
    by_file: HashMap<FileId, NodeId>,
    serial: u64,
    /// How many steps ended, by directory; seeded, so that no user can choose whose looks are done again.
    ended: Box<[u64; COUNTERS]>,
    hasher: RandomState,
    /// Directories that are being moved.
    moving: Vec<LayerPath>,
    /// How many were moved, and the last of them: where each was and where it went.
    moved: u64,
    last_moved: VecDeque<[LayerPath; 2]>,
}

impl Nodes {
    pub(super) fn new(mount: Arc<Mount>) -> Self {
        Self {
            mount,
            nodes: HashMap::new(),
            by_path: BTreeMap::new(),
            by_file: HashMap::new(),
            serial: 0,
            ended: Box::new([0; COUNTERS]),
            hasher: RandomState::new(),
            moving: Vec::new(),
            moved: 0,
            last_moved: VecDeque::new(),
        }
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&MediaNode> {
        self.nodes.get(&node)
    }

    pub(super) fn get_mut(&mut self, node: NodeId) -> Option<&mut MediaNode> {
        self.nodes.get_mut(&node)
    }

    pub(super) fn at(&self, path: &LayerPath) -> Option<NodeId> {
        self.by_path.get(path).copied()
    }

    /// A path of a node; `None` if it has none any more.
    pub(super) fn path(&self, node: NodeId) -> Result<Option<LayerPath>> {
        let held = self.nodes.get(&node).ok_or(Error::answer(Errno::STALE))?;
        Ok(held.paths.first().cloned())
    }

    /// The path of a directory.
    pub(super) fn dir_path(&self, dir: NodeId) -> Result<LayerPath> {
        self.path(dir)?.ok_or(Error::answer(Errno::NOENT))
    }

    /// The path of a name in a directory.
    pub(super) fn below(&self, dir: NodeId, name: &[u8]) -> Result<LayerPath> {
        let held = self.nodes.get(&dir).ok_or(Error::answer(Errno::STALE))?;
        Ok(held.paths.first().ok_or(Error::answer(Errno::NOENT))?.join(name))
    }

    /// The device that a directory lies on, if it is known.
    pub(super) fn disk_of(&self, dir: &LayerPath) -> Option<u64> {
        Some(self.nodes.get(&self.at(dir)?)?.disk)
    }

    /// The number under which a release's entry is listed: its node's where it has one.
    pub(super) fn number_of_lower(&self, path: &LayerPath, lower: &Node) -> NodeId {
        let held = self.at(path).and_then(|node| Some((node, &self.nodes.get(&node)?.backing)));
        match (held, lower.kind) {
            (Some((node, Backing::Dir)), Kind::Dir) => node,
            (Some((node, Backing::Lower { node: was, .. })), _) if *was == lower.nodeid => node,
            (_, Kind::Dir) => path.dir_node(),
            _ => lower.nodeid.scoped(),
        }
    }

    /// The number under which an upper file is shown in a listing.
    pub(super) fn number_of_file(&self, id: FileId) -> NodeId {
        self.by_file.get(&id).copied().unwrap_or_else(|| pure_of_file(id))
    }

    /// The node of this file if it is known, and known under other names only.
    pub(super) fn elsewhere(&self, id: FileId, path: &LayerPath) -> Option<(NodeId, &MediaNode)> {
        let node = *self.by_file.get(&id)?;
        let held = self.nodes.get(&node)?;
        held.paths.iter().all(|known| known != path).then_some((node, held))
    }

    fn counter(&self, dir: &LayerPath) -> usize {
        self.hasher.hash_one(dir) as usize % COUNTERS
    }

    /// A look at names of this directory begins.
    pub(super) fn seen(&self, dir: LayerPath) -> Seen {
        Seen { ended: self.ended[self.counter(&dir)], moved: self.moved, dir }
    }

    /// Whether what a look saw may not hold any more: a step ended meanwhile. At most one step at a time is under way
    /// in a directory, and a look that one step overlaps sees the state before it or the one after it.
    pub(super) fn outran(&self, seen: &Seen) -> bool {
        let since = (self.moved - seen.moved) as usize;
        let mut moves = self.last_moved.iter().take(since).flatten();
        self.ended[self.counter(&seen.dir)] != seen.ended
            || since > MOVES
            || moves.any(|moved| seen.dir.is_within(moved))
    }

    /// Whether a directory, or one above it, is being moved: what is in it may be found at neither place.
    pub(super) fn is_moving(&self, dir: &LayerPath) -> bool {
        self.moving.iter().any(|from| dir.is_within(from))
    }

    /// Announces a step: its disk work comes next, and then [`Nodes::end_step`], whatever came of it.
    pub(super) fn begin_step<'s>(&mut self, step: &'s Step) -> Announced<'s> {
        let (from, to) = match step {
            Step::Unlink(path) | Step::Rmdir(path) | Step::Whiteout(path) | Step::Link(path, _) => {
                (self.at(path), None)
            }
            Step::CopyUp(path) => (self.at(path), None),
            Step::Rename(from, to, _) => (self.at(from), self.at(to)),
            Step::Place(_) | Step::MakeDirs(_) | Step::Unhide(_) => (None, None),
        };
        let mut dirs = Vec::new();
        if let Step::Rename(old, new, _) = step {
            for (node, path) in [(from, old), (to, new)] {
                let is_dir = |held: &MediaNode| matches!(held.backing, Backing::Dir);
                if node.and_then(|node| self.nodes.get(&node)).is_some_and(is_dir) {
                    dirs.push(path);
                    self.moving.push(path.clone());
                }
            }
        }
        for node in from.iter().chain(to.iter()) {
            if let Some(held) = self.nodes.get_mut(node) {
                held.moving += 1;
            }
        }
        Announced { step, from, to, dirs }
    }

    /// A step is over: names change here as they did on the disk. Gives back the leaf that it took out of the tree if
    /// nobody knows it.
    pub(super) fn end_step(&mut self, announced: Announced<'_>, outcome: StepOutcome) -> Option<Orphan> {
        let Announced { step, from, to, dirs } = announced;
        for node in from.iter().chain(to.iter()) {
            if let Some(held) = self.nodes.get_mut(node) {
                held.moving -= 1;
            }
        }
        for dir in dirs {
            if let Some(at) = self.moving.iter().position(|moving| moving == dir) {
                self.moving.swap_remove(at);
            }
        }
        for path in paths_of(step) {
            self.ended[self.counter(&path.parent())] += 1;
        }
        let mut kept = match outcome {
            StepOutcome::Failed => return None,
            StepOutcome::Done(kept) => kept,
            StepOutcome::NameGone => {
                paths_of(step).for_each(|path| self.lose(from, path, &mut None));
                return None;
            }
        };
        match step {
            Step::Unlink(path) | Step::Rmdir(path) => self.lose(from, path, &mut kept),
            Step::Link(_, to) => {
                if let Some(node) = from {
                    self.give_name(node, to);
                }
            }
            Step::Rename(from, to, Onto::Exchange) => {
                let (there, here) = (self.take_names(from, to), self.take_names(to, from));
                self.give_names(there);
                self.give_names(here);
            }
            Step::Rename(old, new, _) => {
                self.lose(to, new, &mut kept);
                let moved = self.take_names(old, new);
                self.give_names(moved);
                if let Some(node) = from {
                    self.give_name(node, new);
                }
            }
            Step::Whiteout(_) | Step::Unhide(_) | Step::Place(_) | Step::MakeDirs(_) | Step::CopyUp(_) => {}
        }
        kept
    }

    /// The node that had a name loses it, and keeps the leaf if that was its last one.
    fn lose(&mut self, node: Option<NodeId>, path: &LayerPath, kept: &mut Option<Orphan>) {
        if let Some(held) = node.and_then(|node| self.nodes.get_mut(&node))
            && held.paths.iter().all(|known| known == path)
            && held.orphan.is_none()
        {
            held.orphan = kept.take();
        }
        let now = self.at(path).filter(|now| Some(*now) != node);
        for node in node.into_iter().chain(now) {
            self.lose_name(node, path);
        }
    }

    /// The disk gave the place of the node's file to another one: the node stays without a file.
    pub(super) fn lose_file(&mut self, node: NodeId) {
        let paths = self.nodes.get(&node).map_or(Vec::new(), |held| held.paths.clone());
        for path in paths {
            self.lose_name(node, &path);
        }
        if let Some(Backing::Upper(id)) = self.nodes.get(&node).map(|held| &held.backing)
            && self.by_file.get(id) == Some(&node)
        {
            self.by_file.remove(id);
        }
    }

    /// The node for what is at a path now, with one lookup counted; a node that was there for something else loses that
    /// name. A node that a step under way changes is left to the step.
    pub(super) fn settle(
        &mut self,
        path: &LayerPath,
        scope: ScopeId,
        disk: u64,
        backing: Backing,
    ) -> (NodeId, LookupRef) {
        let known = match &backing {
            Backing::Upper(id) => self.by_file.get(id).copied(),
            _ => self.at(path).filter(|node| self.nodes.get(node).is_some_and(|held| held.backing.same(&backing))),
        };
        let is_moving = |node: &NodeId| self.nodes.get(node).is_some_and(|held| held.moving > 0);
        // Of a file that is being copied up the look may have met the copy, which is not noted yet.
        let known = known.or_else(|| self.at(path).filter(is_moving));
        let Some(node) = known else {
            let node = self.insert(path, scope, disk, backing);
            self.give_name(node, path);
            return (node, self.mount.count(node));
        };
        if let Some(held) = self.nodes.get_mut(&node).filter(|held| held.moving == 0) {
            // The release may be another one, with other extended attributes: they do not count for the number.
            held.backing = backing;
            held.disk = disk;
            self.give_name(node, path);
        }
        (node, self.mount.count(node))
    }

    fn insert(&mut self, path: &LayerPath, scope: ScopeId, disk: u64, backing: Backing) -> NodeId {
        let mut number = match &backing {
            Backing::Dir => path.dir_node(),
            Backing::Upper(id) => pure_of_file(*id),
            Backing::Lower { node, .. } => node.scoped(),
        };
        while self.nodes.contains_key(&number) {
            // Taken by a node that moved away and is still held: any number will do.
            self.serial += 1;
            number = NodeId(self.serial).scoped();
        }
        if let Backing::Upper(id) = &backing {
            self.by_file.insert(*id, number);
        }
        let node = MediaNode {
            paths: Vec::new(),
            scope,
            disk,
            orphan: None,
            backing,
            look: None,
            changing: 0,
            changes: 0,
            moving: 0,
        };
        self.nodes.insert(number, node);
        number
    }

    fn give_name(&mut self, node: NodeId, path: &LayerPath) {
        // A file of another release may still have it, which the name will show again and is not this node.
        if let Some(other) = self.at(path).filter(|other| *other != node) {
            self.lose_name(other, path);
        }
        if let Some(held) = self.nodes.get_mut(&node) {
            self.by_path.insert(path.clone(), node);
            if !held.paths.iter().any(|known| known == path) {
                held.paths.push(path.clone());
                // A new name moves the ctime.
                held.look = None;
            }
        }
    }

    /// A file that lost the last name we knew of, and that has another: it is no orphan. Gives what it was kept as.
    pub(super) fn found_again(&mut self, node: NodeId) -> Option<Orphan> {
        let held = self.nodes.get_mut(&node).filter(|held| held.moving == 0)?;
        held.orphan.take_if(|orphan| !matches!(orphan, Orphan::Gone))
    }

    /// The name stands for this node no more. A node that nobody holds is let go with its last name.
    pub(super) fn lose_name(&mut self, node: NodeId, path: &LayerPath) {
        if self.at(path) == Some(node) {
            self.by_path.remove(path);
        }
        if let Some(held) = self.nodes.get_mut(&node) {
            held.paths.retain(|known| known != path);
            held.look = None;
            if held.paths.is_empty() {
                self.mount.lost_names(node);
            }
        }
    }

    /// A file was copied up: the node stays.
    pub(super) fn copied_up(&mut self, node: NodeId, id: FileId, disk: u64) {
        if let Some(held) = self.nodes.get_mut(&node) {
            held.backing = Backing::Upper(id);
            held.disk = disk;
            held.look = None;
            self.by_file.insert(id, node);
        }
    }

    /// A directory, or a file, is renamed with all below it: the nodes lose those names, and get the ones that are
    /// returned ([`Nodes::give_names`]).
    fn take_names(&mut self, from: &LayerPath, to: &LayerPath) -> Vec<(LayerPath, NodeId)> {
        let is_dir = |held: &MediaNode| matches!(held.backing, Backing::Dir);
        if self.at(from).and_then(|node| self.nodes.get(&node)).is_some_and(is_dir) {
            self.moved += 1;
            self.last_moved.truncate(MOVES - 1);
            self.last_moved.push_front([from.clone(), to.clone()]);
        }
        let below = self.by_path.range(from.descendants()).map(|(path, _)| path.clone());
        let paths: Vec<LayerPath> = below.chain([from.clone()]).collect();
        let mut taken = Vec::new();
        for path in paths {
            let Some(node) = self.by_path.remove(&path) else { continue };
            if let Some(held) = self.nodes.get_mut(&node) {
                held.paths.retain(|known| *known != path);
            }
            taken.extend(path.moved(from, to).map(|new| (new, node)));
        }
        taken
    }

    fn give_names(&mut self, names: Vec<(LayerPath, NodeId)>) {
        for (path, node) in names {
            self.give_name(node, &path);
        }
    }

    /// Files and symlinks of releases that the kernel holds.
    pub(super) fn held_of_releases(&self) -> Vec<(Arc<Release>, u32)> {
        let held = self.nodes.iter().filter_map(|(node, held)| match &held.backing {
            Backing::Lower { release, index, .. } if self.mount.knows(*node) => Some((release.clone(), *index)),
            _ => None,
        });
        held.collect()
    }

    /// Lets go of a node if the kernel does not know it and nothing is under way with it.
    pub(super) fn let_go(&mut self, node: NodeId) -> LetGo {
        match self.nodes.get(&node) {
            _ if self.mount.knows(node) => return LetGo::Stays,
            None => return LetGo::Stays,
            Some(held) if held.moving > 0 || held.changing > 0 => return LetGo::Later,
            Some(_) => {}
        }
        let Some(gone) = self.nodes.remove(&node) else { return LetGo::Stays };
        for path in &gone.paths {
            if self.at(path) == Some(node) {
                self.by_path.remove(path);
            }
        }
        if let Backing::Upper(id) = gone.backing
            && self.by_file.get(&id) == Some(&node)
        {
            self.by_file.remove(&id);
        }
        LetGo::Gone(gone.orphan.map(|orphan| (gone.scope, orphan)))
    }
}

/// What became of a forgotten node.
#[derive(Debug)]
pub(super) enum LetGo {
    /// The kernel knows it again, or it is gone already.
    Stays,
    /// Something is under way with it.
    Later,
    /// It is gone; what it was kept as is to be dropped.
    Gone(Option<(ScopeId, Orphan)>),
}

/// The paths whose names a step changes.
fn paths_of(step: &Step) -> impl Iterator<Item = &LayerPath> {
    let (first, second) = match step {
        Step::MakeDirs(path)
        | Step::CopyUp(path)
        | Step::Whiteout(path)
        | Step::Unhide(path)
        | Step::Place(path)
        | Step::Unlink(path)
        | Step::Rmdir(path) => (path, None),
        Step::Rename(from, to, _) | Step::Link(from, to) => (from, Some(to)),
    };
    std::iter::once(first).chain(second)
}
