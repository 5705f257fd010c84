//! The stat cache: what the last `add` read, by how it looked. A file that still looks so is not read again.
//!
//! A look (device, inode, size, mtime, ctime) tells a content if nothing can have changed the content since without
//! changing the ctime. Each way in which that could happen has its answer:
//! - a write in the same tick of the clock: a ctime less than [`RACY`] before the reading is not remembered;
//! - a write(2) that has set the ctime and still copies its bytes: ext4 and btrfs hold the inode's lock until it has,
//!   and lseek(2) with SEEK_DATA waits for that; xfs makes the reading wait;
//! - a store into a mapped page that was dirty already: the file system is synced between the look and the reading.
//!   That makes the page clean, and the next store into it a fault that sets the ctime (Linux: folio_mkclean,
//!   page_mkwrite);
//! - a crash, after which data on the disk may be newer than the ctime there: what another boot noted is not used;
//! - another file system under the same device number: what was noted of another disk (by its sequence number, Linux
//!   5.15) or with another id (statfs(2)) is not used.
//!
//! Not seen are bytes that the kernel writes later than [`RACY`] after it has set the ctime, where nothing waits for
//! them: in a write with O_DIRECT, a read with O_DIRECT into a mapping of the file, a page fault. File systems that are
//! not known to do all that are not trusted: all their files are read.
//!
//! ```text
//! stat-cache:  0 magic "verfsta2"   8 BLAKE3 of boot, disk and file system   40 records by device and inode
//! record: 0 device u64   8 inode u64   16 size i64   24 mtime i64, i64   40 ctime i64, i64 (seconds, nanoseconds)
//!        56 BLAKE3 of the content
//! ```
//!
//! Nothing depends on it. It is not synced, may be removed at any time, and a record counts only if the store has a
//! content of that hash and length.

