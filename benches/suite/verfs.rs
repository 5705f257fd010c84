//! verfs as a user has it: the program on the command line. A store in a directory of its own, and a mount that is taken away when dropped.

use super::stage::{self, Outcome, Stage};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The program and the store that it works on.
#[derive(Clone)]
pub struct Store {
    program: PathBuf,
    pub path: PathBuf,
}

impl Store {
    /// The store at `path`, which may not be there yet.
    pub fn at(stage: &Stage, path: PathBuf) -> Store {
        Store { program: stage.verfs.clone(), path }
    }

    /// Makes the store, with the scope `media`.
    pub fn init(stage: &Stage, path: PathBuf) -> Outcome<Store> {
        let store = Store::at(stage, path);
        store.run(&[OsStr::new("init"), store.path.as_os_str(), OsStr::new("--writable"), OsStr::new("media")])?;
        Ok(store)
    }

    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Outcome<Vec<u8>> {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("VERFS_STORE", &self.path).env_remove("VERFS_FAULT");
        stage::run(&mut command).map_err(|error| {
            let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy().into_owned()).collect();
            format!("verfs {}: {error}", words.join(" ")).into()
        })
    }

    /// Runs it with `--json`; its answer.
    pub fn ask<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Outcome<Value> {
        let mut all: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        all.push(OsStr::new("--json"));
        Ok(serde_json::from_slice(&self.run(&all)?)?)
    }

    pub fn add(&self, release: &str, source: &Path) -> Outcome<Value> {
        self.ask(&[OsStr::new("add"), OsStr::new(release), source.as_os_str()])
    }

    /// Serves the store in a new directory.
    pub fn mount(&self, stage: &Stage) -> Outcome<Mount> {
        let mountpoint = stage.directory()?;
        let begun = Instant::now();
        self.run(&[OsStr::new("mount"), self.path.as_os_str(), mountpoint.path().as_os_str()])?;
        let ready = begun.elapsed();
        let mut mount = Mount { store: self.clone(), pids: Vec::new(), ready, mountpoint };
        let status = self.ask(&["status"])?;
        mount.pids =
            ["worker_pid", "keeper_pid"].iter().filter_map(|key| status[key].as_u64()).map(|p| p as u32).collect();
        mount.pids.dedup();
        Ok(mount)
    }
}

/// A mount of a store; unmounted when dropped.
pub struct Mount {
    pub store: Store,
    /// The processes that serve it.
    pub pids: Vec<u32>,
    /// How long the command took.
    pub ready: Duration,
    mountpoint: TempDir,
}

impl Mount {
    pub fn root(&self) -> &Path {
        self.mountpoint.path()
    }

    /// What the kernel has asked so far, by operation.
    pub fn upcalls(&self) -> Outcome<BTreeMap<String, u64>> {
        let status = self.store.ask(&["status"])?;
        Ok(serde_json::from_value(status["upcalls"].clone())?)
    }

    /// All that the kernel has asked so far.
    pub fn all_upcalls(&self) -> Outcome<u64> {
        Ok(self.upcalls()?.values().sum())
    }

    /// The memory of the processes that is their own (RssAnon) and all of it (VmRSS), in MiB.
    pub fn memory(&self) -> Outcome<(f64, f64)> {
        let mut sum = (0.0, 0.0);
        for pid in &self.pids {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let field = |name: &str| -> Outcome<f64> {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line in status")?;
                let number: f64 = line.split_whitespace().next().unwrap_or("").parse()?;
                Ok(number / 1024.0)
            };
            sum.0 += field("RssAnon:")?;
            sum.1 += field("VmRSS:")?;
        }
        Ok(sum)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let store = self.store.path.as_os_str();
        if let Err(error) = self.store.run(&[OsStr::new("umount"), store]) {
            eprintln!("{error}");
            let lazily = self.store.run(&[OsStr::new("umount"), OsStr::new("--lazy"), store]);
            if lazily.is_err() {
                let _ = rustix::mount::unmount(self.root(), rustix::mount::UnmountFlags::DETACH);
            }
        }
        for pid in &self.pids {
            stage::end_process(*pid);
        }
    }
}
