//! Long names, names of any bytes, long paths, large directories.

use super::plain::{Look, assert_alike, serve, tree};
use super::support::tree::{Entry, Tree};
use super::support::{self, Rig};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, mkdirat, openat, statat};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

#[test]
fn names_of_255_bytes_are_served_and_longer_ones_are_refused_by_name() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let (file, dir) = ("f".repeat(255), "d".repeat(255));
    let wide = "é".repeat(127) + "x";
    assert_eq!(wide.len(), 255);
    let source = rig.src.join("01");
    let inside = format!("{dir}/{file}");
    let tree_of_names = Tree::new().file(&file, "long").file(&inside, "longer").file(&wide, "wide");
    tree_of_names.symlink("l".repeat(255), &inside).write(&source);
    serve(&mut rig, &source);
    assert_eq!(fs::read(rig.mnt.join(&file)).unwrap(), b"long");
    assert_eq!(fs::read(rig.mnt.join("l".repeat(255))).unwrap(), b"longer");
    assert_alike(&tree(&source, Look::SERVED), &tree(&rig.mnt, Look::SERVED));
    let error = fs::metadata(rig.mnt.join("f".repeat(256))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    rig.umount();
}

#[test]
fn names_that_are_not_utf8_are_served_byte_for_byte() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let mut wild = Tree::new();
    // Every byte that a name can hold, alone, doubled, and in a directory of that name.
    for byte in (1..=255).filter(|byte| *byte != b'/' && *byte != b'.') {
        wild.insert([byte], Entry::File(vec![byte]));
        wild.insert([b'd', byte, b'/', byte, byte], Entry::File(vec![byte, byte]));
    }
    wild.insert(b"caf\xe9", Entry::Symlink(b"\xff".to_vec()));
    wild.insert("café", Entry::File(b"utf-8".to_vec()));
    wild.insert("...", Entry::File(b"dots".to_vec()));
    wild.insert("a\nb\tc \"d\" 'e' \\ $f", Entry::File(b"shell".to_vec()));
    let source = rig.src.join("01");
    wild.write(&source);
    serve(&mut rig, &source);
    assert_alike(&tree(&source, Look::SERVED), &tree(&rig.mnt, Look::SERVED));
    assert_eq!(fs::read(rig.mnt.join(OsStr::from_bytes(b"\xff"))).unwrap(), b"\xff");
    assert_eq!(fs::read(rig.mnt.join(OsStr::from_bytes(b"caf\xe9"))).unwrap(), b"\xff");

    // And in JSON, percent-encoded.
    let bare = rig.src.join("02");
    Tree::new().file(b"50%\xff", "x").file("caf\u{e9}%", "y").write(&bare);
    rig.ok(&[OsStr::new("add"), OsStr::new("02"), bare.as_os_str()]);
    let diff = rig.json(&["diff", "01", "02"]);
    let added: Vec<&str> = diff
        .as_array()
        .unwrap()
        .iter()
        .filter(|line| line["change"] == "added")
        .map(|line| line["path"].as_str().unwrap())
        .collect();
    assert_eq!(added, ["50%25%FF", "caf\u{e9}%"]);
    rig.umount();
}

