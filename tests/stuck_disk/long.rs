//! Long pieces of work in a scope: large files of the release that are copied up, and many that are removed.

use super::looks::{LetGo, Looks, SHORT_PATIENCE, Times, join, still_stuck, wait_for_requests, wait_until};
use super::passthrough::Passthrough;
use super::shop::{EACH, Shop, UPLOADS, random, upload, upload_path};
use super::support::skip_mounted;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread;

/// The disk holds what is written behind this.
const HELD_FROM: u64 = 1 << 20;
/// So many visits while a piece of work is held in the middle.
const VISITS: usize = 40;

fn large(number: usize) -> Vec<u8> {
    random(number as u64, (HELD_FROM + (600 << 10)) as usize)
}

/// What visitors do meanwhile: each visit is its own names, of which the kernel has not heard.
struct Visits<'a> {
    shop: &'a Shop,
    done: usize,
    times: Times,
}

impl Visits<'_> {
    fn new(shop: &Shop) -> Visits<'_> {
        Visits { shop, done: 0, times: Times::default() }
    }

    /// Where they write, which must be there before.
    fn dirs(shop: &Shop) {
        shop.dir("visits");
        shop.upload("visits/known", b"known");
    }

    fn one(&mut self) {
        let (scope, number) = (self.shop.scope(), self.done);
        let (dir, at) = (UPLOADS[number / EACH % UPLOADS.len()], number % EACH);
        let missing = scope.join(dir).join(format!("missing-{number}"));
        self.times.note(|| assert!(fs::read(scope.join(upload_path(dir, at))).unwrap() == upload(dir, at)));
        self.times.note(|| assert_eq!(fs::metadata(missing).unwrap_err().kind(), io::ErrorKind::NotFound));
        self.times.note(|| fs::write(scope.join("visits/known"), format!("{number}")).unwrap());
        self.times.note(|| fs::write(scope.join(format!("visits/{number}")), format!("{number}")).unwrap());
        self.times.note(|| fs::write(scope.join(format!("top-{number}")), format!("{number}")).unwrap());
        self.done += 1;
    }

    fn are_right(&self) {
        let scope = self.shop.scope();
        for number in 0..self.done {
            for path in [format!("visits/{number}"), format!("top-{number}")] {
                assert_eq!(fs::read_to_string(scope.join(&path)).unwrap(), format!("{number}"), "{path}");
            }
        }
    }
}

/// How a large file gets another name, in directories of its own.
struct Naming {
    what: &'static str,
    to: &'static str,
    name: fn(&Path, &Path) -> io::Result<()>,
}

const NAMINGS: [Naming; 3] = [
    Naming { what: "rename", to: "rename/to", name: |from, to| fs::rename(from, to) },
    Naming { what: "link", to: "link/to", name: |from, to| fs::hard_link(from, to) },
    Naming { what: "move", to: "moved/to", name: |from, to| fs::rename(from, to) },
];

