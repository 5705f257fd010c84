//! The stat cache of `add`: a file that looks as when it was read last is not read again, and never wrongly so.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;
use support::disk::SmallDisk;
use support::tree::{Tree, set_mtime};
use support::{Rig, skip_mounted, sys};

/// The file systems that are trusted.
const TRUSTED: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Until a change is so old that its time tells it from the next one.
const AGE: Duration = Duration::from_millis(2200);

/// A store, and sources on small disks of their own.
struct Scene {
    disks: Vec<SmallDisk>,
    rig: Rig,
}

impl Scene {
    /// `None`, and a line on standard error, where nothing can be mounted.
    fn on(kinds: &[&str]) -> Option<Self> {
        if skip_mounted() {
            return None;
        }
        let rig = Rig::new();
        rig.init();
        let disks = kinds.iter().map(|kind| SmallDisk::beside(&rig, kind)).collect();
        Some(Self { disks, rig })
    }

    /// Writes the tree into a directory of each disk.
    fn write(&self, tree: &Tree) -> Vec<PathBuf> {
        let sources: Vec<PathBuf> = self.disks.iter().map(|disk| disk.path().join("site")).collect();
        sources.iter().for_each(|source| tree.write(source));
        sources
    }

    /// Bytes that the add of the source read.
    fn add(&self, name: &str, source: &Path) -> u64 {
        self.add_with(name, source, &[])
    }

    fn add_with(&self, name: &str, source: &Path, options: &[&str]) -> u64 {
        let mut args = vec![OsStr::new("add"), OsStr::new(name), source.as_os_str()];
        args.extend(options.iter().map(OsStr::new));
        self.rig.json(&args)["read_bytes"].as_u64().unwrap()
    }

    /// What a release has of a path.
    fn content(&self, release: &str, path: &str) -> Vec<u8> {
        let dir = self.rig.root().join(format!("export-{release}"));
        self.rig.ok(&[OsStr::new("export"), OsStr::new(release), dir.as_os_str()]);
        let content = fs::read(dir.join(path)).unwrap();
        fs::remove_dir_all(dir).unwrap();
        content
    }

    fn cache(&self) -> PathBuf {
        self.rig.store.join("stat-cache")
    }
}

/// 100 bytes, and 100,000 with a name of their own.
fn tree() -> Tree {
    Tree::new().file("a/small", "s".repeat(100)).file("large", "l".repeat(100_000)).symlink("link", "large")
}

#[test]
fn what_looks_the_same_is_not_read_again() {
    let Some(scene) = Scene::on(&TRUSTED) else { return };
    let sources = scene.write(&tree());
    thread::sleep(AGE);
    for (kind, source) in TRUSTED.iter().zip(&sources) {
        let name = |number| format!("{kind}-{number}");
        assert_eq!(scene.add(&name(1), source), 100_100, "{kind}");
        assert_eq!(scene.add(&name(2), source), 0, "{kind}");
        // New names of known files, a new mode, a new file: what else there is to know is seen.
        fs::rename(source.join("a"), source.join("b")).unwrap();
        fs::write(source.join("new"), "n").unwrap();
        assert_eq!(scene.add(&name(3), source), 1, "{kind}");
        assert_eq!(scene.content(&name(3), "b/small"), [b's'; 100], "{kind}");
        assert_eq!(scene.add_with(&name(4), source, &["--rehash"]), 100_101, "{kind}");
        assert_eq!(scene.rig.json(&["diff", &name(1), &name(2)]), json!([]), "{kind}");
    }
}

#[test]
fn a_change_that_keeps_size_and_mtime_is_read() {
    let Some(scene) = Scene::on(&TRUSTED) else { return };
    let sources = scene.write(&tree());
    thread::sleep(AGE);
    for (kind, source) in TRUSTED.iter().zip(&sources) {
        scene.add(&format!("{kind}-1"), source);
        let small = source.join("a/small");
        let mtime = fs::metadata(&small).unwrap().mtime();
        OpenOptions::new().write(true).open(&small).unwrap().write_all_at(b"t", 50).unwrap();
        set_mtime(&small, mtime);
        assert_eq!(scene.add(&format!("{kind}-2"), source), 100, "{kind}");
        assert_eq!(scene.content(&format!("{kind}-2"), "a/small")[50], b't', "{kind}");
    }
}

