//! A hostile uploader: whatever is put into a scope, through the mount or behind it, nothing outside is opened or
//! changed, and nobody gets at the store's own work space.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::seen::{self, Outside, What};
use support::user::User;
use support::{Rig, skip_mounted};

/// A mounted store with scopes and a release, and a directory outside of it.
struct Site {
    rig: Rig,
    outside: Outside,
    /// The scope `media`, through the mount.
    scope: PathBuf,
    /// The same, where its files lie.
    behind: PathBuf,
}

/// The names in a directory that `Site::fill` has filled.
const FILE: &str = "secret";
const DIR: &str = "inner";

impl Site {
    /// With the scopes `media` and `second`; `fill` adds to the release's `media`.
    fn new(fill: impl FnOnce(&Path, &Outside)) -> Site {
        let mut rig = Rig::with_limit(Duration::from_secs(240));
        let outside = Outside::make(rig.root().join("outside"));
        let source = rig.src.join("1");
        fs::create_dir_all(source.join("media")).unwrap();
        fs::create_dir_all(source.join("code")).unwrap();
        fs::write(source.join("code/x"), "code").unwrap();
        fill(&source.join("media"), &outside);
        rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media", "--writable", "second"]);
        rig.ok(&["add", "1", source.to_str().unwrap()]);
        rig.mount();
        let (scope, behind) = (rig.mnt.join("media"), rig.store.join("media/media"));
        Site { rig, outside, scope, behind }
    }

    /// After all that was tried, uploads go on.
    fn still_works(&self) {
        for scope in ["media", "second"] {
            let file = self.rig.mnt.join(scope).join("still works");
            eventually(&format!("{scope} takes an upload"), || fs::write(&file, "yes").is_ok());
            assert_eq!(fs::read(&file).unwrap(), b"yes");
            fs::remove_file(&file).unwrap();
        }
        self.outside.is_untouched("in the end");
    }

    /// Waits until the daemon has let go the files that it keeps open for writing for a while after they were used.
    fn daemon_has_closed_its_files(&self) {
        let open = |pid: &u32| {
            fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().any(|fd| {
                let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd.file_name().display()));
                let writes = |line: &str| line.starts_with("flags:") && line.ends_with(['1', '2']);
                info.is_ok_and(|info| info.lines().any(writes))
                    && fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(&self.behind) && target.is_file())
            })
        };
        eventually("the daemon closes idle files", || !self.rig.pids().iter().any(open));
    }
}

/// What an uploader finds in a directory: a file and a directory.
fn fill(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir.join(DIR))?;
    fs::write(dir.join(FILE), "mine")
}

fn eventually(what: &str, mut true_now: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !true_now() {
        assert!(Instant::now() < end, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn drop_kernel_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Puts a symlink where something is, which stands aside.
fn replace_by_symlink(path: &Path, target: &Path) {
    fs::rename(path, aside(path)).unwrap();
    symlink(target, path).unwrap();
}

fn put_back(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::rename(aside(path), path).unwrap();
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-aside");
    name.into()
}

/// The same directory, as a relative target in a directory `depth` levels below the root of the test.
fn up_and(depth: usize, to: &str) -> PathBuf {
    std::iter::repeat_n("..", depth).chain([to]).collect()
}

fn hold(path: &Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).unwrap()
}

fn read_all(file: impl Into<File>) -> Result<Vec<u8>, i32> {
    let mut bytes = Vec::new();
    file.into().read_to_end(&mut bytes).map_err(|error| error.raw_os_error().unwrap())?;
    Ok(bytes)
}

const NEW_FILE: OFlags = OFlags::CREATE.union(OFlags::EXCL).union(OFlags::WRONLY).union(OFlags::CLOEXEC);
const MODE: Mode = Mode::from_raw_mode(0o755);
const LONG_AGO: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 },
};

/// A change of names or attributes, made below a directory that is held open, with a proper directory beside it.
type Call = fn(&OwnedFd, &OwnedFd) -> rustix::io::Result<()>;

/// Every change that a system call makes by a name. What is asked of `FILE` and `DIR` would find them outside too.
const CALLS: &[(&str, Call)] = &[
    ("create", |at, _| rustix::fs::openat(at, "new", NEW_FILE, MODE).map(drop)),
    ("create and truncate", |at, _| {
        rustix::fs::openat(at, FILE, OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY, MODE).map(drop)
    }),
    ("mkdir", |at, _| rustix::fs::mkdirat(at, "new", MODE)),
    ("mkdir below", |at, _| rustix::fs::mkdirat(at, format!("{DIR}/new"), MODE)),
    ("mkfifo", |at, _| rustix::fs::mknodat(at, "new", FileType::Fifo, MODE, 0)),
    ("symlink", |at, _| rustix::fs::symlinkat("target", at, "new")),
    ("unlink", |at, _| rustix::fs::unlinkat(at, FILE, AtFlags::empty())),
    ("rmdir", |at, _| rustix::fs::unlinkat(at, DIR, AtFlags::REMOVEDIR)),
    ("link into", |at, beside| rustix::fs::linkat(beside, FILE, at, "new", AtFlags::empty())),
    ("link out of", |at, beside| rustix::fs::linkat(at, FILE, beside, "new", AtFlags::empty())),
    ("rename into", |at, beside| rustix::fs::renameat(beside, FILE, at, "new")),
    ("rename over a file in", |at, beside| rustix::fs::renameat(beside, FILE, at, FILE)),
    ("rename over a directory in", |at, beside| rustix::fs::renameat(beside, DIR, at, DIR)),
    ("rename a directory into", |at, beside| rustix::fs::renameat(beside, DIR, at, "new")),
    ("rename out of", |at, beside| rustix::fs::renameat(at, FILE, beside, "new")),
    ("rename a directory out of", |at, beside| rustix::fs::renameat(at, DIR, beside, "new")),
    ("rename within", |at, _| rustix::fs::renameat(at, FILE, at, "new")),
    ("exchange with", |at, beside| rustix::fs::renameat_with(at, FILE, beside, FILE, RenameFlags::EXCHANGE)),
    ("chmod", |at, _| rustix::fs::chmodat(at, FILE, Mode::from_raw_mode(0o777), AtFlags::empty())),
    ("chmod of a directory", |at, _| rustix::fs::chmodat(at, DIR, Mode::from_raw_mode(0o777), AtFlags::empty())),
    ("chmod of the directory itself", |at, _| rustix::fs::fchmod(at, Mode::from_raw_mode(0o777))),
    ("chown", |at, _| {
        rustix::fs::chownat(at, FILE, Some(Uid::from_raw(7)), Some(Gid::from_raw(7)), AtFlags::SYMLINK_NOFOLLOW)
    }),
    ("chown of the directory itself", |at, _| rustix::fs::fchown(at, Some(Uid::from_raw(7)), None)),
    ("utimes", |at, _| rustix::fs::utimensat(at, FILE, &LONG_AGO, AtFlags::empty())),
    ("utimes of the directory itself", |at, _| rustix::fs::futimens(at, &LONG_AGO)),
    ("truncate", |at, _| rustix::fs::openat(at, FILE, OFlags::TRUNC | OFlags::WRONLY, MODE).map(drop)),
    ("setxattr", |at, _| {
        let file = rustix::fs::openat(at, FILE, OFlags::RDONLY, MODE)?;
        rustix::fs::fsetxattr(file, "user.x", b"x", XattrFlags::empty())
    }),
    ("setxattr of the directory itself", |at, _| rustix::fs::fsetxattr(at, "user.x", b"x", XattrFlags::empty())),
];

