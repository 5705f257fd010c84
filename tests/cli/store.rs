//! What lies in a store: flipped bits are found, stores of 0.1 open, and nothing grows for ever.

use super::support::tree::Tree;
use super::support::{self, Rig};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use verfs::store::Store;
use verfs::store::active::Active;
use verfs::store::active::stamps::{Stamp, Stamps};
use verfs::tree::{NodeId, Tree as _};

/// Three releases of one file; 01 was active, 02 is.
fn three_releases() -> Rig {
    let rig = Rig::new();
    rig.init();
    for name in ["01", "02", "03"] {
        rig.add(name, &Tree::new().file("a", name));
    }
    rig.ok(&["switch", "01"]);
    rig.ok(&["switch", "02"]);
    rig
}

/// A store that verfs 0.1 made, with a writable scope `media`: 01, 02, 01, 02 were active, under a mount at last.
fn store_of_0_1() -> Rig {
    let rig = Rig::new();
    let tar = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-0.1.tar.gz");
    let unpacked = Command::new("tar").arg("-xpzf").arg(tar).arg("-C").arg(rig.root()).status().unwrap();
    assert!(unpacked.success());
    fs::rename(rig.root().join("store-0.1"), &rig.store).unwrap();
    rig
}

/// `verify` fails and names this.
fn verify_names(rig: &Rig, says: &[&str]) {
    let outcome = rig.verfs(&["verify"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    for part in says {
        assert!(outcome.stdout.contains(part), "it does not say {part}: {outcome:?}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_flipped_bit_of_active_is_found() {
    let rig = three_releases();
    let active = rig.store.join("active");
    let whole = fs::read(&active).unwrap();
    let store = Store::open(&rig.store).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bad = whole.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(&active, bad).unwrap();
        let error = store.active().expect_err(&format!("bit {bit}")).to_string();
        assert!(error.contains("damaged") && error.contains(path(&active)), "{error}");
    }
    let text = String::from_utf8(whole.clone()).unwrap();
    fs::write(&active, text.replace("\"02\"", "\"03\"")).unwrap();
    verify_names(&rig, &[path(&active), "checksum"]);
    let mount = rig.verfs(&["mount", path(&rig.store), path(&rig.mnt)]);
    assert_eq!(mount.code, 1, "{mount:?}");
    assert!(mount.stderr.contains(path(&active)), "{mount:?}");
    let without = text[..text.find(",\"checksum\"").unwrap()].to_owned() + "}\n";
    fs::write(&active, without.replace("\"02\"", "\"03\"")).unwrap();
    verify_names(&rig, &[path(&active), "checksum"]);
    fs::write(&active, whole).unwrap();
    rig.ok(&["verify"]);
}

#[test]
fn a_lost_active_is_written_anew_and_no_mtime_goes_back() {
    if support::skip_mounted() {
        return;
    }
    for is_compacted in [false, true] {
        let mut rig = three_releases();
        rig.ok(&["rollback"]);
        rig.ok(&["switch", "03"]);
        let active = rig.store.join("active");
        let store = Store::open(&rig.store).unwrap();
        if is_compacted {
            let mut before = store.active().unwrap().unwrap();
            for switch in 0..60 {
                before.stamps_len = store.append_stamps(before.stamps_len, &batch(switch, 1_000..2_000)).unwrap();
            }
            store.set_active(&before).unwrap();
            store.tidy_active(&before, &store.read_stamps(before.stamps_len).unwrap(), |each| each(None)).unwrap();
            assert!(fs::metadata(rig.store.join("stamps")).unwrap().len() < 30_000);
        }
        let before = store.active().unwrap().unwrap();
        rig.mount();
        let mtime = |rig: &Rig| fs::metadata(rig.mnt.join("a")).unwrap().modified().unwrap();
        let was = mtime(&rig);
        rig.umount();
        fs::remove_file(&active).unwrap();
        rig.mount();
        assert_eq!(store.active().unwrap().unwrap(), before, "all of it is known");
        assert_eq!(fs::read_to_string(rig.mnt.join("a")).unwrap(), "03");
        assert_eq!(mtime(&rig), was);
        rig.umount();
        fs::write(&active, "{").unwrap();
        assert_eq!(rig.verfs(&["switch", "01"]).code, 1);
        fs::rename(&active, rig.root().join("away")).unwrap();
        rig.ok(&["switch", "01"]);
        rig.mount();
        assert!(mtime(&rig) > was, "the content is another one");
        rig.umount();
        rig.ok(&["verify"]);
        let log = rig.json(&["log"]);
        let switches: Vec<_> = log.as_array().unwrap().iter().filter_map(|line| line["switch"].as_u64()).collect();
        assert_eq!(switches, [1, 2, 3, 4, 5]);
    }
}

#[test]
fn stamps_that_are_damaged_cut_off_or_of_another_length_are_found() {
    let rig = three_releases();
    let stamps = rig.store.join("stamps");
    let whole = fs::read(&stamps).unwrap();
    let mut flipped = whole.clone();
    flipped[20] ^= 1;
    for bad in [&flipped[..], &whole[..whole.len() - 1], b"VST", b""] {
        fs::write(&stamps, bad).unwrap();
        verify_names(&rig, &[path(&stamps), "damaged"]);
        let switch = rig.verfs(&["switch", "03"]);
        assert_eq!(switch.code, 1, "{switch:?}");
        assert!(switch.stderr.contains(path(&stamps)), "{switch:?}");
        assert_eq!(fs::read(&stamps).unwrap(), bad, "nothing was made longer or shorter");
    }
    fs::remove_file(&stamps).unwrap();
    verify_names(&rig, &[path(&stamps)]);
    fs::write(&stamps, &whole).unwrap();
    rig.ok(&["verify"]);
    rig.ok(&["switch", "03"]);
}

#[test]
fn an_impossible_length_of_the_stamps_is_an_error_and_takes_no_memory() {
    let rig = store_of_0_1();
    let active = rig.store.join("active");
    let whole = fs::read_to_string(&active).unwrap();
    for len in ["329", "1099511627776", "18446744073709551615"] {
        fs::write(&active, whole.replace("\"stamps_len\": 328", &format!("\"stamps_len\": {len}"))).unwrap();
        verify_names(&rig, &[path(&rig.store.join("stamps")), "damaged"]);
        let switch = rig.verfs(&["switch", "01"]);
        assert_eq!(switch.code, 1, "{len}: {switch:?}");
        assert!(switch.stderr.contains(path(&rig.store.join("stamps"))), "{switch:?}");
    }
}

#[test]
fn a_damaged_line_of_the_journal_is_named_and_the_others_are_shown() {
    let rig = three_releases();
    let journal = rig.store.join("journal.jsonl");
    let whole = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, whole.replacen("\"to\":\"03\"", "\"to\":\"02\"", 1)).unwrap();
    let named = format!("line 3 of {}", path(&journal));
    let log = rig.verfs(&["log"]);
    assert_eq!(log.code, 0, "{log:?}");
    assert!(log.stderr.contains(&named), "{log:?}");
    assert_eq!(rig.json(&["log"]).as_array().unwrap().len(), 4, "the other lines");
    verify_names(&rig, &[&named]);
    fs::write(&journal, whole).unwrap();
    rig.ok(&["verify"]);
}

#[test]
fn a_store_of_0_1_is_served_switched_rolled_back_and_verified() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store_of_0_1();
    let toml = rig.store.join("verfs.toml");
    let before = fs::read_to_string(&toml).unwrap();
    rig.ok(&["verify"]);
    assert_eq!(rig.json(&["log"]).as_array().unwrap().len(), 6);
    rig.mount();
    let show = |name: &str| fs::read_to_string(rig.mnt.join(name)).unwrap();
    assert_eq!((show("index.html"), show("media/upload.txt")), ("two\n".to_owned(), "upload\n".to_owned()));
    assert!(!rig.mnt.join("media/lower.txt").exists(), "it was removed under 0.1");
    // The nanoseconds of a stamp are the number of its switch.
    let stamped = |name: &str| fs::metadata(rig.mnt.join(name)).unwrap().mtime_nsec();
    assert_eq!(["index.html", "d", "d/new"].map(stamped), [4; 3], "the stamps of 0.1 hold");
    assert_eq!(fs::read_to_string(&toml).unwrap(), before, "a mount changes no format");
    rig.ok(&["switch", "01"]);
    assert_eq!(show("index.html"), "one\n");
    assert_eq!(fs::read_to_string(&toml).unwrap(), before.replace("format = 1", "format = 2"), "one digit is new");
    rig.ok(&["rollback"]);
    assert_eq!((show("index.html"), show("d/new")), ("two\n".to_owned(), "new\n".to_owned()));
    rig.umount();
    rig.ok(&["verify"]);
    let log = rig.json(&["log"]);
    let switches: Vec<_> = log.as_array().unwrap().iter().filter_map(|line| line["switch"].as_u64()).collect();
    assert_eq!(switches, [1, 2, 3, 4, 5, 6]);
    rig.mount();
    assert_eq!(fs::read_to_string(rig.mnt.join("media/upload.txt")).unwrap(), "upload\n");
    let stamped = |name: &str| fs::metadata(rig.mnt.join(name)).unwrap().mtime_nsec();
    assert_eq!(["index.html", "d", "d/new"].map(stamped), [6; 3], "and those that came since");
    rig.umount();
}

#[test]
fn what_0_1_left_writable_by_others_is_closed_to_them_and_named() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = store_of_0_1();
    fs::write(rig.store.join("verfs.log"), "").unwrap();
    let opened: Vec<_> = ["stamps", "journal.jsonl", "verfs.log"].map(|name| rig.store.join(name)).into();
    let open = |mode| opened.iter().for_each(|file| fs::set_permissions(file, Permissions::from_mode(mode)).unwrap());
    let modes = || opened.iter().map(|file| fs::metadata(file).unwrap().mode() & 0o7777).collect::<Vec<_>>();
    open(0o666);
    rig.mount();
    assert_eq!(modes(), [0o644; 3]);
    assert_eq!(fs::read_to_string(rig.mnt.join("media/upload.txt")).unwrap(), "upload\n");
    rig.umount();
    open(0o664);
    let verify = rig.verfs(&["verify"]);
    assert_eq!(verify.code, 0, "{verify:?}");
    for file in &opened {
        let named = format!("{} could be written by others than root", path(file));
        assert_eq!(verify.stderr.matches(&named).count(), 1, "{verify:?}");
    }
    assert_eq!(modes(), [0o644; 3]);
    rig.ok(&["switch", "01"]);

    // Whose it is counts all the same, and settings are nothing that a daemon made.
    for (name, owner) in [("stamps", 33), ("journal.jsonl", 33), ("verfs.toml", 0), ("active", 0)] {
        let file = rig.store.join(name);
        fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
        chown(&file, Some(owner), None).unwrap();
        let list = rig.verfs(&["list"]);
        assert!(list.code == 1 && list.stderr.contains(path(&file)), "{list:?}");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o666, "{name}");
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        chown(&file, Some(0), None).unwrap();
    }
    rig.ok(&["list"]);
}