#[test]
fn a_file_changed_just_before_is_read_again() {
    let Some(scene) = Scene::on(&["ext4"]) else { return };
    let source = &scene.write(&tree())[0];
    thread::sleep(AGE);
    fs::write(source.join("late"), "12345").unwrap();
    assert_eq!(scene.add("01", source), 100_105);
    assert_eq!(scene.add("02", source), 5, "its next change might have the same ctime");
    thread::sleep(AGE);
    assert_eq!(scene.add("03", source), 5);
    assert_eq!(scene.add("04", source), 0);
}

#[test]
fn a_store_into_a_page_that_was_dirty_already_is_seen() {
    let Some(scene) = Scene::on(&TRUSTED) else { return };
    let sources = scene.write(&tree());
    let mut mappings: Vec<_> = sources
        .iter()
        .map(|source| {
            let file = OpenOptions::new().read(true).write(true).open(source.join("large")).unwrap();
            sys::mapping(&file).unwrap()
        })
        .collect();
    mappings.iter_mut().for_each(|mapping| mapping[5] = b'1');
    thread::sleep(AGE);
    for ((kind, source), mapping) in TRUSTED.iter().zip(&sources).zip(&mut mappings) {
        scene.add(&format!("{kind}-1"), source);
        mapping[5] = b'2';
        scene.add(&format!("{kind}-2"), source);
        assert_eq!(scene.content(&format!("{kind}-1"), "large")[5], b'1', "{kind}");
        assert_eq!(scene.content(&format!("{kind}-2"), "large")[5], b'2', "{kind}");
    }
}

#[test]
fn a_write_that_is_under_way_is_waited_for() {
    thread::scope(|scope| {
        for kind in TRUSTED {
            scope.spawn(move || write_under_way(kind));
        }
    });
}

fn write_under_way(kind: &str) {
    let Some(scene) = Scene::on(&[kind]) else { return };
    let source = &scene.write(&tree())[0];
    let file = OpenOptions::new().write(true).open(source.join("large")).unwrap();
    thread::sleep(AGE);
    thread::scope(|scope| {
        let writer = scope.spawn(|| sys::write_slowly(&file, AGE * 2));
        thread::sleep(AGE + AGE / 2);
        scene.add("01", source);
        writer.join().unwrap().unwrap();
    });
    scene.add("02", source);
    let now = fs::read(source.join("large")).unwrap();
    assert_eq!(now[0], 0, "{kind}: the test wrote");
    assert!(scene.content("02", "large") == now, "{kind}");
}

#[test]
fn a_content_that_the_store_lost_is_read_again() {
    let Some(scene) = Scene::on(&["ext4"]) else { return };
    let source = &scene.write(&tree())[0];
    thread::sleep(AGE);
    scene.add("01", source);
    scene.rig.ok(&["remove", "01"]);
    scene.rig.ok(&["gc"]);
    assert_eq!(scene.add("02", source), 100_100);
    assert_eq!(scene.content("02", "large"), vec![b'l'; 100_000]);
}

#[test]
fn notes_of_another_boot_and_damaged_ones_are_not_used() {
    let Some(scene) = Scene::on(&["ext4"]) else { return };
    let source = &scene.write(&tree())[0];
    thread::sleep(AGE);
    scene.add("01", source);
    let noted = fs::read(scene.cache()).unwrap();
    assert_eq!(scene.add("02", source), 0);
    let changed = |at: usize| {
        let mut bytes = noted.clone();
        bytes[at] ^= 1;
        bytes
    };
    // The magic number, what it was noted of; then a device, an inode, a ctime, a hash.
    for (number, bytes) in [vec![], noted[..60].to_vec(), changed(0), changed(20)].into_iter().enumerate() {
        fs::write(scene.cache(), bytes).unwrap();
        assert_eq!(scene.add(&format!("whole-{number}"), source), 100_100, "case {number}");
    }
    for at in [40, 40 + 8, 40 + 40, 40 + 60] {
        fs::write(scene.cache(), changed(at)).unwrap();
        let read = scene.add(&format!("record-{at}"), source);
        assert!(read == 100 || read == 100_000, "byte {at}: {read}");
        assert_eq!(scene.content(&format!("record-{at}"), "large"), vec![b'l'; 100_000], "byte {at}");
    }
    fs::remove_file(scene.cache()).unwrap();
    fs::create_dir(scene.cache()).unwrap();
    assert_eq!(scene.add("no-file", source), 100_100, "and it succeeds");
}

