//! The writable layer, as the mount serves it.
//!
//! **Locks.** `names` orders everything that looks at names or changes them, disk work included; no handler that
//! holds it waits for the kernel. `table` is taken inside it, for an instant. Neither is taken under the view lock.

mod answers;
mod data;
mod hidden;
mod names;
mod scopes;
mod table;
mod truncation;
mod usage;

pub use answers::Answering;
pub use data::{Changes, Reading, Writing};
pub use hidden::{How, Restored};
pub use names::{New, Permissions};
pub use scopes::{ScopeId, Scopes};
pub use table::{is_media, media_of};

use super::attr::{Attr, Entry, Ttl, Type};
use super::content::Descriptors;
use super::refused::{Refused, Why};
use super::view::{Release, View};
use crate::error::{Errno, Result};
use crate::store::scope::Scope;
use crate::store::stamps::Stamp;
use crate::store::upper::{FileId, Orphan, Upper, docroot_path, split, upper_kind};
use crate::tree::union::{Place, Says, Shown, Upper as UpperKind};
use crate::tree::{Kind, Node, NodeId, Owner, Tree};
use answers::Answers;
use data::Files;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{FileType, Stat};
use std::fs::File;
use std::sync::Arc;
use table::{Backing, MediaNode, Print, Table, pure_of_file, release_node};
use usage::{Growth, Usage, disk_bytes};

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

/// A change that is asked for: what it is seen against, and in whose name it is done.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// The view that it is seen against.
    pub view: &'a View,
    /// The contents of releases, for copies.
    pub contents: &'a Descriptors,
    /// Who asks.
    pub caller: Caller,
}

/// What decides who may do what in scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Modes.
    Modes,
    /// Modes and access lists (POSIX ACLs).
    Lists,
}

/// The scopes of a mount.
#[derive(Debug)]
pub struct Media {
    /// Where they are and what holds in them.
    pub scopes: Scopes,
    upper: Upper,
    names: Mutex<()>,
    table: Mutex<Table>,
    answers: Arc<Answers>,
    files: Files,
    refused: Arc<Refused>,
    usage: Usage,
    rights: Rights,
}

/// Held while names are looked at or changed.
struct Names<'a> {
    media: &'a Media,
    view: &'a View,
    _guard: MutexGuard<'a, ()>,
}

/// What is at a path: what the layers say, and what they say it of.
struct Looked {
    says: Says,
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
    pub fn new(scopes: &[Scope], upper: Upper, refused: Arc<Refused>, rights: Rights) -> Self {
        let table = Table::default();
        Self {
            scopes: Scopes::new(scopes),
            upper,
            names: Mutex::new(()),
            answers: table.answers.clone(),
            table: Mutex::new(table),
            files: Files::default(),
            refused,
            usage: Usage::default(),
            rights,
        }
    }

    /// Whether the writable layer hides what a release has at this path.
    pub fn hides(&self, path: &[u8]) -> Result<bool> {
        let (whiteout, hidden) = self.upper.whiteout(path)?;
        Ok(whiteout || hidden || self.upper.stat(path)?.is_some_and(|stat| upper_kind(&stat) == UpperKind::Leaf))
    }

