//! The manifest of a release: any bytes are a manifest or an error, and so is every question to it.
//!
//! The header carries its own checksum, which random bytes never meet. So the input is used twice: as a file, and as
//! a list of patches (offset 2 bytes, value 1) to what follows the header of a sound one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;
use verfs::store::release::manifest::{BuildNode, Builder, Manifest};
use verfs::tree::{Digest, Kind, NodeId, Tree, change_set};

/// Bytes of the header.
const HEADER: usize = 4096;

static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut builder = Builder::new(BuildNode::new(b"", Kind::Dir, 0o755));
    let mut dir = 0;
    for depth in 0..4u8 {
        let name = [b'd', depth];
        dir = builder.push(dir, BuildNode::new(&name, Kind::Dir, 0o755));
        for file in 0..5u8 {
            let mut node = BuildNode::new(&[b'f', file], Kind::File, 0o644);
            node.size = u64::from(file);
            node.digest = Digest::of(&[file]);
            if file == 3 {
                node.xattrs = vec![(b"user.a".to_vec(), vec![depth; 9])];
            }
            builder.push(dir, node);
        }
        let mut link = BuildNode::new(b"link", Kind::Symlink, 0o777);
        link.target = b"../f1".to_vec();
        builder.push(dir, link);
    }
    builder.encode(1_700_000_000).expect("a sound tree has a manifest")
});

static REFERENCE: LazyLock<Manifest> = LazyLock::new(|| open(SOUND.clone()).expect("a sound manifest is read"));

fuzz_target!(|input: &[u8]| {
    if let Some(manifest) = open(input.to_vec()) {
        ask_everything(&manifest);
    }
    let mut bytes = SOUND.clone();
    let body = bytes.len() - HEADER;
    for patch in input.chunks_exact(3) {
        let offset = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % body;
        bytes[HEADER + offset] = patch[2];
    }
    let untouched = bytes == *SOUND;
    if let Some(manifest) = open(bytes) {
        assert_eq!(manifest.verify().is_ok(), untouched);
        ask_everything(&manifest);
    }
});

fn open(bytes: Vec<u8>) -> Option<Manifest> {
    Manifest::from_bytes(bytes, Path::new("fuzzed")).ok()
}

/// Every answer may be an error. The numbers go past the end on purpose.
fn ask_everything(manifest: &Manifest) {
    for index in (0..manifest.len().min(1000) + 2).chain([u32::MAX]) {
        if let Ok(node) = manifest.node(index) {
            let _ = manifest.find_node(node.nodeid);
        }
        if let Ok(path) = manifest.path_of(index) {
            let _ = manifest.find_path(&path);
        }
        let _ = manifest.name(index);
        let _ = manifest.children(index);
        let _ = manifest.digest(index);
        let _ = manifest.target(index);
        let _ = manifest.xattrs(index);
        let _ = manifest.find_child(index, b"link");
    }
    for nodeid in [0, 1, u64::MAX >> 1, u64::MAX] {
        let _ = manifest.find_node(NodeId(nodeid));
    }
    let _ = change_set(manifest, &*REFERENCE);
    let _ = change_set(&*REFERENCE, manifest);
}
