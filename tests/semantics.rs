//! The numbered promises of docs/SEMANTICS.md that have no test file of their own, and that the document names real
//! tests.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};
use support::{Rig, skip_mounted};

/// A store with the releases 1 and 2, mounted with 1 active.
fn mounted() -> Rig {
    let mut rig = Rig::new();
    rig.init();
    let source = rig.src.join("tree");
    fs::create_dir_all(source.join("d")).unwrap();
    for n in 0..500 {
        fs::write(source.join(format!("d/old-{n}")), format!("old {n}")).unwrap();
    }
    fs::write(source.join("page"), "one".repeat(50_000)).unwrap();
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    fs::remove_dir_all(source.join("d")).unwrap();
    fs::create_dir(source.join("d")).unwrap();
    fs::write(source.join("d/new"), "new").unwrap();
    fs::write(source.join("page"), "TWO".repeat(70_000)).unwrap();
    rig.ok(&["add", "2", source.to_str().unwrap()]);
    rig.ok(&["switch", "1"]);
    rig.mount();
    rig
}

#[test]
fn an_open_file_and_a_mapping_stay_on_their_release() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let mut open = File::open(rig.mnt.join("page")).unwrap();
    let mut begun = [0; 3];
    open.read_exact(&mut begun).unwrap();
    let mapped = verfs::sys::Mapped::open(&open).unwrap();
    // What was not read before the switch must come from the old release too.
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    for to in ["2", "1", "2"] {
        rig.ok(&["switch", to]);
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        let mut text = String::new();
        open.seek(SeekFrom::Start(0)).unwrap();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one".repeat(50_000));
        assert_eq!(open.metadata().unwrap().len(), 150_000);
        assert_eq!(&mapped[149_997..], b"one");
    }
    assert_eq!(fs::read_to_string(rig.mnt.join("page")).unwrap(), "TWO".repeat(70_000));
}

#[test]
fn a_listing_stays_as_it_was_when_it_began() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let mut listing = rustix::fs::Dir::read_from(File::open(rig.mnt.join("d")).unwrap()).unwrap();
    let mut names = Vec::new();
    for _ in 0..10 {
        names.push(listing.read().unwrap().unwrap().file_name().to_owned());
    }
    rig.ok(&["switch", "2"]);
    names.extend(listing.map(|entry| entry.unwrap().file_name().to_owned()));
    names.retain(|name| !matches!(name.to_bytes(), b"." | b".."));
    names.sort();
    assert_eq!(names.len(), 500);
    names.dedup();
    assert_eq!(names.len(), 500, "no name twice");
    assert!(names.iter().all(|name| name.to_bytes().starts_with(b"old-")));
    // And what it told the kernel on the way does not outlive it.
    assert!(fs::metadata(rig.mnt.join("d/old-400")).is_err());
    let now: Vec<_> = fs::read_dir(rig.mnt.join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(now, ["new"]);
}

#[test]
fn nothing_changes_a_release() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    // The source, while the release is active.
    fs::write(rig.src.join("tree/page"), "scribbled over").unwrap();
    assert_eq!(fs::read_to_string(rig.mnt.join("page")).unwrap(), "one".repeat(50_000));

    let page = rig.mnt.join("page");
    let refused = |what: &str, result: std::io::Result<()>| {
        let error = result.expect_err(what);
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{what}: {error}");
    };
    let other = rig.mnt.join("other");
    refused("create", File::create(&other).map(|_| ()));
    refused("mkdir", fs::create_dir(&other));
    refused("unlink", fs::remove_file(&page));
    refused("rmdir", fs::remove_dir(rig.mnt.join("d")));
    refused("rename", fs::rename(&page, &other));
    refused("link", fs::hard_link(&page, &other));
    refused("symlink", std::os::unix::fs::symlink("page", &other));
    refused("truncate", File::options().write(true).truncate(true).open(&page).map(|_| ()));
    refused("chmod", fs::set_permissions(&page, fs::Permissions::from_mode_bits(0o777)));
    refused("chown", std::os::unix::fs::chown(&page, Some(1), None));
    refused("utimes", File::open(&page).unwrap().set_modified(std::time::SystemTime::now()));
    refused("write", File::options().write(true).open(&page).and_then(|mut file| file.write_all(b"x")));
    refused("append", File::options().append(true).open(&page).and_then(|mut file| file.write_all(b"x")));
    let attribute = rustix::fs::setxattr(&page, "user.a", b"b", rustix::fs::XattrFlags::empty());
    refused("setxattr", attribute.map_err(Into::into));
    assert_eq!(fs::metadata(&page).unwrap().mode() & 0o222, 0, "no write bits");
    rig.ok(&["verify"]);
    assert_eq!(fs::read_to_string(&page).unwrap(), "one".repeat(50_000));
}

trait FromBits {
    fn from_mode_bits(bits: u32) -> Self;
}

impl FromBits for fs::Permissions {
    fn from_mode_bits(bits: u32) -> Self {
        std::os::unix::fs::PermissionsExt::from_mode(bits)
    }
}

