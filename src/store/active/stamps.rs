//! Stamps: which switch last changed which node, and so what mtime is served.
//!
//! ```text
//! stamps file: batches, one per switch that changed something
//!   batch:  0 magic "VSTP"   4 count u32   8 BLAKE3 of the records, first 8 bytes
//!   record: 0 nodeid u64     8 second i64  16 nanoseconds u32      20 bytes, little-endian
//! ```
//!
//! How much of the file counts stands in `active`; what lies behind belongs to a switch that was never finished and is
//! cut off by the next one. In memory a node keeps two stamps, so that a switch in the making can write its own while
//! the epoch before it is still being served.

use crate::error::{Context, Error, Result};
use crate::fault;
use crate::store::Store;
use crate::store::durable::with_reserve;
use crate::tree::NodeId;
use dashmap::DashMap;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::Read;
use std::os::unix::fs::FileExt;

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
        // The map takes its shard from the top bits and its slot from the low ones; nodeids lack bit 63.
        self.0 = number.rotate_left(1);
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

const MAGIC: &[u8; 4] = b"VSTP";
const HEAD: usize = 16;
const RECORD: usize = 20;

/// A batch as it lies in the file; nothing for no stamps.
pub(crate) fn encode(batch: &[(NodeId, Stamp)]) -> Vec<u8> {
    if batch.is_empty() {
        return Vec::new();
    }
    let mut records = Vec::with_capacity(batch.len() * RECORD);
    for (node, stamp) in batch {
        records.extend(node.0.to_le_bytes());
        records.extend(stamp.second.to_le_bytes());
        records.extend(stamp.nanos.to_le_bytes());
    }
    let hash = blake3::hash(&records);
    [MAGIC, &(batch.len() as u32).to_le_bytes()[..], &hash.as_bytes()[..8], &records].concat()
}

/// Reads batches; the error says at which byte the first bad one begins.
pub(crate) fn decode(mut bytes: &[u8], mut each: impl FnMut(NodeId, Stamp)) -> std::result::Result<(), usize> {
    let whole = bytes.len();
    while !bytes.is_empty() {
        let at = whole - bytes.len();
        let (head, rest) = bytes.split_at_checked(HEAD).ok_or(at)?;
        let count = u32::from_le_bytes(head[4..8].try_into().map_err(|_| at)?) as usize;
        let (records, rest) = rest.split_at_checked(count * RECORD).ok_or(at)?;
        if &head[..4] != MAGIC || blake3::hash(records).as_bytes()[..8] != head[8..] {
            return Err(at);
        }
        for record in records.chunks_exact(RECORD) {
            let nodeid = u64::from_le_bytes(record[..8].try_into().map_err(|_| at)?);
            let second = i64::from_le_bytes(record[8..16].try_into().map_err(|_| at)?);
            let nanos = u32::from_le_bytes(record[16..].try_into().map_err(|_| at)?);
            each(NodeId(nodeid), Stamp { second, nanos: nanos.min(999_999_999) });
        }
        bytes = rest;
    }
    Ok(())
}

impl Store {
    fn stamps_file(&self) -> Result<File> {
        let path = self.root().join("stamps");
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .context(|| format!("opening {}", path.display()))
    }

    /// Reads the first `len` bytes of the stamps, all of which must be whole.
    pub fn read_stamps(&self, len: u64) -> Result<Stamps> {
        let stamps = Stamps::default();
        if len == 0 {
            return Ok(stamps);
        }
        let what = || format!("reading {}", self.root().join("stamps").display());
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        self.stamps_file()?.read_exact(&mut bytes).context(what)?;
        decode(&bytes, |node, stamp| stamps.put(&[(node, stamp)], 0)).map_err(|at| {
            Error::damaged(format!(
                "{} is damaged at byte {at}; restore it from a backup: without it files get older mtimes, and caches \
                 keep what they should not",
                self.root().join("stamps").display()
            ))
        })?;
        Ok(stamps)
    }

    /// Writes the stamps of a switch behind the first `len` bytes, durably. They count once `active` says so.
    pub fn append_stamps(&self, len: u64, batch: &[(NodeId, Stamp)]) -> Result<u64> {
        let bytes = encode(batch);
        with_reserve(self.dir(), || {
            let what = || format!("writing {}", self.root().join("stamps").display());
            let file = self.stamps_file()?;
            if file.metadata().context(what)?.len() != len {
                file.set_len(len).context(what)?;
            }
            if bytes.is_empty() {
                return Ok(len);
            }
            let written = file.write_all_at(&bytes, len).and_then(|()| file.sync_all());
            if written.is_err() {
                let _ = file.set_len(len);
            }
            written.context(what)?;
            fault::point("stamps.written");
            Ok(len + bytes.len() as u64)
        })
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
    fn batches_survive_the_file_and_a_torn_one_is_found() {
        let batch = [(A, stamp(10)), (NodeId(1), Stamp { second: -5, nanos: 999_999_999 })];
        let bytes = [encode(&batch), encode(&[(A, stamp(11))])].concat();
        let mut seen = Vec::new();
        decode(&bytes, |node, stamp| seen.push((node, stamp))).expect("whole");
        assert_eq!(seen, [batch[0], batch[1], (A, stamp(11))]);
        for cut in 1..bytes.len() {
            let whole = cut == HEAD + 2 * RECORD;
            assert_eq!(decode(&bytes[..cut], |_, _| {}).is_ok(), whole, "cut at {cut}");
        }
        for flip in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[flip] ^= 1;
            assert!(decode(&bad, |_, _| {}).is_err(), "flipped byte {flip}");
        }
        assert_eq!(Stamp::from_nanos(-1), Stamp { second: -1, nanos: 999_999_999 });
    }
}
