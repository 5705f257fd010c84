//! Packs: small contents that lie together in one file are served, copied, checked and freed as any other.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::fs::SeekFrom;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use support::tree::Tree;
use support::{Rig, seen, skip_mounted};

/// How many small files a release has: enough for a pack.
const MANY: usize = 200;

fn text(release: &str, number: usize) -> String {
    format!("{number} of {release} ").repeat(1 + number * 3)
}

/// Small files of the release's own, as many that are the same in all, an empty one, and a large one that is no pack's.
fn tree(release: &str) -> Tree {
    let mut tree = Tree::new().file("media/empty", "").file("large", "0123456789abcdef".repeat(5000));
    for number in 0..MANY {
        tree = tree.file(format!("media/{}/own-{number}", number % 7), text(release, number));
        tree = tree.file(format!("same/{}/all-{number}", number % 7), text("all", number));
    }
    tree
}

fn store(releases: &[&str]) -> Rig {
    let rig = Rig::new();
    rig.ok(&[OsStr::new("init"), rig.store.as_os_str(), OsStr::new("--writable"), OsStr::new("media")]);
    releases.iter().for_each(|release| drop(rig.add(release, &tree(release))));
    rig.ok(&["switch", releases[0]]);
    rig
}

fn packs(rig: &Rig) -> Vec<PathBuf> {
    fs::read_dir(rig.store.join("objects/packs")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Bytes that the packs take.
fn packed(rig: &Rig) -> u64 {
    packs(rig).iter().map(|pack| fs::metadata(pack).unwrap().len()).sum()
}

/// Changes one byte of a content in its pack; gives the pack.
fn rot(rig: &Rig, content: &str) -> PathBuf {
    packs(rig).into_iter().find(|pack| rot_in(pack, content)).expect("a pack has it")
}

/// The same in one pack; false if the content is not there.
fn rot_in(pack: &Path, content: &str) -> bool {
    let mut bytes = fs::read(pack).unwrap();
    let found = bytes.windows(content.len()).position(|window| window == content.as_bytes());
    if let Some(at) = found {
        bytes[at] ^= 1;
        fs::write(pack, bytes).unwrap();
    }
    found.is_some()
}

fn own_file(rig: &Rig, content: &str) -> PathBuf {
    let hex = blake3::hash(content.as_bytes()).to_hex();
    rig.store.join("objects").join(&hex[..2]).join(&hex[2..])
}

#[test]
fn many_small_files_become_one_pack_and_a_few_do_not() {
    let rig = store(&["01", "02"]);
    assert_eq!(packs(&rig).len(), 2, "one for each release");
    assert!(packed(&rig) < 3 * tree("01").0.len() as u64 * 5000, "what is the same in both is in one of them");
    rig.add("03", &tree("02").file("new", "one more"));
    assert_eq!(packs(&rig).len(), 2);
    assert!(own_file(&rig, "one more").exists());
    let out = rig.root().join("out");
    rig.ok(&[OsStr::new("export"), OsStr::new("02"), out.as_os_str()]);
    assert_eq!(contents(&out), contents(&rig.src.join("02")));
    rig.ok(&["verify"]);
}

fn contents(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = seen::tree(root).into_keys().map(|path| root.join(path)).filter(|path| path.is_file());
    files.map(|path| (path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

#[test]
fn what_lies_in_a_pack_is_read_sought_and_copied_as_any_file() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(&["01"]);
    rig.mount();
    assert_eq!(contents(&rig.mnt), contents(&rig.src.join("01")));
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert_eq!(contents(&rig.mnt), contents(&rig.src.join("01")), "from the disk");

    let (path, whole) = (rig.mnt.join("media/3/own-101"), text("01", 101));
    let file = File::open(&path).unwrap();
    let len = whole.len() as u64;
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(5)), Ok(5));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(5)), Ok(len));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(len)), Err(rustix::io::Errno::NXIO));

    // From here on into a file of the scope, not a byte more than the content has.
    let into = File::create_new(rig.mnt.join("media/copy")).unwrap();
    let (mut from, mut to) = (7, 0);
    while rustix::fs::copy_file_range(file.as_fd(), Some(&mut from), into.as_fd(), Some(&mut to), 1 << 20).unwrap() > 0
    {
    }
    assert_eq!(fs::read_to_string(rig.mnt.join("media/copy")).unwrap(), whole[7..]);

    // Copied up by a change, whole and in part.
    fs::OpenOptions::new().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut fs::OpenOptions::new().append(true).open(&path).unwrap(), b"more").unwrap();
    assert_eq!(fs::read_to_string(rig.store.join("media/media/3/own-101")).unwrap(), format!("{whole}more"));
    let cut = rig.mnt.join("media/4/own-102");
    fs::OpenOptions::new().write(true).open(&cut).unwrap().set_len(9).unwrap();
    assert_eq!(fs::read_to_string(rig.store.join("media/media/4/own-102")).unwrap(), text("01", 102)[..9]);
    drop((file, into));
    rig.umount();
}

