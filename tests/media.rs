//! The writable layer through the mount: as a plain directory does it, over every switch and every end of the daemon.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::chance::Chance;
use support::seen;
use support::{Rig, skip_mounted};

/// A store with the scope `media`, and the releases 1 and 2, which both have files in it.
fn mounted() -> Rig {
    let mut rig = Rig::with_limit(Duration::from_secs(240));
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
    rig.setting("switch", "share_second", "true");
    for release in ["1", "2"] {
        let source = source(&rig, release);
        rig.ok(&["add", release, source.to_str().unwrap()]);
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    rig
}

fn source(rig: &Rig, release: &str) -> PathBuf {
    let source = rig.src.join(release);
    for dir in ["media/a/b", "media/c", "media/empty", "code"] {
        fs::create_dir_all(source.join(dir)).unwrap();
    }
    for (path, content) in [
        ("code/x", format!("code {release}")),
        ("media/f", format!("f {release}")),
        ("media/same", "the same".to_owned()),
        ("media/a/b/g", format!("g {release}")),
        ("media/a/h", "h".repeat(9000)),
        ("media/c/i", String::new()),
        (&format!("media/only-{release}")[..], release.to_owned()),
    ] {
        fs::write(source.join(path), content).unwrap();
    }
    std::os::unix::fs::symlink("f", source.join("media/link")).unwrap();
    source
}

#[derive(Clone, Debug)]
enum Operation {
    Create(PathBuf, u32),
    Write(PathBuf, usize),
    Append(PathBuf, usize),
    Truncate(PathBuf, u64),
    Read(PathBuf),
    Unlink(PathBuf),
    Mkdir(PathBuf),
    Rmdir(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Chmod(PathBuf, u32),
}

fn random_path(random: &mut Chance) -> PathBuf {
    const NAMES: [&str; 6] = ["a", "b", "c", "f", "g", "h"];
    (0..=random.below(3)).map(|_| NAMES[random.below(NAMES.len())]).collect()
}

fn random_operation(random: &mut Chance, number: usize) -> Operation {
    let path = random_path(random);
    match random.below(24) {
        0..=2 => Operation::Create(path, [0o644, 0o600, 0o755][random.below(3)]),
        3..=5 => Operation::Write(path, number),
        6 | 7 => Operation::Append(path, number),
        8 => Operation::Truncate(path, [0, 3, 5000][random.below(3)]),
        9 => Operation::Read(path),
        10 | 11 => Operation::Unlink(path),
        12..=14 => Operation::Mkdir(path),
        15 | 16 => Operation::Rmdir(path),
        17..=19 => Operation::Rename(path, random_path(random)),
        20 => Operation::Exchange(path, random_path(random)),
        21 => Operation::Link(path, random_path(random)),
        22 => Operation::Symlink(random_path(random), path),
        _ => Operation::Chmod(path, [0o640, 0o711, 0o444][random.below(3)]),
    }
}

/// Does it below a directory; the error number, or what was read.
fn perform(top: &Path, operation: &Operation) -> Result<Vec<u8>, i32> {
    let open = |path: &Path, options: &mut fs::OpenOptions| options.open(top.join(path));
    let done = match operation {
        Operation::Create(path, mode) => {
            use std::os::unix::fs::OpenOptionsExt;
            open(path, File::options().write(true).create_new(true).mode(*mode)).map(|_| Vec::new())
        }
        Operation::Write(path, number) => open(path, File::options().write(true).truncate(true))
            .and_then(|mut f| write!(f, "w{number}"))
            .map(|()| Vec::new()),
        Operation::Append(path, number) => {
            open(path, File::options().append(true)).and_then(|mut f| write!(f, "a{number}")).map(|()| Vec::new())
        }
        Operation::Truncate(path, len) => {
            open(path, File::options().write(true)).and_then(|f| f.set_len(*len)).map(|()| Vec::new())
        }
        Operation::Read(path) => fs::read(top.join(path)),
        Operation::Unlink(path) => fs::remove_file(top.join(path)).map(|()| Vec::new()),
        Operation::Mkdir(path) => fs::create_dir(top.join(path)).map(|()| Vec::new()),
        Operation::Rmdir(path) => fs::remove_dir(top.join(path)).map(|()| Vec::new()),
        Operation::Rename(from, to) => fs::rename(top.join(from), top.join(to)).map(|()| Vec::new()),
        Operation::Exchange(from, to) => {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, top.join(from), rustix::fs::CWD, top.join(to), flags)
                .map(|()| Vec::new())
                .map_err(Into::into)
        }
        Operation::Link(from, to) => fs::hard_link(top.join(from), top.join(to)).map(|()| Vec::new()),
        Operation::Symlink(target, path) => std::os::unix::fs::symlink(target, top.join(path)).map(|()| Vec::new()),
        Operation::Chmod(path, mode) => {
            fs::set_permissions(top.join(path), fs::Permissions::from_mode(*mode)).map(|()| Vec::new())
        }
    };
    done.map_err(|error| error.raw_os_error().unwrap())
}

#[test]
fn random_operations_do_the_same_in_a_scope_and_in_a_plain_directory() {
    if skip_mounted() {
        return;
    }
    for seed in 1..=6u64 {
        let mut rig = mounted();
        let plain = rig.root().join("plain");
        let copied = std::process::Command::new("cp").arg("-a").arg(rig.src.join("1/media")).arg(&plain).status();
        assert!(copied.unwrap().success());
        let scope = rig.mnt.join("media");
        let mut random = Chance::new(seed * 0x9e37_79b9);
        let mut done = Vec::new();
        for number in 0..600 {
            let operation = random_operation(&mut random, number);
            let here = perform(&scope, &operation);
            done.push(format!("{operation:?} -> {here:?}"));
            if here == Err(libc::EXDEV) {
                // A release's directory cannot be renamed; a plain one can.
                continue;
            }
            let there = perform(&plain, &operation);
            assert_eq!(here, there, "seed {seed}: {operation:?}, after {:#?}", &done[done.len().saturating_sub(12)..]);
            if number % 20 == 19 {
                let (here, there) = (seen::tree(&scope), seen::tree(&plain));
                assert_eq!(here, there, "seed {seed}, after {:#?}", &done[done.len().saturating_sub(20)..]);
            }
            if number % 200 == 199 {
                // Another life of the daemon shows the same.
                rig.umount();
                rig.mount();
                assert_eq!(seen::tree(&scope), seen::tree(&plain), "seed {seed}, after a new mount");
            }
        }
    }
}

#[test]
fn what_was_written_is_there_after_switches_new_mounts_and_a_killed_daemon() {
    if skip_mounted() {
        return;
    }
    let mut rig = mounted();
    let scope = rig.mnt.join("media");
    fs::write(scope.join("upload"), "mine").unwrap();
    fs::create_dir(scope.join("dir")).unwrap();
    fs::write(scope.join("dir/inner"), "inner").unwrap();
    fs::write(scope.join("f"), "written over").unwrap();
    fs::remove_file(scope.join("same")).unwrap();
    fs::remove_dir_all(scope.join("a")).unwrap();
    let check = |release: &str| {
        assert_eq!(fs::read_to_string(scope.join("upload")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(scope.join("dir/inner")).unwrap(), "inner");
        assert_eq!(fs::read_to_string(scope.join("f")).unwrap(), "written over");
        assert!(!scope.join("same").exists() && !scope.join("a").exists());
        assert_eq!(fs::read_to_string(rig.mnt.join("code/x")).unwrap(), format!("code {release}"));
        let mut names: Vec<_> =
            fs::read_dir(&scope).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let only = format!("only-{release}");
        assert_eq!(names, ["c", "dir", "empty", "f", "link", &only, "upload"], "release {release}");
        assert_eq!(fs::read_to_string(scope.join(only)).unwrap(), release);
    };
    check("1");
    for to in ["2", "1", "2"] {
        let switched = rig.json(&["switch", to]);
        assert!(switched["hidden"].as_u64().unwrap() >= 1, "{switched}");
        check(to);
    }
    rig.ok(&["rollback"]);
    check("1");
    let pid = rustix::process::Pid::from_raw(rig.pids()[0] as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    rig.mount();
    let scope = rig.mnt.join("media");
    assert_eq!(fs::read_to_string(scope.join("dir/inner")).unwrap(), "inner");
    assert_eq!(fs::read_to_string(scope.join("f")).unwrap(), "written over");
    assert!(!scope.join("same").exists() && !scope.join("a").exists());
    assert_eq!(fs::read_to_string(rig.store.join("media/media/upload")).unwrap(), "mine", "a plain file of the user's");
}

#[test]
fn an_opened_file_keeps_its_file_whatever_happens_to_its_name() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let scope = rig.mnt.join("media");
    fs::write(scope.join("up"), "first").unwrap();
    let mut upper = File::options().read(true).write(true).open(scope.join("up")).unwrap();
    let mut lower = File::options().read(true).write(true).open(scope.join("f")).unwrap();
    fs::remove_file(scope.join("up")).unwrap();
    fs::write(scope.join("up"), "second").unwrap();
    rig.ok(&["switch", "2"]);
    for (file, is) in [(&mut upper, "first"), (&mut lower, "f 1")] {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, is);
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(b"CHANGED").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        text.clear();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "CHANGED");
    }
    // What was written went to what was opened, never to the path.
    assert_eq!(fs::read_to_string(scope.join("up")).unwrap(), "second");
    assert_eq!(fs::read_to_string(scope.join("f")).unwrap(), "f 2");
    drop((upper, lower));
    let orphans = || fs::read_dir(rig.store.join("orphans")).unwrap().count();
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while orphans() > 0 {
        assert!(std::time::Instant::now() < end, "{} orphans stay", orphans());
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn files_of_a_release_in_a_scope_switch_without_a_stale_read() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let scope = rig.mnt.join("media");
    for round in 0..40 {
        let to = if round % 2 == 0 { "2" } else { "1" };
        assert!(scope.join("f").exists() && scope.join("a/b/g").exists());
        rig.ok(&["switch", to]);
        assert_eq!(fs::read_to_string(scope.join("f")).unwrap(), format!("f {to}"));
        assert_eq!(fs::read_to_string(scope.join("link")).unwrap(), format!("f {to}"));
        assert_eq!(fs::read_to_string(scope.join("a/b/g")).unwrap(), format!("g {to}"));
        assert!(scope.join(format!("only-{to}")).exists());
        assert!(!scope.join(format!("only-{}", if to == "1" { "2" } else { "1" })).exists());
    }
}

#[test]
fn files_renamed_or_removed_behind_the_mount_are_what_they_are_now() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let scope = rig.mnt.join("media");
    let behind = rig.store.join("media/media");
    let settled = |what: &dyn Fn() -> bool| {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(std::time::Instant::now() < end, "what was done behind the mount is not seen");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    // A file that goes and whose inode number a new one gets: at once on ext4.
    for round in 0..5 {
        fs::write(scope.join("old"), "old").unwrap();
        let number = fs::metadata(behind.join("old")).unwrap().ino();
        // Descriptors that keep the number from being given away are closed after a second.
        settled(&|| {
            let daemon = rig.pids()[0];
            let fds = fs::read_dir(format!("/proc/{daemon}/fd")).unwrap();
            !fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.ends_with("media/media/old")))
        });
        fs::remove_file(behind.join("old")).unwrap();
        let name = format!("new-{round}");
        fs::write(scope.join(&name), "new").unwrap();
        println!("the number came back: {}", fs::metadata(behind.join(&name)).unwrap().ino() == number);
        assert_eq!(fs::read_to_string(behind.join(&name)).unwrap(), "new");
        settled(&|| !scope.join("old").exists());
    }
    // One that moves.
    fs::write(scope.join("here"), "hello").unwrap();
    assert_eq!(fs::read_to_string(scope.join("here")).unwrap(), "hello");
    fs::rename(behind.join("here"), behind.join("there")).unwrap();
    settled(&|| !scope.join("here").exists() && scope.join("there").exists());
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    assert_eq!(fs::read_to_string(scope.join("there")).unwrap(), "hello");
    let mut file = File::options().append(true).open(scope.join("there")).unwrap();
    file.write_all(b" more").unwrap();
    assert_eq!(fs::read_to_string(behind.join("there")).unwrap(), "hello more");
}

