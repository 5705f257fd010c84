//! `umount`: busy, lazy, by store and by mountpoint.

use super::support::deadline::{alive, connection_of};
use super::support::tree::Tree;
use super::support::{self, Rig};
use memmap2::Mmap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A process that holds something; it ends with the test.
struct Holder(Child);

impl Holder {
    /// Runs a shell script in a directory; it must hold on to what it holds, for a minute at most.
    fn new(script: &str, dir: &Path) -> Holder {
        let mut child = Command::new("sh")
            .args(["-c", &format!("{script}; echo ready; read -r word")])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; 5];
        child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        assert_eq!(&word, b"ready");
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mounted() -> Rig {
    let mut rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("index.html", "one").file("dir/page", "p"));
    rig.mount();
    rig
}

#[test]
fn umount_takes_the_store_the_mountpoint_or_nothing() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = mounted();
    let (store, mnt) = (rig.store.display().to_string(), rig.mnt.display().to_string());
    let slash = format!("{mnt}/");
    let words: [&[&str]; 5] = [&[], &[&store], &[&mnt], &[&slash], &[&mnt, "--store", &store]];
    for what in words {
        let pid = rig.pids()[0];
        rig.ok(&[&["umount"], what].concat());
        assert_eq!(connection_of(&rig.mnt), None, "{what:?}");
        assert!(!alive(pid), "{what:?}: the daemon lives on");
        rig.mount();
    }
    rig.umount();
    for what in [&store, &mnt, &"/".to_owned()] {
        let outcome = rig.verfs(&["umount", what]);
        assert_eq!(outcome.code, 2, "{outcome:?}");
        assert!(outcome.stderr.contains(what) && outcome.stderr.contains("not mounted"), "{outcome:?}");
    }
}

#[test]
fn a_busy_mount_names_every_process_that_holds_it_and_stays() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = mounted();
    let open = Holder::new("exec 9<mnt/index.html", rig.root());
    let inside = Holder::new(":", &rig.mnt.join("dir"));
    let outcome = rig.verfs(&["umount"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("busy"), "{outcome:?}");
    for (holder, what) in [(&open, "index.html"), (&inside, "dir")] {
        let pid = holder.0.id().to_string();
        assert!(outcome.stderr.contains(&pid), "{pid} is not named: {outcome:?}");
        assert!(outcome.stderr.contains(what), "{what} is not named: {outcome:?}");
    }
    assert!(outcome.stderr.contains("sh") && outcome.stderr.contains("--lazy"), "{outcome:?}");
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
    assert!(alive(rig.pids()[0]));
    let outcome = rig.verfs(&["umount", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&outcome.stderr).unwrap();
    assert_eq!(error["code"], 1);
    drop((open, inside));
    rig.umount();
}

#[test]
#[allow(unsafe_code)]
fn a_mapping_holds_a_mount_too_and_its_process_is_named() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = mounted();
    let file = File::open(rig.mnt.join("index.html")).unwrap();
    // SAFETY: a release file never changes, nor is it cut, while it is mapped.
    let mapped = unsafe { Mmap::map(&file).unwrap() };
    drop(file);
    let outcome = rig.verfs(&["umount"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let pid = std::process::id().to_string();
    assert!(outcome.stderr.contains(&pid), "{pid} is not named: {outcome:?}");
    assert_eq!(&mapped[..], b"one");
    drop(mapped);
    rig.umount();
}

#[test]
fn a_lazy_umount_takes_it_out_of_the_tree_and_ends_when_it_is_let_go() {
    if support::skip_mounted() {
        return;
    }
    let rig = mounted();
    let pid = rig.pids()[0];
    let mut held = File::open(rig.mnt.join("index.html")).unwrap();
    rig.ok(&["umount", "--lazy"]);
    assert_eq!(connection_of(&rig.mnt), None);
    assert_eq!(fs::read_dir(&rig.mnt).unwrap().count(), 0);
    // Who has a file open may read it to its end.
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one");
    assert!(alive(pid), "the daemon went while a file was held");
    drop(held);
    let end = Instant::now() + Duration::from_secs(10);
    while alive(pid) {
        assert!(Instant::now() < end, "the daemon lives on");
        thread::sleep(Duration::from_millis(5));
    }
}
