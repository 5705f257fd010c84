//! The file `stamps`: the stamps of all switches, appended switch by switch, and compacted when it has doubled.
//!
//! ```text
//! stamps: a head if it was compacted, then batches, one per switch that changed something
//!   head:   0 magic "VSTAMPS2"  8 position u64  16 takes u64  24 BLAKE3 of the bytes before, first 8 bytes
//!   batch:  0 magic "VSTP"      4 count u32      8 BLAKE3 of the records, first 8 bytes
//!   record: 0 nodeid u64        8 second i64    16 nanoseconds u32       20 bytes, little-endian
//! ```
//!
//! A nodeid is a [`StoredId`]: its lowest bit is not served, in older records one of the hash, in newer ones 0.
//!
//! `active` says how much counts: a *position*, the number of bytes that were ever appended. The first `takes` bytes of
//! a compacted file stand for all up to `position`, and what is appended follows. So a compacted file replaces another
//! while `active` stays as it is, and a crash leaves one of the two. What lies behind the position of `active` belongs
//! to a switch that was never finished and is cut off by the next one.

use super::stamps::{Stamp, Stamps};
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::store::Store;
use crate::store::durable::with_reserve;
use crate::store::release::manifest::Manifest;
use crate::tree::{NodeId, StoredId};
use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const NAME: &str = "stamps";
const HEAD_MAGIC: &[u8; 8] = b"VSTAMPS2";
const HEAD: usize = 32;
const BATCH_MAGIC: &[u8; 4] = b"VSTP";
const BATCH_HEAD: usize = 16;
const RECORD: usize = 20;

/// A file of fewer bytes stays as it is: 52,000 stamps.
const FLOOR: u64 = 1 << 20;
/// Stamps in one batch of a compacted file: 1 MB.
const TOGETHER: usize = 50_000;

/// Why stamps cannot be used.
enum Bad {
    /// They were not read.
    Unread(io::Error),
    /// They are not what was written; this says what is wrong.
    Damaged(String),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        Self::Unread(error)
    }
}

/// What the beginning of the file stands for: nothing, if it was never compacted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Head {
    position: u64,
    takes: u64,
}

impl Head {
    fn encode(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..8].copy_from_slice(HEAD_MAGIC);
        bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.takes.to_le_bytes());
        let hash = blake3::hash(&bytes[..24]);
        bytes[24..].copy_from_slice(&hash.as_bytes()[..8]);
        bytes
    }

    fn decode(bytes: &[u8; HEAD]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let head = Self { position: number(8)?, takes: number(16)? };
        (head.encode() == *bytes).then_some(head)
    }

    /// Of a file that has stamps.
    fn read(file: &File) -> std::result::Result<Self, Bad> {
        let mut magic = [0; BATCH_MAGIC.len()];
        file.read_exact_at(&mut magic, 0).map_err(cut_off)?;
        if magic == *BATCH_MAGIC {
            return Ok(Self::default());
        }
        let mut bytes = [0; HEAD];
        file.read_exact_at(&mut bytes, 0).map_err(cut_off)?;
        Self::decode(&bytes).ok_or_else(|| Bad::Damaged("at byte 0".to_owned()))
    }

    /// Where the stamps up to a position end in the file.
    fn end(self, position: u64) -> std::result::Result<u64, Bad> {
        let behind = position.checked_sub(self.position).and_then(|behind| behind.checked_add(self.takes));
        behind.ok_or_else(|| Bad::Damaged("it is of a later switch than `active`".to_owned()))
    }
}

fn cut_off(error: io::Error) -> Bad {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Bad::Damaged("it is cut off".to_owned()),
        _ => Bad::Unread(error),
    }
}

/// Where the stamps up to a position, not the first, end in the file, and where the batches begin.
fn extent(file: &File, position: u64) -> std::result::Result<(u64, u64), Bad> {
    let head = Head::read(file)?;
    let (begin, end) = (if head == Head::default() { 0 } else { HEAD as u64 }, head.end(position)?);
    let len = file.metadata()?.len();
    match len < end {
        true => Err(Bad::Damaged(format!("it has {len} bytes of {end}"))),
        false => Ok((begin, end)),
    }
}

