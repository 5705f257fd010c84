//! The media nodes that the kernel holds: which names they have and what is behind them.
//!
//! The number of a media node has bit 63 set. It is a pure function where it can be: of a directory that of its path,
//! of a release's file in a scope that of its release node, of an upper file a hash of its device and inode. A node
//! keeps its number when its file is copied up or its name moves; then this table alone knows.

use super::inflight::InFlight;
use super::scopes::ScopeId;
use crate::fs::epoch::Release;
use crate::store::media::home::{FileId, Orphan};
use crate::tree::{Kind, NodeId, Tree};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

const MEDIA: u64 = 1 << 63;
/// How many forgotten nodes are looked through each time that one is forgotten.
const MANY: usize = 64;

/// Whether a number is that of a media node.
pub fn is_media(node: NodeId) -> bool {
    node.0 & MEDIA != 0
}

/// The media node of a release's directory or file that lies in a scope.
pub fn media_of(release_node: NodeId) -> NodeId {
    NodeId(release_node.0 | MEDIA)
}

/// The number that a release's node of the same path has outside the scopes.
pub fn release_node(node: NodeId) -> NodeId {
    NodeId(node.0 & !MEDIA)
}

/// What is behind a node.
#[derive(Clone, Debug)]
pub enum Backing {
    /// A directory: whatever the layers have at its path.
    Dir,
    /// A file of the upper layer.
    Upper(FileId),
    /// A file or symlink of a release.
    Lower {
        /// The release, kept mapped as long as the node is.
        release: Arc<Release>,
        /// Its number there.
        index: u32,
        /// Its node there.
        node: NodeId,
    },
}

impl Backing {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dir, Self::Dir) => true,
            (Self::Upper(a), Self::Upper(b)) => a == b,
            (Self::Lower { node: a, .. }, Self::Lower { node: b, .. }) => a == b,
            _ => false,
        }
    }
}

/// What a file looked like after our own last change or look at it: something else is somebody else's change.
pub type Print = (i64, i64, i64, i64, i64);

/// A node that the kernel holds.
#[derive(Clone, Debug)]
pub struct MediaNode {
    /// Its paths; several for hard links that were looked up, none if it was unlinked or its name moved on.
    pub paths: Vec<Vec<u8>>,
    /// The scope that it lies in: names never leave theirs.
    pub scope: ScopeId,
    /// Where it is kept after its last name went.
    pub orphan: Option<Orphan>,
    /// What is behind it.
    pub backing: Backing,
    /// How its file looked after our own last change or look.
    pub print: Option<Print>,
    /// Changes of ours that are under way: until they are over, nobody can say whose a change is.
    pub changing: u32,
    lookups: u64,
    /// When it was last looked up, or forgotten, by the clock of the answers.
    touched: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Nodes {
    nodes: HashMap<NodeId, MediaNode>,
    by_path: BTreeMap<Vec<u8>, NodeId>,
    by_file: HashMap<FileId, NodeId>,
    serial: u64,
    /// Those under way may tell of a node that the kernel forgot.
    pub in_flight: Arc<InFlight>,
    /// Nodes that the kernel forgot.
    forgotten: Vec<NodeId>,
}

impl Nodes {
    pub fn get(&self, node: NodeId) -> Option<&MediaNode> {
        self.nodes.get(&node)
    }

    pub fn get_mut(&mut self, node: NodeId) -> Option<&mut MediaNode> {
        self.nodes.get_mut(&node)
    }

    pub fn at(&self, path: &[u8]) -> Option<NodeId> {
        self.by_path.get(path).copied()
    }

    /// The number under which an upper file is shown in a listing.
    pub fn number_of_file(&self, id: FileId) -> NodeId {
        self.by_file.get(&id).copied().unwrap_or_else(|| pure_of_file(id))
    }

    /// The node of this file if it is known, and known under other names only.
    pub fn elsewhere(&self, id: FileId, path: &[u8]) -> Option<NodeId> {
        let node = *self.by_file.get(&id)?;
        self.nodes[&node].paths.iter().all(|known| known != path).then_some(node)
    }