#[test]
fn settings_of_0_1_stay_the_file_that_they_are() {
    let rig = store_of_0_1();
    let (toml, link) = (rig.store.join("verfs.toml"), rig.root().join("shop.toml"));
    fs::hard_link(&toml, &link).unwrap();
    chown(&toml, None, Some(1234)).unwrap();
    fs::set_permissions(&toml, Permissions::from_mode(0o640)).unwrap();
    rig.ok(&["switch", "01"]);
    let meta = fs::metadata(&toml).unwrap();
    assert_eq!((meta.gid(), meta.mode() & 0o7777, meta.nlink()), (1234, 0o640, 2));
    assert!(fs::read_to_string(&link).unwrap().contains("\nformat = 2\n"));
}

/// What the switch of this number stamps.
fn batch(switch: u32, nodes: std::ops::Range<u64>) -> Vec<(NodeId, Stamp)> {
    nodes.map(|node| (NodeId(node + 1), Stamp { second: 1_000 + i64::from(switch), nanos: switch })).collect()
}

#[test]
fn stamps_are_compacted_when_most_are_replaced_and_say_the_same() {
    let rig = three_releases();
    let store = Store::open(&rig.store).unwrap();
    let mut active = store.active().unwrap().unwrap();
    let file = rig.store.join("stamps");
    let memory = store.read_stamps(active.stamps_len).unwrap();
    let (mut longest, mut written) = (0, 0);
    for switch in active.switch + 1..300 {
        let nodes = match switch % 50 {
            0 => 0..20_000,
            _ => u64::from(switch % 7)..3_000,
        };
        let batch = batch(switch, nodes);
        memory.put(&batch, switch);
        let stamps_len = store.append_stamps(active.stamps_len, &batch).unwrap();
        active = Active { switch, stamps_len, ..active };
        store.set_active(&active).unwrap();
        store.tidy_active(&active, &memory, |each| each(None)).unwrap();
        longest = longest.max(fs::metadata(&file).unwrap().len());
        written += batch.len() as u64 * 20;
        if switch % 10 == 0 {
            assert_same(&store.read_stamps(active.stamps_len).unwrap(), &memory, switch);
        }
    }
    assert!(written > 15_000_000, "{written} bytes were written");
    assert!(longest < 2_000_000, "the file was {longest} bytes long");
    rig.ok(&["verify"]);
    // What a switch that was never finished left behind the end is cut off.
    let len = fs::metadata(&file).unwrap().len();
    store.append_stamps(active.stamps_len, &batch(300, 0..10)).unwrap();
    assert_same(&store.read_stamps(active.stamps_len).unwrap(), &memory, 300);
    rig.ok(&["verify"]);
    store.append_stamps(active.stamps_len, &[]).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().len(), len);
}

