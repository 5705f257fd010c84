//! A release as plain data, and how it is laid down as a source directory.

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The mtime of everything in a source directory: a second long past, so that it differs from
/// every stamp that a switch gives.
pub const SOURCE_SECOND: i64 = 1_600_000_000;

/// One thing in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Dir,
    /// A file and its content.
    File(Vec<u8>),
    /// A symlink and its target.
    Symlink(Vec<u8>),
}

/// Paths below the root, without a leading slash, and what is there. Parents come by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<Vec<u8>, Entry>);

impl Tree {
    /// An empty tree.
    pub fn new() -> Tree {
        Tree::default()
    }

    /// With a directory at `path`.
    pub fn dir(self, path: impl AsRef<[u8]>) -> Tree {
        self.with(path, Entry::Dir)
    }

    /// With a file at `path`.
    pub fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Tree {
        self.with(path, Entry::File(content.as_ref().to_vec()))
    }

    /// With a symlink at `path`.
    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tree {
        self.with(path, Entry::Symlink(target.as_ref().to_vec()))
    }

    /// With `entry` at `path`, and directories above it.
    pub fn with(mut self, path: impl AsRef<[u8]>, entry: Entry) -> Tree {
        self.insert(path, entry);
        self
    }

    /// Puts `entry` at `path`, and directories above it.
    pub fn insert(&mut self, path: impl AsRef<[u8]>, entry: Entry) {
        let path = path.as_ref();
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            self.0.entry(path[..end].to_vec()).or_insert(Entry::Dir);
        }
        self.0.insert(path.to_vec(), entry);
    }

    /// Lays the tree down at `root`, which is made; every mtime is `SOURCE_SECOND`.
    pub fn write(&self, root: &Path) {
        fs::create_dir_all(root).unwrap();
        for (path, entry) in &self.0 {
            let path = root.join(on_disk(path));
            match entry {
                Entry::Dir => fs::create_dir(&path),
                Entry::File(content) => fs::write(&path, content),
                Entry::Symlink(target) => symlink(on_disk(target), &path),
            }
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        // Children last touch their parent, so the deepest come first.
        for path in self.0.keys().rev() {
            set_mtime(&root.join(on_disk(path)), SOURCE_SECOND);
        }
        set_mtime(root, SOURCE_SECOND);
    }
}

/// Sets mtime and atime of a path itself, in whole seconds.
pub fn set_mtime(path: &Path, second: i64) {
    let time = Timespec { tv_sec: second, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn on_disk(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}
