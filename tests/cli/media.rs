//! `media adopt`, `media restore`, `status --shadowed`.

use super::support::disk::SmallDisk;
use super::support::seen::{self, What};
use super::support::tree::Tree;
use super::support::{Rig, skip_mounted};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A store with these shared scopes, and a release with files in `media`; not mounted.
fn store(scopes: &[&str]) -> Rig {
    store_with(&scopes.iter().flat_map(|scope| ["--writable", scope]).collect::<Vec<_>>())
}

/// The same with these options of `init`.
fn store_with(options: &[&str]) -> Rig {
    let rig = Rig::with_limit(Duration::from_secs(120));
    rig.ok(&[&["init", rig.store.to_str().unwrap()], options].concat());
    let tree = Tree::new()
        .file("page", "page")
        .file("media/logo", "the release's")
        .file("media/theme/a", "a")
        .file("media/theme/b", "b")
        .file("media/other/c", "c");
    rig.add("1", &tree);
    rig
}

/// A directory of uploads as an old site has it.
fn uploads(dir: &Path) {
    fs::create_dir_all(dir.join("2026/11")).unwrap();
    fs::write(dir.join("2026/11/photo"), "photo").unwrap();
    std::os::unix::fs::chown(dir.join("2026/11/photo"), Some(33), Some(33)).unwrap();
}

fn shadowed(rig: &Rig) -> Vec<(String, String)> {
    let value = rig.json(&["status", "--shadowed"]);
    let words = |item: &serde_json::Value| {
        (item["how"].as_str().unwrap().to_owned(), item["path"].as_str().unwrap().to_owned())
    };
    value["shadowed"].as_array().unwrap().iter().map(words).collect()
}

#[test]
fn uploads_that_are_there_already_become_the_scope_by_a_rename() {
    let rig = store(&["media"]);
    let old = rig.root().join("old");
    uploads(&old);
    let number = fs::metadata(old.join("2026/11/photo")).unwrap().ino();
    let adopted = rig.json(&["media", "adopt", old.to_str().unwrap()]);
    assert_eq!(adopted["way"], "renamed", "{adopted}");
    let photo = rig.store.join("media/media/2026/11/photo");
    assert_eq!((fs::metadata(&photo).unwrap().ino(), fs::metadata(&photo).unwrap().uid()), (number, 33));
    assert!(!old.exists());
    // Once more there is something in the scope.
    uploads(&old);
    let outcome = rig.verfs(&["media", "adopt", old.to_str().unwrap()]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("is not empty (2026 is in it)"), "{outcome:?}");
    assert!(old.join("2026/11/photo").exists());
}

