//! A disk that is frozen for a snapshot.

use super::looks::{Hold, LetGo, Looks, SHORT_PATIENCE, join, still_stuck, wait_for_requests};
use super::shop::{CODE, Shop, UPLOADS, upload, upload_path};
use super::support::disk::SmallDisk;
use super::support::frozen::Frozen;
use super::support::skip_mounted;
use super::support::user::WWW_DATA;
use super::writers::{self, Writers};
use std::fs::{self, File};
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

#[test]
fn a_frozen_disk_stops_those_who_write_and_nobody_who_looks() {
    if skip_mounted() {
        return;
    }
    let mut shop = Shop::new();
    let disk = SmallDisk::beside(&shop.rig, "ext4");
    shop.open(disk.path(), |tree| tree);
    shop.dir("touched");
    for (round, release) in [(1, "2"), (2, "1")] {
        let writers = Writers::new(&shop, round);
        let touched = format!("touched/{round}");
        // Anew, so that the kernel knows nothing.
        let connection = shop.mount();
        let scope = shop.scope();
        // All but their directories, for each writer to have a request of his own.
        writers.dirs().chain(["touched"]).for_each(|dir| assert!(scope.join(dir).is_dir()));
        thread::scope(|threads| {
            let frozen = Frozen::freeze(disk.path());
            let touch = scope.join(&touched);
            let mut stuck = vec![threads.spawn(move || drop(File::create_new(touch).unwrap()))];
            wait_for_requests(connection, 1);
            stuck.extend(writers.start(threads, &scope));
            wait_for_requests(connection, 1 + writers::REQUESTS);
            let mut looks = Looks::new()
                .with("1,000 files of the release", || shop.read_code(0..CODE))
                .with("status", || shop.status(if release == "2" { "1" } else { "2" }))
                .with("the lists of the docroot and of the scope", || {
                    for dir in [&shop.rig.mnt, &scope] {
                        assert!(fs::read_dir(dir).unwrap().count() >= 3, "{}", dir.display());
                    }
                });
            for dir in UPLOADS {
                looks = looks.with(format!("uploads in {dir}"), || shop.look_at_uploads(dir));
            }
            looks.are_answered(&frozen, "while a disk is frozen, and 65 wait to change something there");
            Looks::new()
                .with("a switch, and a look at the other release", || shop.switch(release))
                .with("uploads, as the web server's user", || {
                    WWW_DATA.work_in(&scope, || assert!(fs::read(upload_path(UPLOADS[0], 0)).is_ok()));
                })
                .are_answered(&frozen, "while a disk is frozen");
            still_stuck(&stuck);
            frozen.thaw();
            join(stuck);
        });
        writers.are_done(&scope);
        assert_eq!(fs::metadata(scope.join(&touched)).unwrap().len(), 0);
        shop.look_at_uploads(UPLOADS[0]);
        shop.read_code(0..CODE);
        shop.umount();
        writers.are_done(&shop.behind(""));
    }
}

/// A change, in the working directory.
type Change = fn() -> io::Result<()>;

/// Each in a directory of its own, with `known-0.jpg` and others in it, of the uploads and of the release.
const CHANGES: [(&str, Change); 13] = [
    ("touch", || File::create_new("new").map(drop)),
    ("unlink", || fs::remove_file("victim")),
    ("unlink of a release's file", || fs::remove_file("released")),
    ("rename", || fs::rename("victim", "renamed")),
    ("rename of a release's file", || fs::rename("released", "renamed")),
    ("link", || fs::hard_link("victim", "linked")),
    ("mkdir", || fs::create_dir("new")),
    ("rmdir", || fs::remove_dir("empty")),
    ("symlink", || std::os::unix::fs::symlink("victim", "new")),
    ("chmod", || Ok(rustix::fs::chmod("victim", rustix::fs::Mode::from_raw_mode(0o600))?)),
    ("truncate", || File::options().write(true).open("victim")?.set_len(1)),
    ("first write to a release's file", || write_and_sync("released")),
    ("write and fsync", || write_and_sync("victim")),
];

fn write_and_sync(path: &str) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.write_all(b"written")?;
    file.sync_all()
}

