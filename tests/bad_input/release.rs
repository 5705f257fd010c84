//! Releases that are unknown, ill-named, half-made, or there already.

use super::listing::Listing;
use super::refusal::{arg, refused};
use super::support::tree::{SOURCE_SECOND, Tree, set_mtime};
use super::support::{self, Rig};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use verfs::tree::{Digest, Kind, NodeId, Owner, StoredId};

fn page(text: &str) -> Tree {
    Tree::new().file("index.html", text).file("css/a.css", "a")
}

/// A store with the releases 01 and 02, of which 01 is active.
fn two_releases() -> Rig {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &page("one"));
    rig.add("02", &page("two"));
    rig.ok(&["switch", "01"]);
    rig
}

#[test]
fn an_unknown_release_is_refused_and_the_known_ones_are_named() {
    let rig = two_releases();
    let out = rig.root().join("out");
    let verbs: [&[&str]; 8] = [
        &["switch", "nope"],
        &["switch", "--dry-run", "nope"],
        &["rollback", "nope"],
        &["diff", "01", "nope"],
        &["diff", "nope", "01"],
        &["export", "nope", arg(&out)],
        &["remove", "nope"],
        &["verify", "nope"],
    ];
    for verb in verbs {
        refused(&rig, verb, 2, &["no release nope", arg(&rig.store), "01", "02"]);
    }
    assert!(!out.exists(), "the refused export made a directory");
}

#[test]
fn an_unknown_release_is_refused_by_the_mounted_store_too() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = two_releases();
    rig.mount();
    for verb in ["switch", "rollback"] {
        refused(&rig, &[verb, "nope"], 2, &["no release nope", "01", "02"]);
    }
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
    rig.umount();
}

#[test]
fn a_store_without_releases_says_how_to_add_one() {
    let rig = Rig::new();
    rig.init();
    refused(&rig, &["switch", "01"], 2, &["no release 01", "verfs add"]);
    refused(&rig, &["rollback"], 2, &["verfs switch"]);
}

