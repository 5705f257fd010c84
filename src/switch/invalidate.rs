//! What the kernel is to forget in a switch, as data.

use crate::error::Result;
use crate::fault::{self, Skip};
use crate::fs::Release;
use crate::fs::media::Scopes;
use crate::store::release::manifest::Manifest;
use crate::tree::{ChangeSet, ChangedEntry, NodeId, Side, Tree, change_set, is_within, name_key, split};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A switch from one release to another, and in what they differ.
#[derive(Debug)]
pub struct ReleasePair {
    /// The release being left.
    pub old: Arc<Release>,
    /// The release coming.
    pub new: Arc<Release>,
    /// In what they differ.
    pub changes: ChangeSet,
    /// Changed names that stand for a shared scope, and so for the same in every release: their places in
    /// `changes.entries`, ascending.
    unchanged: Vec<usize>,
    /// Changed directories that lie in shared scopes, the kernel knows them as media nodes: where each is.
    scoped: HashMap<NodeId, (Side, u32)>,
    /// Tops of the scopes that each release has to itself: the name stands for another directory in each.
    tops: Vec<(NodeId, Vec<u8>)>,
}

impl ReleasePair {
    /// Compares two releases, under these scopes.
    pub fn new(old: Arc<Release>, new: Arc<Release>, scopes: Option<&Scopes>) -> Result<Self> {
        let changes = change_set(&old.manifest, &new.manifest)?;
        if let Some(bad) = [&old, &new].into_iter().find(|release| release.manifest.is_bad()) {
            return Err(bad.manifest.damaged("a page of it cannot be read"));
        }
        let mut pair = Self { old, new, changes, unchanged: Vec::new(), scoped: HashMap::new(), tops: Vec::new() };
        if let Some(scopes) = scopes {
            pair.take_scopes(scopes)?;
        }
        Ok(pair)
    }

    fn take_scopes(&mut self, declared: &Scopes) -> Result<()> {
        let path = |scope| declared.path(scope);
        let own = declared.ids().filter(|scope| declared.is_per_release(*scope)).map(path);
        self.tops = own.map(split).map(|(dir, name)| (NodeId::of_dir(dir), name.to_vec())).collect();
        let shared: Vec<&[u8]> = declared.ids().filter(|scope| !declared.is_per_release(*scope)).map(path).collect();
        let within = |path: &[u8]| shared.iter().any(|top| is_within(path, top));
        for dir in &self.changes.dirs {
            if within(&self.release(dir.side).manifest.path_of(dir.index)?) {
                self.scoped.insert(dir.node, (dir.side, dir.index));
            }
        }
        for (at, entry) in self.changes.entries.iter().enumerate() {
            let beside_a_top = shared.iter().any(|top| NodeId::of_dir(split(top).0) == entry.dir);
            if beside_a_top && shared.contains(&&self.path_of(entry)?[..]) {
                self.unchanged.push(at);
            }
        }
        Ok(())
    }

    /// The changed names, leaves first; the name of a shared scope is never one.
    pub fn entries(&self) -> impl Iterator<Item = &ChangedEntry> {
        let changed = |(at, _): &(usize, &ChangedEntry)| self.unchanged.binary_search(at).is_err();
        self.changes.entries.iter().enumerate().filter(changed).map(|(_, entry)| entry)
    }

    /// How many names change.
    pub fn changed(&self) -> usize {
        self.changes.entries.len() - self.unchanged.len()
    }

    /// Whether it is between the same two releases.
    pub fn is_like(&self, other: &Self) -> bool {
        let same = |a: &Release, b: &Release| a.manifest.identity() == b.manifest.identity();
        same(&self.old, &other.old) && same(&self.new, &other.new)
    }

    /// Whether each release has scopes to itself.
    pub fn has_own_layers(&self) -> bool {
        !self.tops.is_empty()
    }

    /// The path of a changed name.
    fn path_of(&self, entry: &ChangedEntry) -> Result<Vec<u8>> {
        self.release(entry.side).manifest.path_of(entry.index)
    }

    /// Changed names in scopes, by their paths.
    pub fn scoped_paths(&self) -> Result<Vec<Vec<u8>>> {
        self.entries().filter(|entry| self.scoped.contains_key(&entry.dir)).map(|entry| self.path_of(entry)).collect()
    }

    /// The number by which the kernel knows a changed directory.
    fn known_as(&self, dir: NodeId, known_as: KnownAs<'_>) -> Result<NodeId> {
        match self.scoped.get(&dir) {
            Some((side, index)) => Ok(known_as(&self.release(*side).manifest.path_of(*index)?)),
            None => Ok(dir),
        }
    }

    fn release(&self, side: Side) -> &Release {
        match side {
            Side::Old => &self.old,
            Side::New => &self.new,
        }
    }