#[test]
fn a_damaged_content_of_a_pack_is_named_and_put_right_by_a_file_of_its_own() {
    let rig = store(&["01", "02"]);
    let content = text("01", 77);
    let pack = rot(&rig, &content);
    let verified = rig.verfs(&["verify"]);
    assert_eq!(verified.code, 1, "{verified:?}");
    let own = own_file(&rig, &content);
    for word in [pack.to_str().unwrap(), own.to_str().unwrap(), "01: media/0/own-77"] {
        assert!(verified.stdout.contains(word), "{word}: {verified:?}");
    }
    assert_eq!(verified.stdout.matches("damaged: ").count(), 1, "{verified:?}");
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&own, &content).unwrap();
    rig.ok(&["verify"]);
    let out = rig.root().join("out");
    rig.ok(&[OsStr::new("export"), OsStr::new("01"), out.as_os_str()]);
    assert_eq!(contents(&out), contents(&rig.src.join("01")));
}

#[test]
fn gc_gives_nothing_damaged_a_new_place() {
    let rig = store(&["01", "02", "03"]);
    rig.ok(&["switch", "02"]);
    rig.ok(&["switch", "03"]);
    // The others need it, and it lies in the pack of the release that goes.
    let content = text("all", 55);
    let pack = rot(&rig, &content);
    rig.ok(&["remove", "01"]);
    let before = packs(&rig);
    let said = rig.verfs(&["gc", "--json"]);
    assert!(said.stderr.contains(pack.to_str().unwrap()) && said.stderr.contains("verify"), "{said:?}");
    assert_eq!((said.code, packs(&rig)), (0, before), "that pack stays as it is: {said:?}");
    let own = own_file(&rig, &content);
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&own, &content).unwrap();
    assert_eq!(rig.json(&["gc"])["objects"], MANY);
    rig.ok(&["verify"]);
}

#[test]
fn a_pack_that_is_no_pack_any_more_is_named_and_what_else_there_is_is_served() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(&["01"]);
    let pack = packs(&rig).pop().unwrap();
    let whole = fs::read(&pack).unwrap();
    for bad in [&whole[..whole.len() - 1], &whole[..10], b""] {
        fs::write(&pack, bad).unwrap();
        rig.mount();
        let error = fs::read(rig.mnt.join("same/0/all-0")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        assert!(fs::read_to_string(&rig.log).unwrap().contains(pack.to_str().unwrap()));
        assert_eq!(fs::read(rig.mnt.join("large")).unwrap().len(), 80_000);
        let verified = rig.verfs(&["verify"]);
        assert!(verified.code == 1 && verified.stdout.contains(pack.to_str().unwrap()), "{verified:?}");
        // Restored, it is read again under the same mount.
        fs::write(&pack, &whole).unwrap();
        assert_eq!(fs::read_to_string(rig.mnt.join("same/1/all-1")).unwrap(), text("all", 1));
        rig.umount();
    }
    // Added again, under its own name too, it has its content again.
    fs::remove_file(&pack).unwrap();
    assert_eq!(rig.verfs(&["verify"]).code, 1);
    let source = rig.src.join("01");
    let again = rig.json(&[OsStr::new("add"), OsStr::new("01"), source.as_os_str()]);
    assert_eq!(again["identical"], true, "{again}");
    rig.ok(&["verify"]);
}

#[test]
fn a_pack_that_goes_bad_under_a_mount_is_named_and_put_right_without_a_new_one() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(&["01"]);
    let pack = packs(&rig).pop().unwrap();
    let whole = fs::read(&pack).unwrap();
    rig.mount();
    let read = |path: &str| {
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        fs::read_to_string(rig.mnt.join(path)).map_err(|error| error.raw_os_error().unwrap())
    };
    let (release, scope) = ("same/1/all-15", "media/1/own-15");
    assert_eq!(read(release), Ok(text("all", 15)));

    // One record that is not what was written; then the file cut off below its index, and empty.
    let digest = blake3::hash(text("all", 15).as_bytes());
    let record = whole.windows(32).position(|window| window == digest.as_bytes()).unwrap();
    let mut flipped = whole.clone();
    flipped[record + 33] ^= 1;
    for (bad, harm) in [(&flipped[..], "a record"), (&whole[..100], "cut off"), (&[], "empty")] {
        fs::write(&pack, bad).unwrap();
        fs::write(&rig.log, b"").unwrap();
        assert_eq!(read(release), Err(libc::EIO), "{harm}");
        if harm != "a record" {
            assert_eq!(read(scope), Err(libc::EIO), "{harm}");
            let appended = fs::OpenOptions::new().append(true).open(rig.mnt.join(scope));
            let written = appended.and_then(|mut file| std::io::Write::write_all(&mut file, b"more"));
            assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EIO), "{harm}");
        }
        let log = fs::read_to_string(&rig.log).unwrap();
        assert!(log.contains(pack.to_str().unwrap()), "{harm}: {log}");
        assert_eq!(read("large").unwrap().len(), 80_000, "{harm}");
        // As a restore does it: another file under the same name.
        let restored = pack.with_extension("restored");
        fs::write(&restored, &whole).unwrap();
        fs::rename(&restored, &pack).unwrap();
        assert_eq!(read(release), Ok(text("all", 15)), "{harm}");
        assert_eq!(read(scope), Ok(text("01", 15)), "{harm}");
    }
    rig.umount();
}