/// Those that need no more than a file that the kernel remembers: they are done to that file, wherever it was moved.
const OF_A_FILE: [&str; 6] = ["create and truncate", "chmod", "chown", "utimes", "truncate", "setxattr"];

/// Tries every call on a directory that is replaced by a symlink behind the mount while it is held open: `dir` is it
/// and `replaced` it or one above, below the docroot. Once with what the kernel remembers of it, once without.
fn try_every_call(site: &Site, dir: impl Fn(usize) -> (PathBuf, PathBuf), targets: &[&Path], refused: bool) {
    let mut number = 0;
    for target in targets {
        for (what, call) in CALLS {
            for remembered in [true, false] {
                number += 1;
                let (dir, replaced) = dir(number);
                let (dir, replaced) = (site.rig.mnt.join(dir), site.rig.store.join("media").join(replaced));
                let beside = site.rig.mnt.join(format!("second/{number}"));
                eventually("the directory can be filled", || {
                    // What the last round put there may be shown for a moment yet.
                    drop_kernel_caches();
                    let links = [&site.scope, dir.parent().unwrap(), &dir].map(|at| at.is_symlink());
                    links == [false; 3] && fill(&dir).is_ok() && fill(&beside).is_ok()
                });
                let (held, beside) = (hold(&dir), hold(&beside));
                for name in [FILE, DIR] {
                    rustix::fs::statat(&held, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
                }
                replace_by_symlink(&replaced, target);
                if !remembered {
                    drop_kernel_caches();
                }
                let done = call(&held, &beside);
                let refused = refused && !(remembered && OF_A_FILE.contains(what));
                let what = format!("{what}, with a symlink to {}, remembered: {remembered}", target.display());
                site.outside.is_untouched(&what);
                assert!(!refused || done.is_err(), "{what}: done, and nobody knows where");
                put_back(&replaced);
            }
        }
    }
}

#[test]
fn a_symlink_behind_the_mount_leads_nowhere() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    let dir = site.scope.join("dir");
    fill(&dir).unwrap();
    // The kernel holds the directory open; somebody who can write into media/ puts a symlink where it was.
    let held = hold(&dir);
    replace_by_symlink(&site.behind.join("dir"), &site.outside.dir);
    drop_kernel_caches();
    let text = rustix::fs::openat(&held, FILE, OFlags::RDONLY, Mode::empty()).map(read_all);
    assert_ne!(text, Ok(Ok(b"secret".to_vec())), "nothing outside the store is read");
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&held).into_iter().flatten() {
        names.extend(entry.map(|entry| entry.file_name().to_owned()));
    }
    assert!(!names.iter().any(|name| name.to_bytes() == b"dir"), "nothing outside is listed: {names:?}");
    site.outside.is_untouched("reading and listing");
    // Looked up again, it is shown as what it is.
    eventually("the symlink is shown", || dir.is_symlink());
    assert_eq!(fs::read_link(&dir).unwrap(), site.outside.dir);
    site.still_works();
}

#[test]
fn a_directory_replaced_by_a_symlink_leads_no_call_outside() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    let relative = up_and(3, "outside");
    assert!(site.behind.join(&relative).is_dir());
    let dir = |n: usize| (format!("media/{n}").into(), format!("media/{n}").into());
    try_every_call(&site, dir, &[&site.outside.dir, &relative], true);
    site.still_works();
}

#[test]
fn a_directory_further_up_replaced_by_a_symlink_leads_no_call_outside() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    try_every_call(
        &site,
        |n| (format!("media/{n}/dir").into(), format!("media/{n}").into()),
        &[&site.outside.dir],
        true,
    );
    site.still_works();
}

#[test]
fn a_directory_of_the_release_replaced_by_a_symlink_leads_no_call_outside() {
    if skip_mounted() {
        return;
    }
    // Some calls are answered from the release's half of the directory, so not all of them fail.
    let site = Site::new(|media, _| (1..=2 * CALLS.len()).for_each(|n| fill(&media.join(format!("{n}/dir"))).unwrap()));
    let dir = |n: usize| {
        // An entry of its own, so that there is something behind the mount to replace.
        fs::write(site.scope.join(format!("{n}/dir/up")), "").unwrap();
        let (above, dir) = (format!("media/{n}"), format!("media/{n}/dir"));
        (PathBuf::from(&dir), if n.is_multiple_of(2) { above } else { dir }.into())
    };
    try_every_call(&site, dir, &[&site.outside.dir], false);
    site.still_works();
}

#[test]
fn the_top_of_a_scope_replaced_by_a_symlink_leads_no_call_outside() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    try_every_call(&site, |_| ("media".into(), "media".into()), &[&site.outside.dir], true);
    site.still_works();
}

