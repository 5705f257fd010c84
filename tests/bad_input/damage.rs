//! Manifests that are damaged or truncated.

use super::refusal::{arg, refused};
use super::support::deadline::alive;
use super::support::tree::Tree;
use super::support::{self, Rig};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const EIO: Option<i32> = Some(libc::EIO);

/// A release with enough names that its manifest has many pages.
fn tree(text: &str) -> Tree {
    let mut tree = Tree::new().file("index.html", text);
    for number in 0..400 {
        let path = format!("dir-{:02}/a-file-of-the-tree-{number:04}", number % 20);
        tree = tree.file(path, format!("{text} {}", number % 7));
    }
    tree.symlink("link", "dir-01")
}

/// A store with the releases 01 and 02, of which 01 is active.
fn two_releases() -> Rig {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &tree("one"));
    rig.add("02", &tree("two"));
    rig.ok(&["switch", "01"]);
    rig
}

fn manifest(rig: &Rig, name: &str) -> PathBuf {
    rig.store.join("releases").join(name)
}

/// Waits until the log says something.
fn wait_for_log(rig: &Rig, says: &str) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let log = fs::read_to_string(&rig.log).unwrap();
        if log.contains(says) {
            return;
        }
        assert!(Instant::now() < end, "the log does not name {says}: {log}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes the kernel forget the dentries and inodes that nobody uses.
fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

#[test]
fn a_truncated_manifest_cannot_be_switched_to() {
    let rig = two_releases();
    let path = manifest(&rig, "02");
    let whole = fs::read(&path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for len in [0, 1, 100, 4095, 4096, 4097, whole.len() / 2, whole.len() - 64, whole.len() - 1] {
        file.set_len(len as u64).unwrap();
        refused(&rig, &["switch", "02"], 1, &[arg(&path)]);
        assert_eq!(rig.json(&["status"])["release"], "01");
        file.write_all_at(&whole, 0).unwrap();
    }
    file.set_len(whole.len() as u64 + 64).unwrap();
    refused(&rig, &["switch", "02"], 1, &[arg(&path)]);
    file.set_len(whole.len() as u64).unwrap();
    assert_eq!(rig.json(&["switch", "02"])["to"], "02", "it is whole again");
}

#[test]
fn every_verb_names_a_damaged_manifest_and_the_other_releases_still_work() {
    let rig = two_releases();
    let path = manifest(&rig, "02");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let out = rig.root().join("out");
    let says = [arg(&path)];
    refused(&rig, &["switch", "02"], 1, &says);
    refused(&rig, &["switch", "--dry-run", "02"], 1, &says);
    refused(&rig, &["diff", "01", "02"], 1, &says);
    refused(&rig, &["export", "02", arg(&out)], 1, &says);
    assert!(!out.exists(), "a refused export made {}", out.display());
    refused(&rig, &["gc"], 1, &says);
    let verify = rig.verfs(&["verify"]);
    assert_eq!(verify.code, 1, "{verify:?}");
    assert!(verify.stdout.contains(arg(&path)), "{verify:?}");
    assert_eq!(rig.verfs(&["verify", "01"]).code, 0);
    let rows = rig.json(&["list"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == "02").unwrap();
    assert!(row["error"].as_str().unwrap().contains(arg(&path)), "{row}");

    rig.add("03", &tree("three"));
    rig.ok(&["switch", "03"]);
    rig.ok(&["rollback"]);
    rig.ok(&["export", "03", arg(&out)]);
    // What cannot be read can still be taken away.
    rig.ok(&["remove", "02"]);
    assert_eq!(rig.verfs(&["verify"]).code, 0);
    rig.ok(&["gc"]);
}

#[test]
fn a_flipped_bit_anywhere_in_a_manifest_keeps_it_from_being_switched_to() {
    let rig = two_releases();
    let path = manifest(&rig, "02");
    let whole = fs::read(&path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let mut undetected = Vec::new();
    // A prime step: the places fall on every section and on every place in a record.
    let step = whole.len() / 97;
    for at in (3..whole.len()).step_by(step) {
        file.write_all_at(&[whole[at] ^ 0x10], at as u64).unwrap();
        let outcome = rig.verfs(&["switch", "02"]);
        file.write_all_at(&whole[at..=at], at as u64).unwrap();
        if outcome.code == 0 {
            undetected.push(at);
            rig.ok(&["rollback"]);
            continue;
        }
        assert_eq!(outcome.code, 1, "byte {at}: {outcome:?}");
        assert!(outcome.stderr.contains(arg(&path)), "byte {at}: {outcome:?}");
        assert_eq!(rig.json(&["status"])["release"], "01");
    }
    assert_eq!(undetected, Vec::<usize>::new(), "of {} bytes", whole.len());
    assert_eq!(rig.json(&["switch", "02"])["to"], "02", "it is whole again");
}

#[test]
fn a_mounted_daemon_refuses_a_damaged_manifest_and_serves_on() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = two_releases();
    rig.mount();
    let path = manifest(&rig, "02");
    let whole = fs::read(&path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for (len, flip) in [(whole.len() / 2, None), (4096, None), (whole.len(), Some(whole.len() / 3))] {
        file.set_len(len as u64).unwrap();
        if let Some(at) = flip {
            file.write_all_at(&[!whole[at]], at as u64).unwrap();
        }
        refused(&rig, &["switch", "02"], 1, &[arg(&path)]);
        // The daemon itself must not trust whoever speaks to its socket.
        let answer = rig.control().switch("02");
        assert!(answer.as_ref().is_err_and(|error| error.contains(arg(&path))), "{answer:?}");
        assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
        file.write_all_at(&whole, 0).unwrap();
    }
    rig.control().switch("02").unwrap();
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"two");
    rig.umount();
}

#[test]
fn a_served_manifest_that_is_truncated_gives_eio_and_the_daemon_lives_on() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = two_releases();
    let path = manifest(&rig, "01");
    let whole = fs::read(&path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for len in [0, 4096, whole.len() / 2] {
        rig.mount();
        fs::metadata(rig.mnt.join("dir-03")).unwrap();
        file.set_len(len as u64).unwrap();
        drop_caches();
        let mut refusals = 0;
        for number in 0..400 {
            let name = format!("dir-{:02}/a-file-of-the-tree-{number:04}", number % 20);
            match fs::read(rig.mnt.join(name)) {
                Ok(bytes) => assert_eq!(bytes, format!("one {}", number % 7).into_bytes()),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), EIO, "cut to {len}: {error}");
                    refusals += 1;
                }
            }
        }
        assert!(refusals > 0, "cut to {len}: nothing was refused");
        wait_for_log(&rig, arg(&path));
        assert!(alive(rig.pids()[0]), "cut to {len}: the daemon died");
        let status = rig.json(&["status"]);
        let degraded = status["degraded"].as_array().unwrap();
        assert!(degraded.iter().any(|line| line.as_str().unwrap().contains(arg(&path))), "cut to {len}: {degraded:?}");
        file.write_all_at(&whole, 0).unwrap();
        rig.umount();
        fs::remove_file(&rig.log).unwrap();

        rig.mount();
        assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
        let name = "dir-19/a-file-of-the-tree-0399";
        assert_eq!(fs::read(rig.mnt.join(name)).unwrap(), b"one 0");
        rig.umount();
    }
}

