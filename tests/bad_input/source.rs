//! Sources that cannot become a release.

use super::disk::noise;
use super::listing::Listing;
use super::refusal::{arg, error_of, refused};
use super::store_with_one_release;
use super::support::Rig;
use super::support::rig::Outcome;
use super::support::sys::{self, Scheduling};
use super::support::tree::Tree;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn a_source_that_is_missing_is_refused() {
    let rig = store_with_one_release();
    let missing = rig.src.join("missing");
    refused(&rig, &["add", "02", arg(&missing)], 2, &[arg(&missing)]);
    let dangling = rig.src.join("dangling");
    symlink("missing", &dangling).unwrap();
    refused(&rig, &["add", "02", arg(&dangling)], 2, &[arg(&dangling)]);
}

#[test]
fn a_source_that_is_no_directory_is_refused() {
    let rig = store_with_one_release();
    let file = rig.src.join("01/index.html");
    let says = [arg(&file), "not a directory"];
    refused(&rig, &["add", "02", arg(&file)], 2, &says);
    let link = rig.src.join("link");
    symlink(&file, &link).unwrap();
    let says = [arg(&link), "not a directory"];
    refused(&rig, &["add", "02", arg(&link)], 2, &says);
}

#[test]
fn a_source_that_holds_sockets_fifos_or_devices_is_refused_and_all_are_named() {
    let rig = store_with_one_release();
    let source = rig.src.join("02");
    let tree = Tree::new().file("ok", "fine").dir("deep/er");
    tree.write(&source);
    let node = |name: &str, kind, device| {
        mknodat(CWD, source.join(name), kind, Mode::RUSR, device).unwrap();
    };
    let zero = makedev(1, 5);
    node("a-fifo", FileType::Fifo, 0);
    node("deep/b-fifo", FileType::Fifo, 0);
    node("deep/er/c-device", FileType::CharacterDevice, zero);
    node("d-disk", FileType::BlockDevice, makedev(7, 200));
    // A socket's address holds 107 bytes; a scratch directory may be longer.
    let dir = File::open(&source).unwrap();
    let through = format!("/proc/self/fd/{}/e-socket", std::os::fd::AsRawFd::as_raw_fd(&dir));
    let _listener = UnixListener::bind(through).unwrap();
    let says = [
        arg(&source),
        "a-fifo (fifo)",
        "deep/b-fifo (fifo)",
        "deep/er/c-device (device)",
        "d-disk (device)",
        "e-socket (socket)",
        "remove",
    ];
    refused(&rig, &["add", "02", arg(&source)], 2, &says);
}

#[test]
fn a_store_inside_its_source_is_refused() {
    let rig = store_with_one_release();
    let says = [arg(&rig.store), "inside the source"];
    refused(&rig, &["add", "02", arg(rig.root())], 2, &says);
    refused(&rig, &["add", "02", arg(&rig.store)], 2, &says);
    let link = rig.src.join("link");
    symlink(rig.root(), &link).unwrap();
    refused(&rig, &["add", "02", arg(&link)], 2, &says);
}

/// Root reads everything; without these two capabilities it reads what a mode allows.
fn without_override(rig: &Rig, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-dac_override,-dac_read_search"])
        .args(["--inh-caps", "-dac_override,-dac_read_search"])
        .arg(env!("CARGO_BIN_EXE_verfs"))
        .args(args)
        .env("VERFS_STORE", &rig.store)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn a_source_that_is_unreadable_in_places_is_refused_and_the_places_are_named() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: dropping capabilities needs root");
        return;
    }
    let rig = store_with_one_release();
    let source = rig.src.join("02");
    let tree = Tree::new().file("ok", "fine").file("secret", "s").file("deep/key", "k");
    tree.file("shut/inside", "i").write(&source);
    let close = |name: &str| {
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(0o000)).unwrap();
    };
    close("secret");
    close("deep/key");
    let before = Listing::of(&rig.store);
    let (code, said) = without_override(&rig, &["add", "02", arg(&source)]);
    assert_eq!(code, Some(2), "{said}");
    for word in ["secret", "deep/key", "Permission denied", "readable"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    close("shut");
    let (code, said) = without_override(&rig, &["add", "02", arg(&source)]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("shut") && said.contains("Permission denied"), "{said}");
    before.assert_same_as(&Listing::of(&rig.store), "adding what cannot be read");
}

/// A file that takes long enough to read for another thread to get its turn meanwhile.
fn long_read() -> Vec<u8> {
    let block: Vec<u8> = (0..251).collect();
    block.repeat((48 << 20) / 251)
}

