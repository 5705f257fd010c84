//! Behind the mount: what others do to the files of media where they lie is seen, and nothing is taken for another.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::fs::{CWD, RenameFlags, Timespec, Timestamps, renameat_with, utimensat};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::chance::Chance;
use support::disk::SmallDisk;
use support::seen;
use support::tree::Tree;
use support::{Rig, long, skip_mounted};

/// A mounted store whose scope `media` lies on a disk of this kind; the scope through the mount, and where it lies.
struct Shop {
    rig: Rig,
    scope: PathBuf,
    behind: PathBuf,
    // Goes last: its disk is in use until then.
    _disk: SmallDisk,
}

impl Shop {
    fn on(kind: &str) -> Shop {
        let mut rig = Rig::with_limit(Duration::from_secs(240));
        let disk = match kind {
            "tmpfs" => {
                let dir = rig.root().join("tmpfs");
                fs::create_dir(&dir).unwrap();
                SmallDisk::in_memory(&dir)
            }
            FEW => SmallDisk::with_inodes(&rig, 256),
            kind => SmallDisk::beside(&rig, kind),
        };
        let home = disk.path().join("home");
        fs::create_dir(&home).unwrap();
        rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media", "--media", home.to_str().unwrap()]);
        // Each look is a request.
        let toml = rig.store.join("verfs.toml");
        let text = fs::read_to_string(&toml).unwrap();
        fs::write(toml, format!("{text}ttl = \"0s\"\n")).unwrap();
        rig.add("01", &Tree::new().file("index.html", "one").file("media/theirs", "theirs"));
        rig.mount();
        Shop { scope: rig.mnt.join("media"), behind: home.join("media/media"), rig, _disk: disk }
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.rig.umount();
    }
}

const DISKS: [&str; 4] = ["ext4", "xfs", "btrfs", "tmpfs"];
/// An ext4 on which numbers of files come again soon.
const FEW: &str = "ext4 with few inodes";

/// All files look the same but for what they hold: only who they are tells them apart.
fn put(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    let second = Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: second, last_modification: second };
    utimensat(CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
}

#[test]
fn a_file_that_got_the_number_of_a_removed_one_is_never_taken_for_it() {
    if skip_mounted() {
        return;
    }
    const FILES: usize = 200;
    for kind in DISKS {
        let shop = Shop::on(kind);
        let mut numbers = std::collections::HashSet::new();
        for round in 0..4 {
            let name = |number: usize| format!("f{number:03}");
            let content = |number: usize| format!("round {round} number {number:03}");
            let mut again = 0;
            // In another order each time, so that a name gets the number that another name had.
            for number in (0..FILES).map(|at| (at * 7 + round * 31) % FILES) {
                put(&shop.behind.join(name(number)), &content(number));
                symlink(content(number), shop.behind.join(format!("link-{}", name(number)))).unwrap();
                let inode = fs::metadata(shop.behind.join(name(number))).unwrap().ino();
                again += usize::from(!numbers.insert(inode));
            }
            // btrfs gives no number out twice.
            assert!(kind == "btrfs" || kind == "tmpfs" || round == 0 || again > 0, "{kind}: no number came again");
            for number in 0..FILES {
                let path = shop.scope.join(name(number));
                assert_eq!(fs::read_to_string(&path).unwrap(), content(number), "{kind}");
                let link = shop.scope.join(format!("link-{}", name(number)));
                assert_eq!(fs::read_link(link).unwrap(), Path::new(&content(number)), "{kind}");
                // What is written goes to the file of that name, whole.
                let mut file = File::options().append(true).open(&path).unwrap();
                file.write_all(b"+").unwrap();
            }
            for number in 0..FILES {
                let lies = shop.behind.join(name(number));
                assert_eq!(fs::read_to_string(&lies).unwrap(), content(number) + "+", "{kind}");
                fs::remove_file(lies).unwrap();
                fs::remove_file(shop.behind.join(format!("link-{}", name(number)))).unwrap();
            }
        }
    }
}

