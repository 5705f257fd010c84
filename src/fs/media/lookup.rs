//! What names in scopes stand for: the layers are looked at, and the table of nodes gives the node.
//!
//! Looking takes no lock that a change holds over the disk. So a look is made first and checked afterwards: if a step
//! ended in its directory meanwhile, or the directory moved, the look is made again ([`Nodes::outran`]).

use super::arrival::is_own;
use super::node::{Backing, Held, Look};
use super::nodes::{Nodes, Seen};
use super::{Layered, Lower, Media};
use crate::error::{Errno, Error, OnDisk, Result};
use crate::fs::attr::{Attr, Entry, Ttl, Type};
use crate::fs::epoch::{Epoch, Release};
use crate::fs::mount::LookupRef;
use crate::store::active::stamps::Stamp;
use crate::store::media::home::{FileId, Inode, Leaf, Mark, Upper, Whiteout, upper_kind};
use crate::tree::union::{Layers, Name, Shown, UpperKind};
use crate::tree::{Kind, LayerId, LayerPath, NodeId, Owner, Tree};
use rustix::fs::{FileType, OFlags, Stat};
use std::sync::Arc;

/// The visible tree of the scopes, as of an epoch.
#[derive(Clone, Copy)]
pub(super) struct Visible<'a> {
    pub(super) media: &'a Media,
    pub(super) epoch: &'a Epoch,
}

/// What a path stands for.
pub(super) struct Resolved {
    pub(super) attr: Attr,
    lookup: LookupRef,
    /// Whether a change of its names is under way.
    moving: bool,
}

