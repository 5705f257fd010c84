//! What is built can be found again, and no damage makes it crash.

use super::*;
use proptest::prelude::*;

fn file(name: &[u8], content: &[u8]) -> BuildNode {
    let mut node = BuildNode::new(name, Kind::File, 0o644);
    (node.digest, node.size) = (Digest::of(content), content.len() as u64);
    node.owner = Owner { uid: 33, gid: 44 };
    node
}

fn sample() -> Vec<u8> {
    let mut builder = Builder::new(BuildNode::new(b"", Kind::Dir, 0o755));
    let dir = builder.push(0, BuildNode::new(b"d", Kind::Dir, 0o750));
    builder.push(dir, file(b"z", b"zz"));
    let mut tagged = file(b"a\xff", b"aa");
    tagged.xattrs = vec![(b"user.k".to_vec(), b"v".to_vec()), (b"user.e".to_vec(), Vec::new())];
    tagged.mtime = -5;
    builder.push(dir, tagged);
    let mut link = BuildNode::new(b"l", Kind::Symlink, 0o777);
    link.target = b"d/z".to_vec();
    builder.push(0, link);
    builder.push(0, BuildNode::new(b"empty", Kind::Dir, 0o755));
    builder.encode(77).expect("sample")
}

fn open(bytes: Vec<u8>) -> Result<Manifest> {
    Manifest::from_bytes(bytes, Path::new("releases/x"))
}

/// Asks for everything that a mount could ask for.
fn walk(manifest: &Manifest) -> Result<u64> {
    let mut seen = 0;
    for index in 0..manifest.len() {
        let node = manifest.node(index)?;
        seen += manifest.xattrs(index)?.len() as u64 + manifest.path_of(index)?.len() as u64;
        manifest.find_node(node.nodeid)?;
        match node.kind {
            Kind::Dir => {
                for child in manifest.children(index)? {
                    manifest.find_child(index, manifest.name(child)?)?;
                }
            }
            Kind::Symlink => seen += manifest.target(index)?.len() as u64,
            Kind::File => {}
        }
    }
    Ok(seen)
}

#[test]
fn what_was_built_is_found_by_name_path_and_nodeid() {
    let manifest = open(sample()).expect("whole");
    manifest.verify().expect("whole");
    assert_eq!((manifest.len(), manifest.files(), manifest.content_bytes(), manifest.added()), (6, 2, 4, 77));
    let at = manifest.find_path(b"d/a\xff").expect("whole").expect("there");
    let node = manifest.node(at).expect("whole");
    assert_eq!((node.mode, node.size, node.mtime, node.owner), (0o644, 2, -5, Owner { uid: 33, gid: 44 }));
    assert_eq!(manifest.find_node(node.nodeid).expect("whole"), Some(at));
    assert_eq!(manifest.path_of(at).expect("whole"), b"d/a\xff");
    assert_eq!(manifest.xattrs(at).expect("whole")[0], (b"user.k".to_vec(), b"v".to_vec()));
    assert_eq!(manifest.find_path(b"d/none").expect("whole"), None);
    assert_eq!(manifest.find_path(b"l/z").expect("whole"), None, "a path does not follow symlinks");
    let link = manifest.find_path(b"l").expect("whole").expect("there");
    assert_eq!(manifest.target(link).expect("whole"), b"d/z");
    assert_eq!(manifest.find_node(NodeId(12345)).expect("whole"), None);
    assert_eq!(manifest.find_node(NodeId::ROOT).expect("whole"), Some(0));
}

#[test]
fn every_node_of_a_large_manifest_is_found() {
    let mut builder = Builder::new(BuildNode::new(b"", Kind::Dir, 0o755));
    for n in 0..5000u32 {
        builder.push(0, file(format!("f{n}").as_bytes(), &n.to_le_bytes()));
    }
    let manifest = open(builder.encode(0).expect("encode")).expect("open");
    for index in 0..manifest.len() {
        let node = manifest.node(index).expect("node");
        assert_eq!(manifest.find_node(node.nodeid).expect("find"), Some(index));
        assert_eq!(manifest.find_node(NodeId(node.nodeid.0 ^ (1 << 40))).expect("find"), None);
    }
}

#[test]
fn a_truncated_manifest_is_refused_by_name() {
    let bytes = sample();
    for len in [0, 1, 4095, 4096, bytes.len() - 1] {
        let error = open(bytes[..len].to_vec()).expect_err("cut off");
        assert!(error.to_string().contains("releases/x"), "{error}");
    }
}

#[test]
fn every_flipped_byte_is_noticed_by_verify_or_changes_nothing_that_is_hashed() {
    let bytes = sample();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x41;
        let noticed = open(bad).and_then(|manifest| manifest.verify()).is_err();
        assert!(noticed, "flipped byte {at}");
    }
}

#[test]
fn a_directory_whose_entries_were_changed_is_refused_when_it_is_first_used() {
    let bytes = sample();
    let whole = open(bytes.clone()).expect("whole");
    let at = whole.find_path(b"d/z").expect("whole").expect("there");
    let mut bad = bytes;
    // The mode of the record.
    bad[format::HEADER_LEN + at as usize * 40 + 32] ^= 0o7;
    let manifest = open(bad).expect("the header is whole");
    let dir = manifest.find_path(b"d").expect("the root is whole").expect("there");
    let error = manifest.find_child(dir, b"z").expect_err("its directory is not");
    assert!(error.to_string().contains("releases/x"), "{error}");
    assert_eq!(error.errno(), Errno::IO);
}

#[test]
fn digests_leave_out_mtimes_and_nothing_else() {
    let build = |change: &dyn Fn(&mut BuildNode)| {
        let mut builder = Builder::new(BuildNode::new(b"", Kind::Dir, 0o755));
        let mut node = file(b"f", b"x");
        change(&mut node);
        builder.push(0, node);
        open(builder.encode(0).expect("encode")).and_then(|m| m.digest(0)).expect("digest")
    };
    let base = build(&|_| {});
    assert_eq!(base, build(&|node| node.mtime = 99));
    let others: [&dyn Fn(&mut BuildNode); 6] = [
        &|node| node.mode = 0o600,
        &|node| node.owner.uid = 1,
        &|node| node.name = b"g".to_vec(),
        &|node| node.digest = Digest::of(b"y"),
        &|node| node.size = 2,
        &|node| node.xattrs = vec![(b"user.a".to_vec(), b"b".to_vec())],
    ];
    for (at, change) in others.iter().enumerate() {
        assert_ne!(base, build(change), "change {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn no_damage_makes_it_crash(hits in proptest::collection::vec((0usize..8192, any::<u8>()), 1..6)) {
        let mut bytes = sample();
        let body = bytes.len() - format::HEADER_LEN;
        for (at, value) in hits {
            // The body only: a header that does not match its checksum is refused at once.
            bytes[format::HEADER_LEN + at % body] = value;
        }
        if let Ok(manifest) = open(bytes) {
            let _ = walk(&manifest);
            let _ = crate::tree::change_set(&manifest, &open(sample()).expect("whole"));
        }
    }
}
