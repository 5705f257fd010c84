//! What is mounted where, from /proc/self/mountinfo.

use crate::error::{Context, Error, Result};
use procfs::process::Process;
use std::path::{Path, PathBuf};

/// A mount of verfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The store that it serves.
    pub store: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
}

/// All mounts of verfs.
pub fn mounted() -> Result<Vec<Mounted>> {
    let found = all()?
        .into_iter()
        .filter(|(_, kind, _)| kind == "fuse.verfs")
        .map(|(mountpoint, _, source)| Mounted { store: PathBuf::from(source), mountpoint })
        .collect();
    Ok(found)
}

/// Mountpoints strictly below a directory.
pub fn below(dir: &Path) -> Result<Vec<PathBuf>> {
    let inside = |path: &PathBuf| path.starts_with(dir) && path != dir;
    Ok(all()?.into_iter().map(|(mountpoint, _, _)| mountpoint).filter(inside).collect())
}

/// The file system type of what is mounted on a directory last, if anything is.
pub fn kind_on(dir: &Path) -> Result<Option<String>> {
    Ok(all()?.into_iter().rev().find(|(mountpoint, _, _)| mountpoint == dir).map(|(_, kind, _)| kind))
}

/// Sets how far the kernel reads ahead in files of a mount, in KiB; an error where sysfs cannot be written.
pub fn set_read_ahead(mountpoint: &Path, kib: u32) -> Result<()> {
    let stat = rustix::fs::lstat(mountpoint).context(|| format!("reading {}", mountpoint.display()))?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    std::fs::write(&setting, kib.to_string()).context(|| format!("writing {setting}"))
}

/// Mountpoint, type and source of every mount.
fn all() -> Result<Vec<(PathBuf, String, String)>> {
    let mounts = Process::myself()
        .and_then(|me| me.mountinfo())
        .map_err(|error| Error::failed(format!("/proc/self/mountinfo cannot be read: {error}")))?;
    Ok(mounts
        .0
        .into_iter()
        .map(|mount| (mount.mount_point, mount.fs_type, mount.mount_source.unwrap_or_default()))
        .collect())
}
