//! `list`, `log`, `diff`, `status` and `verify` as people read them.

use super::support::Rig;
use super::support::tree::Tree;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn three_releases() -> Rig {
    let rig = Rig::new();
    rig.init();
    for name in ["01", "two-with-a-long-name", "03"] {
        rig.add(name, &Tree::new().file("index.html", name).file("same", "same"));
    }
    rig
}

#[test]
fn list_shows_size_and_state_of_every_release_in_columns() {
    let rig = three_releases();
    rig.ok(&["switch", "01"]);
    rig.ok(&["switch", "03"]);
    let text = rig.ok(&["list"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[0]), ["RELEASE", "FILES", "SIZE", "ADDED", "STATE"]);
    let files_column = lines[0].find("FILES").unwrap();
    for line in &lines[1..] {
        assert_eq!(&line[files_column..=files_column], "2", "not aligned: {text}");
        assert_eq!(line.trim_end(), *line);
    }
    let row = |name: &str| lines.iter().find(|line| line.starts_with(name)).unwrap();
    assert!(row("03").ends_with("active"), "{text}");
    assert!(row("01").ends_with("previous"), "{text}");
    assert!(row("two").ends_with('Z'), "{text}");
}

#[test]
fn an_empty_store_lists_nothing_and_its_log_is_empty() {
    let rig = Rig::new();
    rig.init();
    assert_eq!(rig.json(&["list"]).as_array().unwrap().len(), 0);
    assert_eq!(rig.json(&["log"]).as_array().unwrap().len(), 0);
    assert_eq!(rig.ok(&["list"]).lines().count(), 1);
    rig.ok(&["status"]);
    assert_eq!(rig.verfs(&["verify"]).code, 0);
    rig.ok(&["gc"]);
}

#[test]
fn log_shows_every_action_and_the_last_lines_when_asked() {
    let rig = three_releases();
    rig.ok(&["switch", "01", "-m", "the first"]);
    rig.ok(&["switch", "03"]);
    rig.ok(&["rollback", "-m", "too soon"]);
    rig.ok(&["remove", "two-with-a-long-name"]);
    rig.ok(&["gc"]);
    let log = rig.json(&["log"]);
    let actions: Vec<&str> = log.as_array().unwrap().iter().map(|line| line["action"].as_str().unwrap()).collect();
    let expected = ["add", "add", "add", "switch", "switch", "rollback", "remove", "gc"];
    assert_eq!(actions, expected);
    let text = rig.ok(&["log"]);
    assert_eq!(text.lines().count(), 9, "{text}");
    assert!(text.starts_with("TIME"), "{text}");
    let line = text.lines().find(|line| line.contains("rollback")).unwrap();
    for word in ["03", "01", "ok", "too soon"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    let last = rig.json(&["log", "-n", "2"]);
    assert_eq!(last.as_array().unwrap()[..], log.as_array().unwrap()[6..]);
    assert_eq!(rig.ok(&["log", "--lines", "1"]).lines().count(), 2);
    assert_eq!(rig.json(&["log", "-n", "0"]).as_array().unwrap().len(), 0);
    assert_eq!(rig.json(&["log", "-n", "1000"]), log);
}

#[test]
fn diff_tells_added_deleted_content_kind_and_mode_apart() {
    let rig = Rig::new();
    rig.init();
    let old = Tree::new()
        .file("content", "a")
        .file("mode", "m")
        .file("kind", "a file")
        .file("gone", "g")
        .file("gone-dir/x", "x")
        .file("same", "s")
        .file("dir-mode/x", "x")
        .symlink("link", "a");
    rig.add("01", &old);
    let new = Tree::new()
        .file("content", "b")
        .file("mode", "m")
        .file("kind/now", "a directory")
        .file("added", "n")
        .file("same", "s")
        .file("dir-mode/x", "x")
        .symlink("link", "b");
    let source = rig.src.join("02");
    new.write(&source);
    fs::set_permissions(source.join("mode"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(source.join("dir-mode"), fs::Permissions::from_mode(0o700)).unwrap();
    rig.ok(&["add", "02", source.to_str().unwrap()]);
    let text = rig.ok(&["diff", "01", "02"]);
    let expected = [
        "A added",
        "M content",
        "P dir-mode",
        "D gone",
        "D gone-dir",
        "D gone-dir/x",
        "T kind",
        "A kind/now",
        "M link",
        "P mode",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    assert_eq!(rig.ok(&["diff", "01", "01"]), "");
    let back = rig.ok(&["diff", "02", "01"]);
    assert!(back.lines().any(|line| line == "D added"), "{back}");
    assert!(back.lines().any(|line| line == "A gone-dir/x"), "{back}");
    let json = rig.json(&["diff", "01", "02"]);
    assert_eq!(json.as_array().unwrap().len(), expected.len());
}

#[test]
fn a_release_whose_mtimes_alone_differ_is_no_different() {
    let rig = Rig::new();
    rig.init();
    let tree = Tree::new().file("a", "a").file("dir/b", "b").symlink("l", "a");
    rig.add("01", &tree);
    let source = rig.src.join("02");
    tree.write(&source);
    for path in ["a", "dir/b", "dir", "l", ""] {
        super::support::tree::set_mtime(&source.join(path), 1_700_000_000);
    }
    rig.ok(&["add", "02", source.to_str().unwrap()]);
    assert_eq!(rig.ok(&["diff", "01", "02"]), "");
    rig.ok(&["switch", "01"]);
    assert_eq!(rig.json(&["switch", "02"])["changed"], 0);
}

#[test]
fn verify_counts_what_it_hashed() {
    let rig = three_releases();
    let value = rig.json(&["verify"]);
    assert_eq!((&value["releases"], &value["objects"]), (&3.into(), &4.into()), "{value}");
    assert_eq!(value["damaged"].as_array().unwrap().len(), 0);
    let value = rig.json(&["verify", "01"]);
    assert_eq!((&value["releases"], &value["objects"]), (&1.into(), &2.into()), "{value}");
    let text = rig.ok(&["verify"]);
    assert!(text.contains("nothing is damaged"), "{text}");
}

#[test]
fn output_goes_to_a_reader_that_stops_early_without_a_complaint() {
    let rig = three_releases();
    let script = "\"$0\" list | head -n 1; \"$0\" log --json | head -c 1 >/dev/null";
    let output = std::process::Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_verfs")])
        .env("VERFS_STORE", &rig.store)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