#[test]
fn a_content_in_two_packs_is_not_lost_with_the_one_that_is_damaged() {
    let rig = store(&["01"]);
    let first = packs(&rig).pop().unwrap();
    let aside = rig.root().join("aside");
    fs::rename(&first, &aside).unwrap();
    // Now the same small files are new to the store, and lie in another pack with others.
    let more = (0..100).fold(tree("01"), |tree, number| tree.file(format!("more-{number}"), text("more", number)));
    rig.add("02", &more);
    fs::rename(&aside, &first).unwrap();
    assert_eq!(packs(&rig).len(), 2);
    rig.ok(&["switch", "02"]);
    for pack in packs(&rig) {
        let whole = fs::read(&pack).unwrap();
        assert!(rot_in(&pack, &text("all", 60)));
        rig.verfs(&["gc"]);
        fs::write(&pack, whole).unwrap();
        rig.ok(&["verify"]);
        assert_eq!(packs(&rig).len(), 2);
    }
}

#[test]
fn gc_writes_a_pack_anew_under_a_mount_that_reads_it() {
    if skip_mounted() {
        return;
    }
    let mut rig = store(&["01", "02", "03"]);
    rig.mount();
    let mut held = File::open(rig.mnt.join("media/6/own-13")).unwrap();
    rig.ok(&["switch", "02"]);
    rig.ok(&["switch", "03"]);
    let before = packed(&rig);
    rig.ok(&["remove", "01"]);
    let freed = rig.json(&["gc"]);
    // One of its own files is open.
    assert_eq!((&freed["objects"], &freed["in_use"]), (&(MANY - 1).into(), &1.into()), "{freed}");
    assert!(packed(&rig) < before, "{} of {before} bytes", packed(&rig));
    let of_daemon = fs::read_dir(format!("/proc/{}/fd", rig.pids()[0])).unwrap();
    let open: Vec<PathBuf> = of_daemon.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect();
    let gone: Vec<&PathBuf> = open.iter().filter(|path| path.to_str().unwrap().contains("(deleted)")).collect();
    assert!(gone.is_empty(), "the room of what was written anew is free: {gone:?}");
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let mut read = String::new();
    held.read_to_string(&mut read).unwrap();
    assert_eq!(read, text("01", 13));
    assert_eq!(contents(&rig.mnt), contents(&rig.src.join("03")));
    rig.ok(&["verify"]);
    drop(held);
    rig.umount();
}

#[test]
fn many_packs_become_few() {
    let rig = Rig::new();
    rig.init();
    let names: Vec<String> = (0..20).map(|number| format!("r{number}")).collect();
    for name in &names {
        let own = (0..70).fold(Tree::new(), |tree, number| tree.file(format!("f-{number}"), text(name, number)));
        rig.add(name, &own);
    }
    assert_eq!(packs(&rig).len(), 20);
    // Each takes a descriptor: more than the shell allows at first.
    let program = format!("ulimit -Sn 20; exec {} verify", env!("CARGO_BIN_EXE_verfs"));
    let verified = std::process::Command::new("bash").args(["-c", &program]).env("VERFS_STORE", &rig.store).output();
    assert!(verified.as_ref().unwrap().status.success(), "{verified:?}");
    assert_eq!(rig.json(&["gc"])["objects"], 0);
    assert_eq!(packs(&rig).len(), 1);
    assert_eq!(fs::metadata(packs(&rig).pop().unwrap()).unwrap().mode() & 0o7777, 0o444);
    rig.ok(&["verify"]);
    let out = rig.root().join("out");
    rig.ok(&[OsStr::new("export"), OsStr::new("r7"), out.as_os_str()]);
    assert_eq!(contents(&out), contents(&rig.src.join("r7")));
}
