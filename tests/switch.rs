//! What goes on beside a switch that takes its time: `status` is answered, and a disk that stands still stops nobody.
#![allow(clippy::unwrap_used)]

#[path = "race/stuck.rs"]
mod stuck;
mod support;

use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use stuck::Stuck;
use support::control::Control;
use support::disk::SmallDisk;
use support::tree::Tree;
use support::{Rig, skip_mounted};

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

fn two_releases(rig: &Rig) {
    for name in ["01", "02"] {
        rig.add(name, &Tree::new().file("index.html", name).file("d/page", name).file("cache/same", "same"));
    }
    rig.ok(&["switch", "01"]);
}

/// Asks for the status until it shows a switch in this phase, or `over`.
fn seen_in(phase: &str, control: &mut Control, over: impl Fn() -> bool) -> Option<Value> {
    let begun = Instant::now();
    while !over() {
        assert!(begun.elapsed() < PATIENCE, "no status shows a switch in the phase {phase:?}");
        let status = control.status().unwrap();
        if status["switching"]["phase"] == phase {
            return Some(status);
        }
    }
    None
}

#[test]
fn status_is_answered_while_a_switch_waits_for_its_second() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    two_releases(&rig);
    rig.setting("switch", "share_second", "false");
    rig.mount();
    let mut control = rig.control();
    let mut answered = 0;
    // A switch that is asked for at the turn of a second does not wait; not all of these are.
    for to in ["02", "01"].iter().cycle().take(20) {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                rig.control().switch(to).unwrap();
                done.store(true, Ordering::Relaxed);
            });
            let Some(status) = seen_in("second", &mut control, || done.load(Ordering::Relaxed)) else { return };
            answered += 1;
            let from = if *to == "02" { "01" } else { "02" };
            assert_eq!(status["release"], from, "what is served: {status}");
            assert_eq!((&status["switching"]["from"], &status["switching"]["to"]), (&from.into(), &(*to).into()));
            assert!(status["switching"]["since"].as_str().unwrap().ends_with('Z'), "{status}");
        });
        let status = control.status().unwrap();
        assert_eq!((&status["release"], &status["switching"]), (&(*to).into(), &Value::Null));
    }
    assert!(answered > 0, "no switch of twenty waited for a second");
}

#[test]
fn status_is_answered_while_a_stuck_client_holds_a_switch() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    two_releases(&rig);
    // Longer than the test waits for anything: only the end of the client ends this switch.
    rig.setting("switch", "limit_ms", "300000");
    rig.mount();
    let stuck = Stuck::start(&rig.mnt.join("d"));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let switching = scope.spawn(|| {
            let answer = rig.control().switch("02");
            done.store(true, Ordering::Relaxed);
            answer
        });
        let status = seen_in("drop", &mut rig.control(), || done.load(Ordering::Relaxed));
        // The switch cannot have ended: the client is still there.
        let status = status.expect("the switch waits for the client");
        assert_eq!((&status["release"], &status["switching"]["to"]), (&"01".into(), &"02".into()));
        drop(stuck);
        switching.join().unwrap().unwrap();
    });
    assert_eq!(rig.json(&["status"])["release"], "02");
}

/// A file system that stands still until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(disk: &SmallDisk) -> Frozen {
        fsfreeze("-f", disk.path());
        Frozen(disk.path().to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        fsfreeze("-u", &self.0);
    }
}

fn fsfreeze(how: &str, disk: &std::path::Path) {
    assert!(Command::new("fsfreeze").arg(how).arg(disk).status().unwrap().success(), "fsfreeze {how}");
}

