//! The parallel walk over a source: what is there, and whether it is still the same later.

use super::{AddOptions, show};
use crate::error::{Context, Error, Result};
use crate::store::release::manifest::{BuildNode, Xattrs};
use crate::tree::{EntryName, Kind, Owner, path_in};
use rayon::prelude::*;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Longest path below the source, in bytes: with it a system call still takes the path (PATH_MAX, 4,096).
const LONGEST_PATH: usize = 4095;
const VCS: [&[u8]; 3] = [b".git", b".hg", b".svn"];

/// What tells a file that changed from one that did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    pub dev: u64,
    pub ino: u64,
    pub size: i64,
    pub mode: u32,
    /// Seconds since 1970, and nanoseconds.
    pub mtime: (i64, i64),
    /// As above.
    pub ctime: (i64, i64),
}

impl Fingerprint {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size,
            mode: stat.st_mode,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime: (stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }
}

/// Something found in the source.
#[derive(Debug)]
pub(super) struct Found {
    /// Its place in [`Walk::found`]'s directory.
    pub parent: u32,
    /// As it will stand in the manifest; content and mtime are settled later.
    pub node: BuildNode,
    /// How it looked when it was found.
    pub look: Fingerprint,
    /// Bytes that it takes on disk, holes left out.
    pub blocks_bytes: u64,
    /// Its content is known by its look, and not read.
    pub known: bool,
    /// Its look tells its content the next time (see stat_cache.rs).
    pub trusted: bool,
}

impl Found {
    /// Whether it is a file whose content must be read.
    pub(super) fn is_read(&self) -> bool {
        self.node.kind == Kind::File && !self.known
    }
}

/// All that was found; number 0 is the source itself, and a directory comes before what is in it.
#[derive(Debug)]
pub(super) struct Walk {
    pub root: OwnedFd,
    pub found: Vec<Found>,
}

/// What is wrong with a source: things that cannot be in a release, or cannot be read.
#[derive(Default)]
struct Refused {
    special: Vec<String>,
    unreadable: Vec<String>,
}

/// Walks a source, a level at a time, the directories of a level in parallel.
pub(super) fn walk(source: &Path, options: &AddOptions) -> Result<Walk> {
    let root = File::open(source).context(|| format!("opening {}", source.display()))?;
    let stat = rustix::fs::fstat(&root).context(|| format!("reading {}", source.display()))?;
    let root = OwnedFd::from(root);
    let mut walk = Walk { found: Vec::new(), root };
    let mut top = found(b"", 0, Kind::Dir, &stat);
    top.node.xattrs = xattrs(&walk.root).context(|| format!("reading {}", source.display()))?;
    walk.found.push(top);
    let mut refused = Refused::default();
    let mut level: Vec<u32> = vec![0];
    while !level.is_empty() {
        let listed: Vec<(u32, Listing)> = level.par_iter().map(|dir| (*dir, list(&walk, *dir, options))).collect();
        level.clear();
        walk.found.reserve(listed.iter().map(|(_, listing)| listing.entries.len()).sum());
        for (dir, listing) in listed {
            refused.special.extend(listing.special);
            refused.unreadable.extend(listing.unreadable);
            if let Some((look, xattrs)) = listing.dir {
                // As it was when it was listed: what came between is seen at the end.
                walk.found[dir as usize].look = look;
                walk.found[dir as usize].node.xattrs = xattrs;
            }
            for found in listing.entries {
                if found.node.kind == Kind::Dir {
                    level.push(walk.found.len() as u32);
                }
                walk.found.push(found);
            }
        }
    }
    refused.report(source)?;
    Ok(walk)
}

#[derive(Default)]
struct Listing {
    dir: Option<(Fingerprint, Xattrs)>,
    entries: Vec<Found>,
    special: Vec<String>,
    unreadable: Vec<String>,
}

fn list(walk: &Walk, dir: u32, options: &AddOptions) -> Listing {
    let path = walk.path(dir as usize);
    let mut listing = Listing::default();
    if let Err(error) = list_into(walk, dir, &path, options, &mut listing)
        && error != Errno::NOENT
    {
        listing.unreadable.push(format!("{} ({error})", show_or_root(&path)));
    }
    listing
}

