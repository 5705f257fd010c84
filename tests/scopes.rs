//! The rules of scopes, through the mount: denied names, layers of each release's own, times to believe, media on
//! another disk.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::fs::{AtFlags, CWD, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::disk::SmallDisk;
use support::tree::Tree;
use support::user::{WWW_DATA, another_process};
use support::{Rig, skip_mounted};

/// A store with these scopes (`[[scope]]` as in verfs.toml), and nothing in it.
fn store(scopes: &str) -> Rig {
    let rig = Rig::with_limit(Duration::from_secs(240));
    rig.init();
    append(&rig, scopes);
    rig
}

fn toml(rig: &Rig) -> PathBuf {
    rig.store.join("verfs.toml")
}

fn append(rig: &Rig, text: &str) {
    let before = fs::read_to_string(toml(rig)).unwrap();
    fs::write(toml(rig), format!("{before}\n{text}\n")).unwrap();
}

fn replace(rig: &Rig, from: &str, to: &str) {
    let before = fs::read_to_string(toml(rig)).unwrap();
    assert!(before.contains(from), "{from:?} is not in {before}");
    fs::write(toml(rig), before.replace(from, to)).unwrap();
}

/// Adds a release all of which is the web server's.
fn add(rig: &Rig, name: &str, tree: &Tree) {
    let source = rig.src.join(name);
    tree.write(&source);
    for path in tree.0.keys() {
        let path = source.join(std::str::from_utf8(path).unwrap());
        lchown(path, Some(33), Some(33)).unwrap();
    }
    chown(&source, Some(33), Some(33)).unwrap();
    rig.ok(&["add", name, source.to_str().unwrap()]);
}

