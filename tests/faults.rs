//! Faults of the disks below a mount: what the log and the status say of them, and that they end by themselves.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::disk::{CutOff, SmallDisk};
use support::tree::Tree;
use support::user::{User, WWW_DATA};
use support::{Rig, skip_mounted};

/// How often each thing that fails is tried.
const TRIES: u64 = 10;

/// Longer than a file that is not packed must be, and than what is read at once.
fn film() -> Vec<u8> {
    (0..8 << 20u32).map(|at| (at >> 12) as u8 ^ at as u8).collect()
}

/// A mounted store with the scope `media`; where its layer lies, if not in the store.
fn mounted(rig: &mut Rig, layer: Option<&Path>) {
    let mut args = vec!["init", rig.store.to_str().unwrap(), "--writable", "media", "--owner", "www-data:www-data"];
    if let Some(layer) = layer {
        args.extend(["--media", layer.to_str().unwrap()]);
    }
    rig.ok(&args);
    rig.setting("switch", "share_second", "true");
    rig.add("01", &Tree::new().file("index.html", "one").file("film", film()));
    rig.add("02", &Tree::new().file("index.html", "two"));
    rig.ok(&["switch", "01"]);
    rig.mount();
}

fn append(path: &Path) -> std::io::Result<()> {
    File::options().append(true).open(path)?.write_all(b"more")
}

fn errno<T>(done: std::io::Result<T>) -> Option<i32> {
    done.err().map(|error| error.raw_os_error().unwrap())
}

/// The lines of the log that say all of this.
fn lines(rig: &Rig, says: &[&str]) -> usize {
    let log = fs::read_to_string(&rig.log).unwrap();
    log.lines().filter(|line| says.iter().all(|word| line.contains(word)) && !line.contains("works again")).count()
}

/// What the status calls degraded, a line each.
fn degraded(rig: &Rig) -> Vec<String> {
    let status = rig.json(&["status"]);
    status["degraded"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

/// What is degraded, which must be one thing, and say all of this.
fn is_degraded(rig: &Rig, says: &[&str]) {
    let found = degraded(rig);
    assert_eq!(found.len(), 1, "{found:?}");
    for word in says {
        assert!(found[0].contains(word), "{word} is not said: {found:?}");
    }
}

/// Waits until nothing is degraded any more, without any request.
fn gets_well(rig: &Rig) {
    let end = Instant::now() + Duration::from_secs(90);
    while !degraded(rig).is_empty() {
        assert!(Instant::now() < end, "{:?}", degraded(rig));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How many writes were refused as outside the scopes, as upcalls and as the list counts them.
fn refused(rig: &Rig) -> (Value, Value) {
    let status = rig.json(&["status"]);
    (status["upcalls"]["refused_write"].clone(), status["refused"]["total"].clone())
}

fn kind(rig: &Rig, error: &str) -> u64 {
    let status = rig.json(&["status"]);
    let kinds = status["faults"]["kinds"].as_array().unwrap();
    kinds.iter().filter(|kind| kind["error"] == error).map(|kind| kind["count"].as_u64().unwrap()).sum()
}

#[test]
fn a_read_only_disk_of_the_uploads_is_told_once_and_is_no_refused_write() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let disk = SmallDisk::beside(&rig, "ext4");
    let layer = disk.path().join("layer");
    fs::create_dir(&layer).unwrap();
    mounted(&mut rig, Some(&layer));
    let upload = rig.mnt.join("media/a");
    fs::write(&upload, "a").unwrap();
    disk.set_read_only(true);

    for _ in 0..TRIES {
        assert_eq!(errno(append(&upload)), Some(libc::EROFS));
    }
    let below = layer.join("media/media/a");
    let says = ["opening for writing", below.to_str().unwrap(), "Read-only file system"];
    assert_eq!(lines(&rig, &says), 1);
    is_degraded(&rig, &[&says[..], &["10 times since"]].concat());
    assert_eq!(kind(&rig, "EROFS"), TRIES);
    // Other operations of the same disk are other faults; other paths are not.
    for name in ["b", "c", "d"] {
        assert_eq!(errno(fs::write(rig.mnt.join("media").join(name), "x")), Some(libc::EROFS));
    }
    assert_eq!(degraded(&rig).len(), 2);
    assert_eq!(lines(&rig, &["Read-only file system"]), 2);
    assert_eq!(refused(&rig), (0.into(), 0.into()));
    assert_eq!(errno(fs::write(rig.mnt.join("index.php"), "x")), Some(libc::EROFS));
    assert_eq!(refused(&rig), (1.into(), 1.into()), "that one is outside the scopes");
    assert_eq!(fs::read_to_string(&upload).unwrap(), "a", "what can be read is served");

    disk.set_read_only(false);
    gets_well(&rig);
    append(&upload).unwrap();
    rig.umount();
}

#[test]
fn a_read_only_disk_of_the_store_is_told_and_what_it_has_is_served() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let disk = SmallDisk::in_one_group(&rig.root().join("disk.img"), &rig.store);
    mounted(&mut rig, None);
    fs::write(rig.mnt.join("media/a"), "a").unwrap();
    disk.set_read_only(true);

    for _ in 0..TRIES {
        assert_eq!(errno(append(&rig.mnt.join("media/a"))), Some(libc::EROFS));
    }
    let below = rig.store.join("media/media/a");
    is_degraded(&rig, &[below.to_str().unwrap(), "Read-only file system"]);
    assert_eq!(lines(&rig, &["Read-only file system"]), 1);
    let switch = rig.verfs(&["switch", "02"]);
    assert_eq!(switch.code, 1, "{switch:?}");
    assert!(switch.stderr.contains(rig.store.to_str().unwrap()), "{switch:?}");
    assert!(switch.stderr.contains("Read-only file system"), "{switch:?}");
    assert_eq!(fs::read_to_string(rig.mnt.join("index.html")).unwrap(), "one");

    disk.set_read_only(false);
    gets_well(&rig);
    rig.ok(&["switch", "02"]);
    assert_eq!(fs::read_to_string(rig.mnt.join("index.html")).unwrap(), "two");
    rig.umount();
}

/// Reads a file of the mount whose disk ends before its content, again and again; then the disk is put right.
fn unreadable(rig: &Rig, (image, below): (&Path, &Path), seen: &Path, says: &[&str]) {
    let cut = CutOff::before(image, below);
    for _ in 0..TRIES {
        assert_eq!(errno(fs::read(seen)), Some(libc::EIO));
    }
    assert_eq!(lines(rig, says), 1);
    is_degraded(rig, says);
    assert!(kind(rig, "EIO") >= TRIES);
    assert_eq!(refused(rig), (0.into(), 0.into()));
    cut.mend();
    gets_well(rig);
    assert!(fs::read(seen).unwrap() == film(), "it is another");
}

#[test]
fn an_upload_that_the_disk_cannot_read_is_told_once_until_it_can() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let (image, layer) = (rig.root().join("disk.img"), rig.root().join("layer"));
    let _disk = SmallDisk::in_one_group(&image, &layer);
    mounted(&mut rig, Some(&layer));
    let upload = rig.mnt.join("media/film");
    fs::write(&upload, film()).unwrap();
    unreadable(&rig, (&image, &layer.join("media/media/film")), &upload, &["Input/output error"]);
    rig.umount();
}

/// The file that holds the content of the release's film.
fn object(rig: &Rig) -> PathBuf {
    let hash = blake3::hash(&film()).to_hex();
    rig.store.join("objects").join(&hash[..2]).join(&hash[2..])
}

#[test]
fn an_object_that_the_disk_cannot_read_is_told_once_until_it_can() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let image = rig.root().join("disk.img");
    let _disk = SmallDisk::in_one_group(&image, &rig.store);
    mounted(&mut rig, None);
    let object = object(&rig);
    let says = ["reading", object.to_str().unwrap(), "Input/output error"];
    unreadable(&rig, (&image, &object), &rig.mnt.join("film"), &says);
    rig.umount();
}