#[test]
fn a_directory_of_both_layers_does_not_count_its_subdirectories() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let scope = rig.mnt.join("media");
    fs::create_dir_all(scope.join("a/mine")).unwrap();
    fs::create_dir_all(scope.join("own/sub")).unwrap();
    rig.ok(&["switch", "2"]);
    for dir in ["", "a", "empty"] {
        assert_eq!(fs::metadata(scope.join(dir)).unwrap().nlink(), 1, "{dir}");
    }
    // What the writable layer alone has counts as its disk does.
    for dir in ["a/mine", "own", "own/sub"] {
        let behind = rig.store.join("media/media").join(dir);
        assert_eq!(fs::metadata(scope.join(dir)).unwrap().nlink(), fs::metadata(behind).unwrap().nlink(), "{dir}");
    }
}

#[test]
fn an_open_file_of_a_release_that_lost_its_name_in_a_scope_has_no_link() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let scope = rig.mnt.join("media");
    let [removed, replaced, kept] = ["f", "same", "a/h"].map(|path| File::open(scope.join(path)).unwrap());
    fs::write(scope.join("new"), "new").unwrap();
    fs::remove_file(scope.join("f")).unwrap();
    fs::rename(scope.join("new"), scope.join("same")).unwrap();
    let links = || [&removed, &replaced, &kept].map(|file| file.metadata().unwrap().nlink());
    assert_eq!(links(), [0, 0, 1]);
    // Whoever writes gets a copy, which has no name either.
    let changed =
        fs::set_permissions(format!("/proc/self/fd/{}", removed.as_raw_fd()), PermissionsExt::from_mode(0o600));
    changed.unwrap();
    rig.ok(&["switch", "2"]);
    assert_eq!(links(), [0, 0, 1]);
}