#[test]
fn a_scope_has_to_be_named_when_there_is_more_than_one() {
    let rig = store(&["media", "files"]);
    let old = rig.root().join("old");
    uploads(&old);
    let outcome = rig.verfs(&["media", "adopt", old.to_str().unwrap()]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("media, files"), "{outcome:?}");
    let outcome = rig.verfs(&["media", "adopt", old.to_str().unwrap(), "--scope", "pictures"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("\"pictures\" is no shared scope"), "{outcome:?}");
    rig.ok(&["media", "adopt", old.to_str().unwrap(), "--scope", "files/"]);
    assert!(rig.store.join("media/files/2026/11/photo").exists());
}

#[test]
fn what_cannot_be_adopted_is_refused_and_stays() {
    let rig = store(&["media"]);
    let file = rig.root().join("file");
    fs::write(&file, "file").unwrap();
    for (what, says) in [
        (rig.root().join("nothing"), "cannot be adopted"),
        (file, "is not a directory"),
        (rig.store.join("objects"), "one inside the other"),
        (rig.root().to_owned(), "one inside the other"),
    ] {
        let outcome = rig.verfs(&["media", "adopt", what.to_str().unwrap()]);
        assert_eq!(outcome.code, 2, "{}: {outcome:?}", what.display());
        assert!(outcome.stderr.contains(says), "{}: {outcome:?}", what.display());
    }
    rig.ok(&["verify"]);
}

#[test]
fn uploads_on_another_disk_are_copied_only_when_asked() {
    if skip_mounted() {
        return;
    }
    let rig = Rig::with_limit(Duration::from_secs(120));
    let disk = SmallDisk::with_reserve(&rig);
    let old = rig.root().join("old");
    uploads(&old);
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
    let outcome = rig.verfs(&["media", "adopt", old.to_str().unwrap()]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("--copy"), "{outcome:?}");
    assert_eq!(fs::read_dir(disk.path().join("tmp")).unwrap().count(), 0, "nothing is left of the attempt");
    let adopted = rig.json(&["media", "adopt", old.to_str().unwrap(), "--copy"]);
    assert_eq!(adopted["way"], "copied", "{adopted}");
    let photo = fs::metadata(disk.path().join("media/media/2026/11/photo")).unwrap();
    assert_eq!((photo.uid(), photo.len()), (33, 5));
    assert!(old.join("2026/11/photo").exists(), "it stays where it was");
    drop(disk);
}

#[test]
fn what_hides_the_release_is_listed_and_given_up_with_a_mount_and_without() {
    if skip_mounted() {
        return;
    }
    for mounted in [true, false] {
        let mut rig = store(&["media"]);
        rig.mount();
        let scope = rig.mnt.join("media");
        fs::write(scope.join("logo"), "mine").unwrap();
        fs::write(scope.join("new"), "new").unwrap();
        fs::remove_file(scope.join("theme/a")).unwrap();
        fs::write(scope.join("theme/b"), "my b").unwrap();
        fs::remove_dir_all(scope.join("other")).unwrap();
        fs::create_dir(scope.join("other")).unwrap();
        fs::write(scope.join("other/own"), "own").unwrap();
        let pair = |how: &str, path: &str| (how.to_owned(), path.to_owned());
        let all = [
            pair("replaced", "media/logo"),
            pair("replaced", "media/other"),
            pair("removed", "media/theme/a"),
            pair("replaced", "media/theme/b"),
        ];
        assert_eq!(shadowed(&rig), all);
        if !mounted {
            rig.umount();
            assert_eq!(shadowed(&rig), all);
        }
        rig.ok(&["media", "restore", "media/logo"]);
        let below = rig.json(&["media", "restore", "media/theme"]);
        assert_eq!(below["restored"].as_array().unwrap().len(), 2, "{below}");
        // An absolute path works where it is mounted.
        let other = if mounted { scope.join("other") } else { "media/other".into() };
        rig.ok(&["media", "restore", other.to_str().unwrap()]);
        assert_eq!(shadowed(&rig), []);
        if !mounted {
            rig.mount();
        }
        for (path, content) in [
            ("logo", "the release's"),
            ("new", "new"),
            ("theme/a", "a"),
            ("theme/b", "b"),
            ("other/c", "c"),
            ("other/own", "own"),
        ] {
            assert_eq!(fs::read_to_string(scope.join(path)).unwrap(), content, "{path}, mounted: {mounted}");
        }
        assert!(rig.ok(&["media", "restore", "media/logo"]).contains("nothing to do"));
        let actions = rig.json(&["log"]);
        assert_eq!(actions.to_string().matches("\"restore\"").count(), 3, "{actions}");
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn second(path: impl AsRef<Path>) -> i64 {
    let path = path.as_ref();
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mtime()
}

/// What the store of [`store`] has in `media`.
const OF_THE_RELEASE: [(&str, &str); 4] =
    [("logo", "the release's"), ("theme/a", "a"), ("theme/b", "b"), ("other/c", "c")];

/// Hides all that the release has in a scope. What is written is written last, so that it is as young as can be.
fn hide_all(scope: &Path) {
    fs::remove_file(scope.join("theme/a")).unwrap();
    fs::remove_dir_all(scope.join("other")).unwrap();
    fs::write(scope.join("other"), "a file of mine").unwrap();
    fs::write(scope.join("new"), "mine").unwrap();
    fs::rename(scope.join("new"), scope.join("theme/b")).unwrap();
    fs::write(scope.join("logo"), "of the upload").unwrap();
}

#[test]
fn what_a_restore_shows_is_younger_than_what_it_replaces() {
    if skip_mounted() {
        return;
    }
    for (kind, mounted) in [("--writable", true), ("--writable", false), ("--per-release", true)] {
        let mut rig = store_with(&[kind, "media"]);
        rig.mount();
        let scope = rig.mnt.join("media");
        hide_all(&scope);
        let uploads = ["logo", "theme/b", "other"].map(|name| second(scope.join(name)));
        if !mounted {
            rig.umount();
        }
        assert_eq!(rig.json(&["media", "restore", "media"])["count"], 4);
        let done = now();
        if !mounted {
            rig.mount();
        }
        let dirs = ["", "theme", "other"].into_iter();
        let look = |what: &str| -> Vec<i64> {
            let seconds = OF_THE_RELEASE.iter().map(|(name, _)| *name).chain(dirs.clone());
            let seconds: Vec<i64> = seconds.map(|name| second(scope.join(name))).collect();
            let young = uploads.iter().all(|upload| seconds.iter().all(|second| second > upload));
            assert!(young, "{kind}, mounted: {mounted}, {what}: {seconds:?} and {uploads:?}");
            assert!(seconds.iter().all(|second| *second <= done), "{what}: a time to come in {seconds:?}");
            seconds
        };
        let before = look("restored");
        for (name, content) in OF_THE_RELEASE {
            assert_eq!(fs::read_to_string(scope.join(name)).unwrap(), content, "{name}");
        }
        rig.umount();
        rig.mount();
        assert_eq!(look("after a new mount"), before);
        // Another upload at once, which is given up at once, and a switch.
        fs::write(scope.join("logo"), "another").unwrap();
        let upload = second(scope.join("logo"));
        rig.ok(&["media", "restore", "media/logo"]);
        let again = second(scope.join("logo"));
        assert!(before[0] < upload && upload < again, "{} {upload} {again}", before[0]);
        rig.add("2", &Tree::new().file("media/logo", "of the second"));
        rig.ok(&["switch", "2"]);
        assert!(second(scope.join("logo")) > again);
        rig.ok(&["verify"]);
    }
}

#[test]
fn a_restore_that_takes_longer_than_its_second_takes_a_later_one() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(&["media"]);
    rig.mount();
    let logo = rig.mnt.join("media/logo");
    fs::write(&logo, "of the upload").unwrap();
    rig.umount();
    let held = rig.root().join("held");
    rig.mount_with_env(&[("VERFS_FAULT", &format!("hold:media.step:{}", held.display()))]);
    let asked = now();
    std::thread::scope(|scope| {
        let restore = scope.spawn(|| rig.ok(&["media", "restore", "media/logo"]));
        let end = Instant::now() + Duration::from_secs(60);
        while !held.exists() || now() < asked + 4 {
            assert!(Instant::now() < end, "the restore never begins");
            std::thread::sleep(Duration::from_millis(20));
        }
        // Whoever has the upload open may still write to it.
        fs::OpenOptions::new().write(true).open(&logo).unwrap().write_all(b"OF").unwrap();
        let upload = second(&logo);
        fs::remove_file(&held).unwrap();
        restore.join().unwrap();
        assert_eq!(fs::read_to_string(&logo).unwrap(), "the release's");
        assert!(second(&logo) > upload, "{} s before the upload", upload - second(&logo));
    });
    rig.umount();
}

/// Waits until it is late in a second: a second that is to come then is not the next one.
fn late_in_a_second() {
    let end = Instant::now() + Duration::from_secs(60);
    while !(720..780).contains(&SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_millis()) {
        assert!(Instant::now() < end, "the clock stands still");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn restores_at_once_each_answer_when_the_second_of_what_they_show_is_over() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(&["media"]);
    let names = ["logo", "theme/a", "theme/b", "other/c"];
    rig.mount();
    let scope = rig.mnt.join("media");
    for name in names {
        fs::write(scope.join(name), "of the upload").unwrap();
    }
    late_in_a_second();
    std::thread::scope(|threads| {
        let restore = |name: &'static str| {
            rig.ok(&["media", "restore", &format!("media/{name}")]);
            let (shown, answered) = (second(scope.join(name)), now());
            assert!(shown < answered, "{name} has second {shown}, and the answer is of {answered}");
            shown
        };
        let restores = names.map(|name| threads.spawn(move || restore(name)));
        let mut seconds = restores.map(|restore| restore.join().unwrap());
        seconds.sort_unstable();
        assert!(seconds.is_sorted_by(|one, next| one < next), "two share a second: {seconds:?}");
    });
    rig.umount();
}

#[test]
fn a_switch_beside_a_restore_shows_nothing_of_a_time_to_come() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(&["media"]);
    rig.mount();
    rig.add("2", &Tree::new().file("page", "another").file("media/logo", "the release's"));
    let (logo, page) = (rig.mnt.join("media/logo"), rig.mnt.join("page"));
    fs::write(&logo, "of the upload").unwrap();
    late_in_a_second();
    std::thread::scope(|scope| {
        let restore = scope.spawn(|| rig.ok(&["media", "restore", "media/logo"]));
        let end = Instant::now() + Duration::from_secs(60);
        while fs::read(&logo).unwrap() != b"the release's" {
            assert!(Instant::now() < end, "the restore never shows anything");
            std::thread::sleep(Duration::from_millis(2));
        }
        rig.ok(&["switch", "2"]);
        let answered = now();
        assert_eq!(fs::read_to_string(&page).unwrap(), "another");
        assert!(second(&page) <= answered, "{} s in the future", second(&page) - answered);
        assert!(second(&page) > second(&logo), "{} and {}", second(&page), second(&logo));
        restore.join().unwrap();
    });
    rig.umount();
}

#[test]
fn a_restore_that_is_stopped_anywhere_shows_no_older_mtime() {
    if skip_mounted() {
        return;
    }
    let points = Rig::new().ok(&["debug-faults"]);
    let points: Vec<&str> = points.lines().filter_map(|line| line.strip_prefix("restore ")).collect();
    assert!(!points.is_empty());
    for point in points {
        let mut rig = store(&["media"]);
        rig.mount();
        let scope = rig.mnt.join("media");
        hide_all(&scope);
        let uploads = ["logo", "theme/b", "other"].map(|name| second(scope.join(name)));
        rig.umount();
        let passes = if point.starts_with("media.") { 2 } else { 1 };
        let fault = format!("crash:{point}:{passes}");
        let stopped = rig.run(&["media", "restore", "media"], &[("VERFS_FAULT", &fault)]);
        assert!(stopped.code != 0 && stopped.stderr.contains(point), "{point}: {stopped:?}");
        rig.mount();
        for (name, content) in OF_THE_RELEASE {
            if fs::read_to_string(scope.join(name)).is_ok_and(|now| now == content) {
                let now = second(scope.join(name));
                assert!(uploads.iter().all(|upload| now > *upload), "{point}: {name} of {now}, uploads {uploads:?}");
            }
        }
        rig.ok(&["media", "restore", "media"]);
        assert_eq!(shadowed(&rig), []);
        rig.ok(&["verify"]);
    }
}

/// A mounted store with one release, whose directory `media/seo` was removed and made anew, with some names of the
/// release's. What of it is looked up is believed for ever.
fn replaced() -> Rig {
    let mut rig = Rig::new();
    rig.init();
    let settings = rig.store.join("verfs.toml");
    let text = fs::read_to_string(&settings).unwrap() + "\n[[scope]]\npath = \"media\"\nttl = \"forever\"\n";
    fs::write(&settings, text).unwrap();
    let mut tree = Tree::new();
    for name in ["main", "lib", "sub/deep/x", "sub/y", "gone/z", "leaf"] {
        tree = tree.file(format!("media/seo/{name}"), "release");
    }
    rig.add("1", &tree.file("media/plain/x", "release").file("media/plain/y", "release"));
    rig.mount();
    let seo = rig.mnt.join("media/seo");
    fs::remove_dir_all(&seo).unwrap();
    fs::create_dir_all(seo.join("sub/deep")).unwrap();
    // A directory of the release's where a file is now.
    for name in ["main", "own", "sub/y", "sub/deep/own", "gone"] {
        fs::write(seo.join(name), "upload").unwrap();
    }
    for name in ["lib", "sub/deep/x", "leaf"] {
        assert!(!seo.join(name).exists(), "{name}");
    }
    rig
}

#[test]
fn a_restored_directory_shows_all_that_the_release_has_and_keeps_what_is_its_own() {
    if skip_mounted() {
        return;
    }
    for mounted in [true, false] {
        let mut rig = replaced();
        let seo = rig.mnt.join("media/seo");
        assert_eq!(shadowed(&rig), [("replaced".to_owned(), "media/seo".to_owned())]);
        if !mounted {
            rig.umount();
        }
        rig.ok(&["media", "restore", "media/seo"]);
        assert_eq!(shadowed(&rig), [], "mounted: {mounted}");
        if !mounted {
            rig.mount();
        }
        for name in ["main", "lib", "sub/deep/x", "sub/y", "gone/z", "leaf"] {
            assert_eq!(fs::read_to_string(seo.join(name)).unwrap(), "release", "{name}, mounted: {mounted}");
        }
        for name in ["own", "sub/deep/own"] {
            assert_eq!(fs::read_to_string(seo.join(name)).unwrap(), "upload", "{name}, mounted: {mounted}");
        }
        let mut names: Vec<_> = fs::read_dir(&seo).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["gone", "leaf", "lib", "main", "own", "sub"]);
    }
}

