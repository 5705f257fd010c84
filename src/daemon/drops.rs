//! What the kernel is to forget in a switch, as data, and the thread that tells it.
//!
//! Every notification may wait for a lock that a stopped client holds for ever. So each list is worked off by
//! a thread of its own. If one notification takes longer than the limit, the thread is told to give up and is
//! left behind; a long list that moves on may take its time.

use crate::error::{Errno, Error, Result};
use crate::fault::{self, Skip};
use crate::fs::Release;
use crate::fs::media::{Media, Scopes, media_of};
use crate::fuse::Kernel;
use crate::store::settings::Barrier;
use crate::store::upper::split;
use crate::tree::{ChangeSet, ChangedEntry, NodeId, Side, Tree, name_key};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Threads that may be left waiting for clients that are stuck; past this a switch is refused at once.
const MOST_STUCK: usize = 8;

/// A switch from one release to another, and in what they differ.
#[derive(Debug)]
pub struct Change {
    /// The release being left.
    pub old: Arc<Release>,
    /// The release coming.
    pub new: Arc<Release>,
    /// In what they differ.
    pub changes: ChangeSet,
    /// Changed directories that lie in shared scopes: the kernel knows them as media nodes.
    scoped: HashSet<NodeId>,
    /// Tops of the scopes that each release has to itself: the name stands for another directory in each.
    tops: Vec<(NodeId, Vec<u8>)>,
}

impl Change {
    /// With these scopes. A shared scope's own name stands for the scope in every release, so it never changes.
    pub fn new(old: Arc<Release>, new: Arc<Release>, changes: ChangeSet, scopes: Option<&Scopes>) -> Result<Self> {
        let mut change = Self { old, new, changes, scoped: HashSet::new(), tops: Vec::new() };
        let Some(declared) = scopes else { return Ok(change) };
        let path = |scope| declared.path(scope);
        let own = declared.ids().filter(|scope| declared.is_per_release(*scope)).map(path);
        change.tops = own.map(split).map(|(dir, name)| (NodeId::of_dir(dir), name.to_vec())).collect();
        let scopes: Vec<&[u8]> = declared.ids().filter(|scope| !declared.is_per_release(*scope)).map(path).collect();
        let within = |path: &[u8]| {
            scopes.iter().any(|top| path.strip_prefix(*top).is_some_and(|rest| rest.is_empty() || rest[0] == b'/'))
        };
        for dir in &change.changes.dirs {
            if within(&change.release(dir.at.0).manifest.path_of(dir.at.1)?) {
                change.scoped.insert(dir.node);
            }
        }
        let mut entries = std::mem::take(&mut change.changes.entries);
        let mut tops = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            let top = scopes.iter().any(|top| NodeId::of_dir(split(top).0) == entry.dir)
                && scopes.contains(&&change.path_of(entry)?[..]);
            if top {
                tops.push(at);
            }
        }
        for at in tops.into_iter().rev() {
            entries.remove(at);
        }
        change.changes.entries = entries;
        Ok(change)
    }

    /// Whether it is between the same two releases.
    pub fn is_like(&self, other: &Self) -> bool {
        let same = |a: &Release, b: &Release| a.manifest.identity() == b.manifest.identity();
        same(&self.old, &other.old) && same(&self.new, &other.new)
    }

    /// The path of a changed name.
    fn path_of(&self, entry: &ChangedEntry) -> Result<Vec<u8>> {
        self.release(entry.side).manifest.path_of(entry.index)
    }

    /// Changed names in scopes, by their paths.
    fn scoped_paths(&self) -> Result<Vec<Vec<u8>>> {
        let entries = self.changes.entries.iter().filter(|entry| self.scoped.contains(&entry.dir));
        entries.map(|entry| self.path_of(entry)).collect()
    }

    /// How many changed names in scopes the writable layer hides.
    pub fn hidden_by(&self, media: &Media) -> Result<usize> {
        let mut hidden = 0;
        for path in self.scoped_paths()? {
            hidden += usize::from(media.hides(&path)?);
        }
        Ok(hidden)
    }

    /// The number by which the kernel knows a changed directory.
    pub fn known_as(&self, dir: NodeId) -> NodeId {
        if self.scoped.contains(&dir) { media_of(dir) } else { dir }
    }

    fn release(&self, side: Side) -> &Release {
        match side {
            Side::Old => &self.old,
            Side::New => &self.new,
        }
    }

    /// The keys of all changed names.
    pub fn keys(&self) -> Result<HashSet<u64>> {
        let key = |entry: &ChangedEntry| Ok(name_key(entry.dir, self.release(entry.side).manifest.name(entry.index)?));
        let tops = self.tops.iter().map(|(dir, name)| Ok(name_key(*dir, name)));
        self.changes.entries.iter().map(key).chain(tops).collect()
    }
}

/// A list of things that the kernel is to forget: first the locks, then names, then attributes.
#[derive(Clone, Debug, Default)]
pub struct Drops {
    /// The switch whose directories' locks are passed, and whether its own names are dropped too.
    pub changes: Vec<(Arc<Change>, Names)>,
    /// Further names.
    pub entries: Vec<(NodeId, Vec<u8>)>,
}

/// Which names and attributes of a change are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Step 2: the changed names, changed directories and nodes that get another mtime.
    Changed,
    /// Step 4: no names beside those that were noted; changed directories, old and new nodes of changed files.
    Noted,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All was forgotten.
    Done,
    /// Nothing moved for as long as the limit.
    TimedOut,
}

