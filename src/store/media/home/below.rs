//! Walks over what users made, of any depth and with paths of any length.
//!
//! A walk calls nothing again from within and holds two descriptors: the top's and that of the directory that it is in.
//! Back up it goes by `..`, which is believed only if it is the directory that the walk came from. If somebody moved a
//! directory meanwhile, the walk goes on in the deepest directory of its way that is still in its place. So it stays
//! below its top, and no symlink is followed. (Hoisting directories into the work space, the other way to remove a
//! deep tree, needs room for their new names: a full disk could not be swept.)

use super::{Inode, absent};
use crate::error::Errno;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Result;
use std::os::fd::OwnedFd;

/// How often a directory that is removed may turn out not to be empty, in one removal: somebody fills it beside us.
const MOST_REFILLS: u32 = 1000;

/// Where a walk goes from a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    /// Into the directory that it stands for.
    In,
    /// To the next name.
    On,
}

/// A directory on the way from the top to where a walk is.
struct Level {
    name: Vec<u8>,
    id: Inode,
    /// Names of directories in it that are still to be gone into.
    inner: Vec<Vec<u8>>,
}

fn open_dir(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn id_of(dir: &OwnedFd) -> Result<Inode> {
    Ok(Inode::of(&rustix::fs::fstat(dir)?))
}

/// Calls `meet` for each name in a directory; those that it wants to go into.
pub(super) fn list(dir: &OwnedFd, meet: &mut impl FnMut(&OwnedFd, &[u8]) -> Result<Go>) -> Result<Vec<Vec<u8>>> {
    let mut inner = Vec::new();
    // ENOENT: the directory was removed.
    let Some(entries) = absent(rustix::fs::Dir::read_from(dir))? else { return Ok(inner) };
    for entry in entries {
        let Some(entry) = absent(entry)? else { break };
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") && meet(dir, name)? == Go::In {
            inner.push(name.to_vec());
        }
    }
    Ok(inner)
}

/// Goes into these directories of `top` and all below them. `meet` is called for each name in them; `left` for each
/// directory that the walk comes back from, with the directory above it, and may send the walk in once more.
pub(super) fn walk(
    top: &OwnedFd,
    inner: Vec<Vec<u8>>,
    mut meet: impl FnMut(&OwnedFd, &[u8]) -> Result<Go>,
    mut left: impl FnMut(&OwnedFd, &[u8]) -> Result<Go>,
) -> Result<()> {
    let mut here = open_dir(top, b".")?;
    let mut way = vec![Level { name: Vec::new(), id: id_of(&here)?, inner }];
    while let Some(mut level) = way.pop() {
        if let Some(name) = level.inner.pop() {
            way.push(level);
            // Removed meanwhile, or replaced by something else.
            let Some(dir) = absent(open_dir(&here, &name))? else { continue };
            let inner = list(&dir, &mut meet)?;
            way.push(Level { name, id: id_of(&dir)?, inner });
            here = dir;
            continue;
        }
        let Some(above) = way.last().map(|above| above.id) else { break };
        let up = absent(open_dir(&here, b".."))?;
        here = match up {
            Some(up) if id_of(&up)? == above => up,
            _ => {
                let depth = way.len();
                let back = find_back(top, &mut way)?;
                if way.len() < depth {
                    here = back;
                    continue;
                }
                back
            }
        };
        if left(&here, &level.name)? == Go::In
            && let Some(above) = way.last_mut()
        {
            above.inner.push(level.name);
        }
    }
    Ok(())
}

/// The deepest directory of a way that is still where it was; what lay deeper is taken off the way.
fn find_back(top: &OwnedFd, way: &mut Vec<Level>) -> Result<OwnedFd> {
    let (mut here, mut in_place) = (open_dir(top, b".")?, 1);
    for level in way.iter().skip(1) {
        match absent(open_dir(&here, &level.name))? {
            Some(dir) if id_of(&dir)? == level.id => (here, in_place) = (dir, in_place + 1),
            _ => break,
        }
    }
    way.truncate(in_place);
    Ok(here)
}

/// Removes an entry and all below it, never through a symlink.
pub(in crate::store::media) fn remove_all(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    remove(dir, name, unlinked)
}

/// Removes what is no directory.
fn unlinked(dir: &OwnedFd, name: &[u8]) -> Result<Go> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(Go::On),
        Err(Errno::ISDIR) => Ok(Go::In),
        Err(error) => Err(error),
    }
}

