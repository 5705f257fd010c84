//! A pack: any bytes are a pack or an error, and what it answers is never another content than was asked for.
//!
//! Random bytes never meet a checksum. So the input is used three times: as a file; as a list of patches (offset 2
//! bytes, value 1) to the records and the footer of a sound one; and as records (hash, offset, length) that get the
//! right checksums.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::LazyLock;
use verfs::store::release::objects::{Pack, PackWriter};
use verfs::tree::Digest;

/// Bytes of the contents of the sound pack, and of the parts of any (see src/store/release/objects/pack.rs).
const CONTENTS: usize = 300;
const RECORD: usize = 48;
const FOOTER: usize = 64;

static SOUND: LazyLock<(Vec<u8>, Vec<Digest>)> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("verfs-fuzz-{}", std::process::id()));
    fs::create_dir(&dir).expect("scratch");
    let mut writer = PackWriter::begin(&dir).expect("a pack is begun");
    let contents: Vec<[u8; 30]> = (0..10).map(|number| [number; 30]).collect();
    let digests: Vec<Digest> = contents.iter().map(|content| Digest::of(content)).collect();
    for (digest, content) in digests.iter().zip(&contents) {
        writer.append(*digest, content).expect("it takes contents");
    }
    let (path, _) = writer.finish().expect("it is ended");
    let bytes = fs::read(path).expect("it can be read");
    fs::remove_dir_all(dir).expect("scratch");
    (bytes, digests)
});

fuzz_target!(|input: &[u8]| {
    ask_everything(input);

    let (sound, digests) = &*SOUND;
    let mut bytes = sound.clone();
    for patch in input.chunks_exact(3) {
        let offset = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % (bytes.len() - CONTENTS);
        bytes[CONTENTS + offset] = patch[2];
    }
    let untouched = bytes == *sound;
    with(&bytes, |pack| {
        assert_eq!(pack.verify().is_ok(), untouched);
        for (number, digest) in digests.iter().enumerate() {
            if let Ok(Some(place)) = pack.find(*digest) {
                let start = usize::try_from(place.offset).expect("a place in the file");
                assert_eq!(bytes[start..start + place.len as usize], [number as u8; 30], "another content");
            }
        }
    });
    ask_everything(&bytes);

    ask_everything(&sealed(input));
});

/// A pack of 100 bytes of contents and these records, whatever they say.
fn sealed(input: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 100];
    let records = input.chunks_exact(RECORD - 4);
    let count = records.len() as u32;
    for record in records {
        bytes.extend_from_slice(record);
        bytes.extend_from_slice(&Digest::of(record).0[..4]);
    }
    let mut footer = [&b"verfspak"[..], &1u32.to_le_bytes(), &count.to_le_bytes(), &100u64.to_le_bytes()].concat();
    footer.resize(FOOTER - 32, 0);
    bytes.extend_from_slice(&footer);
    let hash = Digest::of(&bytes[100..]);
    bytes.extend_from_slice(&hash.0);
    with(&bytes, |pack| assert!(pack.verify().is_ok())).expect("its parts fit");
    bytes
}

/// Every answer may be an error; a place is always one in the file.
fn ask_everything(bytes: &[u8]) {
    with(bytes, |pack| {
        let mut known = vec![Digest([0; 32]), Digest([0x80; 32]), Digest([0xff; 32])];
        let _ = pack.each(|digest, place| {
            assert!(place.offset + u64::from(place.len) <= pack.content_bytes());
            known.push(digest);
        });
        assert!(pack.content_bytes() <= bytes.len() as u64);
        for digest in known {
            if let Ok(Some(place)) = pack.find(digest) {
                assert!(place.offset + u64::from(place.len) <= pack.content_bytes());
            }
        }
        let _ = pack.verify();
    });
}

/// `None` if the bytes are no pack.
fn with<T>(bytes: &[u8], work: impl FnOnce(&Pack) -> T) -> Option<T> {
    let mut file = File::from(memfd_create("pack", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all(bytes).expect("room in memory");
    let pack = Pack::open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))).ok()?;
    Some(work(&pack))
}