/// A batch as it lies in the file; nothing for no stamps.
fn encode(batch: &[(NodeId, Stamp)]) -> Vec<u8> {
    if batch.is_empty() {
        return Vec::new();
    }
    let mut records = Vec::with_capacity(batch.len() * RECORD);
    for (node, stamp) in batch {
        records.extend(node.stored().0.to_le_bytes());
        records.extend(stamp.second.to_le_bytes());
        records.extend(stamp.nanos.to_le_bytes());
    }
    let hash = blake3::hash(&records);
    [BATCH_MAGIC, &(batch.len() as u32).to_le_bytes()[..], &hash.as_bytes()[..8], &records].concat()
}

/// Reads the batches from one byte of a file to another. It takes memory for one batch, and never more than there is
/// to read.
fn decode(
    file: &mut impl Read,
    begin: u64,
    end: u64,
    mut each: impl FnMut(NodeId, Stamp),
) -> std::result::Result<(), Bad> {
    let (mut at, mut records) = (begin, Vec::new());
    while at < end {
        let damaged = || Bad::Damaged(format!("at byte {at}"));
        let mut head = [0; BATCH_HEAD];
        let left = (end - at).checked_sub(BATCH_HEAD as u64).ok_or_else(damaged)?;
        file.read_exact(&mut head).map_err(cut_off)?;
        let [m0, m1, m2, m3, c0, c1, c2, c3, hash @ ..] = head;
        let len = u64::from(u32::from_le_bytes([c0, c1, c2, c3])) * RECORD as u64;
        if [m0, m1, m2, m3] != *BATCH_MAGIC || len > left {
            return Err(damaged());
        }
        records.clear();
        file.by_ref().take(len).read_to_end(&mut records)?;
        if records.len() as u64 != len || blake3::hash(&records).as_bytes()[..8] != hash {
            return Err(damaged());
        }
        for record in records.chunks_exact(RECORD) {
            let number = |at: usize| record.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            let nanos = record.last_chunk().copied().map(u32::from_le_bytes);
            let (Some(node), Some(second), Some(nanos)) = (number(0), number(8), nanos) else { return Err(damaged()) };
            let stamp = Stamp { second: i64::from_le_bytes(second), nanos: nanos.min(999_999_999) };
            each(StoredId(u64::from_le_bytes(node)).served(), stamp);
        }
        at += BATCH_HEAD as u64 + len;
    }
    Ok(())
}

/// Reads all stamps of the file up to a position, not the first.
fn scan(file: &File, position: u64, each: impl FnMut(NodeId, Stamp)) -> std::result::Result<(), Bad> {
    let (begin, end) = extent(file, position)?;
    let mut file = BufReader::new(file);
    file.seek_relative(begin as i64)?;
    decode(&mut file, begin, end, each)
}

impl Store {
    fn stamps_path(&self) -> PathBuf {
        self.root().join(NAME)
    }

    fn stamps_file(&self, flags: OFlags) -> Result<File> {
        self.dir().open_file(NAME, flags)
    }

    fn bad_stamps(&self, doing: &str, bad: Bad) -> Error {
        let path = self.stamps_path();
        match bad {
            Bad::Unread(error) => Error::io(format!("{doing} {}", path.display()), error),
            Bad::Damaged(why) => Error::damaged(format!(
                "{} is damaged ({why}); restore it from a backup: without it files get older mtimes, and caches keep \
                 what they should not",
                path.display()
            )),
        }
    }

    /// Reads the stamps up to a position, all of which must be whole.
    pub fn read_stamps(&self, position: u64) -> Result<Stamps> {
        let stamps = Stamps::default();
        if position == 0 {
            return Ok(stamps);
        }
        let file = self.stamps_file(OFlags::RDONLY)?;
        scan(&file, position, |node, stamp| stamps.put(&[(node, stamp)], 0))
            .map_err(|bad| self.bad_stamps("reading", bad))?;
        Ok(stamps)
    }

