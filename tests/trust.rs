//! Root believes nobody but root: what somebody else has put, or could put, in the place of a store, of a part of it,
//! of the writable layer or of a mountpoint is refused, and nothing is done to what it leads to.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::deadline::connection_of;
use support::tree::Tree;
use support::user::WWW_DATA;
use support::{Rig, skip_mounted};

/// What lies in a store.
const DIRS: [&str; 4] = ["objects", "releases", "tmp", "run"];
const FILES: [&str; 7] = ["verfs.toml", "active", "stamps", "journal.jsonl", "stat-cache", "reserve", "verfs.log"];
/// What lies in the directory of the writable layer.
const LAYER: [&str; 5] = ["media", "whiteouts", "own", "tmp", "orphans"];

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A store of two releases, the first of them active.
fn store() -> Rig {
    let rig = Rig::new();
    rig.init();
    for release in ["1", "2"] {
        rig.add(release, &Tree::new().file("index.html", release).dir("media"));
    }
    rig.ok(&["switch", "1"]);
    rig
}

/// The command fails and says each of these.
fn refused<S: AsRef<OsStr>>(rig: &Rig, args: &[S], says: &[&str]) {
    let outcome = rig.verfs(args);
    let args: Vec<_> = args.iter().map(|arg| arg.as_ref()).collect();
    assert!(matches!(outcome.code, 1 | 2), "{args:?}: {outcome:?}");
    for what in says {
        assert!(outcome.stderr.contains(what), "{what:?} is not said by {args:?}: {outcome:?}");
    }
}

/// A directory of root's with something in it, which nobody may touch.
struct Victim(PathBuf);

impl Victim {
    fn make(path: PathBuf) -> Victim {
        fs::create_dir_all(path.join("1/sub")).unwrap();
        fs::write(path.join("1/sub/file"), "precious").unwrap();
        fs::write(path.join("2"), "precious").unwrap();
        Victim(path)
    }

    fn is_whole(&self) {
        assert_eq!(support::seen::tree(&self.0).len(), 5, "of {}", self.0.display());
        for file in ["1/sub/file", "2"] {
            assert_eq!(fs::read(self.0.join(file)).unwrap(), b"precious", "{file}");
        }
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !true_now() {
        assert!(Instant::now() < end, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_part_of_a_store_that_is_a_symlink_is_refused_and_what_it_leads_to_is_left_alone() {
    let rig = store();
    let victim = Victim::make(rig.root().join("victim"));
    for name in DIRS.iter().chain(&FILES) {
        let (part, aside) = (rig.store.join(name), rig.root().join("aside"));
        let was_there = part.exists();
        if was_there {
            fs::rename(&part, &aside).unwrap();
        }
        let target = if DIRS.contains(name) { victim.0.clone() } else { victim.0.join("2") };
        symlink(&target, &part).unwrap();
        for command in [&["list"][..], &["switch", "2"], &["gc"], &["mount", arg(&rig.store), arg(&rig.mnt)]] {
            refused(&rig, command, &[arg(&part), "symlink"]);
        }
        fs::remove_file(&part).unwrap();
        if was_there {
            fs::rename(&aside, &part).unwrap();
        }
        victim.is_whole();
    }
    rig.ok(&["switch", "2"]);
}

#[test]
fn a_journal_that_was_put_aside_is_a_part_of_the_store() {
    let rig = store();
    let victim = Victim::make(rig.root().join("victim"));
    let aside = rig.store.join("journal.jsonl.1");
    symlink(victim.0.join("2"), &aside).unwrap();
    refused(&rig, &["log"], &[arg(&aside), "symlink"]);
    fs::remove_file(&aside).unwrap();
    victim.is_whole();
    fs::copy(rig.store.join("journal.jsonl"), &aside).unwrap();
    chown(&aside, Some(33), None).unwrap();
    refused(&rig, &["log"], &[arg(&aside), "user 33 (www-data)"]);
    chown(&aside, Some(0), None).unwrap();
    rig.ok(&["log"]);
}

#[test]
fn a_store_that_somebody_else_owns_or_may_write_is_refused() {
    let rig = store();
    let parts = DIRS.iter().chain(&FILES).map(|name| rig.store.join(name)).filter(|part| part.exists());
    let paths: Vec<PathBuf> = parts.chain([rig.store.clone(), rig.root().to_owned()]).collect();
    assert!(paths.len() > 9, "{paths:?}");
    for path in paths {
        let was = fs::metadata(&path).unwrap().permissions();
        lchown(&path, Some(33), None).unwrap();
        refused(&rig, &["list"], &[arg(&path), "user 33 (www-data)", "chown"]);
        lchown(&path, Some(0), None).unwrap();
        // See cli/store.rs for those that an earlier verfs left writable.
        let closed = ["stamps", "journal.jsonl", "verfs.log"].iter().any(|name| path.ends_with(name));
        for bit in [0o020, 0o002].into_iter().filter(|_| !closed) {
            mode(&path, was.mode() & 0o7777 | bit);
            refused(&rig, &["switch", "2"], &[arg(&path), "may be written by others", "chmod go-w"]);
        }
        fs::set_permissions(&path, was).unwrap();
        rig.ok(&["list"]);
    }
    // As for ssh: in a sticky directory nobody moves what is not his own.
    mode(rig.root(), 0o1777);
    rig.ok(&["switch", "2"]);
}

#[test]
fn a_users_own_store_is_his_alone() {
    let rig = Rig::new();
    let home = rig.root().join("home");
    fs::create_dir_all(home.join("source")).unwrap();
    fs::write(home.join("source/index.html"), "evil").unwrap();
    chown(&home, Some(33), Some(33)).unwrap();
    let (store, source) = (home.join("store"), home.join("source"));
    for args in [
        &["init", arg(&store)][..],
        &["--store", arg(&store), "add", "66", arg(&source)],
        &["--store", arg(&store), "switch", "66"],
    ] {
        let outcome = rig.verfs_as(WWW_DATA, args);
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }
    refused(&rig, &["--store", arg(&store), "list"], &[arg(&home), "user 33 (www-data)"]);
    refused(&rig, &["mount", arg(&store), arg(&rig.mnt)], &[arg(&home), "user 33 (www-data)"]);
    let other = support::user::User { uid: 1, gid: 1, groups: &[] };
    let outcome = rig.verfs_as(other, &["--store", arg(&store), "list"]);
    assert!(outcome.code != 0 && outcome.stderr.contains("user 33"), "{outcome:?}");
}

#[test]
fn init_makes_nothing_where_somebody_else_could_replace_it() {
    let rig = Rig::new();
    let home = rig.root().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(33), Some(33)).unwrap();
    for store in [home.join("store"), home.join("deep/er/store"), home.clone()] {
        refused(&rig, &["init", arg(&store)], &[arg(&home), "user 33 (www-data)"]);
    }
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0);
    chown(&home, Some(0), Some(0)).unwrap();
    mode(&home, 0o777);
    refused(&rig, &["init", arg(&home.join("store"))], &[arg(&home), "chmod go-w"]);
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0);
}

/// A store whose writable layer lies in a directory of the web server's user.
fn store_with_home(per_release: bool) -> (Rig, PathBuf) {
    let rig = Rig::new();
    let home = rig.root().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(33), Some(33)).unwrap();
    let kind = if per_release { "--per-release" } else { "--writable" };
    rig.ok(&["init", arg(&rig.store), "--media", arg(&home), kind, "media", "--owner", "www-data:www-data"]);
    for release in ["1", "2"] {
        rig.add(release, &Tree::new().file("media/a", release));
    }
    (rig, home)
}

