//! Large and sparse files.

use super::plain::serve;
use super::support::pages::wait_until_let_go;
use super::support::{self, Rig};
use rustix::fs::{SeekFrom, seek};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const GIB: u64 = 1 << 30;
/// The longest hole that the file system may fill to the next block.
const SLACK: u64 = 1 << 20;

/// Makes a file of holes, with these bytes at these places.
fn sparse(path: &Path, len: u64, data: &[(u64, &[u8])]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    for (at, bytes) in data {
        file.write_all_at(bytes, *at).unwrap();
    }
    file.sync_all().unwrap();
}

fn on_disk(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Bytes that the objects of the store take on disk.
fn objects_on_disk(rig: &Rig) -> u64 {
    let shards = fs::read_dir(rig.store.join("objects")).unwrap().flatten();
    let objects = shards.flat_map(|shard| fs::read_dir(shard.path()).unwrap().flatten());
    objects.map(|object| on_disk(&object.path())).sum()
}

#[test]
fn a_file_over_4_gib_is_read_at_the_right_offsets_and_stays_sparse() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    let data: [(u64, &[u8]); 5] = [
        (0, b"at the start"),
        (2 * GIB - 6, b"across two"),
        (4 * GIB - 6, b"across four"),
        (4 * GIB + 4096, b"past four"),
        (5 * GIB - 10, b"at the end"),
    ];
    sparse(&source.join("disk.img"), 5 * GIB, &data);
    serve(&mut rig, &source);
    let path = rig.mnt.join("disk.img");
    assert_eq!(fs::metadata(&path).unwrap().len(), 5 * GIB);
    let file = File::open(&path).unwrap();
    let read = |at: u64, len: usize| {
        let mut bytes = vec![1; len];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    for (at, bytes) in data {
        assert_eq!(read(at, bytes.len()), bytes, "at {at}");
    }
    for at in [100, GIB, 3 * GIB + 1, 4 * GIB + 5, 5 * GIB - 5000] {
        assert_eq!(read(at, 64), [0; 64], "at {at}");
    }
    let mut past = [0; 10];
    assert_eq!(file.read_at(&mut past, 5 * GIB - 3).unwrap(), 3);
    assert_eq!(file.read_at(&mut past, 5 * GIB).unwrap(), 0);
    assert_eq!(file.read_at(&mut past, 6 * GIB).unwrap(), 0);
    drop(file);
    // A hole is kept where a whole block of the copy, of 1 MiB, has nothing in it.
    assert!(objects_on_disk(&rig) < 8 * SLACK, "{} bytes", objects_on_disk(&rig));
    rig.umount();
}

#[test]
fn data_and_holes_of_a_sparse_file_are_found_with_lseek() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    let len = 64 * SLACK;
    let data: [(u64, &[u8]); 2] = [(16 * SLACK, &[7; 4096]), (48 * SLACK, &[8; 4096])];
    sparse(&source.join("sparse"), len, &data);
    sparse(&source.join("hole"), len, &[]);
    fs::write(source.join("full"), vec![9; 3 << 20]).unwrap();
    serve(&mut rig, &source);
    let open = |name: &str| File::open(rig.mnt.join(name)).unwrap();
    let sparse = open("sparse");
    // The copy may have blocks of another size than the source, so the places are bounds.
    let near = |found: u64, at: u64| found <= at && at - found <= SLACK;
    let first = seek(&sparse, SeekFrom::Data(0)).unwrap();
    assert!(near(first, 16 * SLACK), "{first}");
    let hole = seek(&sparse, SeekFrom::Hole(16 * SLACK)).unwrap();
    assert!(hole > 16 * SLACK && hole <= 17 * SLACK, "{hole}");
    let second = seek(&sparse, SeekFrom::Data(hole)).unwrap();
    assert!(near(second, 48 * SLACK), "{second}");
    let beyond = seek(&sparse, SeekFrom::Data(50 * SLACK)).unwrap_err();
    assert_eq!(beyond, rustix::io::Errno::NXIO);
    let past = seek(&sparse, SeekFrom::Hole(len)).unwrap_err();
    assert_eq!(past, rustix::io::Errno::NXIO);
    let full = open("full");
    assert_eq!(seek(&full, SeekFrom::Data(5)).unwrap(), 5);
    assert_eq!(seek(&full, SeekFrom::Hole(5)).unwrap(), 3 << 20);
    let empty = open("hole");
    assert_eq!(seek(&empty, SeekFrom::Hole(0)).unwrap(), 0);
    assert_eq!(seek(&empty, SeekFrom::Data(0)).unwrap_err(), rustix::io::Errno::NXIO);
    assert_eq!(seek(&full, SeekFrom::End(-1)).unwrap(), (3 << 20) - 1);
    drop((sparse, full, empty));
    rig.umount();
}