/// Makes directories one in the other below `root`, and a file in the last of them; `path` is
/// longer than any system call takes with the root before it.
fn make_deep(root: &std::path::Path, parts: &[String]) {
    fs::create_dir_all(root).unwrap();
    let mut dir = OwnedFd::from(File::open(root).unwrap());
    let (name, dirs) = parts.split_last().unwrap();
    for part in dirs {
        mkdirat(&dir, part, Mode::RWXU).unwrap();
        dir = openat(&dir, part, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let mut file = File::from(openat(&dir, name, flags, Mode::RUSR).unwrap());
    file.write_all(b"far down").unwrap();
}

#[test]
fn paths_of_4000_bytes_are_added_served_switched_and_exported() {
    if support::skip_mounted() {
        return;
    }
    // 16 names of 240 bytes and one of 144, with 16 slashes: 4,000. And the longest at all, 4,095.
    let of_4000: Vec<String> = (0..16).map(|_| "p".repeat(240)).chain(["q".repeat(144)]).collect();
    let of_4095: Vec<String> = (0..16).map(|_| "r".repeat(239)).chain(["s".repeat(255)]).collect();
    assert_eq!(of_4000.join("/").len(), 4000);
    assert_eq!(of_4095.join("/").len(), 4095);
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    make_deep(&source, &of_4000);
    make_deep(&source, &of_4095);
    serve(&mut rig, &source);
    let root = File::open(&rig.mnt).unwrap();
    for parts in [&of_4000, &of_4095] {
        let path = parts.join("/");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        let mut file = File::from(openat(&root, &path, flags, Mode::empty()).unwrap());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "far down");
    }
    assert_alike(&tree(&source, Look::SERVED), &tree(&rig.mnt, Look::SERVED));

    let other = rig.src.join("02");
    Tree::new().file("index.html", "flat").write(&other);
    rig.ok(&[OsStr::new("add"), OsStr::new("02"), other.as_os_str()]);
    rig.ok(&["switch", "02"]);
    let gone = statat(&root, of_4000.join("/"), AtFlags::SYMLINK_NOFOLLOW).unwrap_err();
    assert_eq!(gone, rustix::io::Errno::NOENT);
    rig.ok(&["rollback"]);
    statat(&root, of_4000.join("/"), AtFlags::SYMLINK_NOFOLLOW).unwrap();

    // Where it is exported to counts against the longest path of a call: here it is too long.
    let out = rig.root().join("o".repeat(255));
    rig.ok(&[OsStr::new("export"), OsStr::new("01"), out.as_os_str()]);
    assert_alike(&tree(&source, Look::WHOLE), &tree(&out, Look::WHOLE));
    drop(root);
    rig.umount();
}

#[test]
fn a_directory_of_100000_entries_is_listed_whole_and_switched() {
    if support::skip_mounted() {
        return;
    }
    const ENTRIES: usize = 100_000;
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    let many = source.join("many");
    fs::create_dir_all(&many).unwrap();
    let name = |number: usize| format!("entry-{number:06}");
    let first = many.join(name(0));
    fs::write(&first, "the same").unwrap();
    for number in 1..ENTRIES {
        // Links share an inode, which is quicker to make; to a release they are files.
        let from = if number % 30_000 == 0 { &first } else { &many.join(name(number - 1)) };
        if number % 30_000 == 0 {
            fs::copy(from, many.join(name(number))).unwrap();
        } else {
            fs::hard_link(from, many.join(name(number))).unwrap();
        }
    }
    serve(&mut rig, &source);
    let listed = |rig: &Rig| -> Vec<String> {
        let entries = fs::read_dir(rig.mnt.join("many")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let names = listed(&rig);
    assert_eq!(names.len(), ENTRIES);
    let distinct: BTreeSet<String> = names.into_iter().collect();
    assert_eq!(distinct, (0..ENTRIES).map(name).collect());
    for number in (0..ENTRIES).step_by(9973) {
        assert_eq!(fs::read(rig.mnt.join("many").join(name(number))).unwrap(), b"the same");
    }
    assert!(!rig.mnt.join("many/entry-100000").exists());

    // One more name in it, and it is the only change.
    fs::write(many.join("one-more"), "new").unwrap();
    rig.ok(&[OsStr::new("add"), OsStr::new("02"), source.as_os_str()]);
    assert_eq!(rig.json(&["switch", "02"])["changed"], 1);
    assert_eq!(listed(&rig).len(), ENTRIES + 1);
    assert_eq!(fs::read(rig.mnt.join("many/one-more")).unwrap(), b"new");
    rig.umount();
}

#[test]
fn empty_files_and_empty_directories_are_served() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    Tree::new().file("empty", "").dir("nothing").dir("a/b/c/d").file("a/none", "").write(&source);
    serve(&mut rig, &source);
    assert_alike(&tree(&source, Look::SERVED), &tree(&rig.mnt, Look::SERVED));
    assert_eq!(fs::read_dir(rig.mnt.join("nothing")).unwrap().count(), 0);
    assert_eq!(fs::read(rig.mnt.join("empty")).unwrap(), b"");
    rig.umount();
}

#[test]
fn an_empty_release_is_served_and_switched_to_and_from() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    Tree::new().write(&source);
    serve(&mut rig, &source);
    assert_eq!(fs::read_dir(&rig.mnt).unwrap().count(), 0);
    rig.add("02", &Tree::new().file("a/b", "c"));
    rig.ok(&["switch", "02"]);
    assert_eq!(fs::read(rig.mnt.join("a/b")).unwrap(), b"c");
    rig.ok(&["rollback"]);
    assert_eq!(fs::read_dir(&rig.mnt).unwrap().count(), 0);
    rig.umount();
}

#[test]
fn what_is_renamed_in_the_source_after_add_stays_in_the_release() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    Tree::new().file("a", "content of a").file("b", "content of b").write(&source);
    serve(&mut rig, &source);
    let exchange = RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(CWD, source.join("a"), CWD, source.join("b"), exchange).unwrap();
    fs::write(source.join("a"), "overwritten").unwrap();
    fs::remove_file(source.join("b")).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_eq!(fs::read(rig.mnt.join("a")).unwrap(), b"content of a");
    assert_eq!(fs::read(rig.mnt.join("b")).unwrap(), b"content of b");
    fs::remove_dir_all(&source).unwrap();
    assert_eq!(fs::read(rig.mnt.join("a")).unwrap(), b"content of a");
    rig.umount();
}
