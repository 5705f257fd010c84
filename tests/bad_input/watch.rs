//! A mount made with arguments of the test's own, under the same watch as the rig's.

use super::support::Rig;
use super::support::deadline::{Deadline, Watched, connection_of};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs `verfs ARGS`, which must mount on `mountpoint`; the watch ends when it is dropped.
pub fn mounted(rig: &Rig, args: &[&str], mountpoint: &Path) -> Deadline {
    let started = rig.json(args);
    let pid = started["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    watch(mountpoint, pid)
}

/// Watches what is mounted on `mountpoint`.
pub fn watch(mountpoint: &Path, pid: Option<u32>) -> Deadline {
    let connection =
        connection_of(mountpoint).unwrap_or_else(|| panic!("nothing is mounted on {}", mountpoint.display()));
    let watched = Watched { mountpoint: mountpoint.to_owned(), connection, pids: pid.into_iter().collect() };
    Deadline::start(LIMIT, watched)
}
