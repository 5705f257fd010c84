//! What a switch under way makes uncertain.

use super::gate::Gate;
use crate::fault::{self, Skip};
use crate::tree::{ChangeSet, NodeId, name_key};
use parking_lot::Mutex;
use std::collections::HashSet;

/// From the opening of the transition to the swap: the names and nodes that the switch changes.
#[derive(Debug, Default)]
pub struct Transition {
    names: HashSet<u64>,
    nodes: HashSet<NodeId>,
    /// Keeps newcomers waiting shortly before the swap.
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

    /// Whether the name changes; if so it is noted as told to the kernel, which knows the directory by another number
    /// perhaps.
    pub(super) fn note_if_changed(&self, dir: NodeId, name: &[u8], known_as: impl FnOnce() -> NodeId) -> bool {
        if fault::skips(Skip::Ttl0) || !self.changes(dir, name) {
            return false;
        }
        let known_as = known_as();
        self.noted.lock().insert((known_as, name.to_vec()));
        true
    }

    pub(super) fn touches(&self, node: NodeId) -> bool {
        !fault::skips(Skip::Ttl0) && self.nodes.contains(&node)
    }

    /// The names that were told since the transition began, in an order that a simulation repeats.
    pub fn noted(&self) -> Vec<(NodeId, Vec<u8>)> {
        let mut noted: Vec<_> = self.noted.lock().iter().cloned().collect();
        noted.sort_unstable();
        noted
    }
}
