//! Objects: file contents under their hash. Whatever has its name in `objects/` is whole and was synced.
//!
//! A content is a file of its own, `objects/ab/cdef…`, or lies among many small ones in a pack, `objects/packs/…`. If
//! it is in both, the file of its own counts: so one damaged content of a pack can be put right by itself.

mod content;
mod pack;

pub use content::{Content, LARGE, let_go, seek_in_data};
pub use pack::{Extent, Pack, PackWriter};

use crate::error::{Context, Error, OnDisk, Result};
use crate::store::look;
use crate::tree::Digest;
use parking_lot::RwLock;
use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The directory of the packs, among the objects.
pub const PACKS: &str = "packs";

/// How often the list of packs is read again when it changed meanwhile.
const REFRESHES: usize = 5;

/// The `objects` directory of a store.
#[derive(Clone, Debug)]
pub struct Objects {
    root: PathBuf,
    packs: Arc<RwLock<Arc<Known>>>,
}

/// The packs as they were found last.
#[derive(Debug, Default)]
struct Known {
    packs: Vec<Arc<Pack>>,
    /// What is wrong with those that cannot be opened, a sentence each.
    bad: Vec<String>,
}

impl Objects {
    /// The objects of the store in this directory.
    pub fn of(store: &Path) -> Result<Self> {
        let objects = Self { root: store.join("objects"), packs: Arc::default() };
        objects.refresh()?;
        Ok(objects)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Looks which packs there are now: commands of other processes add them and take them away. If that cannot be
    /// seen, those that were known stay.
    pub(crate) fn refresh(&self) -> Result<()> {
        let before = self.known();
        // A pack that is gone since it was listed was written anew: the new one is in the next list.
        for _ in 0..REFRESHES {
            if let Some(found) = look(&self.root.join(PACKS), &before)? {
                *self.packs.write() = Arc::new(found);
                return Ok(());
            }
        }
        Err(Error::failed(format!("the packs in {} change all the time; try again", self.root.display())))
    }

    fn known(&self) -> Arc<Known> {
        self.packs.read().clone()
    }

    /// The packs that were found last.
    pub fn packs(&self) -> Vec<Arc<Pack>> {
        self.known().packs.clone()
    }

    /// What is wrong with packs that cannot be opened.
    pub fn bad_packs(&self) -> Vec<String> {
        self.known().bad.clone()
    }

    /// Where the object of this hash lies as a file of its own, or would.
    pub fn path(&self, digest: Digest) -> PathBuf {
        place(&self.root, digest)
    }

    /// The file that holds a content that is open.
    pub fn file_of(&self, content: &Content) -> PathBuf {
        match self.packed(content.digest()) {
            Ok(Some((pack, _))) if content.is_packed() => pack.path().to_owned(),
            _ => self.path(content.digest()),
        }
    }

    /// What a message calls a content: the file that holds it.
    pub fn show(&self, digest: Digest) -> String {
        let own = self.path(digest);
        match self.packed(digest) {
            Ok(Some((pack, _))) if matches!(look::is_there(&own), Ok(false)) => format!(
                "{} in the pack {} (a file {} with the right content is used instead of it)",
                digest.to_hex(),
                pack.path().display(),
                own.display()
            ),
            _ => own.display().to_string(),
        }
    }

    /// Whether the content is there with this length. Packs that others added meanwhile are not looked for.
    pub fn has(&self, digest: Digest, len: u64) -> Result<bool> {
        // What is damaged in a pack is put right by a file of its own.
        let packed = matches!(self.packed(digest), Ok(Some((_, extent))) if u64::from(extent.len) == len);
        Ok(packed || self.has_own(digest, len)?)
    }

    /// Whether it is there as a file of its own.
    pub fn has_own(&self, digest: Digest, len: u64) -> Result<bool> {
        Ok(look::metadata(&self.path(digest))?.is_some_and(|meta| meta.is_file() && meta.len() == len))
    }

    fn packed(&self, digest: Digest) -> Result<Option<(Arc<Pack>, Extent)>> {
        let known = self.known();
        let mut failed = None;
        for pack in &known.packs {
            match pack.find(digest) {
                Ok(None) => {}
                Ok(Some(extent)) => return Ok(Some((pack.clone(), extent))),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Opens an object. One that is missing or has another length is damage, and the error names it.
    pub fn open(&self, digest: Digest, len: u64) -> Result<Content> {
        let path = self.path(digest);
        // Without the atime: a first read must not wait for the disk to note that it was one.
        let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return self.open_packed(digest, len),
            Err(error) => return Err(error).on_disk("opening", || path.into_os_string().into_encoded_bytes()),
        };
        let shown = || path.as_os_str().as_encoded_bytes();
        let found = file.metadata().on_disk("looking at", shown)?.size();
        match found == len {
            true => Ok(Content::whole(digest, file, len)),
            false => Err(self.of_another_length(digest, found, len)),
        }
    }

    fn open_packed(&self, digest: Digest, len: u64) -> Result<Content> {
        let found = match self.packed(digest) {
            Ok(Some(found)) => Some(found),
            // In a pack that is not known yet, or was put right.
            _ => {
                self.refresh()?;
                self.packed(digest)?
            }
        };
        match found {
            Some((pack, extent)) if u64::from(extent.len) == len => Ok(Content::of_pack(digest, &pack, extent)),
            Some((_, extent)) => Err(self.of_another_length(digest, extent.len.into(), len)),
            None => Err(self.missing(digest)),
        }
    }

    fn missing(&self, digest: Digest) -> Error {
        let path = self.path(digest);
        Error::damaged(match &self.bad_packs()[..] {
            [] => format!(
                "the object {} is missing; restore it from a backup, or add a release with its content again",
                path.display()
            ),
            bad => format!("the object {} is missing; {}", path.display(), bad.join("; ")),
        })
    }

    fn of_another_length(&self, digest: Digest, found: u64, len: u64) -> Error {
        Error::damaged(format!(
            "the object {} has {found} bytes and should have {len}; restore it from a backup, or remove it and \
             add a release with its content again",
            self.show(digest)
        ))
    }

    /// Every object that is a file of its own: hash and length. A file that is no object is given to `stray`.
    pub fn each_own(&self, mut object: impl FnMut(Digest, u64), mut stray: impl FnMut(PathBuf)) -> Result<()> {
        let list = |path: &Path| -> Result<Vec<fs::DirEntry>> {
            fs::read_dir(path).and_then(Iterator::collect).context(|| format!("reading {}", path.display()))
        };
        for shard in list(&self.root)? {
            let kind = shard.file_type().context(|| format!("looking at {}", shard.path().display()))?;
            if !kind.is_dir() {
                stray(shard.path());
                continue;
            }
            let packs = shard.file_name() == PACKS;
            for entry in list(&shard.path())? {
                if packs {
                    if Digest::from_hex(entry.file_name().as_encoded_bytes()).is_none() {
                        stray(entry.path());
                    }
                    continue;
                }
                let hex = [shard.file_name().as_encoded_bytes(), entry.file_name().as_encoded_bytes()].concat();
                match Digest::from_hex(&hex) {
                    Some(digest) => {
                        let len = entry.metadata().context(|| format!("reading {}", entry.path().display()))?.len();
                        object(digest, len);
                    }
                    None => stray(entry.path()),
                }
            }
        }
        Ok(())
    }
}

/// The packs in a directory; those that were open stay so. `None` if one went away meanwhile.
fn look(dir: &Path, before: &Known) -> Result<Option<Known>> {
    let mut found = Known::default();
    let listed = fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let paths: Vec<PathBuf> = match listed {
        Ok(paths) => paths,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).on_disk("listing", || dir.as_os_str().as_encoded_bytes()),
    };
    for path in paths {
        if path.file_name().is_none_or(|name| Digest::from_hex(name.as_encoded_bytes()).is_none()) {
            continue;
        }
        match before.packs.iter().find(|pack| pack.path() == path) {
            Some(pack) if pack.is_still_there()? => found.packs.push(pack.clone()),
            _ => match Pack::open(&path) {
                Ok(pack) => found.packs.push(Arc::new(pack)),
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error @ (Error::Io { .. } | Error::Disk { .. })) => return Err(error),
                Err(error) => found.bad.push(error.to_string()),
            },
        }
    }
    Ok(Some(found))
}

/// The path of a hash below a directory: two digits, a slash, the rest.
pub fn place(root: &Path, digest: Digest) -> PathBuf {
    let hex = digest.to_hex();
    root.join(&hex[..2]).join(&hex[2..])
}
