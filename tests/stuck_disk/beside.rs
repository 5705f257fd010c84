//! Changes in different directories of one scope.

use super::looks::{LetGo, Looks, SHORT_PATIENCE, join, still_stuck, wait_for_requests, wait_until};
use super::passthrough::Passthrough;
use super::shop::{Shop, UPLOADS, random};
use super::support::skip_mounted;
use super::support::user::{User, WWW_DATA};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

const ROOT: User<'static> = User { uid: 0, gid: 0, groups: &[] };
/// The disk holds what is written behind this: the end of a copy of a file of the release that is longer.
const HELD_FROM: u64 = 1 << 20;

/// A change that the disk holds: the operation, the name there, and the change, in a directory of its own.
struct Stuck {
    what: &'static str,
    operation: &'static str,
    name: &'static str,
    change: fn() -> io::Result<()>,
}

const STUCK: [Stuck; 7] = [
    Stuck { what: "create", operation: "create", name: "held", change: || File::create_new("held").map(drop) },
    Stuck { what: "mkdir", operation: "mkdir", name: "held", change: || fs::create_dir("held") },
    Stuck {
        what: "symlink",
        operation: "symlink",
        name: "held",
        change: || std::os::unix::fs::symlink("target", "held"),
    },
    Stuck { what: "write", operation: "write", name: "upload", change: || fs::write("upload", "written") },
    Stuck {
        what: "truncate",
        operation: "setattr",
        name: "upload",
        change: || File::options().write(true).open("upload")?.set_len(1),
    },
    Stuck {
        what: "fsync",
        operation: "fsync",
        name: "upload",
        change: || File::options().write(true).open("upload")?.sync_all(),
    },
    Stuck { what: "copy-up", operation: "write", name: "", change: || append("large", b"more") },
];

fn append(path: &str, more: &[u8]) -> io::Result<()> {
    File::options().append(true).open(path)?.write_all(more)
}

fn large() -> Vec<u8> {
    random(7, (HELD_FROM + (256 << 10)) as usize)
}

/// Everything that can be done in a directory with `upload`, `upload-2` and six files of the release.
fn change_everything() {
    let text = |path: &str| fs::read_to_string(path).unwrap();
    fs::write("new", "new").unwrap();
    assert_eq!(text("new"), "new");
    fs::write("upload", "written").unwrap();
    File::options().append(true).open("upload").unwrap().sync_all().unwrap();
    fs::rename("new", "renamed").unwrap();
    fs::rename("upload-2", "renamed").unwrap();
    fs::hard_link("upload", "linked").unwrap();
    fs::create_dir("dir").unwrap();
    fs::rename("renamed", "dir/moved").unwrap();
    fs::remove_file("linked").unwrap();
    fs::create_dir("empty").unwrap();
    fs::remove_dir("empty").unwrap();
    std::os::unix::fs::symlink("dir/moved", "link").unwrap();
    File::options().write(true).open("dir/moved").unwrap().set_len(1).unwrap();
    append("released-0", b" more").unwrap();
    fs::rename("released-1", "renamed-1").unwrap();
    fs::hard_link("released-2", "linked-2").unwrap();
    fs::set_permissions("released-3", fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file("released-4").unwrap();
    File::create("released-5").unwrap();
    rustix::fs::utimensat(
        rustix::fs::CWD,
        "upload",
        &rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
        },
        rustix::fs::AtFlags::empty(),
    )
    .unwrap();
}

fn everything_is_changed(dir: &Path) {
    let text = |path: &str| fs::read_to_string(dir.join(path)).unwrap();
    assert_eq!(text("upload"), "written");
    assert_eq!(text("link"), "b");
    assert_eq!(text("released-0"), "released more");
    for released in ["renamed-1", "released-2", "linked-2", "released-3"] {
        assert_eq!(text(released), "released", "{released} in {}", dir.display());
    }
    assert_eq!(text("released-5"), "");
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let wanted =
        ["dir", "link", "linked-2", "released-0", "released-2", "released-3", "released-5", "renamed-1", "upload"];
    assert_eq!(names, wanted, "in {}", dir.display());
}

