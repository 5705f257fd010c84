//! Stopped anywhere in a change of a scope: what shows is the old or the new state, what was answered is there, and the
//! next mount sweeps what was in the making.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::chance::Chance;
use support::disk::SmallDisk;
use support::seen::{Seen, seen};
use support::tree::Tree;
use support::{Rig, deadline, skip_mounted};

/// An entry with what a copy-up could lose beside what [`Seen`] has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    seen: Seen,
    /// The user's extended attributes.
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// mtime of anything but a directory; `None` if it is of the time in which the test makes its changes.
    mtime: Option<(i64, i64)>,
}

type Shown = BTreeMap<PathBuf, Found>;

/// No mtime is later.
const FOREVER: (i64, i64) = (i64::MAX, 0);

/// Everything that shows below a directory. What is listed can be looked up and is of the kind that the listing says;
/// of `names` nothing can be looked up that is not listed. An mtime from `since` on counts as now.
fn look<'n>(top: &Path, names: impl IntoIterator<Item = &'n PathBuf>, since: (i64, i64)) -> Shown {
    let (mut shown, mut dirs) = (Shown::new(), vec![PathBuf::new()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(top.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), dir.join(entry.file_name()));
            let meta =
                fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{} is listed: {error}", name.display()));
            // d_type, which costs no lookup.
            assert_eq!(entry.file_type().unwrap(), meta.file_type(), "{} as listed and as looked up", name.display());
            assert_ne!(entry.ino(), 0);
            if meta.is_dir() {
                dirs.push(name.clone());
            }
            let mtime = Some((meta.mtime(), meta.mtime_nsec())).filter(|mtime| !meta.is_dir() && *mtime < since);
            let found = Found { seen: seen(&path), xattrs: xattrs(&path), mtime };
            assert!(shown.insert(name.clone(), found).is_none(), "{} is listed twice", name.display());
        }
    }
    for name in names {
        if !shown.contains_key(name) {
            let looked_up = fs::symlink_metadata(top.join(name)).map(|meta| meta.mode());
            let error = looked_up.expect_err(&format!("{} is not listed", name.display())).raw_os_error();
            assert!(matches!(error, Some(libc::ENOENT | libc::ENOTDIR)), "{}: {error:?}", name.display());
        }
    }
    shown
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 4096];
    // Of a symlink there are none, and those of its target are not asked for.
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|b| *b == 0).filter(|name| name.starts_with(b"user."));
    let value = |name: &[u8]| {
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(len);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// What is different, for a message.
fn differences(now: &Shown, was: &Shown) -> Vec<String> {
    let names: BTreeSet<&PathBuf> = now.keys().chain(was.keys()).collect();
    let differ = names.into_iter().filter(|name| now.get(*name) != was.get(*name));
    differ.map(|name| format!("{}: {:?} and not {:?}", name.display(), now.get(name), was.get(name))).collect()
}

/// What lies in the store beside what is the user's and what the mount has in the making.
#[derive(Debug, PartialEq, Eq)]
struct Store(BTreeSet<PathBuf>);

impl Store {
    fn look(rig: &Rig) -> Store {
        let users = ["media", "whiteouts", "tmp", "orphans"].map(PathBuf::from);
        let mut found = BTreeSet::new();
        walk(&rig.store, &mut |name, _| {
            if !users.iter().any(|dir| name.starts_with(dir) && name != dir) {
                found.insert(name.to_owned());
            }
        });
        Store(found)
    }
}

/// Calls `each` for everything below a directory, with its path there.
fn walk(top: &Path, each: &mut impl FnMut(&Path, &fs::Metadata)) {
    let mut dirs = vec![top.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            each(path.strip_prefix(top).unwrap(), &meta);
            if meta.is_dir() {
                dirs.push(path);
            }
        }
    }
}

/// How many entries of the stopped daemon's are in `tmp/` and in `orphans/`. The reserve stays.
fn litter(rig: &Rig) -> [usize; 2] {
    let count = |dir: &str| {
        fs::read_dir(rig.store.join(dir))
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() != "reserve")
            .count()
    };
    ["tmp", "orphans"].map(count)
}

/// After a mount: nothing is in the making, nothing lies where nobody looks for it. A file of `media/` shows, and a
/// whiteout is an empty file that hides something.
fn assert_swept(rig: &Rig, store: &Store, shown: &Shown, release: &Path, what: &str) {
    assert_eq!(litter(rig), [0, 0], "{what}: tmp and orphans are not swept");
    assert_eq!(Store::look(rig), *store, "{what}: something lies outside media and whiteouts");
    walk(&rig.store.join("media"), &mut |name, _| {
        let shows =
            name.strip_prefix("media").is_ok_and(|name| name.as_os_str().is_empty() || shown.contains_key(name));
        assert!(shows, "{what}: {} lies in media and does not show", name.display());
    });
    walk(&rig.store.join("whiteouts"), &mut |name, meta| {
        assert!(meta.is_dir() || (meta.is_file() && meta.len() == 0), "{what}: {} is no whiteout", name.display());
        let hides = fs::symlink_metadata(release.join(name)).is_ok();
        assert!(hides, "{what}: the whiteout {} hides nothing", name.display());
    });
}

/// Copies a directory with all that is in it, to this new name.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").args(["-a", "-T"]).arg(from).arg(to).status().unwrap().success());
}