    /// The position behind all stamps, and the latest second among them.
    pub(super) fn all_stamps(&self) -> Result<(u64, Option<i64>)> {
        let file = match self.stamps_file(OFlags::RDONLY) {
            Err(error) if error.is_not_found() => return Ok((0, None)),
            opened => opened?,
        };
        let len = file.metadata().context(|| format!("looking at {}", self.stamps_path().display()))?.len();
        if len == 0 {
            return Ok((0, None));
        }
        let mut latest = None;
        let read = Head::read(&file).and_then(|head| {
            let position = len.checked_sub(head.takes).and_then(|behind| behind.checked_add(head.position));
            let position = position.ok_or_else(|| Bad::Damaged("it is cut off".to_owned()))?;
            scan(&file, position, |_, stamp| latest = latest.max(Some(stamp.second)))?;
            Ok(position)
        });
        Ok((read.map_err(|bad| self.bad_stamps("reading", bad))?, latest))
    }

    /// Writes the stamps of a switch behind a position, durably, and gives the next one. They count once `active` has
    /// it.
    pub fn append_stamps(&self, position: u64, batch: &[(NodeId, Stamp)]) -> Result<u64> {
        let bytes = encode(batch);
        if !bytes.is_empty() {
            self.keep_older_away();
        }
        with_reserve(self.dir(), || {
            let what = || format!("writing {}", self.stamps_path().display());
            let file = self.stamps_file(OFlags::RDWR | OFlags::CREATE)?;
            let end = match position {
                0 => 0,
                _ => extent(&file, position).map_err(|bad| self.bad_stamps("writing", bad))?.1,
            };
            if file.metadata().context(what)?.len() != end {
                file.set_len(end).context(what)?;
            }
            if bytes.is_empty() {
                return Ok(position);
            }
            let written = file.write_all_at(&bytes, end).and_then(|()| file.sync_all());
            if written.is_err() {
                let _ = file.set_len(end);
            }
            written.context(what)?;
            fault::point("stamps.written");
            Ok(position + bytes.len() as u64)
        })
    }

    /// Writes the file anew if it has grown to twice what the last compaction left: without what later switches
    /// replaced, and without nodes that no release of the store has and none that is served, whose manifests `served`
    /// gives, `None` for one that cannot be read. A switch that brings such a node back stamps it anew, so nobody sees
    /// an older mtime. `stamps` are those up to the position; once such nodes are gone from the disk they go from there
    /// too. A mount goes on serving from memory meanwhile.
    pub(super) fn compact_stamps(
        &self,
        position: u64,
        stamps: &Stamps,
        served: impl FnOnce(&mut dyn FnMut(Option<&Manifest>)),
    ) -> Result<()> {
        if position == 0 {
            return Ok(());
        }
        let bad = |bad| self.bad_stamps("reading", bad);
        let file = self.stamps_file(OFlags::RDONLY)?;
        let (head, (_, end)) = (Head::read(&file).map_err(bad)?, extent(&file, position).map_err(bad)?);
        if end < FLOOR.max(head.takes.saturating_mul(2)) {
            return Ok(());
        }
        let mut needed = Needed::new(stamps.last().collect());
        served(&mut |manifest| needed.note(manifest));
        self.releases()?.iter().for_each(|name| needed.note(self.manifest(name).ok().as_ref()));
        let (needed, unneeded) = needed.split();
        let mut bytes = vec![0; HEAD];
        needed.chunks(TOGETHER).for_each(|batch| bytes.extend(encode(batch)));
        let head = Head { position, takes: bytes.len() as u64 };
        bytes[..HEAD].copy_from_slice(&head.encode());
        self.dir().replace(NAME, &bytes, 0o644)?;
        fault::point("stamps.compacted");
        stamps.drop_nodes(unneeded.into_iter());
        log::info!("compacted {}: {end} bytes became {}", self.stamps_path().display(), bytes.len());
        Ok(())
    }
}

/// Stamps, and which of them manifests need. Both are walked once, in the order of their numbers.
struct Needed {
    stamps: Vec<(NodeId, Stamp)>,
    is_needed: Vec<bool>,
}

