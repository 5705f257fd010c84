//! Deploys: a mount that lives for weeks keeps nothing of the releases that came and went,
//! but for what is in use.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use support::tree::Tree;
use support::{Rig, skip_mounted};

const MIB: u64 = 1 << 20;
/// How long a removed release may stay that nobody uses.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many deploys there are, every day and in the long run of the tests.
fn deploys() -> usize {
    if support::long() { 2000 } else { 50 }
}

/// A release with one changed file, some under new names, as a build tool makes them, and one in a scope.
fn release(number: usize) -> Tree {
    let page = format!("page {number}");
    let tree = Tree::new().file("index.html", page).file("same", "same").file("media/logo", "logo");
    (0..40).fold(tree, |tree, asset| tree.file(format!("assets/{asset}-{number}.js"), format!("asset {asset}")))
}

/// How many manifests of removed releases the daemon has mapped.
fn removed_and_mapped(rig: &Rig) -> usize {
    let maps = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let removed =
        |maps: String| maps.lines().filter(|line| line.contains("/releases/") && line.ends_with(" (deleted)")).count();
    rig.pids().iter().map(maps).map(removed).sum()
}

/// Bytes of the files in a directory and those below it.
fn bytes(dir: &Path) -> u64 {
    let (mut sum, mut dirs) = (0, vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false => sum += entry.metadata().unwrap().size(),
            }
        }
    }
    sum
}

/// The file of the journal that is written, and how many were put aside.
fn journal(rig: &Rig) -> (u64, usize) {
    let names = fs::read_dir(&rig.store).unwrap().map(|entry| entry.unwrap().file_name());
    let aside = names.filter(|name| name.to_str().unwrap().starts_with("journal.jsonl.")).count();
    (fs::metadata(rig.store.join("journal.jsonl")).unwrap().len(), aside)
}

fn deploy(rig: &Rig, number: usize) {
    let name = number.to_string();
    rig.add(&name, &release(number));
    fs::remove_dir_all(rig.src.join(&name)).unwrap();
    rig.ok(&["switch", &name]);
    // Visitors: by name, by a listing, and in a scope.
    assert_eq!(fs::read_to_string(rig.mnt.join("index.html")).unwrap(), format!("page {number}"));
    assert_eq!(fs::read_dir(rig.mnt.join("assets")).unwrap().count(), 40);
    fs::metadata(rig.mnt.join(format!("assets/7-{number}.js"))).unwrap();
    assert_eq!(fs::read(rig.mnt.join("media/logo")).unwrap(), b"logo");
    if number > 2 {
        rig.ok(&["remove", &(number - 2).to_string()]);
    }
    if number.is_multiple_of(10) {
        rig.ok(&["gc"]);
    }
}

#[test]
fn a_site_that_is_deployed_again_and_again_takes_no_more_than_one_that_is_not() {
    if skip_mounted() {
        return;
    }
    let deploys = deploys();
    let mut rig = Rig::with_limit(Duration::from_secs(120) + Duration::from_secs(2) * deploys as u32);
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
    rig.setting("switch", "share_second", "true");
    rig.add("1", &release(1));
    rig.mount();
    (2..=deploys / 2).for_each(|number| deploy(&rig, number));
    rig.ok(&["gc"]);
    let half = (rig.rss_anon(), bytes(&rig.store.join("objects")));
    (deploys / 2 + 1..=deploys).for_each(|number| deploy(&rig, number));
    rig.ok(&["gc"]);
    // The bounds are those of the table "What grows, and what bounds it" in docs/ARCHITECTURE.md.
    let begun = Instant::now();
    while removed_and_mapped(&rig) > 0 {
        // What the kernel knows of a scope holds its release until it is looked up again.
        fs::metadata(rig.mnt.join("media/logo")).unwrap();
        let mapped = removed_and_mapped(&rig);
        assert!(begun.elapsed() < PATIENCE, "{mapped} of {deploys} releases are mapped and removed");
        thread::sleep(Duration::from_millis(10));
    }
    let stamps = fs::metadata(rig.store.join("stamps")).unwrap().len();
    assert!(stamps < MIB + MIB / 16, "{stamps} bytes of stamps");
    let (written, aside) = journal(&rig);
    assert!(written < MIB + MIB / 16 && aside <= 16, "{written} bytes and {aside} files of the journal");
    let (memory, objects) = (rig.rss_anon(), bytes(&rig.store.join("objects")));
    assert!(memory < half.0 + 4 * 1024, "the daemon grew from {} to {memory} KiB", half.0);
    assert!(objects < half.1 + MIB / 16, "the objects grew from {} to {objects} bytes", half.1);
}

#[test]
fn a_symlink_of_a_removed_release_that_is_held_in_a_scope_keeps_its_mtime() {
    /// So many stamps that a few switches fill the file.
    const FILES: usize = 6000;
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::with_limit(Duration::from_secs(240));
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
    rig.setting("switch", "share_second", "true");
    for n in 1..7 {
        let tree = Tree::new().symlink("media/link", format!("{n}"));
        let files = if n > 4 { FILES } else { 0 };
        let tree = (0..files).fold(tree, |tree, file| tree.file(format!("many/{file}"), format!("{n}")));
        rig.add(&n.to_string(), &tree);
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    rig.ok(&["switch", "2"]);
    let link =
        File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(rig.mnt.join("media/link"));
    let link = link.unwrap();
    let stamped = link.metadata().unwrap().mtime();
    for n in 3..7 {
        rig.ok(&["switch", &n.to_string()]);
    }
    for n in [2, 1, 3, 4] {
        // Before it is let go, all that were removed earlier are searched. What is held keeps its manifest.
        rig.ok(&["remove", &n.to_string()]);
        let begun = Instant::now();
        while removed_and_mapped(&rig) != 1 {
            assert!(begun.elapsed() < PATIENCE, "{} removed releases are mapped", removed_and_mapped(&rig));
            thread::sleep(Duration::from_millis(10));
        }
    }
    let stamps = || fs::metadata(rig.store.join("stamps")).unwrap().len();
    let (mut len, mut switches) = (stamps(), 5..100);
    while stamps() >= len {
        len = stamps();
        let switch = switches.next().expect("the stamps are written anew");
        rig.ok(&["switch", if switch % 2 == 0 { "6" } else { "5" }]);
    }
    assert_eq!(link.metadata().unwrap().mtime(), stamped, "its release came later than its source was made");
}
