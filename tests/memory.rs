//! Memory: whatever users make in scopes, the daemon takes no more than it says.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::fs::{CWD, Mode, OFlags, RawDir};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs::{self, File};
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};
use support::tree::Tree;
use support::{Rig, skip_mounted};

const MIB: u64 = 1 << 10;

fn mounted() -> Rig {
    let mut rig = Rig::with_limit(Duration::from_secs(400));
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
    let settings = rig.store.join("verfs.toml");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(settings, format!("{text}ttl = \"forever\"\n")).unwrap();
    rig.add("01", &Tree::new().file("index.html", "one").dir("media"));
    rig.mount();
    rig
}

/// Names that the daemon knows at most, but for what came in the last moment (docs/SEMANTICS.md, S15).
const MOST_NAMES: u64 = 100_000;

/// How many nodes the kernel said it forgot.
fn forgotten(rig: &Rig) -> u64 {
    rig.json(&["status"])["upcalls"]["forget"].as_u64().unwrap()
}

/// A name of so many bytes.
fn long(number: usize, len: usize) -> String {
    format!("{number:0len$}")
}

/// Makes empty files behind the mount.
fn fill(dir: &Path, names: usize, len: usize) {
    fs::create_dir_all(dir).unwrap();
    for number in 0..names {
        File::create(dir.join(long(number, len))).unwrap();
    }
}

#[test]
fn names_that_nobody_asks_for_any_more_are_forgotten() {
    if skip_mounted() {
        return;
    }
    const DIRS: usize = 11;
    const NAMES: usize = 10_000;
    let rig = mounted();
    let behind = rig.store.join("media/media");
    for dir in 0..DIRS {
        fill(&behind.join(format!("d{dir}")), NAMES, 20);
    }
    let scope = rig.mnt.join("media");
    // What is open stays open, and what is mounted stays mounted, though both are older than all that follows.
    let inner = scope.join("d0/inner");
    fs::create_dir(&inner).unwrap();
    mount("none", &inner, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(inner.join("in it"), "mounted").unwrap();
    fs::write(scope.join("open"), "open").unwrap();
    let mut open = File::open(scope.join("open")).unwrap();
    for dir in 0..DIRS {
        for entry in fs::read_dir(scope.join(format!("d{dir}"))).unwrap() {
            entry.unwrap().path().symlink_metadata().unwrap();
        }
    }
    let end = Instant::now() + Duration::from_secs(120);
    while DIRS as u64 * NAMES as u64 > MOST_NAMES + forgotten(&rig) {
        assert!(Instant::now() < end, "{} names were forgotten", forgotten(&rig));
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut read = String::new();
    open.read_to_string(&mut read).unwrap();
    assert_eq!(read, "open");
    assert_eq!(fs::read(inner.join("in it")).unwrap(), b"mounted");
    unmount(&inner, UnmountFlags::empty()).unwrap();
    for dir in 0..DIRS {
        let file = scope.join(format!("d{dir}")).join(long(NAMES / 2, 20));
        fs::write(&file, "written").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"written");
    }
}

#[test]
fn listings_that_are_kept_open_take_no_more_than_some_mebibytes() {
    if skip_mounted() {
        return;
    }
    const LISTINGS: usize = 100;
    let rig = mounted();
    fill(&rig.store.join("media/media/d"), 10_000, 230);
    let dir = rig.mnt.join("media/d");
    let before = rig.rss_anon();
    let mut open: Vec<OwnedFd> = Vec::new();
    for _ in 0..LISTINGS {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let listing = rustix::fs::openat(CWD, &dir, flags, Mode::empty()).unwrap();
        let mut some = [MaybeUninit::uninit(); 4096];
        assert!(RawDir::new(&listing, &mut some).next().is_some());
        open.push(listing);
    }
    let grown = rig.rss_anon().saturating_sub(before);
    assert!(grown < 60 * MIB, "{grown} KiB for {LISTINGS} listings of 2.3 MiB");
    // Each goes on where it was.
    for listing in [&open[0], &open[LISTINGS - 1]] {
        let mut names = 0;
        let mut some = [MaybeUninit::uninit(); 4096];
        let mut rest = RawDir::new(listing, &mut some);
        while let Some(entry) = rest.next() {
            entry.unwrap();
            names += 1;
        }
        assert!(names > 9_900, "{names}");
    }
}