#[test]
fn of_a_file_system_that_is_not_trusted_every_file_is_read() {
    let Some(scene) = Scene::on(&["ext4", "ext2"]) else { return };
    let sources = scene.write(&tree());
    let inside = sources[0].join("inside");
    fs::create_dir(&inside).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "inside"]).arg(&inside).status().unwrap();
    assert!(mounted.success(), "mounting a tmpfs");
    let _mounted = Undone(Command::new("umount"), [OsStr::new("--quiet").to_owned(), (&inside).into()]);
    fs::write(inside.join("file"), "123").unwrap();
    thread::sleep(AGE);
    for (source, names, read) in [(&sources[0], ["01", "02"], 3), (&sources[1], ["03", "04"], 100_100)] {
        scene.add(names[0], source);
        assert_eq!(scene.add(names[1], source), read, "{}", source.display());
    }
}

#[test]
fn notes_of_another_disk_under_the_same_number_are_not_used() {
    let Some(scene) = Scene::on(&[]) else { return };
    let root = scene.rig.root();
    let (at, first, second) = (root.join("at"), root.join("first.img"), root.join("second.img"));
    fs::create_dir(&at).unwrap();
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    let (old, new) = ("the old content".repeat(400), "the new content".repeat(400));
    File::create(&first).unwrap().set_len(64 << 20).unwrap();
    run(Command::new("mkfs.ext4").arg("-q").arg(&first));
    // No other test takes this device.
    let device = Path::new("/dev/loop211");
    if !device.exists() {
        run(Command::new("mknod").arg(device).args(["b", "7", "211"]));
    }
    let with = |image: &Path, work: &dyn Fn(&Path)| {
        // Somebody who has just looked at the device may still keep it from being taken.
        let attached = (0..100).any(|_| {
            thread::sleep(Duration::from_millis(50));
            Command::new("losetup").arg(device).arg(image).status().unwrap().success()
        });
        assert!(attached, "{image:?}");
        let _attached = Undone(Command::new("losetup"), [OsStr::new("-d").to_owned(), device.into()]);
        run(Command::new("mount").arg(device).arg(&at));
        let _mounted = Undone(Command::new("umount"), [OsStr::new("--quiet").to_owned(), (&at).into()]);
        work(&at.join("site"));
    };
    with(&first, &|site| Tree::new().file("page", &old).write(site));
    // Byte for byte the same disk, but for the content of the page.
    let mut bytes = fs::read(&first).unwrap();
    let page = bytes.windows(old.len()).position(|window| window == old.as_bytes()).unwrap();
    bytes[page..page + new.len()].copy_from_slice(new.as_bytes());
    fs::write(&second, bytes).unwrap();
    thread::sleep(AGE);
    with(&first, &|site| {
        scene.add("01", site);
        assert_eq!(scene.add("02", site), 0);
    });
    with(&second, &|site| assert_eq!(scene.add("03", site), new.len() as u64));
    assert!(scene.content("03", "page") == new.as_bytes());
}

#[test]
fn two_names_of_a_file_are_known_alike() {
    let Some(scene) = Scene::on(&["ext4"]) else { return };
    let source = &scene.write(&tree())[0];
    fs::hard_link(source.join("large"), source.join("twin")).unwrap();
    thread::sleep(AGE);
    assert_eq!(scene.add("01", source), 200_100);
    assert_eq!(scene.add("02", source), 0);
    assert_eq!(scene.rig.json(&["diff", "01", "02"]), json!([]));
}

/// Undoes something with a command when it goes.
struct Undone(Command, [OsString; 2]);

impl Drop for Undone {
    fn drop(&mut self) {
        let done = self.0.args(&self.1).status();
        assert!(thread::panicking() || done.unwrap().success(), "{:?}", self.0);
    }
}

#[test]
fn a_file_with_extended_attributes_is_read_again() {
    let Some(scene) = Scene::on(&["ext4"]) else { return };
    let source = &scene.write(&tree())[0];
    let file = File::open(source.join("a/small")).unwrap();
    rustix::fs::fsetxattr(&file, "user.kept", b"yes", rustix::fs::XattrFlags::empty()).unwrap();
    thread::sleep(AGE);
    scene.add("01", source);
    assert_eq!(scene.add("02", source), 100);
    assert_eq!(scene.rig.json(&["diff", "01", "02"]), json!([]));
}
