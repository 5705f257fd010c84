//! Stopped anywhere: the store opens, serves the old or the new release, and the next command succeeds.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::chance::Chance;
use support::{Rig, skip_mounted};
use verfs::store::Store;
use verfs::store::active::stamps::Stamp;
use verfs::tree::{Kind, NodeId, Tree as _};

/// Writes a small release: with a large file of its own, and with small ones enough for a pack, half of them its own.
fn source(rig: &Rig, release: &str) -> std::path::PathBuf {
    let dir = rig.src.join(release);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("d/e")).unwrap();
    fs::write(dir.join("index"), release).unwrap();
    fs::write(dir.join("same"), "the same in all").unwrap();
    fs::write(dir.join("d/e").join(format!("only-{release}")), release.repeat(40_000)).unwrap();
    for number in 0..70 {
        fs::write(dir.join(format!("d/same-{number}")), format!("number {number} of all")).unwrap();
        fs::write(dir.join(format!("d/own-{number}")), format!("number {number} of {release}")).unwrap();
    }
    dir
}

/// A store with the releases a and b, b active after a, and an orphaned object for gc.
fn prepared() -> Rig {
    let rig = Rig::with_limit(Duration::from_secs(300));
    rig.init();
    for release in ["gone", "a", "b"] {
        let dir = source(&rig, release);
        rig.ok(&["add", release, dir.to_str().unwrap()]);
    }
    rig.ok(&["switch", "a"]);
    rig.ok(&["switch", "b"]);
    rig
}

/// The active release and the names of all, as the store on disk says.
fn state(rig: &Rig) -> (String, Vec<String>) {
    let list = rig.json(&["list"]);
    let names = list.as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect();
    (rig.json(&["status"])["release"].as_str().unwrap().to_owned(), names)
}

/// Exports what is active and compares it with what that release holds.
fn assert_serves_whole_release(rig: &Rig) {
    let (active, _) = state(rig);
    let out = rig.src.join("exported");
    let _ = fs::remove_dir_all(&out);
    rig.ok(&["export", &active, out.to_str().unwrap()]);
    assert_eq!(files(&out), files(&rig.src.join(&active)), "release {active}");
    fs::remove_dir_all(&out).unwrap();
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// What a verb is run as, and run again after it was stopped.
fn command(rig: &Rig, verb: &str) -> Vec<String> {
    let words: Vec<String> = match verb {
        "add" => vec!["add".into(), "new".into(), source(rig, "new").to_str().unwrap().into()],
        "switch" => vec!["switch".into(), "a".into()],
        "rollback" => vec!["rollback".into()],
        "remove" => vec!["remove".into(), "gone".into()],
        "gc" => vec!["gc".into()],
        other => panic!("no command for {other}"),
    };
    words
}

/// Every crash point of a verb, as the program itself lists them.
fn points(rig: &Rig, verb: &str) -> Vec<String> {
    let listed = rig.ok(&["debug-faults"]);
    let points: Vec<String> = listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(of, _)| *of == verb)
        .map(|(_, point)| point.to_owned())
        .collect();
    assert!(!points.is_empty(), "{verb} has crash points");
    points
}

/// The switch number of the journal's last switch is that of the store: none is missing, none is there twice.
fn assert_journal_is_whole(rig: &Rig) {
    let log = rig.json(&["log"]);
    let numbers: Vec<u64> = log.as_array().unwrap().iter().filter_map(|line| line["switch"].as_u64()).collect();
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected, "every switch stands in the journal once");
    assert_eq!(rig.json(&["status"])["switch"].as_u64().unwrap(), numbers.len() as u64);
}

