//! While nothing switches: every name of every release against what is active, from the root, and
//! from directories that were opened long ago.

use crate::eye::{Base, Eye};
use crate::probe::{self, Manner};
use crate::readers::{OrDot, directories};
use crate::world::{Kind, PathId};
use std::os::fd::{AsFd, OwnedFd};

/// So many directories are held over the bursts, in the order in which they came.
const HELD: usize = 12;

/// An auditor keeps directories open, and one as its thread's working directory, over all bursts.
pub struct Auditor<'a> {
    eye: Eye<'a>,
    root: OwnedFd,
    directories: Vec<PathId>,
    held: Vec<(OwnedFd, PathId)>,
    working: Option<PathId>,
}

impl<'a> Auditor<'a> {
    /// An auditor on the calling thread, which must have a working directory of its own.
    pub fn new(eye: Eye<'a>, root: OwnedFd) -> Auditor<'a> {
        let directories = directories(&eye);
        Auditor { eye: eye.auditing(), root, directories, held: Vec::new(), working: None }
    }

    /// Looks at everything.
    pub fn audit(&mut self) {
        self.audit_except(None);
    }

    /// Looks at everything but one directory and what is below it.
    pub fn audit_except(&mut self, left_out: Option<PathId>) {
        let world = self.eye.truth.world;
        let is_out = |id: &PathId| left_out.is_some_and(|dir| *id == dir || world.descendants(dir).contains(id));
        for id in world.ids().filter(|id| !is_out(id)) {
            self.eye.stat(Base::Root, id);
            self.eye.read(Base::Root, id);
            self.eye.readlink(Base::Root, id);
        }
        let directories = self.directories.clone();
        for dir in directories.into_iter().filter(|dir| !is_out(dir)) {
            self.eye.list(Base::Root, dir, Manner::Whole, true);
            self.inode_numbers(dir);
        }
        for place in 0..self.held.len() {
            let (fd, dir) = &self.held[place];
            self.eye.stat_held(fd, *dir);
            below(&mut self.eye, Base::Held(fd, *dir));
        }
        if let Some(dir) = self.working {
            below(&mut self.eye, Base::Working(dir));
        }
        self.hold_more();
    }

    /// A listing's inode numbers are those that stat tells.
    fn inode_numbers(&mut self, dir: PathId) {
        let path = self.eye.truth.world.path(dir).or_dot();
        let Ok(fd) = probe::open_dir(self.root.as_fd(), path) else {
            return;
        };
        for ((name, _), ino) in probe::list(&fd, Manner::Whole, &mut self.eye.chance).unwrap_or_default() {
            let seen = probe::stat(fd.as_fd(), &name);
            if !seen.is_ok_and(|seen| seen.ino == ino) {
                self.eye.complain(|| {
                    let (path, name) = (String::from_utf8_lossy(path), String::from_utf8_lossy(&name));
                    format!("{name} in /{path}: listed as inode {ino}, stat {seen:?}")
                });
            }
        }
    }

    /// Opens two more directories, preferring those that are not in every release.
    fn hold_more(&mut self) {
        let world = self.eye.truth.world;
        for _ in 0..40 {
            let dir = *self.eye.chance.pick(&self.directories);
            let leaves = (0..world.releases()).any(|one| world.at(one, dir) != Some(Kind::Dir));
            if !leaves || self.held.len() >= HELD {
                continue;
            }
            if let Ok(fd) = probe::open_dir(self.root.as_fd(), world.path(dir).or_dot()) {
                if self.working.is_none() {
                    rustix::process::fchdir(&fd).unwrap();
                    self.working = Some(dir);
                } else {
                    self.held.push((fd, dir));
                }
                if self.held.len().is_multiple_of(2) {
                    return;
                }
            }
        }
    }
}

impl Drop for Auditor<'_> {
    fn drop(&mut self) {
        // Leave the mount, so that it can be taken away.
        let _ = rustix::process::chdir("/");
    }
}

fn below(eye: &mut Eye<'_>, base: Base<'_>) {
    for id in eye.truth.world.descendants(base.dir()) {
        eye.stat(base, id);
        eye.read(base, id);
    }
    eye.list(base, base.dir(), Manner::Whole, false);
}
