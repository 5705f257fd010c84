//! What every row stands on: the sizes of a quick and of a full run, the scratch directory, and the commands it runs.
//!
//! Owns the scratch directory, which goes with it. Nothing here waits without a limit.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, Permissions};
use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// A command that has not ended by then is killed. The longest is `add` or a peer's commit of the largest tree.
const COMMAND_LIMIT: Duration = Duration::from_secs(900);
/// A process that was asked to end is killed after so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the head of this file.
pub struct Stage {
    pub quick: bool,
    /// The program that is measured.
    pub verfs: PathBuf,
    /// The store with the largest tree: made by the first row that asks for it, kept for the others.
    pub largest: OnceCell<super::trees::Pair>,
    missing: RefCell<BTreeMap<String, String>>,
    interrupted: Arc<AtomicBool>,
    begun: Instant,
    /// When the time of the row that is being measured is over.
    row_ends: Cell<Instant>,
    scratch: TempDir,
}

impl Stage {
    /// A scratch directory in `parent`, which every user can reach: Apache is not root.
    pub fn new(parent: &Path, quick: bool, verfs: PathBuf) -> Outcome<Stage> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        let scratch = directory_in(parent)?;
        Ok(Stage {
            quick,
            verfs,
            largest: OnceCell::new(),
            missing: RefCell::default(),
            interrupted,
            begun: Instant::now(),
            row_ends: Cell::new(Instant::now()),
            scratch,
        })
    }

    /// A new directory, which goes when it is dropped.
    pub fn directory(&self) -> Outcome<TempDir> {
        directory_in(self.scratch.path())
    }

    /// The scratch directory itself.
    pub fn root(&self) -> &Path {
        self.scratch.path()
    }

    /// A size of this run.
    pub fn size<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// An error if somebody wants us to end: asked between any two measurements, so that all guards have their turn.
    pub fn go_on(&self) -> Outcome<()> {
        if self.interrupted.load(Relaxed) { Err("interrupted".into()) } else { Ok(()) }
    }

    /// Gives the row that comes now so much time.
    pub fn begin_row(&self, time: Duration) {
        self.row_ends.set(Instant::now() + time);
    }

    /// Whether the row has used its time up: then it makes do with the rounds that it has.
    pub fn row_is_over(&self) -> bool {
        Instant::now() > self.row_ends.get()
    }

    /// Says what is being done.
    pub fn say(&self, text: &str) {
        eprintln!("{:>5} s  {text}", self.begun.elapsed().as_secs());
    }

    /// Notes that a peer could not take part, and why: the report names it.
    pub fn miss(&self, peer: &str, why: &str) {
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        if self.missing.borrow_mut().insert(peer.to_owned(), why.clone()).is_none() {
            self.say(&format!("{peer} cannot take part: {why}"));
        }
    }

    /// Peers that could not take part, and why.
    pub fn missing(&self) -> BTreeMap<String, String> {
        self.missing.borrow().clone()
    }

    /// An error if the scratch directory's disk has less than this free.
    pub fn needs_disk(&self, bytes: u64) -> Outcome<()> {
        let disk = rustix::fs::statvfs(self.root())?;
        let free = disk.f_bavail * disk.f_frsize;
        if free < bytes {
            return Err(format!("{} MiB of disk are needed and {} are free", bytes >> 20, free >> 20).into());
        }
        Ok(())
    }
}

fn directory_in(parent: &Path) -> Outcome<TempDir> {
    let open = Permissions::from_mode(0o755);
    let directory = tempfile::Builder::new().prefix("verfs-bench.").permissions(open).tempdir_in(parent);
    directory.map_err(|error| format!("a scratch directory in {}: {error}", parent.display()).into())
}

/// Runs a command to its end; what it printed. Anything but success is an error with what it said.
pub fn run(command: &mut Command) -> Outcome<Vec<u8>> {
    // Files, not pipes: a daemon that kept a pipe would keep us waiting.
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .spawn()
        .map_err(|error| format!("{name}: {error}"))?;
    let status = match wait(&mut child, COMMAND_LIMIT)? {
        Some(status) => status,
        None => {
            child.kill()?;
            child.wait()?;
            return Err(format!("{name} had not ended after {} s", COMMAND_LIMIT.as_secs()).into());
        }
    };
    if !status.success() {
        let said = format!("{}{}", text(&mut err)?, text(&mut out)?);
        return Err(format!("{name}: {status}: {}", said.trim()).into());
    }
    out.rewind()?;
    let mut printed = Vec::new();
    out.read_to_end(&mut printed)?;
    Ok(printed)
}

/// All that a file holds.
pub fn text(file: &mut fs::File) -> Outcome<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits for the end of a child, without looking again and again: some commands take 5 ms.
fn wait(child: &mut Child, limit: Duration) -> Outcome<Option<ExitStatus>> {
    let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let end = Instant::now() + limit;
    loop {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
        match poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(child.wait()?)),
        }
    }
}

/// Ends a child of ours: asked first, killed if it does not listen.
pub fn end(child: &mut Child) {
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
    end_unasked(child);
}

/// Waits for a child that is about to end, and kills it if it does not.
pub fn end_unasked(child: &mut Child) {
    if !matches!(wait(child, PATIENCE), Ok(Some(_))) {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Waits until a process that is not our child is gone, and kills it if it does not go.
pub fn end_process(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(ended) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let patience = Timespec::try_from(PATIENCE).ok();
    if !matches!(poll(&mut [PollFd::new(&ended, PollFlags::IN)], patience.as_ref()), Ok(1)) {
        let _ = rustix::process::pidfd_send_signal(&ended, Signal::KILL);
    }
}

/// A command that ends when we do, however that comes about.
pub fn tied(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", program]);
    command
}

/// How often we have dropped them.
static DROPS: AtomicU64 = AtomicU64::new(0);

/// How often somebody else has dropped the kernel's caches since the machine started: a row in which that happens measures something else.
pub fn foreign_drops() -> u64 {
    let events = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let all = events.lines().find_map(|line| line.strip_prefix("drop_pagecache ")).and_then(|count| count.parse().ok());
    all.unwrap_or(0_u64).saturating_sub(DROPS.load(Relaxed))
}

/// Writes everything to disk and empties the kernel's caches of pages, names and inodes.
pub fn drop_caches() -> Outcome<()> {
    rustix::fs::sync();
    DROPS.fetch_add(1, Relaxed);
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(|error| format!("drop_caches: {error}").into())
}

/// Writes everything of one file system to disk.
pub fn sync(directory: &Path) -> Outcome<()> {
    Ok(rustix::fs::syncfs(fs::File::open(directory)?)?)
}

/// How long something takes, in seconds.
pub fn timed<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<(f64, T)> {
    let begun = Instant::now();
    let done = work()?;
    Ok((begun.elapsed().as_secs_f64(), done))
}
