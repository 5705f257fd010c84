//! `export` gives back exactly what was added.

use super::plain::{Look, assert_alike, tree};
use super::support::Rig;
use super::support::tree::{Tree, set_mtime};
use rustix::fs::{XattrFlags, setxattr};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::path::Path;

/// A source with something of everything.
fn write_source(source: &Path) {
    let mut wild = Tree::new()
        .file("index.html", "<p>")
        .file("empty", "")
        .file(b"caf\xe9/\xff\n", "bytes")
        .dir("nothing")
        .file("css/deep/er/a.css", "a {}")
        .file("big", vec![5; (1 << 20) + 1])
        .symlink("link", "css/deep")
        .symlink("dangling", "../no/such")
        .symlink("abs", "/etc/hostname");
    for number in 0..50 {
        wild = wild.file(format!("many/{number}"), format!("{}", number % 3));
    }
    wild.write(source);
    let flags = XattrFlags::empty();
    setxattr(source.join("index.html"), "user.mime", b"text/html\0", flags).unwrap();
    setxattr(source.join("nothing"), "user.note", b"empty", flags).unwrap();
    chown(source.join("css"), Some(33), Some(33)).unwrap();
    chown(source.join("index.html"), Some(1234), Some(5678)).unwrap();
    lchown(source.join("link"), Some(9), Some(10)).unwrap();
    let mode = |name: &str, mode| {
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("index.html", 0o4664);
    mode("css/deep", 0o2775);
    mode("nothing", 0o1777);
    mode("many/7", 0o000);
    mode("many", 0o500);
    for (number, name) in ["index.html", "many/9", "link", "nothing", "css/deep", "css", "many"].iter().enumerate() {
        set_mtime(&source.join(name), 1_000_000_000 - 2_000_000_000 * (number as i64 % 2));
    }
    set_mtime(source, 86_400);
}

fn export(rig: &Rig, name: &str, to: &Path) -> serde_json::Value {
    rig.json(&[OsStr::new("export"), OsStr::new(name), to.as_os_str()])
}

#[test]
fn export_gives_back_content_modes_owners_times_symlinks_and_attributes() {
    let rig = Rig::new();
    rig.init();
    let source = rig.src.join("01");
    write_source(&source);
    let added = rig.json(&[OsStr::new("add"), OsStr::new("01"), source.as_os_str()]);
    let out = rig.root().join("out");
    let exported = export(&rig, "01", &out);
    assert_eq!(exported["files"], added["files"]);
    assert_alike(&tree(&source, Look::WHOLE), &tree(&out, Look::WHOLE));
    // What comes out is what goes in: the same release again.
    let again = rig.json(&[OsStr::new("add"), OsStr::new("01"), out.as_os_str()]);
    assert_eq!(again["identical"], true);
}

#[test]
fn export_writes_into_an_empty_directory_and_never_into_a_full_one() {
    let rig = Rig::new();
    rig.init();
    let source = rig.src.join("01");
    write_source(&source);
    rig.ok(&[OsStr::new("add"), OsStr::new("01"), source.as_os_str()]);
    let out = rig.root().join("out");
    fs::create_dir(&out).unwrap();
    export(&rig, "01", &out);
    assert_alike(&tree(&source, Look::WHOLE), &tree(&out, Look::WHOLE));
    let before = tree(&out, Look::WHOLE);
    let outcome = rig.verfs(&[OsStr::new("export"), OsStr::new("01"), out.as_os_str()]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains(out.to_str().unwrap()), "{outcome:?}");
    assert!(outcome.stderr.contains("empty"), "{outcome:?}");
    assert_alike(&before, &tree(&out, Look::WHOLE));
    let file = rig.src.join("01/empty");
    let outcome = rig.verfs(&[OsStr::new("export"), OsStr::new("01"), file.as_os_str()]);
    assert_ne!(outcome.code, 0, "{outcome:?}");
    assert_eq!(fs::read(&file).unwrap(), b"");
}

#[test]
fn export_works_while_the_store_is_mounted_and_of_any_release() {
    if super::support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("a", "one"));
    rig.add("02", &Tree::new().file("a", "two"));
    rig.mount();
    for (name, text) in [("01", "one"), ("02", "two")] {
        let out = rig.root().join(name);
        export(&rig, name, &out);
        assert_eq!(fs::read_to_string(out.join("a")).unwrap(), text);
    }
    rig.umount();
}
