//! What content management systems do to their uploads, call by call, as the web server's user: done in a scope and in a
//! plain directory, with one outcome.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fcntl_lock, flock,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use support::seen::{self, Seen};
use support::user::{User, WWW_DATA, another_process};
use support::{Rig, skip_mounted};

/// A group that no system has.
const EDITORS: u32 = 54_321;
/// Somebody who may write what the group of the web server may.
const COLLEAGUE: User<'static> = User { uid: 54_322, gid: 33, groups: &[] };
/// The web server's user, as a member of the editors too.
const EDITOR: User<'static> = User { uid: 33, gid: 33, groups: &[EDITORS] };

/// A mounted store with the scope `media`, and a plain directory with the same in it.
struct Pair {
    rig: Rig,
    scope: PathBuf,
    plain: PathBuf,
}

impl Pair {
    /// `fill` writes what is there before, into the release's `media` and into the plain directory.
    fn new(fill: impl Fn(&Path)) -> Pair {
        let mut rig = Rig::with_limit(Duration::from_secs(240));
        let source = rig.src.join("1");
        let (released, plain) = (source.join("media"), rig.root().join("plain"));
        fs::create_dir(&source).unwrap();
        for dir in [&released, &plain] {
            fs::create_dir(dir).unwrap();
            fill(dir);
            chown(dir, Some(33), Some(33)).unwrap();
        }
        rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media", "--owner", "www-data:www-data"]);
        rig.ok(&["add", "1", source.to_str().unwrap()]);
        rig.mount();
        Pair { scope: rig.mnt.join("media"), plain, rig }
    }

    /// Does something in the scope and in the plain directory; both must come to the same, and leave the same.
    fn same<T: Debug + PartialEq + Send>(&self, what: &str, user: User<'_>, work: impl Fn() -> T + Sync) -> T {
        let here = user.work_in(&self.scope, &work);
        let there = user.work_in(&self.plain, &work);
        assert_eq!(here, there, "{what}, as {user:?}: in the scope, and in a plain directory");
        let (scope, plain) = (seen::tree(&self.scope), seen::tree(&self.plain));
        let differ = |at: &&PathBuf| scope.get(*at) != plain.get(*at);
        let paths: Vec<_> = scope.keys().chain(plain.keys()).filter(differ).collect();
        assert!(paths.is_empty(), "after {what}, as {user:?}: {:#?}", both(&paths, &scope, &plain));
        here
    }

    /// Another life of the daemon shows the same.
    fn lasts(&mut self) {
        self.rig.umount();
        self.rig.mount();
        assert_eq!(seen::tree(&self.scope), seen::tree(&self.plain), "after a new mount");
    }
}

type Looks = BTreeMap<PathBuf, Seen>;

fn both<'a>(paths: &[&'a PathBuf], scope: &'a Looks, plain: &'a Looks) -> Vec<(&'a PathBuf, [Option<&'a Seen>; 2])> {
    paths.iter().map(|path| (*path, [scope.get(*path), plain.get(*path)])).collect()
}

/// A file of the web server's.
fn file(path: PathBuf, content: impl AsRef<[u8]>, mode: u32) {
    fs::write(&path, content).unwrap();
    chown(&path, Some(33), Some(33)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A directory of the web server's.
fn dir(path: PathBuf) -> PathBuf {
    fs::create_dir(&path).unwrap();
    chown(&path, Some(33), Some(33)).unwrap();
    path
}

fn chmod(path: impl AsRef<Path>, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmod(path.as_ref(), Mode::from_raw_mode(mode))
}

fn umask(mask: u32) {
    rustix::process::umask(Mode::from_raw_mode(mask));
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap()
}

/// PHP's file_put_contents: open(O_WRONLY | O_CREAT | O_TRUNC, 0666), write, close.
fn put_contents(path: &str, content: &[u8]) -> Result<(), Errno> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o666).open(path).map_err(errno)?;
    file.write_all(content).map_err(errno)
}

