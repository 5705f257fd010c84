//! Nodes whose attributes a switch changed and that the kernel has not asked for since.
//!
//! The first answer for each holds for no time, because the kernel believes an answer an instant before it has taken it
//! over (fuse_change_attributes_common sets `i_time` first, and stat(2) takes no lock): a reader in that instant sees
//! the attributes from before. Two answers at once about the same node can still let it happen.

use crate::tree::NodeId;
use dashmap::DashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many nodes are carried over from one switch to the next: a bound for the memory that they take.
const MOST_CARRIED: usize = 100_000;

/// The nodes.
#[derive(Debug, Default)]
pub(super) struct PendingAttrs {
    nodes: DashSet<NodeId>,
    left: AtomicUsize,
}

impl PendingAttrs {
    /// After a switch that changed `nodes`, with what is still pending from the switches before.
    pub(super) fn new(nodes: impl Iterator<Item = NodeId>, before: &Self) -> Self {
        let before = before.nodes.iter().map(|node| *node).take(MOST_CARRIED);
        let nodes: DashSet<NodeId> = nodes.chain(before).collect();
        Self { left: AtomicUsize::new(nodes.len()), nodes }
    }

    pub(super) fn contains(&self, node: NodeId) -> bool {
        self.left.load(Ordering::Relaxed) > 0 && self.nodes.contains(&node)
    }

    /// A node is known by another number.
    pub(super) fn rename(&self, node: NodeId, known_as: NodeId) {
        // Both are there for an instant, so that nobody finds neither.
        if node == known_as || !self.contains(node) || !self.nodes.insert(known_as) {
            return;
        }
        // Somebody else did the same meanwhile, and it was sent: it is taken back, or what was sent of it now counts
        // for nothing.
        if self.nodes.remove(&node).is_none() && self.nodes.remove(&known_as).is_none() {
            self.left.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The node's attributes are being sent.
    pub(super) fn sent(&self, node: NodeId) {
        let was_there = self.contains(node) && self.nodes.remove(&node).is_some();
        self.left.fetch_sub(was_there.into(), Ordering::Relaxed);
    }
}
