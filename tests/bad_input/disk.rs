//! A small disk of its own under a rig's store, and a file that fills it.

use super::support::Rig;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which file system is on the small disk.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// In memory: every write is accounted at once.
    Tmpfs,
    /// An image in a loop mount: blocks are found only when data is written back.
    Ext4,
}

/// A small disk on which a rig's store lies; it goes when this is dropped. To be dropped before
/// the rig, so to be made after it.
pub struct Disk {
    top: PathBuf,
}

impl Disk {
    /// Puts an empty disk of `megabytes` where the rig's store is going to be.
    pub fn under(rig: &Rig, kind: Kind, megabytes: u64) -> Disk {
        fs::create_dir(&rig.store).unwrap();
        let top = rig.store.clone();
        match kind {
            Kind::Tmpfs => {
                let size = std::ffi::CString::new(format!("size={megabytes}m,mode=755")).unwrap();
                mount("tmpfs", &top, "tmpfs", MountFlags::empty(), size.as_c_str()).unwrap();
            }
            Kind::Ext4 => {
                let image = rig.root().join("disk.img");
                File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
                // No blocks for root alone: root must meet a full disk like anybody.
                run("mkfs.ext4", &["-q", "-m", "0", "-N", "1024"], &[&image]);
                run("mount", &["-o", "loop"], &[&image, &top]);
                fs::remove_dir(top.join("lost+found")).unwrap();
            }
        }
        Disk { top }
    }

    /// Bytes that can still be written.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.top).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Fills the disk to the last block, but for `spare` bytes.
    pub fn fill(&self, spare: u64) {
        let path = self.top.join("filler");
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        let mut chunk = 1 << 20;
        while chunk > 0 {
            while self.free() > spare + chunk as u64 && file.write_all(&vec![b'x'; chunk]).is_ok() {}
            // What was promised is written now, or the disk only looks full.
            let _ = file.sync_all();
            chunk /= 4;
        }
        if spare == 0 {
            // The tail of the last block, and blocks that an estimate kept back.
            while file.write_all(b"x").is_ok() {}
            let _ = file.sync_all();
        }
        assert!(self.free() < spare + 65_536, "{} bytes are free still", self.free());
    }

    /// Uses up every inode.
    pub fn fill_inodes(&self) {
        let dir = self.top.join("filler.d");
        fs::create_dir_all(&dir).unwrap();
        let mut made = 0;
        while File::create(dir.join(made.to_string())).is_ok() {
            made += 1;
        }
        assert_eq!(rustix::fs::statvfs(&self.top).unwrap().f_ffree, 0);
    }

    /// Makes room again.
    pub fn empty(&self) {
        let _ = fs::remove_file(self.top.join("filler"));
        let _ = fs::remove_dir_all(self.top.join("filler.d"));
        File::open(&self.top).unwrap().sync_all().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.top, UnmountFlags::DETACH) {
            eprintln!("{}: {error}", self.top.display());
        }
    }
}

/// Writes a file of `len` bytes that no two calls make alike.
pub fn noise(path: &Path, len: usize) {
    let mut bytes = vec![0; len];
    File::open("/dev/urandom").unwrap().read_exact_at(&mut bytes, 0).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn run(program: &str, args: &[&str], paths: &[&Path]) {
    let output = Command::new(program).args(args).args(paths).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}
