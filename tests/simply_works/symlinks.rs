//! Symlinks that point inside, outside, and nowhere.

use super::plain::{Look, assert_alike, serve, tree};
use super::support::tree::Tree;
use super::support::{self, Rig};
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn symlinks_that_point_anywhere_are_served_as_they_are() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let outside = rig.root().join("outside");
    fs::write(&outside, "not in the release").unwrap();
    let longest = "t".repeat(4095);
    let source = rig.src.join("01");
    Tree::new()
        .file("dir/file", "inside")
        .symlink("to-file", "dir/file")
        .symlink("to-dir", "dir")
        .symlink("dir/up", "../dir/file")
        .symlink("absolute", outside.to_str().unwrap())
        .symlink("relative-out", "../outside")
        .symlink("nowhere", "no/such/thing")
        .symlink("loop-a", "loop-b")
        .symlink("loop-b", "loop-a")
        .symlink("itself", "itself")
        .symlink("bytes", b"\xff\xfe")
        .symlink("longest", &longest)
        .write(&source);
    serve(&mut rig, &source);
    assert_alike(&tree(&source, Look::SERVED), &tree(&rig.mnt, Look::SERVED));
    let text = |name: &str| fs::read_to_string(rig.mnt.join(name)).map_err(|e| e.raw_os_error());
    assert_eq!(text("to-file").unwrap(), "inside");
    assert_eq!(text("to-dir/up").unwrap(), "inside");
    assert_eq!(text("absolute").unwrap(), "not in the release");
    assert_eq!(text("relative-out").unwrap(), "not in the release");
    assert_eq!(text("nowhere"), Err(Some(libc::ENOENT)));
    assert_eq!(text("loop-a"), Err(Some(libc::ELOOP)));
    assert_eq!(text("itself"), Err(Some(libc::ELOOP)));
    let target = fs::read_link(rig.mnt.join("longest")).unwrap();
    assert_eq!(target, PathBuf::from(longest));
    let size = fs::symlink_metadata(rig.mnt.join("to-file")).unwrap().len();
    assert_eq!(size, 8, "the size of a symlink is the length of its target");
    rig.umount();
}

#[test]
fn a_symlink_that_changes_its_target_is_followed_to_the_new_one_at_once() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    for (name, target) in [("01", "a"), ("02", "b")] {
        let tree = Tree::new().file("a", "text a").file("b", "text b");
        rig.add(name, &tree.symlink("link", target));
    }
    rig.ok(&["switch", "01"]);
    rig.mount();
    for (release, text, target) in [("02", "text b", "b"), ("01", "text a", "a"), ("02", "text b", "b")] {
        rig.ok(&["switch", release]);
        assert_eq!(fs::read_to_string(rig.mnt.join("link")).unwrap(), text);
        assert_eq!(fs::read_link(rig.mnt.join("link")).unwrap(), Path::new(target));
    }
    rig.umount();
}
