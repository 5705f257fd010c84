//! What suites of others say of the writable layer: pjdfstest and fsx, installed by scripts/install-deps --tests.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{Rig, skip_mounted};

/// What fails here and passes on a plain directory, by a part of its name, each with its reason.
const EXPECTED_FAILURES: &[(&str, &str)] =
    &[("::char", "devices cannot be made in a scope: EPERM"), ("::block", "devices cannot be made in a scope: EPERM")];

const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
expected_failures = []
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

const FSX: &str = r#"
flen = 1048576
[opsize]
min = 1
max = 65536
[weights]
close_open = 1
invalidate = 1
truncate = 10
fsync = 1
fdatasync = 1
read = 20
write = 20
mapread = 10
mapwrite = 10
posix_fallocate = 5
punch_hole = 5
sendfile = 2
posix_fadvise = 2
copy_file_range = 5
"#;

fn suite(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/suites/bin").join(name);
    assert!(path.exists(), "{} is missing: run scripts/install-deps --tests", path.display());
    path
}

/// A mounted store whose scope everybody may write to; the release has the directory `below` in it, with a file.
fn mounted() -> Rig {
    let mut rig = Rig::with_limit(Duration::from_secs(600));
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
    let source = rig.src.join("1");
    fs::create_dir_all(source.join("media/below")).unwrap();
    fs::write(source.join("media/below/file"), "of the release ".repeat(20_000)).unwrap();
    for dir in [source.join("media"), source.join("media/below"), rig.store.join("media/media")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    }
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    rig.mount();
    // The suites test suid and the like, which the mount switches off for good reasons.
    let remounted = Command::new("mount").args(["-i", "-o", "remount,suid,dev"]).arg(&rig.mnt).status().unwrap();
    assert!(remounted.success());
    // www-data and its like have to reach it.
    for dir in rig.mnt.ancestors().skip(1) {
        let mode = fs::metadata(dir).unwrap().permissions().mode();
        if mode & 0o011 != 0o011 {
            fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o011)).unwrap();
        }
    }
    rig
}

/// The same directory under a short path: a socket's address has room for 107 bytes.
struct Short(tempfile::TempDir);

impl Short {
    fn path_of(dir: &Path) -> Self {
        let short = tempfile::Builder::new().prefix("v").tempdir_in("/tmp").unwrap();
        fs::set_permissions(short.path(), fs::Permissions::from_mode(0o755)).unwrap();
        rustix::mount::mount_bind(dir, short.path()).unwrap();
        Self(short)
    }
}

impl Drop for Short {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.0.path().display());
        }
    }
}

fn pjdfstest(rig: &Rig, dir: &Path) {
    let short = Short::path_of(dir);
    let config = rig.root().join("pjdfstest.toml");
    fs::write(&config, PJDFSTEST).unwrap();
    let output = Command::new("sh")
        .args(["-c", "umask 0; exec \"$0\" \"$@\""])
        .arg(suite("pjdfstest"))
        .arg("-c")
        .arg(&config)
        .arg("-p")
        .arg(short.0.path())
        .args(["-s", "/dev/shm"])
        .current_dir(short.0.path())
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ending = |word: &str| -> BTreeSet<String> {
        text.lines()
            .filter(|line| line.trim_end().ends_with(word))
            .map(|line| line.split_whitespace().next().unwrap().to_owned())
            .collect()
    };
    let (passed, failed) = (ending(" ok"), ending(" FAILED"));
    println!("pjdfstest in {}: {} passed, {} failed as expected", dir.display(), passed.len(), failed.len());
    assert!(passed.len() > 250, "it ran: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    let unexpected: Vec<&String> =
        failed.iter().filter(|name| !EXPECTED_FAILURES.iter().any(|(part, _)| name.contains(part))).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}\n{text}");
    for (part, reason) in EXPECTED_FAILURES {
        assert!(failed.iter().any(|name| name.contains(part)), "{part} passes now: is it still true that {reason}?");
    }
}

#[test]
fn pjdfstest_passes_on_names_that_only_media_has() {
    if !skip_mounted() {
        let rig = mounted();
        pjdfstest(&rig, &rig.mnt.join("media"));
    }
}

#[test]
fn pjdfstest_passes_in_a_directory_of_the_release() {
    if !skip_mounted() {
        let rig = mounted();
        pjdfstest(&rig, &rig.mnt.join("media/below"));
    }
}

fn fsx(rig: &Rig, file: &Path) {
    let config = rig.root().join("fsx.toml");
    fs::write(&config, FSX).unwrap();
    let output = Command::new(suite("fsx"))
        .args(["-q", "-N", "100000", "-S", "7", "-f"])
        .arg(&config)
        .arg("-P")
        .arg(rig.root())
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("A-OK"), "{text}");
}

#[test]
fn fsx_is_clean_on_a_media_file() {
    if !skip_mounted() {
        let rig = mounted();
        fsx(&rig, &rig.mnt.join("media/new"));
    }
}

#[test]
fn fsx_is_clean_on_a_release_file_that_is_copied_up() {
    if !skip_mounted() {
        let rig = mounted();
        fsx(&rig, &rig.mnt.join("media/below/file"));
        assert!(rig.store.join("media/media/below/file").exists(), "it was copied up");
    }
}