/// PHP's tempnam, a write, and WordPress's chmod and rename into place.
fn write_aside_and_rename(name: &str, content: &[u8]) -> Result<u32, Errno> {
    // Names are taken until one is free; here the first two are not.
    let mut tries = 0;
    let (temporary, mut file) = loop {
        let temporary = format!(".{name}.{tries}");
        match File::options().read(true).write(true).create_new(true).mode(0o600).open(&temporary) {
            Ok(file) => break (temporary, file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < 10 => tries += 1,
            Err(error) => return Err(errno(error)),
        }
    };
    let mode = file.metadata().map_err(errno)?.mode();
    file.write_all(content).map_err(errno)?;
    drop(file);
    chmod(&temporary, 0o644)?;
    fs::rename(&temporary, name).map_err(errno)?;
    Ok(mode)
}

#[test]
fn a_file_is_written_and_given_its_mode() {
    if skip_mounted() {
        return;
    }
    let mut pair = Pair::new(|media| {
        file(media.join("released"), "released ".repeat(5000), 0o644);
        file(media.join("released, to be emptied"), "released ".repeat(5000), 0o640);
        file(media.join("not to be written"), "released", 0o444);
        fs::write(media.join("somebody else's"), "released").unwrap();
    });
    for mask in [0o022, 0o027, 0o077, 0] {
        for name in ["new", "new", "released", "released", "not to be written", "somebody else's"] {
            let what = format!("writing {name:?} with umask {mask:o}");
            let content = what.repeat(200);
            let wrote = pair.same(&what, WWW_DATA, || {
                umask(mask);
                put_contents(name, content.as_bytes())
            });
            let refused = ["not to be written", "somebody else's"].contains(&name);
            assert_eq!(wrote, if refused { Err(Errno::ACCESS) } else { Ok(()) }, "{what}");
            let changed = pair.same(&format!("chmod of {name:?}"), WWW_DATA, || chmod(name, 0o644));
            assert_eq!(changed, if name == "somebody else's" { Err(Errno::PERM) } else { Ok(()) });
            pair.same("back to where it was", WWW_DATA, || (name == "not to be written").then(|| chmod(name, 0o444)));
        }
        pair.same("removing", WWW_DATA, || fs::remove_file("new").map_err(errno)).unwrap();
    }
    pair.same("writing nothing", WWW_DATA, || put_contents("released, to be emptied", b"")).unwrap();
    pair.lasts();
}

#[test]
fn a_file_is_written_aside_and_renamed_into_place() {
    if skip_mounted() {
        return;
    }
    let mut pair = Pair::new(|media| {
        file(media.join("released"), "released", 0o664);
        file(media.join(".released.0"), "taken", 0o600);
        file(media.join(".new.0"), "taken", 0o600);
        fs::write(media.join("somebody else's"), "released").unwrap();
    });
    let inode = |name: &str| fs::metadata(pair.scope.join(name)).unwrap().ino();
    for round in 0..3 {
        for name in ["new", "released", "somebody else's"] {
            let before = pair.scope.join(name).exists().then(|| inode(name));
            let content = format!("{name} {round}");
            let mode = pair.same(&content, WWW_DATA, || write_aside_and_rename(name, content.as_bytes()));
            assert_eq!(mode.unwrap() & 0o7777, 0o600, "nobody else reads it before it is all there");
            assert_ne!(before, Some(inode(name)), "another file has its name now");
        }
    }
    pair.lasts();
}

#[test]
fn a_reader_of_what_is_renamed_into_place_sees_the_old_or_the_new() {
    if skip_mounted() {
        return;
    }
    let pair = Pair::new(|media| file(media.join("page"), "0".repeat(9000), 0o644));
    const ROUNDS: usize = 1500;
    let page = pair.scope.join("page");
    // Gone when the writer is, however he ends.
    let writing = Arc::new(());
    thread::scope(|threads| {
        for _ in 0..3 {
            let (page, writing) = (&page, Arc::downgrade(&writing));
            threads.spawn(move || {
                while writing.strong_count() > 0 {
                    let content = fs::read(page).unwrap();
                    assert_eq!(content.len(), 9000);
                    assert!(content.iter().all(|byte| *byte == content[0]), "two contents in one read");
                }
            });
        }
        WWW_DATA.work_in(&pair.scope, move || {
            let _writing = writing;
            for round in 1..=ROUNDS {
                let content = (round % 10).to_string().repeat(9000);
                write_aside_and_rename("page", content.as_bytes()).unwrap();
            }
        });
    });
}

#[test]
fn no_line_is_lost_or_torn_that_processes_append_under_flock() {
    if skip_mounted() {
        return;
    }
    // The file is the release's: the first two appends are copy-ups at once.
    let pair = Pair::new(|media| file(media.join("log"), "released\n", 0o644));
    const LINES: usize = 400;
    for dir in [&pair.scope, &pair.plain] {
        thread::scope(|threads| {
            for who in ["one", "two"] {
                threads.spawn(move || {
                    WWW_DATA.work_in(dir, || {
                        for line in 0..LINES {
                            // fopen(…, 'a'), flock, fwrite in two halves, fflush, unlock, fclose.
                            let mut log = File::options().append(true).open("log").unwrap();
                            flock(&log, FlockOperation::LockExclusive).unwrap();
                            write!(log, "{who} ").unwrap();
                            thread::yield_now();
                            log.write_all(format!("{line}\n").as_bytes()).unwrap();
                            log.flush().unwrap();
                            flock(&log, FlockOperation::Unlock).unwrap();
                        }
                    });
                });
            }
        });
        let text = fs::read_to_string(dir.join("log")).unwrap();
        let mut expected: Vec<String> =
            ["one", "two"].iter().flat_map(|who| (0..LINES).map(move |line| format!("{who} {line}"))).collect();
        expected.push("released".to_owned());
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lines, expected, "in {}", dir.display());
    }
}

