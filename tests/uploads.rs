//! What goes on in a scope: rewriting, appending, listing, filling the disk. Uploads while releases switch are in
//! apache.rs.
#![allow(clippy::unwrap_used)]

mod support;

use rustix::fs::SeekFrom;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use support::disk::SmallDisk;
use support::pages::{resident, wait_until_let_go};
use support::user::WWW_DATA;
use support::{Rig, skip_mounted, sys};

/// A mounted store with the scope `media` and two releases that differ in it.
fn mounted() -> Rig {
    let mut rig = Rig::with_limit(Duration::from_secs(300));
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
    rig.setting("switch", "share_second", "true");
    for release in ["1", "2"] {
        let source = rig.src.join(release);
        fs::create_dir_all(source.join("media/theme")).unwrap();
        fs::write(source.join("media/theme/logo"), release.repeat(3000)).unwrap();
        fs::write(source.join("page"), release).unwrap();
        rig.ok(&["add", release, source.to_str().unwrap()]);
    }
    rig.ok(&["switch", "1"]);
    rig.mount();
    rig
}

/// Does `work` in a loop, with the number of the round, until told to stop.
fn until(stop: &AtomicBool, mut work: impl FnMut(usize)) -> usize {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        work(round);
        round += 1;
    }
    round
}

#[test]
fn a_file_that_is_rewritten_beside_readers_never_shows_a_byte_that_nobody_wrote() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let name = rig.mnt.join("media/page");
    fs::write(&name, "a".repeat(20_000)).unwrap();
    let stop = AtomicBool::new(false);
    let reads: usize = std::thread::scope(|threads| {
        let (name, stop) = (&name, &stop);
        let readers: Vec<_> = (0..4)
            .map(|_| {
                threads.spawn(move || {
                    until(stop, |_| {
                        let mut bytes = Vec::new();
                        File::open(name).unwrap().read_to_end(&mut bytes).unwrap();
                        let strange = bytes.iter().position(|byte| !byte.is_ascii_lowercase());
                        let runs: Vec<(u8, usize)> =
                            bytes.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect();
                        assert_eq!(strange, None, "among {} bytes: {runs:?}", bytes.len());
                    })
                })
            })
            .collect();
        for round in 0..2000usize {
            let byte = b'a' + (round % 26) as u8;
            let mut file = File::options().write(true).truncate(true).open(name).unwrap();
            file.write_all(&vec![byte; 1000 + round * 37 % 30_000]).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    println!("{reads} reads beside 2,000 rewritings");
    assert!(reads > 100);
}

#[test]
fn no_line_is_lost_when_one_appends_through_the_mount_and_one_behind_it() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let through = rig.mnt.join("media/log");
    let behind = rig.store.join("media/media/log");
    fs::write(&through, "").unwrap();
    const LINES: usize = 3000;
    std::thread::scope(|threads| {
        for (path, who) in [(&through, "through"), (&behind, "behind")] {
            threads.spawn(move || {
                let mut file = File::options().append(true).open(path).unwrap();
                for line in 0..LINES {
                    file.write_all(format!("{who} {line}\n").as_bytes()).unwrap();
                }
            });
        }
    });
    // The kernel may hand a line that crosses a page over in two pieces, and the other's line may come between them. So
    // what one wrote must be there in order once what the other wrote is taken out.
    let text = fs::read_to_string(&behind).unwrap();
    let all = |who: &str| (0..LINES).map(|line| format!("{who} {line}\n")).collect::<String>();
    let (through, mut rest) = (all("through"), text.clone());
    for line in 0..LINES {
        let whole = format!("behind {line}\n");
        let at = rest.find(&whole).unwrap_or_else(|| panic!("{whole:?} is lost"));
        rest.replace_range(at..at + whole.len(), "");
    }
    assert!(rest == through, "what was written through the mount is not all there, or not in order");
}

#[test]
fn a_listing_loses_and_doubles_no_name_while_others_go() {
    if skip_mounted() {
        return;
    }
    const FILES: usize = 120_000;
    const GONE: usize = 3000;
    let rig = mounted();
    // Put there behind the mount, as a restore of a backup would.
    let behind = rig.store.join("media/media/many");
    fs::create_dir(&behind).unwrap();
    for n in 0..FILES {
        File::create(behind.join(format!("file-{n}"))).unwrap();
    }
    let dir = rig.mnt.join("media/many");
    let mut seen = BTreeSet::new();
    let mut removed = 0;
    for (at, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        assert!(seen.insert(entry.unwrap().file_name()), "listed twice");
        if at % 30 == 0 && removed < GONE {
            // From the end of the names, which may or may not have been listed.
            fs::remove_file(dir.join(format!("file-{}", FILES - 1 - removed))).unwrap();
            removed += 1;
        }
    }
    assert_eq!(removed, GONE);
    for n in 0..FILES - GONE {
        assert!(seen.contains(std::ffi::OsStr::new(&format!("file-{n}"))), "file-{n} is lost");
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), FILES - GONE);
}