/// What a call fails with when there is no daemon to answer it.
fn is_broken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO))
}

// One change, stopped at every passing of every point.

/// A change of what is below a directory, by one call that changes anything.
type Change = fn(&Path) -> io::Result<()>;

fn open(top: &Path, name: &str) -> io::Result<File> {
    File::options().write(true).open(top.join(name))
}

fn create(top: &Path, name: &str) -> io::Result<()> {
    File::options().write(true).create_new(true).mode(0o640).open(top.join(name)).map(drop)
}

fn rename(top: &Path, from: &str, to: &str) -> io::Result<()> {
    fs::rename(top.join(from), top.join(to))
}

fn rename_with(top: &Path, from: &str, to: &str, flags: RenameFlags) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, top.join(from), CWD, top.join(to), flags)?)
}

fn noreplace(top: &Path, from: &str, to: &str) -> io::Result<()> {
    rename_with(top, from, to, RenameFlags::NOREPLACE)
}

fn exchange(top: &Path, from: &str, to: &str) -> io::Result<()> {
    rename_with(top, from, to, RenameFlags::EXCHANGE)
}

fn link(top: &Path, from: &str, to: &str) -> io::Result<()> {
    fs::hard_link(top.join(from), top.join(to))
}

fn chmod(top: &Path, name: &str, mode: u32) -> io::Result<()> {
    fs::set_permissions(top.join(name), fs::Permissions::from_mode(mode))
}

