//! The life of a mount: background, foreground, signals, a daemon that died.

use super::support::deadline::{alive, connection_of};
use super::support::tree::Tree;
use super::support::{self, Rig};
use super::watch::watch;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

fn store() -> Rig {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("index.html", "one"));
    rig.add("02", &Tree::new().file("index.html", "two"));
    rig.ok(&["switch", "01"]);
    rig
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "{what} did not come to pass");
        thread::sleep(Duration::from_millis(5));
    }
}

fn wait_for_end(rig: &Rig, pid: u32) {
    wait_until("the end of the daemon", || !alive(pid));
    assert_eq!(connection_of(&rig.mnt), None, "the mount outlived its daemon");
    let left: Vec<_> = fs::read_dir(rig.store.join("run")).unwrap().flatten().collect();
    assert!(left.is_empty(), "run/ is not empty when nothing is mounted: {left:?}");
}

#[test]
fn mount_returns_when_it_is_ready_and_umount_when_it_is_over() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store();
    for _ in 0..3 {
        rig.mount();
        assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
        assert!(fs::metadata(rig.store.join("run/control.sock")).unwrap().file_type().is_socket());
        let pid = rig.pids()[0];
        let said = rig.ok(&["umount"]);
        assert!(said.contains(rig.mnt.to_str().unwrap()), "{said}");
        assert!(!alive(pid), "the daemon lives on after umount returned");
        wait_for_end(&rig, pid);
        assert_eq!(fs::read_dir(&rig.mnt).unwrap().count(), 0);
    }
}

#[test]
fn what_was_never_switched_to_is_mounted_as_the_newest_release() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    rig.add("b-older", &Tree::new().file("index.html", "older"));
    // Releases are told apart by the second in which they were added.
    let added = |rig: &Rig, at: usize| rig.json(&["list"])[at]["added"].clone();
    let first = added(&rig, 0);
    let mut number = 0;
    wait_until("a later second", || {
        number += 1;
        let name = format!("a-{number:06}");
        rig.add(&name, &Tree::new().file("index.html", &name));
        let done = added(&rig, number) != first;
        if !done {
            rig.ok(&["remove", &name]);
            number -= 1;
            thread::sleep(Duration::from_millis(50));
            fs::remove_dir_all(rig.src.join(&name)).unwrap();
        }
        done
    });
    rig.mount();
    let newest = rig.json(&["list"])[1]["name"].clone();
    assert_eq!(rig.json(&["status"])["release"], newest);
    let log = rig.json(&["log"]);
    let last = log.as_array().unwrap().last().unwrap();
    assert_eq!((&last["action"], &last["to"]), (&"switch".into(), &newest));
    rig.umount();
}

#[test]
fn the_daemon_leaves_the_terminal_and_the_directory_of_its_caller() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store();
    rig.mount();
    let pid = rig.pids()[0];
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(cwd, std::path::Path::new("/"));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string(), "it leads a session of its own");
    for stream in 0..3 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap();
        assert_eq!(target, std::path::Path::new("/dev/null"), "stream {stream}");
    }
    rig.umount();
}

#[test]
fn sigterm_and_sigint_unmount_and_end_the_daemon() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store();
    for name in [Signal::TERM, Signal::INT] {
        rig.mount();
        let pid = rig.pids()[0];
        signal(pid, name);
        wait_for_end(&rig, pid);
    }
    rig.mount();
    // A client that holds a file keeps it from being quick, not from ending.
    let mut held = File::open(rig.mnt.join("index.html")).unwrap();
    let pid = rig.pids()[0];
    signal(pid, Signal::TERM);
    wait_for_end(&rig, pid);
    let mut text = String::new();
    let _ = held.read_to_string(&mut text);
    drop(held);
    rig.mount();
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
    rig.umount();
}

#[test]
fn sighup_reads_the_settings_again() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store();
    rig.mount();
    let pid = rig.pids()[0];
    let settings = rig.store.join("verfs.toml");
    let good = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, format!("{good}\n[nonsense]\n")).unwrap();
    signal(pid, Signal::HUP);
    wait_until("a log line on the wrong settings", || fs::read_to_string(&rig.log).unwrap().contains("nonsense"));
    assert!(alive(pid));
    fs::write(&settings, good).unwrap();
    signal(pid, Signal::HUP);
    wait_until("a log line on the settings", || fs::read_to_string(&rig.log).unwrap().contains("settings read again"));
    rig.umount();
}