fn assert_same(disk: &Stamps, memory: &Stamps, switch: u32) {
    for node in 0..20_010 {
        let (disk, memory) = (disk.get(NodeId(node), switch), memory.get(NodeId(node), switch));
        assert_eq!(disk, memory, "node {node} after switch {switch}");
    }
}

#[test]
fn compacted_stamps_of_a_later_switch_than_active_are_found() {
    let rig = three_releases();
    let store = Store::open(&rig.store).unwrap();
    let old = store.active().unwrap().unwrap();
    let memory = store.read_stamps(old.stamps_len).unwrap();
    let mut active = old.clone();
    for switch in old.switch + 1..old.switch + 60 {
        memory.put(&batch(switch, 0..1_000), switch);
        let stamps_len = store.append_stamps(active.stamps_len, &batch(switch, 0..1_000)).unwrap();
        active = Active { switch, stamps_len, ..active };
    }
    store.set_active(&active).unwrap();
    store.tidy_active(&active, &memory, |each| each(None)).unwrap();
    rig.ok(&["verify"]);
    store.set_active(&old).unwrap();
    verify_names(&rig, &[path(&rig.store.join("stamps")), "later switch"]);
}

#[test]
fn stamps_of_nodes_that_no_release_has_are_dropped_and_mtimes_move_forward_all_the_same() {
    let rig = three_releases();
    let store = Store::open(&rig.store).unwrap();
    let page = |name: &str| store.manifest(&name.parse().unwrap()).unwrap().node(1).unwrap().nodeid;
    let pages = ["01", "02", "03"].map(page);
    let stamp = |second: i64| Stamp { second, nanos: 7 };
    // What releases had that were removed long ago, and more of it than the file keeps.
    let append = |second: i64, pages: &[NodeId]| {
        let mut active = store.active().unwrap().unwrap();
        let gone = (1_000_000..1_060_000).map(|node| NodeId(node + second as u64));
        let batch: Vec<_> = gone.chain(pages.iter().copied()).map(|node| (node, stamp(second))).collect();
        active.stamps_len = store.append_stamps(active.stamps_len, &batch).unwrap();
        store.set_active(&active).unwrap();
    };
    let stamped = |node: NodeId| {
        let active = store.active().unwrap().unwrap();
        store.read_stamps(active.stamps_len).unwrap().get(node, active.switch)
    };
    append(500, &pages);
    rig.ok(&["switch", "03"]);
    assert!(fs::metadata(rig.store.join("stamps")).unwrap().len() < 1000);
    assert_eq!((stamped(pages[0]), stamped(pages[1])), (Some(stamp(500)), Some(stamp(500))));
    assert_eq!(stamped(NodeId(1_000_500)), None);
    rig.ok(&["remove", "01"]);
    append(900, &pages[..1]);
    rig.ok(&["switch", "02"]);
    assert_eq!(stamped(pages[0]), None, "no release has it");
    rig.add("04", &Tree::new().file("a", "01"));
    assert_eq!(page("04"), pages[0]);
    rig.ok(&["switch", "04"]);
    assert!(stamped(pages[0]) > Some(stamp(900)), "{:?}", stamped(pages[0]));
    rig.ok(&["verify"]);
}

