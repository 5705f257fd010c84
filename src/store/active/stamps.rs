//! Stamps: which switch last changed which node, and so what mtime is served.
//!
//! In memory a node keeps two stamps, so that a switch in the making can write its own while the epoch before it is
//! still being served. On disk they lie in the file `stamps` (see stamps_file.rs).

use crate::tree::NodeId;
use dashmap::DashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A served mtime: whole seconds since 1970, and nanoseconds, which are the number of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Seconds since 1970.
    pub second: i64,
    /// Nanoseconds.
    pub nanos: u32,
}

impl Stamp {
    /// Nanoseconds since 1970.
    pub fn as_nanos(self) -> i64 {
        self.second.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nanos))
    }

    /// The stamp for this many nanoseconds since 1970.
    pub fn from_nanos(nanos: i64) -> Self {
        Self { second: nanos.div_euclid(1_000_000_000), nanos: nanos.rem_euclid(1_000_000_000) as u32 }
    }
}

/// Nodeids are hashes already.
#[derive(Default)]
pub(crate) struct NodeIdHasher(u64);

impl Hasher for NodeIdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The map takes its shard from the top bits and its slot from the low ones; nodeids here lack the top two.
        self.0 = number.rotate_left(2);
    }
}

#[derive(Clone, Copy)]
struct LastTwo {
    /// The switch that wrote `now`.
    switch: u32,
    now: Stamp,
    /// What held before that switch.
    before: Option<Stamp>,
}

/// The stamps of all nodes, in memory.
#[derive(Default)]
pub struct Stamps {
    nodes: DashMap<u64, LastTwo, BuildHasherDefault<NodeIdHasher>>,
}

impl std::fmt::Debug for Stamps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stamps({} nodes)", self.nodes.len())
    }
}

impl Stamps {
    /// The stamp of a node as of a switch; `None` if no switch up to then changed it.
    pub fn get(&self, node: NodeId, switch: u32) -> Option<Stamp> {
        let stamps = self.nodes.get(&node.0)?;
        if stamps.switch <= switch { Some(stamps.now) } else { stamps.before }
    }

    /// Notes the stamps of a switch. Epochs of earlier switches do not see them.
    pub fn put(&self, batch: &[(NodeId, Stamp)], switch: u32) {
        for (node, stamp) in batch {
            self.nodes
                .entry(node.0)
                .and_modify(|stamps| {
                    if stamps.switch < switch {
                        stamps.before = Some(stamps.now);
                    }
                    (stamps.switch, stamps.now) = (switch, *stamp);
                })
                .or_insert(LastTwo { switch, now: *stamp, before: None });
        }
    }

    /// The last stamp of each node.
    pub(super) fn last(&self) -> impl Iterator<Item = (NodeId, Stamp)> {
        self.nodes.iter().map(|node| (NodeId(*node.key()), node.now))
    }

    /// Drops the stamps of nodes that nobody can ask for.
    pub(super) fn drop_nodes(&self, nodes: impl Iterator<Item = NodeId>) {
        for node in nodes {
            self.nodes.remove(&node.0);
        }
        self.nodes.shrink_to_fit();
    }

    /// Takes back the stamps of a switch that did not happen.
    pub fn take_back(&self, batch: &[(NodeId, Stamp)], switch: u32) {
        for (node, _) in batch {
            let Some(mut stamps) = self.nodes.get_mut(&node.0) else { continue };
            if stamps.switch != switch {
                continue;
            }
            match stamps.before {
                // Which switch wrote it no longer matters: it was an earlier one.
                Some(before) => *stamps = LastTwo { switch: 0, now: before, before: None },
                None => {
                    drop(stamps);
                    self.nodes.remove(&node.0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(100);

    fn stamp(second: i64) -> Stamp {
        Stamp { second, nanos: 1 }
    }

    #[test]
    fn a_view_sees_the_stamps_of_its_own_switch_and_earlier() {
        let stamps = Stamps::default();
        stamps.put(&[(A, stamp(10))], 1);
        stamps.put(&[(A, stamp(20))], 2);
        assert_eq!(stamps.get(A, 1), Some(stamp(10)));
        assert_eq!(stamps.get(A, 2), Some(stamp(20)));
        assert_eq!(stamps.get(NodeId(7), 2), None);
    }

    #[test]
    fn stamps_of_a_switch_that_did_not_happen_are_taken_back() {
        let stamps = Stamps::default();
        stamps.put(&[(A, stamp(10))], 1);
        let batch = [(A, stamp(20)), (NodeId(200), stamp(20))];
        stamps.put(&batch, 2);
        stamps.take_back(&batch, 2);
        assert_eq!(stamps.get(A, 2), Some(stamp(10)));
        assert_eq!(stamps.get(NodeId(200), 2), None);
        stamps.put(&[(A, stamp(30))], 2);
        assert_eq!(stamps.get(A, 1), Some(stamp(10)));
    }

    #[test]
    fn stamps_before_1970_have_nanoseconds_too() {
        assert_eq!(Stamp::from_nanos(-1), Stamp { second: -1, nanos: 999_999_999 });
    }
}