#[test]
fn a_full_disk_is_told_to_the_writer_and_its_reserve_is_left_to_root() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::with_limit(Duration::from_secs(120));
    let disk = SmallDisk::with_reserve(&rig);
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
    let source = rig.src.join("1");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("page"), "page").unwrap();
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    rig.mount();
    let scope = rig.mnt.join("media");
    fs::set_permissions(&scope, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    for dir in rig.mnt.ancestors().skip(1).chain([rig.store.as_path()]) {
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(dir).unwrap());
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(mode | 0o011)).unwrap();
    }
    // As nobody, until it fails.
    let told = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "dd", "if=/dev/zero", "bs=64k", "of=big"])
        .current_dir(&scope)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(said.contains("No space left on device"), "{said}");
    // Nor through a mapping, which the kernel writes back in nobody's name.
    let mapped = WWW_DATA.work_in(&scope, || {
        let file = File::options().read(true).write(true).create(true).truncate(true).open("mapped")?;
        file.set_len(4 << 20)?;
        sys::store_through_a_mapping(&file, 9)
    });
    assert_eq!(mapped.map_err(|error| error.raw_os_error()), Err(Some(libc::ENOSPC)));
    let stat = rustix::fs::statvfs(disk.path()).unwrap();
    assert!(
        stat.f_bfree * 4 > stat.f_blocks,
        "{} of {} blocks are free: the reserve is untouched",
        stat.f_bfree,
        stat.f_blocks
    );
    // What is full can be emptied, and then written to again; the release is served all the while.
    assert_eq!(fs::read(rig.mnt.join("page")).unwrap(), b"page");
    fs::remove_file(scope.join("big")).unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while fs::write(scope.join("small"), vec![7; 1 << 20]).is_err() {
        assert!(std::time::Instant::now() < end, "there is no room again");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fs::read(scope.join("small")).unwrap().len(), 1 << 20);
    rig.umount();
    drop(disk);
}

/// Takes the last byte of a disk, and the last block that a directory could have.
fn fill_up(disk: &Path) {
    let mut filler = File::create(disk.join("filler")).unwrap();
    for len in [1 << 20, 1 << 12, 1] {
        while filler.write_all(&vec![7; len]).is_ok() {}
    }
    let filled = (0..10_000).find(|number| fs::create_dir(disk.join(format!("filler-{number}"))).is_err());
    assert!(filled.is_some(), "the disk takes ever more directories");
    rustix::fs::sync();
}

