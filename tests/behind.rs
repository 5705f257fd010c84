//! Behind the mount: what others do to the files of media where they lie is seen, and nothing is taken for another.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::fs::{CWD, Timespec, Timestamps, utimensat};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::disk::SmallDisk;
use support::tree::Tree;
use support::{Rig, skip_mounted};

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
            kind => SmallDisk::beside(&rig, kind),
        };
        let home = disk.path().join("home");
        fs::create_dir(&home).unwrap();
        rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media", "--media", home.to_str().unwrap()]);
        // Each look is a request.
        let toml = rig.store.join("verfs.toml");
        let text = fs::read_to_string(&toml).unwrap();
        fs::write(toml, format!("{text}ttl = \"0s\"\n")).unwrap();
        rig.add("01", &Tree::new().file("index.html", "one").dir("media"));
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
