//! Who is in the way: processes that hold a mount, or a directory's lock in it.

use procfs::process::{Process, all_processes};
use std::path::{Path, PathBuf};

/// A process, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: i32,
    /// Name of its command.
    pub command: String,
    /// The path by which it holds the mount, and how.
    pub what: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({}, {})", self.pid, self.command, self.what)
    }
}

/// Processes that keep a mount busy, one line each: by a working directory, a root, an open file or a mapping.
pub fn holders(mountpoint: &Path) -> Vec<Holder> {
    let inside = |path: &Path| path.starts_with(mountpoint);
    let me = std::process::id() as i32;
    let look = |process: &Process| -> Option<String> {
        if let Some(path) = process.cwd().ok().filter(|path| inside(path)) {
            return Some(format!("working directory {}", path.display()));
        }
        if let Some(path) = process.root().ok().filter(|path| inside(path)) {
            return Some(format!("root directory {}", path.display()));
        }
        for fd in process.fd().ok()?.flatten() {
            if let procfs::process::FDTarget::Path(path) = &fd.target
                && inside(path)
            {
                return Some(format!("open {}", path.display()));
            }
        }
        let mapped = process.maps().ok()?.into_iter().find_map(|map| match map.pathname {
            procfs::process::MMapPath::Path(path) if inside(&path) => Some(path),
            _ => None,
        });
        mapped.map(|path| format!("mapped {}", path.display()))
    };
    every_process()
        .filter(|process| process.pid != me)
        .filter_map(|process| Some(Holder { pid: process.pid, command: command(&process), what: look(&process)? }))
        .collect()
}

/// Processes that sit inside a system call on a directory of the mount, which keeps the directory's lock.
pub fn lock_holders(mountpoint: &Path) -> Vec<Holder> {
    let mut found = Vec::new();
    for process in every_process() {
        let Ok(threads) = process.tasks() else { continue };
        for thread in threads.flatten() {
            if let Some(dir) = dir_in_getdents(process.pid, thread.tid, mountpoint) {
                let what = format!("reading the directory {}", dir.display());
                found.push(Holder { pid: process.pid, command: command(&process), what });
                break;
            }
        }
    }
    found
}

/// The directory that a thread is reading at this moment (proc_pid_syscall(5): number, then arguments in hex).
fn dir_in_getdents(pid: i32, thread: i32, mountpoint: &Path) -> Option<PathBuf> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/syscall")).ok()?;
    let mut words = line.split_ascii_whitespace();
    if words.next()?.parse::<i64>().ok()? != libc::SYS_getdents64 {
        return None;
    }
    let descriptor = i64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
    let path = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).ok()?;
    path.starts_with(mountpoint).then_some(path)
}

fn every_process() -> impl Iterator<Item = Process> {
    all_processes().into_iter().flatten().flatten()
}

fn command(process: &Process) -> String {
    process.stat().map_or_else(|_| "?".to_owned(), |stat| stat.comm)
}
