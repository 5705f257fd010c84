//! Bounds the memory that names take: what was not looked up for the longest time is dropped at the kernel, which then
//! forgets it.
//!
//! A file that is open stays, and so does the directory of a name that stays.

use super::super::Media;
use super::super::node::Backing;
use super::Nodes;
use super::places::PlaceId;
use crate::error::Result;
use crate::tree::{LayerPath, NodeId};

/// Names that are known, at most but for what came in the last half second and for what is open. Each takes some 500
/// bytes and its length.
const MOST: usize = 100_000;
/// To so many they are brought back.
const FEWER: usize = MOST / 8 * 7;
/// Names that are looked for under the lock of the nodes at a time.
const AT_A_TIME: usize = 256;

/// A name that was not looked up for long.
#[derive(Debug)]
pub struct Unused {
    /// The directory that it is in, as the kernel knows it.
    pub dir: NodeId,
    /// The name in it.
    pub name: Vec<u8>,
    /// Where it is in the docroot, if it is a directory: something may be mounted there.
    pub dir_at: Option<Vec<u8>>,
    node: NodeId,
    path: LayerPath,
    looks: u64,
}

impl Nodes {
    /// How many names are known.
    fn names(&self) -> usize {
        self.places.len()
    }

    /// The nodes that were not looked up for the longest time.
    fn oldest(&self, most: usize) -> Vec<NodeId> {
        self.nodes.iter().rev().take(most).map(|(node, _)| *node).collect()
    }

    /// A node goes behind all others, as if it was looked up now.
    fn promote(&mut self, node: NodeId) {
        self.nodes.promote(&node);
    }

    /// A name in which nothing lies that is known: the directory's node, the name there, and its path.
    fn last_name(&self, place: PlaceId) -> Option<(NodeId, Vec<u8>, LayerPath)> {
        let (dir, name) = self.places.name_in(place).filter(|_| self.places.is_last(place))?;
        Some((dir, name.to_vec(), self.places.path(place).ok()??))
    }

    /// Names of those nodes that were not looked up for the longest time. Later calls give others first.
    fn longest_unused(&mut self, most: usize) -> Vec<Unused> {
        let mut found = Vec::new();
        for node in self.oldest(most) {
            self.promote(node);
            found.extend(self.last_names(node, most - found.len()));
            if found.len() == most {
                break;
            }
        }
        found
    }

    /// So many names of a node in which nothing lies that is known.
    fn last_names(&self, node: NodeId, most: usize) -> Vec<Unused> {
        let Some(held) = self.get(node).filter(|held| held.moving == 0) else { return Vec::new() };
        let is_dir = matches!(held.backing, Backing::Dir);
        let unused = |place: &PlaceId| {
            let (dir, name, path) = self.last_name(*place)?;
            let dir_at = is_dir.then(|| path.in_docroot().to_vec());
            Some(Unused { dir, name, dir_at, node, path, looks: held.looks })
        };
        held.names.iter().take(most).filter_map(unused).collect()
    }

    /// The kernel dropped a name. If its file has others, it is known by those; else the kernel forgets the node.
    fn dropped(&mut self, unused: &Unused) {
        let others = |looks, names: usize| looks == unused.looks && names > 1;
        if self.get(unused.node).is_some_and(|held| others(held.looks, held.names.len())) {
            self.lose_name(unused.node, &unused.path);
        }
    }
}

impl Media {
    /// Drops names at the kernel if too many are known, and those of files that were removed behind the mount: their
    /// room on the disk is free once the kernel forgets them. `drop` leaves those that it dropped; it may take time.
    pub fn drop_unused(&self, drop: impl Fn(&mut Vec<Unused>) -> Result<()>) -> Result<()> {
        let dropped = |mut names: Vec<Unused>| -> Result<Vec<Unused>> {
            drop(&mut names)?;
            for name in &names {
                self.nodes.lock().dropped(name);
            }
            Ok(names)
        };
        let mut removed: Vec<Unused> = Vec::new();
        for node in self.descriptors.removed() {
            removed.extend(self.nodes.lock().last_names(node, AT_A_TIME - removed.len()));
        }
        if !removed.is_empty() {
            for name in dropped(removed)? {
                self.descriptors.told_removed(name.node);
            }
        }
        let mut left = self.nodes.lock().names();
        if left <= MOST {
            return Ok(());
        }
        while left > 0 && self.nodes.lock().names() > FEWER {
            left = left.saturating_sub(AT_A_TIME);
            let unused = self.nodes.lock().longest_unused(AT_A_TIME);
            dropped(unused)?;
        }
        Ok(())
    }
}