#[test]
fn a_directory_renamed_over_an_emptied_one_of_a_release_stays_its_owner_s() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let scope = rig.mnt.join("media");
    fs::create_dir(scope.join("c/made")).unwrap();
    fs::remove_dir(scope.join("c/made")).unwrap();
    fs::remove_file(scope.join("c/i")).unwrap();
    let targets = ["c", "empty", "only-1"];
    for target in targets {
        let mine = scope.join(format!("mine-{target}"));
        fs::create_dir(&mine).unwrap();
        fs::write(mine.join("mine"), target).unwrap();
    }
    fs::rename(scope.join("mine-c"), scope.join("c")).unwrap();
    fs::rename(scope.join("mine-empty"), scope.join("empty")).unwrap();
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    let cwd = rustix::fs::CWD;
    rustix::fs::renameat_with(cwd, scope.join("mine-only-1"), cwd, scope.join("only-1"), flags).unwrap();
    let source = rig.src.join("3");
    for dir in targets {
        fs::create_dir_all(source.join("media").join(dir)).unwrap();
        fs::write(source.join("media").join(dir).join("theirs"), "theirs").unwrap();
    }
    rig.ok(&["add", "3", source.to_str().unwrap()]);
    for release in ["1", "2", "3"] {
        rig.ok(&["switch", release]);
        for target in targets {
            let names: Vec<_> =
                fs::read_dir(scope.join(target)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["mine"], "{target} in {release}");
        }
    }
}

