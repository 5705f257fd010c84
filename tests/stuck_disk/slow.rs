//! A disk that answers slowly, or not for a while, as one of another machine may.

use super::looks::{LetGo, Looks, join, still_stuck, wait_for_requests};
use super::passthrough::Passthrough;
use super::shop::{CODE, EACH, Shop, UPLOADS, random, upload, upload_path};
use super::support::disk::SmallDisk;
use super::support::skip_mounted;
use rustix::fs::{AtFlags, Mode, OFlags};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// What each operation of the slow disk takes. A second would be no other test, only a longer one.
const EACH_TAKES: Duration = Duration::from_millis(250);
/// A look at the other disk is a look at some names on the slow one.
const PATIENCE: Duration = Duration::from_secs(60);
/// As deep as a shop keeps its pictures: a reader there needs many operations more than one who walks to the other disk.
const DEEP: &str = "catalog/product/cache/1/small/a/b";
const READERS: usize = EACH;
const OTHERS: usize = 6;

fn other(number: usize) -> Vec<u8> {
    random(number as u64, 2000)
}

fn is_missing(path: &Path) {
    assert_eq!(fs::metadata(path).unwrap_err().kind(), ErrorKind::NotFound, "{}", path.display());
}

/// Reads, looks for what is not there, and writes, by path.
fn use_by_path(dir: &Path) {
    for number in 0..OTHERS / 2 {
        assert!(fs::read(dir.join(format!("{number}"))).unwrap() == other(number));
    }
    is_missing(&dir.join("missing"));
    fs::write(dir.join("new by path"), "new").unwrap();
    fs::write(dir.join("0"), "written by path").unwrap();
}

/// The same from the directory.
fn use_from(dir: &File) {
    let open = |name: &str, flags| rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644)).map(File::from);
    for number in OTHERS / 2..OTHERS {
        let mut content = Vec::new();
        open(&format!("{number}"), OFlags::RDONLY).unwrap().read_to_end(&mut content).unwrap();
        assert!(content == other(number));
    }
    rustix::fs::statat(dir, "missing from here", AtFlags::empty()).unwrap_err();
    open("new from here", OFlags::WRONLY | OFlags::CREATE).unwrap().write_all(b"new").unwrap();
    let flags = OFlags::WRONLY | OFlags::TRUNC;
    open(&format!("{}", OTHERS - 1), flags).unwrap().write_all(b"written from here").unwrap();
}

fn other_is_right(dir: &Path) {
    let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(text("new by path"), "new");
    assert_eq!(text("new from here"), "new");
    assert_eq!(&text_or_bytes(&dir.join("0"))[..15], b"written by path");
    assert_eq!(text(&format!("{}", OTHERS - 1)), "written from here");
    assert!(text_or_bytes(&dir.join("1")) == other(1));
}

fn text_or_bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

#[test]
fn a_slow_disk_makes_neither_releases_nor_another_disk_wait() {
    if skip_mounted() {
        return;
    }
    let mut shop = Shop::new();
    let disk = Passthrough::mount(shop.rig.root());
    shop.open(disk.path(), |tree| tree);
    for number in 0..READERS {
        shop.upload(&upload_path(DEEP, number), &upload(DEEP, number));
    }
    shop.dir("other");
    let other_disk = SmallDisk::in_memory(&shop.behind("other"));
    for number in 0..OTHERS {
        shop.upload(&format!("other/{number}"), &other(number));
    }
    let connection = shop.mount();
    let scope = shop.scope();
    // The directories are known; what is in them is not.
    let (deep, opened) = (scope.join(DEEP), File::open(scope.join("other")).unwrap());
    for dir in UPLOADS.into_iter().chain([DEEP]) {
        fs::metadata(scope.join(dir)).unwrap();
    }
    let gate = disk.gate();
    thread::scope(|threads| {
        let _fast = LetGo(gate);
        gate.slow(EACH_TAKES);
        let read = |number| fs::read(deep.join(format!("{number:02}.jpg"))).unwrap() == upload(DEEP, number);
        let readers: Vec<_> = (0..READERS).map(|number| threads.spawn(move || assert!(read(number)))).collect();
        let scope = &scope;
        let look = |number: usize| is_missing(&scope.join(UPLOADS[number % 3]).join(format!("missing-{number}")));
        let lookers: Vec<_> = (0..READERS).map(|number| threads.spawn(move || look(number))).collect();
        wait_for_requests(connection, READERS);
        Looks::patient(PATIENCE)
            .with("1,000 files of the release", || shop.read_code(0..CODE))
            .with("status", || shop.status("1"))
            .with("files on another disk, by path", || use_by_path(&scope.join("other")))
            .with("files on another disk, from their directory", || use_from(&opened))
            .are_answered(gate, "while 64 read and 64 look for names on a slow disk");
        let left = readers.iter().filter(|reader| !reader.is_finished()).count();
        eprintln!("{left} of {READERS} readers of the slow disk are left when all others are done");
        assert!(left > 0, "all readers of the slow disk were done before those who do not need it");
        gate.open();
        join(readers);
        join(lookers);
    });
    other_is_right(&scope.join("other"));
    other_is_right(other_disk.path());
    for dir in UPLOADS {
        shop.look_at_uploads(dir);
    }
    drop(opened);
    shop.umount();
}