/// Works lists off.
#[derive(Debug)]
pub struct Dropper {
    kernel: Arc<OnceLock<Kernel>>,
    mountpoint: PathBuf,
    stuck: Arc<AtomicUsize>,
}

impl Dropper {
    /// For the mount at this place.
    pub fn new(kernel: Arc<OnceLock<Kernel>>, mountpoint: PathBuf) -> Self {
        Self { kernel, mountpoint, stuck: Arc::default() }
    }

    /// Works a list off; gives up when nothing moved for `limit`.
    pub fn work_off(&self, drops: Drops, barrier: Barrier, limit: Duration) -> Result<Outcome> {
        if self.stuck.load(Ordering::Relaxed) >= MOST_STUCK {
            return Ok(Outcome::TimedOut);
        }
        let given_up = Arc::new(AtomicBool::new(false));
        let told = Arc::new(AtomicUsize::new(0));
        let (done, result) = channel();
        let worker = Worker {
            kernel: self.kernel.clone(),
            mountpoint: self.mountpoint.clone(),
            barrier: barrier.on_this_kernel(),
            given_up: given_up.clone(),
            told: told.clone(),
        };
        let stuck = self.stuck.clone();
        stuck.fetch_add(1, Ordering::Relaxed);
        let spawned = std::thread::Builder::new().name("verfs-drops".into()).spawn(move || {
            let outcome = worker.run(&drops);
            stuck.fetch_sub(1, Ordering::Relaxed);
            // Nobody listens any more if the limit passed.
            let _ = done.send(outcome);
        });
        if let Err(error) = spawned {
            self.stuck.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::io("starting a thread", error));
        }
        let (mut seen, mut moved) = (0, Instant::now());
        loop {
            match result.recv_timeout(limit / 20) {
                Ok(outcome) => return outcome.map(|()| Outcome::Done),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::failed("the thread that tells the kernel died"));
                }
            }
            let now = told.load(Ordering::Relaxed);
            if now != seen {
                (seen, moved) = (now, Instant::now());
            } else if moved.elapsed() >= limit {
                given_up.store(true, Ordering::Relaxed);
                return Ok(Outcome::TimedOut);
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

struct Worker {
    kernel: Arc<OnceLock<Kernel>>,
    mountpoint: PathBuf,
    barrier: Barrier,
    given_up: Arc<AtomicBool>,
    /// How many things the kernel was told: by it the one who waits sees that the list moves on.
    told: Arc<AtomicUsize>,
}

impl Worker {
    fn run(&self, drops: &Drops) -> Result<()> {
        let kernel = self.kernel.get().ok_or_else(|| Error::failed("the mount is not there yet"))?;
        if !fault::skips(Skip::Barrier) {
            for (change, _) in &drops.changes {
                self.pass_locks(kernel, change)?;
            }
        }
        for (dir, name) in &drops.entries {
            self.go_on()?;
            kernel.drop_entry(*dir, name)?;
        }
        for (change, names) in &drops.changes {
            self.drop_change(kernel, change, *names)?;
        }
        Ok(())
    }

    fn drop_change(&self, kernel: &Kernel, change: &Change, names: Names) -> Result<()> {
        let changes = &change.changes;
        if names == Names::Changed {
            for (dir, name) in &change.tops {
                self.go_on()?;
                kernel.drop_entry(*dir, name)?;
            }
            for ChangedEntry { dir, side, index } in &changes.entries {
                self.go_on()?;
                kernel.drop_entry(change.known_as(*dir), change.release(*side).manifest.name(*index)?)?;
            }
        }
        let leaves = match names {
            Names::Changed => &changes.stamped,
            Names::Noted => &changes.leaves,
        };
        for node in changes.dirs.iter().map(|dir| dir.node).chain(leaves.iter().copied()) {
            self.go_on()?;
            kernel.drop_attributes(node)?;
            if !change.scoped.is_empty() {
                kernel.drop_attributes(media_of(node))?;
            }
        }
        Ok(())
    }

    /// The barrier: the lock of each changed directory and of its parent, taken and let go.
    fn pass_locks(&self, kernel: &Kernel, change: &Change) -> Result<()> {
        let mut dirs = Vec::new();
        for dir in &change.changes.dirs {
            let manifest = &change.release(dir.at.0).manifest;
            let parent = manifest.node(dir.at.1)?.parent;
            dirs.extend([(dir.parent, Some((manifest, parent))), (dir.node, Some((manifest, dir.at.1)))]);
        }
        for (dir, _) in &change.tops {
            let manifest = &change.new.manifest;
            dirs.push((*dir, manifest.find_node(*dir)?.map(|index| (manifest, index))));
        }
        let root = match self.barrier {
            Barrier::Rmdir => Some(open_root(&self.mountpoint)?),
            _ => None,
        };
        let mut passed = HashSet::new();
        for (node, place) in dirs {
            if !passed.insert(node) {
                continue;
            }
            self.go_on()?;
            match (&root, place) {
                // A directory that cannot be reached by its path now gets the notification after all: what is said of
                // it has TTL 0.
                (Some(root), Some((manifest, index))) if pass_by_rmdir(root, &manifest.path_of(index)?).is_ok() => {}
                _ => kernel.pass_lock(change.known_as(node))?,
            }
        }
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        self.told.fetch_add(1, Ordering::Relaxed);
        match self.given_up.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::failed("given up after the time limit")),
        }
    }
}

fn open_root(mountpoint: &PathBuf) -> Result<OwnedFd> {
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