#[test]
fn a_swapped_directory_of_the_writable_layer_is_refused_and_what_it_leads_to_is_left_alone() {
    if skip_mounted() {
        return;
    }
    let (mut rig, home) = store_with_home(false);
    let victim = Victim::make(rig.root().join("victim"));
    rig.mount();
    fs::write(rig.mnt.join("media/upload"), "upload").unwrap();
    rig.umount();
    let old = rig.root().join("old");
    fs::create_dir(&old).unwrap();
    fs::write(old.join("photo"), "photo").unwrap();
    mode(rig.root(), 0o755);
    for name in LAYER {
        let (part, aside) = (home.join(name), home.join("aside"));
        let swap = |new: &(dyn Fn() + Sync)| {
            WWW_DATA.work_in(&home, || {
                fs::rename(&part, &aside).unwrap();
                new();
            });
        };
        let put_back = || {
            fs::remove_file(&part).or_else(|_| fs::remove_dir_all(&part)).unwrap();
            fs::rename(&aside, &part).unwrap();
        };
        let mount = ["mount", arg(&rig.store), arg(&rig.mnt)];
        swap(&|| symlink(&victim.0, &part).unwrap());
        refused(&rig, &mount, &[arg(&part), "symlink"]);
        refused(&rig, &["media", "adopt", arg(&old), "--copy"], &[arg(&part)]);
        put_back();
        victim.is_whole();
        swap(&|| fs::create_dir(&part).unwrap());
        // That of the uploads may be the owner's of a scope.
        if name != "media" {
            refused(&rig, &mount, &[arg(&part), "user 33 (www-data)"]);
        }
        put_back();
        swap(&|| fs::write(&part, "").unwrap());
        refused(&rig, &mount, &[arg(&part), "symlink or of another type"]);
        put_back();
        assert_eq!(connection_of(&rig.mnt), None);
    }
    assert_eq!(fs::read(old.join("photo")).unwrap(), b"photo");
    rig.mount();
    assert_eq!(fs::read(rig.mnt.join("media/upload")).unwrap(), b"upload");
}