#[test]
fn a_symlink_to_the_stores_own_directories_leads_nowhere_either() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|media, _| fs::write(media.join("f"), "of the release").unwrap());
    let objects = Outside::watch(site.rig.store.join("objects"));
    let own = |name: &str| objects.by_right(|| seen::tree(&site.rig.store.join(name)));
    let before = own("objects");
    let inside = before.iter().find(|(_, seen)| matches!(seen.what, What::File(_))).unwrap().0;
    for (round, name) in ["objects", "whiteouts", "tmp", "orphans"].into_iter().enumerate() {
        let dir = site.scope.join(format!("{round}"));
        fill(&dir).unwrap();
        let held = hold(&dir);
        // Through one more directory, as objects lie deeper.
        let target = up_and(2, name).join(if name == "objects" { inside.parent().unwrap() } else { Path::new("") });
        assert!(site.behind.join(&target).is_dir(), "{}", target.display());
        let before = own(name);
        replace_by_symlink(&site.behind.join(format!("{round}")), &target);
        assert!(rustix::fs::mkdirat(&held, "new", MODE).is_err());
        assert!(rustix::fs::openat(&held, "new", NEW_FILE, MODE).is_err());
        let object = inside.file_name().unwrap();
        assert_eq!(rustix::fs::openat(&held, object, OFlags::RDONLY, Mode::empty()).unwrap_err(), Errno::NOENT);
        assert_eq!(rustix::fs::unlinkat(&held, object, AtFlags::empty()).unwrap_err(), Errno::NOENT);
        objects.is_untouched(name);
        assert_eq!(own(name), before, "{name}");
    }
    site.still_works();
}

#[test]
fn an_open_file_whose_directory_is_replaced_by_a_symlink_stays_what_it_is() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    let dir = site.scope.join("dir");
    fill(&dir).unwrap();
    let mut file = File::options().read(true).write(true).open(dir.join(FILE)).unwrap();
    let appending = File::options().append(true).open(dir.join(FILE)).unwrap();
    let other = File::options().read(true).write(true).create_new(true).open(site.scope.join("other")).unwrap();
    (&other).write_all(b"other").unwrap();
    let real = aside(&site.behind.join("dir")).join(FILE);
    replace_by_symlink(&site.behind.join("dir"), &site.outside.dir);
    for kept_open in [true, false] {
        if !kept_open {
            site.daemon_has_closed_its_files();
            drop_kernel_caches();
        }
        let before = fs::read(&real).unwrap();
        // Each is refused, or done to the file that was opened.
        let text = [&b"0123"[..], b"abcd"][usize::from(kept_open)];
        if file.write_at(text, 0).is_ok() {
            assert_eq!(fs::read(&real).unwrap()[..4], *text);
        } else {
            assert_eq!(fs::read(&real).unwrap(), before);
        }
        if (&appending).write_all(b"appended").is_ok() {
            assert!(fs::read(&real).unwrap().ends_with(b"appended"));
        }
        if file.set_len(2).is_ok() {
            assert_eq!(fs::metadata(&real).unwrap().len(), 2);
        }
        let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 100);
        let _ = rustix::fs::copy_file_range(&other, Some(&mut 0), &file, Some(&mut 0), 5);
        let _ = rustix::fs::copy_file_range(&file, Some(&mut 0), &other, Some(&mut 0), 5);
        let _ = rustix::fs::fchmod(&file, Mode::from_raw_mode(0o777));
        let _ = rustix::fs::fchown(&file, Some(Uid::from_raw(7)), None);
        let _ = rustix::fs::futimens(&file, &LONG_AGO);
        let _ = rustix::fs::fsetxattr(&file, "user.x", b"x", XattrFlags::empty());
        let _ = rustix::fs::fremovexattr(&file, "user.x");
        let _ = file.sync_all();
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        let _ = file.read_to_end(&mut bytes);
        assert_ne!(bytes, b"secret", "nothing outside is read");
        site.outside.is_untouched("calls on an open file");
    }
    site.still_works();
}

#[test]
fn a_known_file_replaced_by_a_symlink_is_never_the_file_outside() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|media, _| fs::write(media.join("of the release"), "mine").unwrap());
    for (round, removed) in [(0, false), (1, true)] {
        let name = format!("file {round}");
        let path = site.scope.join(&name);
        fs::write(&path, "mine").unwrap();
        let path_only = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap();
        let mut file = File::options().read(true).write(true).open(&path).unwrap();
        site.daemon_has_closed_its_files();
        let behind = site.behind.join(&name);
        let real = File::open(&behind).unwrap();
        if removed {
            // Were it not open, the symlink could get the very number that the file had on its disk.
            fs::remove_file(&behind).unwrap();
            symlink(site.outside.dir.join(FILE), &behind).unwrap();
        } else {
            replace_by_symlink(&behind, &site.outside.dir.join(FILE));
        }
        drop_kernel_caches();
        let held = format!("/proc/self/fd/{}", path_only.as_raw_fd());
        // Each is refused, or done to the file that was opened.
        let content = |real: &File| {
            let mut bytes = vec![0; 100];
            let length = real.read_at(&mut bytes, 0).unwrap();
            bytes.truncate(length);
            bytes
        };
        if file.write_at(b"MI", 0).is_ok() {
            assert_eq!(content(&real), b"MIne");
        }
        if file.set_len(3).is_ok() {
            assert_eq!(content(&real).len(), 3);
        }
        for at in [&held, &format!("/proc/self/fd/{}", file.as_raw_fd())] {
            if fs::set_permissions(at, executable()).is_ok() {
                assert_eq!(real.metadata().unwrap().mode() & 0o777, 0o777);
            }
            if let Ok(read) = fs::read(at) {
                assert_eq!(read, content(&real));
            }
        }
        if rustix::fs::fsetxattr(&file, "user.x", b"x", XattrFlags::empty()).is_ok() {
            assert_eq!(rustix::fs::fgetxattr(&real, "user.x", &mut [0; 2]), Ok(1));
        }
        if File::options().write(true).truncate(true).open(&held).is_ok() {
            assert_eq!(content(&real), b"");
        }
        let _ = rustix::fs::fchown(&file, Some(Uid::from_raw(7)), None);
        let _ = rustix::fs::futimens(&file, &LONG_AGO);
        let mut bytes = Vec::new();
        let _ = file.read_to_end(&mut bytes);
        assert_ne!(bytes, b"secret");
        site.outside.is_untouched("calls on a known file");
        eventually("the symlink is shown", || path.is_symlink());
        fs::remove_file(&path).unwrap();
        site.outside.is_untouched("removing the symlink");
    }
    site.still_works();
}

