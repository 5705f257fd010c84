//! Objects: file contents under their hash. Whatever has its name in `objects/` is whole and was synced.

use crate::error::{Context, Error, Result};
use crate::tree::Digest;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The `objects` directory of a store.
#[derive(Clone, Debug)]
pub struct Objects {
    root: PathBuf,
}

impl Objects {
    /// The objects of the store in this directory.
    pub fn of(store: &Path) -> Self {
        Self { root: store.join("objects") }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the object of this hash lies, or would.
    pub fn path(&self, digest: Digest) -> PathBuf {
        place(&self.root, digest)
    }

    /// Whether the object is there with this length.
    pub fn has(&self, digest: Digest, len: u64) -> bool {
        fs::metadata(self.path(digest)).is_ok_and(|meta| meta.is_file() && meta.len() == len)
    }

    /// Opens an object. One that is missing or has another length is damage, and the error names it.
    pub fn open(&self, digest: Digest, len: u64) -> Result<File> {
        let path = self.path(digest);
        // Without the atime: a first read must not wait for the disk to note that it was one.
        let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(&path);
        let file = opened.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::damaged(format!(
                "the object {} is missing; restore it from a backup, or add a release with its content again",
                path.display()
            )),
            _ => Error::io(format!("opening the object {}", path.display()), error),
        })?;
        let found = file.metadata().context(|| format!("reading the object {}", path.display()))?.size();
        if found != len {
            return Err(Error::damaged(format!(
                "the object {} has {found} bytes and should have {len}; restore it from a backup, or remove it and \
                 add a release with its content again",
                path.display()
            )));
        }
        Ok(file)
    }

    /// Every object: hash and length. A file that is no object is given to `stray`.
    pub fn each(&self, mut object: impl FnMut(Digest, u64), mut stray: impl FnMut(PathBuf)) -> Result<()> {
        let list = |path: &Path| -> Result<Vec<fs::DirEntry>> {
            fs::read_dir(path).and_then(Iterator::collect).context(|| format!("reading {}", path.display()))
        };
        for shard in list(&self.root)? {
            if !shard.file_type().is_ok_and(|kind| kind.is_dir()) {
                stray(shard.path());
                continue;
            }
            for entry in list(&shard.path())? {
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

/// The path of a hash below a directory: two digits, a slash, the rest.
pub fn place(root: &Path, digest: Digest) -> PathBuf {
    let hex = digest.to_hex();
    root.join(&hex[..2]).join(&hex[2..])
}