#[test]
fn a_file_is_found_by_whichever_of_its_names_is_left() {
    if skip_mounted() {
        return;
    }
    for kind in DISKS {
        let shop = Shop::on(kind);
        for gone in ["one", "two"] {
            let left = if gone == "one" { "two" } else { "one" };
            put(&shop.behind.join("one"), "linked");
            fs::hard_link(shop.behind.join("one"), shop.behind.join("two")).unwrap();
            for name in ["one", "two"] {
                assert_eq!(fs::read(shop.scope.join(name)).unwrap(), b"linked", "{kind}");
            }
            fs::remove_file(shop.behind.join(gone)).unwrap();
            let mut file = File::options().append(true).open(shop.scope.join(left)).unwrap();
            file.write_all(b" and written").unwrap();
            assert_eq!(fs::read(shop.scope.join(left)).unwrap(), b"linked and written", "{kind}");
            assert!(!shop.scope.join(gone).exists(), "{kind}");
            fs::remove_file(shop.scope.join(left)).unwrap();
        }
    }
}

/// Waits until the daemon has none of these open for writing: what was idle for a moment is closed.
fn closed(shop: &Shop, below: &Path) {
    let end = Instant::now() + Duration::from_secs(60);
    let is_open = || {
        shop.rig.pids().iter().any(|pid| {
            fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().any(|fd| {
                let flags = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd.file_name().display()));
                let writes =
                    flags.is_ok_and(|text| text.lines().any(|line| line.starts_with("flags:") && line.ends_with('2')));
                writes && fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(below))
            })
        })
    };
    while is_open() {
        assert!(Instant::now() < end, "a file stays open for writing");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_open_file_stays_that_file_when_its_name_is_moved_replaced_or_removed_behind_the_mount() {
    if skip_mounted() {
        return;
    }
    for kind in DISKS {
        let shop = Shop::on(kind);
        // A log that is moved aside: the next lines go to it.
        let mut log = File::options().append(true).create(true).open(shop.scope.join("log")).unwrap();
        log.write_all(b"first\n").unwrap();
        fs::rename(shop.behind.join("log"), shop.behind.join("log.1")).unwrap();
        put(&shop.behind.join("log"), "new\n");
        closed(&shop, &shop.behind);
        log.write_all(b"second\n").unwrap();
        assert_eq!(log.metadata().unwrap().len(), 13, "{kind}");
        assert_eq!(fs::read(shop.behind.join("log.1")).unwrap(), b"first\nsecond\n", "{kind}");
        assert_eq!(fs::read(shop.scope.join("log")).unwrap(), b"new\n", "{kind}");
        // One whose directory is moved.
        fs::create_dir(shop.behind.join("d")).unwrap();
        put(&shop.behind.join("d/file"), "moved");
        let mut file = File::open(shop.scope.join("d/file")).unwrap();
        fs::rename(shop.behind.join("d"), shop.behind.join("e")).unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "moved", "{kind}");
        // One that is replaced, and one that is removed, before they are read.
        for replace in [true, false] {
            put(&shop.behind.join("feed"), "old feed");
            let mut feed = File::open(shop.scope.join("feed")).unwrap();
            put(&shop.behind.join("feed.new"), "new feed");
            match replace {
                true => fs::rename(shop.behind.join("feed.new"), shop.behind.join("feed")).unwrap(),
                false => fs::remove_file(shop.behind.join("feed")).unwrap(),
            }
            closed(&shop, &shop.behind);
            let mut read = String::new();
            feed.read_to_string(&mut read).unwrap();
            assert_eq!(read, "old feed", "{kind}");
        }
        // One of the release that was copied up since.
        let mut theirs = File::open(shop.scope.join("theirs")).unwrap();
        fs::set_permissions(shop.scope.join("theirs"), PermissionsExt::from_mode(0o640)).unwrap();
        put(&shop.behind.join("new"), "new");
        fs::rename(shop.behind.join("new"), shop.behind.join("theirs")).unwrap();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        let mut read = String::new();
        theirs.read_to_string(&mut read).unwrap();
        assert_eq!(read, "theirs", "{kind}");
        // One that was made and written a while ago, when the kernel remembers nothing of its disk.
        let made = File::options().read(true).write(true).create_new(true).open(shop.scope.join("made")).unwrap();
        made.write_at(b"made", 0).unwrap();
        closed(&shop, &shop.behind);
        fs::rename(shop.behind.join("made"), shop.behind.join("made.1")).unwrap();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        made.write_at(b"M", 0).unwrap();
        assert_eq!(fs::read(shop.behind.join("made.1")).unwrap(), b"Made", "{kind}");
        closed(&shop, &shop.behind);
        fs::remove_file(shop.behind.join("made.1")).unwrap();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        let mut read = [0; 4];
        made.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, *b"Made", "{kind}");
        // One that was made, and replaced before anything was written.
        let made = File::options().read(true).write(true).create_new(true).open(shop.scope.join("empty")).unwrap();
        put(&shop.behind.join("empty.new"), "new");
        fs::rename(shop.behind.join("empty.new"), shop.behind.join("empty")).unwrap();
        made.write_at(b"made", 0).unwrap();
        let mut read = [0; 4];
        made.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, *b"made", "{kind}");
        assert_eq!(fs::read(shop.behind.join("empty")).unwrap(), b"new", "{kind}");
        // What is moved out of the layer is out of reach.
        put(&shop.behind.join("secret"), "secret");
        let outside = shop.behind.join("../../../secret");
        let mut file = File::options().append(true).open(shop.scope.join("secret")).unwrap();
        fs::rename(shop.behind.join("secret"), &outside).unwrap();
        closed(&shop, &shop.behind);
        assert!(file.write_all(b"more").is_err(), "{kind}");
        assert_eq!(fs::read(&outside).unwrap(), b"secret", "{kind}");
    }
}