#[test]
fn a_restore_that_something_is_in_the_way_of_changes_nothing() {
    if skip_mounted() {
        return;
    }
    for mounted in [true, false] {
        let mut rig = replaced();
        let seo = rig.mnt.join("media/seo");
        fs::create_dir(seo.join("leaf")).unwrap();
        fs::write(seo.join("leaf/own"), "own").unwrap();
        let (before, log) = (seen::tree(&rig.store.join("media")), rig.json(&["log"]));
        if !mounted {
            rig.umount();
        }
        for path in ["media/seo", "media"] {
            let outcome = rig.verfs(&["media", "restore", path]);
            assert_eq!(outcome.code, 2, "{outcome:?}");
            for says in ["media/seo/leaf", "files of its own", "remove it first", "nothing was changed"] {
                assert!(outcome.stderr.contains(says), "{says:?} is not said: {outcome:?}");
            }
        }
        assert!(before == seen::tree(&rig.store.join("media")), "mounted: {mounted}: something was given up");
        assert_eq!(rig.json(&["log"]), log, "mounted: {mounted}");
        if !mounted {
            rig.mount();
        }
        fs::remove_dir_all(seo.join("leaf")).unwrap();
        rig.ok(&["media", "restore", "media"]);
        assert_eq!(fs::read_to_string(seo.join("leaf")).unwrap(), "release");
        assert_eq!(shadowed(&rig), []);
    }
}

