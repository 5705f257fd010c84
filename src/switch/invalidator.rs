//! The thread that tells the kernel what to forget.
//!
//! Every notification may wait for a lock that a stopped client holds for ever. So each list is worked off by
//! a thread of its own. If one notification takes longer than the limit, the thread is told to give up and is
//! left behind; a long list that moves on may take its time.

use super::commit::Outcome;
use super::invalidate::{Invalidations, Notice};
use super::kernel::Kernel;
use crate::error::{Errno, Error, Result};
use crate::fs::Fs;
use crate::store::settings::Barrier;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Threads that may be left waiting for clients that are stuck; past this a switch is refused at once.
const MOST_STUCK: usize = 8;

/// Works lists off.
#[derive(Debug)]
pub(super) struct Invalidator {
    fs: Arc<Fs>,
    kernel: Arc<dyn Kernel>,
    mountpoint: PathBuf,
    stuck: Arc<AtomicUsize>,
}

impl Invalidator {
    /// For the mount at this place.
    pub(super) fn new(fs: Arc<Fs>, kernel: Arc<dyn Kernel>, mountpoint: PathBuf) -> Self {
        Self { fs, kernel, mountpoint, stuck: Arc::default() }
    }

    /// Works a list off; gives up when nothing moved for `limit`.
    pub(super) fn run(&self, list: Invalidations, barrier: Barrier, limit: Duration) -> Outcome {
        if self.stuck.load(Ordering::Relaxed) >= MOST_STUCK {
            return Outcome::TimedOut;
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(AtomicUsize::new(0));
        let (done, result) = channel();
        let running = Running {
            fs: self.fs.clone(),
            kernel: self.kernel.clone(),
            mountpoint: self.mountpoint.clone(),
            barrier: barrier.on_this_kernel(),
            cancelled: cancelled.clone(),
            progress: progress.clone(),
        };
        let stuck = self.stuck.clone();
        stuck.fetch_add(1, Ordering::Relaxed);
        let spawned = std::thread::Builder::new().name("verfs-drops".into()).spawn(move || {
            let outcome = running.run(&list);
            stuck.fetch_sub(1, Ordering::Relaxed);
            // Nobody listens any more if the limit passed.
            let _ = done.send(outcome);
        });
        if let Err(error) = spawned {
            self.stuck.fetch_sub(1, Ordering::Relaxed);
            return Outcome::Failed(Error::io("starting a thread", error));
        }
        let (mut seen, mut moved) = (0, Instant::now());
        loop {
            match result.recv_timeout(limit / 20) {
                Ok(Ok(())) => return Outcome::Done,
                Ok(Err(error)) => return Outcome::Failed(error),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Outcome::Failed(Error::failed("the thread that tells the kernel died"));
                }
            }
            let now = progress.load(Ordering::Relaxed);
            if now != seen {
                (seen, moved) = (now, Instant::now());
            } else if moved.elapsed() >= limit {
                cancelled.store(true, Ordering::Relaxed);
                return Outcome::TimedOut;
            }
        }
    }
}

impl Barrier {
    /// What `auto` means here: an invalidation takes the directory's lock on kernels up to 6.18.
    fn on_this_kernel(self) -> Self {
        match self {
            Self::Auto if kernel_version() <= (6, 18) => Self::Notify,
            Self::Auto => Self::Rmdir,
            fixed => fixed,
        }
    }
}

fn kernel_version() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

struct Running {
    fs: Arc<Fs>,
    kernel: Arc<dyn Kernel>,
    mountpoint: PathBuf,
    barrier: Barrier,
    cancelled: Arc<AtomicBool>,
    /// How many things the kernel was told; the waiting thread watches it grow.
    progress: Arc<AtomicUsize>,
}

impl Running {
    fn run(&self, list: &Invalidations) -> Result<()> {
        let root = match self.barrier {
            Barrier::Rmdir if !list.pairs.is_empty() => Some(open_root(&self.mountpoint)?),
            _ => None,
        };
        let known_as = |dir: &[u8]| self.fs.known_as(dir);
        for notice in list.notices(&known_as) {
            self.check_cancelled()?;
            match notice? {
                Notice::PassLock { dir, at } => match (&root, at) {
                    // A directory that cannot be reached by its path now gets the notification after all: what is
                    // said of it has TTL 0.
                    (Some(root), Some((manifest, index))) if pass_by_rmdir(root, &manifest.path_of(index)?).is_ok() => {
                    }
                    _ => self.kernel.pass_lock(dir)?,
                },
                Notice::DropEntry { dir, name } => self.kernel.drop_entry(dir, name)?,
                Notice::DropAttributes(node) => self.kernel.drop_attributes(node)?,
            }
        }
        Ok(())
    }

    fn check_cancelled(&self) -> Result<()> {
        self.progress.fetch_add(1, Ordering::Relaxed);
        match self.cancelled.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::failed("given up after the time limit")),
        }
    }
}

fn open_root(mountpoint: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, mountpoint, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::io(format!("opening {}", mountpoint.display()), error))
}

/// rmdir(2) of a name longer than any can be: the kernel takes the directory's lock, and finds nothing.
fn pass_by_rmdir(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<()> {
    let path = if path.is_empty() { &b"."[..] } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let dir = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?;
    match rustix::fs::unlinkat(&dir, &[b'x'; 4000][..], AtFlags::REMOVEDIR) {
        Err(Errno::NAMETOOLONG | Errno::NOENT | Errno::ROFS) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(Errno::EXIST),
    }
}