#[test]
fn a_switch_compacts_the_stamps_with_a_mount_and_without() {
    if support::skip_mounted() {
        return;
    }
    let mut rig = three_releases();
    for is_mounted in [false, true] {
        let store = Store::open(&rig.store).unwrap();
        let mut active = store.active().unwrap().unwrap();
        for switch in 0..60 {
            active.stamps_len = store.append_stamps(active.stamps_len, &batch(switch, 0..1_000)).unwrap();
        }
        store.set_active(&active).unwrap();
        let stamps = rig.store.join("stamps");
        assert!(fs::metadata(&stamps).unwrap().len() > 1_200_000);
        if is_mounted {
            rig.mount();
        }
        let to = if active.release == "02" { "01" } else { "02" };
        rig.ok(&["switch", to]);
        assert!(fs::metadata(&stamps).unwrap().len() < 30_000);
        rig.ok(&["rollback"]);
        rig.ok(&["verify"]);
        if is_mounted {
            rig.umount();
        }
    }
}

/// Lines of a full journal, as verfs 0.1 wrote them; `after` is the number of the last switch before them.
fn full_journal(after: u64) -> (String, u64) {
    let (mut text, mut switch) = (String::new(), after);
    while text.len() < 1 << 20 {
        switch += 1;
        text += &format!(
            "{{\"time\":\"2026-11-26T16:02:13Z\",\"uid\":0,\"action\":\"switch\",\"from\":\"01\",\"to\":\"02\",\
             \"message\":\"number {switch}\",\"ok\":true,\"switch\":{switch}}}\n"
        );
    }
    (text, switch)
}

