//! Packs: many small contents in one file, each found by its hash.
//!
//! ```text
//! 0          the contents, one after the other, in the order of the tree that they came from
//! at         records, 48 bytes each, sorted by hash: 0 hash   32 offset u64   40 length u32   44 check u32
//! end - 64   0 magic "verfspak"   8 version u32   12 count u32   16 at u64
//!            32 BLAKE3 of the records and of the 32 bytes before it
//! ```
//!
//! Little-endian. A pack is written once and never changed; its name is that hash. Where it does not fit its own length
//! it is not opened, each record is checked when it is used, and everything by `verify`.

use crate::error::{Context, Error, Result};
use crate::store::look;
use crate::store::release::search::among_hashes;
use crate::sys::Mapped;
use crate::tree::Digest;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: &[u8; 8] = b"verfspak";
const VERSION: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PackRecord {
    digest: [u8; 32],
    offset: U64,
    len: U32,
    check: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Footer {
    magic: [u8; 8],
    version: U32,
    count: U32,
    at: U64,
    _unused: [u8; 8],
    hash: [u8; 32],
}

const RECORD: usize = size_of::<PackRecord>();
const FOOTER: usize = size_of::<Footer>();
const _: () = assert!(RECORD == 48 && FOOTER == 64);

impl PackRecord {
    fn new(digest: Digest, extent: Extent) -> Self {
        let mut record =
            Self { digest: digest.0, offset: U64::new(extent.offset), len: U32::new(extent.len), check: U32::new(0) };
        record.check = record.sum();
        record
    }

    fn sum(&self) -> U32 {
        let hash = blake3::hash(&self.as_bytes()[..RECORD - 4]);
        U32::from_bytes([0, 1, 2, 3].map(|at| hash.as_bytes()[at]))
    }
}

/// Where a content lies in its pack, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// Its length.
    pub len: u32,
}

/// A pack, open for reading.
#[derive(Debug)]
pub struct Pack {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
    file: Arc<File>,
    map: Mapped,
    count: usize,
    at: usize,
}