fn executable() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o777)
}

/// A site with a symlink where the whiteouts of `media` belong. Outside there are `secret`, `inner/` and `dir/secret`
/// as in the release, but neither `plain` nor `deep/`.
fn with_a_symlink_among_the_whiteouts(target: impl FnOnce(&Outside) -> PathBuf) -> Site {
    let site = Site::new(|media, _| {
        fill(media).unwrap();
        fill(&media.join("dir")).unwrap();
        fill(&media.join("deep/deeper")).unwrap();
        fs::write(media.join("deep/secret"), "mine").unwrap();
        fs::write(media.join("plain"), "plain").unwrap();
    });
    symlink(target(&site.outside), site.rig.store.join("whiteouts/media")).unwrap();
    site
}

#[test]
fn what_is_outside_hides_nothing_through_a_symlink_among_the_whiteouts() {
    if skip_mounted() {
        return;
    }
    let site = with_a_symlink_among_the_whiteouts(|outside| outside.dir.clone());
    let look = |name: &str| fs::read(site.scope.join(name)).map_err(|error| error.kind());
    assert_eq!(look(FILE).is_ok(), look("plain").is_ok(), "there is a file `secret` outside, and no `plain`");
    assert_eq!(look("dir/secret").is_ok(), look("deep/secret").is_ok(), "there is a `dir/secret` outside");
    let listed: BTreeSet<OsString> =
        fs::read_dir(&site.scope).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(listed.contains(OsStr::new(FILE)), listed.contains(OsStr::new("plain")), "{listed:?}");
    site.still_works();
}

#[test]
fn nothing_is_made_outside_through_a_symlink_among_the_whiteouts() {
    if skip_mounted() {
        return;
    }
    let absolute = |outside: &Outside| outside.dir.clone();
    let relative = |_: &Outside| up_and(2, "outside");
    for site in [with_a_symlink_among_the_whiteouts(absolute), with_a_symlink_among_the_whiteouts(relative)] {
        assert!(site.rig.store.join("whiteouts/media/secret").is_file());
        for name in ["plain", "deep/secret", "deep/deeper/secret", "secret", "dir/secret"] {
            let path = site.scope.join(name);
            // Nowhere to note that it is hidden: so it is refused, or hidden all the same.
            let removed = path.exists() && fs::remove_file(&path).is_ok();
            site.outside.is_untouched(&format!("unlink of {name}"));
            assert!(!(removed && path.exists()), "{name} was removed and is there");
        }
        let _ = fs::remove_dir_all(site.scope.join("deep"));
        let _ = fs::remove_dir(site.scope.join("dir/inner"));
        let _ = fs::rename(site.scope.join("plain"), site.scope.join("renamed"));
        let _ = fs::write(site.scope.join("new"), "new");
        let _ = fs::rename(site.scope.join("new"), site.scope.join("dir/secret"));
        site.outside.is_untouched("removing and renaming");
        site.still_works();
    }
}

#[test]
fn a_known_file_replaced_by_a_fifo_hangs_nobody() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    let path = site.scope.join("file");
    fs::write(&path, "mine").unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    site.daemon_has_closed_its_files();
    let behind = site.behind.join("file");
    fs::rename(&behind, aside(&behind)).unwrap();
    rustix::fs::mknodat(CWD, &behind, FileType::Fifo, MODE, 0).unwrap();
    drop_kernel_caches();
    // The watch over the mount ends the test if one of these waits for somebody at the other end. Each is refused, or
    // done to the file that was opened.
    let mut bytes = [0; 2];
    // Within the length that the kernel remembers, so that it asks for the content and nothing else.
    assert!(file.read_at(&mut bytes, 0).is_err() || bytes == *b"mi");
    let written = file.write_at(b"lost", 0).is_ok();
    let cut = file.set_len(2).is_ok();
    let content = if written { "lost" } else { "mine" };
    assert_eq!(fs::read_to_string(aside(&behind)).unwrap(), if cut { &content[..2] } else { content });
    site.still_works();
}

/// Symlinks that an uploader makes to lead out of the docroot, by name and target.
fn leading_out(outside: &Path) -> Vec<(&'static str, PathBuf)> {
    let far = std::iter::repeat_n("..", 40).collect::<PathBuf>().join(outside.strip_prefix("/").unwrap());
    vec![
        ("to a file", outside.join(FILE)),
        ("to a file, relative", far.join(FILE)),
        ("to a directory", outside.join("dir")),
        ("to a directory, relative", far.join("dir")),
        ("to nothing", outside.join("not there")),
        ("to the whole disk", "/".into()),
        ("to itself", "to itself".into()),
        ("to the store", up_and(1, "store")),
    ]
}