fn stop_at_every_point(verb: &str) {
    let points = points(&Rig::new(), verb);
    for point in points {
        let rig = prepared();
        if verb == "gc" {
            rig.ok(&["remove", "gone"]);
        }
        let before = state(&rig);
        let words = command(&rig, verb);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let stopped = rig.run(&words, &[("VERFS_FAULT", &format!("crash:{point}"))]);
        assert_ne!(stopped.code, 0, "{verb} at {point}: it was stopped there: {}", stopped.stdout);
        assert!(stopped.stderr.contains(&point), "{verb} at {point}: {}", stopped.stderr);

        let after = state(&rig);
        assert_serves_whole_release(&rig);
        let again = rig.verfs(&words);
        // A rollback that was done is not done once more; whatever had happened, the outcome is that of one run.
        let done_already = ["rollback", "remove"].contains(&verb) && after != before;
        assert_eq!(again.code, if done_already { 2 } else { 0 }, "{verb} after {point}: {}", again.stderr);
        match verb {
            "add" => assert!(state(&rig).1.contains(&"new".to_owned())),
            "switch" | "rollback" => assert_eq!(state(&rig).0, "a", "{verb} after {point}"),
            "remove" => assert!(!state(&rig).1.contains(&"gone".to_owned())),
            _ => {}
        }
        assert_serves_whole_release(&rig);
        rig.ok(&["gc"]);
        rig.ok(&["verify"]);
        assert_no_litter(&rig);
        rig.ok(&["switch", if state(&rig).0 == "a" { "b" } else { "a" }]);
        assert_journal_is_whole(&rig);
    }
}

/// After a gc nothing is left in the work space, and no temporary file anywhere.
fn assert_no_litter(rig: &Rig) {
    let names = |dir: &str| -> Vec<String> {
        fs::read_dir(rig.store.join(dir))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names("tmp"), Vec::<String>::new());
    for dir in [".", "releases"] {
        assert!(names(dir).iter().all(|name| !name.starts_with('.')), "{:?}", names(dir));
    }
}

#[test]
fn add_stopped_at_any_point_leaves_nothing_half_made() {
    stop_at_every_point("add");
}

#[test]
fn switch_stopped_at_any_point_leaves_old_or_new() {
    stop_at_every_point("switch");
}

#[test]
fn rollback_stopped_at_any_point_leaves_old_or_new() {
    stop_at_every_point("rollback");
}

#[test]
fn remove_stopped_at_any_point_leaves_the_release_or_not() {
    stop_at_every_point("remove");
}

#[test]
fn gc_stopped_at_any_point_frees_nothing_that_is_needed() {
    stop_at_every_point("gc");
}

/// A crash point as the environment has it: what is written after `active` is the second that is replaced.
fn at(verb: &str, point: &str) -> String {
    let second = if verb == "compaction" && point.starts_with("atomic.") { ":2" } else { "" };
    format!("crash:{point}{second}")
}

/// The files that both releases have.
fn in_both(store: &Store) -> Vec<NodeId> {
    let [a, b] = ["a", "b"].map(|name| store.manifest(&name.parse().unwrap()).unwrap());
    let nodes = (0..a.len()).map(|index| a.node(index).unwrap());
    let same = nodes.filter(|node| node.kind == Kind::File && b.find_node(node.nodeid).unwrap().is_some());
    let same: Vec<_> = same.map(|node| node.nodeid).collect();
    assert_eq!(same.len(), 71);
    same
}