#[test]
fn flock_keeps_another_process_out_until_it_is_let_go() {
    if skip_mounted() {
        return;
    }
    let pair = Pair::new(|media| file(media.join("released"), "released", 0o644));
    for name in ["released", "new"] {
        let asked = pair.same(&format!("flock of {name:?}"), WWW_DATA, || {
            let open = || File::options().read(true).append(true).create(true).open(name).unwrap();
            let (one, mut two) = (open(), open());
            let try_lock = |file: &File, operation| flock(file, operation);
            let taken = [
                try_lock(&one, FlockOperation::NonBlockingLockExclusive),
                try_lock(&two, FlockOperation::NonBlockingLockExclusive),
                try_lock(&two, FlockOperation::NonBlockingLockShared),
            ];
            // A lock says nothing of the content, not even when the file is copied up below it.
            two.write_all(b"more").unwrap();
            let after = [
                try_lock(&two, FlockOperation::NonBlockingLockExclusive),
                try_lock(&open(), FlockOperation::NonBlockingLockExclusive),
            ];
            drop(one);
            (taken, after, try_lock(&two, FlockOperation::NonBlockingLockExclusive))
        });
        let (ok, busy) = (Ok(()), Err(Errno::WOULDBLOCK));
        assert_eq!(asked, ([ok, busy, busy], [busy, busy], ok));
    }
}

#[test]
fn a_counter_under_fcntl_locks_loses_no_count() {
    if skip_mounted() {
        return;
    }
    let pair = Pair::new(|media| file(media.join("counter"), "0", 0o644));
    const COUNTS: usize = 300;
    for dir in [&pair.scope, &pair.plain] {
        thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    WWW_DATA.work_in(dir, || {
                        let mut counter = File::options().read(true).write(true).open("counter").unwrap();
                        for _ in 0..COUNTS {
                            fcntl_lock(&counter, FlockOperation::LockExclusive).unwrap();
                            let mut text = String::new();
                            counter.seek(SeekFrom::Start(0)).unwrap();
                            counter.read_to_string(&mut text).unwrap();
                            thread::yield_now();
                            let next = text.parse::<usize>().unwrap() + 1;
                            counter.seek(SeekFrom::Start(0)).unwrap();
                            counter.write_all(next.to_string().as_bytes()).unwrap();
                            fcntl_lock(&counter, FlockOperation::Unlock).unwrap();
                        }
                    });
                });
            }
        });
        let counted = fs::read_to_string(dir.join("counter")).unwrap();
        assert_eq!(counted, (2 * COUNTS).to_string(), "in {}", dir.display());
    }
}