#[test]
fn what_is_done_to_a_symlink_that_leads_out_is_done_to_the_symlink() {
    if skip_mounted() {
        return;
    }
    // Those of the release are copied up by the first change.
    let site = Site::new(|media, outside| {
        for (name, target) in leading_out(&outside.dir) {
            symlink(target, media.join(format!("released {name}"))).unwrap();
        }
    });
    let plain = site.rig.root().join("plain");
    fs::create_dir(&plain).unwrap();
    for (name, target) in leading_out(&site.outside.dir) {
        symlink(&target, site.scope.join(format!("uploaded {name}"))).unwrap();
        for whose in ["uploaded", "released"] {
            symlink(&target, plain.join(format!("{whose} {name}"))).unwrap();
        }
    }
    type Change = fn(&OwnedFd, &str) -> rustix::io::Result<()>;
    let changes: &[(&str, Change)] = &[
        ("lchown", |at, name| {
            rustix::fs::chownat(at, name, Some(Uid::from_raw(7)), Some(Gid::from_raw(8)), AtFlags::SYMLINK_NOFOLLOW)
        }),
        ("utimes", |at, name| rustix::fs::utimensat(at, name, &LONG_AGO, AtFlags::SYMLINK_NOFOLLOW)),
        ("lsetxattr", |at, name| {
            let path = format!("/proc/self/fd/{}/{name}", at.as_raw_fd());
            rustix::fs::lsetxattr(path, "user.x", b"x", XattrFlags::empty())
        }),
        ("open without following", |at, name| {
            rustix::fs::openat(at, name, OFlags::RDWR | OFlags::NOFOLLOW, Mode::empty()).map(drop)
        }),
        ("create exclusively", |at, name| rustix::fs::openat(at, name, NEW_FILE, MODE).map(drop)),
        ("mkdir", |at, name| rustix::fs::mkdirat(at, name, MODE)),
        ("rmdir", |at, name| rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR)),
        ("link", |at, name| rustix::fs::linkat(at, name, at, format!("{name}, linked"), AtFlags::empty())),
        ("rename", |at, name| rustix::fs::renameat(at, name, at, format!("{name}, renamed"))),
        ("rename over the other name", |at, name| {
            rustix::fs::renameat(at, format!("{name}, linked"), at, format!("{name}, renamed"))
        }),
        ("rename a file over it", |at, name| {
            rustix::fs::openat(at, "a file", OFlags::CREATE | OFlags::WRONLY, MODE)?;
            rustix::fs::renameat(at, "a file", at, format!("{name}, linked"))
        }),
        ("unlink", |at, name| rustix::fs::unlinkat(at, format!("{name}, renamed"), AtFlags::empty())),
    ];
    let (here, there) = (hold(&site.scope), hold(&plain));
    assert_eq!(seen::tree(&site.scope).len(), seen::tree(&plain).len());
    for (what, change) in changes {
        for (name, _) in leading_out(&site.outside.dir) {
            for whose in ["uploaded", "released"] {
                let name = format!("{whose} {name}");
                assert_eq!(change(&here, &name), change(&there, &name), "{what} of {name:?}");
                site.outside.is_untouched(&format!("{what} of {name:?}"));
            }
        }
        let links = |dir: &Path| {
            let mut links = seen::tree(dir);
            links.remove(Path::new(""));
            links
        };
        assert_eq!(links(&site.scope), links(&plain), "after {what}");
    }
    site.still_works();
}

#[test]
fn a_symlink_that_leads_out_is_followed_by_the_caller_alone() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    for (name, target) in leading_out(&site.outside.dir) {
        symlink(&target, site.scope.join(name)).unwrap();
    }
    drop_kernel_caches();
    for name in ["to a file", "to a file, relative"] {
        assert_eq!(fs::read_link(site.scope.join(name)).unwrap().file_name().unwrap(), FILE);
        // The test sees its own disk.
        assert_eq!(site.outside.by_right(|| fs::read(site.scope.join(name))).unwrap(), b"secret");
    }
    // Seen from a root where it leads nowhere, the same symlink leads nowhere: so it is not the daemon that follows.
    let root = User { uid: 0, gid: 0, groups: &[] };
    let jailed = root.work_in(&site.rig.mnt, || {
        rustix::process::chroot(".").unwrap();
        ["to a file", "to a file, relative"].map(|name| fs::read(Path::new("/media").join(name)))
    });
    assert!(jailed.iter().all(|read| read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)));
    site.outside.is_untouched("a look from a root of its own");
    site.still_works();
}

#[test]
fn dot_dot_at_the_top_of_a_scope_is_the_docroot() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    let top = hold(&site.scope);
    let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let docroot = fs::metadata(&site.rig.mnt).unwrap();
    for round in ["remembered", "forgotten"] {
        let up = rustix::fs::statat(&top, "..", AtFlags::empty()).unwrap();
        assert_eq!(id(up), (docroot.dev(), docroot.ino()), "{round}");
        let code = rustix::fs::openat(&top, "../code/x", OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(read_all(code).unwrap(), b"code", "{round}");
        for name in ["../tmp", "../whiteouts", "../orphans", "../media/media", "../objects", "../verfs.toml"] {
            let missing = rustix::fs::statat(&top, name, AtFlags::empty());
            assert_eq!(missing.unwrap_err(), Errno::NOENT, "{name}, {round}");
        }
        for made in [
            rustix::fs::mkdirat(&top, "../new", MODE),
            rustix::fs::openat(&top, "../new", NEW_FILE, MODE).map(drop),
            rustix::fs::symlinkat("x", &top, "../new"),
            rustix::fs::renameat(&top, "../code/x", &top, "x"),
        ] {
            let refused = made.unwrap_err();
            assert!([Errno::ROFS, Errno::XDEV].contains(&refused), "{refused}, {round}");
        }
        drop_kernel_caches();
    }
    site.still_works();
}

/// The longest name that Linux's file systems take, in bytes.
const LONGEST: usize = 255;

/// Names of 1 to 255 bytes that hold every byte but `/` and NUL, most of them no UTF-8.
fn strange_names() -> Vec<OsString> {
    let every: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let mut names: Vec<Vec<u8>> = every.iter().filter(|byte| **byte != b'.').map(|byte| vec![*byte]).collect();
    names.push([&every[..], b"x"].concat());
    names.push([b"y", &every[..]].concat());
    names.push(vec![0xff; LONGEST]);
    names.push("\u{1f4a9}".repeat(63).into_bytes());
    names.push(vec![b'.'; LONGEST]);
    names.extend([b"...".to_vec(), b".. ".to_vec(), b"\n\n".to_vec(), b"-rf *".to_vec(), b"%2e%2e%2f".to_vec()]);
    assert!(names.iter().any(|name| name.len() == LONGEST));
    names.into_iter().map(OsString::from_vec).collect()
}

type Make = fn(&OwnedFd, &OsStr) -> rustix::io::Result<()>;

/// Each way to make a name in a directory that holds the file `a file`.
const MAKERS: &[(&str, Make)] = &[
    ("create", |at, name| rustix::fs::openat(at, name, NEW_FILE, MODE).map(drop)),
    ("mkdir", |at, name| rustix::fs::mkdirat(at, name, MODE)),
    ("mkfifo", |at, name| rustix::fs::mknodat(at, name, FileType::Fifo, MODE, 0)),
    ("symlink", |at, name| rustix::fs::symlinkat("target", at, name)),
    ("link", |at, name| rustix::fs::linkat(at, "a file", at, name, AtFlags::empty())),
    ("rename", |at, name| {
        rustix::fs::openat(at, "to be renamed", OFlags::CREATE | OFlags::WRONLY, MODE)?;
        rustix::fs::renameat(at, "to be renamed", at, name)
    }),
];

fn names_in(dir: &Path) -> BTreeSet<OsString> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(names.insert(name.clone()), "{name:?} is listed twice");
    }
    names
}