impl Visible<'_> {
    /// What the layers have at a path.
    pub(super) fn look(&self, path: &LayerPath) -> Result<Layered> {
        let lower = match self.release_of(path) {
            Some(release) => match release.manifest.find_path(path.in_docroot())? {
                Some(index) => Some(Lower { release: release.clone(), index, node: release.manifest.node(index)? }),
                None => None,
            },
            None => None,
        };
        let (stat, id, beneath_leaf) = match self.media.home.find(path)? {
            Upper::Dir(stat) => (Some(stat), None, false),
            Upper::Leaf(Leaf { id, stat }) => (Some(stat), Some(id), false),
            Upper::None => (None, None, false),
            Upper::BeneathLeaf => (None, None, true),
        };
        // It can hide only what the release has.
        let whiteout = if lower.is_some() { self.media.home.whiteout(path)? } else { Whiteout::None };
        let lower = lower.filter(|_| whiteout != Whiteout::Above && !beneath_leaf);
        let layers = Layers {
            upper: stat.as_ref().map(upper_kind),
            whiteout: whiteout == Whiteout::Here,
            lower: lower.as_ref().map(|lower| lower.node.kind),
        };
        Ok(Layered { layers, stat, id, lower })
    }

    /// The release that shows through at a path: the active one, or the one whose own layer it is.
    pub(super) fn release_of(&self, path: &LayerPath) -> Option<&Arc<Release>> {
        match path.layer() {
            LayerId::Shared => Some(&self.epoch.release),
            LayerId::Own(name) => self.epoch.named(name),
        }
    }

    pub(super) fn name<'p>(&self, path: &'p LayerPath) -> Result<Name<'p>> {
        Ok(Name { path, layers: self.look(path)?.layers })
    }

    /// What a name in a directory stands for, with the TTLs that hold for it.
    pub(super) fn entry_in(&self, dir: NodeId, name: &[u8]) -> Result<Entry> {
        let (path, resolved) = self.resolve(&|nodes: &Nodes| nodes.below(dir, name))?;
        self.entry_of(&path, resolved)
    }

    /// What a path stands for, with the TTLs that hold for it.
    pub(super) fn entry(&self, path: &LayerPath) -> Result<Entry> {
        let (path, resolved) = self.resolve(&|_: &Nodes| Ok(path.clone()))?;
        self.entry_of(&path, resolved)
    }

    fn entry_of(&self, path: &LayerPath, resolved: Option<Resolved>) -> Result<Entry> {
        let moving = resolved.as_ref().is_some_and(|resolved| resolved.moving);
        let known_as = || self.media.number_above(path);
        let dir = NodeId::of_dir(path.parent_in_docroot());
        let entry_ttl = match moving || self.epoch.changes_as(dir, path.name(), known_as) {
            true => Ttl::Zero,
            false => self.ttl(path)?,
        };
        let Some(Resolved { attr, lookup, .. }) = resolved else {
            // Nothing in a directory that is gone itself: it may come back with something there.
            let gone = entry_ttl == Ttl::Forever && !self.is_there(&path.parent())?;
            let entry_ttl = if gone { Ttl::Zero } else { entry_ttl };
            return Ok(Entry { attr: None, entry_ttl, attr_ttl: Ttl::Zero, lookup: None });
        };
        let attr_ttl = self.ttl_of_attr(&attr, path)?.min(entry_ttl);
        Ok(Entry { attr: Some(attr), entry_ttl, attr_ttl, lookup: Some(lookup) })
    }

    pub(super) fn is_there(&self, path: &LayerPath) -> Result<bool> {
        Ok(self.look(path)?.layers.shown() != Shown::Nothing)
    }

    /// How long what is said of a path may be believed: not at all in the layer of a release that is not active.
    fn ttl(&self, path: &LayerPath) -> Result<Ttl> {
        match path.layer() {
            LayerId::Own(release) if *release != self.epoch.release.name => Ok(Ttl::Zero),
            _ => Ok(self.media.scopes.rules(self.media.scopes.of(path.in_docroot())?).ttl),
        }
    }

    pub(super) fn ttl_of_attr(&self, attr: &Attr, path: &LayerPath) -> Result<Ttl> {
        let known_as = attr.node.unscoped();
        let uncertain = match attr.kind {
            Type::Dir => self.epoch.is_uncertain_as(NodeId::of_dir(path.in_docroot()), known_as),
            _ => self.epoch.is_uncertain(known_as),
        };
        if uncertain { Ok(Ttl::Zero) } else { self.ttl(path) }
    }

    /// The number of what is seen for the first time.
    fn number_of_new(&self, path: &LayerPath, layered: &Layered, backing: &Backing) -> Result<NodeId> {
        Ok(match (backing, &layered.stat) {
            (Backing::Lower { node, .. }, _) => node.scoped(),
            (_, Some(stat)) if !self.media.scopes.is_top(path.in_docroot()) => match self.media.home.marked(path)? {
                Mark::Number(number) => number,
                Mark::Unknown if layered.layers.shown() == Shown::Merged => path.dir_node(),
                Mark::Unknown | Mark::None => self.media.home.number_of_inode(Inode::of(stat), upper_kind(stat)),
            },
            _ => path.dir_node(),
        })
    }

    /// The path that `path_of` gives, and what it stands for.
    pub(super) fn resolve(
        &self,
        path_of: &dyn Fn(&Nodes) -> Result<LayerPath>,
    ) -> Result<(LayerPath, Option<Resolved>)> {
        loop {
            let nodes = self.media.nodes.lock();
            let path = path_of(&nodes)?;
            let seen = nodes.seen(path.parent());
            drop(nodes);
            match self.resolve_once(&path, &seen)? {
                Attempt::Sure(resolved) => return Ok((path, resolved)),
                Attempt::Outran => {}
                Attempt::Between => self.media.wait_for_a_step(),
            }
        }
    }

    fn resolve_once(&self, path: &LayerPath, seen: &Seen) -> Result<Attempt> {
        let mut layered = self.look(path)?;
        let backing = match (layered.layers.shown(), layered.stat.as_ref().zip(layered.id), &layered.lower) {
            (Shown::Nothing, ..) => return self.nothing_at(seen),
            (Shown::Upper(UpperKind::Leaf), Some((stat, id)), _) => {
                if !self.check_names(path, id, stat, seen)? {
                    return Ok(Attempt::Outran);
                }
                Backing::Upper(id)
            }
            (Shown::Lower(Kind::File | Kind::Symlink), _, Some(Lower { release, index, node })) => {
                Backing::Lower { release: release.clone(), index: *index, node: node.nodeid }
            }
            _ => Backing::Dir,
        };
        let scope = self.media.scopes.of(path.in_docroot())?;
        let mut number = None;
        let (mut nodes, node, lookup) = loop {
            let mut nodes = self.media.nodes.lock();
            if nodes.outran(seen) {
                return Ok(Attempt::Outran);
            }
            let disk = match &layered.stat {
                Some(stat) => stat.st_dev,
                None => nodes.disk_of(&seen.dir).unwrap_or(self.media.home.device()),
            };
            if let Some((node, lookup)) = nodes.settle(path, (scope, disk), backing.clone(), number) {
                break (nodes, node, lookup);
            }
            drop(nodes);
            number = Some(self.number_of_new(path, &layered, &backing)?);
        };
        let links = layered.stat.as_ref().map_or(0, |stat| stat.st_nlink);
        if nodes.miscounts(seen, links) {
            return Ok(Attempt::Outran);
        }
        let moving = nodes.get(node).is_some_and(|held| held.moving > 0);
        let orphan = nodes.found_again(node);
        drop(nodes);
        if let Some(orphan) = orphan {
            // Its name among the orphans would count as a link.
            self.media.home.drop_orphan(&orphan);
            self.media.nodes.lock().dropped_orphan(node);
            layered = self.look(path)?;
        }
        let attr = self.attr(node, path, &layered)?;
        Ok(Attempt::Sure(Some(Resolved { attr, lookup, moving })))
    }

    /// Nothing shows at a path: that is so unless its directory is being moved and has left its place already.
    fn nothing_at(&self, seen: &Seen) -> Result<Attempt> {
        let nodes = self.media.nodes.lock();
        if nodes.outran(seen) {
            return Ok(Attempt::Outran);
        }
        let moving = nodes.is_moving(&seen.dir);
        drop(nodes);
        match moving && !self.is_there(&seen.dir)? {
            true => Ok(Attempt::Between),
            false => Ok(Attempt::Sure(None)),
        }
    }

    /// A file that is known under other names: it may be a second name of it, or it was renamed behind the mount, or it
    /// was removed there and the disk gave its number to a new file. Names that lead to it no more are dropped, until
    /// one does: so each is looked at once, however many there are. False if something changed meanwhile.
    fn check_names(&self, path: &LayerPath, id: FileId, stat: &Stat, seen: &Seen) -> Result<bool> {
        let mut was = None;
        loop {
            let (node, name) = {
                let mut nodes = self.media.nodes.lock();
                let (node, held) = match nodes.elsewhere(id, path) {
                    // A step that is under way changes its names, and says how.
                    Some((node, held)) if held.moving == 0 => (node, held),
                    _ => return Ok(true),
                };
                was = was.or(held.look);
                let is_kept = held.orphan.is_some();
                match nodes.path(node)? {
                    Some(name) => (node, name),
                    None if nodes.outran(seen) => return Ok(false),
                    None => {
                        let same = was.is_some_and(|was| was.same_content(stat));
                        if !is_kept && !same && !id.is_sure() {
                            nodes.lose_file(node);
                        }
                        drop(nodes);
                        // It was moved behind the mount, and may have been changed there.
                        if !same {
                            self.media.changed_behind(node);
                        }
                        return Ok(true);
                    }
                }
            };
            if self.media.home.leaf(&name)?.is_some_and(|leaf| leaf.id == id) {
                return Ok(true);
            }
            let mut nodes = self.media.nodes.lock();
            if nodes.outran(seen) || nodes.get(node).is_none_or(|held| held.moving > 0) {
                return Ok(false);
            }
            nodes.lose_name(node, &name);
        }
    }

    pub(super) fn attr(&self, node: NodeId, path: &LayerPath, layered: &Layered) -> Result<Attr> {
        match (&layered.stat, &layered.lower) {
            (Some(stat), lower) => {
                let mut attr = self.arrived(is_own(path), attr_of_stat(node, stat));
                if let (Type::Dir, Some(lower), false) = (attr.kind, lower, layered.layers.whiteout)
                    && lower.node.kind == Kind::Dir
                {
                    attr = self.with_times_of_both(path, lower, attr)?;
                    // Those of one layer alone would be too few, and find(1) would skip the others.
                    attr.links = 1;
                }
                self.media.notice(node, path, stat);
                Ok(attr)
            }
            (None, Some(lower)) => {
                let attr = Attr { node, ..self.lower_attr(is_own(path), &lower.release, lower.index)? };
                match attr.kind {
                    Type::Dir => self.with_times_of_both(path, lower, attr),
                    _ => Ok(attr),
                }
            }
            (None, None) => Err(Error::answer(Errno::NOENT)),
        }
    }

    /// A file of a release in a scope keeps its write bits: it can be written to, by being copied up.
    fn lower_attr(&self, own: bool, release: &Release, index: u32) -> Result<Attr> {
        let node = release.manifest.node(index)?;
        Ok(self.arrived(own, Attr { mode: node.mode, ..Attr::of(&node, self.epoch.mtime(&node)) }))
    }

    /// The attributes of a node, wherever it is now.
    pub(super) fn attr_of(&self, node: NodeId) -> Result<Attr> {
        let moved = |error| {
            let file = self.media.open_moved(node, OFlags::PATH, error)?;
            let stat = rustix::fs::fstat(&file).on_disk("looking at", || self.media.shown(node))?;
            Ok(self.arrived(self.media.is_own(node)?, attr_of_stat(node, &stat)))
        };
        self.media.by_name(node, |held| self.attr_of_held(node, held)).or_else(moved)
    }

    fn attr_of_held(&self, node: NodeId, held: &Held) -> Result<Attr> {
        let own = self.media.scopes.is_per_release(held.scope);
        match (&held.backing, &held.path, &held.orphan) {
            (Backing::Dir, Some(path), _) => match self.attr(node, path, &self.look(path)?)? {
                attr if attr.kind == Type::Dir => Ok(attr),
                // Replaced behind the mount.
                _ => Err(Error::answer(Errno::STALE)),
            },
            (Backing::Dir, None, _) => self.media.removed_dir(node),
            (Backing::Lower { release, index, .. }, path, _) => {
                let attr = self.lower_attr(own, release, *index)?;
                // None after unlink(2): whoever has a lock file open learns from it that its name is gone.
                Ok(Attr { node, links: path.is_some().into(), ..attr })
            }
            (Backing::Upper(_), _, Some(orphan)) => {
                Ok(self.arrived(own, attr_of_stat(node, &self.media.home.stat_orphan(orphan)?)))
            }
            (Backing::Upper(id), Some(path), None) => match self.media.home.leaf(path)? {
                Some(leaf) if leaf.id == *id => {
                    self.media.notice(node, path, &leaf.stat);
                    Ok(self.arrived(own, attr_of_stat(node, &leaf.stat)))
                }
                // Replaced, moved or removed behind the mount.
                _ => Err(Error::answer(Errno::STALE)),
            },
            (Backing::Upper(_), None, None) | (Backing::Gone, ..) => Err(Error::answer(Errno::STALE)),
        }
    }
}