#[test]
fn an_fcntl_lock_keeps_another_process_out_until_it_is_let_go() {
    if skip_mounted() {
        return;
    }
    let pair = Pair::new(|media| file(media.join("released"), "released", 0o644));
    for name in ["released", "new"] {
        let asked = pair.same(&format!("fcntl lock of {name:?}"), WWW_DATA, || {
            let open = || File::options().read(true).append(true).create(true).open(name).unwrap();
            let mine = open();
            fcntl_lock(&mine, FlockOperation::LockExclusive).unwrap();
            let of_another = || {
                another_process(|| {
                    let theirs = File::options().read(true).append(true).open(name).unwrap();
                    fcntl_lock(&theirs, FlockOperation::NonBlockingLockExclusive)
                })
            };
            let while_held = of_another();
            // POSIX: whoever closes any descriptor of a file loses all his locks on it.
            drop(open());
            (while_held, of_another())
        });
        assert!(matches!(asked, (Err(Errno::AGAIN | Errno::ACCESS), Ok(()))), "{asked:?}");
    }
}

const OLD: i64 = 1_500_000_000;

fn times(atime: (i64, i64), mtime: (i64, i64)) -> Timestamps {
    let at = |(tv_sec, tv_nsec): (i64, i64)| Timespec { tv_sec, tv_nsec };
    Timestamps { last_access: at(atime), last_modification: at(mtime) }
}

/// A file's times after they were set, with "now" for what is not one of ours. An atime that was not set is left out:
/// whoever reads the file moves it.
fn told(path: &str, set: &Timestamps) -> [String; 2] {
    let meta = fs::metadata(path).unwrap();
    let show = |second: i64, nanos: i64| match (OLD..OLD + 1_000).contains(&second) {
        true => format!("{second}.{nanos}"),
        false => "now".to_owned(),
    };
    let atime = match set.last_access.tv_nsec {
        UTIME_OMIT => "not set".to_owned(),
        _ => show(meta.atime(), meta.atime_nsec()),
    };
    [atime, show(meta.mtime(), meta.mtime_nsec())]
}

#[test]
fn touch_sets_the_times_that_it_is_given_or_now() {
    if skip_mounted() {
        return;
    }
    let fresh = |media: &Path| {
        for user in ["owner", "colleague"] {
            file(media.join(format!("released {user}")), "released", 0o664);
        }
        file(media.join("read only"), "released", 0o444);
    };
    let pair = Pair::new(fresh);
    for dir in [&pair.scope, &pair.plain] {
        for user in ["owner", "colleague"] {
            file(dir.join(format!("uploaded {user}")), "uploaded", 0o664);
        }
    }
    let now = (0, UTIME_NOW);
    let omit = (0, UTIME_OMIT);
    let asked = [
        ("given", times((OLD, 1), (OLD + 1, 2))),
        ("now", times(now, now)),
        ("given again", times((OLD + 2, 999_999_999), (OLD + 3, 0))),
        ("mtime alone", times(omit, (OLD + 4, 5))),
        ("atime alone", times((OLD + 5, 6), omit)),
        ("mtime now", times(omit, now)),
        ("neither", times(omit, omit)),
    ];
    for (who, user) in [("owner", WWW_DATA), ("colleague", COLLEAGUE)] {
        for whose in ["uploaded", "released"] {
            let name = format!("{whose} {who}");
            // Somebody who may write, but is not the owner, may set "now" alone.
            for (what, stamps) in &asked {
                let what = format!("touch of {name:?}: {what}");
                let got = pair.same(&what, user, || {
                    let set = rustix::fs::utimensat(CWD, &name, stamps, AtFlags::empty());
                    // A release's times are those of its switch, so they compare only once both are set.
                    (set, (who == "owner").then(|| told(&name, stamps)))
                });
                assert!(who == "colleague" || got.0.is_ok(), "{what}: {got:?}");
                if what.ends_with(": now") {
                    assert_eq!(got.0, Ok(()), "{what}");
                    let age = |dir: &Path| {
                        fs::metadata(dir.join(&name)).unwrap().modified().unwrap().elapsed().unwrap_or_default()
                    };
                    // An hour is no measure of speed: the times above are years old.
                    assert!(age(&pair.scope) < Duration::from_secs(3600), "{what}: {:?}", age(&pair.scope));
                } else if who == "colleague" && what.ends_with(": given") {
                    assert_eq!(got.0, Err(Errno::PERM), "{what}");
                }
            }
        }
    }
    let (set, ..) = pair.same("touch of a file that the owner may not write", WWW_DATA, || {
        let set = rustix::fs::utimensat(CWD, "read only", &times(now, now), AtFlags::empty());
        (set, told("read only", &times(now, now)), fs::read("read only").map_err(errno))
    });
    assert_eq!(set, Ok(()));
    let (set, _) = pair.same("touch of a new file", WWW_DATA, || {
        File::options().write(true).create(true).truncate(false).open("touched").unwrap();
        let stamps = times((OLD, 0), (OLD, 0));
        (rustix::fs::utimensat(CWD, "touched", &stamps, AtFlags::empty()), told("touched", &stamps))
    });
    assert_eq!(set, Ok(()));
}