#[test]
fn every_name_that_linux_takes_works() {
    if skip_mounted() {
        return;
    }
    let mut site = Site::new(|_, _| {});
    for (what, make) in MAKERS {
        let dir = site.scope.join(what);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a file"), "").unwrap();
        let held = hold(&dir);
        let names = strange_names();
        for name in &names {
            make(&held, name).unwrap_or_else(|error| panic!("{what} of {name:?}: {error}"));
            rustix::fs::statat(&held, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
    }
    let shown: BTreeSet<OsString> = strange_names().into_iter().chain(["a file".into()]).collect();
    for life in ["this life", "the next one"] {
        for (what, _) in MAKERS {
            assert_eq!(names_in(&site.scope.join(what)), shown, "{what} in {life}");
            assert_eq!(names_in(&site.behind.join(what)), shown, "{what} in {life}, behind");
        }
        site.rig.umount();
        site.rig.mount();
    }
    for (what, _) in MAKERS {
        fs::remove_dir_all(site.scope.join(what)).unwrap();
    }
    assert_eq!(names_in(&site.scope), BTreeSet::new());
    site.still_works();
}

#[test]
fn a_name_that_is_too_long_is_refused_as_such() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    fs::write(site.scope.join("a file"), "").unwrap();
    let held = hold(&site.scope);
    for len in [LONGEST + 1, 1000, 1023, 1024, 1025, 4000] {
        let name = OsString::from_vec(vec![b'n'; len]);
        let mut calls: Vec<(&str, rustix::io::Result<()>)> =
            MAKERS.iter().map(|(what, make)| (*what, make(&held, &name))).collect();
        calls.extend([
            ("stat", rustix::fs::statat(&held, &name, AtFlags::empty()).map(drop)),
            ("open", rustix::fs::openat(&held, &name, OFlags::RDONLY, Mode::empty()).map(drop)),
            ("unlink", rustix::fs::unlinkat(&held, &name, AtFlags::empty())),
            ("rmdir", rustix::fs::unlinkat(&held, &name, AtFlags::REMOVEDIR)),
            ("rename from", rustix::fs::renameat(&held, &name, &held, "n")),
            ("exchange", rustix::fs::renameat_with(&held, &name, &held, "a file", RenameFlags::EXCHANGE)),
        ]);
        for (what, done) in calls {
            assert_eq!(done, Err(Errno::NAMETOOLONG), "{what} of {len} bytes");
        }
    }
    let left = BTreeSet::from(["a file".into(), "to be renamed".into()]);
    assert_eq!(names_in(&site.scope), left);
    site.still_works();
}

#[test]
fn the_longest_names_of_a_release_are_hidden_and_copied_up_as_any_other() {
    if skip_mounted() {
        return;
    }
    let long = |byte: u8| OsString::from_vec(vec![byte; LONGEST]);
    let mut site = Site::new(|media, _| {
        for byte in [b'a', b'b', 0xfe, 0xff] {
            fs::write(media.join(long(byte)), [byte]).unwrap();
        }
        fs::create_dir_all(media.join(long(b'd')).join(long(b'e'))).unwrap();
        fs::write(media.join(long(b'd')).join(long(b'e')).join(long(b'f')), "deep").unwrap();
    });
    let at = |byte: u8| site.scope.join(long(byte));
    fs::remove_file(at(b'a')).unwrap();
    fs::rename(at(0xfe), at(b'r')).unwrap();
    fs::remove_file(at(0xff)).unwrap();
    fs::write(at(0xff), "new").unwrap();
    File::options().append(true).open(at(b'b')).unwrap().write_all(b"+").unwrap();
    fs::remove_dir_all(at(b'd')).unwrap();
    for life in ["this life", "the next one"] {
        assert_eq!(names_in(&site.scope), [b'b', b'r', 0xff].map(long).into(), "{life}");
        let read = |byte: u8| fs::read(site.scope.join(long(byte))).unwrap();
        assert_eq!([read(b'b'), read(b'r'), read(0xff)], [b"b+".to_vec(), vec![0xfe], b"new".to_vec()], "{life}");
        site.rig.umount();
        site.rig.mount();
    }
    site.still_works();
}

/// Makes directories one in the other, by steps, until the path is so many bytes long; the last of them, held.
fn dig(top: &Path, name: &OsStr, len: usize) -> rustix::io::Result<OwnedFd> {
    let mut at = hold(top);
    for _ in 0..len.div_ceil(name.len() + 1) {
        rustix::fs::mkdirat(&at, name, MODE)?;
        at = rustix::fs::openat(&at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    }
    Ok(at)
}

/// Uses a directory as an uploader would.
fn use_up(dir: &OwnedFd) -> rustix::io::Result<()> {
    let file = rustix::fs::openat(dir, "file", NEW_FILE, MODE)?;
    rustix::io::write(&file, b"text")?;
    rustix::fs::renameat(dir, "file", dir, "renamed")?;
    let read = rustix::fs::openat(dir, "renamed", OFlags::RDONLY, Mode::empty())?;
    assert_eq!(read_all(read), Ok(b"text".to_vec()));
    rustix::fs::symlinkat("target", dir, "link")?;
    rustix::fs::linkat(dir, "renamed", dir, "linked", AtFlags::empty())?;
    rustix::fs::chmodat(dir, "linked", Mode::from_raw_mode(0o600), AtFlags::empty())
}

/// The longest path in the docroot that a new name may have: PATH_MAX without its NUL.
const LONGEST_PATH: usize = 4095;

#[test]
fn a_new_name_whose_path_would_be_too_long_is_refused_as_such() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    const DIRS: usize = 453;
    let deepest = dig(&site.scope, OsStr::new("eightlet"), DIRS * "/eightlet".len()).unwrap();
    let left = LONGEST_PATH - "media".len() - DIRS * "/eightlet".len() - "/".len();
    rustix::fs::openat(&deepest, "a", NEW_FILE, MODE).unwrap();
    for (what, make) in MAKERS {
        let from = hold(&site.scope);
        let made = |len: usize| match *what {
            "link" => rustix::fs::linkat(&deepest, "a", &deepest, &*"n".repeat(len), AtFlags::empty()),
            "rename" => rustix::fs::openat(&from, "moved", OFlags::CREATE | OFlags::WRONLY, MODE)
                .and_then(|_| rustix::fs::renameat(&from, "moved", &deepest, &*"n".repeat(len))),
            _ => make(&deepest, OsStr::new(&"n".repeat(len))),
        };
        assert_eq!(made(left + 1), Err(Errno::NAMETOOLONG), "{what}");
        assert_eq!(made(left), Ok(()), "{what}");
        let flag = if *what == "mkdir" { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&deepest, &*"n".repeat(left), flag).unwrap();
    }
    let moved = rustix::fs::renameat_with(&deepest, "a", &deepest, &*"n".repeat(left + 1), RenameFlags::NOREPLACE);
    assert_eq!(moved, Err(Errno::NAMETOOLONG));
    drop(deepest);
    fs::remove_dir_all(site.scope.join("eightlet")).unwrap();
    assert_eq!(names_in(&site.scope), BTreeSet::new());
    site.still_works();
}

#[test]
fn what_lies_deeper_than_a_new_name_may_is_read_changed_and_removed() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    let name = OsString::from("d".repeat(200));
    use_up(&dig(&site.behind, &name, 5000).unwrap()).unwrap();
    eventually("it is seen", || site.scope.join(&name).exists());
    let mut deepest = hold(&site.scope);
    while let Ok(next) = rustix::fs::openat(&deepest, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
        deepest = next;
    }
    let opened = |flags| rustix::fs::openat(&deepest, "renamed", flags, Mode::empty());
    assert_eq!(read_all(opened(OFlags::RDONLY).unwrap()), Ok(b"text".to_vec()));
    rustix::io::write(opened(OFlags::WRONLY | OFlags::APPEND).unwrap(), b"+").unwrap();
    rustix::fs::chmodat(&deepest, "renamed", Mode::from_raw_mode(0o640), AtFlags::empty()).unwrap();
    assert_eq!(read_all(opened(OFlags::RDONLY).unwrap()), Ok(b"text+".to_vec()));
    assert_eq!(rustix::fs::mkdirat(&deepest, "new", MODE), Err(Errno::NAMETOOLONG));
    // Out of there it may be renamed.
    rustix::fs::renameat(&deepest, "renamed", hold(&site.scope), "saved").unwrap();
    assert_eq!(fs::read(site.scope.join("saved")).unwrap(), b"text+");
    drop(deepest);
    fs::remove_file(site.scope.join("saved")).unwrap();
    fs::remove_dir_all(site.scope.join(&name)).unwrap();
    assert_eq!(names_in(&site.scope), BTreeSet::new());
    site.still_works();
}

