//! The writable layer, as the mount serves it.
//!
//! **Locks.** `names` orders everything that looks at names or changes them, disk work included; no handler that
//! holds it waits for the kernel. `nodes` is taken inside it, for an instant. Neither is taken under the epoch lock.

mod content;
mod inflight;
mod limits;
mod listing;
mod lookup;
mod mutate;
mod nodes;
mod scopes;
mod shadow;
mod truncation;
mod writeback;

pub use content::{Changes, Reading, Source, Writing};
pub use inflight::AnswerGuard;
pub use mutate::{New, Permissions};
pub use nodes::{is_media, media_of, release_node};
pub use scopes::{ScopeId, Scopes};
pub use shadow::{How, Restored};

use super::attr::{Attr, Entry, Ttl};
use super::contents::Contents;
use super::epoch::{Epoch, Release};
use super::refused::{Refused, Why};
use crate::error::{Errno, Error, Result};
use crate::store::media::home::{Home, Orphan, docroot_path, split};
use crate::store::media::scope::Scope;
use crate::tree::union::Layers;
use crate::tree::{Kind, Node, NodeId, Tree};
use content::Files;
use inflight::InFlight;
use limits::{Usage, UsageGuard, disk_bytes};
use nodes::{Backing, MediaNode, Nodes};
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::Stat;
use std::fs::File;
use std::sync::Arc;

/// Who asks: in whose name the disk work is done.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// The thread, as the kernel numbers it.
    pub thread: u32,
}

impl Caller {
    /// The daemon, or a command, by itself.
    pub const ROOT: Self = Self { uid: 0, gid: 0, thread: 0 };
}

/// A change that is asked for: what it is seen against, and in whose name it is done.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// The epoch that it is seen against.
    pub epoch: &'a Epoch,
    /// The contents of releases, for copies.
    pub contents: &'a Contents,
    /// Who asks.
    pub caller: Caller,
}

/// What decides who may do what in scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Modes.
    Modes,
    /// Modes and access lists (POSIX ACLs).
    Acls,
}

/// The scopes of a mount.
#[derive(Debug)]
pub struct Media {
    /// Where they are and what holds in them.
    pub scopes: Scopes,
    home: Home,
    names: Mutex<()>,
    nodes: Mutex<Nodes>,
    in_flight: Arc<InFlight>,
    files: Files,
    refused: Arc<Refused>,
    usage: Usage,
    rights: Rights,
}

/// Held while names are looked at or changed.
struct Names<'a> {
    media: &'a Media,
    epoch: &'a Epoch,
    _guard: MutexGuard<'a, ()>,
}

/// What is at a path: what the layers say, and what they say it of.
struct Looked {
    layers: Layers,
    stat: Option<Stat>,
    lower: Option<Lower>,
}

/// The release's entry at a path.
struct Lower {
    release: Arc<Release>,
    index: u32,
    node: Node,
}

impl Media {
    /// Serves these scopes; what is refused there is noted.
    pub fn new(scopes: &[Scope], home: Home, refused: Arc<Refused>, rights: Rights) -> Self {
        let nodes = Nodes::default();
        Self {
            scopes: Scopes::new(scopes),
            home,
            names: Mutex::new(()),
            in_flight: nodes.in_flight.clone(),
            nodes: Mutex::new(nodes),
            files: Files::default(),
            refused,
            usage: Usage::default(),
            rights,
        }
    }

    /// Whether access lists decide.
    pub fn uses_acls(&self) -> bool {
        self.rights == Rights::Acls
    }

