//! What names in scopes stand for: the layers are looked at, and the table of nodes gives the node.

use super::nodes::{Backing, Print, media_of, pure_of_file, release_node};
use super::{Looked, Lower, Names};
use crate::error::{Errno, Result};
use crate::fs::attr::{Attr, Entry, Ttl, Type};
use crate::fs::epoch::Release;
use crate::store::active::stamps::Stamp;
use crate::store::media::home::{FileId, Whiteout, docroot_path, split, upper_kind};
use crate::tree::union::{Layers, Name, Shown, UpperKind};
use crate::tree::{Kind, NodeId, Owner, Tree};
use rustix::fs::{FileType, Stat};
use std::sync::Arc;

impl Names<'_> {
    /// The path of a name in a directory node.
    pub(super) fn below(&self, dir: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let dir = self.media.dir_path(dir)?;
        Ok([&dir[..], name].join(&b'/'))
    }

    /// What the layers have at a path.
    pub(super) fn look(&self, path: &[u8]) -> Result<Looked> {
        let (stat, beneath_leaf) = self.media.home.find(path)?;
        let whiteout = self.media.home.whiteout(path)?;
        let lower = match self.release_of(path).filter(|_| whiteout != Whiteout::Above && !beneath_leaf) {
            Some(release) => match release.manifest.find_path(docroot_path(path).1)? {
                Some(index) => Some(Lower { release: release.clone(), index, node: release.manifest.node(index)? }),
                None => None,
            },
            None => None,
        };
        let layers = Layers {
            upper: stat.as_ref().map(upper_kind),
            whiteout: whiteout == Whiteout::Here,
            lower: lower.as_ref().map(|lower| lower.node.kind),
        };
        Ok(Looked { layers, stat, lower })
    }

    /// The release that shows through at a path: the active one, or the one whose own layer it is.
    pub(super) fn release_of(&self, path: &[u8]) -> Option<&Arc<Release>> {
        match docroot_path(path).0 {
            None => Some(&self.epoch.release),
            Some(name) => self.epoch.named(name),
        }
    }

    pub(super) fn name<'p>(&self, path: &'p [u8]) -> Result<Name<'p>> {
        Ok(Name { path, layers: self.look(path)?.layers })
    }

    /// What a path stands for, with the TTLs that hold for it.
    pub(super) fn entry(&self, path: &[u8]) -> Result<Entry> {
        let attr = self.resolve(path)?;
        let (dir, name) = split(docroot_path(path).1);
        let entry_ttl = match self.epoch.changes(NodeId::of_dir(dir), name) {
            true => Ttl::Zero,
            false => self.ttl(path)?,
        };
        // Nothing in a directory that is gone itself: it may come back with something there.
        let gone = attr.is_none() && entry_ttl == Ttl::Forever && !self.is_there(split(path).0)?;
        let attr_ttl = attr.map_or(Ok(Ttl::Zero), |attr| self.ttl_of_attr(attr.node, path))?.min(entry_ttl);
        Ok(Entry { attr, entry_ttl: if gone { Ttl::Zero } else { entry_ttl }, attr_ttl })
    }

    fn is_there(&self, path: &[u8]) -> Result<bool> {
        Ok(self.look(path)?.layers.shown() != Shown::Nothing)
    }

    /// How long what is said of a path may be believed: not at all in the layer of a release that is not active.
    fn ttl(&self, path: &[u8]) -> Result<Ttl> {
        match docroot_path(path).0 {
            Some(release) if release != self.epoch.release.name.as_str().as_bytes() => Ok(Ttl::Zero),
            _ => Ok(self.media.scopes.rules(self.media.scopes.of(path)?).ttl),
        }
    }

    pub(super) fn ttl_of_attr(&self, node: NodeId, path: &[u8]) -> Result<Ttl> {
        if self.epoch.is_uncertain(release_node(node)) { Ok(Ttl::Zero) } else { self.ttl(path) }
    }

    /// The node at a path, and its attributes.
    pub(super) fn resolve(&self, path: &[u8]) -> Result<Option<Attr>> {
        let looked = self.look(path)?;
        let (backing, pure) = match (looked.layers.shown(), &looked.stat, &looked.lower) {
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
        let mut nodes = self.media.nodes.lock();
        let node = nodes.settle(path, scope, backing, pure);
        let orphan = nodes.found_again(node);
        drop(nodes);
        if let Some(orphan) = orphan {
            // Its name among the orphans would count as a link.
            self.media.home.drop_orphan(&orphan);
            return self.attr(node, path, &self.look(path)?).map(Some);
        }
        self.attr(node, path, &looked).map(Some)
    }

    /// A file that is known under other names: it may be a second name of it, or it was renamed behind the mount, or it
    /// was removed there and the disk gave its number to a new file.
    fn check_names(&self, path: &[u8], id: FileId, stat: &Stat) -> Result<()> {
        let (node, names) = {
            let nodes = self.media.nodes.lock();
            let Some(node) = nodes.elsewhere(id, path) else { return Ok(()) };
            (node, nodes.get(node).map_or(Vec::new(), |held| held.paths.clone()))
        };
        let mut gone = Vec::new();
        for name in names {
            if self.media.home.stat(&name)?.is_none_or(|stat| FileId::of(&stat) != id) {
                gone.push(name);
            }
        }
        let mut nodes = self.media.nodes.lock();
        let Some(held) = nodes.get(node) else { return Ok(()) };
        if held.orphan.is_none()
            && gone.len() == held.paths.len()
            && !held.print.is_some_and(|was| same_content(was, stat))
        {
            nodes.lose_file(node);
        }
        gone.iter().for_each(|name| nodes.lose_name(node, name));
        Ok(())
    }

    pub(super) fn attr(&self, node: NodeId, path: &[u8], looked: &Looked) -> Result<Attr> {
        match (&looked.stat, &looked.lower) {
            (Some(stat), lower) => {
                let mut attr = attr_of_stat(node, stat);
                if let (Type::Dir, Some(lower), false) = (attr.kind, lower, looked.layers.whiteout)
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
    fn lower_attr(&self, manifest: &crate::store::release::manifest::Manifest, index: u32) -> Result<Attr> {
        let node = manifest.node(index)?;
        Ok(Attr { mode: node.mode, ..Attr::of(&node, self.epoch.mtime(&node)) })
    }

    pub(super) fn backing(&self, node: NodeId) -> Result<Backing> {
        Ok(self.media.nodes.lock().get(node).ok_or(Errno::STALE)?.backing.clone())
    }

    /// The attributes of a node, wherever it is now.
    pub(super) fn attr_of(&self, node: NodeId) -> Result<Attr> {
        let held = self.media.nodes.lock().get(node).cloned().ok_or(Errno::STALE)?;
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
            (Backing::Upper(_), _, Some(orphan)) => Ok(attr_of_stat(node, &self.media.home.stat_orphan(orphan)?)),
            (Backing::Upper(id), Some(path), None) => match self.media.home.stat(path)? {
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
        let mut nodes = self.media.nodes.lock();
        let Some(held) = nodes.get_mut(node).filter(|held| held.changing == 0) else { return };
        if held.print == Some(print_of(stat)) {
            return;
        }
        // The look may be older than our last change. With the nodes locked no change of ours can begin, so this
        // one tells.
        let Ok(Some(now)) = self.media.home.stat(path) else { return };
        let before = held.print.replace(print_of(&now));
        if before.is_some_and(|before| before != print_of(&now)) {
            self.media.files.changed_behind(node);
        }
    }
}

/// What tells two states of a file apart.
pub(super) fn print_of(stat: &Stat) -> Print {
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
