//! Objects that are missing, of the wrong length, or of the wrong content.

use super::refusal::arg;
use super::support::tree::Tree;
use super::support::{self, Rig};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const EIO: Option<i32> = Some(libc::EIO);
const CONTENTS: [(&str, &str); 4] = [
    ("fine", "this one stays"),
    ("gone", "this one is going to be missing"),
    ("short", "this one is going to be cut"),
    ("rot", "this one is going to rot"),
];

/// A store with one release of the files above.
fn store() -> Rig {
    let rig = Rig::new();
    rig.init();
    let tree = CONTENTS.iter().fold(Tree::new(), |tree, (name, text)| tree.file(*name, text));
    rig.add("01", &tree);
    rig
}

/// Where the content of one of the files lies: objects are named by their BLAKE3 hash.
fn object(rig: &Rig, name: &str) -> PathBuf {
    let (_, text) = CONTENTS.iter().find(|(known, _)| *known == name).unwrap();
    let hex = blake3::hash(text.as_bytes()).to_hex();
    let path = rig.store.join("objects").join(&hex[..2]).join(&hex[2..]);
    assert!(path.is_file(), "{}", path.display());
    path
}

fn content(rig: &Rig, name: &str) -> Result<String, Option<i32>> {
    fs::read_to_string(rig.mnt.join(name)).map_err(|error| error.raw_os_error())
}

fn wait_for_log(rig: &Rig, says: &str) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let log = fs::read_to_string(&rig.log).unwrap();
        if log.contains(says) {
            return;
        }
        assert!(Instant::now() < end, "the log does not say {says}: {log}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn objects_are_read_only_and_nobody_reads_them_past_the_release() {
    let rig = store();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(object(&rig, "fine")), 0o444);
    assert_eq!(mode(rig.store.join("objects")), 0o700);
    assert_eq!(mode(rig.store.join("releases")), 0o700);
}

#[test]
fn an_object_that_is_missing_or_cut_gives_eio_for_its_file_only_and_is_named() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store();
    rig.mount();
    let (gone, short) = (object(&rig, "gone"), object(&rig, "short"));
    fs::remove_file(&gone).unwrap();
    File::options().write(true).open(&short).unwrap().set_len(5).unwrap();
    for _ in 0..2 {
        assert_eq!(content(&rig, "gone"), Err(EIO));
        assert_eq!(content(&rig, "short"), Err(EIO));
        assert_eq!(content(&rig, "fine").unwrap(), "this one stays");
    }
    assert_eq!(fs::metadata(rig.mnt.join("gone")).unwrap().len(), 31);
    assert_eq!(fs::read_dir(&rig.mnt).unwrap().count(), 4);
    wait_for_log(&rig, arg(&gone));
    wait_for_log(&rig, arg(&short));

    // Put back from a backup, they are served again, with no mount or switch between.
    fs::write(&gone, "this one is going to be missing").unwrap();
    fs::write(&short, "this one is going to be cut").unwrap();
    assert_eq!(content(&rig, "gone").unwrap(), "this one is going to be missing");
    assert_eq!(content(&rig, "short").unwrap(), "this one is going to be cut");
    rig.umount();
}

#[test]
fn an_object_that_is_cut_while_it_is_open_gives_eio_and_is_named() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store();
    rig.mount();
    // The daemon holds it open from now on.
    let mut byte = [0];
    File::open(rig.mnt.join("short")).unwrap().read_exact(&mut byte).unwrap();
    let short = object(&rig, "short");
    File::options().write(true).open(&short).unwrap().set_len(5).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_eq!(content(&rig, "short"), Err(EIO));
    assert_eq!(content(&rig, "fine").unwrap(), "this one stays");
    wait_for_log(&rig, arg(&short));
    rig.umount();
}

#[test]
fn adding_the_content_again_mends_an_object_that_is_missing_or_cut() {
    let rig = store();
    let (gone, short) = (object(&rig, "gone"), object(&rig, "short"));
    fs::remove_file(&gone).unwrap();
    File::options().write(true).open(&short).unwrap().set_len(5).unwrap();
    assert_eq!(rig.verfs(&["verify"]).code, 1);
    let source = rig.src.join("01");
    rig.ok(&["add", "02", arg(&source)]);
    let verify = rig.verfs(&["verify"]);
    assert_eq!(verify.code, 0, "{verify:?}");
}

#[test]
fn verify_names_every_object_that_is_missing_cut_or_rotten_and_who_needs_it() {
    let rig = store();
    let verify = rig.verfs(&["verify"]);
    assert_eq!(verify.code, 0, "{verify:?}");
    let (gone, short, rot) = (object(&rig, "gone"), object(&rig, "short"), object(&rig, "rot"));
    fs::remove_file(&gone).unwrap();
    File::options().write(true).open(&short).unwrap().set_len(5).unwrap();
    fs::write(&rot, "this one is going to ROT").unwrap();
    for args in [&["verify"][..], &["verify", "01"]] {
        let outcome = rig.verfs(&[args, &["--json"]].concat());
        assert_eq!(outcome.code, 1, "{outcome:?}");
        let value: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        let damaged = value["damaged"].as_array().unwrap();
        assert_eq!(damaged.len(), 3, "{value}");
        for (path, file) in [(&gone, "gone"), (&short, "short"), (&rot, "rot")] {
            let line = damaged.iter().find(|line| line.as_str().unwrap().contains(arg(path)));
            let line = line.unwrap_or_else(|| panic!("{} is not named: {value}", path.display()));
            assert!(line.as_str().unwrap().contains(file), "{file} is not named: {line}");
        }
        let plain = rig.verfs(args);
        assert_eq!(plain.code, 1);
        assert!(plain.stdout.contains(arg(&rot)), "{plain:?}");
    }
}

#[test]
fn export_refuses_what_is_missing_and_names_it() {
    let rig = store();
    let gone = object(&rig, "gone");
    fs::remove_file(&gone).unwrap();
    let out = rig.root().join("out");
    let outcome = rig.verfs(&["export", "01", arg(&out)]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains(arg(&gone)), "{outcome:?}");
}
