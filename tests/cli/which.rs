//! Which store is meant: `--store`, else $VERFS_STORE, else the only mounted one.

use super::namespace::run;
use super::support::tree::Tree;
use super::support::{self, Rig};

fn store(text: &str) -> Rig {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("index.html", text));
    rig
}

fn shown(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_option_comes_before_the_variable() {
    let (a, b) = (store("a"), store("b"));
    b.add("only-in-b", &Tree::new().file("x", "x"));
    // The rig's own runs have its store in the variable.
    let names = |rig: &Rig, args: &[&str]| {
        let list = rig.json(args);
        let list = list.as_array().unwrap().iter();
        list.map(|row| row["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&a, &["list"]), ["01"]);
    assert_eq!(names(&a, &["list", "--store", shown(&b.store)]), ["01", "only-in-b"]);
    assert_eq!(names(&a, &["--store", shown(&b.store), "list"]), ["01", "only-in-b"]);
}

#[test]
fn a_positional_store_that_disagrees_with_the_option_is_refused() {
    let (a, b) = (store("a"), store("b"));
    let third = a.root().join("third");
    let calls: [&[&str]; 2] = [&["mount", shown(&a.store), shown(&a.mnt)], &["init", shown(&third)]];
    for call in calls {
        let args = [call, &["--store", shown(&b.store)]].concat();
        let outcome = a.verfs(&args);
        assert_eq!(outcome.code, 2, "{args:?}: {outcome:?}");
        for path in [call[1], shown(&b.store)] {
            assert!(outcome.stderr.contains(path), "{path} is not named: {outcome:?}");
        }
    }
    assert!(!third.exists());
    // The same store in other words agrees.
    let other_words = b.store.join("../store/.");
    let outcome = b.verfs(&["init", shown(&b.store), "--store", shown(&other_words)]);
    assert!(outcome.stderr.contains("store already"), "{outcome:?}");
}

#[test]
fn umount_of_a_store_that_disagrees_with_the_option_is_refused() {
    if support::skip_mounted() {
        return;
    }
    let (mut a, b) = (store("a"), store("b"));
    a.mount();
    for what in [shown(&a.store), shown(&a.mnt)] {
        let args = ["umount", what, "--store", shown(&b.store)];
        let outcome = a.verfs(&args);
        assert_eq!(outcome.code, 2, "{args:?}: {outcome:?}");
        assert!(outcome.stderr.contains(shown(&b.store)), "{outcome:?}");
    }
    assert_eq!(std::fs::read(a.mnt.join("index.html")).unwrap(), b"a");
    a.umount();
}

#[test]
fn without_option_and_variable_the_only_mounted_store_is_meant() {
    if support::skip_mounted() {
        return;
    }
    let rig = store("a");
    let script = r#"
        "$VERFS" list --json; echo "none mounted: $?"
        "$VERFS" mount "$1" "$2" >&2 || exit 9
        "$VERFS" status --json; echo "one mounted: $?"
        "$VERFS" switch 01 --json; echo "switch: $?"
        VERFS_STORE= "$VERFS" list --json; echo "empty variable: $?"
        "$VERFS" umount; echo "umount: $?"
        "#;
    let said = run(script, &[shown(&rig.store), shown(&rig.mnt)]);
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(lines[0], "none mounted: 2", "{said:?}");
    assert!(said.stderr.contains("which store") && said.stderr.contains("--store"), "{said:?}");
    assert!(lines[1].contains(shown(&rig.store)), "{said:?}");
    assert_eq!(lines[2], "one mounted: 0", "{said:?}");
    assert_eq!(lines[4], "switch: 0", "{said:?}");
    assert!(lines[5].contains("\"01\""), "{said:?}");
    assert_eq!(lines[6], "empty variable: 0", "{said:?}");
    assert_eq!(lines.last(), Some(&"umount: 0"), "{said:?}");
}

#[test]
fn with_two_mounted_stores_both_are_named_and_nothing_is_done() {
    if support::skip_mounted() {
        return;
    }
    let (a, b) = (store("a"), store("b"));
    b.add("02", &Tree::new().file("index.html", "b2"));
    let script = r#"
        "$VERFS" mount "$1" "$2" >&2 || exit 9
        "$VERFS" mount "$3" "$4" >&2 || exit 9
        for verb in status list log "switch 01" rollback gc verify reload umount; do
            "$VERFS" $verb >/dev/null 2>"$5"; echo "$verb: $?"
            grep -qF "$1" "$5" && grep -qF "$3" "$5" || { echo "not named by $verb:"; cat "$5"; }
        done
        "$VERFS" --store "$3" list --json | grep -c '"02"'
        VERFS_STORE="$1" "$VERFS" status --json | grep -cF "$2"
        "$VERFS" umount "$2" >&2; echo "umount: $?"
        "$VERFS" umount >&2; echo "the other: $?"
        "#;
    let scratch = a.root().join("said");
    let said = run(script, &[shown(&a.store), shown(&a.mnt), shown(&b.store), shown(&b.mnt), shown(&scratch)]);
    let expected = [
        "status: 2",
        "list: 2",
        "log: 2",
        "switch 01: 2",
        "rollback: 2",
        "gc: 2",
        "verify: 2",
        "reload: 2",
        "umount: 2",
        "1",
        "1",
        "umount: 0",
        "the other: 0",
    ];
    assert_eq!(said.stdout.lines().collect::<Vec<_>>(), expected, "{said:?}");
}

#[test]
fn a_mount_that_neither_root_nor_the_caller_made_is_not_believed() {
    if support::skip_mounted() {
        return;
    }
    let (evil, own) = (store("evil"), store("own"));
    // What fusermount3 does for a user who asks for the type fuse.verfs and any source; the kernel's user_id tells.
    let script = r#"
        exec 3<>/dev/fuse
        mount -i -t fuse.verfs -o fd=3,rootmode=40000,user_id=33,group_id=33 "$1" "$2" || exit 9
        for verb in list status gc umount; do
            "$VERFS" $verb >/dev/null 2>"$5"; echo "$verb: $?"
            grep -q "which store" "$5" || { echo "not asked by $verb:"; cat "$5"; }
        done
        "$VERFS" mount "$3" "$4" >&2 || exit 9
        "$VERFS" list --json; echo "one mounted: $?"
        grep -c "$2 .*fuse.verfs" /proc/self/mountinfo
        umount -l "$2"
        "#;
    let said_by = evil.root().join("said");
    let args = [&evil.store, &evil.mnt, &own.store, &own.mnt, &said_by].map(|path| shown(path));
    let said = run(script, &args);
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(&lines[..4], ["list: 2", "status: 2", "gc: 2", "umount: 2"], "{said:?}");
    assert_eq!(&lines[5..], ["one mounted: 0", "1"], "{said:?}");
}