/// What is done to names, through the mount or behind it.
#[derive(Clone, Debug)]
enum Step {
    Create(PathBuf, usize),
    Mkdir(PathBuf),
    Symlink(PathBuf, usize),
    /// A file, a symlink or an empty directory.
    Remove(PathBuf),
    /// A file or symlink goes, and at once something else of its name, size and mtime is there.
    Replace(PathBuf, usize),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Append(PathBuf, usize),
    Empty(PathBuf),
    Chmod(PathBuf, u32),
}

/// No two steps write the same, or as much.
fn text(number: usize) -> Vec<u8> {
    format!("{number:04}").into_bytes().repeat(number + 1)
}

fn random_path(random: &mut Chance) -> PathBuf {
    (0..=random.below(3)).map(|_| ["a", "b", "c"][random.below(3)]).collect()
}

fn random_step(random: &mut Chance, number: usize) -> Step {
    let path = random_path(random);
    match random.below(26) {
        0..=3 => Step::Create(path, number),
        4..=6 => Step::Mkdir(path),
        7 | 8 => Step::Symlink(path, number),
        9 | 10 => Step::Remove(path),
        11..=13 => Step::Replace(path, number),
        14..=16 => Step::Link(path, random_path(random)),
        17..=20 => Step::Rename(path, random_path(random)),
        21 => Step::Exchange(path, random_path(random)),
        22 | 23 => Step::Append(path, number),
        24 => Step::Empty(path),
        _ => Step::Chmod(path, [0o600, 0o644, 0o755][random.below(3)]),
    }
}

fn take(top: &Path, step: &Step) -> io::Result<()> {
    // What a symlink leads to is not there.
    let open = |path: &Path| File::options().append(true).open(top.join(path));
    match step {
        Step::Create(path, number) => File::create_new(top.join(path))?.write_all(&text(*number)),
        Step::Mkdir(path) => fs::create_dir(top.join(path)),
        Step::Symlink(path, number) => symlink(format!("{number:04}"), top.join(path)),
        Step::Remove(path) => match top.join(path).symlink_metadata()?.is_dir() {
            true => fs::remove_dir(top.join(path)),
            false => fs::remove_file(top.join(path)),
        },
        Step::Replace(path, number) => {
            let path = top.join(path);
            let was = path.symlink_metadata()?;
            if was.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            fs::remove_file(&path)?;
            if was.is_symlink() {
                return symlink(format!("{number:04}"), path);
            }
            let mut file = File::create_new(path)?;
            file.write_all(&vec![b'a' + (number % 26) as u8; was.len() as usize])?;
            file.set_modified(was.modified()?)
        }
        Step::Link(from, to) => fs::hard_link(top.join(from), top.join(to)),
        Step::Rename(from, to) => fs::rename(top.join(from), top.join(to)),
        Step::Exchange(from, to) => Ok(renameat_with(CWD, top.join(from), CWD, top.join(to), RenameFlags::EXCHANGE)?),
        Step::Append(path, number) => open(path)?.write_all(&text(*number)),
        Step::Empty(path) => File::options().write(true).open(top.join(path))?.set_len(0),
        Step::Chmod(path, mode) => {
            let path = top.join(path);
            match path.symlink_metadata()?.is_symlink() {
                true => Ok(()),
                false => fs::set_permissions(path, PermissionsExt::from_mode(*mode)),
            }
        }
    }
}

