//! Settings files with what nobody can mean.

use super::listing::Listing;
use super::refusal::{arg, refused};
use super::support::tree::Tree;
use super::support::{self, Rig};
use std::fs;

fn store_with_one_release() -> Rig {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("index.html", "one"));
    rig
}

/// What is added to the settings, and what the refusal must say.
const WRONG: &[(&str, &[&str])] = &[
    ("\n[switch.typo]\nx = 1", &["typo"]),
    ("\n[nonsense]\nkey = 1", &["nonsense"]),
    ("\n[[scope]]\npath = \"media\"\ncolour = \"blue\"", &["colour"]),
    ("\n[[scope]]\npath = \"/media\"", &["/media", "absolute"]),
    ("\n[[scope]]\npath = \"../media\"", &["../media", ".."]),
    ("\n[[scope]]\npath = \"a/../b\"", &["a/../b", ".."]),
    ("\n[[scope]]\npath = \"\"", &["scope", "empty"]),
    ("\n[[scope]]\npath = 7", &["path"]),
    ("\n[[scope]]\nper_release = true", &["path"]),
    ("\nthis is no TOML", &["line"]),
];

#[test]
fn a_settings_file_with_an_unknown_key_or_a_wrong_scope_is_refused() {
    let rig = store_with_one_release();
    let path = rig.store.join("verfs.toml");
    let text = fs::read_to_string(&path).unwrap();
    for (wrong, says) in WRONG {
        fs::write(&path, format!("{text}{wrong}\n")).unwrap();
        let says = [&[arg(&path)], *says].concat();
        refused(&rig, &["list"], 2, &says);
        refused(&rig, &["mount", arg(&rig.store), arg(&rig.mnt)], 2, &says);
    }
    let misspelt = text.replace("limit_ms", "limit_sm");
    assert_ne!(misspelt, text);
    fs::write(&path, misspelt).unwrap();
    refused(&rig, &["list"], 2, &[arg(&path), "limit_sm"]);
}

#[test]
fn a_reload_of_wrong_settings_is_refused_and_the_old_ones_stay() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store_with_one_release();
    rig.add("02", &Tree::new().file("index.html", "two"));
    rig.mount();
    let path = rig.store.join("verfs.toml");
    let text = fs::read_to_string(&path).unwrap();
    for (wrong, says) in WRONG {
        fs::write(&path, format!("{text}{wrong}\n")).unwrap();
        refused(&rig, &["reload"], 2, says);
    }
    // The daemon goes on with the settings it has.
    let status = rig.control().status().unwrap();
    assert_eq!(status["mountpoint"], arg(&rig.mnt));
    rig.control().switch("01").unwrap();
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
    fs::write(&path, text).unwrap();
    rig.ok(&["reload"]);
    rig.umount();
}

#[test]
fn a_group_that_does_not_exist_is_refused_at_mount() {
    let rig = store_with_one_release();
    rig.setting("access", "group", "\"no-such-group\"");
    let mount = ["mount", arg(&rig.store), arg(&rig.mnt)];
    refused(&rig, &mount, 2, &["no-such-group", "access.group"]);
}

#[test]
fn init_refuses_a_wrong_scope_or_owner_and_makes_nothing() {
    let rig = Rig::new();
    let store = arg(&rig.store);
    let wrong: [(&[&str], &str); 6] = [
        (&["--writable", "/media"], "absolute"),
        (&["--writable", "a/../b"], ".."),
        (&["--per-release", "../cache"], ".."),
        (&["--writable", "media", "--per-release", "media/cache"], "media/cache"),
        (&["--writable", "media", "--owner", "no-such-user:root"], "no-such-user"),
        (&["--writable", "media", "--owner", "root:no-such-group"], "no-such-group"),
    ];
    for (options, says) in wrong {
        refused(&rig, &[&["init", store], options].concat(), 2, &[says]);
        assert!(!rig.store.exists(), "init {options:?} made {store}");
    }
    let before = Listing::of(rig.root());
    rig.ok(&["init", store, "--writable", "media", "--owner", "33:33"]);
    assert_ne!(before, Listing::of(rig.root()));
    let text = fs::read_to_string(rig.store.join("verfs.toml")).unwrap();
    assert!(text.contains("path = \"media\""), "{text}");
}

#[test]
fn wrong_options_of_add_are_refused() {
    let rig = store_with_one_release();
    let source = rig.src.join("01");
    let wrong: [(&[&str], &[&str]); 5] = [
        (&["--mode", "u+r"], &["u+r", "octal"]),
        (&["--mode", "0999"], &["0999", "octal"]),
        (&["--mode", "77777"], &["77777"]),
        (&["--owner", "no-such-user"], &["no-such-user"]),
        (&["--owner", "5:no-such-group"], &["no-such-group"]),
    ];
    for (options, says) in wrong {
        let add = [&["add", "02", arg(&source)], options].concat();
        refused(&rig, &add, 2, says);
    }
}
