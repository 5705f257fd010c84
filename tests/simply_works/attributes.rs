//! Modes, owners, times and extended attributes of release files.

use super::plain::{Look, assert_alike, serve, tree, xattrs};
use super::support::tree::Tree;
use super::support::{self, Rig};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, setxattr, utimensat};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn set_time(path: &Path, second: i64, nanos: i64) {
    let time = Timespec { tv_sec: second, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn modes_and_owners_are_those_of_the_source_without_write_bits() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    let modes = [0o400, 0o444, 0o600, 0o644, 0o664, 0o755, 0o777, 0o711, 0o000, 0o4755, 0o2755];
    let mut wild = Tree::new().symlink("link", "nowhere");
    for mode in modes {
        wild = wild.file(format!("f-{mode:o}"), "x").file(format!("d-{mode:o}/inside"), "x");
    }
    wild.write(&source);
    for (number, mode) in modes.iter().enumerate() {
        let owner = 1000 + u32::try_from(number).unwrap();
        for name in [format!("f-{mode:o}"), format!("d-{mode:o}")] {
            chown(source.join(&name), Some(owner), Some(owner + 1)).unwrap();
            set_mode(&source.join(&name), *mode);
        }
    }
    lchown(source.join("link"), Some(4_000_000_000), Some(7)).unwrap();
    set_mode(&source, 0o751);
    chown(&source, Some(33), Some(34)).unwrap();
    serve(&mut rig, &source);
    assert_alike(&tree(&source, Look::SERVED), &tree(&rig.mnt, Look::SERVED));
    for name in ["f-664", "f-777"] {
        let mode = fs::metadata(rig.mnt.join(name)).unwrap().mode();
        assert_eq!(mode & 0o222, 0, "{name} shows write bits: {mode:o}");
    }
    let root = fs::metadata(&rig.mnt).unwrap();
    assert_eq!((root.mode() & 0o555, root.uid(), root.gid()), (0o551, 33, 34));
    rig.umount();
}

#[test]
fn the_kernel_lets_nobody_read_what_the_mode_forbids() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    Tree::new().file("open", "o").file("shut", "s").file("private/key", "k").write(&source);
    set_mode(&source.join("shut"), 0o600);
    set_mode(&source.join("private"), 0o700);
    serve(&mut rig, &source);
    // The scratch directory may be closed to others: go in first, then give up being root.
    let reads = |name: &str| {
        let script = "exec setpriv --reuid=65534 --regid=65534 --clear-groups cat \"$1\"";
        let output = Command::new("timeout")
            .args(["30", "sh", "-c", script, "sh", name])
            .current_dir(&rig.mnt)
            .output()
            .unwrap();
        output.status.success().then_some(output.stdout)
    };
    assert_eq!(reads("open"), Some(b"o".to_vec()));
    assert_eq!(reads("shut"), None);
    assert_eq!(reads("private/key"), None);
    rig.umount();
}

#[test]
fn old_mtimes_are_served_and_future_ones_are_not() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    let times = [
        ("before-1970", -1_000_000_000, 5),
        ("epoch", 0, 0),
        ("year-2000", 946_684_800, 123_456_789),
        ("year-2020", 1_577_836_800, 999_999_999),
    ];
    let mut wild = Tree::new().file("future", "f").dir("future-dir").symlink("future-link", "x");
    for (name, ..) in times {
        wild = wild.file(name, name).dir(format!("dir-{name}")).symlink(format!("link-{name}"), "x");
    }
    wild.write(&source);
    for (name, second, nanos) in times {
        for name in [name.to_owned(), format!("dir-{name}"), format!("link-{name}")] {
            set_time(&source.join(name), second, nanos);
        }
    }
    for name in ["future", "future-dir", "future-link"] {
        set_time(&source.join(name), 4_102_444_800, 0);
    }
    serve(&mut rig, &source);
    for (name, second, nanos) in times {
        for name in [name.to_owned(), format!("dir-{name}"), format!("link-{name}")] {
            let meta = fs::symlink_metadata(rig.mnt.join(&name)).unwrap();
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (second, nanos), "{name}");
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for name in ["future", "future-dir", "future-link"] {
        let mtime = fs::symlink_metadata(rig.mnt.join(name)).unwrap().mtime();
        assert!(mtime.unsigned_abs() <= now, "{name} is of {mtime}, now is {now}");
    }
    rig.umount();
}

#[test]
fn extended_attributes_of_the_user_are_served_and_others_are_not() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    Tree::new().file("page", "p").file("plain", "q").file("dir/inside", "i").write(&source);
    let flags = XattrFlags::empty();
    let set = |path: &Path, name: &str, value: &[u8]| {
        setxattr(path, name, value, flags).unwrap_or_else(|error| {
            panic!("{}: {error}: this test needs a disk with extended attributes", path.display())
        });
    };
    let page = source.join("page");
    set(&page, "user.mime_type", b"text/html");
    set(&page, "user.empty", b"");
    set(&page, "user.bytes", b"\0\xff\n");
    set(&page, "user.long", &[b'x'; 2000]);
    set(&page, "trusted.ours", b"root only");
    set(&source.join("dir"), "user.note", b"of a directory");
    set(&source, "user.top", b"of the root");
    serve(&mut rig, &source);
    assert_alike(&tree(&source, Look::SERVED), &tree(&rig.mnt, Look::SERVED));
    let served = rig.mnt.join("page");
    assert_eq!(xattrs(&File::open(rig.mnt.join("plain")).unwrap()), "");
    let mut value = [0; 100];
    let get = |name: &str, value: &mut [u8]| rustix::fs::getxattr(&served, name, value);
    assert_eq!(get("user.mime_type", &mut value), Ok(9));
    assert_eq!(rustix::fs::getxattr_query(&served, "user.mime_type"), Ok(9), "the size alone");
    assert_eq!(get("user.long", &mut value), Err(rustix::io::Errno::RANGE));
    assert_eq!(get("user.none", &mut value), Err(rustix::io::Errno::NODATA));
    assert_eq!(get("trusted.ours", &mut value), Err(rustix::io::Errno::OPNOTSUPP));
    rig.umount();
}

#[test]
fn nothing_in_a_release_is_a_device_or_runs_with_another_users_rights() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("x", "x"));
    rig.mount();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == rig.mnt.to_str()).unwrap();
    let options: Vec<&str> = line.split([' ', ',']).collect();
    for option in ["nosuid", "nodev", "default_permissions", "allow_other"] {
        assert!(options.contains(&option), "{option} is missing: {line}");
    }
    rig.umount();
}