impl Pack {
    /// Opens a pack and checks that its parts fit its length.
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("opening the pack {}", path.display());
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(path).context(what)?;
        let meta = file.metadata().context(what)?;
        if meta.len() < FOOTER as u64 {
            return Err(damaged(path, "it is cut off"));
        }
        let map = Mapped::open(&file).context(what)?;
        let len = map.len();
        if len < FOOTER {
            return Err(damaged(path, "it is cut off"));
        }
        let footer = Footer::read_from_bytes(&map[len - FOOTER..]).map_err(|_| damaged(path, "it is cut off"))?;
        if footer.magic != *MAGIC {
            return Err(damaged(path, "it does not end as a pack"));
        }
        if footer.version.get() > VERSION {
            return Err(Error::failed(format!(
                "the pack {} has format {}, newer than this verfs reads; use the newer verfs",
                path.display(),
                footer.version
            )));
        }
        let (count, at) = (footer.count.get() as usize, footer.at.get() as usize);
        if at.checked_add(count * RECORD).and_then(|end| end.checked_add(FOOTER)) != Some(len) {
            return Err(damaged(path, "its parts do not fit its length"));
        }
        Ok(Self { path: path.to_owned(), id: (meta.dev(), meta.ino()), file: Arc::new(file), map, count, at })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its path still means this file, and all of it could be read so far: it may have been put right.
    pub fn is_still_there(&self) -> Result<bool> {
        let there = look::metadata(&self.path)?.is_some_and(|meta| (meta.dev(), meta.ino()) == self.id);
        Ok(there && !self.map.is_bad())
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Bytes of its contents.
    pub fn content_bytes(&self) -> u64 {
        self.at as u64
    }

    /// Where the content of this hash lies, if it is here.
    pub fn find(&self, digest: Digest) -> Result<Option<Extent>> {
        let records = self.records()?;
        let share = digest.0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        let found = among_hashes(records.len(), share, |number| Ok(records[number].digest.cmp(&digest.0)))?;
        let extent = found.map(|number| self.place(&records[number])).transpose();
        if self.map.is_bad() {
            return Err(damaged(&self.path, "a page of it cannot be read"));
        }
        extent
    }

    /// Every content.
    pub fn each(&self, mut content: impl FnMut(Digest, Extent)) -> Result<()> {
        for record in self.records()? {
            content(Digest(record.digest), self.place(record)?);
        }
        match self.map.is_bad() {
            true => Err(damaged(&self.path, "a page of it cannot be read")),
            false => Ok(()),
        }
    }

    /// Checks the records as a whole; the contents are their readers' to check.
    pub fn verify(&self) -> Result<()> {
        let footer = self.at + self.count * RECORD;
        let hash = blake3::hash(&self.map[self.at..footer + 32]);
        if self.map.is_bad() || *hash.as_bytes() != self.map[footer + 32..] {
            return Err(damaged(&self.path, "its records are not what was written"));
        }
        Ok(())
    }

    fn records(&self) -> Result<&[PackRecord]> {
        let bytes = &self.map[self.at..self.at + self.count * RECORD];
        <[PackRecord]>::ref_from_bytes(bytes).map_err(|_| damaged(&self.path, "its records are cut off"))
    }

    fn place(&self, record: &PackRecord) -> Result<Extent> {
        let extent = Extent { offset: record.offset.get(), len: record.len.get() };
        let end = extent.offset.checked_add(extent.len.into());
        if record.check != record.sum() || end.is_none_or(|end| end > self.at as u64) {
            return Err(damaged(&self.path, "a record of it is not what was written"));
        }
        Ok(extent)
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::damaged(format!(
        "the pack {} is damaged: {what}; restore it from a backup, or move it away and add the releases again that \
         need it",
        path.display()
    ))
}

/// A pack in the making.
#[derive(Debug)]
pub struct PackWriter {
    path: PathBuf,
    out: BufWriter<File>,
    at: u64,
    places: HashMap<Digest, Extent>,
}

impl PackWriter {
    /// Begins a pack in a directory.
    pub fn begin(dir: &Path) -> Result<Self> {
        let path = dir.join("part-pack");
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .context(|| format!("making {}", path.display()))?;
        Ok(Self { path, out: BufWriter::with_capacity(1 << 20, file), at: 0, places: HashMap::new() })
    }

    /// Whether the content was appended already.
    pub fn has(&self, digest: Digest) -> bool {
        self.places.contains_key(&digest)
    }

    /// Appends a content; false if it was there already.
    pub fn append(&mut self, digest: Digest, bytes: &[u8]) -> Result<bool> {
        if self.has(digest) {
            return Ok(false);
        }
        self.out.write_all(bytes).context(|| format!("writing {}", self.path.display()))?;
        self.places.insert(digest, Extent { offset: self.at, len: bytes.len() as u32 });
        self.at += bytes.len() as u64;
        Ok(true)
    }

    /// Ends it; gives the name that it is to have.
    pub fn finish(mut self) -> Result<(PathBuf, Digest)> {
        let what = || format!("writing {}", self.path.display());
        let mut records: Vec<PackRecord> =
            self.places.iter().map(|(digest, extent)| PackRecord::new(*digest, *extent)).collect();
        records.sort_unstable_by_key(|record| record.digest);
        let mut footer = Footer {
            magic: *MAGIC,
            version: U32::new(VERSION),
            count: U32::new(records.len() as u32),
            at: U64::new(self.at),
            _unused: [0; 8],
            hash: [0; 32],
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(records.as_bytes()).update(&footer.as_bytes()[..32]);
        footer.hash = *hasher.finalize().as_bytes();
        self.out.write_all(records.as_bytes()).context(what)?;
        self.out.write_all(footer.as_bytes()).context(what)?;
        self.out.flush().context(what)?;
        self.out.get_ref().set_permissions(fs::Permissions::from_mode(0o444)).context(what)?;
        Ok((self.path, Digest(footer.hash)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(dir: &Path, contents: &[Vec<u8>]) -> PathBuf {
        let mut writer = PackWriter::begin(dir).expect("begin");
        for bytes in contents {
            writer.append(Digest::of(bytes), bytes).expect("append");
        }
        let (path, name) = writer.finish().expect("finish");
        let extent = dir.join(name.to_hex());
        fs::rename(path, &extent).expect("rename");
        extent
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_content_is_found_as_it_was_and_no_other(
            contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..60),
            damage in any::<prop::sample::Index>(),
        ) {
            let dir = tempfile::tempdir().expect("scratch");
            let path = pack(dir.path(), &contents);
            let whole = fs::read(&path).expect("read");
            let pack = Pack::open(&path).expect("open");
            for bytes in &contents {
                let extent = pack.find(Digest::of(bytes)).expect("sound").expect("there");
                let start = extent.offset as usize;
                prop_assert_eq!(&whole[start..start + extent.len as usize], &bytes[..]);
            }
            prop_assert_eq!(pack.find(Digest::of(b"not there, and too long for a coincidence")).expect("sound"), None);
            pack.verify().expect("sound");
            let mut found = 0;
            pack.each(|_, _| found += 1).expect("sound");
            let different: std::collections::HashSet<_> = contents.iter().collect();
            prop_assert_eq!(found, different.len());

            // One bit of the records or of the footer that is not what was written: an error, or nothing is found, and
            // verify sees it; never another content.
            let at = pack.at + damage.index(whole.len() - pack.at);
            let mut bad = whole.clone();
            bad[at] ^= 1;
            let other = dir.path().join("bad");
            fs::write(&other, &bad).expect("write");
            if let Ok(pack) = Pack::open(&other) {
                prop_assert!(pack.verify().is_err());
                for bytes in &contents {
                    if let Ok(Some(extent)) = pack.find(Digest::of(bytes)) {
                        let start = extent.offset as usize;
                        prop_assert_eq!(&whole[start..start + extent.len as usize], &bytes[..]);
                    }
                }
            }
            fs::write(&other, &whole[..whole.len() - 1]).expect("write");
            prop_assert!(Pack::open(&other).is_err(), "cut off");
        }
    }
}