fn list_into(
    walk: &Walk,
    dir: u32,
    path: &[u8],
    options: &AddOptions,
    listing: &mut Listing,
) -> rustix::io::Result<()> {
    let fd = walk.open(path, OFlags::DIRECTORY)?;
    listing.dir = Some((Fingerprint::of(&rustix::fs::fstat(&fd)?), xattrs(&fd)?));
    let mut names = Vec::new();
    for entry in Dir::read_from(&fd)? {
        names.push(entry?.file_name().to_owned());
    }
    // As they will stand in the manifest.
    names.sort_unstable();
    listing.entries.reserve_exact(names.len());
    for c_name in names {
        let name = c_name.to_bytes();
        if matches!(name, b"." | b"..") || (!options.include_vcs && VCS.contains(&name)) {
            continue;
        }
        if path.len() + 1 + name.len() > LONGEST_PATH || EntryName::new(name).is_none() {
            let begin = &path_in(path, name)[..60];
            listing.unreadable.push(format!("{} (a path of over {LONGEST_PATH} bytes)", show(begin)));
            continue;
        }
        let shown = || show(&path_in(path, name));
        let stat = match rustix::fs::statat(&fd, &*c_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since it was listed: the directory looks different at the end, and all is read again.
            Err(Errno::NOENT) => continue,
            Err(error) => {
                listing.unreadable.push(format!("{} ({error})", shown()));
                continue;
            }
        };
        use rustix::fs::FileType;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Dir,
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            other => {
                let what = match other {
                    FileType::Fifo => "fifo",
                    FileType::Socket => "socket",
                    _ => "device",
                };
                listing.special.push(format!("{} ({what})", shown()));
                continue;
            }
        };
        let mut found = found(name, dir, kind, &stat);
        if kind == Kind::Symlink {
            match rustix::fs::readlinkat(&fd, &*c_name, Vec::new()) {
                Ok(target) => found.node.target = target.into_bytes(),
                Err(error) => listing.unreadable.push(format!("{} ({error})", shown())),
            }
        }
        listing.entries.push(found);
    }
    Ok(())
}

fn found(name: &[u8], parent: u32, kind: Kind, stat: &Stat) -> Found {
    let mut node = BuildNode::new(name, kind, (stat.st_mode & 0o7777) as u16);
    node.owner = Owner { uid: stat.st_uid, gid: stat.st_gid };
    node.mtime = stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec as i64);
    if kind == Kind::File {
        node.size = stat.st_size as u64;
    }
    let blocks_bytes = (stat.st_blocks as u64).saturating_mul(512);
    node.on_disk = blocks_bytes;
    Found { parent, node, look: Fingerprint::of(stat), blocks_bytes, known: false, trusted: false }
}

impl Walk {
    /// The path of something below the source; empty for the source itself.
    pub(super) fn path(&self, number: usize) -> Vec<u8> {
        let found = &self.found[number];
        match number {
            0 => Vec::new(),
            _ => path_in(&self.path(found.parent as usize), &found.node.name),
        }
    }

    /// The number of a name in a directory.
    pub(super) fn find(&self, dir: u32, name: &[u8]) -> Option<u32> {
        let at = self.found.iter().position(|found| found.parent == dir && found.node.name == name);
        at.map(|at| at as u32)
    }

    /// Opens something below the source for reading, never through a symlink at the end.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let path = if path.is_empty() { b"." } else { path };
        rustix::fs::openat(&self.root, path, flags, Mode::empty())
    }

    /// The paths that do not look any more as when they were found.
    pub(super) fn changed_since(&self) -> Vec<Vec<u8>> {
        let changed = |siblings: &[Found]| -> Vec<Vec<u8>> {
            let path = self.path(siblings[0].parent as usize);
            let dir = self.open(&path, OFlags::DIRECTORY);
            let differs = |found: &&Found| {
                let name = if found.node.name.is_empty() { b"." } else { &found.node.name[..] };
                let stat = dir.as_ref().map(|dir| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW));
                !matches!(stat, Ok(Ok(stat)) if Fingerprint::of(&stat) == found.look)
            };
            siblings.iter().filter(differs).map(|found| path_in(&path, &found.node.name)).collect()
        };
        // What is in one directory stands together.
        self.found.par_chunk_by(|a, b| a.parent == b.parent).flat_map_iter(changed).collect()
    }
}

impl Refused {
    fn report(self, source: &Path) -> Result<()> {
        let list = |mut names: Vec<String>| {
            names.sort();
            names.join(", ")
        };
        if !self.special.is_empty() {
            return Err(Error::request(format!(
                "the source {} holds what no release can: {}; remove it and add again",
                source.display(),
                list(self.special)
            )));
        }
        if !self.unreadable.is_empty() {
            return Err(Error::request(format!(
                "the source {} cannot be read in places: {}; make them readable and add again",
                source.display(),
                list(self.unreadable)
            )));
        }
        Ok(())
    }
}

fn show_or_root(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { show(path) }
}

/// The user's extended attributes (user.*) of an open file or directory.
pub(super) fn xattrs(fd: impl AsFd) -> rustix::io::Result<Xattrs> {
    let fd = fd.as_fd();
    let mut names = vec![0; 256];
    let len = loop {
        match rustix::fs::flistxattr(fd, &mut names[..]) {
            Ok(len) => break len,
            Err(Errno::RANGE) => names.resize(names.len() * 4, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    };
    let mut out = Vec::new();
    for name in names[..len].split(|b| *b == 0).filter(|name| name.starts_with(b"user.")) {
        let mut value = vec![0; 65_536];
        match rustix::fs::fgetxattr(fd, name, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                out.push((name.to_vec(), value));
            }
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    out.sort();
    Ok(out)
}