#[test]
fn a_restore_of_a_scope_that_the_release_has_a_file_at_is_refused() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(&["media"]);
    rig.add("2", &Tree::new().file("media", "a file"));
    rig.ok(&["switch", "2"]);
    rig.mount();
    let scope = rig.mnt.join("media");
    for with_a_file in [false, true] {
        if with_a_file {
            fs::write(scope.join("own"), "own").unwrap();
        }
        for keep in ["yes", "no"] {
            let outcome = rig.verfs(&["media", "restore", "media", "--keep-own", keep]);
            assert_eq!(outcome.code, 2, "{keep}: {outcome:?}");
            assert!(outcome.stderr.contains("media is a scope"), "{keep}: {outcome:?}");
            assert_eq!(fs::read_dir(&scope).unwrap().count(), usize::from(with_a_file), "{keep}");
        }
    }
}

/// Names that the release of [`replaced`] lacks: these are in `media/seo` of [`own`], beside those directories.
const OWN: [&str; 15] = [
    "leaf/file",
    "leaf/mine",
    "leaf/mine/deeper",
    "leaf/mine/deeper/file",
    "mine",
    "mine/a",
    "mine/a/b",
    "mine/a/b/c",
    "mine/link",
    "mine/main",
    "own",
    "sub/deep/own",
    "sub/empty",
    "sub/nowhere",
    "sub/own too",
];