#[test]
fn in_the_foreground_it_stays_until_it_is_told_to_end() {
    if support::skip_mounted() {
        return;
    }
    let rig = store();
    let errors = rig.root().join("foreground.log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_verfs"))
        .arg("mount")
        .args([&rig.store, &rig.mnt])
        .args(["--foreground", "-v"])
        .env_remove("VERFS_STORE")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    wait_until("the mount", || {
        connection_of(&rig.mnt).is_some() && rig.json(&["status"])["mountpoint"] != serde_json::Value::Null
    });
    let _watch = watch(&rig.mnt, Some(child.id()));
    assert_eq!(rig.json(&["status"])["worker_pid"], child.id());
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
    assert!(child.try_wait().unwrap().is_none(), "it went to the background");
    rig.ok(&["umount"]);
    let mut status = None;
    wait_until("its end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0));
    let log = fs::read_to_string(errors).unwrap();
    assert!(log.contains("serving 01"), "the log goes to standard error: {log}");
}

#[test]
fn the_stale_mount_and_socket_of_a_killed_daemon_are_cleared_at_the_next_mount() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store();
    rig.mount();
    rig.ok(&["switch", "02"]);
    let pid = rig.pids()[0];
    // Somebody keeps it mounted: the kernel does not clear it by itself.
    let held = File::open(rig.mnt.join("index.html")).unwrap();
    signal(pid, Signal::KILL);
    wait_until("the death of the daemon", || !alive(pid));
    // A request that was on its way gets ECONNABORTED; every later one is told this.
    wait_until("ENOTCONN", || fs::metadata(&rig.mnt).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)));
    assert!(rig.store.join("run/control.sock").exists());
    // What works without a daemon works now, too.
    assert_eq!(rig.json(&["status"])["release"], "02");
    rig.ok(&["switch", "01"]);
    rig.mount();
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = table.lines().filter(|line| line.split(' ').nth(4) == rig.mnt.to_str());
    assert_eq!(mounts.count(), 1, "the stale mount is still there, below");
    let log = fs::read_to_string(&rig.log).unwrap();
    assert!(log.contains("stale"), "the log does not say that one was cleared: {log}");
    drop(held);
    rig.umount();
}

#[test]
fn the_stale_mount_of_a_killed_daemon_can_be_unmounted() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store();
    for lazy in [false, true] {
        for by_store in [false, true] {
            rig.mount();
            let pid = rig.pids()[0];
            let held = File::open(rig.mnt.join("index.html")).unwrap();
            signal(pid, Signal::KILL);
            wait_until("the death of the daemon", || !alive(pid));
            let what = if by_store { &rig.store } else { &rig.mnt };
            let mut args = vec!["umount", what.to_str().unwrap()];
            args.extend(lazy.then_some("--lazy"));
            rig.ok(&args);
            assert_eq!(connection_of(&rig.mnt), None);
            assert_eq!(fs::read_dir(&rig.mnt).unwrap().count(), 0);
            drop(held);
        }
    }
}

#[test]
fn a_mount_of_a_killed_daemon_elsewhere_does_not_keep_the_store_from_being_mounted() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store();
    rig.mount();
    let pid = rig.pids()[0];
    signal(pid, Signal::KILL);
    wait_until("the death of the daemon", || !alive(pid));
    let other = rig.root().join("other");
    fs::create_dir(&other).unwrap();
    let args = ["mount", rig.store.to_str().unwrap(), other.to_str().unwrap()];
    let _watch = super::watch::mounted(&rig, &args, &other);
    assert_eq!(fs::read(other.join("index.html")).unwrap(), b"one");
    // Nobody served the old one: the new daemon took it away.
    assert_eq!(connection_of(&rig.mnt), None);
    rig.ok(&["umount", other.to_str().unwrap()]);
}
