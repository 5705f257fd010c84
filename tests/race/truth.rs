//! What a view of the history would have answered: the rules that an observation is judged by.

use crate::history::History;
use crate::probe::Seen;
use crate::world::{Found, Kind, Listed, PathId, ROOT, World};
use rustix::fs::FileType;
use rustix::io::Errno;

/// The releases and when each was active.
#[derive(Clone, Copy)]
pub struct Truth<'a> {
    /// The releases.
    pub world: &'a World,
    /// When each was active.
    pub history: &'a History,
    /// Whether mtimes are judged, or only what is there.
    pub stamps: bool,
}

impl Truth<'_> {
    /// What a walk from the directory `base` meets in a view.
    ///
    /// A directory that the active release lacks is answered from the last active one that had it.
    pub fn found(&self, view: usize, base: PathId, id: PathId) -> Found {
        match self.release(view, base) {
            Some(release) => self.world.walk(release, base, id),
            None => Found::Absent,
        }
    }

    fn release(&self, view: usize, base: PathId) -> Option<usize> {
        if base == ROOT { Some(self.history.view(view).release) } else { self.history.release_for(view, base) }
    }

    /// True if the view's own release has this directory.
    pub fn lives(&self, view: usize, dir: PathId) -> bool {
        self.world.at(self.history.view(view).release, dir) == Some(Kind::Dir)
    }

    /// Would a view answer lstat like this?
    pub fn stat(&self, view: usize, base: PathId, id: PathId, got: &Result<Seen, Errno>) -> bool {
        match (self.found(view, base, id), got) {
            (Found::Absent, Err(error)) => *error == Errno::NOENT,
            (Found::NotDir, Err(error)) => *error == Errno::NOTDIR,
            // The stamps of a directory that is gone, and of what was in it, say nothing.
            (Found::Here(kind), Ok(seen)) => {
                self.has_kind(kind, seen) && (!self.lives(view, base) || self.stamped(view, id, seen))
            }
            _ => false,
        }
    }

    /// Would a view serve this mtime for a path?
    pub fn stamped(&self, view: usize, id: PathId, seen: &Seen) -> bool {
        let stamp = self.history.view(view).stamps[id];
        !self.stamps || self.history.is_stamp(stamp, seen.second, seen.nanosecond)
    }

    fn has_kind(&self, kind: Kind, seen: &Seen) -> bool {
        match kind {
            Kind::Dir => seen.kind == FileType::Directory,
            Kind::File(content) => {
                let length = self.world.content(content).len() as u64;
                seen.kind == FileType::RegularFile && seen.size == length
            }
            Kind::Link(target) => {
                let length = self.world.target(target).len() as u64;
                seen.kind == FileType::Symlink && seen.size == length
            }
        }
    }

    /// Would a view answer an open without following symlinks like this? What was opened is `Some`
    /// file's content, or a directory.
    pub fn open(&self, view: usize, base: PathId, id: PathId, got: &Result<Option<u32>, Errno>) -> bool {
        match (self.found(view, base, id), got) {
            (Found::Absent, Err(error)) => *error == Errno::NOENT,
            (Found::NotDir, Err(error)) => *error == Errno::NOTDIR,
            (Found::Here(Kind::Link(_)), Err(error)) => *error == Errno::LOOP,
            (Found::Here(Kind::File(content)), Ok(Some(read))) => content == *read,
            (Found::Here(Kind::Dir), Ok(None)) => true,
            _ => false,
        }
    }

    /// Did a view serve this content of a path with this mtime and size? (A cache that keeps a
    /// pair that never was keeps it for good.)
    pub fn pair(&self, view: usize, id: PathId, content: u32, seen: &Seen) -> bool {
        let release = self.history.view(view).release;
        let kind = Kind::File(content);
        self.history.view(view).served()
            && self.world.at(release, id) == Some(kind)
            && self.has_kind(kind, seen)
            && self.stamped(view, id, seen)
    }

    /// Would a view answer readlink like this? `None`: a target that no release has.
    pub fn readlink(&self, view: usize, base: PathId, id: PathId, got: &Result<Option<u32>, Errno>) -> bool {
        match (self.found(view, base, id), got) {
            (Found::Absent, Err(error)) => *error == Errno::NOENT,
            (Found::NotDir, Err(error)) => *error == Errno::NOTDIR,
            (Found::Here(Kind::Dir | Kind::File(_)), Err(error)) => *error == Errno::INVAL,
            (Found::Here(Kind::Link(target)), Ok(Some(read))) => target == *read,
            _ => false,
        }
    }

    /// Would a view answer the opening of a directory for a listing like this?
    pub fn opendir(&self, view: usize, base: PathId, id: PathId, got: Result<(), Errno>) -> bool {
        match (self.found(view, base, id), got) {
            (Found::Absent, Err(error)) => error == Errno::NOENT,
            (Found::NotDir | Found::Here(Kind::File(_) | Kind::Link(_)), Err(error)) => error == Errno::NOTDIR,
            (Found::Here(Kind::Dir), Ok(())) => true,
            _ => false,
        }
    }

    /// Would a view list a directory like this? `names` are sorted.
    pub fn listing(&self, view: usize, base: PathId, id: PathId, names: &[Listed]) -> bool {
        self.release(view, base).is_some_and(|release| {
            self.world.walk(release, base, id) == Found::Here(Kind::Dir) && self.world.listing(release, id) == names
        })
    }

    /// Would a view answer fstat of a directory held open like this?
    pub fn held(&self, view: usize, dir: PathId, got: &Result<Seen, Errno>) -> bool {
        got.is_ok_and(|seen| {
            seen.kind == FileType::Directory && (!self.lives(view, dir) || self.stamped(view, dir, &seen))
        })
    }
}