    /// What keeps scopes from being reached in a release, each a sentence.
    pub fn unreachable(&self, release: &Release) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for scope in self.scopes.ids() {
            let path = self.scopes.path(scope);
            let dir = split(path).0;
            let there = release.manifest.find_path(dir)?.map(|index| release.manifest.node(index)).transpose()?;
            if there.is_none_or(|node| node.kind != Kind::Dir) {
                found.push(format!(
                    "the scope {} cannot be reached in release {}, which has no directory {}; add the release again",
                    path.escape_ascii(),
                    release.name,
                    dir.escape_ascii()
                ));
            }
        }
        Ok(found)
    }

    /// A write that is refused, noted.
    fn refuse<T>(&self, path: &[u8], caller: Caller, why: Why) -> Result<T> {
        self.refused.note(docroot_path(path).1, caller.uid, why);
        Err(match why {
            Why::Outside => Error::Refused,
            Why::Denied => Error::answer(Errno::ACCESS),
            Why::Limit => Error::answer(Errno::DQUOT),
        })
    }

    /// Whether something of this name may be made.
    fn may_make(&self, path: &[u8], caller: Caller) -> Result<()> {
        let rules = self.scopes.rules(self.scopes.of(path)?);
        if rules.deny.denies(split(path).1) { self.refuse(path, caller, Why::Denied) } else { Ok(()) }
    }

    /// Whether so many bytes more may be written at a path.
    fn may_take(&self, path: &[u8], caller: Caller, more: u64) -> Result<()> {
        let scope = self.scopes.of(path)?;
        match self.scopes.rules(scope).limit {
            Some(limit) if !self.usage.fits(scope, limit, more) => self.refuse(path, caller, Why::Limit),
            _ => Ok(()),
        }
    }

    /// Before a change of a file up to this length: whether it may grow, and what counts the growth. Nothing without
    /// a limit.
    fn grow(&self, node: NodeId, caller: Caller, file: &Arc<File>, end: u64) -> Result<Option<UsageGuard<'_>>> {
        let (scope, path) = {
            let nodes = self.nodes.lock();
            let held = nodes.get(node).ok_or(Errno::STALE)?;
            (held.scope, held.paths.first().cloned())
        };
        let Some(limit) = self.scopes.rules(scope).limit else { return Ok(None) };
        let stat = rustix::fs::fstat(&**file)?;
        let more = end.saturating_sub(stat.st_size as u64);
        if more > 0 && !self.usage.fits(scope, limit, more) {
            let path = path.unwrap_or_else(|| self.scopes.path(scope).to_vec());
            return self.refuse(&path, caller, Why::Limit);
        }
        Ok(Some(UsageGuard { usage: &self.usage, scope, file: file.clone(), before: disk_bytes(&stat) }))
    }

    /// Nobody can reach an unlinked file any more.
    fn let_go(&self, scope: ScopeId, orphan: &Orphan) {
        if self.scopes.rules(scope).limit.is_some()
            && let Ok(stat) = self.home.stat_orphan(orphan)
            && stat.st_nlink == 0
        {
            self.usage.add(scope, -disk_bytes(&stat));
        }
        self.home.drop_orphan(orphan);
    }

    /// Measures what scopes with a limit take on disk, where that is due.
    pub fn measure(&self) {
        self.usage.measure(&self.scopes, |scope| match self.scopes.is_per_release(scope) {
            false => self.home.disk_usage(self.scopes.path(scope)),
            true => self.home.own_disk_usage(self.scopes.path(scope)),
        });
    }

    /// Path, limit and use in bytes of each scope that has a limit; the use is not known at once.
    pub fn limits(&self) -> Vec<(Vec<u8>, u64, Option<u64>)> {
        let limit = |scope| {
            let limit = self.scopes.rules(scope).limit?;
            Some((self.scopes.path(scope).to_vec(), limit, self.usage.bytes(scope)))
        };
        self.scopes.ids().filter_map(limit).collect()
    }

    fn names<'a>(&'a self, epoch: &'a Epoch) -> Names<'a> {
        Names { media: self, epoch, _guard: self.names.lock() }
    }

    /// Whether the disk takes changes: makes one that nobody sees.
    pub fn try_change(&self) -> Result<()> {
        self.home.try_change()
    }

    /// Files of releases that the kernel holds in scopes: the release, and their number there.
    pub fn held_of_releases(&self) -> Vec<(Arc<Release>, u32)> {
        self.nodes.lock().held_of_releases()
    }

    /// What is known of a node.
    fn node(&self, node: NodeId) -> Result<MediaNode> {
        self.nodes.lock().get(node).cloned().ok_or_else(|| Errno::STALE.into())
    }

    /// The path of a directory node.
    fn dir_path(&self, dir: NodeId) -> Result<Vec<u8>> {
        self.path(dir)?.ok_or_else(|| Errno::NOENT.into())
    }

    /// A path of a node; `None` if it has none any more.
    fn path(&self, node: NodeId) -> Result<Option<Vec<u8>>> {
        let nodes = self.nodes.lock();
        let held = nodes.get(node).ok_or(Errno::STALE)?;
        Ok(held.paths.first().cloned())
    }

    /// What a name in a directory of a scope stands for.
    pub fn lookup(&self, epoch: &Epoch, dir: NodeId, name: &[u8]) -> Result<Entry> {
        let names = self.names(epoch);
        let path = names.below(dir, name)?;
        names.entry(&path)
    }

    /// The top of a scope.
    pub fn lookup_top(&self, epoch: &Epoch, scope: ScopeId) -> Result<Entry> {
        self.names(epoch).entry(&self.scopes.top_path(scope, &epoch.release.name))
    }

    /// The kernel was told of a node by a reply that is being sent.
    pub fn count_lookup(&self, node: NodeId) {
        self.nodes.lock().count_lookup(node);
    }

    /// An answer begins that may tell the kernel of nodes. Until this is dropped, after the reply, none is forgotten
    /// that was looked up for it.
    pub fn answering(&self) -> AnswerGuard<'_> {
        self.in_flight.begin()
    }

    /// The kernel forgot a node.
    pub fn forget(&self, node: NodeId, times: u64) {
        let many = self.nodes.lock().forget(node, times);
        // Many at once, while others are answered, are left to the next time.
        if !many {
            self.sweep();
        }
    }

    /// Lets go of what the kernel forgot.
    pub fn sweep(&self) {
        let mut orphans = Vec::new();
        self.nodes.lock().sweep(|node, scope, orphan| {
            self.files.forget(node);
            orphans.extend(orphan.map(|orphan| (scope, orphan)));
        });
        orphans.iter().for_each(|(scope, orphan)| self.let_go(*scope, orphan));
    }

    /// The attributes of a node.
    pub fn getattr(&self, epoch: &Epoch, node: NodeId) -> Result<(Attr, Ttl)> {
        let names = self.names(epoch);
        let attr = names.attr_of(node)?;
        let path = self.path(node)?;
        Ok((attr, path.map_or(Ok(Ttl::Zero), |path| names.ttl_of_attr(node, &path))?))
    }

    /// A symlink's target.
    pub fn readlink(&self, epoch: &Epoch, node: NodeId) -> Result<Vec<u8>> {
        let backing = self.names(epoch).backing(node)?;
        match backing {
            Backing::Lower { release, index, .. } => Ok(release.manifest.target(index)?.to_vec()),
            // Of the very symlink, which may have lost its name to another one.
            Backing::Upper(_) => Ok(rustix::fs::readlinkat(self.handle(node)?, "", Vec::new())?.into_bytes()),
            Backing::Dir => Err(Errno::INVAL.into()),
        }
    }
}
