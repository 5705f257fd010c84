//! A disk that answers slowly, or not for a while, as one of another machine may.

use super::looks::{LetGo, Looks, join, still_stuck, wait_for_requests};
use super::passthrough::Passthrough;
use super::shop::{CODE, EACH, Shop, UPLOADS, random, upload, upload_path};
use super::support::disk::SmallDisk;
use super::support::skip_mounted;
use rustix::fs::{Mode, OFlags};
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
/// As deep as a shop keeps its pictures: a reader there needs many operations more than one who walks to the other
/// disk.
const DEEP: &str = "catalog/product/cache/1/image/265x/9df78eab33525d08d6e5fb8d27136e95/c/h/o/c/o";
const READERS: usize = EACH;

fn is_missing(path: &Path) {
    assert_eq!(fs::metadata(path).unwrap_err().kind(), ErrorKind::NotFound, "{}", path.display());
}

/// One thing that somebody does on the other disk, who walks there by path or comes from its directory.
type Visit = fn(&Where<'_>);

/// How the other disk is reached.
enum Where<'a> {
    Path(&'a Path),
    Dir(&'a File),
}

impl Where<'_> {
    /// Opens a name there: a name for each way, so that none is known from the other.
    fn open(&self, name: &str, flags: OFlags) -> rustix::io::Result<File> {
        let mode = Mode::from_raw_mode(0o644);
        let opened = match self {
            Where::Path(path) => rustix::fs::open(path.join(format!("{name} by path")), flags, mode),
            Where::Dir(dir) => rustix::fs::openat(dir, format!("{name} from there"), flags, mode),
        };
        opened.map(File::from)
    }
}

const VISITS: [(&str, Visit); 4] = [
    ("a file that is read", |at| {
        let mut content = Vec::new();
        at.open("read", OFlags::RDONLY).unwrap().read_to_end(&mut content).unwrap();
        assert!(content == on_the_other_disk());
    }),
    ("a name that is not there", |at| assert!(at.open("missing", OFlags::RDONLY).is_err())),
    ("a file that is written to", |at| at.open("write", OFlags::WRONLY).unwrap().write_all(b"visit").unwrap()),
    ("a file that is made", |at| {
        at.open("make", OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL).unwrap().write_all(b"visit").unwrap();
    }),
];

fn on_the_other_disk() -> Vec<u8> {
    random(1, 2000)
}

fn visits_are_right(dir: &Path) {
    for way in ["by path", "from there"] {
        let read = |name: &str| fs::read(dir.join(format!("{name} {way}"))).unwrap();
        assert!(read("read") == on_the_other_disk());
        assert_eq!(read("make"), b"visit");
        assert!(read("write").starts_with(b"visit"));
        assert_eq!(read("write").len(), on_the_other_disk().len());
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), 6);
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
    for name in ["read by path", "read from there", "write by path", "write from there"] {
        shop.upload(&format!("other/{name}"), &on_the_other_disk());
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
        let other = scope.join("other");
        let mut looks = Looks::patient(PATIENCE)
            .with("1,000 files of the release", || shop.read_code(0..CODE))
            .with("a large file of the release", || shop.read_large())
            .with("status", || shop.status("1"));
        for (what, visit) in VISITS {
            let (by_path, from_there) = (Where::Path(&other), Where::Dir(&opened));
            looks = looks
                .with(format!("{what} on another disk, by path"), move || visit(&by_path))
                .with(format!("{what} on another disk, from its directory"), move || visit(&from_there));
        }
        looks.are_answered(gate, "while 64 read and 64 look for names on a slow disk");
        let left = readers.iter().filter(|reader| !reader.is_finished()).count();
        eprintln!("{left} of {READERS} readers of the slow disk are left when all others are done");
        assert!(left > 0, "all readers of the slow disk were done before those who do not need it");
        gate.open();
        join(readers);
        join(lookers);
    });
    visits_are_right(&scope.join("other"));
    visits_are_right(other_disk.path());
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
    (0..MAKERS).for_each(|maker| assert!(scope.join(format!("make-{maker}")).is_dir()));
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
        let look = |number: usize| is_missing(&missing.join(format!("missing-{round}-{number}")));
        stuck.extend((0..READERS).map(|number| threads.spawn(move || look(number))));
        stuck.extend(written.iter().map(|file| threads.spawn(move || file.write_all_at(b"behind", 0).unwrap())));
        let make = |maker: usize| fs::write(scope.join(format!("make-{maker}/{round}")), "made").unwrap();
        stuck.extend((0..MAKERS).map(|maker| threads.spawn(move || make(maker))));
        wait_for_requests(connection, stuck.len());
        let missed = Looks::new()
            .with("300 files of the release", || shop.read_code(0..300))
            .with("a large file of the release", || shop.read_large())
            .with("the list of the docroot", || assert_eq!(fs::read_dir(&shop.rig.mnt).unwrap().count(), 4))
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
