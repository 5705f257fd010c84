//! Microbenchmarks of the pure paths that a request or a switch goes through: cargo bench --bench paths
//!
//! With `--test`, as `cargo test --benches` runs it, the trees are small.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up has nothing to say")]

use divan::{Bencher, black_box};
use std::path::Path;
use std::sync::LazyLock;
use verfs::store::release::manifest::{BuildNode, Builder, Manifest};
use verfs::tree::change_set;
use verfs::tree::{Digest, Kind};

/// Files in the one directory that is searched.
const WIDE: usize = 10_000;
/// Files of a directory in the large trees.
const FANOUT: usize = 100;
/// Files that differ between the two large trees.
const CHANGED: usize = 100;

/// 1,000,000; 20,000 if this only shows that it works.
static FILES: LazyLock<usize> =
    LazyLock::new(|| if std::env::args().any(|word| word == "--bench") { 1_000_000 } else { 20_000 });

/// Two trees of `FILES`, in which `CHANGED` files have another content.
static PAIR: LazyLock<[Manifest; 2]> = LazyLock::new(|| [0, 1].map(|edition| manifest(tree(*FILES, FANOUT, edition))));

fn main() {
    divan::main();
}

/// A lookup of each name of a directory of 10,000 in turn.
#[divan::bench]
fn lookup_in_10_000(bencher: Bencher) {
    let manifest = manifest(tree(WIDE, WIDE, 0));
    // The first use of a directory compares it with its digest: not what is meant here.
    let directory = manifest.find_path(b"directory-0").unwrap().unwrap();
    assert_eq!(manifest.find_child(directory, b"no-such-name").unwrap(), None);
    let names: Vec<String> = (0..WIDE).map(name_of).collect();
    let mut next = names.iter().cycle();
    bencher.bench_local(|| {
        let name = next.next().unwrap();
        manifest.find_child(directory, black_box(name.as_bytes())).unwrap().unwrap()
    });
}

/// A lookup of a name that is not there.
#[divan::bench]
fn lookup_of_a_missing_name_in_10_000(bencher: Bencher) {
    let manifest = manifest(tree(WIDE, WIDE, 0));
    // The first use of a directory compares it with its digest: not what is meant here.
    let directory = manifest.find_path(b"directory-0").unwrap().unwrap();
    assert_eq!(manifest.find_child(directory, b"no-such-name").unwrap(), None);
    bencher.bench_local(|| manifest.find_child(directory, black_box(b"file-5000.html")).unwrap().is_none());
}

/// The change set of two trees of 1,000,000 files of which 100 differ.
#[divan::bench]
fn change_set_of_two_large_trees(bencher: Bencher) {
    let [old, new] = &*PAIR;
    assert_eq!(change_set(old, new).unwrap().entries.len(), CHANGED);
    bencher.bench_local(|| change_set(black_box(old), black_box(new)).unwrap());
}

/// The manifest of a tenth of the files, from nodes in memory to its bytes.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn manifest_of_a_tenth_of_the_files(bencher: Bencher) {
    bencher.with_inputs(|| tree(*FILES / 10, FANOUT, 0)).bench_local_values(|builder| builder.encode(1).unwrap());
}

fn name_of(file: usize) -> String {
    format!("file-{file}.php")
}

/// `files` files, `fanout` in a directory; in edition 1 some have another content.
fn tree(files: usize, fanout: usize, edition: usize) -> Builder {
    let mut builder = Builder::new(BuildNode::new(b"", Kind::Dir, 0o755));
    let (mut directory, every) = (0, (files / CHANGED).max(1));
    for file in 0..files {
        if file % fanout == 0 {
            let name = format!("directory-{}", file / fanout);
            directory = builder.push(0, BuildNode::new(name.as_bytes(), Kind::Dir, 0o755));
        }
        let mut node = BuildNode::new(name_of(file).as_bytes(), Kind::File, 0o644);
        let edition = if file % every == 0 { edition } else { 0 };
        (node.digest, node.size) = (Digest::of(format!("{file} {edition}").as_bytes()), 3000);
        builder.push(directory, node);
    }
    builder
}

fn manifest(builder: Builder) -> Manifest {
    Manifest::from_bytes(builder.encode(1).unwrap(), Path::new("in memory")).unwrap()
}