    /// The disk gave the place of the node's file to another one: the node stays without a file.
    pub fn lose_file(&mut self, node: NodeId) {
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

    /// The node for what is at a path now; a node that was there for something else loses that name.
    pub fn settle(&mut self, path: &[u8], scope: ScopeId, backing: Backing, pure: NodeId) -> NodeId {
        let known = match &backing {
            Backing::Upper(id) => self.by_file.get(id).copied(),
            _ => self.at(path).filter(|node| self.nodes[node].backing.same(&backing)),
        };
        if let Some(other) = self.at(path).filter(|other| Some(*other) != known) {
            self.lose_name(other, path);
        }
        let node = match known {
            Some(node) => {
                // The release may be another one, with other extended attributes: they do not count for the number.
                if let Some(held) = self.nodes.get_mut(&node) {
                    held.backing = backing;
                }
                node
            }
            None => self.insert(scope, backing, pure),
        };
        self.give_name(node, path);
        if let Some(held) = self.nodes.get_mut(&node) {
            held.touched = self.in_flight.now();
        }
        node
    }

    fn insert(&mut self, scope: ScopeId, backing: Backing, pure: NodeId) -> NodeId {
        let mut number = pure;
        while number.0 & !MEDIA == 0 || self.nodes.contains_key(&number) {
            // Taken by a node that moved away and is still held: any number will do.
            self.serial += 1;
            number = NodeId(MEDIA | self.serial);
        }
        if let Backing::Upper(id) = &backing {
            self.by_file.insert(*id, number);
        }
        self.nodes.insert(
            number,
            MediaNode {
                paths: Vec::new(),
                scope,
                orphan: None,
                backing,
                print: None,
                changing: 0,
                lookups: 0,
                touched: 0,
            },
        );
        number
    }

    pub fn give_name(&mut self, node: NodeId, path: &[u8]) {
        // A file of another release may still have it, which the name will show again and is not this node.
        if let Some(other) = self.at(path).filter(|other| *other != node) {
            self.lose_name(other, path);
        }
        self.by_path.insert(path.to_vec(), node);
        if let Some(node) = self.nodes.get_mut(&node)
            && !node.paths.iter().any(|known| known == path)
        {
            node.paths.push(path.to_vec());
            // A new name moves the ctime.
            node.print = None;
        }
    }

    /// A file that lost the last name we knew of, and that has another: it is no orphan. Gives what it was kept as.
    pub fn found_again(&mut self, node: NodeId) -> Option<Orphan> {
        self.nodes.get_mut(&node)?.orphan.take_if(|orphan| !matches!(orphan, Orphan::Gone))
    }

    /// The name stands for this node no more. A node that nobody holds is let go with its last name.
    pub fn lose_name(&mut self, node: NodeId, path: &[u8]) {
        if self.at(path) == Some(node) {
            self.by_path.remove(path);
        }
        if let Some(held) = self.nodes.get_mut(&node) {
            held.paths.retain(|known| known != path);
            held.print = None;
            if held.paths.is_empty() && held.lookups == 0 {
                held.touched = held.touched.max(self.in_flight.now());
                self.forgotten.push(node);
            }
        }
    }

    /// A file was copied up: the node stays.
    pub fn copied_up(&mut self, node: NodeId, id: FileId) {
        if let Some(held) = self.nodes.get_mut(&node) {
            held.backing = Backing::Upper(id);
            held.print = None;
            self.by_file.insert(id, node);
        }
    }

    /// A directory, or a file, was renamed with all below it.
    pub fn moved(&mut self, from: &[u8], to: &[u8]) {
        let below = [from, b"/"].concat();
        let mut paths: Vec<Vec<u8>> = self
            .by_path
            .range(below.clone()..)
            .map(|(path, _)| path.clone())
            .take_while(|path| path.starts_with(&below))
            .collect();
        paths.push(from.to_vec());
        let nodes: Vec<(Vec<u8>, NodeId)> =
            paths.into_iter().filter_map(|path| self.by_path.remove(&path).map(|node| (path, node))).collect();
        for (path, node) in nodes {
            let new = [to, &path[from.len()..]].concat();
            if let Some(held) = self.nodes.get_mut(&node) {
                held.paths.retain(|known| *known != path);
            }
            self.give_name(node, &new);
        }
    }

    /// The kernel was told of the node once more.
    pub fn count_lookup(&mut self, node: NodeId) {
        if let Some(held) = self.nodes.get_mut(&node) {
            held.lookups += 1;
        }
    }

    /// The kernel forgot that it was told so many times. Says whether many nodes wait already to be let go.
    pub fn forget(&mut self, node: NodeId, times: u64) -> bool {
        let Some(held) = self.nodes.get_mut(&node) else { return false };
        held.lookups = held.lookups.saturating_sub(times);
        if held.lookups == 0 {
            held.touched = held.touched.max(self.in_flight.now());
            self.forgotten.push(node);
        }
        self.forgotten.len() > MANY && !self.forgotten.len().is_multiple_of(MANY)
    }

    /// Files of releases that the kernel holds.
    pub fn held_of_releases(&self) -> Vec<(Arc<Release>, u32)> {
        let held = self.nodes.values().filter(|held| held.lookups > 0);
        let lower = held.filter_map(|held| match &held.backing {
            Backing::Lower { release, index, .. } => Some((release.clone(), *index)),
            Backing::Dir | Backing::Upper(_) => None,
        });
        // A symlink has no content.
        lower
            .filter(|(release, index)| release.manifest.node(*index).is_ok_and(|node| node.kind == Kind::File))
            .collect()
    }

    /// Lets go of nodes that the kernel does not hold and that no answer under way can tell it of. Gives them, and what
    /// else is kept of them, to `gone`, before their numbers can be given away.
    pub fn sweep(&mut self, mut gone: impl FnMut(NodeId, ScopeId, Option<Orphan>)) {
        let oldest = self.in_flight.oldest();
        for node in std::mem::take(&mut self.forgotten) {
            match self.nodes.get_mut(&node) {
                Some(held) if held.lookups == 0 && held.touched < oldest => {
                    gone(node, held.scope, held.orphan.take());
                    self.forget_node(node);
                }
                Some(held) if held.lookups == 0 => self.forgotten.push(node),
                _ => {}
            }
        }
    }

    fn forget_node(&mut self, node: NodeId) {
        let Some(gone) = self.nodes.remove(&node) else { return };
        for path in gone.paths {
            if self.at(&path) == Some(node) {
                self.by_path.remove(&path);
            }
        }
        if let Backing::Upper(id) = gone.backing
            && self.by_file.get(&id) == Some(&node)
        {
            self.by_file.remove(&id);
        }
    }
}

/// The number of an upper file, where nothing else is known of it.
pub fn pure_of_file(id: FileId) -> NodeId {
    NodeId(MEDIA | id.hash())
}