#[test]
fn an_object_that_is_cut_off_is_told_until_a_whole_one_takes_its_place() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    mounted(&mut rig, None);
    let (object, whole) = (object(&rig), rig.store.join("whole"));
    fs::copy(&object, &whole).unwrap();
    // So the daemon has it open already.
    File::open(rig.mnt.join("film")).unwrap().read_exact(&mut [0; 100]).unwrap();
    File::options().write(true).open(&object).unwrap().set_len(4 << 20).unwrap();
    for _ in 0..TRIES {
        assert_eq!(errno(fs::read(rig.mnt.join("film"))), Some(libc::EIO));
    }
    let says = [object.to_str().unwrap()];
    assert!((1..=2).contains(&lines(&rig, &says)), "read while it is open, and opened anew");
    assert!(!degraded(&rig).is_empty());
    fs::rename(&whole, &object).unwrap();
    gets_well(&rig);
    assert!(fs::read(rig.mnt.join("film")).unwrap() == film());
    rig.umount();
}

#[test]
fn an_object_that_is_missing_is_told_until_it_is_back() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    mounted(&mut rig, None);
    let (object, aside) = (object(&rig), rig.root().join("aside"));
    fs::rename(&object, &aside).unwrap();
    for _ in 0..TRIES {
        assert_eq!(errno(fs::read(rig.mnt.join("film"))), Some(libc::EIO));
    }
    let says = [object.to_str().unwrap(), "is missing"];
    assert_eq!(lines(&rig, &says), 1);
    is_degraded(&rig, &says);
    assert!(kind(&rig, "damaged") >= TRIES);
    fs::rename(&aside, &object).unwrap();
    gets_well(&rig);
    assert!(fs::read(rig.mnt.join("film")).unwrap() == film());
    rig.umount();
}

