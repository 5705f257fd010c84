//! A small disk of its own under the store, in a file; it goes with the value.

use super::Rig;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

    /// An ext2 beside the store that says it has 320 MiB, and fails when `bytes` were written to it; and what it lies on.
    pub fn that_fails_after(rig: &Rig, bytes: u64) -> (SmallDisk, SmallDisk) {
        let room = rig.root().join("room");
        fs::create_dir(&room).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&room));
        let below = SmallDisk(room.clone());
        (SmallDisk::in_file(rig, "ext2", &room.join("disk.img")), below)
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