/// What is in `dir` when its change is done.
fn is_done(dir: &Path, change: &str) {
    let read = |name: &str| fs::read(dir.join(name)).ok();
    let (victim, released) = (Some(b"victim".to_vec()), Some(b"released".to_vec()));
    match change {
        "touch" => assert_eq!(read("new"), Some(Vec::new())),
        "unlink" => assert_eq!(read("victim"), None),
        "unlink of a release's file" => assert_eq!(read("released"), None),
        "rename" => assert_eq!((read("victim"), read("renamed")), (None, victim)),
        "rename of a release's file" => assert_eq!((read("released"), read("renamed")), (None, released)),
        "link" => assert_eq!((read("victim"), read("linked")), (victim.clone(), victim)),
        "mkdir" => assert!(dir.join("new").is_dir()),
        "rmdir" => assert!(!dir.join("empty").exists()),
        "symlink" => assert_eq!(fs::read_link(dir.join("new")).unwrap(), Path::new("victim")),
        "chmod" => assert_eq!(fs::metadata(dir.join("victim")).unwrap().mode() & 0o777, 0o600),
        "truncate" => assert_eq!(read("victim"), Some(b"v".to_vec())),
        "first write to a release's file" => assert_eq!(read("released"), Some(b"writtend".to_vec())),
        "write and fsync" => assert_eq!(read("victim"), Some(b"written".to_vec())),
        other => panic!("{other}"),
    }
    look_at_known(dir);
}

/// Uploads in each directory that the kernel knows from before.
const KNOWN: usize = 4;

fn known(number: usize) -> Vec<u8> {
    upload("known", number)
}

/// By path, and from the directory.
fn look_at_known(dir: &Path) {
    let open = File::open(dir).unwrap();
    for number in 0..KNOWN {
        look_at(dir, &open, number);
    }
}

fn look_at(dir: &Path, open: &File, number: usize) {
    use rustix::fs::{AtFlags, Mode, OFlags};
    let name = format!("known-{number}.jpg");
    assert_eq!(fs::metadata(dir.join(&name)).unwrap().len(), known(number).len() as u64);
    assert!(fs::read(dir.join(&name)).unwrap() == known(number));
    let stat = rustix::fs::statat(open, &*name, AtFlags::empty()).unwrap();
    assert_eq!(stat.st_size as usize, known(number).len());
    let file = rustix::fs::openat(open, &*name, OFlags::RDONLY, Mode::empty()).unwrap();
    assert_eq!(File::from(file).metadata().unwrap().len() as usize, known(number).len());
}

#[test]
fn whoever_looks_is_answered_in_the_very_directory_of_a_stuck_change() {
    if skip_mounted() {
        return;
    }
    let mut shop = Shop::new();
    let disk = SmallDisk::beside(&shop.rig, "ext4");
    let dir = |number: usize| format!("change-{number:02}");
    shop.open(disk.path(), |tree| {
        (0..CHANGES.len()).fold(tree, |tree, number| tree.file(format!("media/{}/released", dir(number)), "released"))
    });
    for number in 0..CHANGES.len() {
        shop.upload(&format!("{}/victim", dir(number)), b"victim");
        shop.dir(&format!("{}/empty", dir(number)));
        for at in 0..KNOWN {
            shop.upload(&format!("{}/known-{at}.jpg", dir(number)), &known(at));
        }
    }
    // Then each look is a request.
    let toml = shop.rig.store.join("verfs.toml");
    let text = fs::read_to_string(&toml).unwrap();
    fs::write(toml, format!("{text}ttl = \"0s\"\n")).unwrap();
    let connection = shop.mount();
    let mut late = Vec::new();
    for (number, (what, change)) in CHANGES.iter().enumerate() {
        let at = shop.scope().join(dir(number));
        look_at_known(&at);
        let open = File::open(&at).unwrap();
        let other = UPLOADS[number % UPLOADS.len()];
        fs::metadata(at.join("victim")).unwrap();
        thread::scope(|threads| {
            let frozen = Frozen::freeze(disk.path());
            let _thawed = LetGo(&frozen);
            let stuck = vec![threads.spawn(|| WWW_DATA.work_in(&at, change))];
            wait_for_requests(connection, 1);
            let missed = Looks::patient(SHORT_PATIENCE)
                .with(format!("{what}: names in its directory"), || {
                    (0..KNOWN).for_each(|number| look_at(&at, &open, number));
                })
                .with(format!("{what}: uploads in {other}"), || shop.look_at_uploads(other))
                .with(format!("{what}: files of the release"), || shop.read_code(number * 20..number * 20 + 20))
                .unanswered(&frozen);
            match missed.is_empty() {
                true => still_stuck(&stuck),
                false => late.extend(missed),
            }
            frozen.let_go();
            join(stuck).into_iter().for_each(|done| done.unwrap_or_else(|error| panic!("{what}: {error}")));
        });
        is_done(&at, what);
    }
    assert!(late.is_empty(), "while a change was stuck on a frozen disk, these were not answered: {late:#?}");
    drop(late);
    shop.umount();
    shop.mount();
    for (number, (what, _)) in CHANGES.iter().enumerate() {
        is_done(&shop.scope().join(dir(number)), what);
    }
    shop.umount();
}