/// The same with a directory in place of a release's file, and nested directories, symlinks and hard links of the user's.
/// Beside it are names of the user's and of the release's, some of which are hidden.
fn own() -> Rig {
    let rig = replaced();
    let (scope, seo) = (rig.mnt.join("media"), rig.mnt.join("media/seo"));
    for dir in ["leaf/mine/deeper", "mine/a/b", "sub/empty"] {
        fs::create_dir_all(seo.join(dir)).unwrap();
    }
    for file in ["leaf/file", "leaf/mine/deeper/file", "mine/a/b/c"] {
        fs::write(seo.join(file), "upload").unwrap();
    }
    symlink("../main", seo.join("mine/link")).unwrap();
    symlink("nowhere", seo.join("sub/nowhere")).unwrap();
    fs::hard_link(seo.join("main"), seo.join("mine/main")).unwrap();
    fs::hard_link(seo.join("own"), seo.join("sub/own too")).unwrap();
    fs::hard_link(seo.join("own"), scope.join("beside")).unwrap();
    fs::remove_file(scope.join("plain/x")).unwrap();
    fs::write(scope.join("plain/y"), "upload").unwrap();
    fs::write(scope.join("plain/own"), "upload").unwrap();
    rig
}

fn shown(top: &Path) -> BTreeMap<PathBuf, What> {
    seen::tree(top).into_iter().map(|(path, seen)| (path, seen.what)).collect()
}

/// What the release of [`replaced`] has in `media/seo`.
fn release_of_replaced() -> BTreeMap<PathBuf, What> {
    let dirs = ["", "gone", "sub", "sub/deep"].map(|dir| (dir.into(), What::Dir));
    let files = ["gone/z", "leaf", "lib", "main", "sub/deep/x", "sub/y"];
    dirs.into_iter().chain(files.map(|file| (file.into(), What::File(b"release".to_vec())))).collect()
}

