//! A tree as the system shows it, path by path, to compare one place with another.

use super::support::Rig;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, readlinkat, statat};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

/// What counts when two trees are compared.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The bits of the mode that count.
    pub mode: u32,
    /// Whether owner and group count.
    pub owner: bool,
    /// Whether the mtimes of files and symlinks count.
    pub file_mtime: bool,
    /// Whether those of directories count.
    pub dir_mtime: bool,
}

impl Look {
    /// Everything.
    pub const WHOLE: Look = Look { mode: 0o7777, owner: true, file_mtime: true, dir_mtime: true };
    /// What the mount promises of a release: no write bits, and mtimes that follow its own rule.
    pub const SERVED: Look = Look { mode: 0o7555, owner: true, file_mtime: false, dir_mtime: false };
}

/// Paths below a directory and all that there is to see of each. Walks by descriptors, so a path
/// may be of any length.
pub fn tree(root: &Path, look: Look) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let dir = File::open(root).unwrap();
    let stat = rustix::fs::fstat(&dir).unwrap();
    found.insert(Vec::new(), line(&stat, look, "dir", &xattrs(&dir)));
    walk(&dir, b"", look, &mut found);
    found
}

/// Fails with the first differences, if the trees are not alike.
pub fn assert_alike(left: &BTreeMap<Vec<u8>, String>, right: &BTreeMap<Vec<u8>, String>) {
    let paths: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let differ = paths.into_iter().filter(|path| left.get(*path) != right.get(*path));
    let shown: Vec<String> = differ
        .take(10)
        .map(|path| {
            let side = |tree: &BTreeMap<Vec<u8>, String>| tree.get(path).cloned();
            let (left, right) = (side(left), side(right));
            format!("{}\n  {left:?}\n  {right:?}", path.escape_ascii())
        })
        .collect();
    assert!(shown.is_empty(), "the trees differ:\n{}", shown.join("\n"));
}

/// Adds a source directory as a release and mounts it.
pub fn serve(rig: &mut Rig, source: &Path) {
    rig.init();
    rig.ok(&[OsStr::new("add"), OsStr::new("01"), source.as_os_str()]);
    rig.mount();
}

fn walk(dir: impl AsFd, above: &[u8], look: Look, found: &mut BTreeMap<Vec<u8>, String>) {
    for entry in Dir::read_from(&dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let path = match above {
            b"" => name.to_bytes().to_vec(),
            above => [above, name.to_bytes()].join(&b'/'),
        };
        let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!(stat.st_ino, entry.ino(), "d_ino of {}", path.escape_ascii());
        let kind = FileType::from_raw_mode(stat.st_mode);
        assert_eq!(kind, entry.file_type(), "d_type of {}", path.escape_ascii());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let shown = match kind {
            FileType::Symlink => {
                let target = readlinkat(&dir, name, Vec::new()).unwrap();
                line(&stat, look, &format!("-> {target:?}"), "")
            }
            FileType::Directory => {
                let child = openat(&dir, name, flags | OFlags::DIRECTORY, Mode::empty()).unwrap();
                walk(&child, &path, look, found);
                line(&stat, look, "dir", &xattrs(&File::from(child)))
            }
            _ => {
                let file = File::from(openat(&dir, name, flags, Mode::empty()).unwrap());
                let mut hasher = blake3::Hasher::new();
                let mut bytes = Vec::new();
                (&file).take(64 << 20).read_to_end(&mut bytes).unwrap();
                hasher.update(&bytes);
                let holds = format!("{} bytes {}", stat.st_size, hasher.finalize());
                line(&stat, look, &holds, &xattrs(&file))
            }
        };
        found.insert(path, shown);
    }
}

fn line(stat: &rustix::fs::Stat, look: Look, holds: &str, xattrs: &str) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mode = match kind {
        FileType::Symlink => 0,
        _ => stat.st_mode & look.mode,
    };
    let mut line = format!("{mode:o} {holds} {xattrs}");
    if look.owner {
        line += &format!(" {}:{}", stat.st_uid, stat.st_gid);
    }
    let mtime = match kind {
        FileType::Directory => look.dir_mtime,
        _ => look.file_mtime,
    };
    if mtime {
        line += &format!(" {}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
    }
    line
}

/// Names and values of the user's extended attributes.
pub fn xattrs(file: &File) -> String {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::flistxattr(file, &mut names[..]).unwrap();
    let mut shown: Vec<String> = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let mut value = vec![0; 65_536];
            let len = rustix::fs::fgetxattr(file, name, &mut value[..]).unwrap();
            format!("{}={}", name.escape_ascii(), value[..len].escape_ascii())
        })
        .collect();
    shown.sort();
    shown.join(" ")
}