#[test]
fn what_a_release_has_can_be_removed_on_a_full_disk() {
    if skip_mounted() {
        return;
    }
    for kind in ["ext4", "xfs"] {
        let mut rig = Rig::with_limit(Duration::from_secs(120));
        let disk = SmallDisk::beside(&rig, kind);
        rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media", "--media", disk.path().to_str().unwrap()]);
        let source = rig.src.join("1");
        for dir in 0..20 {
            fs::create_dir_all(source.join(format!("media/deep/er/{dir}"))).unwrap();
            fs::write(source.join(format!("media/deep/er/{dir}/f")), "f").unwrap();
        }
        fs::create_dir(source.join("media/marked")).unwrap();
        rustix::fs::setxattr(source.join("media/marked"), "user.k", &[7; 700], rustix::fs::XattrFlags::empty())
            .unwrap();
        rig.ok(&["add", "1", source.to_str().unwrap()]);
        rig.mount();
        let scope = rig.mnt.join("media");
        for round in ["once", "and again"] {
            fill_up(disk.path());
            let full =
                fs::write(disk.path().join("more"), [7; 4096]).and_then(|()| fs::create_dir(disk.path().join("d")));
            assert_eq!(full.map_err(|error| error.raw_os_error()), Err(Some(libc::ENOSPC)), "{kind}");
            let marked = scope.join("marked");
            let chmod = |mode| fs::set_permissions(&marked, std::os::unix::fs::PermissionsExt::from_mode(mode));
            let attribute = || rustix::fs::getxattr(&marked, "user.k", &mut [0; 4096][..]);
            if round == "once" {
                // The directory would need a place in the writable layer, and room for its attribute there.
                let refused = chmod(0o700).map_err(|error| error.raw_os_error());
                assert_eq!((refused, attribute()), (Err(Some(libc::ENOSPC)), Ok(700)), "{kind}");
            }
            let changed = || fs::metadata(scope.join("deep/er")).unwrap().modified().unwrap();
            let before = changed();
            let half = if round == "once" { 0..10 } else { 10..20 };
            for dir in half {
                let removed = fs::remove_dir_all(scope.join(format!("deep/er/{dir}")));
                removed.unwrap_or_else(|error| panic!("{kind}, {round}: {dir}: {error}"));
            }
            assert!(changed() > before, "{kind}, {round}: the mtime of the directory that lost entries moves");
            // With room again there is a reserve again.
            for entry in fs::read_dir(disk.path()).unwrap().flatten() {
                let name = entry.file_name().into_string().unwrap();
                if name == "filler" || name == "more" {
                    fs::remove_file(entry.path()).unwrap();
                } else if name.starts_with("filler-") {
                    fs::remove_dir(entry.path()).unwrap();
                }
            }
            let reserve = disk.path().join("tmp/reserve");
            let end = Instant::now() + Duration::from_secs(30);
            while std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&reserve).unwrap()) < 2048 {
                assert!(Instant::now() < end, "{kind}: the reserve does not come back");
                std::thread::sleep(Duration::from_millis(50));
            }
            chmod(0o700).unwrap();
            assert_eq!(attribute(), Ok(700), "{kind}, {round}");
        }
        assert_eq!(fs::read_dir(scope.join("deep/er")).unwrap().count(), 0);
        rig.umount();
        rig.mount();
        assert_eq!(fs::read_dir(scope.join("deep/er")).unwrap().count(), 0, "{kind}: after a new mount");
        rig.umount();
    }
}

/// A mounted store whose disk is full to the quota: the plain user's file `big` took the last of it.
fn full_to_the_quota() -> (Rig, SmallDisk) {
    let mut rig = Rig::with_limit(Duration::from_secs(120));
    let disk = SmallDisk::with_quota(&rig, 4 << 20);
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media", "--owner", "www-data:www-data"]);
    let source = rig.src.join("1");
    fs::create_dir_all(source.join("media")).unwrap();
    fs::write(source.join("page"), "page").unwrap();
    fs::write(source.join("media/logo"), "logo").unwrap();
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    rig.mount();
    let scope = rig.mnt.join("media");
    let told = WWW_DATA.work_in(&scope, || {
        fs::write("kept", "kept").unwrap();
        let mut big = File::create("big").unwrap();
        // The disk itself has room for all of this.
        (0..1024).find_map(|_| big.write_all(&[7; 1 << 16]).err())
    });
    assert_eq!(told.and_then(|error| error.raw_os_error()), Some(libc::EDQUOT));
    assert!(fs::metadata(scope.join("big")).unwrap().len() > 1 << 20, "and not before it was full");
    (rig, disk)
}