/// What came of one look.
enum Attempt {
    /// What the path stood for while nothing changed.
    Sure(Option<Resolved>),
    /// A step ended meanwhile: look again.
    Outran,
    /// A directory above is on its way: look again when it has arrived.
    Between,
}

impl Media {
    /// Sees whether somebody changed a file behind the mount; then its pages are dropped. They must not be for a change
    /// of our own: a reader beside the writer would find zeros that nobody wrote.
    fn notice(&self, node: NodeId, path: &LayerPath, stat: &Stat) {
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return;
        }
        let began = {
            let nodes = self.nodes.lock();
            match nodes.get(node) {
                Some(held) if held.changing == 0 && held.look != Some(Look::of(stat)) => held.changes,
                _ => return,
            }
        };
        // That look may be older than our last change. This one is not, if no change of ours begins beside it.
        let Ok(Some(now)) = self.home.stat(path) else { return };
        if Inode::of(&now) != Inode::of(stat) {
            return;
        }
        let mut nodes = self.nodes.lock();
        let Some(held) = nodes.get_mut(node).filter(|held| held.changing == 0 && held.changes == began) else { return };
        let before = held.look.replace(Look::of(&now));
        drop(nodes);
        if before.is_some_and(|before| before != Look::of(&now)) {
            self.changed_behind(node);
        }
    }
}

fn attr_of_stat(node: NodeId, stat: &Stat) -> Attr {
    let stamp = |second: i64, nanos: i64| Stamp { second, nanos: nanos as u32 };
    Attr {
        node,
        kind: FileType::from_raw_mode(stat.st_mode).into(),
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
