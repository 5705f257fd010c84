//! The stat cache: what the last `add` read, by how it looked. A file that still looks so is not read again.
//!
//! A look (device, inode, size, mtime, ctime) tells a content if nothing can have changed the content since without
//! changing the ctime. Each way in which that could happen has its answer:
//! - a write in the same tick of the clock: a ctime less than [`RACY`] before the reading is not remembered;
//! - a write(2) that has set the ctime and still copies its bytes: ext4 and btrfs hold the inode's lock until it has, and
//!   lseek(2) with SEEK_DATA waits for that; xfs makes the reading wait;
//! - a store into a mapped page that was dirty already: the file system is synced between the look and the reading. That
//!   makes the page clean, and the next store into it a fault that sets the ctime (Linux: folio_mkclean, page_mkwrite);
//! - a crash, after which data on the disk may be newer than the ctime there: what another boot noted is not used.
//!
//! Left is a write with O_DIRECT that the disk takes longer than [`RACY`] for: nothing waits for it. File systems that are
//! not known to do all that are not trusted: all their files are read.
//!
//! ```text
//! stat-cache:  0 magic "verfsta1"   8 boot id, 36 characters   44 zeros   48 records by device and inode
//! record: 0 device u64   8 inode u64   16 size i64   24 mtime i64, i64   40 ctime i64, i64 (seconds, nanoseconds)
//!        56 BLAKE3 of the content
//! ```
//!
//! Nothing depends on it. It is not synced, may be removed at any time, and a record counts only if the store has a
//! content of that hash and length.

use super::staging::Staging;
use super::walk::{Look, Walk};
use crate::error::Context;
use crate::store::Store;
use crate::tree::{Digest, Kind};
use rayon::prelude::*;
use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;
use zerocopy::byteorder::little_endian::{I64, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Two writes closer than this may have one ctime: it has whole seconds in ext4 with inodes of 128 bytes.
const RACY: Duration = Duration::from_secs(2);
/// Magic numbers (statfs(2)) of the file systems whose ctime can be trusted: ext4, xfs, btrfs.
const TRUSTED: [i64; 3] = [0xEF53, 0x5846_5342, 0x9123_683E];
const MAGIC: &[u8; 8] = b"verfsta1";
const HEAD: usize = 48;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    dev: U64,
    ino: U64,
    size: I64,
    mtime: [I64; 2],
    ctime: [I64; 2],
    digest: [u8; 32],
}

impl Record {
    fn new(look: &Look, digest: Digest) -> Self {
        let time = |(seconds, nanos): (i64, i64)| [I64::new(seconds), I64::new(nanos)];
        Self {
            dev: look.dev.into(),
            ino: look.ino.into(),
            size: look.size.into(),
            mtime: time(look.mtime),
            ctime: time(look.ctime),
            digest: digest.0,
        }
    }

    fn order(&self, other: &Self) -> Ordering {
        (self.dev.get(), self.ino.get()).cmp(&(other.dev.get(), other.ino.get()))
    }
}

/// What the last `add` noted.
pub struct StatCache(Vec<u8>);

impl StatCache {
    /// Reads it. Whatever is wrong with it, it is empty then.
    pub fn load(store: &Store) -> Self {
        let bytes = fs::read(path(store)).unwrap_or_default();
        match head() {
            Some(head) if bytes.starts_with(&head) => Self(bytes),
            _ => Self::empty(),
        }
    }

    /// Knows no file.
    pub fn empty() -> Self {
        Self(Vec::new())
    }

    fn records(&self) -> &[Record] {
        let bytes = self.0.get(HEAD..).unwrap_or_default();
        <[Record]>::ref_from_prefix_with_elems(bytes, bytes.len() / size_of::<Record>()).map_or(&[], |(all, _)| all)
    }

    /// Gives the files of a walk that are known their digests.
    pub fn tell(&self, walk: &mut Walk, staging: &Staging) {
        let records = self.records();
        walk.found.par_iter_mut().filter(|found| found.node.kind == Kind::File).for_each(|found| {
            let like = Record::new(&found.look, found.node.digest);
            let Ok(at) = records.binary_search_by(|record| record.order(&like)) else { return };
            let digest = Digest(records[at].digest);
            let same = Record { digest: like.digest, ..records[at] }.as_bytes() == like.as_bytes();
            if same && staging.knows(digest, found.node.size) {
                found.node.digest = digest;
                (found.known, found.told) = (true, true);
            }
        });
    }
}

/// What is to be noted for the next `add`.
pub struct Notes(Vec<Record>);

impl Notes {
    /// Of the files whose looks tell their contents. `None` if that is what the cache has.
    pub fn of(walk: &Walk, cache: &StatCache) -> Option<Self> {
        let told = || walk.found.par_iter().filter(|found| found.told);
        if told().all(|found| found.known) && told().count() == cache.records().len() {
            return None;
        }
        let mut records: Vec<Record> = told().map(|found| Record::new(&found.look, found.node.digest)).collect();
        records.par_sort_unstable_by(Record::order);
        Some(Self(records))
    }

    /// Puts them in the place of what was noted before.
    pub fn save(&self, store: &Store, staging: &Staging) {
        let Some(head) = head() else { return };
        let saved = staging.temporary().and_then(|(temporary, mut file)| {
            let what = || format!("writing {}", temporary.display());
            file.write_all(&head).and_then(|()| file.write_all(self.0.as_bytes())).context(what)?;
            fs::rename(&temporary, path(store)).context(what)
        });
        if let Err(error) = saved {
            log::warn!("{error}: the next add reads more files than it needs");
        }
    }
}

fn path(store: &Store) -> PathBuf {
    store.root().join("stat-cache")
}

/// `None` where the kernel does not say which boot this is.
fn head() -> Option<[u8; HEAD]> {
    let boot = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..44].copy_from_slice(boot.get(..36)?);
    Some(head)
}

/// Begun between the looks of a walk and the readings: says of which files the look then tells the content.
pub struct Readings {
    dev: u64,
    /// When it began, in seconds and nanoseconds since 1970.
    began: (i64, i64),
}

impl Readings {
    /// Syncs the file system of the source. `None` if that cannot be trusted.
    pub fn begin(walk: &Walk) -> Option<Self> {
        let kind = rustix::fs::fstatfs(&walk.root).ok()?.f_type;
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let synced = TRUSTED.contains(&kind) && rustix::fs::syncfs(&walk.root).is_ok();
        synced.then(|| Self { dev: walk.found[0].look.dev, began: (now.tv_sec, now.tv_nsec) })
    }

    /// Whether what is read from the file from now on is what this look tells for good.
    pub fn settle(&self, look: &Look, file: &File) -> bool {
        let old = look.ctime < (self.began.0 - RACY.as_secs() as i64, self.began.1);
        if old && look.dev == self.dev {
            // Waits for a write that is under way; where the data begins does not matter.
            let _ = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(0));
            return true;
        }
        false
    }
}