#[test]
fn a_restore_that_keeps_nothing_shows_what_the_release_has_and_nothing_else() {
    if skip_mounted() {
        return;
    }
    for mounted in [true, false] {
        let mut rig = own();
        let (scope, seo) = (rig.mnt.join("media"), rig.mnt.join("media/seo"));
        let before = shown(&seo);
        assert!(OWN.iter().all(|name| before.contains_key(Path::new(name))), "{before:?}");
        let beside = || {
            let mut all = shown(&scope);
            all.retain(|path, _| !path.starts_with("seo"));
            all
        };
        let kept = beside();
        let open = fs::File::open(seo.join("mine/a/b/c")).unwrap();
        let links = || fs::metadata(scope.join("beside")).unwrap().nlink();
        assert_eq!((links(), open.metadata().unwrap().nlink()), (3, 1));
        if mounted {
            let said = rig.json(&["media", "restore", "media/seo", "--keep-own", "no"]);
            assert_eq!(said["given_up"], OWN.len(), "{said}");
            let mut content = String::new();
            (&open).read_to_string(&mut content).unwrap();
            assert_eq!((&content[..], open.metadata().unwrap().nlink()), ("upload", 0), "what is open stays");
            assert_eq!(links(), 1);
            drop(open);
        } else {
            drop(open);
            rig.umount();
            let said = rig.json(&["media", "restore", "media/seo", "--keep-own", "no"]);
            assert_eq!(said["given_up"], OWN.len(), "{said}");
            rig.mount();
        }
        let log = rig.json(&["log"]);
        let note = log.as_array().unwrap().last().unwrap()["note"].as_str().unwrap().to_owned();
        assert!(note.starts_with("media/seo (") && note.contains(", 15 of the user's given up)"), "{note}");
        for name in OWN {
            assert!(fs::symlink_metadata(seo.join(name)).is_err(), "{name} is there, mounted: {mounted}");
        }
        assert_eq!(shown(&seo), release_of_replaced(), "mounted: {mounted}");
        assert_eq!(beside(), kept, "mounted: {mounted}");
        assert_eq!(links(), 1, "mounted: {mounted}");
        assert!(rig.ok(&["media", "restore", "media/seo", "--keep-own", "no"]).contains("nothing to do"));
        // Where nothing is hidden any more, and of the whole scope.
        rig.ok(&["media", "restore", "media"]);
        assert_eq!(rig.json(&["media", "restore", "media", "--keep-own", "no"])["given_up"], 2);
        assert_eq!(shown(&scope.join("plain")).len(), 3);
        assert!(!scope.join("beside").exists() && shadowed(&rig).is_empty());
        // Nothing of it comes back.
        rig.umount();
        rig.mount();
        assert_eq!(shown(&seo), release_of_replaced(), "mounted: {mounted}");
        rig.ok(&["verify"]);
    }
}

#[test]
fn a_restore_keeps_what_is_its_own_unless_told_otherwise() {
    if skip_mounted() {
        return;
    }
    for keep in [&[][..], &["--keep-own", "yes"]] {
        let rig = own();
        let seo = rig.mnt.join("media/seo");
        let restore = |path| rig.verfs(&[&["media", "restore", path], keep].concat());
        assert_eq!(restore("media/seo").code, 2, "{keep:?}: a directory stands in place of a file");
        for path in ["media/seo/sub", "media/seo/main"] {
            let outcome = restore(path);
            // They lie in a directory that was made anew.
            assert_eq!(outcome.code, 2, "{keep:?}: {outcome:?}");
        }
        fs::remove_dir_all(seo.join("leaf")).unwrap();
        let outcome = restore("media/seo");
        assert_eq!(outcome.code, 0, "{keep:?}: {outcome:?}");
        assert!(!outcome.stdout.contains("lacks"), "{keep:?}: {outcome:?}");
        for name in OWN.iter().filter(|name| !name.starts_with("leaf")) {
            assert!(fs::symlink_metadata(seo.join(name)).is_ok(), "{keep:?}: {name} is gone");
        }
        assert_eq!(fs::read_to_string(seo.join("leaf")).unwrap(), "release");
    }
}

#[test]
fn a_restore_that_would_give_up_too_long_a_path_changes_nothing() {
    if skip_mounted() {
        return;
    }
    for mounted in [true, false] {
        let mut rig = own();
        let (scope, seo) = (rig.mnt.join("media"), rig.mnt.join("media/seo"));
        let chain = vec!["d".repeat(200); 14].join("/");
        let (upper, lower) = (seo.join("mine").join(&chain), scope.join("chain").join(&chain));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&lower).unwrap();
        fs::rename(scope.join("chain"), upper.join("chain")).unwrap();
        let log = rig.json(&["log"]);
        if !mounted {
            rig.umount();
        }
        for path in ["media/seo", "media"] {
            let outcome = rig.verfs(&["media", "restore", path, "--keep-own", "no"]);
            assert_eq!(outcome.code, 2, "{outcome:?}");
            for says in ["media/seo/mine/ddd", "ENAMETOOLONG", "4095 bytes", "nothing was changed"] {
                assert!(outcome.stderr.contains(says), "{says:?} is not said: {outcome:?}");
            }
        }
        assert_eq!(rig.json(&["log"]), log, "mounted: {mounted}");
        if !mounted {
            rig.mount();
        }
        assert!(OWN.iter().all(|name| fs::symlink_metadata(seo.join(name)).is_ok()), "mounted: {mounted}");
        assert_eq!(fs::read_to_string(seo.join("main")).unwrap(), "upload");
        // As the message says.
        fs::rename(upper.join("chain"), scope.join("chain")).unwrap();
        rig.ok(&["media", "restore", "media/seo", "--keep-own", "no"]);
        assert_eq!(shown(&seo), release_of_replaced(), "mounted: {mounted}");
    }
}

