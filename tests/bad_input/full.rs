//! A full disk: what was there stays, and the way back works.

use super::disk::{Disk, Kind, noise};
use super::listing::Listing;
use super::refusal::{arg, refused};
use super::support::tree::Tree;
use super::support::{self, Rig};
use std::fs;
use std::path::Path;

const FILLERS: &[&str] = &["filler", "filler.d", "reserve"];

fn page(text: &str) -> Tree {
    Tree::new().file("index.html", text).file("css/a.css", "a")
}

/// A store on a small disk of its own, with the releases 01, 02 and 03; 01 is active.
fn on_small_disk(kind: Kind, megabytes: u64) -> (Rig, Disk) {
    let rig = Rig::new();
    let disk = Disk::under(&rig, kind, megabytes);
    rig.init();
    for name in ["01", "02", "03"] {
        rig.add(name, &page(name));
    }
    rig.ok(&["switch", "01"]);
    (rig, disk)
}

fn served(rig: &Rig) -> String {
    fs::read_to_string(rig.mnt.join("index.html")).unwrap()
}

#[test]
fn a_source_that_does_not_fit_is_refused_before_anything_is_written() {
    if support::skip_mounted() {
        return;
    }
    let (rig, _disk) = on_small_disk(Kind::Ext4, 24);
    let source = rig.src.join("big");
    noise(&source.join("film"), 40 << 20);
    refused(&rig, &["add", "04", arg(&source)], 1, &[arg(&rig.store), "free", "space"]);
}

#[test]
fn a_disk_that_fills_during_add_keeps_the_old_state_and_leaves_no_litter() {
    if support::skip_mounted() {
        return;
    }
    for kind in [Kind::Tmpfs, Kind::Ext4] {
        let (mut rig, disk) = on_small_disk(kind, 24);
        rig.mount();
        let before = Listing::of(&rig.store).without(FILLERS);
        let source = rig.src.join("big");
        for number in 0..10 {
            noise(&source.join(format!("{number}")), 4 << 20);
        }
        let args = ["add", "04", arg(&source), "--skip-space-check"];
        for _ in 0..2 {
            let outcome = rig.verfs(&args);
            assert_eq!(outcome.code, 1, "{kind:?}: {outcome:?}");
            assert!(outcome.stderr.contains("No space left"), "{kind:?}: {outcome:?}");
            let after = Listing::of(&rig.store).without(FILLERS);
            before.assert_same_as(&after, "an add that met a full disk");
        }
        assert_eq!(served(&rig), "01");
        fs::remove_dir_all(&source).unwrap();
        rig.add("04", &page("04"));
        rig.ok(&["switch", "04"]);
        assert_eq!(served(&rig), "04");
        assert_eq!(Listing::of(&rig.store).below("tmp"), [Path::new("tmp")]);
        rig.umount();
        drop(disk);
    }
}

#[test]
fn a_disk_too_full_for_the_manifest_keeps_the_old_state() {
    if support::skip_mounted() {
        return;
    }
    for kind in [Kind::Tmpfs, Kind::Ext4] {
        let (rig, disk) = on_small_disk(kind, 24);
        // Nothing to store but names: 250 bytes of each.
        let mut tree = Tree::new();
        for number in 0..4000 {
            tree.insert(format!("{number:0>250}"), support::tree::Entry::File(Vec::new()));
        }
        rig.add("empty-file", &Tree::new().file("x", ""));
        let source = rig.src.join("names");
        tree.write(&source);
        disk.fill(256 << 10);
        let before = Listing::of(&rig.store).without(&["reserve"]);
        let outcome = rig.verfs(&["add", "04", arg(&source), "--skip-space-check"]);
        assert_eq!(outcome.code, 1, "{kind:?}: {outcome:?}");
        assert!(outcome.stderr.contains("No space left"), "{kind:?}: {outcome:?}");
        let after = Listing::of(&rig.store).without(&["reserve"]);
        before.assert_same_as(&after, "an add that had no room for the manifest");
        disk.empty();
        assert_eq!(rig.json(&["add", "04", arg(&source)])["files"], 4000);
    }
}