#[test]
fn a_directory_is_emptied_while_it_is_read() {
    if skip_mounted() {
        return;
    }
    const EACH: usize = 1500;
    let pair = Pair::new(|media| {
        let cache = dir(media.join("cache"));
        (0..EACH).for_each(|n| file(cache.join(format!("released-{n}")), "", 0o644));
    });
    let deleted = pair.same("emptying", WWW_DATA, || {
        (0..EACH).for_each(|n| drop(File::create(format!("cache/uploaded-{n}")).unwrap()));
        // opendir, and until readdir has no more: unlink.
        let mut deleted = BTreeSet::new();
        for entry in fs::read_dir("cache").unwrap() {
            let entry = entry.unwrap();
            fs::remove_file(entry.path()).unwrap_or_else(|error| panic!("{:?}: {error}", entry.file_name()));
            assert!(deleted.insert(entry.file_name()));
        }
        let left = fs::read_dir("cache").unwrap().count();
        fs::remove_dir("cache").unwrap_or_else(|error| panic!("{left} files are left: {error}"));
        deleted
    });
    assert_eq!(deleted.len(), 2 * EACH);
    assert!(!pair.scope.join("cache").exists());
}

#[test]
fn directories_and_files_get_the_modes_that_the_umask_leaves() {
    if skip_mounted() {
        return;
    }
    let mut pair = Pair::new(|media| drop(dir(dir(media.join("2025")).join("01"))));
    for mask in [0, 0o002, 0o022, 0o027, 0o077, 0o777] {
        pair.same(&format!("mkdir -p with umask {mask:o}"), WWW_DATA, || {
            umask(mask);
            let mut made = Vec::new();
            for mode in [0o777u32, 0o755, 0o1777, 0o2775, 0o700] {
                // Below directories of the release, which are there already, as of nobody's.
                for path in [format!("2025/01/{mask:o}-{mode:o}"), format!("new-{mask:o}/{mode:o}/deep")] {
                    let mut upto = PathBuf::new();
                    for part in Path::new(&path) {
                        upto.push(part);
                        made.push(rustix::fs::mkdir(&upto, Mode::from_raw_mode(mode)));
                    }
                    let file = rustix::fs::open(
                        upto.join("file"),
                        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY,
                        Mode::from_raw_mode(mode & 0o777),
                    );
                    made.push(file.map(drop));
                }
            }
            made
        });
    }
    pair.lasts();
}

