//! What is mounted where, from /proc/self/mountinfo.

use crate::error::{Context, Error, Result};
use procfs::process::{MountInfo, Process};
use std::path::{Path, PathBuf};

/// A mount of verfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The store that it serves.
    pub store: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
}

/// All mounts of verfs that root or the caller made. Anybody may mount something and call it fuse.verfs: the number of
/// who did is the kernel's (user_id, which fusermount3 sets; Documentation/filesystems/fuse of Linux).
pub fn mounted() -> Result<Vec<Mounted>> {
    let caller = rustix::process::geteuid().as_raw();
    let believed = |mount: &MountInfo| {
        let by = mount.super_options.get("user_id").and_then(|by| by.as_deref()?.parse::<u32>().ok());
        mount.fs_type == "fuse.verfs" && by.is_some_and(|by| by == 0 || by == caller)
    };
    let mounted = all()?.into_iter().filter(believed).map(|mount| Mounted {
        store: PathBuf::from(mount.mount_source.unwrap_or_default()),
        mountpoint: mount.mount_point,
    });
    Ok(mounted.collect())
}

/// Mountpoints strictly below a directory.
pub fn below(dir: &Path) -> Result<Vec<PathBuf>> {
    let inside = |path: &PathBuf| path.starts_with(dir) && path != dir;
    Ok(all()?.into_iter().map(|mount| mount.mount_point).filter(inside).collect())
}

/// The file system type of what is mounted on a directory last, if anything is.
pub fn kind_on(dir: &Path) -> Result<Option<String>> {
    Ok(all()?.into_iter().rev().find(|mount| mount.mount_point == dir).map(|mount| mount.fs_type))
}

/// Sets how far the kernel reads ahead in files of a mount with this device number, in KiB; an error where sysfs cannot
/// be written.
pub fn set_read_ahead(device: u64, kib: u32) -> Result<()> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    std::fs::write(&setting, kib.to_string()).context(|| format!("writing {setting}"))
}

fn all() -> Result<Vec<MountInfo>> {
    let mounts = Process::myself()
        .and_then(|me| me.mountinfo())
        .map_err(|error| Error::failed(format!("/proc/self/mountinfo cannot be read: {error}")))?;
    Ok(mounts.0)
}