/// Runs `verfs ARGS` while `change` is done over and over, from before its start to its end.
fn while_changing(rig: &Rig, args: &[&str], change: impl Fn() + Sync) -> Outcome {
    let (stop, begun) = (AtomicBool::new(false), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            // Gets the processor when it wants it, however busy the machine is.
            sys::schedule(Scheduling::First).unwrap();
            change();
            begun.wait();
            while !stop.load(Ordering::Relaxed) {
                change();
                thread::sleep(Duration::from_micros(200));
            }
        });
        begun.wait();
        let outcome = rig.verfs(args);
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

#[test]
fn a_source_that_keeps_changing_is_read_again_then_reported_with_the_file() {
    let rig = store_with_one_release();
    let source = rig.src.join("02");
    let tree = Tree::new().file("quiet", long_read());
    tree.file("logs/busy.log", "").write(&source);
    let before = Listing::of(&rig.store);
    let args = ["add", "02", arg(&source), "--json"];
    let outcome = while_changing(&rig, &args, || {
        let log = source.join("logs/busy.log");
        let mut log = OpenOptions::new().append(true).open(log).unwrap();
        log.write_all(b"and one more line\n").unwrap();
    });
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let message = error_of(&args.map(Into::into), &outcome);
    for word in [arg(&source), "changed while it was read", "logs/busy.log"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert!(!message.contains("quiet"), "{message}");
    before.assert_same_as(&Listing::of(&rig.store), "adding what keeps changing");
    assert_eq!(rig.json(&["add", "02", arg(&source)])["files"], 2);
}

#[test]
fn a_source_in_which_files_come_and_go_is_reported_and_not_half_taken() {
    let rig = store_with_one_release();
    let source = rig.src.join("02");
    Tree::new().file("quiet", long_read()).dir("spool").write(&source);
    let before = Listing::of(&rig.store);
    let outcome = while_changing(&rig, &["add", "02", arg(&source)], || {
        fs::write(source.join("spool/job"), "work").unwrap();
        fs::remove_file(source.join("spool/job")).unwrap();
    });
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("spool"), "{outcome:?}");
    before.assert_same_as(&Listing::of(&rig.store), "adding what comes and goes");
}

/// The bytes that a running import has copied of a large file so far, if it is at it.
fn copied(store: &Path) -> Option<u64> {
    let imports = fs::read_dir(store.join("tmp")).unwrap().flatten();
    let parts = imports.flat_map(|import| fs::read_dir(import.path()).into_iter().flatten());
    let sizes = parts.flatten().filter_map(|part| part.metadata().ok());
    sizes.filter(|meta| meta.is_file()).map(|meta| meta.len()).find(|len| *len > 0)
}

/// Runs `verfs add`, stops it in the middle of a large file of `len` bytes, lets `change` happen,
/// and lets it go on. Its exit code and what it said; `None` if it could not be stopped in time.
fn changed_meanwhile(rig: &Rig, name: &str, source: &Path, len: u64, change: impl Fn()) -> Option<Output> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_verfs"))
        .args(["add", name, arg(source)])
        .env("VERFS_STORE", &rig.store)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while copied(&rig.store).is_none() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the import never began to copy");
    }
    kill_process(pid, Signal::STOP).unwrap();
    let in_time = copied(&rig.store).is_some_and(|copied| copied < len);
    if in_time {
        change();
    }
    kill_process(pid, Signal::CONT).unwrap();
    let output = child.wait_with_output().unwrap();
    in_time.then_some(output)
}

#[test]
fn a_source_that_settles_while_it_is_read_is_added_as_it_is_in_the_end() {
    let rig = store_with_one_release();
    let source = rig.src.join("02");
    let big = long_read();
    Tree::new().file("big", &big).file("notes", "before").write(&source);
    let change = || {
        let mut file = OpenOptions::new().append(true).open(source.join("big")).unwrap();
        file.write_all(b"the last word").unwrap();
        fs::write(source.join("notes"), "after").unwrap();
    };
    let (name, output) = (0..20)
        .find_map(|try_number| {
            let name = format!("try-{try_number}");
            // A content that the store has is not copied again.
            noise(&source.join("big"), big.len());
            let len = big.len() as u64;
            let output = changed_meanwhile(&rig, &name, &source, len, change);
            output.map(|output| (name, output))
        })
        .expect("an import that is stopped while it copies");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let out = rig.root().join("out");
    rig.ok(&["export", &name, arg(&out)]);
    assert_eq!(fs::read(out.join("notes")).unwrap(), b"after");
    let exported = fs::read(out.join("big")).unwrap();
    assert!(exported == fs::read(source.join("big")).unwrap(), "big is not as it is in the end");
    assert!(exported.ends_with(b"the last word"));
    assert_eq!(Listing::of(&rig.store).below("tmp"), [Path::new("tmp")]);
    assert_eq!(rig.json(&["gc"])["litter"].as_array().unwrap().len(), 0);
}