#[test]
fn switch_and_rollback_work_on_a_full_disk_thanks_to_the_reserve() {
    if support::skip_mounted() {
        return;
    }
    for kind in [Kind::Tmpfs, Kind::Ext4] {
        let (mut rig, disk) = on_small_disk(kind, 24);
        rig.mount();
        let lines = rig.json(&["log"]).as_array().unwrap().len();
        disk.fill(0);
        rig.ok(&["switch", "02", "-m", "on a full disk"]);
        assert_eq!(served(&rig), "02");
        rig.ok(&["rollback", "-m", "and back"]);
        assert_eq!(served(&rig), "01");
        rig.ok(&["switch", "03"]);
        assert_eq!(served(&rig), "03");
        let log = rig.json(&["log"]);
        let log = log.as_array().unwrap();
        assert_eq!(log.len(), lines + 3, "{kind:?}: the journal has every line: {log:?}");
        assert_eq!(log[lines]["message"], "on a full disk");
        assert_eq!(log[lines + 1]["message"], "and back");
        // What was answered on a full disk is durable: the next mount serves it.
        rig.umount();
        rig.mount();
        assert_eq!(served(&rig), "03");
        rig.umount();
    }
}

#[test]
fn switch_and_rollback_work_on_a_full_disk_without_a_daemon() {
    if support::skip_mounted() {
        return;
    }
    for kind in [Kind::Tmpfs, Kind::Ext4] {
        let (rig, disk) = on_small_disk(kind, 24);
        disk.fill(0);
        rig.ok(&["switch", "02"]);
        rig.ok(&["rollback"]);
        assert_eq!(rig.json(&["status"])["release"], "01", "{kind:?}");
        // The reserve comes back when there is room, and helps the next time too.
        disk.empty();
        rig.ok(&["gc"]);
        disk.fill(0);
        rig.ok(&["switch", "03"]);
        assert_eq!(rig.json(&["status"])["release"], "03", "{kind:?}");
    }
}

#[test]
fn switch_and_rollback_work_on_a_disk_without_inodes() {
    if support::skip_mounted() {
        return;
    }
    let (mut rig, disk) = on_small_disk(Kind::Ext4, 24);
    rig.mount();
    disk.fill_inodes();
    rig.ok(&["switch", "02"]);
    assert_eq!(served(&rig), "02");
    rig.ok(&["rollback"]);
    assert_eq!(served(&rig), "01");
    rig.umount();
}

#[test]
fn a_full_disk_can_be_mounted_and_read() {
    if support::skip_mounted() {
        return;
    }
    for kind in [Kind::Tmpfs, Kind::Ext4] {
        let (mut rig, disk) = on_small_disk(kind, 24);
        disk.fill(0);
        rig.mount();
        assert_eq!(served(&rig), "01");
        for verb in ["status", "list", "log", "verify", "gc"] {
            rig.ok(&[verb]);
        }
        rig.umount();
    }
}

#[test]
fn a_switch_that_needs_more_than_the_reserve_fails_and_the_old_release_stays() {
    if support::skip_mounted() {
        return;
    }
    let (mut rig, disk) = on_small_disk(Kind::Tmpfs, 48);
    // 120,000 changed files of two contents: much to note, little to store.
    for (name, text) in [("many-a", "a"), ("many-b", "b")] {
        let mut tree = Tree::new().file("index.html", name);
        for number in 0..60_000 {
            let path = format!("{}/{number}", number % 60);
            tree.insert(path, support::tree::Entry::File(text.into()));
        }
        let source = rig.src.join(name);
        tree.write(&source);
        rig.ok(&["add", name, arg(&source), "--skip-space-check"]);
    }
    rig.ok(&["switch", "many-a"]);
    rig.mount();
    disk.fill(0);
    let before = Listing::of(&rig.store).without(&["reserve", "journal.jsonl", "stamps"]);
    let outcome = rig.verfs(&["switch", "many-b"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("No space left"), "{outcome:?}");
    let after = Listing::of(&rig.store).without(&["reserve", "journal.jsonl", "stamps"]);
    before.assert_same_as(&after, "a switch that met a full disk");
    assert_eq!(served(&rig), "many-a");
    assert_eq!(fs::read(rig.mnt.join("7/7")).unwrap(), b"a");
    assert_eq!(rig.json(&["status"])["release"], "many-a");
    disk.empty();
    rig.ok(&["switch", "many-b"]);
    assert_eq!(served(&rig), "many-b");
    assert_eq!(fs::read(rig.mnt.join("7/7")).unwrap(), b"b");
    rig.umount();
}
