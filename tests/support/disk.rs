//! A small disk of its own under the store, in a file; it goes with the value.

use super::Rig;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// See the head of this file.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// An ext4 of 24 MiB, a third of it kept for root.
    pub fn with_reserve(rig: &Rig) -> SmallDisk {
        let image = image(rig, 24 << 20);
        run(Command::new("mkfs.ext4").args(["-q", "-m", "33", "-E", "root_owner=0:0"]).arg(&image));
        let disk = SmallDisk::mount(rig, &image, "loop");
        fs::remove_dir(rig.store.join("lost+found")).unwrap();
        disk
    }

    /// An ext2, ext4, xfs or btrfs of 320 MiB, beside the store.
    pub fn beside(rig: &Rig, kind: &str) -> SmallDisk {
        SmallDisk::in_file(rig, kind, &rig.root().join(format!("{kind}.img")))
    }

    /// An ext4 of 64 MiB at this directory, in one group and without a journal: what is written lies behind all that
    /// says where it lies.
    pub fn in_one_group(image: &Path, dir: &Path) -> SmallDisk {
        File::create(image).unwrap().set_len(64 << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-b", "4096", "-O", "^has_journal"]).arg(image));
        fs::create_dir_all(dir).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(dir));
        fs::remove_dir(dir.join("lost+found")).unwrap();
        SmallDisk(dir.to_owned())
    }

    /// A disk in this image, at a directory that is there.
    pub fn of_image(image: &Path, dir: &Path) -> SmallDisk {
        // A copy of an xfs has the UUID of the first, which may not be gone yet.
        let blkid = Command::new("blkid").args(["-o", "value", "-s", "TYPE"]).arg(image).output().unwrap();
        let how = if blkid.stdout.starts_with(b"xfs") { "loop,nouuid" } else { "loop" };
        run(Command::new("mount").args(["-o", how]).arg(image).arg(dir));
        SmallDisk(dir.to_owned())
    }

    /// Has nothing written by itself for minutes: only what is synced is on the disk.
    pub fn write_seldom(&self, kind: &str) {
        // xfs has no such option: its log is written every 30 s (fs.xfs.xfssyncd_centisecs).
        if kind != "xfs" {
            run(Command::new("mount").args(["-o", "remount,commit=300"]).arg(&self.0));
        }
    }

    /// Makes it read-only, or writable again. A file that is still open for writing is waited for.
    pub fn set_read_only(&self, read_only: bool) {
        rustix::fs::sync();
        let how = if read_only { "remount,ro" } else { "remount,rw" };
        let end = Instant::now() + Duration::from_secs(20);
        while !Command::new("mount").args(["-o", how]).arg(&self.0).stderr(Stdio::null()).status().unwrap().success() {
            assert!(Instant::now() < end, "{how} of {}", self.0.display());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// An ext2 beside the store that says it has 320 MiB, and fails when `bytes` were written to it; and what it lies on.
    pub fn that_fails_after(rig: &Rig, bytes: u64) -> (SmallDisk, SmallDisk) {
        let room = rig.root().join("room");
        fs::create_dir(&room).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&room));
        let below = SmallDisk(room.clone());
        (SmallDisk::in_file(rig, "ext2", &room.join("disk.img")), below)
    }

    /// An ext4 of 1 GiB beside the store, with so many inodes.
    pub fn with_inodes(rig: &Rig, inodes: usize) -> SmallDisk {
        let (image, dir) = (rig.root().join("inodes.img"), rig.root().join("inodes"));
        File::create(&image).unwrap().set_len(1 << 30).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-N", &inodes.to_string()]).arg(&image));
        fs::create_dir(&dir).unwrap();
        SmallDisk::of_image(&image, &dir)
    }

    fn in_file(rig: &Rig, kind: &str, image: &Path) -> SmallDisk {
        // As small as xfs will have it; what is not written takes no room.
        File::create(image).unwrap().set_len(320 << 20).unwrap();
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(image));
        let dir = rig.root().join(kind);
        fs::create_dir(&dir).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&dir));
        SmallDisk(dir)
    }

    /// One in memory, at a directory that is there.
    pub fn in_memory(dir: &Path) -> SmallDisk {
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(dir));
        SmallDisk(dir.to_owned())
    }

    /// A btrfs subvolume that may hold `bytes`, on a disk with room for much more.
    pub fn with_quota(rig: &Rig, bytes: u64) -> SmallDisk {
        let image = image(rig, 256 << 20);
        run(Command::new("mkfs.btrfs").arg("-q").arg(&image).stdout(Stdio::null()));
        let whole = SmallDisk::mount(rig, &image, "loop");
        let subvolume = rig.store.join("limited");
        run(Command::new("btrfs").args(["-q", "quota", "enable"]).arg(&rig.store));
        run(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&subvolume));
        run(Command::new("btrfs").args(["-q", "qgroup", "limit", &bytes.to_string()]).arg(&subvolume));
        drop(whole);
        SmallDisk::mount(rig, &image, "loop,subvol=limited")
    }

    fn mount(rig: &Rig, image: &Path, options: &str) -> SmallDisk {
        fs::create_dir_all(&rig.store).unwrap();
        run(Command::new("mount").args(["-o", options]).arg(image).arg(&rig.store));
        SmallDisk(rig.store.clone())
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// A disk that ends before a file's content: reading it is EIO, until it is put right.
pub struct CutOff {
    image: PathBuf,
    begin: u64,
    bytes: Vec<u8>,
}

impl CutOff {
    /// Cuts the disk in this image off where the content of this file begins.
    pub fn before(image: &Path, file: &Path) -> CutOff {
        rustix::fs::sync();
        let output = Command::new("filefrag").args(["-b1", "-v"]).arg(file).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // "   0:        0..  8388607:   34603008..  42991615: ..."
        let begins = text.lines().filter_map(|line| {
            let mut columns = line.split(':');
            columns.next()?.trim().parse::<u32>().ok()?;
            columns.nth(1)?.split("..").next()?.trim().parse::<u64>().ok()
        });
        let begin = begins.min().unwrap_or_else(|| panic!("where does {} lie? {text}", file.display()));
        let whole = File::options().read(true).write(true).open(image).unwrap();
        let mut bytes = vec![0; (whole.metadata().unwrap().len() - begin) as usize];
        whole.read_exact_at(&mut bytes, begin).unwrap();
        whole.set_len(begin).unwrap();
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        CutOff { image: image.to_owned(), begin, bytes }
    }

    /// All of the disk is there again.
    pub fn mend(self) {
        let whole = File::options().write(true).open(&self.image).unwrap();
        whole.write_all_at(&self.bytes, self.begin).unwrap();
        whole.sync_all().unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.0.display());
        }
    }
}

fn image(rig: &Rig, size: u64) -> PathBuf {
    let image = rig.root().join("disk.img");
    File::create(&image).unwrap().set_len(size).unwrap();
    image
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}
