//! How a manifest lies on disk: the header, the records, the extended attributes.
//!
//! ```text
//! header:   0 magic "verfsman"   8 version u32   12 count u32   16 files u64   24 bytes u64
//!          32 added i64 (seconds since 1970)     64 six sections, each offset u64, length u64
//!         192 BLAKE3 of the body                4064 BLAKE3 of the header's first 4,064 bytes
//! record:   0 nodeid u64    8 size u64, or range: first u32, length u32    16 mtime i64 (ns)
//!          24 name u32     28 parent u32        32 mode u16   34 owner u16   36 name length u8
//!          37 kind u8      38 xattr set u16, 0 for none
//! xattrs:   u32 count, then count u32 offsets from the section's start; a set: u16 count, then each
//!           u16 name length, u32 value length, name, value
//! ```

use super::Xattrs;
use crate::tree::StoredId;
use std::ops::Range;
use zerocopy::byteorder::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the header in bytes.
pub(super) const HEADER_LEN: usize = 4096;
const HASHED: usize = HEADER_LEN - 32;
const MAGIC: &[u8; 8] = b"verfsman";
/// The format that this verfs writes, and the newest that it reads.
pub(super) const VERSION: u32 = 1;

/// A node, as it lies in the file.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct NodeRecord {
    pub nodeid: U64,
    /// A file's size; a directory's or symlink's range.
    pub size: U64,
    pub mtime: I64,
    pub name: U32,
    pub parent: U32,
    pub mode: U16,
    pub owner: U16,
    pub name_len: u8,
    pub kind: u8,
    pub xattr: U16,
}

const _: () = assert!(size_of::<NodeRecord>() == 40);

impl NodeRecord {
    /// The number, as it lies here.
    pub(super) fn stored_id(&self) -> StoredId {
        StoredId(self.nodeid.get())
    }

    /// The size field as a range: first, length.
    pub(super) fn range(&self) -> (u32, u32) {
        let both = self.size.get();
        (both as u32, (both >> 32) as u32)
    }

    /// The size field for a range.
    pub(super) fn range_field(first: u32, len: u32) -> U64 {
        U64::new(u64::from(first) | u64::from(len) << 32)
    }
}

/// The parts of the file after the header.
#[derive(Clone, Copy)]
pub(super) enum Section {
    Records,
    Digests,
    Index,
    Owners,
    Names,
    Xattrs,
}

/// Number of sections.
pub(super) const SECTIONS: usize = 6;

/// Why a header was refused.
pub(super) enum Unreadable {
    /// A format of a later verfs.
    Newer(u32),
    /// Not what was written.
    Damaged(&'static str),
}

/// What the header says.
pub(super) struct Header {
    pub count: u32,
    pub files: u64,
    pub bytes: u64,
    pub added: i64,
    /// Offset and length of each section, checked against the length of the file.
    pub sections: [(usize, usize); SECTIONS],
    pub body_digest: [u8; 32],
}

impl Header {
    pub(super) fn range(&self, section: Section) -> Range<usize> {
        let (offset, len) = self.sections[section as usize];
        offset..offset + len
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &self.count.to_le_bytes());
        put(16, &self.files.to_le_bytes());
        put(24, &self.bytes.to_le_bytes());
        put(32, &self.added.to_le_bytes());
        for (i, (offset, len)) in self.sections.iter().enumerate() {
            put(64 + i * 16, &(*offset as u64).to_le_bytes());
            put(72 + i * 16, &(*len as u64).to_le_bytes());
        }
        put(192, &self.body_digest);
        let hash = blake3::hash(&out[..HASHED]);
        out[HASHED..].copy_from_slice(hash.as_bytes());
        out
    }

    pub(super) fn decode(file: &[u8]) -> Result<Self, Unreadable> {
        use Unreadable::Damaged;
        let bytes = file.get(..HEADER_LEN).ok_or(Damaged("it is shorter than its header"))?;
        if &bytes[..8] != MAGIC {
            return Err(Damaged("it does not begin as a manifest"));
        }
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
        if *blake3::hash(&bytes[..HASHED]).as_bytes() != bytes[HASHED..] {
            return Err(Damaged("its header does not match its checksum"));
        }
        if word(8) > VERSION {
            return Err(Unreadable::Newer(word(8)));
        }
        let mut sections = [(0, 0); SECTIONS];
        for (i, section) in sections.iter_mut().enumerate() {
            let (offset, len) = (long(64 + i * 16), long(72 + i * 16));
            let end = offset.checked_add(len).filter(|end| *end <= file.len() as u64);
            if end.is_none() || offset < HEADER_LEN as u64 {
                return Err(Damaged("it is cut off"));
            }
            *section = (offset as usize, len as usize);
        }
        let header = Self {
            count: word(12),
            files: long(16),
            bytes: long(24),
            added: long(32) as i64,
            sections,
            body_digest: bytes[192..224].try_into().unwrap_or_default(),
        };
        let count = header.count as usize;
        let wants = [(Section::Records, 40), (Section::Digests, 32), (Section::Index, 4)];
        if count == 0 || wants.iter().any(|(section, size)| header.range(*section).len() != count * size) {
            return Err(Damaged("its sections do not fit its count"));
        }
        Ok(header)
    }
}

