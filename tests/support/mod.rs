//! What the mounted tests share: a scratch store with its mount, release trees on disk,
//! the control socket, disks of their own, plain users, a look at a tree, and a watchdog that
//! ends a test whose mount hangs.
#![allow(dead_code)] // every test file uses a part of it
#![allow(clippy::unwrap_used)]

pub mod chance;
pub mod control;
pub mod deadline;
pub mod disk;
pub mod frozen;
pub mod guardian;
pub mod pages;
pub mod rig;
pub mod seen;
pub mod sys;
pub mod tree;
pub mod user;

pub use rig::Rig;

use std::path::Path;

/// True, and says so, if mounted tests are switched off with `VERFS_SKIP_MOUNTED=1`.
///
/// Without the variable a machine that cannot mount fails the test with the reason.
pub fn skip_mounted() -> bool {
    if std::env::var_os("VERFS_SKIP_MOUNTED").is_some_and(|value| value == "1") {
        eprintln!("skipped: VERFS_SKIP_MOUNTED=1, nothing is mounted");
        return true;
    }
    assert!(rustix::process::geteuid().is_root(), "mounted tests need root; VERFS_SKIP_MOUNTED=1 leaves them out");
    assert!(Path::new("/dev/fuse").exists(), "mounted tests need /dev/fuse; VERFS_SKIP_MOUNTED=1 leaves them out");
    false
}

/// True if the long variant of a test is asked for: scripts/test --long sets `VERFS_LONG=1`.
pub fn long() -> bool {
    std::env::var_os("VERFS_LONG").is_some_and(|value| value == "1")
}