/// What verfs.toml says that needs another mount.
fn reload(rig: &Rig) -> Vec<String> {
    let answer = rig.json(&["reload"]);
    answer["at_next_mount"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect()
}

fn errno<T>(result: Result<T, impl Into<std::io::Error>>) -> i32 {
    result.err().map_or(0, |error| error.into().raw_os_error().unwrap())
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn text(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn poll(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within a minute");
        thread::sleep(Duration::from_millis(20));
    }
}

/// How often a path was refused to a user, and why.
fn refused(rig: &Rig, path: &str, uid: u64) -> (u64, String) {
    let status = rig.json(&["status"]);
    let most: &Vec<Value> = status["refused"]["most"].as_array().unwrap();
    let total: u64 = most.iter().map(|refusal| refusal["count"].as_u64().unwrap()).sum();
    assert!(status["refused"]["total"].as_u64().unwrap() >= total);
    let found = most.iter().find(|refusal| refusal["path"] == path && refusal["uid"] == uid);
    found.map_or((0, String::new()), |refusal| {
        (refusal["count"].as_u64().unwrap(), refusal["why"].as_str().unwrap().to_owned())
    })
}

fn logged(rig: &Rig, path: &str, uid: u64) -> usize {
    let what = format!("refused a write of user {uid} to {path}:");
    fs::read_to_string(&rig.log).unwrap().lines().filter(|line| line.contains(&what)).count()
}

const DENYING: &str = r#"
[[scope]]
path = "media"
owner = "www-data:www-data"
deny = ["*.php", ".htaccess"]
"#;

fn denying() -> Rig {
    let mut rig = store(DENYING);
    let tree = Tree::new()
        .file("index", "index")
        .file("media/given.php", "<?php")
        .file("media/other.PHP", "<?php")
        .file("media/plain", "plain")
        .file("media/dir/inner", "inner");
    add(&rig, "1", &tree);
    add(&rig, "2", &tree.file("media/given.php", "<?php 2"));
    rig.ok(&["switch", "1"]);
    rig.mount();
    rig
}

/// Every way to make a name, in the working directory; each is refused.
fn make_in_every_way(name: &str) {
    let path = Path::new(name);
    let renamed = |from: &str, to: &str, flags| errno(rustix::fs::renameat_with(CWD, from, CWD, to, flags));
    let mode = Mode::from_raw_mode(0o644);
    let node = |kind| errno(rustix::fs::mknodat(CWD, name, kind, mode, 0));
    let outcomes = [
        ("O_CREAT", errno(File::create(path))),
        ("O_EXCL", errno(File::create_new(path))),
        ("mkdir", errno(fs::create_dir(path))),
        ("mknod", node(rustix::fs::FileType::RegularFile)),
        ("mkfifo", node(rustix::fs::FileType::Fifo)),
        ("a socket", node(rustix::fs::FileType::Socket)),
        ("symlink", errno(symlink("plain", path))),
        ("link", errno(fs::hard_link("mine", path))),
        ("rename", renamed("mine", name, RenameFlags::empty())),
        ("rename of a release's", renamed("plain", name, RenameFlags::empty())),
        ("RENAME_NOREPLACE", renamed("mine", name, RenameFlags::NOREPLACE)),
        ("rename of a directory", renamed("mydir", name, RenameFlags::empty())),
    ];
    for (what, outcome) in outcomes {
        assert_eq!(outcome, libc::EACCES, "{what} of {name}");
    }
    assert!(fs::symlink_metadata(path).is_err(), "{name} is there after all");
    // What is there cannot change places with anything, in either direction.
    for (from, to) in [("mine", "given.php"), ("given.php", "mine"), ("mine", "behind.php"), ("behind.php", "mine")] {
        assert_eq!(renamed(from, to, RenameFlags::EXCHANGE), libc::EACCES, "{from} and {to} exchanged");
    }
    assert_eq!(renamed("mine", "given.php", RenameFlags::empty()), libc::EACCES, "renamed over");
}

#[test]
fn a_denied_name_cannot_be_made_in_any_way_by_anybody() {
    if skip_mounted() {
        return;
    }
    let rig = denying();
    let scope = rig.mnt.join("media");
    fs::write(rig.store.join("media/media/behind.php"), "behind").unwrap();
    poll("a file that was put behind the mount", || scope.join("behind.php").exists());
    WWW_DATA.work_in(&scope, || {
        fs::write("mine", "mine").unwrap();
        fs::create_dir("mydir").unwrap();
    });
    for name in ["shell.php", "shell.PHP", ".htaccess", ".HtAccess", "dir/deep.Php"] {
        WWW_DATA.work_in(&scope, || make_in_every_way(name));
        another_process(|| {
            std::env::set_current_dir(&scope).unwrap();
            make_in_every_way(name);
            std::env::set_current_dir("/").unwrap();
        });
    }
    let seen: BTreeSet<String> = ["behind.php", "dir", "given.php", "mine", "mydir", "other.PHP", "plain"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    assert_eq!(names(&scope), seen);
    assert_eq!(text(scope.join("mine")), "mine");
    fs::write(scope.join("php"), "a name like it").unwrap();
    fs::write(scope.join("x.htaccess"), "another").unwrap();
}

#[test]
fn a_file_of_a_release_with_a_denied_name_stays_as_it_is() {
    if skip_mounted() {
        return;
    }
    let rig = denying();
    let scope = rig.mnt.join("media");
    let change = || {
        for name in ["given.php", "other.PHP"] {
            let written = File::options().write(true).open(name).and_then(|mut file| file.write_all(b"mine"));
            assert_eq!(errno(written), libc::EACCES, "writing to {name}");
            let appended = File::options().append(true).open(name).and_then(|mut file| file.write_all(b"mine"));
            assert_eq!(errno(appended), libc::EACCES, "appending to {name}");
            assert_eq!(errno(File::create(name)), libc::EACCES, "O_TRUNC of {name}");
            assert_eq!(errno(fs::set_permissions(name, fs::Permissions::from_mode(0o777))), libc::EACCES, "chmod");
            let set = rustix::fs::setxattr(name, "user.a", b"b", XattrFlags::empty());
            assert_eq!(errno(set), libc::EACCES, "setxattr of {name}");
            // Through another name the file could be changed.
            assert_eq!(errno(fs::hard_link(name, "harmless")), libc::EACCES, "link of {name}");
        }
    };
    WWW_DATA.work_in(&scope, change);
    another_process(|| {
        std::env::set_current_dir(&scope).unwrap();
        change();
        std::env::set_current_dir("/").unwrap();
    });
    assert_eq!(names(&rig.store.join("media/media")), BTreeSet::new(), "nothing was copied up");
    assert_eq!(text(scope.join("given.php")), "<?php");
    rig.ok(&["switch", "2"]);
    assert_eq!(text(scope.join("given.php")), "<?php 2");
}

#[test]
fn a_denied_name_that_is_there_can_be_read_renamed_away_and_removed() {
    if skip_mounted() {
        return;
    }
    let rig = denying();
    let scope = rig.mnt.join("media");
    let behind = rig.store.join("media/media");
    for round in 0..2 {
        fs::write(behind.join("behind.php"), "behind").unwrap();
        poll("a file that was put behind the mount", || scope.join("behind.php").exists());
        WWW_DATA.work_in(&scope, || {
            assert_eq!(text("behind.php"), "behind");
            match round {
                0 => fs::rename("behind.php", "behind.txt").unwrap(),
                _ => fs::remove_file("behind.php").unwrap(),
            }
            assert!(!Path::new("behind.php").exists());
        });
    }
    WWW_DATA.work_in(&scope, || {
        assert_eq!(text("given.php"), "<?php");
        fs::rename("given.php", "given.txt").unwrap();
        fs::remove_file("other.PHP").unwrap();
        assert_eq!(text("given.txt"), "<?php");
        // What went cannot come back.
        assert_eq!(errno(fs::rename("given.txt", "given.php")), libc::EACCES);
    });
    let left = ["behind.txt", "dir", "given.txt", "plain"].map(str::to_owned);
    assert_eq!(names(&scope), BTreeSet::from(left));
}

#[test]
fn a_file_with_a_denied_name_that_is_there_is_changed_by_nobody_and_by_none_of_its_names() {
    if skip_mounted() {
        return;
    }
    let rig = denying();
    let scope = rig.mnt.join("media");
    let behind = rig.store.join("media/media");
    fs::write(behind.join("behind.php"), "behind").unwrap();
    fs::hard_link(behind.join("behind.php"), behind.join("behind.txt")).unwrap();
    for name in ["behind.php", "behind.txt"] {
        chown(behind.join(name), Some(33), Some(33)).unwrap();
        poll("a file that was put behind the mount", || scope.join(name).exists());
    }
    let change = || {
        for name in ["behind.php", "behind.txt"] {
            let open = || File::options().read(true).write(true).open(name).unwrap();
            assert_eq!(errno(open().write_all(b"evil")), libc::EACCES, "writing to {name}");
            let appended = File::options().append(true).open(name).and_then(|mut file| file.write_all(b"evil"));
            assert_eq!(errno(appended), libc::EACCES, "appending to {name}");
            assert_eq!(errno(File::create(name)), libc::EACCES, "O_TRUNC of {name}");
            assert_eq!(errno(open().set_len(1)), libc::EACCES, "truncating {name}");
            let allocated = rustix::fs::fallocate(open(), rustix::fs::FallocateFlags::empty(), 0, 100);
            assert_eq!(errno(allocated), libc::EACCES, "fallocate of {name}");
            let copied = rustix::fs::copy_file_range(File::open("plain").unwrap(), None, open(), None, 5);
            assert_eq!(errno(copied), libc::EACCES, "copy_file_range to {name}");
            assert_eq!(errno(support::sys::store_through_a_mapping(&open(), b'e')), libc::EACCES, "msync of {name}");
            assert_eq!(errno(fs::hard_link(name, "harmless")), libc::EACCES, "link of {name}");
            poll("the page that was stored to is dropped", || text(name) == "behind");
        }
    };
    WWW_DATA.work_in(&scope, change);
    another_process(|| {
        std::env::set_current_dir(&scope).unwrap();
        change();
        std::env::set_current_dir("/").unwrap();
    });
    assert_eq!(text(behind.join("behind.php")), "behind");
    let why = "a denied name".to_owned();
    assert_eq!(refused(&rig, "media/behind.php", 33).1, why);
    WWW_DATA.work_in(&scope, || {
        // Without the denied name it is a file like any other.
        fs::remove_file("behind.php").unwrap();
        fs::write("behind.txt", "mine").unwrap();
        assert_eq!(text("behind.txt"), "mine");
    });
}

#[test]
fn a_plugin_that_is_refused_often_is_named_whatever_else_is_refused() {
    if skip_mounted() {
        return;
    }
    let rig = denying();
    for number in 0..1100 {
        assert_eq!(errno(File::create(rig.mnt.join(format!("temp-write-test-{number}")))), libc::EROFS);
    }
    for number in 0..1100 {
        // No digit, so each is one of its own.
        let name: String = format!("{number:04}").bytes().map(|digit| char::from(b'k' + digit - b'0')).collect();
        assert_eq!(errno(File::create(rig.mnt.join(name))), libc::EROFS);
    }
    for _ in 0..20 {
        assert_eq!(errno(fs::create_dir(rig.mnt.join("upgrade"))), libc::EROFS);
    }
    assert_eq!(refused(&rig, "temp-write-test-*", 0).0, 1100);
    assert_eq!(refused(&rig, "upgrade", 0).0, 20);
}

#[test]
fn refused_names_are_counted_by_path_and_user_and_logged_once() {
    if skip_mounted() {
        return;
    }
    let rig = denying();
    let scope = rig.mnt.join("media");
    let total = || rig.json(&["status"])["refused"]["total"].as_u64().unwrap();
    assert_eq!(total(), 0);
    WWW_DATA.work_in(&scope, || (0..3).for_each(|_| assert_eq!(errno(File::create("shell.php")), libc::EACCES)));
    assert_eq!(errno(fs::create_dir(scope.join("shell.php"))), libc::EACCES);
    assert_eq!(errno(fs::create_dir(scope.join("dir/.htaccess"))), libc::EACCES);
    let denied = "a denied name".to_owned();
    assert_eq!(refused(&rig, "media/shell.php", 33), (3, denied.clone()));
    assert_eq!(refused(&rig, "media/shell.php", 0), (1, denied.clone()));
    assert_eq!(refused(&rig, "media/dir/.htaccess", 0), (1, denied));
    assert_eq!(total(), 5);
    assert_eq!(rig.json(&["status"])["refused"]["most"][0]["path"], "media/shell.php", "the most frequent one first");
    for (path, uid) in [("media/shell.php", 33), ("media/shell.php", 0), ("media/dir/.htaccess", 0)] {
        assert_eq!(logged(&rig, path, uid), 1, "{path} of {uid}");
    }
}

#[test]
fn other_patterns_hold_after_a_reload_and_what_needs_a_mount_is_named() {
    if skip_mounted() {
        return;
    }
    let mut rig = denying();
    let scope = rig.mnt.join("media");
    assert_eq!(reload(&rig), Vec::<String>::new());
    assert_eq!(errno(File::create(scope.join("a.php"))), libc::EACCES);
    let patterns = r#"deny = ["*.php", ".htaccess"]"#;
    replace(&rig, patterns, r#"deny = ["*.txt"]"#);
    assert_eq!(errno(File::create(scope.join("a.php"))), libc::EACCES, "not before the reload");
    assert_eq!(reload(&rig), Vec::<String>::new());
    fs::write(scope.join("a.php"), "now").unwrap();
    fs::write(scope.join("given.php"), "now").unwrap();
    assert_eq!(errno(File::create(scope.join("a.TXT"))), libc::EACCES);
    for (from, to, named) in [
        ("\npath = \"media\"".to_owned(), "\npath = \"dir\"".to_owned(), "scope"),
        (r#"owner = "www-data:www-data""#.to_owned(), r#"owner = "root:root""#.to_owned(), "scope"),
        ("\npath = \"media\"".to_owned(), "\npath = \"media\"\nmode = \"0700\"".to_owned(), "scope"),
        ("\npath = \"media\"".to_owned(), "\npath = \"media\"\nper_release = true".to_owned(), "scope"),
        ("[switch]".to_owned(), format!("media = {:?}\n[switch]", rig.root().join("elsewhere")), "media"),
    ] {
        let before = fs::read_to_string(toml(&rig)).unwrap();
        replace(&rig, &from, &to);
        for _ in 0..2 {
            assert_eq!(reload(&rig), [named], "{from} to {to}");
        }
        assert_eq!(text(scope.join("a.php")), "now", "what is mounted goes on");
        fs::write(toml(&rig), before).unwrap();
        assert_eq!(reload(&rig), Vec::<String>::new());
    }
    rig.umount();
    rig.mount();
    assert_eq!(errno(File::create(scope.join("b.txt"))), libc::EACCES, "after a new mount too");
}

#[test]
fn refused_writes_outside_the_scopes_are_counted_by_path_and_user() {
    if skip_mounted() {
        return;
    }
    let rig = denying();
    for _ in 0..4 {
        assert_eq!(errno(File::create(rig.mnt.join("new"))), libc::EROFS);
    }
    let page = || File::options().write(true).open(rig.mnt.join("index")).and_then(|file| file.write_at(b"x", 0));
    assert_eq!([errno(page()), errno(page())], [libc::EROFS; 2]);
    assert_eq!(errno(fs::remove_file(rig.mnt.join("index"))), libc::EROFS);
    // The directory is the web server's, so the kernel asks for it too.
    WWW_DATA.work_in(&rig.mnt, || assert_eq!(errno(File::create("new")), libc::EROFS));
    let outside = "not in a scope".to_owned();
    assert_eq!(refused(&rig, "new", 0), (4, outside.clone()));
    assert_eq!(refused(&rig, "index", 0), (3, outside.clone()));
    assert_eq!(refused(&rig, "new", 33), (1, outside));
    assert_eq!(rig.json(&["status"])["refused"]["total"], 8);
    assert_eq!(logged(&rig, "new", 0), 1);
    assert_eq!(text(rig.mnt.join("index")), "index");
}

const OWN: &str = r#"
[[scope]]
path = "cache"
per_release = true
owner = "www-data:www-data"

[[scope]]
path = "media"
owner = "www-data:www-data"
"#;

/// Three releases with a scope to each, and 1 active.
fn own() -> Rig {
    let mut rig = store(OWN);
    for release in ["1", "2", "3"] {
        let tree = Tree::new()
            .file("cache/seed", format!("seed {release}"))
            .file("cache/dir/deep", format!("deep {release}"))
            .file(format!("cache/only-{release}"), release)
            .file("code", release)
            .dir("media");
        add(&rig, release, &tree);
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    rig
}

fn check_own(rig: &Rig, release: &str, more: &[&str]) {
    let cache = rig.mnt.join("cache");
    assert_eq!(text(rig.mnt.join("code")), release);
    assert_eq!(text(cache.join("seed")), format!("seed {release}"));
    assert_eq!(text(cache.join("dir/deep")), format!("deep {release}"));
    let only = format!("only-{release}");
    let there = ["dir", "seed", &only].iter().chain(more).map(|name| (*name).to_owned()).collect();
    assert_eq!(names(&cache), there, "release {release}");
    for name in more {
        assert_eq!(text(cache.join(name)), format!("{name} of {release}"));
    }
}

#[test]
fn each_release_sees_its_own_files_over_switches_mounts_and_a_killed_daemon() {
    if skip_mounted() {
        return;
    }
    let mut rig = own();
    let cache = rig.mnt.join("cache");
    let mut control = rig.control();
    let mut switch = |to: &str| drop(control.switch(to).unwrap());
    for release in ["1", "2", "3"] {
        switch(release);
        check_own(&rig, release, &[]);
        WWW_DATA.work_in(&cache, || fs::write("mine", format!("mine of {release}")).unwrap());
        check_own(&rig, release, &["mine"]);
    }
    switch("2");
    WWW_DATA.work_in(&cache, || {
        fs::write("more", "more of 2").unwrap();
        fs::remove_file("only-2").unwrap();
        fs::write("only-2", "only-2 of 2").unwrap();
    });
    let check = |rig: &Rig, release: &str| match release {
        "2" => {
            assert_eq!(text(rig.mnt.join("cache/only-2")), "only-2 of 2");
            assert_eq!(names(&rig.mnt.join("cache")).len(), 5);
            assert_eq!(text(rig.mnt.join("cache/more")), "more of 2");
        }
        other => check_own(rig, other, &["mine"]),
    };
    for round in 0..20 {
        let to = ["1", "2", "3"][round % 3];
        switch(to);
        check(&rig, to);
    }
    rig.ok(&["switch", "1"]);
    rig.ok(&["switch", "3"]);
    rig.ok(&["rollback"]);
    check(&rig, "1");
    rig.umount();
    rig.mount();
    check(&rig, "1");
    rig.ok(&["switch", "2"]);
    check(&rig, "2");
    let pid = rustix::process::Pid::from_raw(rig.pids()[0] as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    rig.mount();
    for release in ["2", "1", "3"] {
        rig.ok(&["switch", release]);
        check(&rig, release);
    }
    assert_eq!(text(rig.store.join("own/2/media/cache/more")), "more of 2", "a plain file in the store");
}

/// Three releases with a scope to each, whose switches share no second.
fn own_seconds() -> Rig {
    let rig = own();
    rig.setting("switch", "share_second", "false");
    rig.ok(&["reload"]);
    rig
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// The mtime of a name itself.
fn mtime(path: impl AsRef<Path>) -> (i64, i64) {
    let path = path.as_ref();
    let meta = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (meta.mtime(), meta.mtime_nsec())
}

fn set_mtime(path: impl AsRef<Path>, second: u64) {
    let file = File::options().read(true).open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(second))).unwrap();
}

#[test]
fn what_a_switch_shows_in_a_release_s_own_scope_shares_its_second_with_nothing_that_was_there() {
    if skip_mounted() {
        return;
    }
    let mut rig = own_seconds();
    let cache = rig.mnt.join("cache");
    // Written in both releases, written in one of them, of both releases alone, and in a directory of both layers.
    let paths = ["mine", "seed", "dir/deep", "dir/mine"];
    let mut seen: HashMap<(&str, i64), Option<String>> = HashMap::new();
    let mut look = |cache: &Path, what: &str| {
        for path in paths {
            let Ok(content) = fs::read_to_string(cache.join(path)) else { continue };
            let second = mtime(cache.join(path)).0;
            assert!(second <= now(), "{what}: {path} is of a time to come");
            let other = seen.insert((path, second), Some(content.clone())).flatten();
            assert!(other.is_none_or(|other| other == content), "{what}: {path} had another content in {second}");
        }
    };
    for round in 0..3 {
        for to in ["2", "1"] {
            for path in ["mine", "dir/mine"] {
                fs::write(cache.join(path), format!("before {to}, {round}")).unwrap();
            }
            if to == "2" {
                fs::write(cache.join("seed"), format!("before {to}, {round}")).unwrap();
            }
            look(&cache, "written");
            let asked = now();
            rig.ok(if to == "2" { ["switch", "2"].as_slice() } else { &["rollback"] });
            for path in paths.into_iter().chain(["", "dir"]).filter(|path| cache.join(path).exists()) {
                let second = mtime(cache.join(path)).0;
                assert!(second >= asked, "{path} is {} s older than the switch to {to}", asked - second);
            }
            look(&cache, "switched");
        }
        if round == 1 {
            let before = paths.map(|path| mtime(cache.join(path)));
            rig.umount();
            // Without a mount the same holds for the next one.
            rig.ok(&["switch", "2"]);
            rig.ok(&["switch", "1"]);
            rig.mount();
            look(&cache, "switched without a mount");
            let after = paths.map(|path| mtime(cache.join(path)));
            assert!(before.iter().zip(&after).all(|(before, after)| before < after), "{before:?} {after:?}");
            rig.umount();
            rig.mount();
            assert_eq!(paths.map(|path| mtime(cache.join(path))), after, "after a new mount");
        }
    }
}

#[test]
fn a_switch_that_takes_longer_than_it_meant_to_shows_a_later_mtime() {
    if skip_mounted() {
        return;
    }
    let mut rig = own_seconds();
    let mine = rig.mnt.join("cache/mine");
    fs::write(&mine, "of 1").unwrap();
    rig.ok(&["switch", "2"]);
    fs::write(&mine, "of 2").unwrap();
    rig.umount();
    let held = rig.root().join("held");
    rig.mount_with_env(&[("VERFS_FAULT", &format!("hold:switch.recorded:{}", held.display()))]);
    let asked = now();
    thread::scope(|scope| {
        let switch = scope.spawn(|| rig.ok(&["switch", "1"]));
        poll("the switch", || held.exists() && now() > asked + 4);
        assert_eq!(text(&mine), "of 2");
        fs::write(&mine, "Of 2").unwrap();
        let other = mtime(&mine);
        fs::remove_file(&held).unwrap();
        switch.join().unwrap();
        assert_eq!(text(&mine), "of 1");
        assert!(mtime(&mine).0 > other.0, "{:?} and {other:?}", mtime(&mine));
    });
    let shown = mtime(&mine);
    rig.umount();
    rig.mount();
    assert_eq!(mtime(&mine), shown, "after a new mount");
}

#[test]
fn what_a_switch_shows_shares_its_second_with_nothing_that_a_restore_has_just_shown() {
    if skip_mounted() {
        return;
    }
    let rig = own_seconds();
    // The same release by another name: a switch to it takes no second of its own.
    let same = Tree::new()
        .file("cache/seed", "seed 1")
        .file("cache/dir/deep", "deep 1")
        .file("cache/only-1", "1")
        .file("code", "1")
        .dir("media");
    add(&rig, "same", &same);
    let seed = rig.mnt.join("cache/seed");
    rig.ok(&["switch", "same"]);
    fs::write(&seed, "of same").unwrap();
    rig.ok(&["switch", "1"]);
    for round in 0..3 {
        fs::write(&seed, "of 1").unwrap();
        thread::scope(|scope| {
            let restore = scope.spawn(|| rig.ok(&["media", "restore", "cache/seed"]));
            poll("the restore", || text(&seed) == "seed 1");
            let restored = mtime(&seed).0;
            rig.ok(&["switch", "same"]);
            let (switched, answered) = (mtime(&seed).0, now());
            assert_eq!(text(&seed), "of same");
            assert!(restored < switched && switched < answered, "{round}: {restored}, {switched}, {answered}");
            restore.join().unwrap();
        });
        rig.ok(&["switch", "1"]);
    }
}

/// A change of the file at a path that leaves its content.
type Change = &'static dyn Fn(&Path);

#[test]
fn what_a_switch_showed_again_keeps_its_mtime_whatever_changes_but_its_content() {
    if skip_mounted() {
        return;
    }
    let mut rig = own_seconds();
    let cache = rig.mnt.join("cache");
    let changes: [(&str, Change); 11] = [
        ("chmod", &|file| fs::set_permissions(file, fs::Permissions::from_mode(0o640)).unwrap()),
        ("chown", &|file| chown(file, Some(33), Some(34)).unwrap()),
        ("setxattr", &|file| rustix::fs::setxattr(file, "user.a", b"a", XattrFlags::empty()).unwrap()),
        ("link", &|file| fs::hard_link(file, file.with_extension("link")).unwrap()),
        ("rename", &|file| {
            fs::rename(file, file.with_extension("away")).unwrap();
            fs::rename(file.with_extension("away"), file).unwrap();
        }),
        ("unlink", &|file| fs::remove_file(file.with_extension("other")).unwrap()),
        ("replace", &|file| {
            fs::write(file.with_extension("new"), "").unwrap();
            fs::rename(file.with_extension("new"), file.with_extension("other")).unwrap();
        }),
        ("exchange", &|file| {
            let other = file.with_extension("with");
            fs::write(&other, "").unwrap();
            for _ in 0..2 {
                rustix::fs::renameat_with(CWD, file, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
        }),
        ("atime", &|file| {
            let times = fs::FileTimes::new().set_accessed(UNIX_EPOCH + Duration::from_secs(5));
            File::open(file).unwrap().set_times(times).unwrap();
        }),
        ("copy-up", &|file| chown(file.with_file_name("seed"), Some(33), Some(34)).unwrap()),
        ("nothing", &|_| ()),
    ];
    for (name, _) in &changes {
        fs::write(cache.join(name), "content").unwrap();
        fs::hard_link(cache.join(name), cache.join(name).with_extension("other")).unwrap();
        set_mtime(cache.join(name), 1_000_000_000);
    }
    symlink("seed", cache.join("symlink")).unwrap();
    fs::create_dir(cache.join("own")).unwrap();
    let others = ["symlink", "own", "seed", "unlink.other", "dir/deep"];
    let asked = now();
    rig.ok(&["switch", "2"]);
    rig.ok(&["rollback"]);
    let shown = |name: &str| mtime(cache.join(name));
    let all = || changes.iter().map(|(name, _)| *name).chain(others).filter(|name| cache.join(name).exists());
    let before: HashMap<&str, _> = all().map(|name| (name, shown(name))).collect();
    assert!(before.values().all(|mtime| mtime.0 > asked), "{before:?}");
    for (name, change) in &changes {
        change(&cache.join(name));
        assert_eq!(shown(name), before[name], "after {name}");
    }
    rustix::fs::chownat(
        CWD,
        cache.join("symlink"),
        Some(rustix::fs::Uid::from_raw(33)),
        None,
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    fs::set_permissions(cache.join("own"), fs::Permissions::from_mode(0o700)).unwrap();
    let after = |what: &str| {
        for name in all().filter(|name| *name != "unlink.other") {
            assert_eq!(shown(name), before[name], "{name}, {what}");
        }
    };
    after("after all changes");
    rig.umount();
    rig.mount();
    after("after a new mount");
    // Who asks for a time gets it, an earlier one too, and keeps it until the next switch.
    set_mtime(cache.join("nothing"), 1_234_567_890);
    assert_eq!(shown("nothing"), (1_234_567_890, 0));
    fs::set_permissions(cache.join("nothing"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(shown("nothing"), (1_234_567_890, 0), "after chmod");
    fs::write(cache.join("chmod"), "another").unwrap();
    assert!(shown("chmod") > before["chmod"]);
}

#[test]
fn what_is_open_in_a_release_s_own_scope_stays_that_release_s() {
    if skip_mounted() {
        return;
    }
    let rig = own();
    let cache = rig.mnt.join("cache");
    fs::write(cache.join("mine"), "mine of 1").unwrap();
    fs::create_dir(cache.join("many")).unwrap();
    let many: BTreeSet<String> = (0..600).map(|number| format!("a-file-with-a-long-name-{number}")).collect();
    many.iter().for_each(|name| fs::write(cache.join("many").join(name), "").unwrap());
    let open = |name: &str| File::options().read(true).write(true).open(cache.join(name)).unwrap();
    let (mut upper, mut lower, mut apart) = (open("mine"), open("seed"), open("only-1"));
    let mut listing = rustix::fs::Dir::read_from(File::open(cache.join("many")).unwrap()).unwrap();
    let mut listed = vec![listing.read().unwrap().unwrap().file_name().to_string_lossy().into_owned()];
    another_process(|| {
        std::env::set_current_dir(&cache).unwrap();
        rig.ok(&["switch", "2"]);
        // The working directory is still the one of release 1.
        assert_eq!(text("mine"), "mine of 1");
        assert_eq!(text("seed"), "seed 1");
        assert!(names(Path::new(".")).contains("many"));
        fs::write("late", "late of 1").unwrap();
        assert_eq!(text("late"), "late of 1");
        std::env::set_current_dir("/").unwrap();
    });
    check_own(&rig, "2", &[]);
    for (file, was) in [(&mut upper, "mine of 1"), (&mut lower, "seed 1"), (&mut apart, "1")] {
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, was);
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(b"WRITTEN LATE").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        read.clear();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "WRITTEN LATE");
    }
    listed.extend(listing.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()));
    listed.retain(|name| !name.starts_with('.'));
    assert_eq!(listed.len(), 600, "no name is listed twice");
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), many);
    check_own(&rig, "2", &[]);
    rig.ok(&["rollback"]);
    for name in ["mine", "seed", "only-1"] {
        assert_eq!(text(cache.join(name)), "WRITTEN LATE", "{name}");
    }
    assert_eq!(text(cache.join("late")), "late of 1");
    assert_eq!(text(rig.store.join("own/1/media/cache/late")), "late of 1");
    assert!(!rig.store.join("own/2/media/cache/late").exists());
}

#[test]
fn a_release_that_is_removed_takes_its_own_files_along_and_gc_sweeps_what_is_left() {
    if skip_mounted() {
        return;
    }
    let rig = own();
    for release in ["1", "2", "3"] {
        rig.ok(&["switch", release]);
        fs::write(rig.mnt.join("cache/mine"), format!("mine of {release}")).unwrap();
    }
    let own = rig.store.join("own");
    assert_eq!(names(&own), BTreeSet::from(["1", "2", "3"].map(str::to_owned)));
    rig.ok(&["remove", "1"]);
    assert_eq!(names(&own), BTreeSet::from(["2", "3"].map(str::to_owned)));
    // As a command leaves it that was stopped half-way.
    fs::create_dir_all(own.join("ghost/media/cache")).unwrap();
    fs::write(own.join("ghost/media/cache/file"), "left").unwrap();
    rig.ok(&["gc"]);
    assert_eq!(names(&own), BTreeSet::from(["2", "3"].map(str::to_owned)));
    check_own(&rig, "3", &["mine"]);
    rig.ok(&["rollback"]);
    check_own(&rig, "2", &["mine"]);
    // A new release of the old name begins with nothing.
    let source = rig.src.join("1");
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    rig.ok(&["switch", "1"]);
    check_own(&rig, "1", &[]);
}

#[test]
fn no_reader_sees_another_release_s_own_files_after_a_switch_returned() {
    if skip_mounted() {
        return;
    }
    let rig = own();
    for release in ["1", "2"] {
        rig.ok(&["switch", release]);
        for name in ["mine", "other"] {
            fs::write(rig.mnt.join("cache").join(name), format!("{name} of {release}")).unwrap();
        }
    }
    // Even: the release is the one of the list; odd: a switch is under way.
    let (moment, over, reads) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicUsize::new(0));
    let release = |moment: usize| ["2", "1"][moment / 2 % 2];
    thread::scope(|threads| {
        for reader in 0..3 {
            let (rig, moment, over, reads) = (&rig, &moment, &over, &reads);
            threads.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let name = ["mine", "other", "seed"][reader];
                    let begun = moment.load(Ordering::SeqCst);
                    let read = text(rig.mnt.join("cache").join(name));
                    let listed = names(&rig.mnt.join("cache"));
                    let ended = moment.load(Ordering::SeqCst);
                    assert!(read.ends_with(['1', '2']), "{read:?} is nobody's");
                    if begun == ended && begun % 2 == 0 {
                        let now = release(begun);
                        assert!(read.ends_with(now), "{name} was {read:?} under release {now}");
                        assert!(listed.contains(&format!("only-{now}")), "{listed:?} under release {now}");
                        reads.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        let switches = || {
            let mut control = rig.control();
            for _ in 0..100 {
                let next = release(moment.load(Ordering::SeqCst) + 2);
                moment.fetch_add(1, Ordering::SeqCst);
                control.switch(next).unwrap();
                check_own(&rig, next, &["mine", "other"]);
                let seen = reads.load(Ordering::SeqCst);
                moment.fetch_add(1, Ordering::SeqCst);
                // Readers look between two switches, too.
                poll("readers", || reads.load(Ordering::SeqCst) > seen + 2);
            }
        };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(switches));
        over.store(true, Ordering::SeqCst);
        done.unwrap();
    });
}

#[test]
fn scopes_are_to_each_other_as_file_systems_are() {
    if skip_mounted() {
        return;
    }
    let mut rig =
        store("[[scope]]\npath = \"a\"\n[[scope]]\npath = \"b\"\n[[scope]]\npath = \"own\"\nper_release = true\n");
    add(&rig, "1", &Tree::new().file("a/given", "given").file("outside", "outside").dir("b").dir("own"));
    rig.mount();
    let at = |path: &str| rig.mnt.join(path);
    fs::write(at("a/file"), "file").unwrap();
    fs::create_dir(at("a/dir")).unwrap();
    fs::write(at("a/dir/inner"), "inner").unwrap();
    fs::write(at("b/there"), "there").unwrap();
    let exchange = |from, to| rustix::fs::renameat_with(CWD, at(from), CWD, at(to), RenameFlags::EXCHANGE);
    for to in ["b/new", "own/new", "b/there", "new"] {
        for from in ["a/file", "a/given", "a/dir"] {
            // A directory never replaces a file, on any file system.
            let expected = if (from, to) == ("a/dir", "b/there") { libc::ENOTDIR } else { libc::EXDEV };
            assert_eq!(errno(fs::rename(at(from), at(to))), expected, "{from} to {to}");
        }
    }
    for to in ["b/new", "own/new"] {
        for from in ["a/file", "a/given", "outside"] {
            assert_eq!(errno(fs::hard_link(at(from), at(to))), libc::EXDEV, "link of {from} as {to}");
        }
    }
    assert_eq!(errno(exchange("a/file", "b/there")), libc::EXDEV);
    assert_eq!(errno(fs::rename(at("outside"), at("a/outside"))), libc::EXDEV);
    for (what, to) in [("file", "b"), ("dir", "b"), ("given", "own")] {
        let moved = Command::new("mv").arg(at("a").join(what)).arg(at(to)).status().unwrap();
        assert!(moved.success(), "mv {what}");
        assert!(!at("a").join(what).exists());
    }
    assert_eq!((text(at("b/file")), text(at("b/dir/inner"))), ("file".to_owned(), "inner".to_owned()));
    assert_eq!(text(at("own/given")), "given");
}

#[test]
fn directories_that_change_places_stay_the_directories_that_somebody_is_in() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"a\"\n");
    add(&rig, "1", &Tree::new().dir("a"));
    rig.mount();
    let at = |path: &str| rig.mnt.join("a").join(path);
    let mut held = Vec::new();
    for (dir, other) in [("x", "y"), ("y", "x")] {
        fs::create_dir_all(at(dir).join("sub")).unwrap();
        fs::write(at(dir).join("sub/file"), dir).unwrap();
        for path in ["", "sub"] {
            let open = File::open(at(dir).join(path)).unwrap();
            held.push((at(other).join(path), open.metadata().unwrap().ino(), open));
        }
    }
    rustix::fs::renameat_with(CWD, at("x"), CWD, at("y"), RenameFlags::EXCHANGE).unwrap();
    for (now, number, open) in &held {
        assert_eq!(open.metadata().unwrap().ino(), *number, "{}", now.display());
        assert_eq!(fs::metadata(now).unwrap().ino(), *number, "{}", now.display());
        let there = || rustix::fs::Dir::read_from(open).unwrap().map(|entry| entry.unwrap().file_name().to_owned());
        assert!(there().any(|name| [c"sub", c"file"].contains(&&*name)), "{}", now.display());
    }
    assert_eq!((text(at("y/sub/file")), text(at("x/sub/file"))), ("x".to_owned(), "y".to_owned()));
}

#[test]
fn with_entries_believed_for_ever_changes_and_switches_are_seen_at_once() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"media\"\nttl = \"forever\"\n");
    for release in ["1", "2"] {
        let tree = Tree::new()
            .file("media/changes", format!("changes {release}"))
            .file("media/dir/deep", format!("deep {release}"))
            .file("media/hidden", release)
            .file(format!("media/only-{release}"), release);
        add(&rig, release, &tree);
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    let scope = rig.mnt.join("media");
    for round in 0..30 {
        let (from, to) = if round % 2 == 0 { ("1", "2") } else { ("2", "1") };
        let (here, there) = (format!("only-{from}"), format!("only-{to}"));
        // All of it is in the kernel's cache, what is not there too.
        assert!(scope.join(&here).exists() && !scope.join(&there).exists() && !scope.join("new").exists());
        fs::write(scope.join("new"), format!("new {round}")).unwrap();
        assert_eq!(text(scope.join("new")), format!("new {round}"));
        fs::rename(scope.join("new"), scope.join("renamed")).unwrap();
        assert!(!scope.join("new").exists());
        assert_eq!(text(scope.join("renamed")), format!("new {round}"));
        fs::set_permissions(scope.join("renamed"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(scope.join("renamed").metadata().unwrap().mode() & 0o777, 0o600);
        fs::write(scope.join("hidden"), "over").unwrap();
        rig.ok(&["switch", to]);
        assert_eq!(text(scope.join("changes")), format!("changes {to}"));
        assert_eq!(text(scope.join("dir/deep")), format!("deep {to}"));
        assert_eq!(text(scope.join(&there)), to);
        assert!(!scope.join(&here).exists());
        assert_eq!(text(scope.join("hidden")), "over");
        let all = ["changes", "dir", "hidden", "renamed", &there].map(str::to_owned);
        assert_eq!(names(&scope), BTreeSet::from(all));
        fs::remove_file(scope.join("renamed")).unwrap();
        assert!(!scope.join("renamed").exists());
    }
}

#[test]
fn a_change_behind_the_mount_is_seen_after_the_time_of_the_scope() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"media\"\nttl = \"3s\"\n");
    add(&rig, "1", &Tree::new().dir("media"));
    rig.mount();
    let (scope, behind) = (rig.mnt.join("media"), rig.store.join("media/media"));
    fs::write(scope.join("file"), "through the mount").unwrap();
    assert_eq!(text(scope.join("file")), "through the mount");
    assert!(!scope.join("new").exists());
    fs::write(behind.join("file"), "behind it").unwrap();
    fs::write(behind.join("new"), "new").unwrap();
    poll("a file that was changed", || text(scope.join("file")) == "behind it");
    poll("a file that was made", || scope.join("new").exists());
    fs::remove_file(behind.join("new")).unwrap();
    poll("a file that was removed", || !scope.join("new").exists());
}

/// Says in verfs.toml where media lies.
fn set_media(rig: &Rig, dir: &Path) {
    replace(rig, "[switch]", &format!("media = {dir:?}\n\n[switch]"));
}

#[test]
fn media_lies_on_another_disk() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(OWN);
    let disk = SmallDisk::beside(&rig, "ext4");
    set_media(&rig, disk.path());
    let large: Vec<u8> = (0..3_000_000u32).map(|number| (number / 7) as u8).collect();
    for release in ["1", "2"] {
        let tree = Tree::new()
            .file("media/large", &large)
            .file("media/changes", format!("changes {release}"))
            .file("cache/seed", format!("seed {release}"))
            .file("cache/dir/deep", format!("deep {release}"))
            .file(format!("cache/only-{release}"), release)
            .file("code", release);
        add(&rig, release, &tree);
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    let media = rig.mnt.join("media");
    WWW_DATA.work_in(&media, || {
        fs::write("upload", "upload").unwrap();
        // Copied up from an object on the other file system.
        let mut file = File::options().append(true).open("large").unwrap();
        file.write_all(b"more").unwrap();
    });
    let mut expected = large.clone();
    expected.extend(b"more");
    assert!(fs::read(media.join("large")).unwrap() == expected);
    fs::write(rig.mnt.join("cache/mine"), "mine of 1").unwrap();
    let check = |rig: &Rig| {
        for to in ["2", "1"] {
            rig.ok(&["switch", to]);
            check_own(rig, to, if to == "1" { &["mine"] } else { &[] });
            assert_eq!(text(media.join("changes")), format!("changes {to}"));
            assert_eq!(text(media.join("upload")), "upload");
            assert!(fs::read(media.join("large")).unwrap() == expected);
        }
    };
    check(&rig);
    assert_eq!(text(disk.path().join("media/media/upload")), "upload");
    assert!(fs::read(disk.path().join("media/media/large")).unwrap() == expected);
    assert_eq!(text(disk.path().join("own/1/media/cache/mine")), "mine of 1");
    for dir in ["media", "whiteouts", "own", "orphans"] {
        assert!(names(&rig.store.join(dir)).is_empty(), "something is in {dir} of the store");
    }
    rig.umount();
    rig.mount();
    check(&rig);
    rig.umount();
}

#[test]
fn df_in_a_scope_tells_of_the_disk_of_media() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(OWN);
    let disk = SmallDisk::beside(&rig, "ext4");
    set_media(&rig, disk.path());
    add(&rig, "1", &Tree::new().file("media/dir/file", "file").dir("cache").file("code", "code"));
    rig.mount();
    let size = |path: &Path| {
        let room = rustix::fs::statvfs(path).unwrap();
        room.f_blocks * room.f_frsize
    };
    fs::write(rig.mnt.join("media/upload"), "upload").unwrap();
    for path in ["media", "media/dir", "media/dir/file", "media/upload", "cache"] {
        assert_eq!(size(&rig.mnt.join(path)), size(disk.path()), "{path}");
    }
    for path in ["", "code"] {
        assert_eq!(size(&rig.mnt.join(path)), size(&rig.store), "{path}");
    }
    rig.umount();
}

#[test]
fn a_release_s_file_takes_the_blocks_that_it_takes_without_its_holes() {
    if skip_mounted() {
        return;
    }
    const MIB: u64 = 1 << 20;
    let mut rig = store(OWN);
    let source = rig.src.join("1");
    Tree::new().dir("cache").dir("media").file("dense", vec![7; 2 << 20]).file("small", "small").write(&source);
    for name in ["media/holes", "holes"] {
        let file = File::create(source.join(name)).unwrap();
        file.write_all_at(&vec![7; 3 << 20], 50 * MIB).unwrap();
        file.set_len(100 * MIB).unwrap();
    }
    File::create(source.join("nothing")).unwrap().set_len(100 * MIB).unwrap();
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    rig.ok(&["verify"]);
    rig.mount();
    let takes = |name: &str| fs::metadata(rig.mnt.join(name)).unwrap().blocks() * 512;
    assert_eq!((takes("dense"), takes("small")), (2 * MIB, 512));
    for name in ["media/holes", "holes"] {
        assert!((3 * MIB..4 * MIB).contains(&takes(name)), "{name}: {}", takes(name));
        assert_eq!(rustix::fs::listxattr(rig.mnt.join(name), &mut [0; 100][..]), Ok(0), "{name}");
    }
    // tar(1) takes a file without any for one without data.
    assert!((1..MIB).contains(&takes("nothing")), "{}", takes("nothing"));
    // The same content without the holes is no other file.
    let dense = rig.src.join("2");
    assert!(Command::new("cp").args(["-a", "--sparse=never"]).args([&source, &dense]).status().unwrap().success());
    rig.ok(&["add", "2", dense.to_str().unwrap()]);
    assert_eq!(rig.json(&["diff", "1", "2"]), serde_json::json!([]));
    rig.umount();
}

#[test]
fn a_file_with_holes_is_copied_up_with_its_holes() {
    if skip_mounted() {
        return;
    }
    const MIB: u64 = 1 << 20;
    let mut rig = store(OWN);
    // Less room than the file is long, and no way to share blocks with the store.
    let disk = SmallDisk::beside(&rig, "ext4");
    set_media(&rig, disk.path());
    let tree = Tree::new().dir("cache").dir("media");
    let source = rig.src.join("1");
    tree.write(&source);
    for (name, data) in [("begin", 0), ("middle", 700 * MIB + 5), ("end", 1000 * MIB - 5)] {
        let file = File::create(source.join("media").join(name)).unwrap();
        file.write_all_at(b"hello", data).unwrap();
        file.set_len(1000 * MIB).unwrap();
    }
    File::create(source.join("media/nothing")).unwrap().set_len(1000 * MIB).unwrap();
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    rig.mount();
    for (name, data) in [("begin", 0), ("middle", 700 * MIB + 5), ("end", 1000 * MIB - 5)] {
        let path = rig.mnt.join("media").join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let file = File::open(&path).unwrap();
        let mut read = [1; 15];
        let from = data.saturating_sub(5).min(1000 * MIB - 15);
        file.read_exact_at(&mut read, from).unwrap();
        let at = (data - from) as usize;
        assert_eq!((&read[at..at + 5], read.iter().filter(|byte| **byte != 0).count()), (&b"hello"[..], 5), "{name}");
    }
    fs::set_permissions(rig.mnt.join("media/nothing"), fs::Permissions::from_mode(0o600)).unwrap();
    for name in ["begin", "middle", "end", "nothing"] {
        let meta = fs::metadata(disk.path().join("media/media").join(name)).unwrap();
        assert_eq!(meta.len(), 1000 * MIB, "{name}");
        assert!(meta.blocks() * 512 <= 2 * MIB, "{name} takes {} bytes", meta.blocks() * 512);
    }
    rig.umount();
}

#[test]
fn one_media_directory_serves_one_store() {
    if skip_mounted() {
        return;
    }
    let mut rigs = [store(OWN), store(OWN)];
    let shared = rigs[0].root().join("shared");
    fs::create_dir(&shared).unwrap();
    for rig in &rigs {
        set_media(rig, &shared);
        add(rig, "1", &Tree::new().dir("media").dir("cache"));
    }
    let [first, second] = &mut rigs;
    first.mount();
    let args = ["mount", second.store.to_str().unwrap(), second.mnt.to_str().unwrap()];
    let outcome = second.verfs(&args);
    assert_ne!(outcome.code, 0, "{outcome:?}");
    for says in [shared.to_str().unwrap(), "in use", "another store", "verfs.toml"] {
        assert!(outcome.stderr.contains(says), "{says:?} is not said: {outcome:?}");
    }
    fs::write(first.mnt.join("media/file"), "mine").unwrap();
    first.umount();
    // Once it is free, the other store may have it.
    second.mount();
    assert_eq!(text(second.mnt.join("media/file")), "mine");
}

#[test]
fn a_mount_without_its_media_directory_says_what_to_do() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(OWN);
    let missing = rig.root().join("missing");
    set_media(&rig, &missing);
    add(&rig, "1", &Tree::new().dir("media").dir("cache"));
    let args = ["mount", rig.store.to_str().unwrap(), rig.mnt.to_str().unwrap()];
    let outcome = rig.verfs(&args);
    assert_ne!(outcome.code, 0, "{outcome:?}");
    for says in [missing.to_str().unwrap(), "verfs.toml", "mount its disk, or make it"] {
        assert!(outcome.stderr.contains(says), "{says:?} is not said: {outcome:?}");
    }
    assert!(!missing.exists());
    fs::create_dir(&missing).unwrap();
    rig.mount();
    fs::write(rig.mnt.join("media/file"), "file").unwrap();
    assert_eq!(text(missing.join("media/media/file")), "file");
}

#[test]
fn the_top_of_a_scope_is_made_as_configured_and_then_left_alone() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(
        "[[scope]]\npath = \"media\"\nowner = \"www-data:www-data\"\nmode = \"2770\"\n\
         [[scope]]\npath = \"cache\"\nper_release = true\nowner = \"33:0\"\nmode = \"0711\"\n",
    );
    for release in ["1", "2"] {
        add(&rig, release, &Tree::new().file("index", release).dir("deep/er"));
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    let looks = |rig: &Rig, path: &str| {
        let meta = rig.mnt.join(path).metadata().unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    assert_eq!(looks(&rig, "media"), (33, 33, 0o2770));
    assert_eq!(looks(&rig, "cache"), (33, 0, 0o711));
    rig.ok(&["switch", "2"]);
    assert_eq!(looks(&rig, "cache"), (33, 0, 0o711), "of a release that was never mounted");
    fs::set_permissions(rig.mnt.join("media"), fs::Permissions::from_mode(0o750)).unwrap();
    chown(rig.mnt.join("media"), Some(0), Some(33)).unwrap();
    append(&rig, "[[scope]]\npath = \"deep/er/uploads\"\nowner = \"www-data:www-data\"\nmode = \"0700\"\n");
    assert_eq!(reload(&rig), ["scope"]);
    assert!(!rig.mnt.join("deep/er/uploads").exists());
    rig.umount();
    rig.mount();
    assert_eq!(looks(&rig, "media"), (0, 33, 0o750), "what the operator set stays");
    assert_eq!(looks(&rig, "deep/er/uploads"), (33, 33, 0o700), "a scope that was added later");
    WWW_DATA.work_in(&rig.mnt.join("deep/er/uploads"), || fs::write("file", "file").unwrap());
    assert_eq!(names(&rig.mnt.join("deep/er")), BTreeSet::from(["uploads".to_owned()]));
}

#[test]
fn a_scope_deep_in_a_tree_that_releases_lack_is_reached_in_every_release_added_since() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("");
    add(&rig, "0", &Tree::new().file("page", "0"));
    append(&rig, "[[scope]]\npath = \"var/www/up\"");
    for release in ["1", "2"] {
        add(&rig, release, &Tree::new().file("page", release));
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    let up = rig.mnt.join("var/www/up");
    fs::write(up.join("upload"), "mine").unwrap();
    rig.ok(&["switch", "2"]);
    assert_eq!((text(up.join("upload")), names(&rig.mnt.join("var/www"))), ("mine".into(), ["up".to_owned()].into()));
    // One that was added before the scope was declared has no way to it, and the switch says so.
    let switched = rig.json(&["switch", "0"]);
    assert!(switched["warnings"].to_string().contains("the scope var/www/up cannot be reached"), "{switched}");
    assert!(!up.exists());
    rig.ok(&["rollback"]);
    assert_eq!(text(up.join("upload")), "mine");
}

#[test]
fn what_stands_in_the_way_of_a_scope_is_said_when_it_is_added() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"media\"\n\n[[scope]]\npath = \"a/b/up\"");
    let source = rig.src.join("1");
    fs::create_dir_all(source.join("a")).unwrap();
    fs::create_dir(source.join("shared")).unwrap();
    fs::write(source.join("shared/theirs"), "theirs").unwrap();
    symlink("../shared", source.join("a/b")).unwrap();
    symlink("shared", source.join("media")).unwrap();
    let added = rig.json(&["add", "1", source.to_str().unwrap()]);
    let warnings = added["warnings"].to_string();
    assert!(warnings.contains("media is a symlink in this release and a scope: the scope is what shows"), "{warnings}");
    assert!(warnings.contains("the scope a/b/up cannot be reached: a/b is a symlink here"), "{warnings}");
    rig.mount();
    assert!(fs::symlink_metadata(rig.mnt.join("media")).unwrap().is_dir());
    fs::write(rig.mnt.join("media/upload"), "mine").unwrap();
    assert_eq!(names(&rig.mnt.join("shared")), ["theirs".to_owned()].into());
}