#[test]
fn an_ill_named_release_is_refused_by_every_verb() {
    let rig = two_releases();
    let source = rig.src.join("01");
    let out = rig.root().join("out");
    let long = "x".repeat(129);
    for name in ["", ".", "..", ".hidden", "_x", "a/b", "a b", "a\n", "ä", &long] {
        let shown = name.trim_end();
        refused(&rig, &["add", name, arg(&source)], 2, &[shown, "name a release"]);
        refused(&rig, &["switch", name], 2, &[shown, "name a release"]);
        refused(&rig, &["rollback", name], 2, &[shown, "name a release"]);
        refused(&rig, &["diff", "01", name], 2, &[shown, "name a release"]);
        refused(&rig, &["export", name, arg(&out)], 2, &[shown, "name a release"]);
        refused(&rig, &["remove", name], 2, &[shown, "name a release"]);
        refused(&rig, &["verify", name], 2, &[shown, "name a release"]);
    }
    let bytes = OsStr::from_bytes(b"\xff");
    let outcome = rig.verfs(&[OsStr::new("switch"), bytes]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(!outcome.stderr.is_empty(), "nothing was said");
}

#[test]
fn the_longest_name_of_all_allowed_characters_is_a_release_name() {
    let rig = two_releases();
    let name = format!("{}-._Z9", "a".repeat(123));
    assert_eq!(name.len(), 128);
    rig.add(&name, &page("long"));
    assert_eq!(rig.json(&["switch", &name])["to"], name.as_str());
}

#[test]
fn what_is_no_whole_manifest_is_no_release_that_can_be_switched_to() {
    let rig = two_releases();
    let releases = rig.store.join("releases");
    // What a stopped add leaves is not a release at all.
    fs::write(releases.join(".03.999999999"), "half").unwrap();
    fs::create_dir(rig.store.join("tmp/add-999999999-1")).unwrap();
    refused(&rig, &["switch", "03"], 2, &["no release 03", "01, 02"]);
    let names = |rig: &Rig| {
        let list = rig.json(&["list"]);
        let list = list.as_array().unwrap().iter();
        list.map(|row| row["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&rig), ["01", "02"]);

    // What stands at a release's place and is no manifest is named.
    fs::write(releases.join("04"), "").unwrap();
    fs::write(releases.join("05"), vec![0; 8192]).unwrap();
    fs::create_dir(releases.join("06")).unwrap();
    for name in ["04", "05", "06"] {
        let path = releases.join(name);
        refused(&rig, &["switch", name], 1, &[arg(&path)]);
        refused(&rig, &["switch", "--dry-run", name], 1, &[arg(&path)]);
        refused(&rig, &["diff", "01", name], 1, &[arg(&path)]);
        assert_eq!(rig.json(&["status"])["release"], "01");
    }
    assert_eq!(names(&rig).len(), 5, "list shows the broken ones too");
    assert_eq!(rig.json(&["switch", "02"])["to"], "02");
}

#[test]
fn adding_a_name_that_exists_with_the_same_content_says_so_and_is_no_error() {
    let rig = two_releases();
    let before = Listing::of(&rig.store);
    let source = rig.src.join("01");
    set_mtime(&source.join("index.html"), SOURCE_SECOND + 5);
    let said = rig.ok(&["add", "01", arg(&source)]);
    assert!(said.contains("01") && said.contains("same content"), "{said}");
    assert_eq!(rig.json(&["add", "01", arg(&source)])["identical"], true);
    before.assert_same_as(&Listing::of(&rig.store), "adding the same again");
}

#[test]
fn adding_a_name_that_exists_with_other_content_is_refused() {
    let rig = two_releases();
    let source = rig.src.join("01");
    fs::write(source.join("index.html"), "something new").unwrap();
    refused(&rig, &["add", "01", arg(&source)], 2, &["01 is there already", "another name", "verfs remove"]);
}

#[test]
fn adding_a_name_that_exists_with_another_mode_is_refused() {
    let rig = two_releases();
    let source = rig.src.join("01");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(source.join("index.html"), mode).unwrap();
    refused(&rig, &["add", "01", arg(&source)], 2, &["01 is there already"]);
}

#[test]
fn rollback_without_a_way_back_is_refused_and_says_what_to_name() {
    let rig = two_releases();
    refused(&rig, &["rollback"], 2, &["01", "verfs switch"]);
    rig.ok(&["switch", "02"]);
    rig.ok(&["rollback"]);
    refused(&rig, &["rollback"], 2, &["verfs rollback", "01", "02"]);
}

#[test]
fn removing_the_active_or_the_previous_release_is_refused() {
    let rig = two_releases();
    rig.ok(&["switch", "02"]);
    refused(&rig, &["remove", "02"], 2, &["02", "active", "switch"]);
    refused(&rig, &["remove", "01"], 2, &["01", "rollback", "switch"]);
}

/// Two of many that have the first 12 bits of their number, which is all that counts with `VERFS_FAULT=narrow-hash`.
fn same_number(number_of: impl Fn(&str) -> NodeId) -> [String; 2] {
    let mut seen = HashMap::new();
    (0..)
        .find_map(|number| {
            let name = format!("n{number}");
            let before = seen.insert(number_of(&name).0 >> 51, name.clone())?;
            Some([before, name])
        })
        .unwrap()
}

#[test]
fn a_number_that_would_stand_for_two_nodes_is_refused_and_both_are_named() {
    let add = |rig: &Rig, name: &str, tree: &Tree| {
        let source = rig.src.join(name);
        let _ = fs::remove_dir_all(&source);
        tree.write(&source);
        let added = rig.run(&["add", name, arg(&source)], &[("VERFS_FAULT", "narrow-hash")]);
        (added.code, added.stderr)
    };
    let refused = |rig: &Rig, name: &str, tree: &Tree, names: &[&str]| {
        let (code, said) = add(rig, name, tree);
        assert!(code == 2 && names.iter().all(|name| said.contains(name)), "{code}: {said}");
        assert!(!rig.store.join("releases").join(name).exists());
    };
    let rig = Rig::new();
    rig.init();
    // Two directories: in one release, and each in its own.
    let [one, other] = same_number(|name| NodeId::of_dir(name.as_bytes()));
    refused(&rig, "01", &Tree::new().dir(&one).dir(&other), &[&one, &other, "the same number"]);
    assert_eq!(add(&rig, "01", &Tree::new().dir(&one)), (0, String::new()));
    refused(&rig, "02", &Tree::new().dir(&other), &[&one, &other, "release 01", "the same number"]);
    assert_eq!(add(&rig, "01", &Tree::new().dir(&one)), (0, String::new()), "the same release again");
    // Two contents of one path.
    let rig = Rig::new();
    rig.init();
    let number = |text: &str| {
        let digest = Digest::of(text.as_bytes());
        StoredId::of_leaf(b"page", Kind::File, digest, 0o644, Owner { uid: 0, gid: 0 }).served()
    };
    let [one, other] = same_number(number);
    assert_eq!(add(&rig, "01", &Tree::new().file("page", &one)), (0, String::new()));
    refused(&rig, "02", &Tree::new().file("page", &other), &["page", "release 01", "the same number"]);
    assert_eq!(add(&rig, "03", &Tree::new().file("page", &one).file("more", "")), (0, String::new()));
}
