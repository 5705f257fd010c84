//! Every operation that would change a release answers EROFS.

use super::plain::{Look, assert_alike, serve, tree};
use super::support::tree::Tree;
use super::support::{self, Rig};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};

/// The error of a call as a number, or `None` if it worked.
fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().map(|error| Errno::from_io_error(&error).unwrap())
}

#[test]
fn every_write_operation_answers_erofs_and_changes_nothing() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    Tree::new()
        .file("file", "content of the release")
        .file("other", "other")
        .file("dir/inside", "i")
        .dir("empty")
        .symlink("link", "file")
        .write(&source);
    let flags = XattrFlags::empty();
    rustix::fs::setxattr(source.join("file"), "user.there", b"v", flags).unwrap();
    serve(&mut rig, &source);
    let before = tree(&rig.mnt, Look::WHOLE);
    let at = |name: &str| rig.mnt.join(name);
    let file = at("file");
    let open = || OpenOptions::new().read(true).write(true).open(&file);
    let time = Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    let plain = rig.root().join("plain");
    fs::write(&plain, "from outside").unwrap();
    let io = |result: rustix::io::Result<()>| result.map_err(std::io::Error::from);

    let tried: Vec<(&str, Option<Errno>)> = vec![
        ("create", errno(File::create_new(at("new")))),
        ("create in a directory", errno(File::create_new(at("dir/new")))),
        ("mkdir", errno(fs::create_dir(at("new")))),
        ("mknod", {
            let made = rustix::fs::mknodat(CWD, at("new"), FileType::Fifo, Mode::RWXU, 0);
            errno(io(made))
        }),
        ("symlink", errno(symlink("x", at("new")))),
        ("link", errno(fs::hard_link(&file, at("new")))),
        ("unlink", errno(fs::remove_file(&file))),
        ("unlink of a symlink", errno(fs::remove_file(at("link")))),
        ("rmdir", errno(fs::remove_dir(at("empty")))),
        ("rename", errno(fs::rename(&file, at("new")))),
        ("rename over", errno(fs::rename(&file, at("other")))),
        ("rename of a directory", errno(fs::rename(at("dir"), at("new")))),
        ("exchange", {
            let flags = RenameFlags::EXCHANGE;
            errno(io(rustix::fs::renameat_with(CWD, &file, CWD, at("other"), flags)))
        }),
        ("chmod", errno(fs::set_permissions(&file, fs::Permissions::from_mode(0o600)))),
        ("chmod of the root", errno(fs::set_permissions(&rig.mnt, fs::Permissions::from_mode(0o700)))),
        ("chown", errno(chown(&file, Some(1), Some(1)))),
        ("chown of a symlink", errno(lchown(at("link"), Some(1), Some(1)))),
        ("utimes", errno(io(rustix::fs::utimensat(CWD, &file, &times, AtFlags::empty())))),
        ("truncate by opening", errno(File::create(&file))),
        ("ftruncate", errno(open().and_then(|file| file.set_len(3)))),
        ("write", errno(open().and_then(|file| file.write_all_at(b"changed", 0)))),
        ("append", {
            let open = OpenOptions::new().append(true).open(&file);
            errno(open.and_then(|mut file| std::io::Write::write_all(&mut file, b"more")))
        }),
        ("direct write", {
            let open = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(&file);
            errno(open.and_then(|file| file.write_all_at(b"changed", 0)))
        }),
        ("fallocate", {
            let open = open().unwrap();
            errno(io(rustix::fs::fallocate(&open, FallocateFlags::empty(), 0, 1 << 20)))
        }),
        ("punch a hole", {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            errno(io(rustix::fs::fallocate(open().unwrap(), flags, 0, 4)))
        }),
        ("setxattr", errno(io(rustix::fs::setxattr(&file, "user.new", b"v", flags)))),
        ("setxattr of a directory", errno(io(rustix::fs::setxattr(at("dir"), "user.new", b"v", flags)))),
        ("removexattr", errno(io(rustix::fs::removexattr(&file, "user.there")))),
        ("copy_file_range within", {
            let (from, to) = (File::open(at("other")).unwrap(), open().unwrap());
            let copied = rustix::fs::copy_file_range(&from, None, &to, None, 5);
            errno(io(copied.map(drop)))
        }),
        ("sendfile", {
            let (from, to) = (File::open(&plain).unwrap(), open().unwrap());
            errno(io(rustix::fs::sendfile(&to, &from, None, 12).map(drop)))
        }),
    ];
    let wrong: Vec<_> = tried.iter().filter(|(_, errno)| *errno != Some(Errno::ROFS)).collect();
    assert!(wrong.is_empty(), "no EROFS: {wrong:?}");
    assert_alike(&before, &tree(&rig.mnt, Look::WHOLE));
    assert_eq!(fs::read(&file).unwrap(), b"content of the release");
    rig.umount();
}

#[test]
fn what_the_kernel_refuses_by_itself_changes_nothing_either() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    Tree::new().file("file", "content of the release").write(&source);
    serve(&mut rig, &source);
    let before = tree(&rig.mnt, Look::WHOLE);
    // Programs that meet these two go on to write(2) and to a temporary file with a name.
    let from = File::open(source.join("file")).unwrap();
    let to = OpenOptions::new().write(true).open(rig.mnt.join("file")).unwrap();
    let copied = rustix::fs::copy_file_range(&from, None, &to, None, 12);
    assert!(matches!(copied, Err(Errno::XDEV | Errno::ROFS)), "{copied:?}");
    drop(to);
    let flags = OFlags::TMPFILE | OFlags::WRONLY;
    let nameless = rustix::fs::open(&rig.mnt, flags, Mode::RWXU).map(drop);
    assert!(matches!(nameless, Err(Errno::OPNOTSUPP | Errno::ROFS)), "{nameless:?}");
    assert_alike(&before, &tree(&rig.mnt, Look::WHOLE));
    rig.umount();
}

#[test]
fn whoever_opens_without_the_right_to_write_is_told_and_names_that_exist_are_too() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    let source = rig.src.join("01");
    Tree::new().file("file", "f").dir("dir").write(&source);
    serve(&mut rig, &source);
    // The errors that say more than EROFS come first, as everywhere.
    let exists = Some(Errno::EXIST);
    assert_eq!(errno(fs::create_dir(rig.mnt.join("dir"))), exists);
    assert_eq!(errno(File::create_new(rig.mnt.join("file"))), exists);
    let gone = errno(fs::remove_file(rig.mnt.join("no-such-file")));
    assert_eq!(gone, Some(Errno::NOENT));
    let below = errno(File::create_new(rig.mnt.join("file/x")));
    assert_eq!(below, Some(Errno::NOTDIR));
    rig.umount();
}
