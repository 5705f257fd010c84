//! The writable layer, as the mount serves it.
//!
//! **Locks.** A change of names claims its directories in `namespace`, and holds the claim over disk work: only other
//! changes wait for it. `nodes` is taken inside, for an instant; inside that, the locks of `descriptors`, `writeback`,
//! `truncations` and `mount`. No look and no change waits for a disk or for the kernel with one of those held. Looking
//! claims nothing. src/lib.rs has the table.

mod arrival;
mod attrs;
mod content;
mod copies;
mod descriptors;
mod entries;
mod limits;
mod listing;
mod lookup;
mod mutate;
mod namespace;
mod node;
mod nodes;
mod own;
mod reaper;
mod removed;
mod scopes;
mod shadow;
mod times;
mod truncation;
mod writeback;

pub use attrs::Changes;
pub use content::{Reading, SetBits, Source, Writing};
pub use copies::LargeCopies;
pub(crate) use entries::Window;
pub use mutate::{New, Permissions};
pub use nodes::Unused;
pub use scopes::{ScopeId, Scopes};
pub use shadow::{How, KnownName, Restoration, Restored, shown_at};

use super::attr::{Attr, Entry, Ttl};
use super::contents::Contents;
use super::epoch::{Epoch, Release};
use super::mount::Mount;
use super::refused::{Refused, Why};
use crate::error::{Errno, Error, OnDisk, Result};
use crate::store::media::home::{FileId, Home};
use crate::store::media::scope::Scope;
use crate::tree::union::{Layers, Name};
use crate::tree::{Kind, LayerPath, Node, NodeId, ReleaseName, Tree, split};
use descriptors::{Descriptors, is_lost};
use limits::Usage;
use lookup::Visible;
use namespace::Namespace;
use node::{Backing, Held};
use nodes::Nodes;
use parking_lot::{Condvar, Mutex};
use reaper::Litter;
use rustix::fs::{Stat, StatVfs};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use truncation::Truncations;
use writeback::Writeback;

/// Who asks: in whose name the disk work is done.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// The thread, as the kernel numbers it.
    pub thread: u32,
    /// Whether what is refused to it is noted: not while a change is only planned.
    pub notes: bool,
}

impl Caller {
    /// The daemon, or a command, by itself.
    pub const ROOT: Self = Self { uid: 0, gid: 0, thread: 0, notes: true };
}

/// A change that is asked for: what it is seen against, and in whose name it is done.
#[derive(Clone, Copy, Debug)]
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

/// How long a look waits for a step that is between two places, at a time.
const STEP: Duration = Duration::from_millis(5);

/// Called when somebody changed a file behind the mount.
type Notice = Box<dyn Fn(NodeId) + Send + Sync>;

/// The scopes of a mount.
pub struct Media {
    /// Where they are and what holds in them.
    pub scopes: Scopes,
    home: Home,
    namespace: Namespace,
    nodes: Mutex<Nodes>,
    /// A step was noted in the nodes.
    noted: Condvar,
    mount: Arc<Mount>,
    descriptors: Descriptors,
    truncations: Truncations,
    writeback: Writeback,
    litter: Litter,
    /// How the top of each scope looked last, by its path.
    tops: Mutex<HashMap<ScopeId, (LayerPath, Attr)>>,
    notice: OnceLock<Notice>,
    refused: Arc<Refused>,
    usage: Usage,
    rights: Rights,
}