/// Every verb that needs rights to the store, as it is typed.
fn verbs(rig: &Rig) -> Vec<Vec<String>> {
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (out, source) = (path(&rig.root().join("out")), path(&rig.src.join("01")));
    let words: [&[&str]; 14] = [
        &["switch", "01"],
        &["switch", "--dry-run", "01"],
        &["rollback"],
        &["rollback", "01"],
        &["diff", "01", "02"],
        &["export", "01", &out],
        &["list"],
        &["remove", "01"],
        &["gc"],
        &["verify"],
        &["verify", "01"],
        &["add", "03", &source],
        &["reload"],
        &["media", "restore", "media/a"],
    ];
    words.iter().map(|words| words.iter().map(|word| (*word).to_owned()).collect()).collect()
}

/// Each verb says that this user may not, and of what; never that there is nothing.
fn each_verb_says_that_it_may_not(rig: &Rig, user: User<'_>) {
    for verb in verbs(rig) {
        let outcome = rig.verfs_as(user, &verb);
        let text = outcome.stderr.to_lowercase();
        assert_eq!(outcome.code, 1, "{verb:?}: {outcome:?}");
        assert!(text.contains("permission denied") || text.contains("may not"), "{verb:?}: {outcome:?}");
        assert!(text.contains("root") && outcome.stderr.contains(rig.store.to_str().unwrap()), "{verb:?}: {outcome:?}");
        for wrong in ["empty", "no release", "no store", "not mounted", "is active", "damaged"] {
            assert!(!text.contains(wrong), "{verb:?}: {outcome:?}");
        }
        let mut json = verb.clone();
        json.push("--json".into());
        let outcome = rig.verfs_as(user, &json);
        let value: Value = serde_json::from_str(&outcome.stderr).unwrap_or_else(|_| panic!("{verb:?}: {outcome:?}"));
        assert_eq!(value["code"], 1, "{verb:?}: {outcome:?}");
        assert!(value["error"].as_str().unwrap().contains("root"), "{verb:?}: {outcome:?}");
    }
}

#[test]
fn who_may_not_look_into_the_store_is_told_so_and_not_that_it_is_empty() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    mounted(&mut rig, None);
    rig.ok(&["switch", "02"]);
    each_verb_says_that_it_may_not(&rig, WWW_DATA);
    let status = rig.verfs_as(WWW_DATA, &["status"]);
    assert!(status.code == 1 && status.stderr.contains("root"), "{status:?}");
    rig.umount();
    each_verb_says_that_it_may_not(&rig, WWW_DATA);
    assert_eq!(rig.json(&["status"])["release"], "02", "nothing was done");
}

#[test]
fn a_store_that_cannot_be_reached_is_not_called_missing() {
    assert!(rustix::process::geteuid().is_root(), "only root can become another user");
    let rig = Rig::new();
    let closed = rig.root().join("closed");
    fs::create_dir(&closed).unwrap();
    let store = closed.join("store");
    rig.ok(&["init", store.to_str().unwrap()]);
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let outcome = rig.verfs_as(WWW_DATA, &["list", "--store", store.to_str().unwrap()]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("Permission denied") && outcome.stderr.contains("as root"), "{outcome:?}");
    assert!(!outcome.stderr.contains("no store"), "{outcome:?}");
}

/// More than there are threads that answer the kernel.
const MANY: usize = 100;

#[test]
fn a_panic_fails_the_request_that_met_it_and_nothing_else() {
    if skip_mounted() {
        return;
    }
    let size = |path: &Path| File::options().write(true).open(path)?.set_len(3);
    type Ask<'a> = &'a dyn Fn(&Rig) -> std::io::Result<()>;
    let asks: [(&str, Ask<'_>); 4] = [
        ("opendir", &|rig| fs::read_dir(&rig.mnt).map(drop)),
        ("mkdir", &|rig| fs::create_dir(rig.mnt.join("media/d"))),
        ("setattr", &|rig| size(&rig.mnt.join("media/file"))),
        ("statfs", &|rig| Ok(rustix::fs::statfs(&rig.mnt).map(drop)?)),
    ];
    for (operation, ask) in asks {
        let mut rig = Rig::new();
        let fault = format!("panic:{operation}");
        rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
        rig.add("01", &Tree::new().file("index.html", "one").file("film", film()));
        rig.mount_with_env(&[("VERFS_FAULT", &fault)]);
        fs::write(rig.mnt.join("media/file"), "before").unwrap();
        for _ in 0..MANY {
            assert_eq!(errno(ask(&rig)), Some(5), "{operation}: EIO");
        }
        assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one", "{operation}");
        assert_eq!(fs::read(rig.mnt.join("film")).unwrap(), film(), "{operation}");
        assert_eq!(fs::read(rig.mnt.join("media/file")).unwrap(), b"before", "{operation}");
        assert_eq!(lines(&rig, &["ERROR", "VERFS_FAULT: at", operation]), MANY, "{operation}");
        let log = fs::read_to_string(&rig.log).unwrap();
        assert!(log.contains("Adapter"), "the calls that led there are in the log");
        rig.umount();
        rig.mount();
        ask(&rig).unwrap();
        rig.umount();
    }
}