fn utimes(top: &Path, name: &str) -> io::Result<()> {
    let time = Timespec { tv_sec: 1_500_000_000, tv_nsec: 5 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, top.join(name), &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn setxattr(top: &Path, name: &str) -> io::Result<()> {
    Ok(rustix::fs::setxattr(top.join(name), "user.new", b"value", XattrFlags::CREATE)?)
}

/// Files of the release, with what is in them; all in the scope.
const RELEASE: &[&str] = &[
    "rel",
    "rel2",
    "over",
    "over2",
    "hidden",
    "again",
    "deep/a/b/c/file",
    "deep/a/b/other",
    "whited/x",
    "whited/y/z",
    "emptied/x",
    "opaque/x",
    "refilled/x",
    "refilled/y",
    "hidden-dir/x",
    "merged/x",
];

/// What the scope has before each change. A name says what it is:
/// `m*` are of media alone, `rel*` and `deep` of the release alone, `over*` of both; `hidden*` do not show.
fn set_up(scope: &Path) {
    for name in ["m1", "m2", "over", "over2", "two-names"] {
        fs::write(scope.join(name), format!("{name} of media")).unwrap();
    }
    link(scope, "two-names", "second-name").unwrap();
    fs::create_dir_all(scope.join("mdir/sub")).unwrap();
    fs::write(scope.join("mdir/inner"), "inner").unwrap();
    fs::write(scope.join("mdir/sub/deeper"), "deeper").unwrap();
    fs::create_dir(scope.join("mempty")).unwrap();
    symlink("m1", scope.join("mlink")).unwrap();
    rustix::fs::mknodat(CWD, scope.join("mfifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    fs::write(scope.join("merged/mine"), "mine").unwrap();
    for name in ["hidden", "again", "whited/x", "emptied/x"] {
        fs::remove_file(scope.join(name)).unwrap();
    }
    for name in ["whited/y", "opaque", "refilled", "hidden-dir"] {
        fs::remove_dir_all(scope.join(name)).unwrap();
    }
    fs::write(scope.join("again"), "again, of media").unwrap();
    // An upper directory of which nothing shows.
    fs::write(scope.join("emptied/mine"), "").unwrap();
    fs::remove_file(scope.join("emptied/mine")).unwrap();
    fs::create_dir(scope.join("opaque")).unwrap();
    fs::create_dir(scope.join("refilled")).unwrap();
    fs::write(scope.join("refilled/x"), "x of media").unwrap();
}

const CHANGES: &[(&str, Change)] = &[
    // New names.
    ("create", |top| create(top, "new")),
    ("create in a media directory", |top| create(top, "mdir/sub/new")),
    ("create deep in the release", |top| create(top, "deep/a/b/c/new")),
    ("create where a release file is hidden", |top| create(top, "hidden")),
    ("create in an opaque directory, where the release has a name", |top| create(top, "opaque/x")),
    ("mkdir", |top| fs::create_dir(top.join("new"))),
    ("mkdir deep in the release", |top| fs::create_dir(top.join("deep/a/new"))),
    ("mkdir where a release directory is hidden", |top| fs::create_dir(top.join("hidden-dir"))),
    ("symlink", |top| symlink("anywhere", top.join("new"))),
    ("symlink deep in the release", |top| symlink("anywhere", top.join("deep/a/b/new"))),
    ("mkfifo", |top| Ok(rustix::fs::mknodat(CWD, top.join("new"), FileType::Fifo, Mode::from_raw_mode(0o620), 0)?)),
    ("link of a media file", |top| link(top, "m1", "new")),
    ("link of a media file deep into the release", |top| link(top, "m1", "deep/a/b/c/new")),
    ("link of a media file to a hidden name", |top| link(top, "m1", "hidden")),
    ("link of a release file", |top| link(top, "rel", "new")),
    ("link of a release file deep in the release", |top| link(top, "deep/a/b/c/file", "deep/a/new")),
    ("link of a release symlink", |top| link(top, "rel-link", "new")),
    // Copies that a change makes.
    ("write to a release file", |top| open(top, "rel")?.write_all(b"written")),
    ("write deep in the release", |top| open(top, "deep/a/b/c/file")?.write_all(b"written")),
    ("append to a release file", |top| File::options().append(true).open(top.join("rel"))?.write_all(b"appended")),
    ("chmod of a release file", |top| chmod(top, "rel", 0o600)),
    ("chmod of a release directory", |top| chmod(top, "deep/a", 0o700)),
    ("chown of a release file", |top| lchown(top.join("rel"), Some(33), Some(34))),
    ("chown of a release symlink", |top| lchown(top.join("rel-link"), Some(33), Some(34))),
    ("open of a release file with O_TRUNC", |top| {
        File::options().write(true).truncate(true).open(top.join("rel")).map(drop)
    }),
    ("truncate of a release file to nothing", |top| open(top, "rel")?.set_len(0)),
    ("truncate of a release file to less", |top| open(top, "rel")?.set_len(3)),
    ("truncate of a release file to more", |top| open(top, "rel")?.set_len(5000)),
    ("fallocate of a release file", |top| {
        Ok(rustix::fs::fallocate(open(top, "rel")?, rustix::fs::FallocateFlags::empty(), 0, 9000)?)
    }),
    ("utimes of a release file", |top| utimes(top, "rel")),
    ("utimes of a release symlink", |top| utimes(top, "rel-link")),
    ("setxattr of a release file", |top| setxattr(top, "rel")),
    ("setxattr of a release directory", |top| setxattr(top, "deep/a/b")),
    ("removexattr of a release file", |top| Ok(rustix::fs::removexattr(top.join("rel"), "user.old")?)),
    // Names that go.
    ("unlink of a media file", |top| fs::remove_file(top.join("m1"))),
    ("unlink of a second name", |top| fs::remove_file(top.join("second-name"))),
    ("unlink of a symlink", |top| fs::remove_file(top.join("mlink"))),
    ("unlink of a fifo", |top| fs::remove_file(top.join("mfifo"))),
    ("unlink of a release file", |top| fs::remove_file(top.join("rel"))),
    ("unlink of a release symlink", |top| fs::remove_file(top.join("rel-link"))),
    ("unlink deep in the release", |top| fs::remove_file(top.join("deep/a/b/c/file"))),
    ("unlink of a media file over a release file", |top| fs::remove_file(top.join("over"))),
    ("unlink of a media file over a whiteout", |top| fs::remove_file(top.join("again"))),
    ("rmdir of a media directory", |top| fs::remove_dir(top.join("mempty"))),
    ("rmdir of an empty release directory", |top| fs::remove_dir(top.join("rel-empty"))),
    ("rmdir of a release directory full of whiteouts", |top| fs::remove_dir(top.join("whited"))),
    ("rmdir of the same with an upper directory", |top| fs::remove_dir(top.join("emptied"))),
    ("rmdir of an opaque directory", |top| fs::remove_dir(top.join("opaque"))),
    // Renames.
    ("rename of a media file", |top| rename(top, "m1", "new")),
    ("rename of a media file deep into the release", |top| rename(top, "m1", "deep/a/b/c/new")),
    ("rename of a media file to a hidden name", |top| rename(top, "m1", "hidden")),
    ("rename, media over media", |top| rename(top, "m1", "m2")),
    ("rename over one of two names", |top| rename(top, "m1", "second-name")),
    ("rename, media over release", |top| rename(top, "m1", "rel")),
    ("rename, media over release, deep", |top| rename(top, "m1", "deep/a/b/c/file")),
    ("rename, media over both", |top| rename(top, "m1", "over")),
    ("rename, media over media over a whiteout", |top| rename(top, "m1", "again")),
    ("rename, symlink over media", |top| rename(top, "mlink", "m2")),
    ("rename, media over fifo", |top| rename(top, "m1", "mfifo")),
    ("rename of a release file", |top| rename(top, "rel", "new")),
    ("rename of a deep release file", |top| rename(top, "deep/a/b/c/file", "mdir/new")),
    ("rename of a release symlink", |top| rename(top, "rel-link", "new")),
    ("rename, release over release", |top| rename(top, "rel", "rel2")),
    ("rename, release over media", |top| rename(top, "rel", "m1")),
    ("rename of what is in both", |top| rename(top, "over", "new")),
    ("rename, both over both", |top| rename(top, "over", "over2")),
    ("rename, both over release", |top| rename(top, "over", "rel")),
    ("rename of a directory", |top| rename(top, "mdir", "new")),
    ("rename of a directory into another", |top| rename(top, "mdir", "deep/a/new")),
    ("rename of a directory over an empty one", |top| rename(top, "mdir", "mempty")),
    ("rename of a directory over an empty one of the release", |top| rename(top, "mdir", "rel-empty")),
    ("rename of a directory over one full of whiteouts", |top| rename(top, "mdir", "whited")),
    ("rename of a directory over the same with an upper directory", |top| rename(top, "mdir", "emptied")),
    ("rename of a directory over an opaque one", |top| rename(top, "mdir", "opaque")),
    ("rename of a directory to a hidden name", |top| rename(top, "mdir", "hidden-dir")),
    ("rename of an opaque directory", |top| rename(top, "refilled", "new")),
    ("rename of an opaque directory over one full of whiteouts", |top| rename(top, "refilled", "whited")),
    // With flags.
    ("noreplace of a media file", |top| noreplace(top, "m1", "new")),
    ("noreplace of a release file", |top| noreplace(top, "rel", "new")),
    ("noreplace to a hidden name", |top| noreplace(top, "over", "hidden")),
    ("noreplace of a directory", |top| noreplace(top, "mdir", "hidden-dir")),
    ("exchange, media and media", |top| exchange(top, "m1", "m2")),
    ("exchange, media and release", |top| exchange(top, "m1", "rel")),
    ("exchange, release and media", |top| exchange(top, "rel", "m1")),
    ("exchange, release and release", |top| exchange(top, "rel", "deep/a/b/c/file")),
    ("exchange, both and media", |top| exchange(top, "over", "m1")),
    ("exchange, media and both", |top| exchange(top, "m1", "over")),
    ("exchange, both and both", |top| exchange(top, "over", "over2")),
    ("exchange, both and release", |top| exchange(top, "over", "rel")),
    ("exchange, media over a whiteout and release", |top| exchange(top, "again", "rel")),
    ("exchange, directory and file", |top| exchange(top, "mdir", "m1")),
    ("exchange, directory and release file", |top| exchange(top, "mdir", "rel")),
    ("exchange, release file and directory", |top| exchange(top, "rel", "mdir")),
    ("exchange, directory and opaque directory", |top| exchange(top, "mdir", "refilled")),
    ("exchange, opaque directory and file of both", |top| exchange(top, "refilled", "over")),
];

/// A store whose scope is as [`set_up`] makes it, to be brought back to that after each change.
struct Before {
    rig: Rig,
    store: Store,
    shown: Shown,
    since: (i64, i64),
}

impl Before {
    fn make() -> Before {
        let mut rig = Rig::with_limit(Duration::from_secs(120));
        rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
        rig.setting("switch", "share_second", "true");
        // Two, so that files of the second have mtimes that the switch gave them.
        for release in ["1", "2"] {
            let source = rig.src.join(release);
            let scope = source.join("media");
            for name in RELEASE {
                fs::create_dir_all(scope.join(name).parent().unwrap()).unwrap();
                fs::write(scope.join(name), format!("{name} of release {release}")).unwrap();
            }
            fs::create_dir(scope.join("rel-empty")).unwrap();
            symlink("rel", scope.join("rel-link")).unwrap();
            lchown(scope.join("rel-link"), Some(1), Some(2)).unwrap();
            lchown(scope.join("rel"), Some(1), Some(2)).unwrap();
            chmod(&scope, "rel", 0o4751).unwrap();
            rustix::fs::setxattr(scope.join("rel"), "user.old", b"old", XattrFlags::CREATE).unwrap();
            lchown(scope.join("deep/a"), Some(33), Some(33)).unwrap();
            chmod(&scope, "deep/a", 0o2775).unwrap();
            rig.ok(&["add", release, source.to_str().unwrap()]);
        }
        rig.ok(&["switch", "1"]);
        rig.ok(&["switch", "2"]);
        rig.mount();
        let scope = rig.mnt.join("media");
        set_up(&scope);
        // What it should be: the same done to a plain copy of the release. Only the times are the mount's own.
        let (expected, plain) = (rig.root().join("expected"), rig.root().join("plain"));
        copy(&rig.src.join("2/media"), &expected);
        set_up(&expected);
        let expected = look(&expected, [], (0, 0));
        let hidden = RELEASE.iter().map(PathBuf::from).collect::<Vec<_>>();
        let timeless = look(&scope, expected.keys().chain(&hidden), (0, 0));
        assert_eq!(differences(&timeless, &expected), Vec::<String>::new(), "before any change");
        let before = look(&scope, [], FOREVER);
        copy(&scope, &plain);
        assert_eq!(differences(&look(&plain, [], FOREVER), &before), Vec::<String>::new(), "the copy");
        let store = Store::look(&rig);
        rig.umount();
        for layer in ["media", "whiteouts"] {
            copy(&rig.store.join(layer), &rig.root().join(layer));
        }
        // Until a file that is written now is younger than all of them.
        let newest = before.values().filter_map(|found| found.mtime).max().unwrap();
        let since = loop {
            fs::write(rig.root().join("clock"), "").unwrap();
            let meta = fs::metadata(rig.root().join("clock")).unwrap();
            if (meta.mtime(), meta.mtime_nsec()) > newest {
                break (meta.mtime(), meta.mtime_nsec());
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        Before { rig, store, shown: before, since }
    }

    /// The layers as they were; nothing is mounted. Only what differs is copied: most of it does not.
    fn restore(&self) {
        for layer in ["media/media", "whiteouts/media"] {
            let (now, was) = (self.rig.store.join(layer), self.rig.root().join(layer));
            let (shown, before) = (look(&now, [], FOREVER), look(&was, [], FOREVER));
            let names: BTreeSet<&PathBuf> = shown.keys().chain(before.keys()).collect();
            let differ = names.into_iter().filter(|name| shown.get(*name) != before.get(*name));
            let tops: BTreeSet<&Path> =
                differ.filter_map(|name| name.ancestors().find(|up| up.parent() == Some(Path::new("")))).collect();
            for top in tops.iter().filter(|top| shown.contains_key(**top)) {
                let path = now.join(top);
                let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
                removed.unwrap();
            }
            // At once, so that two names of one file stay that.
            let back: Vec<PathBuf> =
                tops.iter().filter(|top| before.contains_key(**top)).map(|top| was.join(top)).collect();
            if !back.is_empty() {
                assert!(Command::new("cp").arg("-a").args(back).arg(&now).status().unwrap().success());
            }
        }
    }

    /// What a change makes of a plain directory.
    fn plainly(&self, change: Change) -> Shown {
        let plain = self.rig.root().join("changed");
        copy(&self.rig.root().join("plain"), &plain);
        change(&plain).unwrap();
        let shown = look(&plain, [], self.since);
        fs::remove_dir_all(&plain).unwrap();
        shown
    }

    /// Does the change with a fault set, for every passing of every point. What each stop was at, and how much it left
    /// in `tmp/` and `orphans/`.
    fn stop_everywhere(&mut self, what: &str, change: Change, points: &[String]) -> Vec<(String, [usize; 2])> {
        let new = self.plainly(change);
        assert_ne!(new, self.shown, "{what} changes something");
        let mut stops = Vec::new();
        for point in points {
            let mut passing = 1;
            while let Some(left) = self.stop_at(
                &format!("{what}, passing {passing} of {point}"),
                change,
                &new,
                &format!("crash:{point}:{passing}"),
            ) {
                stops.push((point.clone(), left));
                passing += 1;
                assert!(passing < 100, "{what} ends");
            }
        }
        stops
    }

    /// Does the change once, in a life of its own; `None` if it was not stopped.
    fn stop_at(&mut self, what: &str, change: Change, new: &Shown, fault: &str) -> Option<[usize; 2]> {
        let scope = self.rig.mnt.join("media");
        let releases = RELEASE.iter().map(PathBuf::from).collect::<Vec<_>>();
        let names: BTreeSet<&PathBuf> = self.shown.keys().chain(new.keys()).chain(&releases).collect();
        let now = || look(&scope, names.iter().copied(), self.since);
        self.restore();
        self.rig.mount_with_env(&[("VERFS_FAULT", fault)]);
        let answer = change(&scope);
        if let Err(error) = &answer {
            assert!(is_broken(error), "{what}: {error}");
        }
        // Nothing that the kernel keeps: only a daemon can answer it.
        let stopped = rustix::fs::statfs(&self.rig.mnt).is_err();
        let left = stopped.then(|| litter(&self.rig));
        if stopped {
            self.rig.mount();
        }
        let found = now();
        assert!(
            found == *new || (found == self.shown && answer.is_err()),
            "{what}, answered with {answer:?}, shows neither state: other than before: {:#?}, other than after: {:#?}",
            differences(&found, &self.shown),
            differences(&found, new),
        );
        if stopped {
            assert_swept(&self.rig, &self.store, &found, &self.rig.src.join("2"), what);
            if found == self.shown {
                change(&scope).unwrap_or_else(|error| panic!("{what}, once more: {error}"));
                assert_eq!(differences(&now(), new), Vec::<String>::new(), "{what}, once more");
            }
        }
        self.rig.umount();
        left
    }
}

/// The points in changes of a scope, as the program itself lists them.
fn points() -> Vec<String> {
    let listed = Rig::new().ok(&["debug-faults"]);
    let points = listed.lines().filter_map(|line| line.strip_prefix("media ")).map(str::to_owned).collect::<Vec<_>>();
    assert!(points.len() >= 6, "{points:?}");
    points
}

#[test]
fn every_change_stopped_at_any_point_leaves_the_old_or_the_new_state() {
    if skip_mounted() {
        return;
    }
    let points = points();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut before = Before::make();
        let mut stops = Vec::new();
        while let Some((what, change)) = CHANGES.get(next.fetch_add(1, Ordering::Relaxed)) {
            stops.extend(before.stop_everywhere(what, *change, &points));
        }
        stops
    };
    // A life is mostly waiting, for disks and for processes.
    let stops: Vec<(String, [usize; 2])> = std::thread::scope(|scope| {
        let workers = [(); 3].map(|()| scope.spawn(work));
        let done = workers.map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        done.into_iter().flatten().collect()
    });
    for point in &points {
        let count = stops.iter().filter(|(at, _)| at == point).count();
        println!("{point}: stopped {count} times");
        assert!(count > 0, "no change passes {point}");
    }
    for (place, dir) in ["tmp", "orphans"].iter().enumerate() {
        let count = stops.iter().filter(|(_, left)| left[place] > 0).count();
        println!("something was left in {dir} {count} times");
        assert!(count > 0, "nothing was ever left in {dir}: the sweep is not tested");
    }
}

// A storm of changes, stopped at any moment.

/// What a thread does in its directory: one call changes anything, but in a publication.
///
/// Lengths and offsets are multiples of [`WORD`], so no write lies across two pages: it is done whole, or not at all.
#[derive(Clone, Debug)]
enum Operation {
    Create(PathBuf),
    Write(PathBuf, usize),
    Append {
        path: PathBuf,
        number: usize,
        sync: bool,
    },
    Truncate(PathBuf, u64),
    /// A long file that is written beside, made durable and renamed.
    Publish(PathBuf, usize),
    Unlink(PathBuf),
    Mkdir(PathBuf),
    Rmdir(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Chmod(PathBuf, u32),
}

const WORD: usize = 8;

/// Where a publication is written first; what is left of it is nobody's.
const PART: &str = ".part";
/// A file that is open, and has no name any more when its thread begins.
const HELD: &str = ".held";

fn word(number: usize) -> Vec<u8> {
    let word = format!("{number:07}\n").into_bytes();
    assert_eq!(word.len(), WORD);
    word
}

fn random_path(random: &mut Chance) -> PathBuf {
    const NAMES: [&str; 5] = ["a", "b", "c", "f", "g"];
    (0..=random.below(3)).map(|_| NAMES[random.below(NAMES.len())]).collect()
}

fn random_operation(random: &mut Chance, number: usize) -> Operation {
    let path = random_path(random);
    match random.below(30) {
        0..=2 => Operation::Create(path),
        3..=5 => Operation::Write(path, number),
        6 | 7 => Operation::Append { path, number, sync: random.below(8) == 0 },
        8 => Operation::Truncate(path, [0, 16, 4096][random.below(3)]),
        9 => Operation::Publish(path, number),
        10..=12 => Operation::Unlink(path),
        13..=15 => Operation::Mkdir(path),
        16..=18 => Operation::Rmdir(path),
        19..=22 => Operation::Rename(path, random_path(random)),
        23..=25 => Operation::Exchange(path, random_path(random)),
        26 => Operation::Link(path, random_path(random)),
        27 => Operation::Symlink(random_path(random), path),
        _ => Operation::Chmod(path, [0o640, 0o711, 0o444][random.below(3)]),
    }
}

fn perform(top: &Path, operation: &Operation) -> io::Result<()> {
    let open = |path: &Path| File::options().write(true).open(top.join(path));
    match operation {
        Operation::Create(path) => File::options().write(true).create_new(true).open(top.join(path)).map(drop),
        Operation::Write(path, number) => open(path)?.write_all(&word(*number)),
        Operation::Append { path, number, sync } => {
            let mut file = File::options().append(true).open(top.join(path))?;
            file.write_all(&word(*number))?;
            if *sync { file.sync_all() } else { Ok(()) }
        }
        Operation::Truncate(path, len) => open(path)?.set_len(*len),
        Operation::Publish(path, number) => {
            let mut file = File::create(top.join(PART))?;
            file.write_all(&word(*number).repeat(1 + number % 9000))?;
            file.sync_all()?;
            fs::rename(top.join(PART), top.join(path))
        }
        Operation::Unlink(path) => fs::remove_file(top.join(path)),
        Operation::Mkdir(path) => fs::create_dir(top.join(path)),
        Operation::Rmdir(path) => fs::remove_dir(top.join(path)),
        Operation::Rename(from, to) => fs::rename(top.join(from), top.join(to)),
        Operation::Exchange(from, to) => {
            let flags = RenameFlags::EXCHANGE;
            Ok(rustix::fs::renameat_with(CWD, top.join(from), CWD, top.join(to), flags)?)
        }
        Operation::Link(from, to) => fs::hard_link(top.join(from), top.join(to)),
        Operation::Symlink(target, path) => symlink(target, top.join(path)),
        Operation::Chmod(path, mode) => fs::set_permissions(top.join(path), fs::Permissions::from_mode(*mode)),
    }
}

/// A thread with its directory in the scope, and a plain directory to which the same was done.
struct Writer {
    top: PathBuf,
    plain: PathBuf,
    random: Chance,
    count: usize,
    /// How many changed something.
    changes: usize,
    /// The last that were answered, for a message.
    done: VecDeque<String>,
    /// What was not answered.
    open: Option<Operation>,
}

impl Writer {
    /// Works until the daemon is gone. Whether it had an unlinked file open all the time.
    fn work(&mut self, killed: &AtomicBool) -> bool {
        self.open = None;
        let held =
            File::create(self.top.join(HELD)).and_then(|file| fs::remove_file(self.top.join(HELD)).map(|()| file));
        loop {
            self.count += 1;
            let operation = random_operation(&mut self.random, self.count);
            let here = perform(&self.top, &operation);
            match &here {
                Err(error) if is_broken(error) => {
                    assert!(killed.load(Ordering::SeqCst), "{operation:?}: {error}, and nobody killed the daemon");
                    self.open = Some(operation);
                    return held.is_ok();
                }
                // A release's directory cannot be renamed; a plain one can.
                Err(error) if error.raw_os_error() == Some(libc::EXDEV) => continue,
                _ => {}
            }
            self.changes += usize::from(here.is_ok());
            self.done.push_back(format!("{operation:?} -> {here:?}"));
            if self.done.len() > 15 {
                self.done.pop_front();
            }
            let there = perform(&self.plain, &operation);
            let number = |result: &io::Result<()>| result.as_ref().err().and_then(io::Error::raw_os_error);
            assert_eq!(number(&here), number(&there), "of {:#?}", self.done);
        }
    }

    /// What shows here and in the plain directory, without what is nobody's.
    fn look(&self) -> (Shown, Shown) {
        let shown = |top: &Path, names: &Shown| {
            let mut shown = look(top, names.keys(), (0, 0));
            shown.retain(|name, _| name != Path::new(PART) && name != Path::new(HELD));
            shown
        };
        let there = shown(&self.plain, &Shown::new());
        (shown(&self.top, &there), there)
    }

    /// After a kill: what was answered is there, what was not is done whole or not at all. Whether it was done.
    fn check(&mut self, life: usize) -> bool {
        let (here, was) = self.look();
        let operation = self.open.take().unwrap();
        let mut done = false;
        if here != was {
            let answer = perform(&self.plain, &operation);
            let (_, will) = self.look();
            assert!(
                here == will,
                "life {life}: {operation:?}, never answered ({answer:?} in a plain directory), leaves neither state: \
                 other than before: {:#?}, other than after: {:#?}, after {:#?}",
                differences(&here, &was),
                differences(&here, &will),
                self.done,
            );
            done = true;
        }
        for top in [&self.top, &self.plain] {
            for name in [PART, HELD] {
                match fs::remove_file(top.join(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{name}: {error}"),
                    _ => {}
                }
            }
        }
        done
    }
}

const WRITERS: usize = 3;

/// A store whose release has in the scope a directory for each writer.
fn for_writers() -> Rig {
    let rig = Rig::with_limit(Duration::from_secs(120));
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
    let source = rig.src.join("1");
    for writer in 0..WRITERS {
        let top = source.join("media").join(writer.to_string());
        for dir in ["a/b/c", "b/a", "c/c"] {
            fs::create_dir_all(top.join(dir)).unwrap();
        }
        for (number, name) in ["f", "g", "a/f", "a/b/f", "a/b/c/g", "b/a/g", "b/b", "c/f", "c/g"].iter().enumerate() {
            fs::write(top.join(name), word(number).repeat(1 + 150 * number)).unwrap();
        }
        symlink("f", top.join("a/g")).unwrap();
    }
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    rig
}

#[test]
fn killed_at_200_random_moments_of_a_storm_nothing_that_was_answered_is_lost() {
    if skip_mounted() {
        return;
    }
    /// Kills until all is as the release has it again.
    const LIVES_OF_A_TREE: usize = 10;
    let mut rig = for_writers();
    let scope = rig.mnt.join("media");
    let mut random = Chance::new(0x5eed);
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|number| Writer {
            top: scope.join(number.to_string()),
            plain: rig.root().join("plain").join(number.to_string()),
            random: Chance::new(0x9e37_79b9 * (number as u64 + 1)),
            count: 0,
            changes: 0,
            done: VecDeque::new(),
            open: None,
        })
        .collect();
    let (mut done, mut swept) = (0, [0, 0]);
    rig.mount();
    let store = Store::look(&rig);
    for life in 0..200 {
        if life % LIVES_OF_A_TREE == 0 {
            rig.umount();
            for layer in ["media/media", "whiteouts"] {
                let _ = fs::remove_dir_all(rig.store.join(layer));
            }
            fs::create_dir(rig.store.join("whiteouts")).unwrap();
            let _ = fs::remove_dir_all(rig.root().join("plain"));
            copy(&rig.src.join("1/media"), &rig.root().join("plain"));
            rig.mount();
        }
        let moment = Duration::from_millis(20 + random.below(100) as u64);
        let killed = AtomicBool::new(false);
        let held = std::thread::scope(|threads| {
            let working: Vec<_> = writers.iter_mut().map(|writer| threads.spawn(|| writer.work(&killed))).collect();
            std::thread::sleep(moment);
            killed.store(true, Ordering::SeqCst);
            deadline::kill(rig.pids()[0]);
            working
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .filter(|held| *held)
                .count()
        });
        let left = litter(&rig);
        assert!(left[1] >= held, "life {life}: {held} unlinked files were open, and {left:?} in tmp and orphans");
        swept = [swept[0] + left[0], swept[1] + left[1]];
        rig.mount();
        let names = look(&scope, [], (0, 0));
        assert_swept(&rig, &store, &names, &rig.src.join("1"), &format!("life {life}"));
        done += writers.iter_mut().map(|writer| usize::from(writer.check(life))).sum::<usize>();
    }
    let changes: usize = writers.iter().map(|writer| writer.changes).sum();
    println!("200 kills in {changes} changes; of the {} that were not answered {done} were done", 200 * WRITERS);
    println!("swept: {} from tmp, {} from orphans", swept[0], swept[1]);
    assert!(swept[1] > 0, "nothing was ever left: the sweep is not tested");
}

// The machine stops: what was synced is on the disk.

/// What is on a disk now, in an image of its own, as a power cut would leave it.
fn cut_power(disk: &Path, into: &Path) {
    assert!(Command::new("cp").arg("--sparse=always").args([disk, into]).status().unwrap().success());
}

fn sync_dir(dir: &Path) {
    File::open(dir).unwrap().sync_all().unwrap();
}

/// A change of names, the directories that are synced then, and whether it is there.
type Synced = (&'static str, Change, &'static [&'static str], fn(&Path) -> bool);

const SYNCED: &[Synced] = &[
    (
        "rm",
        |top| fs::remove_file(top.join("a/b/removed")),
        &["a/b"],
        |top| !top.join("a/b/removed").exists() && top.join("a/b/kept").exists(),
    ),
    (
        "rm of the last of several",
        |top| fs::remove_dir_all(top.join("tree/sub")),
        &["tree"],
        |top| !top.join("tree/sub").exists() && top.join("tree/kept").exists(),
    ),
    (
        "rmdir",
        |top| fs::remove_dir(top.join("e/f/empty")),
        &["e/f"],
        |top| !top.join("e/f/empty").exists() && top.join("e/f/kept").exists(),
    ),
    (
        "mv",
        |top| fs::rename(top.join("g/h/old"), top.join("i/j/new")),
        &["g/h", "i/j"],
        |top| !top.join("g/h/old").exists() && fs::read(top.join("i/j/new")).is_ok_and(|bytes| bytes == b"old"),
    ),
    ("mkdir", |top| fs::create_dir(top.join("k/l/new")), &["k/l"], |top| top.join("k/l/new").is_dir()),
    (
        "rm of an upload over a release's file",
        |top| fs::remove_file(top.join("m/n/both")),
        &["m/n"],
        |top| !top.join("m/n/both").exists(),
    ),
    (
        "mkdir at the name of a directory that was removed",
        |top| fs::remove_dir_all(top.join("o/p/dir")).and_then(|()| fs::create_dir(top.join("o/p/dir"))),
        &["o/p"],
        |top| fs::read_dir(top.join("o/p/dir")).is_ok_and(|mut entries| entries.next().is_none()),
    ),
    (
        "mv of an upload over a release's file",
        |top| fs::rename(top.join("q/r/upload"), top.join("q/r/theirs")),
        &["q/r"],
        |top| {
            !top.join("q/r/upload").exists() && fs::read(top.join("q/r/theirs")).is_ok_and(|bytes| bytes == b"upload")
        },
    ),
    (
        "mv of a release's file over a release's file",
        |top| fs::rename(top.join("s/t/from"), top.join("u/v/to")),
        &["s/t", "u/v"],
        |top| !top.join("s/t/from").exists() && fs::read(top.join("u/v/to")).is_ok_and(|bytes| bytes == b"old"),
    ),
    (
        "mv of a directory of uploads over an emptied one of a release",
        |top| {
            fs::remove_file(top.join("w/x/dir/file"))?;
            fs::rename(top.join("w/uploads"), top.join("w/x/dir"))
        },
        &["w", "w/x"],
        |top| !top.join("w/uploads").exists() && names(&top.join("w/x/dir")) == ["mine"],
    ),
];

/// What a directory lists.
fn names(dir: &Path) -> Vec<OsString> {
    fs::read_dir(dir).map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect()).unwrap_or_default()
}

fn a_synced_directory_outlives_a_power_cut(kind: &str) {
    let mut rig = Rig::with_limit(Duration::from_secs(240));
    rig.init();
    let text = fs::read_to_string(rig.store.join("verfs.toml")).unwrap();
    let (image, dir) = (rig.root().join(format!("{kind}.img")), rig.root().join(kind));
    let text =
        text.replacen("[switch]", &format!("media = {dir:?}\n\n[switch]"), 1) + "\n[[scope]]\npath = \"media\"\n";
    fs::write(rig.store.join("verfs.toml"), text).unwrap();
    let mut tree = Tree::new().dir("media/e/f/empty").file("media/i/j/kept", "").file("media/k/l/kept", "");
    for file in ["a/b/removed", "a/b/kept", "tree/sub/x/y", "tree/kept", "e/f/kept", "g/h/old", "m/n/both"] {
        tree = tree.file(format!("media/{file}"), "old");
    }
    for file in ["o/p/dir/file", "q/r/theirs", "s/t/from", "w/x/dir/file"] {
        tree = tree.file(format!("media/{file}"), "old");
    }
    tree = tree.file("media/u/v/to", "other");
    let disk = SmallDisk::beside(&rig, kind);
    disk.write_seldom(kind);
    rig.add("1", &tree);
    rig.mount();
    let top = rig.mnt.join("media");
    fs::create_dir(top.join("w/uploads")).unwrap();
    for upload in ["m/n/both", "q/r/upload", "w/uploads/mine"] {
        fs::write(top.join(upload), "upload").unwrap();
    }
    rustix::fs::sync();
    let mut images = Vec::new();
    for (number, (what, change, dirs, is_there)) in SYNCED.iter().enumerate() {
        change(&top).unwrap_or_else(|error| panic!("{kind}: {what}: {error}"));
        dirs.iter().for_each(|dir| sync_dir(&top.join(dir)));
        let cut = rig.root().join(format!("cut-{number}.img"));
        cut_power(&image, &cut);
        images.push((what, cut, is_there));
    }
    rig.umount();
    drop(disk);
    for (what, cut, is_there) in images {
        let disk = SmallDisk::of_image(&cut, &dir);
        rig.mount();
        assert!(is_there(&top), "{kind}: {what} was synced, and is not there after the power cut");
        rig.umount();
        drop(disk);
    }
}

#[test]
fn what_was_removed_renamed_or_made_in_a_synced_directory_outlives_a_power_cut_on_ext4() {
    if !skip_mounted() {
        a_synced_directory_outlives_a_power_cut("ext4");
    }
}

#[test]
fn what_was_removed_renamed_or_made_in_a_synced_directory_outlives_a_power_cut_on_xfs() {
    if !skip_mounted() {
        a_synced_directory_outlives_a_power_cut("xfs");
    }
}

#[test]
fn what_was_removed_renamed_or_made_in_a_synced_directory_outlives_a_power_cut_on_btrfs() {
    if !skip_mounted() {
        a_synced_directory_outlives_a_power_cut("btrfs");
    }
}