#[test]
fn the_way_out_of_a_served_manifest_that_went_bad_is_the_one_that_is_named() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = two_releases();
    rig.mount();
    let path = manifest(&rig, "01");
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    drop_caches();
    let error = fs::read(rig.mnt.join("dir-07/a-file-of-the-tree-0007")).unwrap_err();
    assert_eq!(error.raw_os_error(), EIO, "{error}");
    let outcome = rig.verfs(&["switch", "02"]);
    if outcome.code != 0 {
        // What cannot be compared cannot be switched under a mount; without one it can.
        assert_eq!(outcome.code, 1, "{outcome:?}");
        for word in [arg(&path), "verfs umount", "verfs switch"] {
            assert!(outcome.stderr.contains(word), "{word} is not said: {outcome:?}");
        }
        rig.umount();
        rig.ok(&["switch", "02"]);
        rig.mount();
    }
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"two");
    let name = "dir-07/a-file-of-the-tree-0007";
    assert_eq!(fs::read(rig.mnt.join(name)).unwrap(), b"two 0");
    rig.umount();
}

#[test]
fn a_served_manifest_whose_names_rot_gives_eio_in_that_directory_only() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = two_releases();
    rig.mount();
    let path = manifest(&rig, "01");
    let whole = fs::read(&path).unwrap();
    let name = b"a-file-of-the-tree-0005";
    let at = whole.windows(name.len()).position(|bytes| bytes == name).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"X", at as u64).unwrap();
    let rotten = rig.mnt.join("dir-05");
    let error = fs::read(rotten.join("a-file-of-the-tree-0025")).unwrap_err();
    assert_eq!(error.raw_os_error(), EIO, "{error}");
    let listed: Result<Vec<_>, _> = fs::read_dir(&rotten).and_then(Iterator::collect);
    assert_eq!(listed.unwrap_err().raw_os_error(), EIO);
    wait_for_log(&rig, arg(&path));
    let other = rig.mnt.join("dir-06/a-file-of-the-tree-0006");
    assert_eq!(fs::read(other).unwrap(), b"one 6");
    assert_eq!(fs::read_dir(Path::new(&rig.mnt)).unwrap().count(), 22);
    rig.umount();
}
