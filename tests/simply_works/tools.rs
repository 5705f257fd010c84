//! The tools that people use on a docroot: git, rsync, tar, cp, find, diff.

use super::plain::{Look, assert_alike, serve, tree};
use super::support::tree::Tree;
use super::support::{self, Rig};
use rustix::fs::{XattrFlags, setxattr};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Runs a tool, for a minute at most; its standard output.
fn run(dir: &Path, program: &str, args: &[&OsStr]) -> String {
    let output = Command::new("timeout")
        .args(["60", program])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn words<'a>(words: &'a [&'a str], paths: &[&'a Path]) -> Vec<&'a OsStr> {
    let paths = paths.iter().map(|path| path.as_os_str());
    words.iter().map(OsStr::new).chain(paths).collect()
}

fn site(source: &Path) {
    let mut site = Tree::new()
        .file("index.html", "<h1>a shop</h1>")
        .file("empty", "")
        .dir("nothing")
        .file("img/logo.png", vec![0x89; 150_000])
        .symlink("current", "img")
        .symlink("dangling", "no/such");
    for number in 0..300 {
        site = site.file(format!("src/{}/{number}.php", number % 7), format!("<?php {number}"));
    }
    site.write(source);
    fs::set_permissions(source.join("empty"), fs::Permissions::from_mode(0o444)).unwrap();
    setxattr(source.join("index.html"), "user.mime", b"text/html", XattrFlags::empty()).unwrap();
}

#[test]
fn git_status_of_a_mounted_checkout_is_clean() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    site(&source);
    let git = |dir: &Path, args: &[&str]| {
        let who = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"];
        run(dir, "git", &words(&[&who[..], args].concat(), &[]))
    };
    git(&source, &["init", "-q"]);
    git(&source, &["add", "."]);
    git(&source, &["commit", "-q", "-m", "all of it"]);
    rig.init();
    rig.ok(&[OsStr::new("add"), OsStr::new("01"), source.as_os_str(), OsStr::new("--include-vcs")]);
    rig.mount();
    let safe = format!("safe.directory={}", rig.mnt.display());
    let status = git(&rig.mnt, &["-c", &safe, "status", "--porcelain"]);
    assert_eq!(status, "");
    git(&rig.mnt, &["-c", &safe, "fsck", "--strict", "--no-progress"]);
    let head = git(&rig.mnt, &["-c", &safe, "ls-files"]);
    assert_eq!(head.lines().count(), 305);
    rig.umount();
}

#[test]
fn rsync_tar_and_cp_take_the_whole_release_out_of_the_mount() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    site(&source);
    serve(&mut rig, &source);
    let expected = tree(&rig.mnt, Look::WHOLE);
    assert_alike(&tree(&source, Look::SERVED), &tree(&rig.mnt, Look::SERVED));
    let whole = Path::new("mnt/.");
    let (by_rsync, by_tar, by_cp) = (rig.root().join("by-rsync"), rig.root().join("by-tar"), rig.root().join("by-cp"));

    let slash = rig.mnt.join("");
    run(rig.root(), "rsync", &words(&["-aXc"], &[&slash, &by_rsync]));
    assert_alike(&expected, &tree(&by_rsync, Look::WHOLE));
    // Compared by content, the mount and the source are the same: nothing would be sent.
    let args = ["-rlc", "--dry-run", "--itemize-changes", "--delete"];
    let differs = run(rig.root(), "rsync", &words(&args, &[&source.join(""), &slash]));
    assert_eq!(differs, "");

    let archive = rig.root().join("site.tar");
    run(rig.root(), "tar", &words(&["--xattrs", "-cf"], &[&archive, Path::new("-C"), &rig.mnt, Path::new(".")]));
    fs::create_dir(&by_tar).unwrap();
    run(rig.root(), "tar", &words(&["--xattrs", "-xpf"], &[&archive, Path::new("-C"), &by_tar]));
    // An archive knows whole seconds.
    let seconds = Look { file_mtime: false, dir_mtime: false, ..Look::WHOLE };
    assert_alike(&tree(&rig.mnt, seconds), &tree(&by_tar, seconds));

    run(rig.root(), "cp", &words(&["-a"], &[whole, &by_cp]));
    assert_alike(&expected, &tree(&by_cp, Look::WHOLE));
    rig.umount();
}

#[test]
fn find_diff_grep_and_du_walk_the_mount_without_a_complaint() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    site(&source);
    serve(&mut rig, &source);
    let here = Path::new(".");
    let count = |dir: &Path, kind: &str| run(dir, "find", &words(&[".", "-type", kind], &[])).lines().count();
    for kind in ["f", "d", "l"] {
        assert_eq!(count(&rig.mnt, kind), count(&source, kind), "-type {kind}");
    }
    assert_eq!(run(rig.root(), "diff", &words(&["-r", "--no-dereference"], &[&source, &rig.mnt])), "");
    let hits = run(&rig.mnt, "grep", &words(&["-rlF", "<?php 29"], &[here]));
    assert_eq!(hits.lines().count(), 11);
    let apparent = |dir: &Path| {
        let sum = run(dir, "find", &words(&[".", "-type", "f", "-printf", "%s\\n"], &[]));
        sum.lines().map(|line| line.parse::<u64>().unwrap()).sum::<u64>()
    };
    assert_eq!(apparent(&rig.mnt), apparent(&source));
    run(&rig.mnt, "du", &words(&["-s"], &[here]));
    run(&rig.mnt, "sha256sum", &words(&["index.html", "img/logo.png"], &[]));
    rig.umount();
}
