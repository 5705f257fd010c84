//! What web servers do with files beyond read(2): mmap, sendfile, statfs.
#![allow(unsafe_code)]

use super::plain::serve;
use super::support::tree::Tree;
use super::support::{self, Rig};
use memmap2::Mmap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::thread;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251 + at) as u8).collect()
}

#[test]
fn a_mapping_shows_the_file_and_keeps_showing_it_after_a_switch() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let bytes = pattern(3_000_003);
    rig.init();
    rig.add("01", &Tree::new().file("film", &bytes));
    rig.add("02", &Tree::new().file("film", pattern(500)));
    rig.add("03", &Tree::new().file("other", "no film"));
    rig.ok(&["switch", "01"]);
    rig.mount();
    let file = File::open(rig.mnt.join("film")).unwrap();
    // SAFETY: a release file never changes, nor is it cut, while it is mapped.
    let mapped = unsafe { Mmap::map(&file).unwrap() };
    assert!(mapped[..100] == bytes[..100]);
    for release in ["02", "03"] {
        rig.ok(&["switch", release]);
        assert!(mapped[..] == bytes, "the mapping shows something else after {release}");
    }
    assert!(!rig.mnt.join("film").exists());
    drop((mapped, file));
    rig.umount();
}

#[test]
fn sendfile_sends_the_file_from_any_offset() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let bytes = pattern(2_000_001);
    let source = rig.src.join("01");
    Tree::new().file("film", &bytes).write(&source);
    serve(&mut rig, &source);
    let file = File::open(rig.mnt.join("film")).unwrap();
    for from in [0, 1, 4095, 1_999_999, 2_000_001] {
        let (near, mut far) = UnixStream::pair().unwrap();
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            far.read_to_end(&mut got).unwrap();
            got
        });
        let mut at = from as u64;
        while rustix::fs::sendfile(&near, &file, Some(&mut at), 1 << 20).unwrap() > 0 {}
        drop(near);
        assert!(reader.join().unwrap() == bytes[from..], "from {from}");
    }
    drop(file);
    rig.umount();
}

#[test]
fn reads_of_every_size_and_offset_give_the_right_bytes() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let bytes = pattern(300_007);
    let source = rig.src.join("01");
    Tree::new().file("film", &bytes).write(&source);
    serve(&mut rig, &source);
    let mut file = File::open(rig.mnt.join("film")).unwrap();
    for (from, len) in [(0, 1), (4095, 2), (131_071, 131_073), (299_000, 1007), (1, 300_006)] {
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
        file.seek(SeekFrom::Start(from)).unwrap();
        let mut got = vec![0; len];
        file.read_exact(&mut got).unwrap();
        let from = from as usize;
        assert!(got == bytes[from..from + len], "{len} bytes from {from}");
    }
    assert_eq!(file.read(&mut [0; 10]).unwrap(), 0);
    drop(file);
    rig.umount();
}

#[test]
fn statfs_tells_of_the_disk_of_the_store() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    Tree::new().file("x", "x").write(&source);
    serve(&mut rig, &source);
    let here = rustix::fs::statvfs(&rig.mnt).unwrap();
    let disk = rustix::fs::statvfs(&rig.store).unwrap();
    assert_eq!(here.f_blocks * here.f_frsize, disk.f_blocks * disk.f_frsize);
    assert_eq!(here.f_namemax, 255);
    let (ours, theirs) = (here.f_bavail * here.f_frsize, disk.f_bavail * disk.f_frsize);
    assert!(ours.abs_diff(theirs) < 8 << 30, "{ours} bytes free, and the disk has {theirs}");
    rig.umount();
}
