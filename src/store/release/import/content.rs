//! Reads the contents of a source into the staging area, except those that the stat cache knows. The copy is hashed,
//! never the source, which may still change. A small file is hashed in memory and written from there; a large one is
//! cloned first where the file system can, else hashed as it is written.

use super::staging::{PACKED, Staging};
use super::stat_cache::{Readings, StatCache};
use super::walk::{Fingerprint, Walk, xattrs};
use super::{Progress, show};
use crate::error::{Context, Error, OnDisk, Result};
use crate::store::release::sparse::{self, CopyError};
use crate::tree::Digest;
use rayon::prelude::*;
use rustix::fs::OFlags;
use std::fs::{self, File};
use std::io::Write;

/// Files up to this size are read whole.
const SMALL: u64 = 1 << 20;
/// How many files are read before the new ones among them are written.
const CHUNK: usize = 256;
/// The operation of an error of the source's disk: nothing else here is called so.
const READING: &str = "reading";
/// How often one file that changes while it is read is read again.
const TRIES: usize = 3;

/// Reads the files of the walk whose content is not known into the staging area and notes the digests. Gives the paths
/// that would not stay the same while they were read.
pub(super) fn stage(
    walk: &mut Walk,
    cache: &StatCache,
    staging: &Staging,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u8>>> {
    let shared = &*walk;
    let is_read = |number: &usize| shared.found[*number].is_read();
    let files: Vec<usize> = (0..shared.found.len()).filter(is_read).collect();
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let readings = Readings::begin(shared, cache);
    let mut read = Vec::with_capacity(files.len());
    let mut new = Vec::new();
    for chunk in files.chunks(CHUNK) {
        // While one chunk is read, the new files of the chunk before are written.
        let before = std::mem::take(&mut new);
        let (outcomes, taken) = rayon::join(
            || {
                chunk
                    .par_iter()
                    .map(|number| read_file(shared, *number, readings.as_ref(), staging, progress))
                    .collect::<Result<Vec<_>>>()
            },
            || staging.take(before),
        );
        taken?;
        for (number, mut outcome) in chunk.iter().zip(outcomes?) {
            if let FileReading::Read { digest, new: bytes, .. } = &mut outcome {
                new.extend(bytes.take().map(|bytes| (*digest, bytes)));
            }
            read.push((*number, outcome));
        }
    }
    staging.take(new)?;
    let mut changed = Vec::new();
    let mut unreadable = Vec::new();
    for (number, outcome) in read {
        match outcome {
            FileReading::Read { digest, trusted, xattrs, new: _ } => {
                let found = &mut walk.found[number];
                (found.node.digest, found.trusted) = (digest, trusted && xattrs.is_empty());
                found.node.xattrs = xattrs;
            }
            FileReading::Changed => changed.push(walk.path(number)),
            FileReading::Unreadable(error) => unreadable.push(format!("{} ({error})", show(&walk.path(number)))),
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

enum FileReading {
    Read {
        digest: Digest,
        /// The next `add` knows the content by this look.
        trusted: bool,
        xattrs: crate::store::release::manifest::Xattrs,
        /// A small content that the store lacks.
        new: Option<Vec<u8>>,
    },
    Changed,
    Unreadable(rustix::io::Errno),
}

fn read_file(
    walk: &Walk,
    number: usize,
    readings: Option<&Readings>,
    staging: &Staging,
    progress: &dyn Progress,
) -> Result<FileReading> {
    let (found, path) = (&walk.found[number], walk.path(number));
    for _ in 0..TRIES {
        let file = match walk.open(&path, OFlags::empty()) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => {
                return Ok(FileReading::Changed);
            }
            Err(error) => return Ok(FileReading::Unreadable(error)),
        };
        let what = || format!("reading {}", show(&path));
        let stat = rustix::fs::fstat(&file).context(what)?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(FileReading::Changed);
        }
        let size = stat.st_size as u64;
        let trusted = readings.is_some_and(|readings| readings.settle(&found.look, &file));
        let read =
            if size <= SMALL { copy_small(&file, size, staging) } else { copy_large(&file, size, staging, progress) };
        let read = match read {
            Ok(read) => read,
            // The disk of the source, and not that of the store.
            Err(Error::Disk { operation: READING, errno, .. }) => return Ok(FileReading::Unreadable(errno)),
            Err(error) => return Err(error),
        };
        let look = Fingerprint::of(&rustix::fs::fstat(&file).context(what)?);
        if let (Some((digest, new)), true) = (read, look == Fingerprint::of(&stat)) {
            if size <= SMALL {
                progress.read(size);
            }
            // Mode and owner stay those of the walk: had they changed, the look at the end would differ.
            return Ok(match look == found.look {
                true => FileReading::Read { digest, trusted, xattrs: xattrs(&file).context(what)?, new },
                false => FileReading::Changed,
            });
        }
    }
    Ok(FileReading::Changed)
}

/// The hash of a file, and its bytes if they are still to be written.
type Copied = (Digest, Option<Vec<u8>>);

/// `None` if the file was not as long as it said.
fn copy_small(file: &File, size: u64, staging: &Staging) -> Result<Option<Copied>> {
    // There is room for more than it has: a read that gives just that has met the end. One call for nearly every file.
    let mut bytes = Vec::with_capacity(size as usize + 1);
    while bytes.len() as u64 <= size {
        let at = bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) if bytes.len() as u64 == size => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).on_disk(READING, || "the source"),
        }
    }
    if bytes.len() as u64 != size {
        return Ok(None);
    }
    let digest = Digest::of(&bytes);
    if staging.knows(digest, size)? {
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
    let read = sparse::copy(from, to, each).or_else(|error| match error {
        // A clone lies on the disk of the store, and shares its blocks with the source.
        CopyError::Reading(error) => Err(error).on_disk(READING, || "the source"),
        CopyError::Writing(error) => Err(error).context(|| format!("copying the source to {}", path.display())),
    })?;
    if read != size {
        fs::remove_file(&path).context(|| format!("removing {}", path.display()))?;
        return Ok(None);
    }
    let digest = Digest(*hasher.finalize().as_bytes());
    staging.keep_if_new(&path, &out, digest, size)?;
    Ok(Some((digest, None)))
}