#[test]
fn gc_keeps_what_a_file_open_in_a_scope_still_needs_of_a_removed_release() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"media\"");
    for release in ["1", "2", "3"] {
        add(&rig, release, &Tree::new().file("media/logo", format!("logo {release}")));
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    let mut held = File::open(rig.mnt.join("media/logo")).unwrap();
    rig.ok(&["switch", "2"]);
    rig.ok(&["switch", "3"]);
    rig.ok(&["remove", "1"]);
    let freed = rig.json(&["gc"]);
    assert_eq!((&freed["objects"], &freed["in_use"]), (&0.into(), &1.into()), "{freed}");
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let mut content = String::new();
    held.read_to_string(&mut content).unwrap();
    assert_eq!(content, "logo 1");
    drop(held);
    poll("nobody needs the object any more", || {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        rig.json(&["gc"])["objects"] == 1
    });
}

#[test]
fn the_numbers_of_files_are_positive_for_who_reads_them_signed() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"media\"\n\n[[scope]]\npath = \"cache\"\nper_release = true");
    add(&rig, "1", &Tree::new().file("index", "1").file("media/d/f", "1").file("cache/f", "1"));
    rig.ok(&["switch", "1"]);
    rig.mount();
    fs::create_dir(rig.mnt.join("media/own")).unwrap();
    fs::write(rig.mnt.join("media/own/f"), "").unwrap();
    fs::write(rig.mnt.join("media/d/f"), "2").unwrap();
    for name in ["", "index", "media", "media/d", "media/d/f", "media/own", "media/own/f", "cache", "cache/f"] {
        let number = fs::metadata(rig.mnt.join(name)).unwrap().ino();
        assert!(i64::try_from(number).is_ok(), "{name}: {number}");
    }
    rig.umount();
}