    /// The keys of all changed names.
    pub fn keys(&self) -> Result<HashSet<u64>> {
        let key = |entry: &ChangedEntry| Ok(name_key(entry.dir, self.release(entry.side).manifest.name(entry.index)?));
        let tops = self.tops.iter().map(|(dir, name)| Ok(name_key(*dir, name)));
        self.entries().map(key).chain(tops).collect()
    }
}

/// Which names and attributes of a pair are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Step 2: the changed names, changed directories and nodes that get another mtime.
    BeforeSwap,
    /// Step 4: no names beside those that were noted; changed directories, old and new nodes of changed files.
    AfterSwap,
}

/// A list of things that the kernel is to forget: first the locks, then names, then attributes.
#[derive(Clone, Debug, Default)]
pub struct Invalidations {
    /// The pairs whose directories' locks are passed, and what of them is dropped.
    pub pairs: Vec<(Arc<ReleasePair>, Phase)>,
    /// Further names.
    pub entries: Vec<(NodeId, Vec<u8>)>,
}

/// The number by which the kernel knows the directory at a path of a shared scope.
pub type KnownAs<'a> = &'a dyn Fn(&[u8]) -> NodeId;

/// One thing that the kernel is told.
#[derive(Clone, Copy, Debug)]
pub enum Notice<'a> {
    /// The barrier: the lock of a directory is taken and let go.
    PassLock {
        /// The directory, as the kernel knows it.
        dir: NodeId,
        /// A manifest that has it, and its number there.
        at: Option<(&'a Manifest, u32)>,
    },
    /// A name is dropped.
    DropEntry {
        /// Its directory, as the kernel knows it.
        dir: NodeId,
        /// The name.
        name: &'a [u8],
    },
    /// The attributes of a node are dropped.
    DropAttributes(NodeId),
}

impl Invalidations {
    /// Whether there is nothing to forget.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty() && self.entries.is_empty()
    }

    /// What the kernel is told, one by one, in the order that makes it forget for good.
    pub fn notices<'a>(&'a self, known_as: KnownAs<'a>) -> impl Iterator<Item = Result<Notice<'a>>> {
        let barrier = self.pairs.iter().filter(|_| !fault::skips(Skip::Barrier));
        let mut passed = HashSet::new();
        let locks = barrier.flat_map(move |(pair, _)| pair.locks(known_as)).filter(move |lock| match lock {
            Ok(Notice::PassLock { dir, .. }) => passed.insert(*dir),
            _ => true,
        });
        let noted = self.entries.iter().map(|(dir, name)| Ok(Notice::DropEntry { dir: *dir, name }));
        locks.chain(noted).chain(self.pairs.iter().flat_map(move |(pair, phase)| pair.drops(*phase, known_as)))
    }
}

impl ReleasePair {
    /// The locks of each changed directory and of its parent.
    fn locks<'a>(&'a self, known_as: KnownAs<'a>) -> impl Iterator<Item = Result<Notice<'a>>> {
        let dirs = self.changes.dirs.iter().flat_map(move |dir| {
            let manifest = &self.release(dir.side).manifest;
            let lock = |node, index| {
                self.known_as(node, known_as).map(|dir| Notice::PassLock { dir, at: Some((manifest, index)) })
            };
            let parent = manifest.node(dir.index).and_then(|node| lock(dir.parent, node.parent));
            [parent, lock(dir.node, dir.index)]
        });
        let tops = self.tops.iter().map(move |(dir, _)| {
            let index = self.new.manifest.find_node(*dir)?;
            let dir = self.known_as(*dir, known_as)?;
            Ok(Notice::PassLock { dir, at: index.map(|index| (&self.new.manifest, index)) })
        });
        dirs.chain(tops)
    }

    /// Names and attributes of a phase.
    fn drops<'a>(&'a self, phase: Phase, known_as: KnownAs<'a>) -> impl Iterator<Item = Result<Notice<'a>>> {
        let names = (phase == Phase::BeforeSwap).then(|| {
            let tops = self.tops.iter().map(|(dir, name)| Ok(Notice::DropEntry { dir: *dir, name }));
            tops.chain(self.entries().map(move |entry| {
                let name = self.release(entry.side).manifest.name(entry.index)?;
                Ok(Notice::DropEntry { dir: self.known_as(entry.dir, known_as)?, name })
            }))
        });
        let leaves = match phase {
            Phase::BeforeSwap => &self.changes.stamped,
            Phase::AfterSwap => &self.changes.leaves,
        };
        let nodes = self.changes.dirs.iter().map(|dir| dir.node).chain(leaves.iter().copied());
        // Where a scope changes too, a node may be known by either number.
        let twice = !self.scoped.is_empty();
        let numbers = nodes.flat_map(move |node| [Some(node), twice.then(|| node.scoped())].into_iter().flatten());
        let dirs = self.scoped.keys().map(move |dir| Ok(Notice::DropAttributes(self.known_as(*dir, known_as)?)));
        names.into_iter().flatten().chain(numbers.map(|node| Ok(Notice::DropAttributes(node)))).chain(dirs)
    }
}