#[test]
fn the_journal_is_put_aside_when_it_is_full_and_log_shows_all_that_is_kept() {
    let rig = three_releases();
    let journal = rig.store.join("journal.jsonl");
    let aside = |number: usize| rig.store.join(format!("journal.jsonl.{number}"));
    let mut last = 0;
    for round in 1..=18 {
        let (text, switch) = full_journal(last);
        last = switch;
        fs::write(&journal, &text).unwrap();
        rig.ok(&["remove", "03"]);
        rig.add("03", &Tree::new().file("a", "03"));
        assert_eq!(fs::read_to_string(aside(round)).unwrap(), text);
        assert!(fs::metadata(&journal).unwrap().len() < 2_000, "the new one has the new lines alone");
        if round == 2 {
            let log = rig.json(&["log"]);
            let log = log.as_array().unwrap();
            let switches: Vec<_> = log.iter().filter_map(|line| line["switch"].as_u64()).collect();
            assert_eq!(switches, (1..=last).collect::<Vec<_>>(), "each once, in order");
            assert_eq!(log.last().unwrap()["action"], "add");
        }
    }
    let kept: Vec<_> = (1..=18).filter(|number| aside(*number).exists()).collect();
    assert_eq!(kept, (3..=18).collect::<Vec<_>>(), "the oldest were removed");
    // One that was put aside still tells what the last switch was: nothing is noted twice.
    fs::remove_file(&journal).unwrap();
    rig.ok(&["switch", "01"]);
    assert_eq!(rig.json(&["log", "-n", "1"])[0]["switch"], rig.json(&["status"])["switch"]);
    let text = fs::read_to_string(&journal).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    // Damage in them is named too.
    let bad = fs::read_to_string(aside(7)).unwrap().replacen("\"action\"", "\"actino\"", 1);
    fs::write(aside(7), bad).unwrap();
    verify_names(&rig, &[&format!("line 1 of {}", path(&aside(7)))]);
}