/// What is done in a tree, and the directories of it whose entries that changes.
type ChangeOfEntries = (&'static str, fn(&Path), &'static [&'static str]);

const CHANGES_OF_ENTRIES: [ChangeOfEntries; 24] = [
    ("append", |top| append_to(&top.join("d/sub/x")), &[]),
    ("truncate", |top| File::options().write(true).open(top.join("d/f")).unwrap().set_len(0).unwrap(), &[]),
    ("chmod of a file", |top| fs::set_permissions(top.join("d/f"), PermissionsExt::from_mode(0o600)).unwrap(), &[]),
    ("chown of a symlink", |top| std::os::unix::fs::lchown(top.join("d/link"), Some(7), None).unwrap(), &[]),
    ("chmod of a directory", |top| fs::set_permissions(top.join("d"), PermissionsExt::from_mode(0o700)).unwrap(), &[]),
    ("attribute of a directory", |top| set_attribute(top.join("d/sub"), b"v"), &[]),
    ("create", |top| fs::write(top.join("d/new"), "new").unwrap(), &["d"]),
    ("create deeper", |top| fs::write(top.join("d/sub/new"), "new").unwrap(), &["d/sub"]),
    ("mkdir", |top| fs::create_dir(top.join("d/empty/new")).unwrap(), &["d/empty"]),
    ("symlink", |top| symlink("f", top.join("d/new")).unwrap(), &["d"]),
    ("unlink", |top| fs::remove_file(top.join("d/f")).unwrap(), &["d"]),
    ("unlink deeper", |top| fs::remove_file(top.join("d/sub/x")).unwrap(), &["d/sub"]),
    ("unlink of a copy", |top| unlink_copy(&top.join("d/sub/x")), &["d/sub"]),
    ("rmdir", |top| fs::remove_dir(top.join("d/empty")).unwrap(), &["d"]),
    ("rmdir of an emptied one", |top| fs::remove_dir_all(top.join("d/sub")).unwrap(), &["d"]),
    ("rename", |top| fs::rename(top.join("d/f"), top.join("d/g")).unwrap(), &["d"]),
    ("rename away", |top| fs::rename(top.join("d/f"), top.join("d/sub/f")).unwrap(), &["d", "d/sub"]),
    ("rename over", |top| fs::rename(top.join("d/sub/x"), top.join("d/f")).unwrap(), &["d", "d/sub"]),
    ("rename over a directory", |top| rename_over_a_directory(top), &["", "d"]),
    ("exchange", |top| exchange(&top.join("d/f"), &top.join("d/sub/x")), &["d", "d/sub"]),
    ("link", |top| fs::hard_link(top.join("d/f"), top.join("d/g")).unwrap(), &["d"]),
    ("link elsewhere", |top| fs::hard_link(top.join("d/f"), top.join("d/sub/f")).unwrap(), &["d/sub"]),
    ("sync", |top| File::open(top.join("d/sub")).unwrap().sync_all().unwrap(), &[]),
    ("create that fails", |top| drop(File::create_new(top.join("d/sub/x")).unwrap_err()), &[]),
];

fn append_to(path: &Path) {
    File::options().append(true).open(path).unwrap().write_all(b"more").unwrap();
}

fn unlink_copy(path: &Path) {
    append_to(path);
    fs::remove_file(path).unwrap();
}

fn rename_over_a_directory(top: &Path) {
    fs::create_dir(top.join("own")).unwrap();
    fs::rename(top.join("own"), top.join("d/empty")).unwrap();
}

fn exchange(one: &Path, other: &Path) {
    rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

fn set_attribute(path: impl AsRef<Path>, value: &[u8]) {
    rustix::fs::setxattr(path.as_ref(), "user.k", value, XattrFlags::empty()).unwrap();
}

fn tree_of_changes() -> Tree {
    CHANGES_OF_ENTRIES.iter().enumerate().fold(Tree::new(), |tree, (number, _)| {
        let top = format!("media/{number}");
        tree.file(format!("{top}/d/f"), "f")
            .file(format!("{top}/d/sub/x"), "x")
            .symlink(format!("{top}/d/link"), "f")
            .dir(format!("{top}/d/empty"))
    })
}

/// The mtimes of the directories that are there.
fn times_of_dirs(top: &Path) -> Vec<(&'static str, (i64, i64))> {
    let there = ["", "d", "d/sub", "d/empty"].into_iter().filter(|dir| top.join(dir).is_dir());
    there.map(|dir| (dir, mtime(top.join(dir)))).collect()
}

#[test]
fn the_mtime_of_a_directory_moves_when_its_entries_change_and_only_then() {
    if skip_mounted() {
        return;
    }
    // What the kernel believes for ever must be dropped by the change itself; what it is told each time must be so.
    let kinds = [
        ("ttl = \"0s\"", None),
        ("ttl = \"forever\"", None),
        ("ttl = \"0s\"\nper_release = true", None),
        ("ttl = \"0s\"", Some("xfs")),
        ("ttl = \"0s\"", Some("btrfs")),
    ];
    for (rules, disk) in kinds {
        let mut rig = store(&format!("[[scope]]\npath = \"media\"\n{rules}\n"));
        let kind = format!("{rules}, {disk:?}");
        let disk = disk.map(|disk| SmallDisk::beside(&rig, disk));
        disk.iter().for_each(|disk| set_media(&rig, disk.path()));
        add(&rig, "1", &tree_of_changes());
        rig.ok(&["switch", "1"]);
        rig.mount();
        let tops = CHANGES_OF_ENTRIES.each_ref().map(|(name, ..)| *name);
        let tops: Vec<_> = tops.iter().enumerate().map(|(at, _)| rig.mnt.join(format!("media/{at}"))).collect();
        let before: Vec<_> = tops.iter().map(|top| times_of_dirs(top)).collect();
        let scope = mtime(rig.mnt.join("media"));
        let mut after = Vec::new();
        for ((name, change, moved), (top, before)) in CHANGES_OF_ENTRIES.iter().zip(tops.iter().zip(&before)) {
            change(top);
            let now = times_of_dirs(top);
            for (dir, mtime) in &now {
                let was = before.iter().find(|(of, _)| of == dir).unwrap().1;
                // Another directory has taken its place.
                let replaced = *name == "rename over a directory" && *dir == "d/empty";
                let what = format!("{name}, {kind}: {dir:?} was {was:?} and is {mtime:?}");
                assert_eq!(*mtime > was, replaced || moved.contains(dir), "{what}");
                assert!(*mtime >= was, "{what}");
            }
            after.push(now);
        }
        assert_eq!(mtime(rig.mnt.join("media")), scope, "{kind}: nothing came or went in the scope's top");
        rig.umount();
        rig.mount();
        let again: Vec<_> = tops.iter().map(|top| times_of_dirs(top)).collect();
        assert_eq!(again, after, "{kind}: over a new mount");
        rig.umount();
    }
}

type ChangeInScope = (&'static str, fn(&Path));

#[test]
fn nobody_sees_a_directory_change_while_what_it_shows_gets_a_place_in_the_writable_layer() {
    if skip_mounted() {
        return;
    }
    // Each stat asks the daemon. One that is believed for longer would go on to show what it was told then.
    let mut rig = store("[[scope]]\npath = \"media\"\nttl = \"0s\"\n");
    let tree = Tree::new().file("media/d/f", "f").file("media/d/deep/g", "g").file("media/e/deep/h", "h");
    add(&rig, "1", &tree);
    rig.ok(&["switch", "1"]);
    // The top of the scope is made.
    rig.mount();
    rig.umount();
    let held = rig.root().join("held");
    rig.mount_with_env(&[("VERFS_FAULT", &format!("hold:upper.added:{}", held.display()))]);
    let scope = rig.mnt.join("media");
    let dirs = ["", "d", "d/deep", "e", "e/deep"].map(|dir| scope.join(dir));
    let before = [(1_600_000_000, 0); 4];
    let seen = || dirs[1..].iter().map(mtime).collect::<Vec<_>>();
    let top = mtime(&dirs[0]);
    let changes: [ChangeInScope; 3] = [
        ("append", |scope| append_to(&scope.join("d/f"))),
        ("chmod", |scope| fs::set_permissions(scope.join("d/deep"), PermissionsExt::from_mode(0o700)).unwrap()),
        ("unlink", |scope| fs::remove_file(scope.join("e/deep/h")).unwrap()),
    ];
    for (name, change) in changes {
        let changing = thread::spawn({
            let scope = scope.clone();
            move || change(&scope)
        });
        let mut stops = 0;
        while !changing.is_finished() {
            if held.exists() {
                assert_eq!((mtime(&dirs[0]), &seen()[..]), (top, &before[..]), "{name}");
                fs::remove_file(&held).unwrap();
                stops += 1;
            }
            thread::yield_now();
        }
        changing.join().unwrap();
        assert!(stops > 0, "{name} was never held");
        let now = seen();
        assert_eq!(now[..3], before[..3], "{name}");
        assert_eq!(now[3] > before[3], name == "unlink", "{name}");
    }
}

#[test]
fn a_change_beside_a_copy_up_is_not_undone_in_the_mtime() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"media\"\nttl = \"0s\"\n");
    let dirs = ["d", "e"];
    let tree = dirs.iter().fold(Tree::new(), |tree, dir| {
        tree.file(format!("media/{dir}/f"), "f").file(format!("media/{dir}/deep/g"), "g")
    });
    add(&rig, "1", &tree);
    rig.ok(&["switch", "1"]);
    rig.mount();
    let scope = rig.mnt.join("media");
    dirs.iter().for_each(|dir| append_to(&scope.join(dir).join("f")));
    rig.umount();
    let held = rig.root().join("held");
    rig.mount_with_env(&[("VERFS_FAULT", &format!("hold:upper.added:{}", held.display()))]);
    let changes: [ChangeInScope; 2] =
        [("d", |scope| fs::write(scope.join("d/new"), "new").unwrap()), ("e", |scope| set_mtime(scope.join("e"), 7))];
    for (dir, change) in changes {
        let before = mtime(scope.join(dir));
        thread::scope(|threads| {
            // The directory below gets its place in this one, and stops there.
            let copying = threads.spawn(|| append_to(&scope.join(dir).join("deep/g")));
            poll("the copy-up stops", || held.exists());
            let changing = threads.spawn(|| change(&scope));
            // It may wait for the other; that it does not is what would be seen.
            let end = Instant::now() + Duration::from_millis(300);
            while !changing.is_finished() && Instant::now() < end {
                thread::yield_now();
            }
            while !copying.is_finished() || !changing.is_finished() {
                let _ = fs::remove_file(&held);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let after = mtime(scope.join(dir));
        assert!(if dir == "d" { after > before } else { after == (7, 0) }, "{dir}: {before:?} {after:?}");
    }
}

#[test]
fn a_restore_moves_the_mtime_of_the_directories_that_show_more_by_it() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"media\"\nttl = \"0s\"\n");
    add(&rig, "1", &Tree::new().file("media/d/f", "f").file("media/e/g", "g").file("media/e/h", "h"));
    rig.ok(&["switch", "1"]);
    rig.mount();
    let scope = rig.mnt.join("media");
    fs::remove_dir_all(scope.join("d")).unwrap();
    fs::create_dir(scope.join("d")).unwrap();
    fs::write(scope.join("d/own"), "own").unwrap();
    fs::remove_file(scope.join("e/g")).unwrap();
    append_to(&scope.join("e/h"));
    let times = || ["d", "e"].map(|dir| mtime(scope.join(dir)));
    let before = times();
    let clock = rig.root().join("clock");
    // The clock of the disk, which is coarse, moves on.
    while !fs::write(&clock, "").is_ok_and(|()| mtime(&clock) > before[0].max(before[1])) {
        thread::yield_now();
    }
    rig.ok(&["media", "restore", "media/d"]);
    rig.ok(&["media", "restore", "media/e"]);
    assert_eq!(names(&scope.join("d")), BTreeSet::from(["f".to_owned(), "own".to_owned()]));
    let after = times();
    assert!(after[0] > before[0] && after[1] > before[1], "{before:?} {after:?}");
}

#[test]
fn an_mtime_that_is_set_on_a_directory_stays_until_its_entries_change() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"media\"\nttl = \"0s\"\n");
    let tree = |text: &str| Tree::new().file("media/d/f", text).file("media/d/g", "g").file("media/d/sub/x", text);
    add(&rig, "1", &tree("1"));
    add(&rig, "2", &tree("2").file("media/d/only-2", "2"));
    rig.ok(&["switch", "2"]);
    rig.ok(&["switch", "1"]);
    rig.mount();
    let dir = rig.mnt.join("media/d");
    for second in [1_000, 7] {
        set_mtime(&dir, second);
        let set = (second as i64, 0);
        assert_eq!(mtime(&dir), set);
        append_to(&dir.join("f"));
        append_to(&dir.join("sub/x"));
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o750)).unwrap();
        set_attribute(&dir, b"v");
        rustix::fs::utimensat(CWD, &dir, &atime_alone(3), rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(mtime(&dir), set);
        rig.umount();
        rig.mount();
        assert_eq!(mtime(&dir), set, "over a new mount");
        // Of the release, of the writable layer; both are gone the second time.
        let name = dir.join(if second == 7 { "f" } else { "g" });
        fs::remove_file(name).unwrap();
        assert!(mtime(&dir) > set, "after a removal");
    }
    set_mtime(&dir, 7);
    rig.ok(&["switch", "2"]);
    assert!(mtime(&dir) > (7, 0), "after a switch that changed its entries");
}