#[test]
fn a_swapped_directory_of_the_own_layers_is_refused_by_remove_and_gc() {
    let (rig, home) = store_with_home(true);
    let victim = Victim::make(rig.root().join("victim"));
    WWW_DATA.work_in(&home, || {
        fs::rename("own", "aside").unwrap();
        symlink(&victim.0, "own").unwrap();
    });
    refused(&rig, &["remove", "1"], &[arg(&home.join("own")), "symlink"]);
    refused(&rig, &["gc"], &[arg(&home.join("own")), "symlink"]);
    victim.is_whole();
}

#[test]
fn a_directory_that_takes_the_name_of_the_orphans_is_not_emptied() {
    if skip_mounted() {
        return;
    }
    let (mut rig, home) = store_with_home(false);
    let victim = Victim::make(home.join("backup"));
    WWW_DATA.work_in(&home, || {
        fs::rename("orphans", "aside").unwrap();
        fs::rename("backup", "orphans").unwrap();
    });
    rig.mount();
    rig.umount();
    assert_eq!(fs::read(home.join("orphans/1/sub/file")).unwrap(), b"precious", "{}", victim.0.display());
}

#[test]
fn a_symlink_above_the_top_of_a_scope_is_refused() {
    if skip_mounted() {
        return;
    }
    let rig = Rig::new();
    let scope = ["--writable", "deep/er/media", "--owner", "www-data:www-data"];
    rig.ok(&[&["init", arg(&rig.store)][..], &scope].concat());
    rig.add("1", &Tree::new().dir("deep/er/media"));
    let victim = Victim::make(rig.root().join("victim"));
    fs::remove_dir_all(rig.store.join("media/deep/er")).unwrap();
    symlink(&victim.0, rig.store.join("media/deep/er")).unwrap();
    refused(&rig, &["mount", arg(&rig.store), arg(&rig.mnt)], &["media/deep/er"]);
    victim.is_whole();
}

#[test]
fn files_that_the_daemon_makes_are_writable_by_root_alone() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.ok(&["init", arg(&rig.store), "--writable", "media"]);
    for release in ["1", "2"] {
        rig.add(release, &Tree::new().file("index.html", release).dir("media"));
    }
    fs::remove_file(rig.store.join("journal.jsonl")).unwrap();
    rig.mount();
    rig.ok(&["switch", "1"]);
    rig.ok(&["switch", "2"]);
    for name in FILES.iter().chain(&DIRS).chain(&LAYER).map(|name| rig.store.join(name)).filter(|path| path.exists()) {
        let mode = fs::metadata(&name).unwrap().permissions().mode();
        assert_eq!(mode & 0o022, 0, "{}: {mode:o}", name.display());
    }
    rig.umount();
}

#[test]
fn a_mountpoint_that_is_swapped_after_it_was_checked_is_not_mounted_on() {
    if skip_mounted() {
        return;
    }
    let rig = store();
    let victim = Victim::make(rig.root().join("victim"));
    let (held, moved) = (rig.root().join("held"), rig.root().join("moved"));
    let fault = format!("hold:mount.checked:{}", held.display());
    let mount = ["mount", arg(&rig.store), arg(&rig.mnt), "--log", arg(&rig.log)];
    let outcome = std::thread::scope(|threads| {
        let mount = threads.spawn(|| rig.run(&mount, &[("VERFS_FAULT", &fault)]));
        until("the mountpoint is checked", || held.exists());
        fs::rename(&rig.mnt, &moved).unwrap();
        symlink(&victim.0, &rig.mnt).unwrap();
        fs::remove_file(&held).unwrap();
        mount.join().unwrap()
    });
    assert_eq!(connection_of(&victim.0), None, "{outcome:?}");
    assert_eq!(connection_of(&moved), None, "{outcome:?}");
    victim.is_whole();
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains(arg(&rig.mnt)) && outcome.stderr.contains("nothing is mounted"), "{outcome:?}");
}

#[test]
fn after_a_swap_above_the_mountpoint_umount_takes_away_no_other_mount() {
    if skip_mounted() {
        return;
    }
    /// Unmounts at the end.
    struct Tmpfs(PathBuf);
    impl Drop for Tmpfs {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        }
    }
    let mut rig = store();
    let (site, moved, other) = (rig.root().join("site"), rig.root().join("moved"), rig.root().join("other"));
    rig.mnt = site.join("mnt");
    fs::create_dir_all(&rig.mnt).unwrap();
    fs::create_dir_all(other.join("mnt")).unwrap();
    rustix::mount::mount("none", other.join("mnt"), "tmpfs", MountFlags::empty(), None).unwrap();
    let tmpfs = Tmpfs(other.join("mnt"));
    rig.mount();
    fs::rename(&site, &moved).unwrap();
    symlink(&other, &site).unwrap();
    fs::write(tmpfs.0.join("file"), "kept").unwrap();
    rig.ok(&["umount", arg(&rig.store)]);
    assert_eq!(fs::read(tmpfs.0.join("file")).unwrap(), b"kept");
    assert_eq!(connection_of(&moved.join("mnt")), None);
}