/// Deeper than a process may have descriptors, as a rule (1,024), and than a thread's stack bears.
const DEPTH: usize = 6000;

#[test]
fn a_scope_with_a_limit_and_a_long_chain_of_directories_is_measured() {
    if skip_mounted() {
        return;
    }
    let mut site = Site::new(|_, _| {});
    site.rig.umount();
    let settings = site.rig.store.join("verfs.toml");
    let text = fs::read_to_string(&settings).unwrap();
    // Of the last scope, which is `second`.
    fs::write(&settings, text + "limit = \"64 MiB\"\n").unwrap();
    let behind = site.rig.store.join("media/second");
    let deepest = dig(&behind, OsStr::new("d"), 2 * DEPTH).unwrap();
    let file = rustix::fs::openat(&deepest, "file", NEW_FILE, MODE).unwrap();
    rustix::io::write(&file, &[7; 100_000]).unwrap();
    drop((file, deepest));
    site.rig.mount();
    eventually("it is measured", || {
        site.rig.json(&["status"])["limits"][0]["used_bytes"].as_u64().is_some_and(|bytes| bytes >= 100_000)
    });
    assert_eq!(fs::read(site.rig.mnt.join("code/x")).unwrap(), b"code");
    site.still_works();
    // The scratch directory goes by a way that is not made for this.
    assert!(Command::new("rm").arg("-r").arg(behind.join("d")).status().unwrap().success());
}

#[test]
fn a_long_chain_of_directories_in_the_work_space_is_swept_at_the_mount() {
    if skip_mounted() {
        return;
    }
    let mut site = Site::new(|_, _| {});
    site.rig.umount();
    let left = site.rig.store.join("tmp/up-adopt-1");
    fs::create_dir(&left).unwrap();
    let deepest = dig(&left, OsStr::new("d"), 2 * DEPTH).unwrap();
    rustix::fs::symlinkat(&site.outside.dir, &deepest, "link").unwrap();
    drop(deepest);
    site.rig.mount();
    assert!(!left.exists());
    site.still_works();
}

#[test]
fn a_removed_release_takes_a_long_chain_of_directories_of_its_own_along() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    let settings = rig.store.join("verfs.toml");
    let text = fs::read_to_string(&settings).unwrap() + "\n[[scope]]\npath = \"cache\"\nper_release = true\n";
    fs::write(&settings, text).unwrap();
    for release in ["1", "2", "3"] {
        rig.add(release, &support::tree::Tree::new().dir("cache"));
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    dig(&rig.store.join("own/1/media/cache"), OsStr::new("d"), 2 * DEPTH).unwrap();
    rig.ok(&["switch", "2"]);
    rig.ok(&["switch", "3"]);
    rig.ok(&["remove", "1"]);
    assert!(!rig.store.join("own/1").exists());
    rig.umount();
}

#[test]
fn a_path_of_the_length_that_one_call_takes_works() {
    if skip_mounted() {
        return;
    }
    // As deep as what the docroot's own path leaves of PATH_MAX, which also counts the NUL.
    let site = Site::new(|_, _| {});
    let room = LONGEST_PATH - site.scope.as_os_str().len() - "/renamed".len() - 9;
    let deepest = dig(&site.scope, OsStr::new("eightlet"), room - 8).unwrap();
    use_up(&deepest).unwrap();
    let path = fs::read_link(format!("/proc/self/fd/{}", deepest.as_raw_fd())).unwrap();
    assert!(path.as_os_str().len() > 4060, "{}", path.as_os_str().len());
    assert_eq!(fs::read(path.join("renamed")).unwrap(), b"text");
    fs::remove_dir_all(site.scope.join("eightlet")).unwrap();
    assert_eq!(names_in(&site.scope), BTreeSet::new());
    site.still_works();
}