#[test]
fn a_disk_of_media_that_stands_still_keeps_no_release_from_being_switched() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let disk = SmallDisk::beside(&rig, "ext4");
    let home = disk.path().join("layer");
    fs::create_dir(&home).unwrap();
    let home = home.to_str().unwrap();
    rig.ok(&["init", rig.store.to_str().unwrap(), "--per-release", "cache", "--media", home]);
    rig.setting("switch", "share_second", "true");
    two_releases(&rig);
    rig.add("03", &Tree::new().file("index.html", "03"));
    rig.mount();
    let frozen = Frozen::new(&disk);
    // The own layer of the second release cannot be made now, and that of the third is not even tried.
    for name in ["02", "03"] {
        let switched = rig.json(&["switch", name]);
        assert_eq!(switched["hidden"], Value::Null, "{switched}");
        let warnings = switched["warnings"].to_string();
        assert!(warnings.contains("not known") && warnings.contains(home), "{warnings}");
        assert_eq!(fs::read_to_string(rig.mnt.join("index.html")).unwrap(), name);
    }
    let threads = fs::read_dir(format!("/proc/{}/task", rig.pids()[0])).unwrap();
    let aside = threads.filter(|thread| {
        let comm = thread.as_ref().unwrap().path().join("comm");
        fs::read_to_string(comm).is_ok_and(|name| name.trim() == "verfs-aside")
    });
    assert_eq!(aside.count(), 1, "one thread waits for the disk");
    drop(frozen);
    // The thread makes both, late.
    let begun = Instant::now();
    for release in ["02", "03"] {
        while !disk.path().join("layer/own").join(release).join("media/cache").exists() {
            assert!(begun.elapsed() < PATIENCE, "the own layer of {release} is never made");
            thread::yield_now();
        }
    }
    let known = |name: &str| rig.json(&["switch", name])["hidden"].is_u64();
    while !known("01") && !known("02") {
        assert!(begun.elapsed() < PATIENCE, "the disk is never asked again");
    }
    rig.umount();
}

#[test]
fn what_a_switch_shows_again_of_a_disk_that_stands_still_is_looked_at_and_counts_as_changed() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let disk = SmallDisk::beside(&rig, "ext4");
    let home = disk.path().join("layer");
    fs::create_dir(&home).unwrap();
    rig.ok(&["init", rig.store.to_str().unwrap(), "--per-release", "cache", "--media", home.to_str().unwrap()]);
    two_releases(&rig);
    rig.mount();
    let page = rig.mnt.join("cache/page");
    fs::write(&page, "of 01").unwrap();
    rig.ok(&["switch", "02"]);
    fs::write(&page, "of 02").unwrap();
    let other = fs::metadata(&page).unwrap().mtime();
    let frozen = Frozen::new(&disk);
    rig.ok(&["switch", "01"]);
    let (look, looked) = mpsc::channel();
    thread::spawn({
        let page = page.clone();
        move || look.send((fs::metadata(&page).unwrap().mtime(), fs::read_to_string(&page).unwrap()))
    });
    let looked = looked.recv_timeout(PATIENCE);
    drop(frozen);
    let (mtime, content) = looked.expect("whoever looks waits for the disk");
    assert_eq!(content, "of 01");
    assert!(mtime > other, "{} s before what 02 has there", other - mtime);
    rig.umount();
}

#[test]
#[ignore = "the client of a test above, a process of its own"]
fn stays_inside_getdents_until_killed() {
    stuck::stay();
}

/// How many manifests of removed releases the daemon has mapped.
fn removed_and_mapped(rig: &Rig) -> usize {
    let maps = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let removed =
        |maps: String| maps.lines().filter(|line| line.contains("/releases/") && line.ends_with(" (deleted)")).count();
    rig.pids().iter().map(maps).map(removed).sum()
}