impl std::fmt::Debug for Media {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Media").field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

/// What the layers have at a path.
struct Layered {
    layers: Layers,
    stat: Option<Stat>,
    /// Of an upper leaf.
    id: Option<FileId>,
    lower: Option<Lower>,
}

impl Layered {
    fn name<'p>(&self, path: &'p LayerPath) -> Name<'p> {
        Name { path, layers: self.layers }
    }
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
        let mount = Arc::new(Mount::default());
        Self {
            scopes: Scopes::new(scopes),
            home,
            namespace: Namespace::default(),
            nodes: Mutex::new(Nodes::new(mount.clone())),
            noted: Condvar::new(),
            mount,
            descriptors: Descriptors::default(),
            truncations: Truncations::default(),
            writeback: Writeback::default(),
            litter: Litter::default(),
            tops: Mutex::default(),
            notice: OnceLock::new(),
            refused,
            usage: Usage::default(),
            rights,
        }
    }

    /// Has `notice` called for each file that somebody changed behind the mount.
    pub fn on_change_behind(&self, notice: impl Fn(NodeId) + Send + Sync + 'static) {
        let _ = self.notice.set(Box::new(notice));
    }

    fn changed_behind(&self, node: NodeId) {
        if let Some(notice) = self.notice.get() {
            notice(node);
        }
    }

    /// Makes what is missing of a release's own layer.
    pub fn make_own_layer(&self, release: &ReleaseName, scopes: &[Scope]) -> Result<()> {
        self.home.make_own_layer(release, scopes)
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

    /// A write that is refused at a path of the docroot, noted.
    fn refuse<T>(&self, path: &[u8], caller: Caller, why: Why) -> Result<T> {
        if caller.notes {
            self.refused.note(path, caller.uid, why);
        }
        Err(match why {
            Why::Outside => Error::Refused,
            Why::Denied => Error::answer(Errno::ACCESS),
            Why::Limit => Error::answer(Errno::DQUOT),
        })
    }

    /// Whether something of this name may be made.
    fn may_make(&self, path: &LayerPath, caller: Caller) -> Result<()> {
        let rules = self.scopes.rules(self.scopes.of(path.in_docroot())?);
        match rules.deny.denies(path.name()) {
            true => self.refuse(path.in_docroot(), caller, Why::Denied),
            false => Ok(()),
        }
    }

    /// Whether the content of a node may be changed: by none of its names that are known is it denied. Through one that
    /// is not denied, what a denied one shows would be changed as well.
    fn may_change(&self, node: NodeId, caller: Caller) -> Result<()> {
        let scope = self.nodes.lock().get(node).ok_or(Error::answer(Errno::STALE))?.scope;
        let rules = self.scopes.rules(scope);
        if rules.deny.is_empty() {
            return Ok(());
        }
        let denied = self.nodes.lock().find_name(node, |name| rules.deny.denies(name))?;
        match denied {
            Some(path) => self.refuse(path.in_docroot(), caller, Why::Denied),
            None => Ok(()),
        }
    }

    /// Room on the disk of media.
    pub fn room(&self) -> Result<StatVfs> {
        self.home.room()
    }

    /// Keeps room for removals, as long as there is any.
    pub fn keep_reserve(&self) {
        self.home.keep_reserve();
    }

    /// Whether the disk takes changes: makes one that nobody sees.
    pub fn try_change(&self) -> Result<()> {
        self.home.try_change()
    }

    /// Files and symlinks of releases that the kernel holds in scopes: the release, and their number there.
    pub fn held_of_releases(&self) -> Vec<(Arc<Release>, u32)> {
        self.nodes.lock().held_of_releases()
    }

    /// What is known of a node.
    fn node(&self, node: NodeId) -> Result<Held> {
        self.nodes.lock().held(node)
    }

    /// Where a node lies, as a message names it.
    fn shown(&self, node: NodeId) -> Vec<u8> {
        match self.nodes.lock().path(node) {
            Ok(Some(path)) => self.home.show(&path),
            _ => b"a file without a name".to_vec(),
        }
    }

    /// Does something by a name of a node. The name may move on meanwhile: then it is done by where the node is now.
    /// A name that leads to it no more, because of a change behind the mount, is dropped if the file has others.
    fn by_name<T>(&self, node: NodeId, work: impl Fn(&Held) -> Result<T>) -> Result<T> {
        loop {
            let held = self.node(node)?;
            let error = match work(&held) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if !is_lost(&error) {
                return Err(error);
            }
            let mut nodes = self.nodes.lock();
            let now = nodes.held(node)?;
            let (moving, names) = nodes.get(node).map_or((false, 0), |now| (now.moving > 0, now.names.len()));
            let dir = held.path.as_ref().map(LayerPath::parent);
            if moving || dir.is_some_and(|dir| nodes.is_moving(&dir)) {
                self.noted.wait_for(&mut nodes, STEP);
            } else if now.same_place(&held) {
                match (&held.path, &held.orphan) {
                    (Some(path), None) if names > 1 => nodes.lose_name(node, path),
                    _ => return Err(error),
                }
            }
        }
    }

    /// Waits a moment for a step that has left one place and is not noted at the other.
    fn wait_for_a_step(&self) {
        self.noted.wait_for(&mut self.nodes.lock(), STEP);
    }

    /// The device that a node lies on: which disk a request for it waits for.
    pub fn disk_of(&self, node: NodeId) -> u64 {
        self.nodes.lock().get(node).map_or(self.home.device(), |held| held.disk)
    }

    /// The same for a request that only looks: what a release holds of a node waits for no disk of the writable layer.
    pub fn disk_to_look(&self, node: NodeId) -> Option<u64> {
        match self.nodes.lock().get(node) {
            Some(held) if matches!(held.backing, Backing::Lower { .. }) => None,
            Some(held) => Some(held.disk),
            None => Some(self.home.device()),
        }
    }

    /// What a name in a directory of a scope stands for.
    pub fn lookup(&self, epoch: &Epoch, dir: NodeId, name: &[u8]) -> Result<Entry> {
        let entry = Visible { media: self, epoch }.entry_in(dir, name)?;
        self.hold_file(&entry);
        Ok(entry)
    }

    /// The top of a scope.
    pub fn lookup_top(&self, epoch: &Epoch, scope: ScopeId) -> Result<Entry> {
        let path = self.scopes.top_path(scope, &epoch.release.name);
        let entry = Visible { media: self, epoch }.entry(&path)?;
        if let Some(attr) = entry.attr {
            self.tops.lock().insert(scope, (path, attr));
        }
        Ok(entry)
    }

    /// The top of a scope as a listing shows it: as it looked last, if anybody looked. So no disk is asked, and nothing
    /// of it may be believed.
    pub(crate) fn list_top(&self, epoch: &Epoch, scope: ScopeId) -> Result<Entry> {
        let path = self.scopes.top_path(scope, &epoch.release.name);
        let remembered = self.tops.lock().get(&scope).filter(|(of, _)| *of == path).map(|(_, attr)| *attr);
        let Some(attr) = remembered else { return self.lookup_top(epoch, scope) };
        let mut nodes = self.nodes.lock();
        let disk = nodes.disk_of(&path).unwrap_or(self.home.device());
        let settled = nodes.settle(&path, (scope, disk), Backing::Dir, Some(path.dir_node()));
        drop(nodes);
        let Some((node, lookup)) = settled else { return self.lookup_top(epoch, scope) };
        let attr = Some(Attr { node, ..attr });
        Ok(Entry { attr, entry_ttl: Ttl::Zero, attr_ttl: Ttl::Zero, lookup: Some(lookup) })
    }

    /// Whether anybody looked at the top of a scope.
    pub(crate) fn remembers_top(&self, epoch: &Epoch, scope: ScopeId) -> bool {
        let path = self.scopes.top_path(scope, &epoch.release.name);
        self.tops.lock().get(&scope).is_some_and(|(of, _)| *of == path)
    }

    /// The attributes of a node.
    pub fn getattr(&self, epoch: &Epoch, node: NodeId) -> Result<(Attr, Ttl)> {
        let visible = Visible { media: self, epoch };
        let attr = visible.attr_of(node)?;
        let path = self.nodes.lock().path(node)?;
        Ok((attr, path.map_or(Ok(Ttl::Zero), |path| visible.ttl_of_attr(&attr, &path))?))
    }

    /// The number by which the kernel knows a directory.
    pub fn number_of_dir(&self, dir: &LayerPath) -> NodeId {
        self.nodes.lock().number_of_dir(dir)
    }

    /// A symlink's target.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        match self.node(node)?.backing {
            Backing::Lower { release, index, .. } => Ok(release.manifest.target(index)?.to_vec()),
            // Of the very symlink, which may have lost its name to another one.
            Backing::Upper(_) => {
                let target = rustix::fs::readlinkat(self.handle(node)?, "", Vec::new());
                target.map(|target| target.into_bytes()).on_disk("reading", || self.shown(node))
            }
            Backing::Dir => Err(Error::answer(Errno::INVAL)),
            Backing::Gone => Err(Error::answer(Errno::STALE)),
        }
    }
}