/// What an open file holds, how long it says it is, and how many names it has.
fn held(mut file: &File) -> io::Result<(Vec<u8>, u64, u64)> {
    let mut content = Vec::new();
    io::Seek::rewind(&mut file)?;
    file.read_to_end(&mut content)?;
    let meta = file.metadata()?;
    Ok((content, meta.len(), meta.nlink()))
}

/// Random steps, each through the mount or behind it, and the same in a plain directory of the same disk.
fn changed_on_both_sides(kind: &str, seed: u64) {
    let shop = Shop::on(kind);
    // What a release has would show again.
    fs::remove_file(shop.scope.join("theirs")).unwrap();
    let plain = shop.behind.join("../../../plain");
    fs::create_dir(&plain).unwrap();
    let mut random = Chance::new(seed);
    let mut open: Vec<(File, File)> = Vec::new();
    let mut done = Vec::new();
    for number in 0..150 {
        let step = random_step(&mut random, number);
        let behind = random.percent(50);
        // xfs says of a directory that is not empty that it exists.
        let error = |done: io::Result<()>| match done.err().map(|error| (error.raw_os_error(), error.kind())) {
            Some((Some(libc::ENOTEMPTY), _)) => Some((Some(libc::EEXIST), io::ErrorKind::AlreadyExists)),
            other => other,
        };
        let here = error(take(if behind { &shop.behind } else { &shop.scope }, &step));
        let there = error(take(&plain, &step));
        done.push(format!("{}{step:?} -> {there:?}", if behind { "behind: " } else { "" }));
        let last = &done[done.len().saturating_sub(25)..];
        assert_eq!(here, there, "{kind}, seed {seed}, after {last:#?}");
        if random.percent(20) {
            let path = random_path(&mut random);
            let open_in = |top: &Path| File::options().read(true).append(true).open(top.join(&path));
            let both = (open_in(&shop.scope), open_in(&plain));
            assert_eq!(both.0.is_ok(), both.1.is_ok(), "{kind}, seed {seed}: {path:?} after {last:#?}");
            if let (Ok(here), Ok(there)) = both {
                open.push((here, there));
            }
        }
        for (here, there) in &mut open {
            let both = (held(here).unwrap(), held(there).unwrap());
            assert_eq!(both.0, both.1, "{kind}, seed {seed}: an open file after {last:#?}");
            if random.percent(10) {
                for file in [here, there] {
                    file.write_all(&text(number)).unwrap_or_else(|error| panic!("{kind}: {error} after {last:#?}"));
                }
            }
        }
        if number % 10 == 9 {
            let trees = (seen::tree(&shop.scope), seen::tree(&plain));
            assert_eq!(trees.0, trees.1, "{kind}, seed {seed}, after {last:#?}");
            assert_eq!(seen::tree(&shop.behind), trees.1, "{kind}, seed {seed}, on the disk");
        }
    }
}

#[test]
fn what_is_changed_on_both_sides_of_the_mount_is_what_a_plain_directory_has() {
    if skip_mounted() {
        return;
    }
    for seed in 1..=if long() { 100 } else { 4 } {
        for kind in DISKS.into_iter().chain([FEW]) {
            changed_on_both_sides(kind, seed * 0x9e37_79b9);
        }
    }
}