#[test]
fn compaction_of_the_stamps_stopped_at_any_point_leaves_the_old_or_the_new_file() {
    for point in points(&Rig::new(), "compaction") {
        let rig = prepared();
        let store = Store::open(&rig.store).unwrap();
        let (gone, same) = ((1000..2000).map(NodeId).collect::<Vec<_>>(), in_both(&store));
        let stamped = |second| gone.iter().chain(&same).map(move |node| (*node, Stamp { second, nanos: 1 }));
        let mut active = store.active().unwrap().unwrap();
        for second in 0..60 {
            let batch: Vec<_> = stamped(second).collect();
            active.stamps_len = store.append_stamps(active.stamps_len, &batch).unwrap();
        }
        store.set_active(&active).unwrap();
        let stopped = rig.run(&["switch", "a"], &[("VERFS_FAULT", &at("compaction", &point))]);
        assert_ne!(stopped.code, 0, "{point}: {}", stopped.stdout);
        assert!(stopped.stderr.contains(&point), "{point}: {}", stopped.stderr);
        let is_compacted = fs::metadata(rig.store.join("stamps")).unwrap().len() < 100_000;
        assert_eq!(is_compacted, point == "stamps.compacted", "{point}");
        assert_eq!(state(&rig).0, "a", "{point}: the switch had happened");
        rig.ok(&["verify"]);
        rig.ok(&["switch", "b"]);
        assert!(fs::metadata(rig.store.join("stamps")).unwrap().len() < 100_000, "{point}: the next switch compacts");
        let stamps = store.read_stamps(store.active().unwrap().unwrap().stamps_len).unwrap();
        assert!(same.iter().all(|node| stamps.get(*node, 9) == Some(Stamp { second: 59, nanos: 1 })), "{point}");
        assert!(gone.iter().all(|node| stamps.get(*node, 9).is_none()), "{point}: no release has them");
        rig.ok(&["gc"]);
        rig.ok(&["verify"]);
        assert_no_litter(&rig);
        assert_journal_is_whole(&rig);
    }
}

#[test]
fn conversion_of_a_store_of_0_1_stopped_at_any_point_leaves_a_store_that_opens() {
    for point in points(&Rig::new(), "conversion") {
        let rig = prepared();
        // A store of format 1 differs in `active`, and in the digit.
        let (toml, active) = (rig.store.join("verfs.toml"), rig.store.join("active"));
        let text = fs::read_to_string(&toml).unwrap().replace("format = 2", "format = 1");
        fs::write(&toml, text).unwrap();
        let text = fs::read_to_string(&active).unwrap();
        fs::write(&active, text[..text.find(",\"checksum\"").unwrap()].to_owned() + "}\n").unwrap();
        let stopped = rig.run(&["switch", "a"], &[("VERFS_FAULT", &at("conversion", &point))]);
        assert!(stopped.stderr.contains(&point), "{point}: {}", stopped.stderr);
        let is_new = fs::read_to_string(&toml).unwrap().contains("\nformat = 2\n");
        let has_checksum = fs::read_to_string(&active).unwrap().contains("checksum");
        assert_eq!((has_checksum, is_new), (point != "atomic.synced", point != "atomic.synced"), "{point}");
        rig.ok(&["verify"]);
        assert_serves_whole_release(&rig);
        rig.ok(&["switch", "a"]);
        rig.ok(&["switch", "b"]);
        assert!(fs::read_to_string(&toml).unwrap().contains("\nformat = 2\n"), "{point}");
        rig.ok(&["verify"]);
        assert_journal_is_whole(&rig);
    }
}

#[test]
fn a_journal_that_is_put_aside_loses_no_line_when_it_is_stopped() {
    for point in points(&Rig::new(), "rotation") {
        let rig = prepared();
        let journal = rig.store.join("journal.jsonl");
        let refused = "{\"time\":\"2026-11-26T16:02:13Z\",\"uid\":0,\"action\":\"gc\",\"from\":null,\"to\":null,\
                       \"message\":null,\"ok\":true}\n";
        let text = fs::read_to_string(&journal).unwrap() + &refused.repeat((1 << 20) / refused.len() + 1);
        fs::write(&journal, text).unwrap();
        let lines = rig.json(&["log"]).as_array().unwrap().len();
        let stopped = rig.run(&["switch", "a"], &[("VERFS_FAULT", &at("rotation", &point))]);
        assert!(stopped.stderr.contains(&point), "{point}: {}", stopped.stderr);
        assert!(!journal.exists(), "{point}");
        assert_eq!(rig.json(&["log"]).as_array().unwrap().len(), lines, "{point}");
        rig.ok(&["switch", "b"]);
        assert_eq!(rig.json(&["log"]).as_array().unwrap().len(), lines + 2, "{point}");
        assert_journal_is_whole(&rig);
        rig.ok(&["verify"]);
    }
}

