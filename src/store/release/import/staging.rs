//! The work space in which contents wait for their place among the objects: staged, synced, placed.
//!
//! Small contents that the store lacks become a pack, in the order in which they are taken. A few are not worth one:
//! each is an object of its own.

use crate::error::{Context, Error, Result};
use crate::fault;
use crate::store::durable::Dir;
use crate::store::lock::{Hold, Lock};
use crate::store::release::objects::{Objects, PACKS, PackWriter, place};
use crate::store::{Store, look, make_dir};
use crate::tree::Digest;
use parking_lot::Mutex;
use rustix::fs::Mode;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Contents up to this size go into a pack.
pub(super) const PACKED: u64 = 64 << 10;
/// More than so many small contents are worth a pack.
const FEW: usize = 64;

/// The work space of one command; it is removed when dropped.
pub(crate) struct Staging {
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
    pub(crate) fn begin(store: &Store) -> Result<Self> {
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
    pub(crate) fn new_bytes(&self) -> u64 {
        self.new_bytes.load(Ordering::Relaxed)
    }

    /// Syncs what was staged, then gives it its place among the objects, durably.
    pub(crate) fn place(&self) -> Result<()> {
        self.finish_small()?;
        self.store.sync_file_system()?;
        fault::point("add.staged");
        let mut placed = false;
        for shard in fs::read_dir(&self.path).context(|| format!("reading {}", self.path.display()))? {
            let shard = shard.context(|| format!("reading {}", self.path.display()))?;
            if !shard.file_type().context(|| format!("looking at {}", shard.path().display()))?.is_dir() {
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
    pub(crate) fn take(&self, contents: Vec<(Digest, Vec<u8>)>) -> Result<()> {
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

    pub(super) fn temporary(&self) -> Result<(PathBuf, File)> {
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
    pub(super) fn keep_if_new(&self, temporary: &PathBuf, file: &File, digest: Digest, len: u64) -> Result<()> {
        if self.knows(digest, len)? {
            return fs::remove_file(temporary).context(|| format!("removing {}", temporary.display()));
        }
        self.keep(temporary, file, digest)?;
        self.new_bytes.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn knows(&self, digest: Digest, len: u64) -> Result<bool> {
        Ok(self.objects.has(digest, len)? || len > PACKED && look::is_there(&place(&self.path, digest))?)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("removing {}: {error}; `verfs gc` will do it", self.path.display());
        }
    }
}