#[test]
fn a_tree_that_a_rename_moves_too_deep_for_a_new_name_can_still_be_read_and_removed() {
    if skip_mounted() {
        return;
    }
    let site = Site::new(|_, _| {});
    let plain = site.rig.root().join("plain");
    fs::create_dir(&plain).unwrap();
    for dir in [&plain, &site.scope] {
        let upper = dig(dir, OsStr::new(&"u".repeat(200)), 3000).unwrap();
        let lower = dig(dir, OsStr::new(&"l".repeat(200)), 3000).unwrap();
        use_up(&lower).unwrap();
        let top = hold(dir);
        rustix::fs::renameat(&top, "l".repeat(200), &upper, "moved").unwrap();
        let read = rustix::fs::openat(&lower, "renamed", OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(read_all(read), Ok(b"text".to_vec()), "in {}", dir.display());
        rustix::fs::unlinkat(&lower, "link", AtFlags::empty()).unwrap();
        let made = rustix::fs::mkdirat(&lower, "new", MODE);
        let may = if *dir == plain { Ok(()) } else { Err(Errno::NAMETOOLONG) };
        assert_eq!(made, may, "in {}", dir.display());
        drop((upper, lower));
        fs::remove_dir_all(dir.join("u".repeat(200))).unwrap();
        assert_eq!(names_in(dir), BTreeSet::new());
    }
    site.still_works();
}

#[test]
fn a_hundred_thousand_files_in_one_directory_are_made_listed_and_removed() {
    if skip_mounted() {
        return;
    }
    const FILES: usize = 100_000;
    let site = Site::new(|_, _| {});
    let dir = site.scope.join("many");
    fs::create_dir(&dir).unwrap();
    let held = hold(&dir);
    for n in 0..FILES {
        rustix::fs::openat(&held, format!("file-{n}"), NEW_FILE, MODE).unwrap();
    }
    let names = names_in(&dir);
    assert_eq!(names.len(), FILES);
    for n in 0..FILES {
        assert!(names.contains(OsStr::new(&format!("file-{n}"))), "file-{n} is lost");
    }
    for n in (0..FILES).step_by(997) {
        assert!(fs::metadata(dir.join(format!("file-{n}"))).unwrap().is_file());
    }
    assert!(!dir.join(format!("file-{FILES}")).exists());
    assert_eq!(fs::remove_dir(&dir).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
    for name in &names {
        rustix::fs::unlinkat(&held, name, AtFlags::empty()).unwrap();
    }
    assert_eq!(names_in(&dir), BTreeSet::new());
    fs::remove_dir(&dir).unwrap();
    assert!(!dir.exists() && !site.behind.join("many").exists());
    eventually("the files are gone from the disk", || names_in(&site.rig.store.join("orphans")).is_empty());
    site.still_works();
}

#[test]
fn the_names_of_the_stores_own_work_space_are_ordinary_names_in_a_scope() {
    if skip_mounted() {
        return;
    }
    let mut site = Site::new(|media, _| fs::write(media.join("released"), "released").unwrap());
    // Something in each of the store's directories, and a file that is open without a name.
    fs::remove_file(site.scope.join("released")).unwrap();
    fs::write(site.scope.join("unlinked"), "unlinked").unwrap();
    let mut unlinked = File::open(site.scope.join("unlinked")).unwrap();
    fs::remove_file(site.scope.join("unlinked")).unwrap();
    let own = |rig: &Rig| ["whiteouts", "tmp", "orphans", "objects"].map(|name| seen::tree(&rig.store.join(name)));
    let before = own(&site.rig);
    let names =
        ["up-0", "up-1", "0", "1", "tmp", "orphans", "whiteouts", "media", "objects", "verfs.toml", "active", ".wh.x"];
    let mut written = BTreeMap::new();
    for name in names {
        let (file, dir) = (site.scope.join(name), site.rig.mnt.join("second").join(name));
        fs::write(&file, name).unwrap();
        fs::create_dir(&dir).unwrap();
        for inner in names {
            fs::write(dir.join(inner), inner).unwrap();
            written.insert(dir.join(inner), inner);
        }
        written.insert(file, name);
    }
    assert_eq!(own(&site.rig), before, "uploads reach no directory of the store's own");
    let mut text = String::new();
    unlinked.read_to_string(&mut text).unwrap();
    assert_eq!(text, "unlinked");
    assert!(!site.scope.join("released").exists());
    drop(unlinked);
    for life in ["this life", "the next one"] {
        for (path, content) in &written {
            assert_eq!(fs::read_to_string(path).unwrap(), *content, "{} in {life}", path.display());
        }
        assert_eq!(names_in(&site.rig.mnt), ["code", "media", "second"].map(OsString::from).into(), "{life}");
        site.rig.umount();
        site.rig.mount();
    }
    for path in written.keys() {
        fs::remove_file(path).unwrap();
    }
    assert!(!site.scope.join("released").exists(), "what is hidden stays hidden");
    site.still_works();
}

#[test]
fn a_scope_named_like_the_stores_own_work_space_is_an_ordinary_scope() {
    if skip_mounted() {
        return;
    }
    const NAMES: [&str; 4] = ["tmp", "orphans", "whiteouts", "media"];
    let mut rig = Rig::with_limit(Duration::from_secs(120));
    let source = rig.src.join("1");
    for name in NAMES {
        fs::create_dir_all(source.join(name)).unwrap();
        fs::write(source.join(name).join("released"), name).unwrap();
    }
    let scopes = NAMES.iter().flat_map(|name| ["--writable", name]);
    rig.ok(&["init", rig.store.to_str().unwrap()].into_iter().chain(scopes).collect::<Vec<_>>());
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    rig.mount();
    for name in NAMES {
        let scope = rig.mnt.join(name);
        fs::write(scope.join("up-1"), "mine").unwrap();
        fs::remove_file(scope.join("released")).unwrap();
    }
    for _ in 0..2 {
        for name in NAMES {
            let scope = rig.mnt.join(name);
            assert_eq!(names_in(&scope), BTreeSet::from(["up-1".into()]), "{name}");
            assert_eq!(fs::read(scope.join("up-1")).unwrap(), b"mine", "{name}");
        }
        rig.umount();
        rig.mount();
    }
}
