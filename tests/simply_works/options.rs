//! The options of `add`.

use super::support::Rig;
use super::support::tree::Tree;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Adds with options and exports again; where it was exported to.
fn through(rig: &Rig, name: &str, source: &Path, options: &[&str]) -> PathBuf {
    let mut args = vec![OsStr::new("add"), OsStr::new(name), source.as_os_str()];
    args.extend(options.iter().map(OsStr::new));
    rig.ok(&args);
    let out = rig.root().join(format!("out-{name}"));
    rig.ok(&[OsStr::new("export"), OsStr::new(name), out.as_os_str()]);
    out
}

fn look(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.mode() & 0o7777, meta.uid(), meta.gid())
}

#[test]
fn owner_and_mode_can_be_given_for_everything() {
    let rig = Rig::new();
    rig.init();
    let source = rig.src.join("01");
    Tree::new().file("dir/file", "f").symlink("link", "dir").write(&source);
    let mode = fs::Permissions::from_mode(0o777);
    fs::set_permissions(source.join("dir/file"), mode).unwrap();

    let out = through(&rig, "owner", &source, &["--owner", "33:44"]);
    assert_eq!(look(&out.join("dir/file")), (0o777, 33, 44));
    let (_, uid, gid) = look(&out.join("link"));
    assert_eq!((uid, gid), (33, 44));
    assert_eq!(look(&out).1, 33);

    let out = through(&rig, "mode", &source, &["--mode", "0640"]);
    assert_eq!(look(&out.join("dir/file")).0, 0o640);
    assert_eq!(look(&out.join("dir")).0, 0o750, "search where there is read");
    assert_eq!(look(&out).0, 0o750);

    let out = through(&rig, "modes", &source, &["--mode", "0604,0705", "--owner", "root:root"]);
    assert_eq!(look(&out.join("dir/file")), (0o604, 0, 0));
    assert_eq!(look(&out.join("dir")), (0o705, 0, 0));
}

#[test]
fn version_control_is_left_out_unless_it_is_asked_for() {
    let rig = Rig::new();
    rig.init();
    let source = rig.src.join("01");
    Tree::new()
        .file("page", "p")
        .file(".git/HEAD", "g")
        .file("sub/.hg/store", "h")
        .file("sub/deep/.svn/entries", "s")
        .file("worktree/.git", "gitdir: elsewhere")
        .file(".gitignore", "kept")
        .file(".github/workflow", "kept")
        .file("x.git/file", "kept")
        .write(&source);
    let all = |top: &Path| {
        let names = [".git", "sub/.hg", "sub/deep/.svn", "worktree/.git"];
        names.map(|name| top.join(name).exists())
    };
    let out = through(&rig, "without", &source, &[]);
    assert_eq!(all(&out), [false; 4]);
    for kept in ["page", ".gitignore", ".github/workflow", "x.git/file", "sub/deep", "worktree"] {
        assert!(out.join(kept).exists(), "{kept} was left out");
    }
    let out = through(&rig, "with", &source, &["--include-vcs"]);
    assert_eq!(all(&out), [true; 4]);
}

#[test]
fn a_symlink_given_as_source_is_followed() {
    let rig = Rig::new();
    rig.init();
    let version = rig.src.join("version/07");
    fs::create_dir_all(&version).unwrap();
    fs::write(version.join("index.html"), "seven").unwrap();
    let current = rig.src.join("current");
    symlink("version/07", &current).unwrap();
    let out = through(&rig, "07", &current, &[]);
    assert_eq!(fs::read(out.join("index.html")).unwrap(), b"seven");
    let slash = rig.src.join("current/");
    assert_eq!(rig.json(&[OsStr::new("add"), OsStr::new("07"), slash.as_os_str()])["identical"], true);
}

#[test]
fn add_warns_of_what_the_web_server_cannot_read_and_of_symlinks_that_lead_out() {
    let rig = Rig::new();
    rig.init();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let web = ["www-data:", "apache:", "nginx:", "http:"];
    let has_user = passwd.lines().any(|line| web.iter().any(|name| line.starts_with(name)));
    let source = rig.src.join("01");
    Tree::new()
        .file("fine", "f")
        .file("secret", "s")
        .file("shut/inside", "i")
        .symlink("out", "/etc/hostname")
        .symlink("up", "../elsewhere")
        .symlink("stays", "shut/../fine")
        .write(&source);
    fs::set_permissions(source.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(source.join("shut"), fs::Permissions::from_mode(0o700)).unwrap();
    let added = rig.json(&[OsStr::new("add"), OsStr::new("01"), source.as_os_str()]);
    let warnings: Vec<String> =
        added["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap().to_owned()).collect();
    let all = warnings.join("\n");
    assert!(all.contains("out") && all.contains("up"), "{all}");
    assert!(!all.contains("stays") && !all.contains("fine"), "{all}");
    if has_user {
        assert!(all.contains("secret") && all.contains("shut"), "{all}");
    } else {
        eprintln!("skipped: no user of a web server on this machine");
    }
    // For people they are on standard error.
    let args = [OsStr::new("add"), OsStr::new("02"), source.as_os_str()];
    let outcome = rig.verfs(&args);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stderr.contains("warning") && outcome.stderr.contains("out"), "{outcome:?}");
}

#[test]
fn the_summary_counts_files_bytes_and_new_bytes() {
    let rig = Rig::new();
    rig.init();
    let tree = Tree::new().file("a", "12345").file("b", "12345").file("dir/c", "123");
    let added = rig.add("01", &tree.clone().symlink("link", "a"));
    assert_eq!(added["files"], 3);
    assert_eq!(added["bytes"], 13);
    assert_eq!(added["new_bytes"], 8, "the same content is stored once");
    let added = rig.add("02", &tree.file("d", "new"));
    assert_eq!(added["bytes"], 16);
    assert_eq!(added["new_bytes"], 3);
}