#[test]
fn a_removed_directory_that_is_open_can_be_asked_changed_and_synced() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let scope = rig.mnt.join("media");
    fs::create_dir(scope.join("own")).unwrap();
    fs::create_dir(scope.join("replaced")).unwrap();
    fs::create_dir(scope.join("source")).unwrap();
    fs::create_dir(scope.join("empty/made")).unwrap();
    fs::remove_dir(scope.join("empty/made")).unwrap();
    fs::remove_file(scope.join("c/i")).unwrap();
    fs::set_permissions(scope.join("own"), PermissionsExt::from_mode(0o750)).unwrap();
    let open = ["own", "replaced", "empty", "c"].map(|name| {
        let dir = File::open(scope.join(name)).unwrap();
        let before = dir.metadata().unwrap();
        (name, dir, before)
    });
    fs::rename(scope.join("source"), scope.join("replaced")).unwrap();
    ["own", "empty", "c"].into_iter().for_each(|name| fs::remove_dir(scope.join(name)).unwrap());
    // A new directory of the name is another one.
    fs::create_dir(scope.join("own")).unwrap();
    for (name, dir, before) in &open {
        let after = dir.metadata().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((after.ino(), after.mode(), after.uid()), (before.ino(), before.mode(), before.uid()), "{name}");
        assert_eq!(after.nlink(), 0, "{name}");
        assert_eq!(rustix::fs::Dir::read_from(dir).unwrap().count(), 0, "{name}");
        dir.sync_all().unwrap_or_else(|error| panic!("{name}: {error}"));
        dir.set_permissions(PermissionsExt::from_mode(0o711)).unwrap_or_else(|error| panic!("{name}: {error}"));
        dir.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(7)).unwrap();
        let changed = dir.metadata().unwrap();
        assert_eq!((changed.mode() & 0o7777, changed.mtime()), (0o711, 7), "{name}");
        let inside = format!("/proc/self/fd/{}/file", dir.as_raw_fd());
        assert_eq!(fs::write(inside, "").unwrap_err().raw_os_error(), Some(libc::ENOENT), "{name}");
    }
    assert_eq!(fs::metadata(scope.join("own")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn what_is_looked_up_while_the_kernel_forgets_it_is_not_stale() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let dir = rig.mnt.join("media/dir");
    fs::create_dir(&dir).unwrap();
    for number in 0..40 {
        fs::write(dir.join(number.to_string()), number.to_string()).unwrap();
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            }
        });
        let readers = [(); 2].map(|()| {
            scope.spawn(|| {
                for round in 0..400 {
                    for entry in fs::read_dir(&dir).unwrap() {
                        let entry = entry.unwrap();
                        let text = fs::read_to_string(entry.path());
                        let text =
                            text.unwrap_or_else(|error| panic!("round {round}, {:?}: {error}", entry.file_name()));
                        assert_eq!(text.as_str(), entry.file_name());
                    }
                }
            })
        });
        let ended = readers.map(std::thread::ScopedJoinHandle::join);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
}