    /// Whether access lists decide.
    pub fn uses_lists(&self) -> bool {
        self.rights == Rights::Lists
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
            Why::Outside => Errno::ROFS,
            Why::Denied => Errno::ACCESS,
            Why::Limit => Errno::DQUOT,
        }
        .into())
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
    fn grow(&self, node: NodeId, caller: Caller, file: &Arc<File>, end: u64) -> Result<Option<Growth<'_>>> {
        let (scope, path) = {
            let table = self.table.lock();
            let held = table.get(node).ok_or(Errno::STALE)?;
            (held.scope, held.paths.first().cloned())
        };
        let Some(limit) = self.scopes.rules(scope).limit else { return Ok(None) };
        let stat = rustix::fs::fstat(&**file)?;
        let more = end.saturating_sub(stat.st_size as u64);
        if more > 0 && !self.usage.fits(scope, limit, more) {
            let path = path.unwrap_or_else(|| self.scopes.path(scope).to_vec());
            return self.refuse(&path, caller, Why::Limit);
        }
        Ok(Some(Growth { usage: &self.usage, scope, file: file.clone(), before: disk_bytes(&stat) }))
    }

    /// Nobody can reach an unlinked file any more.
    fn let_go(&self, scope: ScopeId, orphan: &Orphan) {
        if self.scopes.rules(scope).limit.is_some()
            && let Ok(stat) = self.upper.stat_orphan(orphan)
            && stat.st_nlink == 0
        {
            self.usage.add(scope, -disk_bytes(&stat));
        }
        self.upper.drop_orphan(orphan);
    }

    /// Measures what scopes with a limit take on disk, where that is due.
    pub fn measure(&self) {
        self.usage.measure(&self.scopes, |scope| match self.scopes.is_per_release(scope) {
            false => self.upper.disk_usage(self.scopes.path(scope)),
            true => self.upper.own_disk_usage(self.scopes.path(scope)),
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

    fn names<'a>(&'a self, view: &'a View) -> Names<'a> {
        Names { media: self, view, _guard: self.names.lock() }
    }

    /// Files of releases that the kernel holds in scopes: the release, and their number there.
    pub fn held_of_releases(&self) -> Vec<(Arc<Release>, u32)> {
        self.table.lock().held_of_releases()
    }

    /// What is known of a node.
    fn node(&self, node: NodeId) -> Result<MediaNode> {
        self.table.lock().get(node).cloned().ok_or_else(|| Errno::STALE.into())
    }

    /// The path of a directory node.
    fn dir_path(&self, dir: NodeId) -> Result<Vec<u8>> {
        self.path(dir)?.ok_or_else(|| Errno::NOENT.into())
    }

    /// A path of a node; `None` if it has none any more.
    fn path(&self, node: NodeId) -> Result<Option<Vec<u8>>> {
        let table = self.table.lock();
        let held = table.get(node).ok_or(Errno::STALE)?;
        Ok(held.paths.first().cloned())
    }

    /// What a name in a directory of a scope stands for.
    pub fn lookup(&self, view: &View, dir: NodeId, name: &[u8]) -> Result<Entry> {
        let names = self.names(view);
        let path = names.below(dir, name)?;
        names.entry(&path)
    }

    /// The top of a scope.
    pub fn lookup_top(&self, view: &View, scope: ScopeId) -> Result<Entry> {
        self.names(view).entry(&self.scopes.top_path(scope, &view.release.name))
    }

    /// The kernel was told of a node by a reply that is being sent.
    pub fn told(&self, node: NodeId) {
        self.table.lock().told(node);
    }

    /// An answer begins that may tell the kernel of nodes. Until this is dropped, after the reply, none is forgotten
    /// that was looked up for it.
    pub fn answering(&self) -> Answering<'_> {
        self.answers.begin()
    }

    /// The kernel forgot a node.
    pub fn forget(&self, node: NodeId, times: u64) {
        let many = self.table.lock().forget(node, times);
        // Many at once, while others are answered, are left to the next time.
        if !many {
            self.sweep();
        }
    }

    /// Lets go of what the kernel forgot.
    pub fn sweep(&self) {
        let mut orphans = Vec::new();
        self.table.lock().sweep(|node, scope, orphan| {
            self.files.forget(node);
            orphans.extend(orphan.map(|orphan| (scope, orphan)));
        });
        orphans.iter().for_each(|(scope, orphan)| self.let_go(*scope, orphan));
    }

    /// The attributes of a node.
    pub fn getattr(&self, view: &View, node: NodeId) -> Result<(Attr, Ttl)> {
        let names = self.names(view);
        let attr = names.attr_of(node)?;
        let path = self.path(node)?;
        Ok((attr, path.map_or(Ok(Ttl::Zero), |path| names.ttl_of_attr(node, &path))?))
    }

    /// A symlink's target.
    pub fn readlink(&self, view: &View, node: NodeId) -> Result<Vec<u8>> {
        let backing = self.names(view).backing(node)?;
        match backing {
            Backing::Lower { release, index, .. } => Ok(release.manifest.target(index)?.to_vec()),
            // Of the very symlink, which may have lost its name to another one.
            Backing::Upper(_) => Ok(rustix::fs::readlinkat(self.handle(node)?, "", Vec::new())?.into_bytes()),
            Backing::Dir => Err(Errno::INVAL.into()),
        }
    }
}

impl Names<'_> {
    /// The path of a name in a directory node.
    fn below(&self, dir: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let dir = self.media.dir_path(dir)?;
        Ok([&dir[..], name].join(&b'/'))
    }

    /// What the layers have at a path.
    fn look(&self, path: &[u8]) -> Result<Looked> {
        let (stat, beneath_leaf) = self.media.upper.find(path)?;
        let (whiteout, hidden) = self.media.upper.whiteout(path)?;
        let lower = match self.release_of(path).filter(|_| !hidden && !beneath_leaf) {
            Some(release) => match release.manifest.find_path(docroot_path(path).1)? {
                Some(index) => Some(Lower { release: release.clone(), index, node: release.manifest.node(index)? }),
                None => None,
            },
            None => None,
        };
        let says =
            Says { upper: stat.as_ref().map(upper_kind), whiteout, lower: lower.as_ref().map(|lower| lower.node.kind) };
        Ok(Looked { says, stat, lower })
    }

    /// The release that shows through at a path: the active one, or the one whose own layer it is.
    fn release_of(&self, path: &[u8]) -> Option<&Arc<Release>> {
        match docroot_path(path).0 {
            None => Some(&self.view.release),
            Some(name) => self.view.named(name),
        }
    }

    fn place<'p>(&self, path: &'p [u8]) -> Result<Place<'p>> {
        Ok(Place { path, says: self.look(path)?.says })
    }

    /// What a path stands for, with the TTLs that hold for it.
    fn entry(&self, path: &[u8]) -> Result<Entry> {
        let attr = self.resolve(path)?;
        let (dir, name) = split(docroot_path(path).1);
        let entry_ttl = match self.view.changes(NodeId::of_dir(dir), name) {
            true => Ttl::Zero,
            false => self.ttl(path)?,
        };
        // Nothing in a directory that is gone itself: it may come back with something there.
        let gone = attr.is_none() && entry_ttl == Ttl::Forever && !self.is_there(split(path).0)?;
        let attr_ttl = attr.map_or(Ok(Ttl::Zero), |attr| self.ttl_of_attr(attr.node, path))?.min(entry_ttl);
        Ok(Entry { attr, entry_ttl: if gone { Ttl::Zero } else { entry_ttl }, attr_ttl })
    }

    fn is_there(&self, path: &[u8]) -> Result<bool> {
        Ok(self.look(path)?.says.shown() != Shown::Nothing)
    }

    /// How long what is said of a path may be believed: not at all in the layer of a release that is not active.
    fn ttl(&self, path: &[u8]) -> Result<Ttl> {
        match docroot_path(path).0 {
            Some(release) if release != self.view.release.name.as_str().as_bytes() => Ok(Ttl::Zero),
            _ => Ok(self.media.scopes.rules(self.media.scopes.of(path)?).ttl),
        }
    }

    fn ttl_of_attr(&self, node: NodeId, path: &[u8]) -> Result<Ttl> {
        if self.view.touches(release_node(node)) { Ok(Ttl::Zero) } else { self.ttl(path) }
    }

    /// The node at a path, and its attributes.
    fn resolve(&self, path: &[u8]) -> Result<Option<Attr>> {
        let looked = self.look(path)?;
        let (backing, pure) = match (looked.says.shown(), &looked.stat, &looked.lower) {
            (Shown::Nothing, ..) => return Ok(None),
            (Shown::Upper(UpperKind::Leaf), Some(stat), _) => {
                let id = FileId::of(stat);
                self.check_names(path, id, stat)?;
                (Backing::Upper(id), pure_of_file(id))
            }
            (Shown::Lower(Kind::File | Kind::Symlink), _, Some(Lower { release, index, node })) => {
                let backing = Backing::Lower { release: release.clone(), index: *index, node: node.nodeid };
                (backing, media_of(node.nodeid))
            }
            _ => (Backing::Dir, media_of(NodeId::of_dir(path))),
        };
        let scope = self.media.scopes.of(path)?;
        let mut table = self.media.table.lock();
        let node = table.settle(path, scope, backing, pure);
        let orphan = table.found_again(node);
        drop(table);
        if let Some(orphan) = orphan {
            // Its name among the orphans would count as a link.
            self.media.upper.drop_orphan(&orphan);
            return self.attr(node, path, &self.look(path)?).map(Some);
        }
        self.attr(node, path, &looked).map(Some)
    }

    /// A file that is known under other names: it may be a second name of it, or it was renamed behind the mount, or it
    /// was removed there and the disk gave its number to a new file.
    fn check_names(&self, path: &[u8], id: FileId, stat: &Stat) -> Result<()> {
        let (node, names) = {
            let table = self.media.table.lock();
            let Some(node) = table.elsewhere(id, path) else { return Ok(()) };
            (node, table.get(node).map_or(Vec::new(), |held| held.paths.clone()))
        };
        let mut gone = Vec::new();
        for name in names {
            if self.media.upper.stat(&name)?.is_none_or(|stat| FileId::of(&stat) != id) {
                gone.push(name);
            }
        }
        let mut table = self.media.table.lock();
        let Some(held) = table.get(node) else { return Ok(()) };
        if held.orphan.is_none()
            && gone.len() == held.paths.len()
            && !held.print.is_some_and(|was| same_content(was, stat))
        {
            table.lose_file(node);
        }
        gone.iter().for_each(|name| table.lose_name(node, name));
        Ok(())
    }

    fn attr(&self, node: NodeId, path: &[u8], looked: &Looked) -> Result<Attr> {
        match (&looked.stat, &looked.lower) {
            (Some(stat), lower) => {
                let mut attr = attr_of_stat(node, stat);
                if let (Type::Dir, Some(lower), false) = (attr.kind, lower, looked.says.whiteout)
                    && lower.node.kind == Kind::Dir
                {
                    // A merged directory changed when the later of its layers did.
                    let lower = self.lower_attr(&lower.release.manifest, lower.index)?;
                    attr.mtime = attr.mtime.max(lower.mtime);
                    attr.ctime = attr.ctime.max(lower.mtime);
                }
                self.notice(node, path, stat);
                Ok(attr)
            }
            (None, Some(lower)) => {
                let attr = self.lower_attr(&lower.release.manifest, lower.index)?;
                Ok(Attr { node, ..attr })
            }
            (None, None) => Err(Errno::NOENT.into()),
        }
    }

    /// A file of a release in a scope keeps its write bits: it can be written to, by being copied up.
    fn lower_attr(&self, manifest: &crate::store::manifest::Manifest, index: u32) -> Result<Attr> {
        let node = manifest.node(index)?;
        let stamp = self.view.stamps.get(node.nodeid, self.view.switch);
        let mtime = stamp.unwrap_or_else(|| Stamp::from_nanos(node.mtime));
        Ok(Attr { mode: node.mode, ..Attr::of(&node, mtime) })
    }

    fn backing(&self, node: NodeId) -> Result<Backing> {
        Ok(self.media.table.lock().get(node).ok_or(Errno::STALE)?.backing.clone())
    }

    /// The attributes of a node, wherever it is now.
    fn attr_of(&self, node: NodeId) -> Result<Attr> {
        let held = self.media.table.lock().get(node).cloned().ok_or(Errno::STALE)?;
        match (&held.backing, held.paths.first(), &held.orphan) {
            (Backing::Dir, Some(path), _) => match self.attr(node, path, &self.look(path)?)? {
                attr if attr.kind == Type::Dir => Ok(attr),
                // Replaced behind the mount.
                _ => Err(Errno::STALE.into()),
            },
            (Backing::Dir, None, _) => Err(Errno::NOENT.into()),
            (Backing::Lower { release, index, .. }, ..) => {
                Ok(Attr { node, ..self.lower_attr(&release.manifest, *index)? })
            }
            (Backing::Upper(_), _, Some(orphan)) => Ok(attr_of_stat(node, &self.media.upper.stat_orphan(orphan)?)),
            (Backing::Upper(id), Some(path), None) => match self.media.upper.stat(path)? {
                Some(stat) if FileId::of(&stat) == *id => {
                    self.notice(node, path, &stat);
                    Ok(attr_of_stat(node, &stat))
                }
                // Replaced or removed behind the mount.
                _ => Err(Errno::STALE.into()),
            },
            (Backing::Upper(_), None, None) => Err(Errno::STALE.into()),
        }
    }

    /// Sees whether somebody changed a file behind the mount; then its pages are dropped. They must not be for a change
    /// of our own: a reader beside the writer would find zeros that nobody wrote.
    fn notice(&self, node: NodeId, path: &[u8], stat: &Stat) {
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return;
        }
        let mut table = self.media.table.lock();
        let Some(held) = table.get_mut(node).filter(|held| held.changing == 0) else { return };
        if held.print == Some(print_of(stat)) {
            return;
        }
        // The look may be older than our last change. With the table locked no change of ours can begin, so this
        // one tells.
        let Ok(Some(now)) = self.media.upper.stat(path) else { return };
        let before = held.print.replace(print_of(&now));
        if before.is_some_and(|before| before != print_of(&now)) {
            self.media.files.changed_behind(node);
        }
    }
}

