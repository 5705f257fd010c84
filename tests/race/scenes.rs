//! Small worlds of two releases, each made to show one thing.

use crate::world::{Builder, World};

/// Thousands of names, all of them changed by every switch: a transition that takes long.
pub fn all_changed(names: usize) -> World {
    let mut to = Builder::new();
    for release in 0..2 {
        to.release();
        to.file("index.html", release);
        for name in 0..names {
            to.file(&format!("d{}/name-{name}", name % 7), release);
        }
    }
    to.build()
}

/// Directories with directories in them that are in every second release only, with other names
/// each time they come back.
pub fn comers_and_goers() -> World {
    let mut to = Builder::new();
    for release in 0..4 {
        to.release();
        to.file("index.html", release);
        to.dir("in");
        for dir in (0..6).filter(|dir| (dir + release) % 2 == 0) {
            for name in 0..4 {
                to.file(&format!("in/d{dir}/f{name}"), release);
                to.file(&format!("in/d{dir}/sub/deep/f{name}"), release);
            }
            to.file(&format!("in/d{dir}/only-{release}"), 0);
            to.file(&format!("in/d{dir}/sub/only-{release}"), 0);
        }
    }
    to.build()
}

/// Directories with changed entries, in directories that have none: what their parents say of
/// them, their mtime, is all that changes there.
pub fn quiet_parents() -> World {
    let mut to = Builder::new();
    for release in 0..2 {
        to.release();
        to.file("index.html", release);
        for parent in 0..3 {
            for dir in 0..2 {
                to.file(&format!("p{parent}/d{dir}/x"), release);
                to.file(&format!("p{parent}/d{dir}/same"), 0);
            }
            if release == 0 {
                to.file(&format!("p{parent}/e/goes"), 0);
            } else {
                to.file(&format!("p{parent}/e/comes"), 0);
            }
        }
    }
    to.build()
}

/// Directories that change inside from the first to the second release and are not in the third.
pub fn changed_then_gone() -> World {
    let mut to = Builder::new();
    for release in 0..3 {
        to.release();
        to.file("index.html", release);
        to.dir("p");
        for dir in (0..4).filter(|_| release < 2) {
            to.file(&format!("p/d{dir}/f"), release);
        }
    }
    to.build()
}