#[test]
fn a_sparse_file_takes_no_more_room_in_the_store_or_when_exported() {
    let rig = Rig::new();
    let source = rig.src.join("01");
    let len = 64 * SLACK;
    sparse(&source.join("sparse"), len, &[(16 * SLACK, &[7; 4096])]);
    // Small enough to be read whole: its holes need not be kept, its content must.
    sparse(&source.join("small"), SLACK, &[(SLACK / 2, b"x")]);
    rig.init();
    rig.ok(&[OsStr::new("add"), OsStr::new("01"), source.as_os_str()]);
    assert!(objects_on_disk(&rig) < 4 * SLACK, "{} bytes", objects_on_disk(&rig));
    let out = rig.root().join("out");
    rig.ok(&[OsStr::new("export"), OsStr::new("01"), out.as_os_str()]);
    for name in ["sparse", "small"] {
        let same = fs::read(out.join(name)).unwrap() == fs::read(source.join(name)).unwrap();
        assert!(same, "{name} is not the same");
    }
    let exported = on_disk(&out.join("sparse"));
    assert!(exported < 4 * SLACK, "the exported file takes {exported} bytes of disk");
}

#[test]
fn a_file_of_zeros_is_a_file_of_zeros() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    fs::create_dir(&source).unwrap();
    // Lengths around the sizes at which files are read in another way.
    let lengths = [1, 4095, 4096, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (2 << 20) + 7];
    for len in lengths {
        fs::write(source.join(format!("zeros-{len}")), vec![0; len]).unwrap();
        let mut ends = vec![0; len];
        ends[len - 1] = 1;
        fs::write(source.join(format!("ends-{len}")), ends).unwrap();
    }
    serve(&mut rig, &source);
    for len in lengths {
        for kind in ["zeros", "ends"] {
            let name = format!("{kind}-{len}");
            let same = fs::read(rig.mnt.join(&name)).unwrap() == fs::read(source.join(&name)).unwrap();
            assert!(same, "{name} is not the same");
        }
    }
    assert_eq!(rig.verfs(&["verify"]).code, 0);
    rig.umount();
}

#[test]
fn a_large_file_is_read_ahead_by_a_mib_and_kept_in_memory_once() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    fs::create_dir_all(&source).unwrap();
    let content: Vec<u8> = (0..4u32 << 20).flat_map(u32::to_le_bytes).collect();
    fs::write(source.join("film"), &content).unwrap();
    serve(&mut rig, &source);
    let hex = blake3::hash(&content).to_hex();
    let object = rig.store.join("objects").join(&hex[..2]).join(&hex[2..]);
    assert_eq!(fs::read(rig.mnt.join("film")).unwrap(), content);
    let reads = rig.json(&["status"])["upcalls"]["read"].as_u64().unwrap();
    assert!(reads <= 24, "{reads} READs for 16 MiB");
    wait_until_let_go(&object, content.len() as u64 / 10);
    assert_eq!(fs::read(rig.mnt.join("film")).unwrap(), content);
    rig.umount();
}