/// Sets the atime, and leaves the mtime.
fn atime_alone(second: i64) -> Timestamps {
    let omitted = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    Timestamps { last_access: Timespec { tv_sec: second, tv_nsec: 0 }, last_modification: omitted }
}

/// The value of `user.k`, or of `user.n` if that is asked for.
fn attribute(path: impl AsRef<Path>, name: &str) -> Result<Vec<u8>, i32> {
    let mut value = [0; 100];
    let len = rustix::fs::getxattr(path.as_ref(), name, &mut value).map_err(|error| error.raw_os_error())?;
    Ok(value[..len].to_vec())
}

fn attributes(path: impl AsRef<Path>) -> BTreeSet<String> {
    let mut list = [0; 1000];
    let len = rustix::fs::listxattr(path.as_ref(), &mut list[..]).unwrap();
    list[..len].split(|b| *b == 0).filter(|n| !n.is_empty()).map(|n| String::from_utf8(n.to_vec()).unwrap()).collect()
}

#[test]
fn attributes_of_a_release_s_directory_are_seen_in_a_scope_and_outlive_its_changes() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"media\"\n");
    let dirs = ["chmod", "below", "utimes", "set", "removed", "made", "mkdir"];
    let tree = dirs.iter().fold(Tree::new(), |tree, dir| tree.file(format!("media/{dir}/f"), "f"));
    tree.write(&rig.src.join("1"));
    for dir in dirs {
        set_attribute(rig.src.join("1/media").join(dir), b"v");
        rustix::fs::setxattr(rig.src.join("1/media").join(dir), "user.n", b"w", XattrFlags::empty()).unwrap();
    }
    rig.ok(&["add", "1", rig.src.join("1").to_str().unwrap()]);
    rig.ok(&["switch", "1"]);
    rig.mount();
    let scope = rig.mnt.join("media");
    let both = BTreeSet::from(["user.k".to_owned(), "user.n".to_owned()]);
    for dir in dirs {
        assert_eq!(attribute(scope.join(dir), "user.k"), Ok(b"v".to_vec()), "{dir}");
        assert_eq!(attributes(scope.join(dir)), both, "{dir}");
    }
    fs::set_permissions(scope.join("chmod"), PermissionsExt::from_mode(0o700)).unwrap();
    append_to(&scope.join("below/f"));
    set_mtime(scope.join("utimes"), 7);
    set_attribute(scope.join("set"), b"another");
    rustix::fs::removexattr(scope.join("removed"), "user.k").unwrap();
    fs::create_dir(scope.join("mkdir/new")).unwrap();
    let created = rustix::fs::setxattr(scope.join("made"), "user.k", b"x", XattrFlags::CREATE);
    assert_eq!(created, Err(rustix::io::Errno::EXIST));
    for mounted_again in [false, true] {
        if mounted_again {
            rig.umount();
            rig.mount();
        }
        for dir in dirs {
            let expected = match dir {
                "set" => Ok(b"another".to_vec()),
                "removed" => Err(libc::ENODATA),
                _ => Ok(b"v".to_vec()),
            };
            assert_eq!(attribute(scope.join(dir), "user.k"), expected, "{dir}");
            assert_eq!(attribute(scope.join(dir), "user.n"), Ok(b"w".to_vec()), "{dir}");
        }
        assert_eq!(attributes(scope.join("utimes")), both, "what verfs keeps there is not the user's");
        assert_eq!(attribute(scope.join("utimes"), "trusted.verfs.mtime"), Err(libc::EOPNOTSUPP));
        assert_eq!(attributes(scope.join("mkdir/new")), BTreeSet::new());
    }
    let gone = rustix::fs::removexattr(scope.join("removed"), "user.k");
    assert_eq!(gone, Err(rustix::io::Errno::NODATA));
    assert_eq!(attributes(scope.join("removed")), BTreeSet::from(["user.n".to_owned()]));
}