/// Stands in a set beside the user's attributes and is none: the share of a large file that lies on a disk, in
/// 65,536ths of its size (u16, little-endian, rounded up). The rest are holes. No digest covers it.
const ON_DISK: &[u8] = b"verfs.on_disk";
/// From this size on, holes are noted.
const LARGE: u64 = 1 << 20;

/// A file's set, with what of its size lies on a disk.
pub(super) fn with_holes(user: &Xattrs, size: u64, on_disk: u64) -> Xattrs {
    // Never nothing: tar(1) takes a file without blocks for one without data, and some file systems say so too early.
    let share = (u128::from(on_disk.max(1)) << 16).div_ceil(u128::from(size.max(1)));
    let noted = u16::try_from(share).ok().filter(|_| size >= LARGE);
    let holes = noted.map(|share| (ON_DISK.to_vec(), share.to_le_bytes().to_vec()));
    user.iter().cloned().chain(holes).collect()
}

/// The user's attributes in a set.
pub(super) fn of_user(set: Xattrs) -> Xattrs {
    set.into_iter().filter(|(name, _)| name != ON_DISK).collect()
}

/// How many bytes of a file of this size lie on a disk, as its set says; all of it, if that says nothing.
pub(super) fn on_disk(set: &Xattrs, size: u64) -> u64 {
    let share = set.iter().find(|(name, _)| name == ON_DISK).and_then(|(_, share)| share[..].try_into().ok());
    share.map_or(size, |share| ((u128::from(size) * u128::from(u16::from_le_bytes(share))) >> 16) as u64)
}

/// Whether a file of this size may have holes that are noted.
pub(super) fn may_have_holes(size: u64) -> bool {
    size >= LARGE
}

/// The xattrs section for these sets.
pub(super) fn encode_xattrs(sets: &[Xattrs]) -> Vec<u8> {
    let mut offsets = (sets.len() as u32).to_le_bytes().to_vec();
    let mut body = Vec::new();
    let start = 4 + sets.len() * 4;
    for set in sets {
        offsets.extend(((start + body.len()) as u32).to_le_bytes());
        body.extend(encode_xattr_set(set));
    }
    offsets.extend(body);
    offsets
}

/// One set; also what is hashed to tell two sets apart.
pub(super) fn encode_xattr_set(set: &Xattrs) -> Vec<u8> {
    let mut out = (set.len() as u16).to_le_bytes().to_vec();
    for (name, value) in set {
        out.extend((name.len() as u16).to_le_bytes());
        out.extend((value.len() as u32).to_le_bytes());
        out.extend(name);
        out.extend(value);
    }
    out
}

/// The set with this number, if the section holds it.
pub(super) fn decode_xattrs(section: &[u8], set: u16) -> Option<Xattrs> {
    fn take<'a>(from: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
        let (head, rest) = from.split_at_checked(len)?;
        *from = rest;
        Some(head)
    }
    fn word(from: &mut &[u8]) -> Option<usize> {
        Some(u32::from_le_bytes(take(from, 4)?.try_into().ok()?) as usize)
    }
    fn half(from: &mut &[u8]) -> Option<usize> {
        Some(u16::from_le_bytes(take(from, 2)?.try_into().ok()?) as usize)
    }
    let mut head = section;
    let count = word(&mut head)?;
    if set as usize >= count {
        return None;
    }
    let offset = word(&mut head.get(set as usize * 4..)?)?;
    let mut body = section.get(offset..)?;
    let pairs = half(&mut body)?;
    let mut out = Vec::new();
    for _ in 0..pairs {
        let (name_len, value_len) = (half(&mut body)?, word(&mut body)?);
        out.push((take(&mut body, name_len)?.to_vec(), take(&mut body, value_len)?.to_vec()));
    }
    Some(out)
}
