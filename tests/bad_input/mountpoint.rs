//! Mountpoints and machines on which nothing can be mounted.

use super::listing::Listing;
use super::refusal::{arg, refused};
use super::store_with_one_release;
use super::support::deadline::connection_of;
use super::support::{self, Rig};
use super::watch;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

#[test]
fn a_mountpoint_that_is_missing_is_refused() {
    let rig = store_with_one_release();
    let missing = rig.root().join("missing");
    let mount = ["mount", arg(&rig.store), arg(&missing)];
    refused(&rig, &mount, 2, &[arg(&missing), "mkdir"]);
    symlink("nowhere", rig.root().join("dangling")).unwrap();
    let dangling = rig.root().join("dangling");
    let mount = ["mount", arg(&rig.store), arg(&dangling)];
    refused(&rig, &mount, 2, &[arg(&dangling)]);
    assert!(!missing.exists());
}

#[test]
fn a_mountpoint_that_is_no_directory_is_refused() {
    let rig = store_with_one_release();
    let file = rig.src.join("01/index.html");
    let mount = ["mount", arg(&rig.store), arg(&file)];
    refused(&rig, &mount, 2, &[arg(&file), "not a directory"]);
}

#[test]
fn a_mountpoint_that_is_not_empty_is_refused_without_over() {
    if support::skip_mounted() {
        return;
    }
    let rig = store_with_one_release();
    fs::write(rig.mnt.join("placeholder"), "below").unwrap();
    let mount = ["mount", arg(&rig.store), arg(&rig.mnt)];
    refused(&rig, &mount, 2, &[arg(&rig.mnt), "not empty", "--over"]);
    for over in [&["--over"][..], &["-o", "over"]] {
        let _watch = watch::mounted(&rig, &[&mount[..], over].concat(), &rig.mnt);
        assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
        rig.ok(&["umount", arg(&rig.mnt)]);
        assert_eq!(fs::read(rig.mnt.join("placeholder")).unwrap(), b"below");
    }
}

#[test]
fn a_mountpoint_that_has_a_verfs_mount_already_is_refused() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store_with_one_release();
    rig.mount();
    let other = store_with_one_release();
    for over in [&[][..], &["--over"]] {
        let mount = [&["mount", arg(&other.store), arg(&rig.mnt)], over].concat();
        refused(&other, &mount, 2, &[arg(&rig.mnt), "already", "umount"]);
    }
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
    rig.umount();
}

#[test]
fn a_store_inside_its_mountpoint_or_around_it_is_refused_always() {
    let rig = store_with_one_release();
    let inside = rig.store.join("media");
    for mountpoint in [rig.root(), &rig.store, &inside] {
        let mount = ["mount", arg(&rig.store), arg(mountpoint)];
        refused(&rig, &mount, 2, &[arg(&rig.store), arg(mountpoint)]);
        let over = ["mount", "--over", arg(&rig.store), arg(mountpoint)];
        refused(&rig, &over, 2, &[arg(&rig.store), arg(mountpoint), "inside"]);
    }
    assert_eq!(connection_of(&rig.store), None);
}

#[test]
fn an_empty_store_is_not_mounted() {
    let rig = Rig::new();
    rig.init();
    let mount = ["mount", arg(&rig.store), arg(&rig.mnt)];
    refused(&rig, &mount, 2, &[arg(&rig.store), "no release", "verfs add"]);
}

#[test]
fn an_unknown_mount_option_is_refused() {
    let rig = store_with_one_release();
    let mount = ["mount", arg(&rig.store), arg(&rig.mnt), "-o", "nofail,colour=blue"];
    refused(&rig, &mount, 2, &["colour=blue"]);
}

#[test]
fn without_dev_fuse_the_mount_fails_and_says_what_to_load() {
    if support::skip_mounted() {
        return;
    }
    let rig = store_with_one_release();
    let before = Listing::of(&rig.store);
    // A mount namespace of its own, whose /dev has nothing but null.
    let script = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && \
                  exec timeout 60 \"$@\" 2>&1";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_verfs")])
        .args(["mount", arg(&rig.store), arg(&rig.mnt)])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/dev/fuse") && said.contains("modprobe fuse"), "{said}");
    before.assert_same_as(&Listing::of(&rig.store), "a mount without /dev/fuse");
}

#[test]
fn who_is_not_root_cannot_mount_and_is_told() {
    if support::skip_mounted() {
        return;
    }
    let rig = store_with_one_release();
    for path in [&rig.store, &rig.mnt] {
        let output = Command::new("chown").args(["-R", "65534:65534"]).arg(path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let before = Listing::of(&rig.store);
    // The way to the scratch directory may be closed to others, so the rest of root's powers stay.
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--inh-caps=+dac_override,+dac_read_search"])
        .args(["--ambient-caps=+dac_override,+dac_read_search"])
        .args(["timeout", "60", env!("CARGO_BIN_EXE_verfs")])
        .args(["mount", arg(&rig.store), arg(&rig.mnt)])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(connection_of(&rig.mnt), None);
    let after = Listing::of(&rig.store);
    before.assert_same_as(&after, "a mount that is not permitted");
    assert!(said.contains("needs root"), "{said}");
}
