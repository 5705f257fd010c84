//! `export`: a release as plain files. The way out of verfs.

use crate::error::{Context, Error, Result};
use crate::store::release::objects::Objects;
use crate::store::release::sparse::{self, CopyError};
use crate::store::{Store, look};
use crate::tree::{Kind, Node, ReleaseName, Tree};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Writes a release into a directory that is empty or not there; gives the number of files.
pub(crate) fn export(store: &Store, name: &ReleaseName, dir: &Path) -> Result<u64> {
    let manifest = store.manifest(name)?;
    manifest.verify()?;
    make_empty(dir)?;
    let objects = Objects::of(store.root())?;
    let root = OwnedFd::from(File::open(dir).context(|| format!("opening {}", dir.display()))?);
    let mut files = 0;
    for index in 1..manifest.len() {
        let node = manifest.node(index)?;
        let path = manifest.path_of(index)?;
        let what = || format!("writing {}", dir.join(OsStr::from_bytes(&path)).display());
        match node.kind {
            // Open for us until all is in it; its own mode comes last.
            Kind::Dir => rustix::fs::mkdirat(&root, &path[..], Mode::from_raw_mode(0o700)).context(what)?,
            Kind::Symlink => {
                rustix::fs::symlinkat(manifest.target(index)?, &root, &path[..]).context(what)?;
                dress(&root, &path, &node, None).context(what)?;
            }
            Kind::File => {
                let object = objects.open(manifest.digest(index)?, node.size)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file =
                    File::from(rustix::fs::openat(&root, &path[..], flags, Mode::from_raw_mode(0o600)).context(what)?);
                let reading = || format!("reading the object {}", objects.show(object.digest()));
                match object.as_file() {
                    Some(object) if rustix::fs::ioctl_ficlone(&file, object).is_ok() => {}
                    Some(plain) => match sparse::copy(plain, Some(&file), |_| {}) {
                        Ok(_) => {}
                        Err(CopyError::Reading(error)) => return Err(error).context(reading),
                        Err(CopyError::Writing(error)) => return Err(error).context(what),
                    },
                    None => {
                        let bytes = object.read(0, node.size as usize).context(reading)?;
                        file.write_all_at(&bytes, 0).context(what)?;
                    }
                }
                set_xattrs(&file, &manifest.xattrs(index)?).context(what)?;
                dress(&root, &path, &node, Some(node.mode)).context(what)?;
                files += 1;
            }
        }
    }
    // Directories last, the deepest first: writing into one moves its mtime.
    for index in (0..manifest.len()).rev() {
        let node = manifest.node(index)?;
        if node.kind != Kind::Dir {
            continue;
        }
        let path = match index {
            0 => b".".to_vec(),
            _ => manifest.path_of(index)?,
        };
        let what = || format!("writing {}", dir.join(OsStr::from_bytes(&path)).display());
        // Below the directory, as all of it: together with that one's own path it may be too long for a system call.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = File::from(rustix::fs::openat(&root, &path[..], flags, Mode::empty()).context(what)?);
        set_xattrs(&open, &manifest.xattrs(index)?).context(what)?;
        dress(&root, &path, &node, Some(node.mode)).context(what)?;
    }
    rustix::fs::syncfs(&root).context(|| format!("syncing {}", dir.display()))?;
    Ok(files)
}

/// Makes the directory, or refuses one that holds something.
fn make_empty(dir: &Path) -> Result<()> {
    match look::entries(dir).map_err(|error| Error::request(error.to_string()))? {
        Some(inside) if inside.is_empty() => Ok(()),
        Some(_) => {
            Err(Error::request(format!("{} is not empty; name a directory that is, or is not there", dir.display())))
        }
        None => fs::create_dir_all(dir).context(|| format!("making {}", dir.display())),
    }
}

fn set_xattrs(file: &File, xattrs: &[(Vec<u8>, Vec<u8>)]) -> rustix::io::Result<()> {
    for (name, value) in xattrs {
        rustix::fs::fsetxattr(file, &name[..], value, XattrFlags::empty())?;
    }
    Ok(())
}

/// Owner (as far as we may), then mode, then time.
fn dress(root: &OwnedFd, path: &[u8], node: &Node, mode: Option<u16>) -> rustix::io::Result<()> {
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = (rustix::fs::Uid::from_raw(node.owner.uid), rustix::fs::Gid::from_raw(node.owner.gid));
        rustix::fs::chownat(root, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if let Some(mode) = mode {
        rustix::fs::chmodat(root, path, Mode::from_raw_mode(mode.into()), AtFlags::empty())?;
    }
    let time =
        Timespec { tv_sec: node.mtime.div_euclid(1_000_000_000), tv_nsec: node.mtime.rem_euclid(1_000_000_000) as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(root, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}
