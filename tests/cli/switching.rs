//! `switch`, `rollback` and `add --switch`.

use super::support::tree::Tree;
use super::support::{self, Rig};
use serde_json::Value;
use std::fs;

fn page(text: &str) -> Tree {
    Tree::new().file("index.html", text).file("css/a.css", "a")
}

fn three_releases() -> Rig {
    let rig = Rig::new();
    rig.init();
    for name in ["01", "02", "03"] {
        rig.add(name, &page(name));
    }
    rig.ok(&["switch", "01"]);
    rig
}

fn active(rig: &Rig) -> Value {
    rig.json(&["status"])["release"].clone()
}

/// Runs a check without a daemon and then mounted.
fn both_ways(check: impl Fn(&Rig)) {
    check(&three_releases());
    if support::skip_mounted() {
        return;
    }
    let mut rig = three_releases();
    rig.mount();
    check(&rig);
    let served = fs::read_to_string(rig.mnt.join("index.html")).unwrap();
    assert_eq!(active(&rig), served, "what is served is what status says");
    rig.umount();
}

#[test]
fn switch_says_from_to_how_much_changed_and_how_long_it_took() {
    both_ways(|rig| {
        let said = rig.ok(&["switch", "02"]);
        for word in ["01", "02", "1 changed", "hidden", "us"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(active(rig), "02");
        assert_eq!(rig.json(&["status"])["previous"], "01");
    });
}

#[test]
fn switch_to_the_active_release_has_nothing_to_do_and_is_no_error() {
    both_ways(|rig| {
        rig.ok(&["switch", "02"]);
        let before = rig.json(&["status"]);
        let said = rig.ok(&["switch", "02"]);
        assert!(said.contains("active already"), "{said}");
        assert_eq!(rig.json(&["switch", "02"])["changed"], 0);
        let after = rig.json(&["status"]);
        for field in ["release", "previous", "since", "switch", "switches"] {
            assert_eq!(before[field], after[field], "{field}");
        }
        rig.ok(&["rollback"]);
        assert_eq!(active(rig), "01", "the way back is still there");
    });
}

#[test]
fn a_second_rollback_is_refused_and_says_what_to_name() {
    both_ways(|rig| {
        rig.ok(&["switch", "02"]);
        rig.ok(&["rollback"]);
        assert_eq!(active(rig), "01");
        let outcome = rig.verfs(&["rollback"]);
        assert_eq!(outcome.code, 2, "{outcome:?}");
        for word in ["verfs rollback", "01", "02", "03"] {
            assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
        }
        assert_eq!(active(rig), "01");
        rig.ok(&["rollback", "02"]);
        assert_eq!(active(rig), "02");
        // After a switch there is a way back again.
        rig.ok(&["switch", "03"]);
        rig.ok(&["rollback"]);
        assert_eq!(active(rig), "02");
    });
}

#[test]
fn a_dry_run_prints_what_would_change_and_changes_nothing() {
    both_ways(|rig| {
        let tree = page("new").file("added/deep", "x").symlink("link", "css");
        rig.add("04", &tree);
        let before = rig.json(&["log"]);
        let said = rig.ok(&["switch", "--dry-run", "04"]);
        for line in ["M index.html", "A added", "A added/deep", "A link"] {
            assert!(said.lines().any(|said| said == line), "{line}: {said}");
        }
        assert!(said.contains("01 -> 04") && said.contains("nothing was switched"), "{said}");
        let value = rig.json(&["switch", "--dry-run", "04"]);
        assert_eq!((&value["from"], &value["to"]), (&"01".into(), &"04".into()));
        let changes = value["changes"].as_array().unwrap();
        assert!(changes.iter().any(|line| line["path"] == "link" && line["change"] == "added"), "{value}");
        assert_eq!(active(rig), "01");
        assert_eq!(rig.json(&["log"]), before);
        let same = rig.json(&["switch", "--dry-run", "01"]);
        assert_eq!(same["changes"].as_array().unwrap().len(), 0);
    });
}

#[test]
fn add_switch_does_both_and_carries_the_message() {
    both_ways(|rig| {
        let source = rig.src.join("new");
        page("04").write(&source);
        let said = rig.ok(&["add", "04", source.to_str().unwrap(), "--switch", "-m", "spring"]);
        assert!(said.contains("added 04") && said.contains("01 -> 04"), "{said}");
        assert_eq!(active(rig), "04");
        let log = rig.json(&["log"]);
        let last = log.as_array().unwrap().last().unwrap();
        assert_eq!((&last["action"], &last["message"]), (&"switch".into(), &"spring".into()));
        // Again: the release is there and active, which is no error.
        let value = rig.json(&["add", "04", source.to_str().unwrap(), "--switch"]);
        assert_eq!((&value["identical"], &value["switch"]["changed"]), (&true.into(), &0.into()));
    });
}

#[test]
fn add_switch_of_a_bad_source_switches_nothing() {
    both_ways(|rig| {
        let missing = rig.src.join("missing");
        let outcome = rig.verfs(&["add", "04", missing.to_str().unwrap(), "--switch"]);
        assert_eq!(outcome.code, 2, "{outcome:?}");
        assert_eq!(active(rig), "01");
    });
}

#[test]
fn the_journal_keeps_who_asked_and_what_was_said() {
    both_ways(|rig| {
        let message = "prices \"up\"\nsecond line \u{e9}";
        rig.ok(&["switch", "02", "-m", message]);
        let outcome = rig.run(&["rollback", "-m", "oops"], &[("SUDO_UID", "1234")]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let log = rig.json(&["log"]);
        let log = log.as_array().unwrap();
        let [switch, rollback] = &log[log.len() - 2..] else { panic!("{log:?}") };
        assert_eq!(switch["action"], "switch");
        assert_eq!((&switch["from"], &switch["to"]), (&"01".into(), &"02".into()));
        assert_eq!(switch["message"], message);
        assert_eq!(switch["uid"], 0);
        assert_eq!(rollback["action"], "rollback");
        assert_eq!((&rollback["from"], &rollback["to"]), (&"02".into(), &"01".into()));
        assert_eq!(rollback["sudo_uid"], 1234, "{rollback}");
    });
}

#[test]
fn what_was_switched_without_a_daemon_is_served_by_the_next_mount() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = three_releases();
    rig.mount();
    rig.ok(&["switch", "02"]);
    rig.umount();
    let said = rig.ok(&["switch", "03"]);
    assert!(said.contains("not mounted"), "{said}");
    rig.mount();
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"03");
    rig.umount();
    rig.ok(&["rollback"]);
    rig.mount();
    assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"02");
    rig.umount();
}