#[test]
fn daemon_stopped_in_a_switch_serves_old_or_new_at_the_next_mount() {
    if skip_mounted() {
        return;
    }
    for point in points(&Rig::new(), "mounted-switch") {
        let mut rig = prepared();
        rig.mount_with_env(&[("VERFS_FAULT", &format!("crash:{point}"))]);
        let answer = rig.verfs(&["switch", "a"]);
        assert_eq!(answer.code, 1, "{point}: no success was promised: {}", answer.stdout);
        rig.mount();
        let (active, _) = state(&rig);
        assert!(["a", "b"].contains(&active.as_str()));
        assert_eq!(files(&rig.mnt), files(&rig.src.join(&active)), "{point}");
        rig.ok(&["switch", "a"]);
        assert_eq!(files(&rig.mnt), files(&rig.src.join("a")), "{point}");
        rig.ok(&["switch", "b"]);
        rig.umount();
        assert_journal_is_whole(&rig);
    }
}

/// `kill -9` in the middle of a run, 200 times, over every verb that changes the store.
#[test]
fn killed_at_200_random_moments_every_next_command_succeeds() {
    let rig = prepared();
    let source = source(&rig, "new").to_str().unwrap().to_owned();
    let mut random = Chance::new(0x5eed);
    // The longest run of each verb so far: the moments are spread over it.
    let mut longest = BTreeMap::from([("add", 4000u64), ("switch", 4000), ("remove", 4000), ("gc", 4000)]);
    let (mut stopped, mut round) = (0, 0);
    while stopped < 200 {
        round += 1;
        assert!(round < 2000, "the moments hit: {stopped} of {round} runs were stopped");
        let other = if state_on_disk(&rig) == "a" { "b" } else { "a" };
        let words: Vec<&str> = match round % 5 {
            0 | 1 => vec!["add", "new", &source],
            2 => vec!["switch", other],
            3 => vec!["remove", "new"],
            _ => vec!["gc"],
        };
        let begun = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_verfs"))
            .args(&words)
            .env("VERFS_STORE", &rig.store)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moment = Duration::from_micros(random.below(longest[words[0]] as usize) as u64);
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if begun.elapsed() >= moment {
                child.kill().unwrap();
                break child.wait().unwrap().code().map(|_| Default::default());
            }
        };
        if ended.is_some() {
            // A run that came to its end says how long a run is.
            let took = begun.elapsed().as_micros() as u64;
            longest.entry(words[0]).and_modify(|longest| *longest = (*longest).max(took));
            continue;
        }
        stopped += 1;
        assert_serves_whole_release(&rig);
        if stopped % 10 == 0 {
            rig.ok(&["gc"]);
            rig.ok(&["verify"]);
            assert_no_litter(&rig);
            rig.ok(&["switch", if state_on_disk(&rig) == "a" { "b" } else { "a" }]);
            assert_journal_is_whole(&rig);
        }
    }
}

/// The daemon, killed while switches go on; what the next mount serves is whole.
#[test]
fn daemon_killed_while_switches_go_on_serves_old_or_new() {
    if skip_mounted() {
        return;
    }
    let mut rig = prepared();
    let mut random = Chance::new(7);
    for round in 0..20 {
        rig.mount();
        let pid = rig.json(&["status"])["worker_pid"].as_i64().unwrap() as i32;
        std::thread::scope(|scope| {
            let switching = scope.spawn(|| {
                for _ in 0..40 {
                    let to = if state_on_disk(&rig) == "a" { "b" } else { "a" };
                    if rig.verfs(&["switch", to]).code != 0 {
                        break;
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(10 + random.below(150) as u64));
            rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL)
                .unwrap();
            switching.join().unwrap();
        });
        rig.mount();
        let (active, _) = state(&rig);
        assert_eq!(files(&rig.mnt), files(&rig.src.join(&active)), "round {round}");
        rig.ok(&["switch", if active == "a" { "b" } else { "a" }]);
        rig.umount();
        assert_journal_is_whole(&rig);
    }
}

fn state_on_disk(rig: &Rig) -> String {
    let text = fs::read(rig.store.join("active")).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
    value["release"].as_str().unwrap().to_owned()
}