fn stuck_is_done(dir: &Path, what: &str) {
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    match what {
        "create" => assert!(read("held").is_empty()),
        "mkdir" => assert!(dir.join("held").is_dir()),
        "symlink" => assert_eq!(fs::read_link(dir.join("held")).unwrap(), Path::new("target")),
        "write" => assert_eq!(read("upload"), b"written"),
        "truncate" => assert_eq!(read("upload"), b"b"),
        "fsync" => assert_eq!(read("upload"), b"before"),
        "copy-up" => assert!(read("large") == [large(), b"more".to_vec()].concat()),
        other => panic!("{other}"),
    }
}

#[test]
fn changes_in_different_directories_run_beside_each_other() {
    if skip_mounted() {
        return;
    }
    let mut shop = Shop::new();
    let disk = Passthrough::mount(shop.rig.root());
    let dirs = STUCK.map(|stuck| ["root", "web"].map(|user| format!("free/{}-{user}", stuck.what)));
    let stuck_dir = |stuck: &Stuck| format!("stuck/{}", stuck.what);
    shop.open(disk.path(), |mut tree| {
        for (stuck, free) in STUCK.iter().zip(&dirs) {
            tree = tree.file(format!("media/{}/large", stuck_dir(stuck)), large());
            for (dir, number) in free.iter().flat_map(|dir| (0..6).map(move |number| (dir, number))) {
                tree = tree.file(format!("media/{dir}/released-{number}"), "released");
            }
        }
        tree
    });
    for (stuck, free) in STUCK.iter().zip(&dirs) {
        for dir in free.iter().chain([&stuck_dir(stuck)]) {
            shop.upload(&format!("{dir}/upload"), b"before");
        }
        free.iter().for_each(|dir| shop.upload(&format!("{dir}/upload-2"), b"before"));
    }
    let connection = shop.mount();
    let (scope, gate) = (shop.scope(), disk.gate());
    let mut late = Vec::new();
    for (stuck, [by_root, by_web]) in STUCK.iter().zip(&dirs) {
        let own = scope.join(stuck_dir(stuck));
        thread::scope(|threads| {
            let _open = LetGo(gate);
            let (operation, what, dir) = (stuck.operation, stuck.what, Path::new("media/media").join(stuck_dir(stuck)));
            let at = dir.join(stuck.name);
            gate.hold(move |asked| {
                let here = if at == dir.join("") { asked.offset >= HELD_FROM } else { asked.path == at };
                here && asked.operation == operation
            });
            let held = vec![threads.spawn(|| WWW_DATA.work_in(&own, stuck.change))];
            wait_until(what, || gate.held() == 1);
            wait_for_requests(connection, 1);
            let missed = Looks::patient(SHORT_PATIENCE)
                .with(format!("{what}: changes by root"), || ROOT.work_in(&scope.join(by_root), change_everything))
                .with(format!("{what}: changes by the web server"), || {
                    WWW_DATA.work_in(&scope.join(by_web), change_everything);
                })
                .with(format!("{what}: uploads"), || shop.look_at_uploads(UPLOADS[0]))
                .unanswered(gate);
            match missed.is_empty() {
                true => still_stuck(&held),
                false => late.extend(missed),
            }
            gate.open();
            join(held).into_iter().for_each(|done| done.unwrap_or_else(|error| panic!("{what}: {error}")));
        });
    }
    let check = |shop: &Shop| {
        for (stuck, free) in STUCK.iter().zip(&dirs) {
            stuck_is_done(&shop.scope().join(stuck_dir(stuck)), stuck.what);
            free.iter().for_each(|dir| everything_is_changed(&shop.scope().join(dir)));
        }
    };
    check(&shop);
    assert!(late.is_empty(), "while a change in another directory was stuck, these were not answered: {late:#?}");
    shop.umount();
    shop.mount();
    check(&shop);
    shop.umount();
}