/// A directory of root's that a group may write into, with a file and a directory in it.
fn shared(media: &Path, name: &str) {
    let shared = media.join(name);
    fs::create_dir(&shared).unwrap();
    fs::create_dir(shared.join("sub")).unwrap();
    for (path, mode) in [(shared.join("file"), 0o664), (shared.join("to go"), 0o664)] {
        fs::write(&path, "released").unwrap();
        chown(&path, Some(0), Some(EDITORS)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for path in [shared.join("sub"), shared] {
        chown(&path, Some(0), Some(EDITORS)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2775)).unwrap();
    }
}

/// All that one does in a directory that a group shares: each call with its outcome.
fn work_in_shared(dir: &str) -> Vec<(&'static str, Result<(), Errno>)> {
    let at = |name: &str| format!("{dir}/{name}");
    let modes = Mode::from_raw_mode(0o666);
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    let append = |name: &str| {
        let file: OwnedFd = rustix::fs::open(at(name), OFlags::WRONLY | OFlags::APPEND, Mode::empty())?;
        rustix::io::write(file, b"more").map(drop)
    };
    vec![
        ("create", rustix::fs::open(at("new"), create, modes).map(drop)),
        ("append to the new file", append("new")),
        ("mkdir", rustix::fs::mkdir(at("dir"), Mode::from_raw_mode(0o777))),
        ("mkdir inside", rustix::fs::mkdir(at("dir/inside"), Mode::from_raw_mode(0o777))),
        ("mkdir in a directory of root's", rustix::fs::mkdir(at("sub/dir"), Mode::from_raw_mode(0o777))),
        ("create inside", rustix::fs::open(at("dir/file"), create, modes).map(drop)),
        ("append to a file of root's", append("file")),
        ("truncate a file of root's", {
            rustix::fs::open(at("file"), OFlags::WRONLY | OFlags::TRUNC, Mode::empty()).map(drop)
        }),
        ("symlink", rustix::fs::symlink("file", at("link"))),
        ("link", rustix::fs::link(at("new"), at("linked"))),
        ("rename", rustix::fs::rename(at("new"), at("renamed"))),
        ("unlink a file of root's", rustix::fs::unlink(at("to go"))),
        ("chmod of one's own", chmod(at("renamed"), 0o600)),
        ("chmod of a file of root's", chmod(at("file"), 0o600)),
        ("chmod with setgid of one's own", chmod(at("linked"), 0o2755)),
        ("chgrp of one's own to one's own group", rustix::fs::chown(at("renamed"), None, Some(Gid::from_raw(33)))),
        ("chgrp of one's own to the editors", rustix::fs::chown(at("renamed"), None, Some(Gid::from_raw(EDITORS)))),
        ("chgrp to somebody's group", rustix::fs::chown(at("renamed"), None, Some(Gid::from_raw(1)))),
    ]
}

#[test]
fn a_setgid_directory_hands_its_group_down() {
    if skip_mounted() {
        return;
    }
    let mut pair = Pair::new(|media| shared(media, "released"));
    for dir in [&pair.scope, &pair.plain] {
        shared(dir, "uploaded");
    }
    // The editors' group is the primary one here.
    let user = User { uid: 33, gid: EDITORS, groups: &[33] };
    for name in ["released", "uploaded"] {
        for mask in [0o002, 0o022] {
            let done = pair.same(&format!("work in {name:?} with umask {mask:o}"), user, || {
                umask(mask);
                work_in_shared(name)
            });
            assert!(mask == 0o022 || done[0].1.is_ok(), "{done:?}");
            let meta = fs::metadata(pair.scope.join(name).join("dir/inside")).unwrap();
            assert_eq!((meta.gid(), meta.mode() & 0o2000), (EDITORS, 0o2000), "{name:?}");
        }
    }
    pair.lasts();
}

#[test]
fn a_supplementary_group_may_write_what_its_group_may() {
    if skip_mounted() {
        return;
    }
    let mut pair = Pair::new(|media| shared(media, "released"));
    for dir in [&pair.scope, &pair.plain] {
        shared(dir, "uploaded");
    }
    for name in ["uploaded", "released"] {
        let done = pair.same(&format!("work in {name:?}"), EDITOR, || {
            umask(0o002);
            work_in_shared(name)
        });
        assert_eq!(done[0], ("create", Ok(())));
    }
    pair.lasts();
}

#[test]
fn who_is_in_no_group_of_a_directory_may_not_write_there() {
    if skip_mounted() {
        return;
    }
    let pair = Pair::new(|media| shared(media, "released"));
    let done = pair.same("work of a stranger", WWW_DATA, || work_in_shared("released"));
    assert!(done.iter().all(|(_, outcome)| outcome.is_err()), "{done:?}");
}