#[test]
fn a_restore_that_keeps_nothing_stopped_anywhere_leaves_each_name_old_or_the_release_s() {
    if skip_mounted() {
        return;
    }
    let points = Rig::new().ok(&["debug-faults"]);
    let points: Vec<&str> = points.lines().filter_map(|line| line.strip_prefix("restore ")).collect();
    assert!(points.contains(&"media.step"), "{points:?}");
    for point in points {
        // In the middle of what is the user's alone, between that and what the release has, and in the middle of this.
        let passes: &[usize] = if point == "media.step" { &[2, 8, OWN.len() + 1, OWN.len() + 3] } else { &[1] };
        for (number, pass) in passes.iter().enumerate() {
            let mut rig = own();
            let seo = rig.mnt.join("media/seo");
            let (old, new) = (shown(&seo), release_of_replaced());
            rig.umount();
            let restore = ["media", "restore", "media/seo", "--keep-own", "no"];
            let fault = format!("crash:{point}:{pass}");
            // The daemon, or the command without one.
            if number % 2 == 1 {
                rig.mount_with_env(&[("VERFS_FAULT", &fault)]);
                let stopped = rig.verfs(&restore);
                assert_eq!(stopped.code, 1, "{point} {pass}: {stopped:?}");
            } else {
                let stopped = rig.run(&restore, &[("VERFS_FAULT", &fault)]);
                assert!(stopped.code != 0 && stopped.stderr.contains(point), "{point} {pass}: {stopped:?}");
            }
            rig.mount();
            let now = shown(&seo);
            for name in old.keys().chain(new.keys()).chain(now.keys()).collect::<BTreeSet<_>>() {
                let (was, is, will) = (old.get(name), now.get(name), new.get(name));
                assert!(is == was || is == will, "{point} {pass}: {} is {is:?}, was {was:?}", name.display());
            }
            if point == "media.step" {
                assert!(now != old && now != new, "{point} {pass}: not in the middle");
            }
            rig.ok(&restore);
            assert_eq!(shown(&seo), new, "{point} {pass}");
            rig.ok(&["verify"]);
        }
    }
}

