//! Large releases: what a switch costs afterwards, what stays as it was, and how much memory it takes.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::{Rig, skip_mounted};
use verfs::store::Store;
use verfs::store::release::manifest::{BuildNode, Builder};
use verfs::tree::{Digest, Kind};

fn upcalls(rig: &Rig, operation: &str) -> u64 {
    rig.json(&["status"])["upcalls"][operation].as_u64().unwrap()
}

/// Every file below a directory, found without following symlinks.
fn all_files(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}

fn mtimes(dir: &Path) -> BTreeMap<PathBuf, (i64, i64)> {
    let stamp = |path: &PathBuf| fs::symlink_metadata(path).map(|m| (m.mtime(), m.mtime_nsec())).unwrap();
    let mut all: BTreeMap<_, _> =
        all_files(dir).into_iter().map(|path| (path.strip_prefix(dir).unwrap().to_owned(), stamp(&path))).collect();
    all.insert(PathBuf::new(), stamp(&dir.to_owned()));
    all
}

#[test]
fn after_a_switch_only_what_changed_is_looked_up_again() {
    if skip_mounted() {
        return;
    }
    const DIRS: usize = 500;
    const FILES: usize = 100;
    const CHANGED: usize = 100;
    let mut rig = Rig::with_limit(Duration::from_secs(300));
    rig.init();
    let source = rig.src.join("tree");
    for dir in 0..DIRS {
        fs::create_dir_all(source.join(format!("d{dir}"))).unwrap();
        for file in 0..FILES {
            fs::write(source.join(format!("d{dir}/f{file}")), format!("{dir} {file}")).unwrap();
        }
    }
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    for n in 0..CHANGED {
        fs::write(source.join(format!("d{}/f7", n * DIRS / CHANGED)), "changed").unwrap();
    }
    rig.ok(&["add", "2", source.to_str().unwrap()]);
    rig.ok(&["switch", "1"]);
    rig.mount();
    let hot: Vec<PathBuf> = all_files(&rig.mnt);
    assert_eq!(hot.len(), DIRS * FILES);
    let read_all = || hot.iter().for_each(|path| assert!(!fs::read(path).unwrap().is_empty()));
    read_all();
    let before = upcalls(&rig, "lookup");
    read_all();
    assert_eq!(upcalls(&rig, "lookup"), before, "hot files cost no lookup");

    for to in ["2", "1", "2"] {
        let before = upcalls(&rig, "lookup");
        let switched = rig.json(&["switch", to]);
        let changed = switched["changed"].as_u64().unwrap();
        assert_eq!(changed as usize, CHANGED);
        read_all();
        let lookups = upcalls(&rig, "lookup") - before;
        let most = changed * 11 / 10 + CHANGED as u64 + 50;
        println!("switch to {to}: {changed} changed entries, {lookups} lookups, at most {most}");
        assert!(lookups >= changed && lookups <= most, "{lookups} lookups after {changed} changed entries");
        assert_eq!(fs::read(rig.mnt.join("d0/f7")).unwrap() == b"changed", to == "2");
    }
}

#[test]
fn a_checkout_with_new_mtimes_and_the_same_content_changes_nothing() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    let source = rig.src.join("tree");
    let touch = |seconds: u64| {
        for path in all_files(&source) {
            let file = fs::File::open(&path).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        }
    };
    for dir in ["a", "a/b", "c"] {
        fs::create_dir_all(source.join(dir)).unwrap();
        for file in 0..20 {
            fs::write(source.join(dir).join(format!("f{file}")), format!("{dir} {file}")).unwrap();
        }
    }
    touch(1_000_000_000);
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    touch(1_500_000_000);
    rig.ok(&["add", "2", source.to_str().unwrap()]);
    fs::write(source.join("a/b/f3"), "other content").unwrap();
    fs::remove_file(source.join("c/f0")).unwrap();
    // A time in the future is not served.
    touch(9_000_000_000);
    rig.ok(&["add", "3", source.to_str().unwrap()]);
    rig.ok(&["switch", "1"]);
    rig.mount();

    let first = mtimes(&rig.mnt);
    assert_eq!(first[Path::new("a/f1")], (1_000_000_000, 0));
    let switched = rig.json(&["switch", "2"]);
    assert_eq!(switched["changed"].as_u64().unwrap(), 0);
    assert_eq!(mtimes(&rig.mnt), first, "every served mtime is as before");

    let mut last = first;
    for to in ["3", "1", "3", "2"] {
        let now = |word: &str| SystemTime::now().duration_since(UNIX_EPOCH).expect(word).as_secs() as i64;
        let began = now("before");
        rig.ok(&["switch", to]);
        let served = mtimes(&rig.mnt);
        let changed = ["a/b/f3", "c/f0"].map(PathBuf::from);
        for (path, stamp) in &served {
            if changed.contains(path) {
                assert!(stamp.0 >= began && stamp.0 <= now("after"), "{path:?}: {stamp:?} is the second of the switch");
                if let Some(before) = last.get(path) {
                    assert!(stamp > before, "{path:?}: {stamp:?} after {before:?}");
                }
            } else if *path != PathBuf::new() {
                assert_eq!(Some(stamp), last.get(path), "{path:?} did not change");
            }
        }
        assert_eq!(served.contains_key(Path::new("c/f0")), to != "3");
        last = served;
    }
    // Another life of the daemon serves the same.
    rig.umount();
    rig.mount();
    assert_eq!(mtimes(&rig.mnt), last);
}

#[test]
fn a_release_of_a_million_files_is_mounted_and_walked_in_little_memory() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::with_limit(Duration::from_secs(600));
    rig.init();
    // Made by the library: a million files in a source directory would only test the disk.
    let mut builder = Builder::new(BuildNode::new(b"", Kind::Dir, 0o755));
    for top in 0..100 {
        let dir = builder.push(0, BuildNode::new(format!("directory-{top}").as_bytes(), Kind::Dir, 0o755));
        for below in 0..10 {
            let dir = builder.push(dir, BuildNode::new(format!("below-{below}").as_bytes(), Kind::Dir, 0o755));
            for file in 0..1000 {
                let mut node = BuildNode::new(format!("some-file-{file}.php").as_bytes(), Kind::File, 0o644);
                (node.digest, node.size) = (Digest::of(b""), 0);
                builder.push(dir, node);
            }
        }
    }
    let store = Store::open(&rig.store).unwrap();
    let name = "million".parse().unwrap();
    fs::write(store.manifest_path(&name), builder.encode(1).unwrap()).unwrap();

    let begun = Instant::now();
    rig.mount();
    println!("verfs mount: {} ms", begun.elapsed().as_millis());
    let begun = Instant::now();
    let mut walked = 0;
    for path in all_files(&rig.mnt) {
        walked += u64::from(fs::symlink_metadata(path).unwrap().is_file());
    }
    println!("walk of {walked} files: {:.1} s", begun.elapsed().as_secs_f64());
    assert_eq!(walked, 1_000_000);
    let anon = rig.rss_anon();
    println!("RssAnon after the walk: {anon} KiB");
    assert!(anon < 48 * 1024, "{anon} KiB");
}