/// The disk may take a moment to give freed room back.
fn there_is_room_again(scope: &Path) {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = WWW_DATA.work_in(scope, || fs::write("small", vec![7; 1 << 20])) {
        assert_eq!(error.raw_os_error(), Some(libc::EDQUOT));
        assert!(std::time::Instant::now() < end, "there is no room again");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fs::read(scope.join("small")).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn a_quota_is_told_to_the_writer_and_the_rest_goes_on() {
    if skip_mounted() {
        return;
    }
    let (mut rig, disk) = full_to_the_quota();
    let scope = rig.mnt.join("media");
    assert_eq!(fs::read(rig.mnt.join("page")).unwrap(), b"page");
    assert_eq!(fs::read(scope.join("logo")).unwrap(), b"logo");
    assert_eq!(fs::read(scope.join("kept")).unwrap(), b"kept");
    // Room is made behind the mount, and the writer goes on.
    fs::remove_file(rig.store.join("media/media/big")).unwrap();
    there_is_room_again(&scope);
    rig.umount();
    drop(disk);
}

#[test]
fn what_fills_a_quota_can_be_removed() {
    if skip_mounted() {
        return;
    }
    let (mut rig, disk) = full_to_the_quota();
    let scope = rig.mnt.join("media");
    WWW_DATA.work_in(&scope, || fs::remove_file("big")).unwrap();
    there_is_room_again(&scope);
    rig.umount();
    drop(disk);
}

#[test]
fn a_scope_takes_no_more_than_its_limit_and_takes_again_what_was_freed() {
    if skip_mounted() {
        return;
    }
    let mut rig = mounted();
    rig.umount();
    let toml = rig.store.join("verfs.toml");
    let text = fs::read_to_string(&toml).unwrap() + "limit = \"1 MiB\"\n";
    fs::write(&toml, text).unwrap();
    rig.mount();
    let scope = rig.mnt.join("media");
    let measured = || rig.json(&["status"])["limits"][0]["used_bytes"].as_u64();
    let until = |what: &dyn Fn() -> bool| {
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while !what() {
            assert!(std::time::Instant::now() < end, "{}", rig.json(&["status"])["limits"]);
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until(&|| measured().is_some());
    let full =
        |done: std::io::Result<()>| assert_eq!(done.map_err(|error| error.raw_os_error()), Err(Some(libc::EDQUOT)));
    fs::write(scope.join("a"), vec![1; 600 << 10]).unwrap();
    full(fs::write(scope.join("b"), vec![2; 600 << 10]));
    assert_eq!(fs::read(scope.join("a")).unwrap().len(), 600 << 10, "what was there stays");
    full(File::options().write(true).open(scope.join("a")).and_then(|file| {
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 4 << 20).map_err(Into::into)
    }));
    // Written over in place it takes no more; and what is removed, by whatever way, can be taken again: once the kernel has
    // said that nobody has it open.
    let mut same = File::options().write(true).open(scope.join("a")).unwrap();
    same.write_all(&vec![3; 600 << 10]).unwrap();
    drop(same);
    fs::remove_file(scope.join("a")).unwrap();
    until(&|| fs::write(scope.join("b"), vec![2; 600 << 10]).is_ok());
    full(fs::write(scope.join("c"), vec![2; 600 << 10]));
    fs::remove_file(rig.store.join("media/media/b")).unwrap();
    until(&|| fs::write(scope.join("c"), vec![2; 600 << 10]).is_ok());
    let refused = &rig.json(&["status"])["refused"];
    assert!(refused["total"].as_u64() >= Some(3), "{refused}");
    assert!(refused["most"].to_string().contains("over the scope's limit"), "{refused}");
    // A larger limit takes effect at once.
    full(fs::write(scope.join("d"), vec![2; 600 << 10]));
    fs::write(&toml, fs::read_to_string(&toml).unwrap().replace("1 MiB", "10 MiB")).unwrap();
    rig.ok(&["reload"]);
    fs::write(scope.join("d"), vec![2; 600 << 10]).unwrap();
}

/// A mounted store whose scope `media` is the web server's and takes 1 MiB, measured.
fn limited() -> Rig {
    let mut rig = Rig::with_limit(Duration::from_secs(120));
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media", "--owner", "www-data:www-data"]);
    let source = rig.src.join("1");
    fs::create_dir_all(source.join("media")).unwrap();
    fs::write(source.join("page"), "page").unwrap();
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    let toml = rig.store.join("verfs.toml");
    fs::write(&toml, fs::read_to_string(&toml).unwrap() + "limit = \"1 MiB\"\n").unwrap();
    rig.mount();
    let end = Instant::now() + Duration::from_secs(30);
    while used(&rig).is_none() {
        assert!(Instant::now() < end, "it is not measured");
        std::thread::sleep(Duration::from_millis(50));
    }
    rig
}

fn used(rig: &Rig) -> Option<u64> {
    rig.json(&["status"])["limits"][0]["used_bytes"].as_u64()
}

fn is_full<T>(done: Result<T, impl Into<std::io::Error>>, what: &str) {
    assert_eq!(done.err().and_then(|error| error.into().raw_os_error()), Some(libc::EDQUOT), "{what}");
}

#[test]
fn names_count_after_a_new_mount_too() {
    if skip_mounted() {
        return;
    }
    const NAMES: u64 = 100;
    let mut rig = limited();
    let before = used(&rig).unwrap();
    for number in 0..NAMES {
        fs::create_dir(rig.mnt.join(format!("media/{number}"))).unwrap();
    }
    assert_eq!(used(&rig).unwrap() - before, NAMES * 4096);
    rig.umount();
    rig.mount();
    let end = Instant::now() + Duration::from_secs(30);
    while used(&rig).is_none() {
        assert!(Instant::now() < end, "it is not measured");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(used(&rig).unwrap() - before, NAMES * 4096);
}

#[test]
fn a_limit_holds_for_holes_mappings_and_copies_too() {
    if skip_mounted() {
        return;
    }
    let rig = limited();
    let on_disk = |name: &str| fs::metadata(rig.store.join("media/media").join(name)).unwrap().blocks() * 512;
    WWW_DATA.work_in(&rig.mnt.join("media"), || {
        let hole = |name: &str| {
            let file = File::options().read(true).write(true).create_new(true).open(name).unwrap();
            file.set_len(8 << 20).unwrap();
            file
        };
        // A hole takes nothing, wherever the first byte behind it is.
        hole("far").write_all_at(b"x", (8 << 20) - 1).unwrap();
        let written = hole("written");
        let told = (0..128).find_map(|at| written.write_all_at(&[1; 1 << 16], at << 16).err());
        is_full(told.map_or(Ok(()), Err), "writing into a hole");
        assert!(on_disk("written") > 512 << 10, "and not before it was full");
        written.write_all_at(&[2; 1 << 16], 0).unwrap();
        let small = hole("small");
        is_full(support::sys::store_through_a_mapping(&small, 1), "msync of a mapping");
        is_full(rustix::fs::fallocate(&small, rustix::fs::FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20), "fallocate");
        is_full(rustix::fs::fallocate(&small, rustix::fs::FallocateFlags::ZERO_RANGE, 0, 1 << 20), "ZERO_RANGE");
        let told = rustix::fs::copy_file_range(&written, Some(&mut 0), &small, Some(&mut (4 << 20)), 1 << 19);
        is_full(told, "copy_file_range");
        let punched = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&written, punched, 0, 8 << 20).unwrap();
        small.write_all_at(&[3; 1 << 18], 0).unwrap();
    });
    let all: u64 = ["far", "written", "small"].map(on_disk).into_iter().sum();
    assert!(all <= (1 << 20) + (64 << 10), "{all} bytes");
}

#[test]
fn names_and_attributes_count_to_the_limit_and_are_given_back() {
    if skip_mounted() {
        return;
    }
    type Make = fn(&Path) -> std::io::Result<()>;
    let ways: [(&str, Make); 4] = [
        ("mkdir", |path| fs::create_dir(path)),
        ("symlink", |path| std::os::unix::fs::symlink("target", path)),
        ("link", |path| fs::hard_link("one", path)),
        ("create", |path| File::create(path).map(drop)),
    ];
    for (what, make) in ways {
        let rig = limited();
        WWW_DATA.work_in(&rig.mnt.join("media"), || {
            File::create("one").unwrap();
            let told = (0..512).find_map(|number| make(Path::new(&format!("x{number}"))).err());
            is_full(told.map_or(Ok(()), Err), what);
            let made = fs::read_dir(".").unwrap().count();
            assert!((128..=257).contains(&made), "{made} by {what}");
            for entry in fs::read_dir(".").unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() { fs::remove_dir(path) } else { fs::remove_file(path) }.unwrap();
            }
        });
        let end = Instant::now() + Duration::from_secs(30);
        while used(&rig) > Some(64 << 10) {
            assert!(Instant::now() < end, "{:?} bytes after {what}", used(&rig));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_full_scope_takes_no_new_name_and_no_attribute_and_gives_up_what_it_has() {
    if skip_mounted() {
        return;
    }
    let rig = limited();
    WWW_DATA.work_in(&rig.mnt.join("media"), || {
        fs::create_dir("dir").unwrap();
        let mut fill = File::create("fill").unwrap();
        is_full((0..1024).try_for_each(|_| fill.write_all(&[1; 4096])), "filling");
        is_full(fs::create_dir("new"), "mkdir");
        is_full(std::os::unix::fs::symlink("target", "new"), "symlink");
        is_full(fs::hard_link("fill", "new"), "link");
        is_full(File::create_new("new"), "create");
        for path in ["fill", "dir"] {
            let set = rustix::fs::setxattr(path, "user.a", &[1; 3000], rustix::fs::XattrFlags::empty());
            is_full(set, "setxattr");
        }
        fs::rename("fill", "full").unwrap();
        fill.write_all_at(&[2; 1 << 16], 0).unwrap();
        fs::remove_dir("dir").unwrap();
        fs::remove_file("full").unwrap();
    });
}

#[test]
fn what_is_stored_through_a_mapping_is_data_to_who_looks_for_holes() {
    if skip_mounted() {
        return;
    }
    let rig = mounted();
    let scope = rig.mnt.join("media");
    let open = |name: &str| File::options().read(true).write(true).create(true).truncate(false).open(scope.join(name));
    // A file that was never written to, and one of the release that nobody has changed yet.
    for name in ["db", "theme/logo"] {
        let file = open(name).unwrap();
        file.set_len(1 << 20).unwrap();
        let mut mapping = sys::mapping(&file).unwrap();
        mapping[40960..40965].copy_from_slice(b"hello");
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(20_000)), Ok(20_000), "{name}");
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(20_000)), Ok(1 << 20), "{name}");
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(1 << 20)), Err(rustix::io::Errno::NXIO));
        let copy = rig.root().join("copy");
        assert!(Command::new("cp").arg(scope.join(name)).arg(&copy).status().unwrap().success());
        assert_eq!(fs::read(copy).unwrap()[40960..40965], *b"hello", "{name}");
        // Inside the mount it is copy_file_range(2), before which the kernel writes back by itself.
        mapping[50_000..50_005].copy_from_slice(b"again");
        let copy = scope.join("copy");
        let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), File::create(&copy).unwrap(), None, 1 << 20);
        assert_eq!(copied, Ok(1 << 20));
        assert_eq!(fs::read(copy).unwrap()[50_000..50_005], *b"again", "{name}");
        drop(mapping);
    }
}