#[test]
fn what_was_removed_where_nothing_was_written_is_listed_and_given_up() {
    if skip_mounted() {
        return;
    }
    for mounted in [true, false] {
        let mut rig = store(&["media"]);
        rig.add("2", &Tree::new().file("media/a/b/c/removed", "r").file("media/a/b/kept", "k"));
        rig.ok(&["switch", "2"]);
        rig.mount();
        let removed = rig.mnt.join("media/a/b/c/removed");
        fs::remove_file(&removed).unwrap();
        if !mounted {
            rig.umount();
        }
        assert_eq!(shadowed(&rig), [("removed".to_owned(), "media/a/b/c/removed".to_owned())]);
        assert_eq!(rig.json(&["media", "restore", "media/a"])["restored"], json!(["media/a/b/c/removed"]));
        assert_eq!(shadowed(&rig), []);
        if !mounted {
            rig.mount();
        }
        let end = Instant::now() + Duration::from_secs(20);
        while fs::read(&removed).is_err() {
            assert!(Instant::now() < end, "mounted: {mounted}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_restore_that_the_disk_fails_is_told_and_noted() {
    if skip_mounted() {
        return;
    }
    for mounted in [true, false] {
        let mut rig = Rig::new();
        let disk = SmallDisk::beside(&rig, "ext4");
        rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media", "--media", disk.path().to_str().unwrap()]);
        rig.add("1", &Tree::new().file("media/a", "a").file("media/b", "b"));
        rig.mount();
        fs::remove_file(rig.mnt.join("media/a")).unwrap();
        fs::write(rig.mnt.join("media/b"), "upload").unwrap();
        // Nobody may remove it, not even root: the first name is restored, the second is not.
        let upload = disk.path().join("media/media/b");
        let immutable = |how: &str| assert!(Command::new("chattr").arg(how).arg(&upload).status().unwrap().success());
        immutable("+i");
        if !mounted {
            rig.umount();
        }
        let outcome = rig.verfs(&["media", "restore", "media"]);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        for says in ["1 names show the release's again", "media/media/b", "restore again"] {
            assert!(outcome.stderr.contains(says), "{says:?} is not said: {outcome:?}");
        }
        let log = rig.json(&["log"]);
        let last = log.as_array().unwrap().last().unwrap();
        assert_eq!((&last["action"], &last["ok"]), (&json!("restore"), &json!(false)), "{last}");
        immutable("-i");
        assert_eq!(shadowed(&rig), [("replaced".to_owned(), "media/b".to_owned())]);
        rig.ok(&["media", "restore", "media"]);
        assert_eq!(shadowed(&rig), []);
        if mounted {
            rig.umount();
        }
        drop(disk);
    }
}

#[test]
fn a_dry_run_counts_the_hidden_names_that_the_switch_counts() {
    if skip_mounted() {
        return;
    }
    for mounted in [true, false] {
        let mut rig = store(&["media"]);
        let tree = Tree::new()
            .file("page", "other")
            .file("media/logo", "other")
            .file("media/theme/a", "other")
            .file("media/theme/b", "b")
            .file("media/other/c", "other");
        rig.add("2", &tree);
        rig.ok(&["switch", "1"]);
        rig.mount();
        let scope = rig.mnt.join("media");
        fs::write(scope.join("logo"), "mine").unwrap();
        fs::write(scope.join("theme/b"), "mine, and the same in both releases").unwrap();
        fs::remove_dir_all(scope.join("other")).unwrap();
        if !mounted {
            rig.umount();
        }
        assert_eq!(rig.json(&["switch", "--dry-run", "2"])["hidden"], 2, "mounted: {mounted}");
        assert!(rig.ok(&["switch", "--dry-run", "2"]).contains("4 changed entries, 2 hidden by media"));
        assert_eq!(rig.json(&["switch", "2"])["hidden"], 2, "mounted: {mounted}");
        assert_eq!(rig.json(&["switch", "--dry-run", "1"])["hidden"], 2, "mounted: {mounted}");
    }
}

/// With a mount the names come in pages of 64 KiB, without one all at once: the answer is the same.
#[test]
fn a_restore_of_many_names_counts_and_lists_them_all() {
    if skip_mounted() {
        return;
    }
    const MANY: usize = 700;
    let name = |number: usize| format!("{number:0200}");
    for mounted in [true, false] {
        let mut rig = store(&["media"]);
        let tree = (0..MANY).fold(Tree::new(), |tree, number| tree.file(format!("media/{}", name(number)), "r"));
        rig.add("2", &tree);
        rig.ok(&["switch", "2"]);
        rig.mount();
        let scope = rig.mnt.join("media");
        (0..MANY).for_each(|number| fs::remove_file(scope.join(name(number))).unwrap());
        if !mounted {
            rig.umount();
        }
        let value = rig.json(&["media", "restore", "media"]);
        assert_eq!((&value["count"], &value["next"]), (&MANY.into(), &serde_json::Value::Null), "mounted: {mounted}");
        let listed: Vec<&str> =
            value["restored"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
        let all: Vec<String> = (0..MANY).map(|number| format!("media/{}", name(number))).collect();
        assert_eq!(listed, all, "mounted: {mounted}");
        let log = rig.json(&["log"]);
        assert_eq!(log.as_array().unwrap().last().unwrap()["note"], format!("media ({MANY} names)"));
        if mounted {
            assert_eq!(fs::read_dir(&scope).unwrap().count(), MANY);
            // And for people.
            (0..MANY).for_each(|number| fs::remove_file(scope.join(name(number))).unwrap());
            let said = rig.ok(&["media", "restore", "media"]);
            assert_eq!(said.lines().count(), MANY, "{said}");
            // Pages are of that restore, and of no other one.
            let mut control = rig.control();
            let mut page = |path: &str| control.ask(&json!({ "op": "restore", "path": path, "after": MANY - 1 }));
            assert_eq!(page("media").unwrap()["restored"], json!([format!("media/{}", name(MANY - 1))]));
            assert!(page("media/logo").unwrap_err().contains("not what was restored last"));
        }
    }
}

#[test]
fn what_cannot_be_restored_is_refused_with_the_reason() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(&["media"]);
    rig.mount();
    let scope = rig.mnt.join("media");
    fs::write(scope.join("new"), "new").unwrap();
    fs::remove_file(scope.join("logo")).unwrap();
    fs::create_dir(scope.join("logo")).unwrap();
    fs::write(scope.join("logo/own"), "own").unwrap();
    fs::remove_dir_all(scope.join("other")).unwrap();
    for (path, says) in [
        ("page", "lies in no scope"),
        ("media/new", "has nothing at media/new"),
        ("media/other/c", "a directory above it was removed"),
        ("media/logo", "a directory with files of its own"),
        ("media/../page", "no path in the docroot"),
        ("/etc/passwd", "not below the mountpoint"),
    ] {
        let outcome = rig.verfs(&["media", "restore", path]);
        assert_eq!(outcome.code, 2, "{path}: {outcome:?}");
        assert!(outcome.stderr.contains(says), "{path}: {outcome:?}");
    }
    assert_eq!(fs::read_to_string(scope.join("logo/own")).unwrap(), "own");
    assert_eq!(fs::read_to_string(scope.join("new")).unwrap(), "new");
}