use super::staging::Staging;
use super::walk::{Fingerprint, Walk};
use crate::error::{Context, Error, Result};
use crate::store::Store;
use crate::tree::{Digest, Kind};
use rayon::prelude::*;
use rustix::fs::{AtFlags, SeekFrom, StatxFlags};
use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;
use zerocopy::byteorder::little_endian::{I64, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const NAME: &str = "stat-cache";

/// Two writes closer than this may have one ctime: it has whole seconds in ext4 with inodes of 128 bytes.
const RACY: Duration = Duration::from_secs(2);
/// The file systems whose ctime can be trusted.
const TRUSTED: [&str; 3] = ["ext4", "xfs", "btrfs"];
const MAGIC: &[u8; 8] = b"verfsta2";
const HEAD: usize = 40;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CacheRecord {
    dev: U64,
    ino: U64,
    size: I64,
    mtime: [I64; 2],
    ctime: [I64; 2],
    digest: [u8; 32],
}

impl CacheRecord {
    fn new(look: &Fingerprint, digest: Digest) -> Self {
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
pub(super) struct StatCache {
    /// How the notes of this source begin; `None` if nothing is to be noted of it.
    head: Option<[u8; HEAD]>,
    bytes: Vec<u8>,
}

impl StatCache {
    /// Reads it; it is empty if anything is wrong with it, and with `forget`.
    pub(super) fn load(store: &Store, source: &Path, forget: bool) -> Self {
        let slower = |error: Error| log::warn!("{error}: this add reads every file");
        let head = head(source).unwrap_or_else(|error| {
            slower(error);
            None
        });
        let noted = match store.dir().read(NAME) {
            Ok(noted) => noted.filter(|_| !forget).unwrap_or_default(),
            Err(error) => {
                slower(error);
                Vec::new()
            }
        };
        Self::decode(head, noted)
    }

    /// What was noted counts if it begins with the head of this source. Its records may be anything.
    fn decode(head: Option<[u8; HEAD]>, noted: Vec<u8>) -> Self {
        let ours = head.is_some_and(|head| noted.starts_with(&head));
        Self { head, bytes: if ours { noted } else { Vec::new() } }
    }

    fn records(&self) -> &[CacheRecord] {
        let bytes = self.bytes.get(HEAD..).unwrap_or_default();
        <[CacheRecord]>::ref_from_prefix_with_elems(bytes, bytes.len() / size_of::<CacheRecord>())
            .map_or(&[], |(all, _)| all)
    }

    /// The content that a file of this look had.
    fn digest(&self, look: &Fingerprint) -> Option<Digest> {
        let records = self.records();
        let like = CacheRecord::new(look, Digest([0; 32]));
        let found = &records[records.binary_search_by(|record| record.order(&like)).ok()?];
        let same = CacheRecord { digest: like.digest, ..*found }.as_bytes() == like.as_bytes();
        same.then_some(Digest(found.digest))
    }

    /// Gives the files of a walk that are known their digests.
    pub(super) fn trust(&self, walk: &mut Walk, staging: &Staging) -> Result<()> {
        walk.found.par_iter_mut().filter(|found| found.node.kind == Kind::File).try_for_each(|found| {
            let Some(digest) = self.digest(&found.look) else { return Ok(()) };
            if staging.knows(digest, found.node.size)? {
                found.node.digest = digest;
                (found.known, found.trusted) = (true, true);
            }
            Ok(())
        })
    }
}

/// The door for fuzz/: what records that may be anything say of a look (device, inode, size, mtime, ctime as on disk).
#[cfg(feature = "faults")]
pub fn noted_digest(records: &[u8], look: [u64; 7]) -> Option<Digest> {
    let [dev, ino, size, rest @ ..] = look;
    let [mtime, mtime_nanos, ctime, ctime_nanos] = rest.map(|time| time as i64);
    let (mtime, ctime) = ((mtime, mtime_nanos), (ctime, ctime_nanos));
    let look = Fingerprint { dev, ino, size: size as i64, mode: 0, mtime, ctime };
    let head = [0; HEAD];
    StatCache::decode(Some(head), [&head, records].concat()).digest(&look)
}

/// What is to be noted for the next `add`.
pub(super) struct Notes {
    head: [u8; HEAD],
    records: Vec<CacheRecord>,
}

impl Notes {
    /// Of the files whose looks tell their contents. `None` if that is what the cache has.
    pub(super) fn of(walk: &Walk, cache: &StatCache) -> Option<Self> {
        let head = cache.head?;
        let trusted = || walk.found.par_iter().filter(|found| found.trusted);
        if trusted().all(|found| found.known) && trusted().count() == cache.records().len() {
            return None;
        }
        let mut records: Vec<CacheRecord> =
            trusted().map(|found| CacheRecord::new(&found.look, found.node.digest)).collect();
        records.par_sort_unstable_by(CacheRecord::order);
        Some(Self { head, records })
    }

    /// Puts them in the place of what was noted before.
    pub(super) fn save(&self, store: &Store, staging: &Staging) {
        let saved = staging.temporary().and_then(|(temporary, mut file)| {
            let what = || format!("writing {}", temporary.display());
            file.write_all(&self.head).and_then(|()| file.write_all(self.records.as_bytes())).context(what)?;
            fs::rename(&temporary, store.root().join(NAME)).context(what)
        });
        if let Err(error) = saved {
            log::warn!("{error}: the next add reads more files than it needs");
        }
    }
}

/// `None` if the file system of the source is not trusted, or the kernel does not say what it lies on.
fn head(source: &Path) -> Result<Option<[u8; HEAD]>> {
    let what = || format!("looking what {} lies on", source.display());
    let opened = File::open(source).context(what)?;
    let mount = rustix::fs::statx(&opened, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).context(what)?.stx_mnt_id;
    let mounts = procfs::process::Process::myself()
        .and_then(|me| me.mountinfo())
        .map_err(|error| Error::failed(format!("/proc/self/mountinfo cannot be read: {error}")))?;
    let Some(mount) = mounts.into_iter().find(|known| u64::try_from(known.mnt_id) == Ok(mount)) else {
        return Ok(None);
    };
    if !TRUSTED.contains(&mount.fs_type.as_str()) {
        return Ok(None);
    }
    let dev = rustix::fs::fstat(&opened).context(what)?.st_dev;
    // A btrfs has a device number that no disk has.
    let disk = match (mount.fs_type.as_str(), mount.mount_source) {
        ("btrfs", None) => return Ok(None),
        ("btrfs", Some(disk)) => rustix::fs::stat(disk).context(what)?.st_rdev,
        _ => dev,
    };
    let disk = format!("/sys/dev/block/{}:{}", rustix::fs::major(disk), rustix::fs::minor(disk));
    // A partition has that of its disk.
    let Some(sequence) = read(&Path::new(&disk).join("diskseq"))?.or(read(&Path::new(&disk).join("../diskseq"))?)
    else {
        return Ok(None);
    };
    let Some(boot) = read(Path::new("/proc/sys/kernel/random/boot_id"))? else { return Ok(None) };
    let id = rustix::fs::fstatvfs(&opened).context(what)?.f_fsid;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&boot).update(&dev.to_le_bytes()).update(&id.to_le_bytes()).update(disk.as_bytes()).update(&sequence);
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..].copy_from_slice(hasher.finalize().as_bytes());
    Ok(Some(head))
}

/// What a file holds; `None` if it is not there.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("reading {}", path.display())),
    }
}

/// Begun between the looks of a walk and the readings: says of which files the look then tells the content.
pub(super) struct Readings {
    dev: u64,
    /// When it began, in seconds and nanoseconds since 1970.
    began: (i64, i64),
}

impl Readings {
    /// Syncs the file system of the source. `None` if nothing is to be noted of it.
    pub(super) fn begin(walk: &Walk, cache: &StatCache) -> Option<Self> {
        cache.head?;
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        if let Err(error) = rustix::fs::syncfs(&walk.root) {
            log::warn!("syncing the source: {error}: the next add reads every file again");
            return None;
        }
        Some(Self { dev: walk.found[0].look.dev, began: (now.tv_sec, now.tv_nsec) })
    }

    /// Whether what is read from the file from now on is what this look tells for good.
    pub(super) fn settle(&self, look: &Fingerprint, file: &File) -> bool {
        let old = look.ctime < (self.began.0 - RACY.as_secs() as i64, self.began.1);
        if old && look.dev == self.dev {
            // Waits for a write that is under way; where the data begins does not matter.
            let _ = rustix::fs::seek(file, SeekFrom::Data(0));
            return true;
        }
        false
    }
}
