//! Contents on their way into the store: read, hashed, staged, synced, placed.
//!
//! What is hashed is what was copied, never what may still change: a small file is hashed in memory and
//! written from there, a large one is cloned first where the file system can, else hashed as it is written.
//!
//! Small contents that the store lacks become a pack, in the order of the tree. A few are not worth one: each is an
//! object of its own.

use super::walk::{Look, Walk, xattrs};
use super::{Progress, show};
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::store::durable::Dir;
use crate::store::lock::{Hold, Lock};
use crate::store::objects::{Objects, PACKS, PackWriter, place};
use crate::store::{Store, make_dir, sparse};
use crate::tree::{Digest, Kind};
use parking_lot::Mutex;
use rayon::prelude::*;
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Files up to this size are read whole.
const SMALL: u64 = 1 << 20;
/// Contents up to this size go into a pack.
const PACKED: u64 = 64 << 10;
/// More than so many small contents are worth a pack.
const FEW: usize = 64;
/// Files that are read before what is new of them is written.
const CHUNK: usize = 256;
/// How often one file that changes while it is read is read again.
const TRIES: usize = 3;

/// The work space of one import; it is removed when dropped.
pub struct Staging {
    path: PathBuf,
    objects: Objects,
    store: Dir,
    small: Mutex<Small>,
    new_bytes: AtomicU64,
    serial: AtomicU64,
    _lock: Lock,
}

/// Small contents that the store lacks.
enum Small {
    Few(Vec<(Digest, Vec<u8>)>),
    Pack(PackWriter),
}