#[test]
fn a_large_file_that_is_copied_up_for_a_new_name_makes_nobody_wait() {
    if skip_mounted() {
        return;
    }
    let mut shop = Shop::new();
    let disk = Passthrough::mount(shop.rig.root());
    shop.open(disk.path(), |mut tree| {
        for (number, naming) in NAMINGS.iter().enumerate() {
            tree = tree.file(format!("media/{}/large", naming.what), large(number));
        }
        tree.dir("media/moved")
    });
    Visits::dirs(&shop);
    NAMINGS.iter().for_each(|naming| shop.upload(&format!("{}/known", naming.what), b"known"));
    let connection = shop.mount();
    let (scope, gate) = (shop.scope(), disk.gate());
    let mut late = Vec::new();
    for (number, naming) in NAMINGS.iter().enumerate() {
        let (dir, to) = (scope.join(naming.what), scope.join(naming.to));
        assert_eq!(fs::read_to_string(dir.join("known")).unwrap(), "known");
        let mut visits = Visits { done: number * 3 * VISITS, ..Visits::new(&shop) };
        let what = naming.what;
        thread::scope(|threads| {
            let _open = LetGo(gate);
            gate.hold(|asked| asked.operation == "write" && asked.offset >= HELD_FROM);
            let held = vec![threads.spawn(|| (naming.name)(&dir.join("large"), &to))];
            wait_until(what, || gate.held() == 1);
            wait_for_requests(connection, 1);
            let missed = Looks::patient(SHORT_PATIENCE)
                .with(format!("{what}: visits elsewhere"), || (0..VISITS).for_each(|_| visits.one()))
                .with(format!("{what}: a name in its directory"), || {
                    assert_eq!(fs::read_to_string(dir.join("known")).unwrap(), "known");
                })
                .with(format!("{what}: a name in its directory that nobody asked for yet"), || {
                    assert!(!dir.join("unknown").exists());
                })
                .unanswered(gate);
            match missed.is_empty() {
                true => still_stuck(&held),
                false => late.extend(missed),
            }
            gate.open();
            join(held).into_iter().for_each(|done| done.unwrap_or_else(|error| panic!("{what}: {error}")));
        });
        eprintln!("{} while a large file is copied up for a {what}", visits.times);
        assert!(fs::read(&to).unwrap() == large(number), "{what}");
        assert_eq!(dir.join("large").exists(), what == "link", "{what}");
        for visit in visits.done - VISITS..visits.done {
            assert_eq!(fs::read_to_string(scope.join(format!("visits/{visit}"))).unwrap(), format!("{visit}"));
        }
    }
    assert!(late.is_empty(), "while a large file was copied up, these were not answered: {late:#?}");
    shop.umount();
}

/// Files of the release in one directory.
const MANY: usize = 800;

#[test]
fn many_files_of_a_release_that_are_removed_make_nobody_wait() {
    if skip_mounted() {
        return;
    }
    let mut shop = Shop::new();
    let disk = Passthrough::mount(shop.rig.root());
    shop.open(disk.path(), |tree| {
        (0..MANY).fold(tree, |tree, number| tree.file(format!("media/shelf/many/f{number:05}"), ""))
    });
    Visits::dirs(&shop);
    shop.mount();
    let (many, gate) = (shop.scope().join("shelf/many"), disk.gate());
    let mut visits = Visits::new(&shop);
    thread::scope(|threads| {
        let _open = LetGo(gate);
        // With the directory goes what says of each of its files that it is removed: this one holds the work up.
        let middle = format!("f{:05}", MANY / 2);
        gate.hold(move |asked| asked.operation == "unlink" && asked.path.ends_with(&middle));
        let removal = vec![threads.spawn(|| fs::remove_dir_all(&many))];
        let is_held = || gate.held() == 1 || removal[0].is_finished();
        Looks::new()
            .with("visits while the files are removed", || {
                while !is_held() {
                    visits.one();
                }
            })
            .are_answered(gate, "beside an rm -rf of many files of the release");
        let beside = visits.done;
        let held = !removal[0].is_finished();
        Looks::new()
            .with("visits while the directory is removed", || (0..VISITS).for_each(|_| visits.one()))
            .are_answered(gate, "beside the end of an rm -rf of many files of the release");
        if held {
            still_stuck(&removal);
        }
        gate.open();
        join(removal).into_iter().for_each(|done| done.unwrap());
        assert!(beside > 20, "only {beside} visits while {MANY} files were removed");
        eprintln!("{} while {MANY} files of the release are removed", visits.times);
    });
    visits.are_right();
    assert!(!many.exists());
    fs::create_dir(&many).unwrap();
    assert_eq!(fs::read_dir(&many).unwrap().count(), 0, "what was removed came back");
    drop(File::create_new(many.join("f00000")).unwrap());
    drop(visits);
    shop.umount();
    shop.mount();
    assert_eq!(fs::read_dir(&many).unwrap().count(), 1, "what was removed came back");
    shop.umount();
}