#[test]
fn a_dirty_page_of_a_release_file_is_dropped() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let page = rig.mnt.join("page");
    let file = File::options().read(true).write(true).open(&page).unwrap();
    // pwrite reaches the daemon at once; what it left in the cache must go again.
    assert!(file.write_at(b"scribble", 0).is_err());
    let end = Instant::now() + Duration::from_secs(10);
    while fs::read(&page).unwrap()[..8] != *b"oneoneon" {
        assert!(Instant::now() < end, "the scribbled page stays");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn two_contents_of_one_path_never_share_a_second() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    rig.setting("switch", "share_second", "false");
    let source = rig.src.join("tree");
    fs::create_dir_all(&source).unwrap();
    for release in ["1", "2"] {
        fs::write(source.join("page"), release).unwrap();
        rig.ok(&["add", release, source.to_str().unwrap()]);
    }
    // Add, first switch and mount all lie within a second or two: the first release's own mtime counts as well.
    rig.ok(&["switch", "1"]);
    rig.mount();
    let mut seen: Vec<(i64, String)> = Vec::new();
    for to in ["1", "2", "1", "2"] {
        rig.ok(&["switch", to]);
        let second = fs::metadata(rig.mnt.join("page")).unwrap().mtime();
        let content = fs::read_to_string(rig.mnt.join("page")).unwrap();
        assert_eq!(content, to);
        assert!(seen.iter().all(|(before, _)| *before < second), "{second} after {seen:?}");
        seen.push((second, content));
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn a_manifest_that_goes_bad_while_it_is_mounted_gives_an_error_and_no_crash() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    let source = rig.src.join("tree");
    fs::create_dir_all(&source).unwrap();
    for n in 0..3000 {
        fs::write(source.join(format!("file-{n}")), "x").unwrap();
    }
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    rig.mount();
    let manifest = rig.store.join("releases/1");
    let whole = fs::read(&manifest).unwrap();
    // Its own daemon reads it by a mapping: cut off, every page behind the cut raises SIGBUS.
    File::options().write(true).open(&manifest).unwrap().set_len(8192).unwrap();
    let error = fs::read(rig.mnt.join("file-2999")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    let log = fs::read_to_string(&rig.log).unwrap();
    assert!(log.contains(manifest.to_str().unwrap()), "{log}");
    let status = rig.json(&["status"]);
    assert!(status["degraded"][0].as_str().unwrap().contains("damaged"), "{status}");
    // Restored and mounted again, all is well.
    fs::write(&manifest, whole).unwrap();
    rig.umount();
    rig.mount();
    assert_eq!(fs::read(rig.mnt.join("file-2999")).unwrap(), b"x");
}

/// The kernel believes an answer an instant before it has taken it over: so the first one after a switch holds for no time.
#[test]
fn the_first_answer_about_what_a_switch_changed_holds_for_no_time() {
    if skip_mounted() {
        return;
    }
    let mut rig = mounted();
    let asked = |path: &str| {
        let count = || rig.json(&["status"])["upcalls"]["getattr"].as_u64().unwrap();
        let before = count();
        fs::metadata(rig.mnt.join(path)).unwrap();
        count() - before
    };
    for path in ["d", "d", "d"] {
        asked(path);
    }
    assert_eq!(asked("d"), 0);
    rig.ok(&["switch", "2"]);
    // Of itself, and of the root, which changed too.
    assert_eq!([asked("d"), asked("d"), asked("d")], [2, 2, 0]);
    // What nobody asked for stays so over a switch that leaves it alone.
    let source = rig.src.join("tree");
    fs::write(source.join("page"), "three").unwrap();
    rig.ok(&["add", "3", source.to_str().unwrap()]);
    rig.ok(&["switch", "1"]);
    rig.ok(&["switch", "2"]);
    rig.ok(&["switch", "3"]);
    assert_eq!([asked("d"), asked("d"), asked("d")], [2, 2, 0]);
    rig.umount();
}

#[test]
fn a_missing_object_is_an_error_for_its_file_alone() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let hash = verfs::tree::Digest::of("one".repeat(50_000).as_bytes()).to_hex();
    let object = rig.store.join("objects").join(&hash[..2]).join(&hash[2..]);
    fs::remove_file(&object).unwrap();
    let error = fs::read(rig.mnt.join("page")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    let log = fs::read_to_string(&rig.log).unwrap();
    assert!(log.contains(object.to_str().unwrap()), "{log}");
    assert_eq!(fs::read(rig.mnt.join("d/old-3")).unwrap(), b"old 3");
    fs::write(&object, "one".repeat(49_999)).unwrap();
    assert!(fs::read(rig.mnt.join("page")).is_err(), "an object of the wrong length is not served");
    fs::write(&object, "one".repeat(50_000)).unwrap();
    assert_eq!(fs::read(rig.mnt.join("page")).unwrap().len(), 150_000);
}

/// A test binary: its file, and those of its modules in the directory of its name.
fn sources_of(tests: &Path, binary: &str) -> Vec<String> {
    let modules = fs::read_dir(tests.join(binary)).into_iter().flatten().map(|entry| entry.unwrap().path());
    let files = std::iter::once(tests.join(format!("{binary}.rs"))).chain(modules);
    files.filter_map(|file| fs::read_to_string(file).ok()).collect()
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/SEMANTICS.md")).unwrap();
    let mut named = 0;
    for (at, _) in document.match_indices("::") {
        let word = |c: &char| c.is_alphanumeric() || *c == '_';
        let file: String =
            document[..at].chars().rev().take_while(word).collect::<Vec<_>>().into_iter().rev().collect();
        let test: String = document[at + 2..].chars().take_while(word).collect();
        let sources = sources_of(&root.join("tests"), &file);
        assert!(!sources.is_empty(), "{file}::{test} is in no file of tests/");
        let declared = format!("\nfn {test}(");
        assert!(sources.iter().any(|source| source.contains(&declared)), "{file}::{test} does not exist");
        named += 1;
    }
    assert!(named > 20, "{named} tests are named");
    for promise in document.split("\n**S").skip(1) {
        let text = promise.split("\n\n").next().unwrap();
        assert!(text.contains("\nTests: `"), "a promise names no test: S{}", &text[..20]);
    }
}
