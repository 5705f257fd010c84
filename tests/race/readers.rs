//! The readers of the race, each a loop of looks until the gate sends it home.

use crate::eye::{Base, Eye};
use crate::pace::Member;
use crate::probe::{self, Manner};
use crate::support::sys;
use crate::world::{Kind, PathId, ROOT};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

/// So many directories a holder keeps open.
const HELD: usize = 6;

/// For so many microseconds at most a slow lister holds a lock.
const SLOW_US: usize = 60_000;

/// Paths of every kind, at random: positive and negative lookups, contents, symlinks.
pub fn looker(mut eye: Eye<'_>, member: &Member<'_>) {
    let world = eye.truth.world;
    while member.goes_on() {
        let id = eye.chance.below(world.ids().end);
        match eye.chance.below(100) {
            0..35 => eye.stat(Base::Root, id),
            35..80 => eye.read(Base::Root, id),
            80..88 => eye.readlink(Base::Root, id),
            88..92 => {
                let name = format!("never-{}", eye.chance.below(5));
                eye.stat_never(Base::Root, world.parent(id), &name)
            }
            _ if world.aliases.is_empty() => eye.stat(Base::Root, id),
            _ => {
                let (alias, target) = eye.chance.pick(&world.aliases).clone();
                eye.stat_alias(target, &alias)
            }
        };
    }
}

/// Every path that is a directory in some release.
pub fn directories(eye: &Eye<'_>) -> Vec<PathId> {
    let world = eye.truth.world;
    let in_any = |id: &PathId| (0..world.releases()).any(|release| world.at(release, *id) == Some(Kind::Dir));
    world.ids().filter(in_any).collect()
}

/// Listings, whole and piecewise.
pub fn lister(mut eye: Eye<'_>, member: &Member<'_>, pause_us: usize) {
    let directories = directories(&eye);
    while member.goes_on() {
        let dir = *eye.chance.pick(&directories);
        let manner = if eye.chance.percent(50) { Manner::Piecewise(pause_us) } else { Manner::Whole };
        let again = eye.chance.percent(20);
        eye.list(Base::Root, dir, manner, again);
    }
}

/// Holds directories' locks for a while: lists them into memory that is there only later.
pub fn slow_lister(mut eye: Eye<'_>, member: &Member<'_>, root: &OwnedFd) {
    let directories = directories(&eye);
    while member.goes_on() {
        let dir = *eye.chance.pick(&directories);
        let hold = Duration::from_micros(eye.chance.below(SLOW_US) as u64);
        if let Ok(fd) = probe::open_dir(root.as_fd(), eye.truth.world.path(dir).or_dot()) {
            sys::list_slowly(fd.as_fd(), hold).unwrap();
        }
        thread::sleep(Duration::from_micros(eye.chance.below(SLOW_US) as u64));
    }
}

/// The attributes of the root and of all directories, by path and by descriptor; and the same few
/// files again and again.
pub fn watcher(mut eye: Eye<'_>, member: &Member<'_>, root: &OwnedFd) {
    let directories = directories(&eye);
    let files: Vec<PathId> = eye.truth.world.ids().collect();
    while member.goes_on() {
        match eye.chance.below(4) {
            0 => eye.stat_held(root, ROOT),
            1 => {
                let file = *eye.chance.pick(&files[..files.len().min(40)]);
                eye.stat(Base::Root, file)
            }
            _ => {
                let dir = *eye.chance.pick(&directories);
                eye.stat(Base::Root, dir)
            }
        };
    }
}

/// Descriptors and a working directory inside directories that go and come back.
pub fn holder(mut eye: Eye<'_>, member: &Member<'_>, root: &OwnedFd) {
    sys::own_working_directory().unwrap();
    let directories = directories(&eye);
    let mut held: Vec<(OwnedFd, PathId)> = Vec::new();
    let mut working = None;
    while member.goes_on() {
        if held.len() < HELD || eye.chance.percent(2) {
            let dir = *eye.chance.pick(&directories);
            if let Ok(fd) = probe::open_dir(root.as_fd(), eye.truth.world.path(dir).or_dot()) {
                if eye.chance.percent(30) {
                    rustix::process::fchdir(&fd).unwrap();
                    working = Some(dir);
                }
                // The first two stay for the whole race.
                if held.len() == HELD {
                    let place = 2 + eye.chance.below(HELD - 2);
                    held[place] = (fd, dir);
                } else {
                    held.push((fd, dir));
                }
            }
        }
        if held.is_empty() {
            continue;
        }
        if let Some(dir) = working.filter(|_| eye.chance.percent(40)) {
            below(&mut eye, Base::Working(dir));
        } else {
            let (fd, dir) = &held[eye.chance.below(held.len())];
            if eye.chance.percent(10) {
                eye.stat_held(fd, *dir);
            } else {
                below(&mut eye, Base::Held(fd, *dir));
            }
        }
    }
    // Leave the mount, so that it can be taken away.
    rustix::process::chdir("/").unwrap();
}

/// One look at something below a directory that is held.
fn below(eye: &mut Eye<'_>, base: Base<'_>) {
    let names = eye.truth.world.descendants(base.dir());
    if names.is_empty() || eye.chance.percent(15) {
        eye.list(base, base.dir(), Manner::Whole, false);
        return;
    }
    let id = *eye.chance.pick(&names);
    match eye.chance.below(10) {
        0..5 => eye.stat(base, id),
        5..9 => eye.read(base, id),
        _ => eye.stat_never(base, base.dir(), "never-held"),
    };
}

/// The root's path is empty; a system call wants a dot.
pub trait OrDot {
    /// The path, or a dot.
    fn or_dot(&self) -> &[u8];
}

impl OrDot for [u8] {
    fn or_dot(&self) -> &[u8] {
        if self.is_empty() { b"." } else { self }
    }
}