#[test]
fn a_mode_that_a_change_of_the_content_cleared_is_shown_at_once() {
    if skip_mounted() {
        return;
    }
    let mut rig = mounted();
    rig.umount();
    let toml = rig.store.join("verfs.toml");
    fs::write(&toml, fs::read_to_string(&toml).unwrap() + "ttl = \"forever\"\n").unwrap();
    rig.mount();
    let scope = rig.mnt.join("media");
    let path = scope.join("f");
    // The mode alone: the kernel asks for the times again in any case, and would learn the mode with them.
    let mode = || {
        let flags = rustix::fs::StatxFlags::MODE;
        u32::from(rustix::fs::statx(rustix::fs::CWD, &path, rustix::fs::AtFlags::empty(), flags).unwrap().stx_mode)
            & 0o7777
    };
    let allocate = |file: &File| rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, 1 << 16);
    let copy = |file: &File| rustix::fs::copy_file_range(File::open("../page").unwrap(), None, file, None, 100);
    type Change<'a> = &'a (dyn Fn(&mut File) + Sync);
    let ways: [(&str, Change<'_>); 5] = [
        ("write", &|file| file.write_all(b"y").unwrap()),
        ("truncate", &|file| file.set_len(3).unwrap()),
        ("fallocate", &|file| allocate(file).unwrap()),
        ("copy_file_range", &|file| assert_ne!(copy(file).unwrap(), 0)),
        ("a write behind the end", &|file| file.write_all_at(b"y", 100).unwrap()),
    ];
    for (what, change) in ways {
        fs::write(&path, "xxxxxxxx").unwrap();
        for (set, left) in [(0o4777, 0o777), (0o2777, 0o777), (0o6777, 0o777), (0o777, 0o777)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(set)).unwrap();
            assert_eq!(mode(), set, "set-up");
            WWW_DATA.work_in(&scope, || change(&mut File::options().read(true).write(true).open("f").unwrap()));
            assert_eq!(mode(), left, "{what} with {set:o}");
        }
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    std::os::unix::fs::chown(&path, Some(33), None).unwrap();
    assert_eq!(mode(), 0o777, "chown");
}