/// What tells two states of a file apart.
fn print_of(stat: &Stat) -> Print {
    (stat.st_size, stat.st_mtime, stat.st_mtime_nsec as i64, stat.st_ctime, stat.st_ctime_nsec as i64)
}

/// Whether a file that may have been renamed since holds the same as it did.
fn same_content((size, second, nanos, ..): Print, stat: &Stat) -> bool {
    (size, second, nanos) == (stat.st_size, stat.st_mtime, stat.st_mtime_nsec as i64)
}

fn attr_of_stat(node: NodeId, stat: &Stat) -> Attr {
    let stamp = |second: i64, nanos: i64| Stamp { second, nanos: nanos as u32 };
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Type::Dir,
        FileType::RegularFile => Type::File,
        FileType::Symlink => Type::Symlink,
        FileType::Fifo => Type::Fifo,
        FileType::Socket => Type::Socket,
        _ => Type::Device,
    };
    Attr {
        node,
        kind,
        mode: (stat.st_mode & 0o7777) as u16,
        owner: Owner { uid: stat.st_uid, gid: stat.st_gid },
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        links: stat.st_nlink as u32,
        atime: stamp(stat.st_atime, stat.st_atime_nsec as i64),
        mtime: stamp(stat.st_mtime, stat.st_mtime_nsec as i64),
        ctime: stamp(stat.st_ctime, stat.st_ctime_nsec as i64),
    }
}