const WRITERS: usize = 16;
const MAKERS: usize = 4;

#[test]
fn requests_for_uploads_never_hold_all_threads_that_serve() {
    if skip_mounted() {
        return;
    }
    let mut shop = Shop::new();
    let disk = Passthrough::mount(shop.rig.root());
    shop.open(disk.path(), |tree| tree);
    for maker in 0..MAKERS {
        shop.dir(&format!("make-{maker}"));
    }
    let mut late = Vec::new();
    for (round, threads) in ["8", "2", "1"].into_iter().enumerate() {
        for writer in 0..WRITERS {
            shop.upload(&format!("write/{round}-{writer}"), b"before");
        }
        shop.rig.setting("serve", "threads", threads);
        let connection = shop.mount();
        late.extend(hold_all(&shop, &disk, connection, round).into_iter().map(|look| format!("{threads}: {look}")));
        let scope = shop.scope();
        for writer in 0..WRITERS {
            assert_eq!(fs::read_to_string(scope.join(format!("write/{round}-{writer}"))).unwrap(), "behind");
        }
        for maker in 0..MAKERS {
            assert_eq!(fs::read_to_string(scope.join(format!("make-{maker}/{round}"))).unwrap(), "made");
        }
        shop.umount();
    }
    assert!(late.is_empty(), "by serve.threads, while the disk of the uploads hangs, not answered: {late:#?}");
}

/// Holds 64 reads, 64 lookups and some changes; what of the release was not answered meanwhile.
fn hold_all(shop: &Shop, disk: &Passthrough, connection: u32, round: usize) -> Vec<String> {
    let (scope, gate) = (shop.scope(), disk.gate());
    let open = |path: &str| File::options().read(true).write(true).open(scope.join(path)).unwrap();
    let uploads: Vec<_> = (0..READERS).map(|number| open(&upload_path(UPLOADS[0], number))).collect();
    let written: Vec<_> = (0..WRITERS).map(|number| open(&format!("write/{round}-{number}"))).collect();
    let (missing, scope) = (scope.join(UPLOADS[1]), &scope);
    fs::metadata(&missing).unwrap();
    (0..MAKERS).for_each(|maker| drop(fs::metadata(scope.join(format!("make-{maker}"))).unwrap()));
    thread::scope(|threads| {
        let _open = LetGo(gate);
        gate.hold(|asked| match asked.operation {
            "read" | "write" | "create" | "mknod" => true,
            "lookup" => asked.path.to_string_lossy().contains("missing"),
            _ => false,
        });
        let mut stuck: Vec<_> = uploads
            .iter()
            .enumerate()
            .map(|(number, mut file)| {
                threads.spawn(move || {
                    let mut content = Vec::new();
                    file.read_to_end(&mut content).unwrap();
                    assert!(content == upload(UPLOADS[0], number), "upload {number}");
                })
            })
            .collect();
        let missing = &missing;
        let look = |number: usize| is_missing(&missing.join(format!("missing-{number}")));
        stuck.extend((0..READERS).map(|number| threads.spawn(move || look(number))));
        stuck.extend(written.iter().map(|file| threads.spawn(move || file.write_all_at(b"behind", 0).unwrap())));
        let make = |maker: usize| fs::write(scope.join(format!("make-{maker}/{round}")), "made").unwrap();
        stuck.extend((0..MAKERS).map(|maker| threads.spawn(move || make(maker))));
        wait_for_requests(connection, stuck.len());
        let missed = Looks::new()
            .with("300 files of the release", || shop.read_code(0..300))
            .with("the list of the docroot", || assert_eq!(fs::read_dir(&shop.rig.mnt).unwrap().count(), 3))
            .with("status", || shop.status("1"))
            .unanswered(gate);
        if missed.is_empty() {
            still_stuck(&stuck);
        }
        gate.open();
        join(stuck);
        missed
    })
}