impl Needed {
    fn new(mut stamps: Vec<(NodeId, Stamp)>) -> Self {
        stamps.sort_unstable_by_key(|(node, _)| *node);
        Self { is_needed: vec![false; stamps.len()], stamps }
    }

    /// A manifest that cannot be read may have any node.
    fn note(&mut self, manifest: Option<&Manifest>) {
        let Some(manifest) = manifest else { return self.is_needed.fill(true) };
        let mut nodes = manifest.nodeids().peekable();
        for (at, (node, _)) in self.stamps.iter().enumerate() {
            while nodes.next_if(|other| matches!(other, Ok(other) if other < node)).is_some() {}
            match nodes.peek() {
                Some(Ok(other)) => self.is_needed[at] |= other == node,
                Some(Err(_)) => return self.is_needed.fill(true),
                None => return,
            }
        }
    }

    /// Those that are needed, and the nodes of the others.
    fn split(self) -> (Vec<(NodeId, Stamp)>, Vec<NodeId>) {
        let (needed, others): (Vec<_>, Vec<_>) = self.stamps.into_iter().zip(self.is_needed).partition(|(_, is)| *is);
        (needed.into_iter().map(|(stamp, _)| stamp).collect(), others.into_iter().map(|((node, _), _)| node).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(100);

    fn stamp(second: i64) -> Stamp {
        Stamp { second, nanos: 1 }
    }

    fn decoded(bytes: &[u8]) -> Option<Vec<(NodeId, Stamp)>> {
        let mut seen = Vec::new();
        decode(&mut &*bytes, 0, bytes.len() as u64, |node, stamp| seen.push((node, stamp))).ok().map(|()| seen)
    }

    #[test]
    fn batches_survive_the_file_and_a_torn_one_is_found() {
        let batch = [(A, stamp(10)), (NodeId(1), Stamp { second: -5, nanos: 999_999_999 })];
        let bytes = [encode(&batch), encode(&[(A, stamp(11))])].concat();
        assert_eq!(decoded(&bytes).as_deref(), Some(&[batch[0], batch[1], (A, stamp(11))][..]));
        for cut in 1..bytes.len() {
            let whole = cut == BATCH_HEAD + 2 * RECORD;
            assert_eq!(decoded(&bytes[..cut]).is_some(), whole, "cut at {cut}");
        }
        for flip in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[flip] ^= 1;
            assert!(decoded(&bad).is_none(), "flipped byte {flip}");
        }
    }

    #[test]
    fn stamps_of_numbers_that_had_a_bit_more_are_those_of_the_numbers_that_are_served() {
        let stored = [StoredId::of_dir(b"a"), StoredId::of_dir(b"b"), StoredId(1), StoredId((1 << 40) + 1)];
        let records: Vec<u8> = stored
            .iter()
            .flat_map(|id| [&id.0.to_le_bytes()[..], &10i64.to_le_bytes(), &1u32.to_le_bytes()].concat())
            .collect();
        let hash = blake3::hash(&records);
        let older = [BATCH_MAGIC, &4u32.to_le_bytes()[..], &hash.as_bytes()[..8], &records].concat();
        let served = [NodeId::of_dir(b"a"), NodeId::of_dir(b"b"), NodeId::ROOT, NodeId(1 << 39)];
        let stamps = served.map(|node| (node, stamp(10)));
        assert_eq!(decoded(&older).as_deref(), Some(&stamps[..]));
        assert_eq!(decoded(&encode(&stamps)).as_deref(), Some(&stamps[..]));
    }

    #[test]
    fn a_head_survives_and_every_flipped_bit_is_seen() {
        let head = Head { position: 5_000_000, takes: 2_000 };
        assert_eq!(Head::decode(&head.encode()), Some(head));
        for bit in 0..HEAD * 8 {
            let mut bad = head.encode();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&bad), None, "bit {bit}");
        }
        assert_eq!(head.end(5_000_100).ok(), Some(2_100));
        assert!(head.end(4_999_999).is_err() && head.end(u64::MAX).is_ok());
        assert!(Head { position: 0, takes: 2_000 }.end(u64::MAX).is_err(), "it does not wrap");
    }
}
