//! `remove` and `gc`: what they free, and what they must not.

use super::support::tree::Tree;
use super::support::{self, Rig};
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::Path;

/// Each release has a file of its own, and one that all share.
fn releases(names: &[&str]) -> Rig {
    let rig = Rig::new();
    rig.init();
    for name in names {
        rig.add(name, &Tree::new().file("own", format!("only in {name}")).file("same", "in all"));
    }
    rig.ok(&["switch", names[0]]);
    rig
}

/// The hashes of all objects.
fn objects(store: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for shard in fs::read_dir(store.join("objects")).unwrap().flatten() {
        for object in fs::read_dir(shard.path()).unwrap().flatten() {
            let (high, low) = (shard.file_name(), object.file_name());
            found.push(format!("{}{}", high.to_str().unwrap(), low.to_str().unwrap()));
        }
    }
    found.sort();
    found
}

fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[test]
fn gc_frees_what_no_release_needs_and_nothing_else() {
    let rig = releases(&["01", "02", "03"]);
    assert_eq!(rig.json(&["gc"])["objects"], 0, "everything is needed");
    assert_eq!(objects(&rig.store).len(), 4);
    let removed = rig.json(&["remove", "02"]);
    assert_eq!(removed["removed"], "02");
    assert_eq!(objects(&rig.store).len(), 4, "remove frees nothing by itself");
    let freed = rig.json(&["gc"]);
    assert_eq!((&freed["objects"], &freed["in_use"]), (&1.into(), &0.into()), "{freed}");
    assert_eq!(freed["bytes"], "only in 02".len());
    let mut left = ["only in 01", "only in 03", "in all"].map(hash).to_vec();
    left.sort();
    assert_eq!(objects(&rig.store), left);
    assert_eq!(rig.verfs(&["verify"]).code, 0);
    assert_eq!(rig.json(&["gc"])["objects"], 0);
}

#[test]
fn remove_refuses_the_active_and_the_previous_release_mounted_or_not() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = releases(&["01", "02", "03"]);
    rig.ok(&["switch", "02"]);
    for _ in 0..2 {
        for (name, word) in [("02", "active"), ("01", "rollback")] {
            let outcome = rig.verfs(&["remove", name]);
            assert_eq!(outcome.code, 2, "{outcome:?}");
            assert!(outcome.stderr.contains(name) && outcome.stderr.contains(word), "{outcome:?}");
        }
        if rig.pids().is_empty() {
            rig.mount();
        }
    }
    rig.ok(&["remove", "03"]);
    assert_eq!(rig.json(&["list"]).as_array().unwrap().len(), 2);
    rig.ok(&["rollback"]);
    // Its name is free again, for other content too.
    let again = rig.src.join("again");
    Tree::new().file("own", "another 03").write(&again);
    rig.ok(&["add", "03", again.to_str().unwrap(), "--switch"]);
    assert_eq!(fs::read(rig.mnt.join("own")).unwrap(), b"another 03");
    rig.umount();
}

#[test]
fn gc_keeps_the_objects_of_a_file_held_open_from_a_removed_release() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = releases(&["01", "02", "03"]);
    rig.mount();
    let mut held = File::open(rig.mnt.join("own")).unwrap();
    rig.ok(&["switch", "02"]);
    rig.ok(&["switch", "03"]);
    rig.ok(&["remove", "01"]);
    let freed = rig.json(&["gc"]);
    assert_eq!((&freed["objects"], &freed["in_use"]), (&0.into(), &1.into()), "{freed}");
    // The pages are gone from the kernel, so it asks again.
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "only in 01");
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    held.rewind().unwrap();
    text.clear();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "only in 01", "after gc looked");
    drop(held);
    let freed = rig.json(&["gc"]);
    assert_eq!((&freed["objects"], &freed["in_use"]), (&1.into(), &0.into()), "{freed}");
    assert_eq!(fs::read(rig.mnt.join("own")).unwrap(), b"only in 03");
    let said = rig.ok(&["gc"]);
    assert!(said.contains("freed 0 objects"), "{said}");
    rig.umount();
}

#[test]
fn gc_names_and_removes_the_litter_of_commands_that_were_stopped() {
    let rig = releases(&["01"]);
    let source = rig.src.join("02");
    Tree::new().file("own", "only in 02").write(&source);
    let args = ["add", "02", source.to_str().unwrap()];
    for (point, objects_left) in [("add.staged", 2), ("add.objects-placed", 3)] {
        let outcome = rig.run(&args, &[("VERFS_FAULT", &format!("crash:{point}"))]);
        assert_eq!(outcome.code, 128 + libc::SIGABRT, "{outcome:?}");
        assert_eq!(objects(&rig.store).len(), objects_left);
        let litter = rig.json(&["gc"])["litter"].clone();
        let litter = litter.as_array().unwrap();
        assert!(litter.iter().any(|path| path.as_str().unwrap().contains("/tmp/add-")), "{point}: {litter:?}");
        assert_eq!(objects(&rig.store).len(), 2, "{point}");
        assert_eq!(fs::read_dir(rig.store.join("tmp")).unwrap().count(), 0, "{point}");
        assert_eq!(rig.verfs(&["switch", "02"]).code, 2, "a half-made release is none");
    }
    rig.ok(&args);
    rig.ok(&["switch", "02"]);
}

#[test]
fn gc_waits_for_no_add_and_takes_nothing_from_one() {
    let rig = releases(&["01"]);
    let source = rig.src.join("02");
    // Long enough that several gc meet it.
    let block: Vec<u8> = (0..=255).collect();
    for number in 0..8_u8 {
        let mut bytes = block.repeat(16 << 10);
        bytes[0] = number;
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join(number.to_string()), bytes).unwrap();
    }
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| rig.verfs(&["add", "02", source.to_str().unwrap()]));
        while !adding.is_finished() {
            let outcome = rig.verfs(&["gc"]);
            if outcome.code != 0 {
                assert_eq!(outcome.code, 1, "{outcome:?}");
                assert!(outcome.stderr.contains("in use by an add"), "{outcome:?}");
            }
        }
        let added = adding.join().unwrap();
        // Either may find the other at work, and says so.
        if added.code != 0 {
            assert_eq!(added.code, 1, "{added:?}");
            assert!(added.stderr.contains("in use by a gc"), "{added:?}");
        }
    });
    rig.ok(&["add", "02", source.to_str().unwrap()]);
    assert_eq!(rig.verfs(&["verify"]).code, 0);
}