fn remove(dir: &OwnedFd, name: &[u8], mut unlink: impl FnMut(&OwnedFd, &[u8]) -> Result<Go>) -> Result<()> {
    if unlink(dir, name)? == Go::On {
        return Ok(());
    }
    let mut refills = 0;
    walk(dir, vec![name.to_vec()], &mut unlink, |dir, name| {
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(Go::On),
            Err(Errno::NOTEMPTY) if refills < MOST_REFILLS => {
                refills += 1;
                Ok(Go::In)
            }
            Err(error) => Err(error),
        }
    })?;
    match unlink(dir, name)? {
        Go::On => Ok(()),
        Go::In => Err(Errno::NOTEMPTY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn opened(path: &Path) -> OwnedFd {
        fs::File::open(path).expect("open").into()
    }

    /// A chain of directories, each in the one before; the deepest holds a file.
    fn chain(top: &Path, depth: usize, name: &str) {
        let mut at = opened(top);
        for _ in 0..depth {
            rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)).expect("mkdir");
            at = open_dir(&at, name.as_bytes()).expect("open");
        }
        let flags = OFlags::CREATE | OFlags::WRONLY;
        rustix::fs::openat(&at, "file", flags, Mode::from_raw_mode(0o644)).expect("file");
    }

    /// How many directories lie below, and the names of all else.
    fn counted(top: &Path) -> (usize, BTreeSet<Vec<u8>>) {
        let (dirs, leaves) = (RefCell::new(0), RefCell::new(BTreeSet::new()));
        let mut meet = |dir: &OwnedFd, name: &[u8]| match open_dir(dir, name) {
            Ok(_) => Ok(Go::In),
            Err(_) => {
                leaves.borrow_mut().insert(name.to_vec());
                Ok(Go::On)
            }
        };
        let top = opened(top);
        let first = list(&top, &mut meet).expect("list");
        walk(&top, first, meet, |_, _| {
            *dirs.borrow_mut() += 1;
            Ok(Go::On)
        })
        .expect("walk");
        (dirs.into_inner(), leaves.into_inner())
    }

    #[test]
    fn a_chain_deeper_than_stack_descriptors_and_paths_is_walked_and_removed() {
        let scratch = tempfile::tempdir().expect("scratch");
        let (top, name) = (scratch.path().to_owned(), "d".repeat(255));
        chain(&top, 4000, &name);
        let small_stack = std::thread::Builder::new().stack_size(128 << 10);
        let walked = small_stack.spawn(move || {
            let counted = counted(&top);
            remove_all(&opened(&top), name.as_bytes()).expect("removed");
            counted
        });
        let (dirs, leaves) = walked.expect("thread").join().expect("no overflow");
        assert_eq!((dirs, leaves), (4000, BTreeSet::from([b"file".to_vec()])));
        assert_eq!(fs::read_dir(scratch.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_removal_takes_symlinks_and_not_what_they_lead_to() {
        let scratch = tempfile::tempdir().expect("scratch");
        let at = |path: &str| scratch.path().join(path);
        fs::create_dir_all(at("tree/a/b")).expect("mkdir");
        fs::create_dir(at("outside")).expect("mkdir");
        fs::write(at("outside/kept"), "kept").expect("write");
        for link in ["tree/link", "tree/a/b/link", "alone"] {
            symlink(at("outside"), at(link)).expect("symlink");
        }
        for name in ["tree", "alone", "missing"] {
            remove_all(&opened(scratch.path()), name.as_bytes()).expect("removed");
            assert!(fs::symlink_metadata(at(name)).is_err(), "{name}");
        }
        assert_eq!(fs::read(at("outside/kept")).expect("read"), b"kept");
    }

    #[test]
    fn a_directory_that_is_moved_away_beside_a_walk_leads_it_nowhere() {
        let scratch = tempfile::tempdir().expect("scratch");
        let at = |path: &str| scratch.path().join(path);
        fs::create_dir_all(at("top/a/b/c")).expect("mkdir");
        fs::create_dir_all(at("top/a/z")).expect("mkdir");
        fs::create_dir(at("outside")).expect("mkdir");
        for file in ["top/a/b/c/trigger", "top/a/b/later", "top/a/z/last", "outside/kept"] {
            fs::write(at(file), "").expect("write");
        }
        let (top, met) = (opened(&at("top")), RefCell::new(BTreeSet::new()));
        let meet = |dir: &OwnedFd, name: &[u8]| {
            met.borrow_mut().insert(name.to_vec());
            if name == b"trigger" {
                fs::rename(at("top/a/b"), at("outside/b")).expect("moved");
                fs::rename(at("outside/b/c"), at("outside/c")).expect("moved");
            }
            Ok(if open_dir(dir, name).is_ok() { Go::In } else { Go::On })
        };
        let mut above = Vec::new();
        walk(&top, vec![b"a".to_vec()], meet, |dir, name| {
            above.push((id_of(dir)?, name.to_vec()));
            Ok(Go::On)
        })
        .expect("walk");
        let met = met.into_inner();
        assert!(met.contains(&b"last"[..]) && !met.contains(&b"kept"[..]), "{met:?}");
        let inside = [at("top"), at("top/a")].map(|dir| id_of(&opened(&dir)).expect("stat"));
        assert!(above.iter().all(|(id, _)| inside.contains(id)), "a walk came back to a directory outside");
        assert!(above.iter().any(|(_, name)| name == b"a"));
    }

    #[test]
    fn a_directory_that_is_filled_beside_a_removal_is_emptied_again() {
        let scratch = tempfile::tempdir().expect("scratch");
        let tree = scratch.path().join("tree");
        fs::create_dir_all(tree.join("a")).expect("mkdir");
        fs::write(tree.join("a/file"), "").expect("write");
        let (dir, mut refills) = (opened(scratch.path()), 0);
        let unlink = |dir: &OwnedFd, name: &[u8]| {
            // After all of it was listed.
            if name == b"file" && refills < 3 {
                refills += 1;
                fs::write(tree.join(format!("new-{refills}")), "").expect("write");
                fs::create_dir_all(tree.join("b/c")).expect("mkdir");
            }
            unlinked(dir, name)
        };
        remove(&dir, b"tree", unlink).expect("removed");
        assert!(!tree.exists());
    }
}
