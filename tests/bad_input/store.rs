//! Stores that are missing, of a newer format, in use, or no stores at all.

use super::listing::Listing;
use super::refusal::{arg, error_of, refused};
use super::support::tree::Tree;
use super::support::{self, Rig};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Every verb that opens a store, as it is typed; `SOURCE` and `MNT` stand for paths.
const VERBS: &[&[&str]] = &[
    &["add", "02", "SOURCE"],
    &["switch", "01"],
    &["switch", "--dry-run", "01"],
    &["rollback"],
    &["status"],
    &["list"],
    &["log"],
    &["diff", "01", "01"],
    &["export", "01", "OUT"],
    &["remove", "01"],
    &["gc"],
    &["verify"],
    &["reload"],
    &["mount", "STORE", "MNT"],
];

fn typed(rig: &Rig, verb: &[&str]) -> Vec<OsString> {
    let path = |word: &&str| match *word {
        "SOURCE" => rig.src.join("01").into(),
        "OUT" => rig.root().join("out").into(),
        "STORE" => rig.store.clone().into(),
        "MNT" => rig.mnt.clone().into(),
        word => word.into(),
    };
    verb.iter().map(path).collect()
}

#[test]
fn where_there_is_no_store_every_verb_says_how_to_make_one() {
    let rig = Rig::new();
    Tree::new().file("index.html", "one").write(&rig.src.join("01"));
    for verb in VERBS {
        refused(&rig, &typed(&rig, verb), 2, &["no store in", arg(&rig.store), "verfs init"]);
        assert!(!rig.store.exists(), "verfs {verb:?} made a store");
    }
    fs::create_dir(&rig.store).unwrap();
    for verb in VERBS {
        refused(&rig, &typed(&rig, verb), 2, &["no store in", arg(&rig.store), "verfs init"]);
    }
    fs::remove_dir(&rig.store).unwrap();
    fs::write(&rig.store, "a file").unwrap();
    for verb in VERBS {
        let outcome = rig.verfs(&typed(&rig, verb));
        assert_eq!(outcome.code, 2, "verfs {verb:?}: {outcome:?}");
        assert!(outcome.stderr.contains("no store in"), "{outcome:?}");
    }
}

#[test]
fn a_store_of_a_newer_format_is_left_to_the_newer_verfs() {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("index.html", "one"));
    let settings = rig.store.join("verfs.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let newer = text.replace("format = 2", "format = 3") + "\n[later]\nkey = true\n";
    fs::write(&settings, newer).unwrap();
    for verb in VERBS {
        refused(&rig, &typed(&rig, verb), 2, &[arg(&settings), "format 3", "newer verfs"]);
    }
    fs::write(&settings, text).unwrap();
    assert_eq!(rig.json(&["list"])[0]["name"], "01");
}

#[test]
fn a_store_that_is_mounted_is_not_mounted_again() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("index.html", "one"));
    rig.mount();
    let other = rig.root().join("other");
    fs::create_dir(&other).unwrap();
    let pid = rig.pids()[0].to_string();
    let says = [arg(&rig.store), "in use", pid.as_str()];
    refused(&rig, &["mount", arg(&rig.store), arg(&other)], 1, &says);
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
    assert_eq!(rig.json(&["status"])["mountpoint"], arg(&rig.mnt));
    rig.umount();
}

#[test]
fn init_refuses_a_store_a_directory_with_something_in_it_and_a_file() {
    let rig = Rig::new();
    rig.init();
    refused(&rig, &["init", arg(&rig.store)], 2, &[arg(&rig.store), "store already"]);
    let full = rig.root().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine"), "keep me").unwrap();
    let before = Listing::of(&full);
    refused(&rig, &["init", arg(&full)], 2, &[arg(&full), "not empty"]);
    before.assert_same_as(&Listing::of(&full), "init of a full directory");
    let file = full.join("mine");
    let outcome = rig.verfs(&["init", arg(&file)]);
    assert!(matches!(outcome.code, 1 | 2), "{outcome:?}");
    assert!(outcome.stderr.contains(arg(&file)), "{outcome:?}");
    before.assert_same_as(&Listing::of(&full), "init of a file");
}

#[test]
fn settings_that_others_may_write_are_refused() {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("index.html", "one"));
    let settings = rig.store.join("verfs.toml");
    for mode in [0o664, 0o646] {
        fs::set_permissions(&settings, fs::Permissions::from_mode(mode)).unwrap();
        refused(&rig, &["list"], 1, &[arg(&settings), "others", "chmod"]);
        let mount = ["mount", arg(&rig.store), arg(&rig.mnt)];
        refused(&rig, &mount, 1, &[arg(&settings), "chmod"]);
    }
}

#[test]
fn an_active_file_that_is_damaged_is_named_and_its_advice_helps() {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("index.html", "one"));
    rig.add("02", &Tree::new().file("index.html", "two"));
    rig.ok(&["switch", "01"]);
    let active = rig.store.join("active");
    fs::write(&active, "{\"release\": \"0").unwrap();
    let says = [arg(&active), "damaged", "verfs switch"];
    refused(&rig, &["switch", "02"], 1, &says);
    refused(&rig, &["status"], 1, &says);
    refused(&rig, &["mount", arg(&rig.store), arg(&rig.mnt)], 1, &says);
    fs::remove_file(&active).unwrap();
    rig.ok(&["switch", "02"]);
    assert_eq!(rig.json(&["status"])["release"], "02");
}

#[test]
fn a_journal_line_that_was_cut_off_does_not_hide_the_others() {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("index.html", "one"));
    let journal = rig.store.join("journal.jsonl");
    let whole = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, format!("{whole}{{\"time\": \"20")).unwrap();
    assert_eq!(rig.json(&["log"]).as_array().unwrap().len(), 1);
    rig.ok(&["switch", "01"]);
    let lines = rig.json(&["log"]);
    let actions = lines.as_array().unwrap().iter().map(|line| line["action"].clone());
    assert_eq!(actions.collect::<Vec<_>>(), ["add", "switch"]);
}

#[test]
fn wrong_words_on_the_command_line_are_exit_2_and_with_json_an_object() {
    let rig = Rig::new();
    rig.init();
    let calls: [&[&str]; 5] = [
        &["switch"],
        &["switch", "01", "--no-such-option"],
        &["no-such-verb"],
        &["add", "01"],
        &["add", "01", "/", "-m", "a message without --switch"],
    ];
    for call in calls {
        let plain = rig.verfs(call);
        assert_eq!(plain.code, 2, "verfs {call:?}: {plain:?}");
        assert!(!plain.stderr.is_empty() && plain.stdout.is_empty(), "{plain:?}");
        let mut call: Vec<OsString> = call.iter().map(Into::into).collect();
        call.push("--json".into());
        let json = rig.verfs(&call);
        assert_eq!(json.code, 2, "verfs {call:?}: {json:?}");
        error_of(&call, &json);
    }
}