/// The next 8 MiB of a content that is different everywhere.
fn piece(begin: u64) -> Vec<u8> {
    (begin / 8..begin / 8 + (1 << 20)).flat_map(u64::to_le_bytes).collect()
}

#[test]
fn a_large_upload_goes_to_disk_while_it_is_written_and_is_kept_in_memory_once() {
    if skip_mounted() {
        return;
    }
    let mut rig = mounted();
    let (name, behind) = (rig.mnt.join("media/film"), rig.store.join("media/media/film"));
    let mut file = File::create(&name).unwrap();
    let mut hasher = blake3::Hasher::new();
    let mut written = 0;
    let end = Instant::now() + Duration::from_secs(30);
    // No fsync: only what is on disk already can be let go of.
    while written < 64 << 20 || resident(&behind) > written / 2 {
        assert!(Instant::now() < end, "{} bytes of {written} are held below", resident(&behind));
        let piece = piece(written);
        file.write_all(&piece).unwrap();
        hasher.update(&piece);
        if written == 0 {
            assert!(resident(&behind) > 0, "this file system does not tell what is in memory");
        }
        written += piece.len() as u64;
        if written >= 64 << 20 {
            // What comes now lets go of what came before, however slow the disk is.
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    file.sync_all().unwrap();
    // Who reads it lets go of the rest, if it was not written just now.
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    drop(file);
    rig.umount();
    rig.mount();
    let read = |name: &Path| blake3::hash(&fs::read(name).unwrap());
    assert_eq!(read(&name), hasher.finalize());
    wait_until_let_go(&behind, written / 10);
    assert_eq!(read(&behind), hasher.finalize());
    rig.umount();
}

/// Whether a process has a file open for writing (proc_pid_fdinfo(5)).
fn is_open_for_writing(pid: u32, path: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut flags = open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|file| file == path)).map(|fd| {
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd.file_name().display())).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("0");
        i32::from_str_radix(flags.trim(), 8).unwrap()
    });
    flags.any(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

#[test]
fn an_error_of_the_disk_is_told_at_the_fsync_even_if_it_was_met_before() {
    if skip_mounted() {
        return;
    }
    let mut rig = Rig::with_limit(Duration::from_secs(120));
    let (disk, _below) = SmallDisk::that_fails_after(&rig, 48 << 20);
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
    let toml = rig.store.join("verfs.toml");
    let settings = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, format!("media = {:?}\n{settings}", disk.path())).unwrap();
    let source = rig.src.join("1");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("page"), "page").unwrap();
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    rig.mount();
    let mut file = File::create(rig.mnt.join("media/film")).unwrap();
    rustix::fs::sync();
    for written in 0..13 {
        file.write_all(&piece(written << 23)).unwrap();
    }
    // Now the disk has failed, nothing is left to write, and what the file was written through is closed.
    rustix::fs::sync();
    let behind = disk.path().join("media/media/film");
    assert!(behind.exists());
    let end = Instant::now() + Duration::from_secs(20);
    while rig.pids().iter().any(|pid| is_open_for_writing(*pid, &behind)) {
        assert!(Instant::now() < end, "it stays open");
        std::thread::sleep(Duration::from_millis(50));
    }
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let told = file.sync_all().map_err(|error| error.raw_os_error().unwrap());
    assert!(matches!(told, Err(libc::EIO | libc::ENOSPC)), "{told:?}");
    drop(file);
    rig.umount();
}