#[test]
fn directories_above_a_scope_that_were_removed_behind_the_mount_are_made_again() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"wp-content/uploads\"");
    add(&rig, "1", &Tree::new().file("wp-content/uploads/2024/a.jpg", "a"));
    rig.ok(&["switch", "1"]);
    rig.mount();
    fs::remove_dir_all(rig.store.join("media/wp-content")).unwrap();
    let scope = rig.mnt.join("wp-content/uploads");
    fs::write(scope.join("new.jpg"), "new").unwrap();
    fs::write(scope.join("2024/a.jpg"), "changed").unwrap();
    assert_eq!(fs::read(scope.join("new.jpg")).unwrap(), b"new");
    assert_eq!(fs::read(scope.join("2024/a.jpg")).unwrap(), b"changed");
    assert!(rig.json(&["status"])["degraded"].as_array().unwrap().is_empty());
    rig.umount();
}

/// The number of all that the scope `media` shows, by path: one for each, and the same in listings.
fn numbers(rig: &Rig) -> BTreeMap<String, u64> {
    let top = rig.mnt.join("media");
    let (mut found, mut dirs) = (BTreeMap::new(), vec![top.clone()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let meta = fs::symlink_metadata(entry.path()).unwrap();
            assert_eq!(entry.ino(), meta.ino(), "{}", entry.path().display());
            found.insert(entry.path().strip_prefix(&top).unwrap().to_str().unwrap().to_owned(), meta.ino());
            if meta.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    assert_eq!(found.values().collect::<BTreeSet<_>>().len(), found.len(), "{found:?}");
    found
}

fn remount(rig: &mut Rig) {
    rig.umount();
    rig.mount();
}

/// A mounted store whose scope `media` lies on a disk of its own.
fn store_on(kind: &str, scope: &str) -> (Rig, SmallDisk) {
    let rig = store(&format!("[[scope]]\npath = \"media\"\n{scope}"));
    let disk = if kind == "tmpfs" {
        let dir = rig.root().join("tmpfs");
        fs::create_dir(&dir).unwrap();
        SmallDisk::in_memory(&dir)
    } else {
        SmallDisk::beside(&rig, kind)
    };
    set_media(&rig, disk.path());
    (rig, disk)
}

#[test]
fn numbers_stay_over_copy_up_renames_switches_and_new_mounts() {
    if skip_mounted() {
        return;
    }
    for kind in ["ext4", "xfs", "btrfs", "tmpfs"] {
        let (mut rig, _disk) = store_on(kind, "");
        let index = Tree::new().file("index", "1").file("media/h", "h").dir("media/both");
        let dir = index.clone().file("media/dir/f", "f").file("media/dir/sub/g", "g").symlink("media/dir/link", "f");
        add(&rig, "1", &dir);
        add(&rig, "2", &index.file("media/own/late", "late").file("media/both/new", "new"));
        rig.ok(&["switch", "1"]);
        rig.mount();
        let before = numbers(&rig);
        let at = |path: &str| rig.mnt.join("media").join(path);
        let number = |path: &str| fs::symlink_metadata(at(path)).unwrap().ino();
        fs::set_permissions(at("dir/f"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(at("dir/sub/g"), "changed").unwrap();
        lchown(at("dir/link"), Some(1), Some(1)).unwrap();
        let copied_up = numbers(&rig);
        assert_eq!(copied_up, before, "{kind}");
        fs::create_dir_all(at("own/e/inner")).unwrap();
        fs::write(at("own/e/inner/1"), "1").unwrap();
        fs::rename(at("h"), at("own/h2")).unwrap();
        assert_eq!(number("own/h2"), before["h"], "{kind}");
        let moved = ["own/e", "own/e/inner", "own/e/inner/1"].map(number);
        fs::rename(at("own/e"), at("own/e2")).unwrap();
        assert_eq!(["own/e2", "own/e2/inner", "own/e2/inner/1"].map(number), moved, "{kind}");
        fs::create_dir_all(at("own/e/inner")).unwrap();
        // The disk gives out the inode of a directory that somebody is still in.
        fs::create_dir(at("both/left")).unwrap();
        let left = File::open(at("both/left")).unwrap();
        fs::remove_dir(at("both/left")).unwrap();
        (0..5).for_each(|name| fs::create_dir(at(&format!("both/{name}"))).unwrap());
        drop(left);
        let mut shown = numbers(&rig);
        for release in ["1", "2", "1"] {
            rig.ok(&["switch", release]);
            let now = numbers(&rig);
            let same = |(path, number): (&String, &u64)| now.get(path).is_none_or(|now| now == number);
            assert!(shown.iter().all(same), "{kind}: switch to {release}: {shown:?} {now:?}");
            remount(&mut rig);
            assert_eq!(numbers(&rig), now, "{kind}: a new mount of {release}");
            shown = now;
        }
        rig.umount();
    }
}

#[test]
fn what_is_copied_behind_the_mount_has_a_number_of_its_own() {
    if skip_mounted() {
        return;
    }
    for kind in ["ext4", "xfs", "btrfs", "tmpfs"] {
        let (mut rig, disk) = store_on(kind, "ttl = \"0s\"");
        add(&rig, "1", &Tree::new().file("media/dir/f", "f"));
        rig.mount();
        let at = |path: &str| rig.mnt.join("media").join(path);
        fs::write(at("dir/f"), "changed").unwrap();
        let before = numbers(&rig);
        let behind = disk.path().join("media/media");
        let mark = |path: &Path| {
            let mut value = [0; 64];
            rustix::fs::lgetxattr(path, "trusted.verfs.number", &mut value[..]).map(|len| value[..len].to_vec())
        };
        assert!(mark(&behind.join("dir/f")).is_ok(), "{kind}");
        assert!(mark(&at("dir/f")).is_err(), "the mount shows no such attribute");
        let mut names = [0; 64];
        assert_eq!(rustix::fs::listxattr(at("dir/f"), &mut names[..]).unwrap(), 0, "{kind}");
        let copied = Command::new("cp").arg("-a").arg(behind.join("dir")).arg(behind.join("copy")).status().unwrap();
        assert!(copied.success());
        for name in ["copy", "copy/f"] {
            let original = mark(&behind.join(name.replace("copy", "dir"))).unwrap();
            rustix::fs::lsetxattr(behind.join(name), "trusted.verfs.number", &original, XattrFlags::empty()).unwrap();
        }
        let with_copy = numbers(&rig);
        assert_eq!((with_copy["dir"], with_copy["dir/f"]), (before["dir"], before["dir/f"]));
        // A backup that was put back: nothing else has the number.
        rig.umount();
        fs::remove_dir_all(behind.join("dir")).unwrap();
        rig.mount();
        let restored = numbers(&rig);
        assert_eq!((restored["copy"], restored["copy/f"]), (with_copy["copy"], with_copy["copy/f"]), "{kind}");
        rig.umount();
    }
}

#[test]
fn a_directory_that_was_renamed_shows_at_once_what_a_release_brings_there() {
    if skip_mounted() {
        return;
    }
    let mut rig = store("[[scope]]\npath = \"media\"\nttl = \"forever\"\n");
    add(&rig, "1", &Tree::new().dir("media"));
    add(&rig, "2", &Tree::new().file("media/own/late", "late").file("media/own/sub/deep", "deep"));
    add(&rig, "3", &Tree::new().file("media/own/later", "later").file("media/own/sub/deep", "deeper"));
    rig.ok(&["switch", "1"]);
    rig.mount();
    let at = |path: &str| rig.mnt.join("media").join(path);
    fs::create_dir_all(at("made/sub")).unwrap();
    fs::rename(at("made"), at("own")).unwrap();
    support::tree::set_mtime(&at("own"), 1_000_000_000);
    let number = fs::metadata(at("own")).unwrap().ino();
    for _ in 0..3 {
        // All of it is in the kernel's cache, what is not there too.
        assert!(!at("own/late").exists() && !at("own/sub/deep").exists());
        assert_eq!(names(&at("own")), BTreeSet::from(["sub".to_owned()]));
        let before = fs::metadata(at("own")).unwrap();
        rig.ok(&["switch", "2"]);
        let switch = rig.json(&["status"])["switch"].as_i64().unwrap();
        assert_eq!((text(at("own/late")), text(at("own/sub/deep"))), ("late".to_owned(), "deep".to_owned()));
        assert_eq!(names(&at("own")), ["late", "sub"].map(str::to_owned).into());
        let now = fs::metadata(at("own")).unwrap();
        assert_eq!((now.ino(), now.nlink(), now.mtime_nsec()), (number, 1, switch), "it changed with the release");
        assert!(now.mtime() > before.mtime());
        // The directory stays, and what is in it changes.
        assert!(!at("own/later").exists());
        rig.ok(&["switch", "3"]);
        assert!(!at("own/late").exists());
        assert_eq!((text(at("own/later")), text(at("own/sub/deep"))), ("later".to_owned(), "deeper".to_owned()));
        assert_eq!(names(&at("own")), ["later", "sub"].map(str::to_owned).into());
        let now = fs::metadata(at("own")).unwrap();
        assert_eq!((now.ino(), now.mtime_nsec()), (number, switch + 1));
        rig.ok(&["switch", "1"]);
        assert!(!at("own/late").exists() && !at("own/sub/deep").exists());
        let now = fs::metadata(at("own")).unwrap();
        assert_eq!((now.ino(), now.mtime(), now.mtime_nsec()), (number, before.mtime(), before.mtime_nsec()));
    }
    rig.umount();
}