impl Staging {
    /// Makes the work space and holds its lock, by which others see that it is in use.
    pub fn begin(store: &Store) -> Result<Self> {
        let path =
            store.root().join(format!("tmp/add-{}-{}", std::process::id(), crate::store::since_epoch().as_nanos()));
        make_dir(&path, 0o700)?;
        let lock = Lock::try_take(&path, Hold::Exclusive)?
            .ok_or_else(|| Error::failed(format!("{} is locked by another process", path.display())))?;
        Ok(Self {
            path,
            objects: Objects::of(store.root())?,
            store: Dir::open(store.root())?,
            small: Mutex::new(Small::Few(Vec::new())),
            new_bytes: AtomicU64::new(0),
            serial: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// Bytes of content that the store did not have.
    pub fn new_bytes(&self) -> u64 {
        self.new_bytes.load(Ordering::Relaxed)
    }

    /// Syncs what was staged, then gives it its place among the objects, durably.
    pub fn place(&self) -> Result<()> {
        self.finish_small()?;
        self.store.sync_file_system()?;
        fault::point("add.staged");
        let mut placed = false;
        for shard in fs::read_dir(&self.path).context(|| format!("reading {}", self.path.display()))? {
            let shard = shard.context(|| format!("reading {}", self.path.display()))?;
            if !shard.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let target = self.objects.root().join(shard.file_name());
            make_dir(&target, 0o700)?;
            for object in fs::read_dir(shard.path()).context(|| format!("reading {}", shard.path().display()))? {
                let object = object.context(|| format!("reading {}", shard.path().display()))?;
                let to = target.join(object.file_name());
                fs::rename(object.path(), &to).context(|| format!("placing {}", to.display()))?;
                fault::point("add.object-placed");
                placed = true;
            }
        }
        if placed {
            self.store.sync_file_system()?;
        }
        fault::point("add.objects-placed");
        Ok(())
    }

    /// Takes small contents; those that were taken before are left out.
    pub fn take(&self, contents: Vec<(Digest, Vec<u8>)>) -> Result<()> {
        let mut small = self.small.lock();
        for (digest, bytes) in contents {
            let len = bytes.len() as u64;
            let new = match &mut *small {
                Small::Pack(pack) => pack.append(digest, &bytes)?,
                Small::Few(few) if few.iter().any(|(known, _)| *known == digest) => false,
                Small::Few(few) => {
                    few.push((digest, bytes));
                    if few.len() > FEW {
                        let mut pack = PackWriter::begin(&self.path)?;
                        for (digest, bytes) in few.drain(..) {
                            pack.append(digest, &bytes)?;
                        }
                        *small = Small::Pack(pack);
                    }
                    true
                }
            };
            if new {
                self.new_bytes.fetch_add(len, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Stages the small contents: a pack, or an object for each.
    fn finish_small(&self) -> Result<()> {
        match std::mem::replace(&mut *self.small.lock(), Small::Few(Vec::new())) {
            Small::Few(few) => few.into_iter().try_for_each(|(digest, bytes)| {
                let (path, out) = self.temporary()?;
                (&out).write_all(&bytes).context(|| format!("writing {}", path.display()))?;
                self.keep(&path, &out, digest)
            }),
            Small::Pack(pack) => {
                let (path, name) = pack.finish()?;
                let packs = self.path.join(PACKS);
                make_dir(&packs, 0o700)?;
                fs::rename(&path, packs.join(name.to_hex())).context(|| format!("staging {}", path.display()))?;
                fault::point("add.object-staged");
                Ok(())
            }
        }
    }

    fn temporary(&self) -> Result<(PathBuf, File)> {
        let path = self.path.join(format!("part-{}", self.serial.fetch_add(1, Ordering::Relaxed)));
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .context(|| format!("making {}", path.display()))?;
        Ok((path, file))
    }

    /// Gives a staged temporary its hash as a name.
    fn keep(&self, temporary: &PathBuf, file: &File, digest: Digest) -> Result<()> {
        let what = || format!("staging {}", temporary.display());
        rustix::fs::fchmod(file, Mode::from_raw_mode(0o444)).context(what)?;
        let to = place(&self.path, digest);
        if let Some(shard) = to.parent() {
            make_dir(shard, 0o700)?;
        }
        fs::rename(temporary, &to).context(what)?;
        fault::point("add.object-staged");
        Ok(())
    }

    /// As [`Staging::keep`], of a content that may be known: then it goes.
    fn keep_if_new(&self, temporary: &PathBuf, file: &File, digest: Digest, len: u64) -> Result<()> {
        if self.knows(digest, len) {
            return fs::remove_file(temporary).context(|| format!("removing {}", temporary.display()));
        }
        self.keep(temporary, file, digest)?;
        self.new_bytes.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    fn knows(&self, digest: Digest, len: u64) -> bool {
        self.objects.has(digest, len) || len > PACKED && place(&self.path, digest).exists()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("removing {}: {error}; `verfs gc` will do it", self.path.display());
        }
    }
}

/// Reads every file of the walk into the staging area and notes the digests. Gives the paths that would not
/// stay the same while they were read.
pub fn stage(walk: &mut Walk, staging: &Staging, progress: &dyn Progress) -> Result<Vec<Vec<u8>>> {
    let shared = &*walk;
    let is_file = |number: &usize| shared.found[*number].node.kind == Kind::File;
    let files: Vec<usize> = (0..shared.found.len()).filter(is_file).collect();
    let mut read = Vec::with_capacity(files.len());
    let mut new = Vec::new();
    for chunk in files.chunks(CHUNK) {
        // While one chunk is read, what is new of the one before is written.
        let before = std::mem::take(&mut new);
        let (outcomes, taken) = rayon::join(
            || chunk.par_iter().map(|number| read_file(shared, *number, staging, progress)).collect::<Result<Vec<_>>>(),
            || staging.take(before),
        );
        taken?;
        for (number, mut outcome) in chunk.iter().zip(outcomes?) {
            if let Outcome::Read { digest, new: bytes, .. } = &mut outcome {
                new.extend(bytes.take().map(|bytes| (*digest, bytes)));
            }
            read.push((*number, outcome));
        }
    }
    staging.take(new)?;
    let mut changed = Vec::new();
    let mut unreadable = Vec::new();
    for (number, outcome) in read {
        let found = &mut walk.found[number];
        match outcome {
            Outcome::Read { digest, look, size, xattrs, new: _ } => {
                (found.node.digest, found.look) = (digest, look);
                (found.node.size, found.node.xattrs) = (size, xattrs);
            }
            Outcome::Changed => changed.push(found.path.clone()),
            Outcome::Unreadable(error) => unreadable.push(format!("{} ({error})", show(&found.path))),
        }
    }
    if !unreadable.is_empty() {
        unreadable.sort();
        return Err(Error::request(format!(
            "the source cannot be read in places: {}; make them readable and add again",
            unreadable.join(", ")
        )));
    }
    Ok(changed)
}

enum Outcome {
    Read {
        digest: Digest,
        look: Look,
        size: u64,
        xattrs: crate::store::manifest::Xattrs,
        /// A small content that the store lacks.
        new: Option<Vec<u8>>,
    },
    Changed,
    Unreadable(rustix::io::Errno),
}

fn read_file(walk: &Walk, number: usize, staging: &Staging, progress: &dyn Progress) -> Result<Outcome> {
    let found = &walk.found[number];
    for _ in 0..TRIES {
        let file = match walk.open(&found.path, OFlags::empty()) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => {
                return Ok(Outcome::Changed);
            }
            Err(error) => return Ok(Outcome::Unreadable(error)),
        };
        let what = || format!("reading {}", show(&found.path));
        let stat = rustix::fs::fstat(&file).context(what)?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(Outcome::Changed);
        }
        let size = stat.st_size as u64;
        let read =
            if size <= SMALL { copy_small(&file, size, staging) } else { copy_large(&file, size, staging, progress) };
        let read = match read {
            Ok(read) => read,
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EIO) => {
                return Ok(Outcome::Unreadable(rustix::io::Errno::IO));
            }
            Err(error) => return Err(error),
        };
        let look = Look::of(&rustix::fs::fstat(&file).context(what)?);
        if let (Some((digest, new)), true) = (read, look == Look::of(&stat)) {
            if size <= SMALL {
                progress.read(size);
            }
            // Mode and owner stay those of the walk: had they changed, the look at the end would differ.
            return Ok(match look == found.look {
                true => Outcome::Read { digest, look, size, xattrs: xattrs(&file).context(what)?, new },
                false => Outcome::Changed,
            });
        }
    }
    Ok(Outcome::Changed)
}

/// The hash of a file, and its bytes if they are still to be written.
type Copied = (Digest, Option<Vec<u8>>);

/// `None` if the file was not as long as it said.
fn copy_small(file: &File, size: u64, staging: &Staging) -> Result<Option<Copied>> {
    // There is room for more than it has: a read that gives just that has met the end. One call for nearly every file.
    let mut bytes = Vec::with_capacity(size as usize + 1);
    while bytes.len() as u64 <= size {
        match rustix::io::read(file, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => break,
            Ok(_) if bytes.len() as u64 == size => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context(|| "reading the source"),
        }
    }
    if bytes.len() as u64 != size {
        return Ok(None);
    }
    let digest = Digest::of(&bytes);
    if staging.knows(digest, size) {
        return Ok(Some((digest, None)));
    }
    if size <= PACKED {
        return Ok(Some((digest, Some(bytes))));
    }
    let (path, out) = staging.temporary()?;
    (&out).write_all(&bytes).context(|| format!("writing {}", path.display()))?;
    staging.keep_if_new(&path, &out, digest, size)?;
    Ok(Some((digest, None)))
}

fn copy_large(file: &File, size: u64, staging: &Staging, progress: &dyn Progress) -> Result<Option<Copied>> {
    let (path, out) = staging.temporary()?;
    let cloned = rustix::fs::ioctl_ficlone(&out, file).is_ok();
    let mut hasher = blake3::Hasher::new();
    let each = |piece: &[u8]| {
        hasher.update(piece);
        progress.read(piece.len() as u64);
    };
    let (from, to) = if cloned { (&out, None) } else { (file, Some(&out)) };
    let read = sparse::copy(from, to, each).context(|| format!("copying the source to {}", path.display()))?;
    if read != size {
        fs::remove_file(&path).context(|| format!("removing {}", path.display()))?;
        return Ok(None);
    }
    let digest = Digest(*hasher.finalize().as_bytes());
    staging.keep_if_new(&path, &out, digest, size)?;
    Ok(Some((digest, None)))
}