/// Waits until so many removed releases are mapped.
fn comes_to(rig: &Rig, mapped: usize) {
    let begun = Instant::now();
    while removed_and_mapped(rig) != mapped {
        let now = removed_and_mapped(rig);
        assert!(begun.elapsed() < PATIENCE, "{now} removed releases are mapped instead of {mapped}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A process that stands in a directory.
struct Inside(Child);

impl Inside {
    fn of(dir: &Path) -> Self {
        Self(Command::new("sleep").arg("600").current_dir(dir).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A release with a directory of its own.
fn release_of_its_own(n: usize) -> Tree {
    Tree::new()
        .file(format!("only-{n}/page"), format!("page {n}"))
        .file(format!("only-{n}/other"), format!("{n} other"))
}

#[test]
fn a_removed_release_is_let_go_when_nobody_is_in_it() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    rig.add("1", &release_of_its_own(1));
    rig.ok(&["switch", "1"]);
    rig.mount();
    let inside = Inside::of(&rig.mnt.join("only-1"));
    for n in 2..8 {
        rig.add(&n.to_string(), &release_of_its_own(n));
        rig.ok(&["switch", &n.to_string()]);
        assert_eq!(fs::read(rig.mnt.join(format!("only-{n}/page"))).unwrap(), format!("page {n}").as_bytes());
        if n > 2 {
            rig.ok(&["remove", &(n - 2).to_string()]);
        }
    }
    comes_to(&rig, 1);
    let there = PathBuf::from(format!("/proc/{}/cwd", inside.0.id()));
    assert_eq!(fs::metadata(there.join("other")).unwrap().len(), 7, "who is inside goes on");
    drop(inside);
    comes_to(&rig, 0);
}

#[test]
fn a_removed_release_is_let_go_when_no_listing_shows_it() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    for n in 1..5 {
        // More names than one getdents64(2) takes.
        let name = |at: usize| format!("many/of-{n}-called-{at}");
        rig.add(&n.to_string(), &(0..1200).fold(Tree::new(), |tree, at| tree.file(name(at), "x")));
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    let mut listing = fs::read_dir(rig.mnt.join("many")).unwrap();
    let mut names = vec![listing.next().unwrap().unwrap().file_name()];
    for to in ["2", "3", "2", "4", "3"] {
        rig.ok(&["switch", to]);
        // Under each there is a listing that is over.
        assert_eq!(fs::read_dir(rig.mnt.join("many")).unwrap().count(), 1200);
    }
    for name in ["1", "2"] {
        rig.ok(&["remove", name]);
    }
    comes_to(&rig, 1);
    names.extend(listing.by_ref().map(|entry| entry.unwrap().file_name()));
    assert_eq!(names.len(), 1200);
    for name in names {
        assert!(name.to_str().unwrap().starts_with("of-1-"), "{name:?} is not of the release that is listed");
    }
    // What the listing told the kernel beside the names keeps nothing.
    drop(listing);
    comes_to(&rig, 0);
}

#[test]
fn a_file_of_a_removed_release_that_stays_open_costs_its_name_one_lookup() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    rig.setting("switch", "share_second", "true");
    for n in 1..8 {
        rig.add(&n.to_string(), &Tree::new().file("index.html", format!("page {n}")));
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    let page = rig.mnt.join("index.html");
    let mut open = File::open(&page).unwrap();
    for n in 2..8 {
        rig.ok(&["switch", &n.to_string()]);
    }
    // While it is open, the kernel drops its name only if it is told to, and then calls it deleted.
    let mut now = File::open(&page).unwrap();
    let mut dropped = 0;
    rig.ok(&["remove", "1"]);
    for n in 2..6 {
        // Before it is let go, all that were removed earlier are searched.
        rig.ok(&["remove", &n.to_string()]);
        comes_to(&rig, 1);
        if fs::read_link(format!("/proc/self/fd/{}", now.as_raw_fd())).unwrap() != page {
            dropped += 1;
            now = File::open(&page).unwrap();
        }
    }
    assert!(dropped <= 1, "the name was dropped {dropped} times");
    for (file, release) in [(&mut open, 1), (&mut now, 7)] {
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, format!("page {release}"));
    }
    drop(open);
    comes_to(&rig, 0);
}

#[test]
fn a_removed_release_is_served_to_who_stands_in_a_scope_of_its_own() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.ok(&["init", rig.store.to_str().unwrap(), "--per-release", "cache"]);
    rig.setting("switch", "share_second", "true");
    for n in 1..6 {
        rig.add(&n.to_string(), &Tree::new().file("cache/lower", format!("lower of {n}")));
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    let inside = Inside::of(&rig.mnt.join("cache"));
    for n in 2..6 {
        rig.ok(&["switch", &n.to_string()]);
    }
    for n in 1..4 {
        // Before another is let go, all that were removed earlier are searched.
        rig.ok(&["remove", &n.to_string()]);
        comes_to(&rig, 1);
    }
    let lower = PathBuf::from(format!("/proc/{}/cwd/lower", inside.0.id()));
    assert_eq!(fs::read_to_string(lower).unwrap(), "lower of 1");
    drop(inside);
    let begun = Instant::now();
    while removed_and_mapped(&rig) > 0 {
        assert!(begun.elapsed() < PATIENCE, "it is mapped when nobody is in it");
        // What was looked up there holds it until the kernel drops it.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        thread::sleep(Duration::from_millis(100));
    }
}
