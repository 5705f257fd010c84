//! Changes of names: each asks `tree::union` for a plan and carries it out, on disk and in the table of nodes.

use super::limits::disk_bytes;
use super::nodes::{Backing, MediaNode};
use super::{Lower, Media, Names, Rights, Task};
use crate::error::{Errno, Error, Result};
use crate::fault;
use crate::fs::attr::Entry;
use crate::fs::epoch::Release;
use crate::store::media::home::{COPYING, Copy, FileId, Orphan, Whiteout, docroot_path, ends, has_default_acl, split};
use crate::sys::AsCaller;
use crate::tree::union::{self, Onto, Plan, Step};
use crate::tree::{EntryName, Kind, Node, NodeId, Tree};
use rustix::fs::{FileType, Mode, OFlags};
use std::os::fd::OwnedFd;

/// What is to be made at a name.
#[derive(Clone, Copy, Debug)]
pub enum New<'a> {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symlink with this target.
    Symlink(&'a [u8]),
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
}

/// What a plan needs beside the layers.
enum Material<'a> {
    /// Nothing.
    Nothing,
    /// What makes the new entry, in its directory and by its name.
    New(&'a dyn Fn(&OwnedFd, &[u8]) -> rustix::io::Result<()>),
    /// The copy of the file that goes up, if it was made beforehand.
    Copy(Copy<'a>),
}

/// Permission bits as asked for, and the caller's umask.
#[derive(Clone, Copy, Debug)]
pub struct Permissions {
    /// Bits of the mode.
    pub mode: u32,
    /// Those that go, unless the directory hands down an access list (umask(2)).
    pub umask: u32,
}

impl Media {
    /// Makes a new entry in the caller's name.
    pub fn make(&self, task: Task<'_>, dir: NodeId, name: &[u8], new: New<'_>, mode: Permissions) -> Result<Entry> {
        let names = self.names(task.epoch);
        let path = names.new_below(dir, name)?;
        self.may_make(&path, task.caller)?;
        self.may_take(&path, task.caller, 1)?;
        let plan = union::create(names.name(&path)?)?;
        let make = |dir: &OwnedFd, name: &[u8]| {
            let inherits = self.rights == Rights::Acls && has_default_acl(dir)?;
            let mode = Mode::from_raw_mode(mode.mode & 0o7777 & !if inherits { 0 } else { mode.umask });
            let _caller = AsCaller::new(task.caller.uid, task.caller.gid);
            match new {
                New::File => {
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(dir, name, flags, mode).map(drop)
                }
                New::Dir => rustix::fs::mkdirat(dir, name, mode),
                New::Symlink(target) => rustix::fs::symlinkat(target, dir, name),
                New::Fifo => rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0),
                New::Socket => rustix::fs::mknodat(dir, name, FileType::Socket, mode, 0),
            }
        };
        names.carry_out(task, plan, Material::New(&make))?;
        if let Some(stat) = self.home.stat(&path)? {
            // The number of a file that was removed behind the mount may come back with a new one.
            let mut nodes = self.nodes.lock();
            if let Some(node) = nodes.elsewhere(FileId::of(&stat), &path) {
                nodes.lose_file(node);
            }
        }
        names.made(&path)
    }

    /// unlink(2).
    pub fn unlink(&self, task: Task<'_>, dir: NodeId, name: &[u8]) -> Result<()> {
        let names = self.names(task.epoch);
        let path = names.below_checked(dir, name)?;
        names.carry_out(task, union::unlink(names.name(&path)?)?, Material::Nothing)
    }

    /// rmdir(2). The top of a scope stays.
    pub fn rmdir(&self, task: Task<'_>, dir: NodeId, name: &[u8]) -> Result<()> {
        let names = self.names(task.epoch);
        let path = names.below_checked(dir, name)?;
        let empty = names.is_empty(&path)?;
        names.carry_out(task, union::rmdir(names.name(&path)?, empty)?, Material::Nothing)
    }

    /// rename(2).
    pub fn rename(&self, task: Task<'_>, from: (NodeId, &[u8]), to: (NodeId, &[u8]), onto: Onto) -> Result<()> {
        let names = self.names(task.epoch);
        let from = names.below_checked(from.0, from.1)?;
        let to = names.new_below(to.0, to.1)?;
        names.same_scope(&from, &to)?;
        self.may_make(&to, task.caller)?;
        if onto == Onto::Exchange {
            self.may_make(&from, task.caller)?;
            // Before anything is copied up for it.
            if !self.home.can_exchange() {
                return Err(Errno::INVAL.into());
            }
        }
        let (source, target) = (names.name(&from)?, names.name(&to)?);
        let same_file = match (names.look(&from)?.stat, names.look(&to)?.stat) {
            (Some(a), Some(b)) => FileId::of(&a) == FileId::of(&b),
            _ => false,
        };
        // Two names of one file: rename(2) does nothing.
        if same_file && onto == Onto::Replace {
            return Ok(());
        }
        let empty = names.is_empty(&to)?;
        names.carry_out(task, union::rename(source, target, onto, empty)?, Material::Nothing)
    }

    /// link(2).
    pub fn link(&self, task: Task<'_>, node: NodeId, dir: NodeId, name: &[u8]) -> Result<Entry> {
        let names = self.names(task.epoch);
        let from = self.path(node)?.ok_or(Errno::NOENT)?;
        let to = names.new_below(dir, name)?;
        names.same_scope(&from, &to)?;
        self.may_make(&to, task.caller)?;
        let source = names.name(&from)?;
        if matches!(source.layers.shown(), union::Shown::Lower(_)) {
            // It is copied up, and through its new name it could then be changed.
            self.may_make(&from, task.caller)?;
        }
        let plan = union::link(source, names.name(&to)?)?;
        names.carry_out(task, plan, Material::Nothing)?;
        names.made(&to)
    }

    /// Brings what is behind a node into the upper layer, so that it can be changed; of a file only `keep` bytes.
    /// If its name has moved on, the copy gets none: what is written goes to what was opened, never to the path.
    pub fn bring_up(&self, task: Task<'_>, node: NodeId, keep: Option<u64>) -> Result<()> {
        let held = self.node(node)?;
        let copy = match &held.backing {
            Backing::Upper(_) => return Ok(()),
            Backing::Dir => None,
            Backing::Lower { release, index, node: was } => {
                let shown = match held.paths.first() {
                    Some(path) => self.names(task.epoch).shown(path, *was)?,
                    None => None,
                };
                if let Some(path) = held.paths.first() {
                    self.may_make(path, task.caller)?;
                }
                // Where the name still shows it, it is what the release that is served says of it.
                let (release, index) = shown.map_or((release.clone(), *index), |shown| (shown.release, shown.index));
                self.copy(task, held.paths.first(), &release, index, keep)?
            }
        };
        let names = self.names(task.epoch);
        let held = self.node(node)?;
        match (&held.backing, held.paths.first()) {
            (Backing::Upper(_), _) => Ok(()),
            (Backing::Dir, None) => Err(Errno::NOENT.into()),
            (Backing::Lower { node: was, .. }, path)
                if path.map_or(Ok(None), |path| names.shown(path, *was))?.is_none() =>
            {
                self.bring_up_nameless(node, &held, copy)
            }
            (_, Some(path)) => {
                let plan = union::bring_up(names.name(path)?)?;
                names.carry_out(task, plan, copy.map_or(Material::Nothing, Material::Copy))
            }
            (Backing::Lower { .. }, None) => Err(Errno::STALE.into()),
        }
    }

    /// A copy of a release's file for this path, with the mtime that is served: it may take a while. None of a symlink.
    fn copy(
        &self,
        task: Task<'_>,
        path: Option<&Vec<u8>>,
        release: &Release,
        index: u32,
        keep: Option<u64>,
    ) -> Result<Option<Copy<'_>>> {
        let manifest = &release.manifest;
        let mut node = manifest.node(index)?;
        if node.kind != Kind::File {
            return Ok(None);
        }
        let len = keep.unwrap_or(node.size).min(node.size);
        if let Some(path) = path {
            self.may_take(path, task.caller, len)?;
        }
        node.mtime = task.epoch.mtime(&node).as_nanos();
        let object = task.contents.open(manifest.digest(index)?, node.size)?;
        self.home.copy(&node, &object, &manifest.xattrs(index)?, len).map(Some).map_err(|error| match error {
            Error::Disk { operation: COPYING, errno: Errno::IO, .. } => task.contents.unreadable(&object, Errno::IO),
            error => error,
        })
    }

    /// Brings a file up whose name has moved on.
    fn bring_up_nameless(&self, node: NodeId, held: &MediaNode, copy: Option<Copy<'_>>) -> Result<()> {
        let orphan = copy.ok_or(Errno::STALE)?.orphan()?;
        let stat = self.home.stat_orphan(&orphan)?;
        self.usage.add(held.scope, disk_bytes(&stat));
        let mut nodes = self.nodes.lock();
        nodes.copied_up(node, FileId::of(&stat));
        if let Some(held) = nodes.get_mut(node) {
            held.orphan = Some(orphan);
        }
        drop(nodes);
        self.files.close(node);
        Ok(())
    }
}

impl Names<'_> {
    fn below_checked(&self, dir: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        if EntryName::new(name).is_none() {
            return Err(Errno::NAMETOOLONG.into());
        }
        self.below(dir, name)
    }

    /// The same for a name that something is to get: its directory must be there. One that only another release has
    /// does not come back because somebody is still in it.
    fn new_below(&self, dir: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let path = self.below_checked(dir, name)?;
        let above = self.look(split(&path).0)?.layers.shown();
        if above.is_dir() { Ok(path) } else { Err(Errno::NOENT.into()) }
    }

    /// What was made at a path.
    fn made(&self, path: &[u8]) -> Result<Entry> {
        let entry = self.entry(path)?;
        if entry.attr.is_some() { Ok(entry) } else { Err(Errno::NOENT.into()) }
    }

    /// Scopes are to each other as file systems are: each has its own rules, and may be another release's.
    fn same_scope(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let scopes = &self.media.scopes;
        let layer = |path| docroot_path(path).0;
        if scopes.of(from)? == scopes.of(to)? && layer(from) == layer(to) { Ok(()) } else { Err(Errno::XDEV.into()) }
    }

    /// This file of a release, if the path still shows it.
    fn shown(&self, path: &[u8], node: NodeId) -> Result<Option<Lower>> {
        let looked = self.look(path)?;
        let lower = matches!(looked.layers.shown(), union::Shown::Lower(_));
        Ok(looked.lower.filter(|now| lower && now.node.nodeid == node))
    }

    /// Whether a directory shows no entry; anything else counts as empty.
    fn is_empty(&self, path: &[u8]) -> Result<bool> {
        match self.resolve(path)? {
            Some(attr) if attr.kind == crate::fs::attr::Type::Dir => Ok(self.entries(path)?.is_empty()),
            _ => Ok(true),
        }
    }

    /// Carries a plan out that only takes away.
    pub(super) fn give_up(&self, task: Task<'_>, plan: Plan) -> Result<()> {
        self.carry_out(task, plan, Material::Nothing)
    }

    fn carry_out(&self, task: Task<'_>, plan: Plan, mut material: Material<'_>) -> Result<()> {
        let home = &self.media.home;
        for step in &plan {
            fault::point("media.step");
            match step {
                Step::MakeDirs(path) => self.make_dirs(path)?,
                Step::CopyUp(path) => match std::mem::replace(&mut material, Material::Nothing) {
                    Material::Copy(copy) => {
                        copy.place(path)?;
                        self.note_copy(path)?;
                    }
                    other => {
                        material = other;
                        self.copy_up(task, path)?;
                    }
                },
                Step::Place(path) => {
                    let Material::New(make) = &material else { return Err(Errno::INVAL.into()) };
                    let (dir, name) = home.parent_of(path)?;
                    make(&dir, &name)?;
                }
                step => {
                    let kept = home.apply(step)?;
                    self.note(step, kept)?;
                }
            }
        }
        fault::point("media.done");
        Ok(())
    }

    fn make_dirs(&self, path: &[u8]) -> Result<()> {
        for end in ends(path) {
            let dir = &path[..end];
            if self.media.home.stat(dir)?.is_some() {
                continue;
            }
            let lower = self.look(dir)?.lower;
            let like = lower.as_ref().map(|lower| &lower.node).filter(|node| node.kind == Kind::Dir);
            self.media.home.make_dir(dir, like)?;
        }
        Ok(())
    }

    /// Copies a whole file or a symlink up in the middle of a larger change: a link or a rename.
    fn copy_up(&self, task: Task<'_>, path: &Vec<u8>) -> Result<()> {
        let Lower { release, index, mut node } = self.look(path)?.lower.ok_or(Errno::NOENT)?;
        match self.media.copy(task, Some(path), &release, index, None)? {
            Some(copy) => copy.place(path)?,
            None if node.kind == Kind::Symlink => {
                node.mtime = self.epoch.mtime(&node).as_nanos();
                self.media.home.copy_up_symlink(path, &node, release.manifest.target(index)?)?;
            }
            None => return Err(Errno::ISDIR.into()),
        }
        self.note_copy(path)
    }

    /// What is at a path was copied up: its node stays.
    fn note_copy(&self, path: &[u8]) -> Result<()> {
        let stat = self.media.home.stat(path)?.ok_or(Errno::NOENT)?;
        self.media.usage.add(self.media.scopes.of(path)?, disk_bytes(&stat));
        let mut nodes = self.media.nodes.lock();
        if let Some(held) = nodes.at(path) {
            nodes.copied_up(held, FileId::of(&stat));
            self.media.files.close(held);
        }
        Ok(())
    }

    /// Notes in the table of nodes what a step did to names.
    fn note(&self, step: &Step, kept: Option<Orphan>) -> Result<()> {
        let bare = match step {
            Step::Whiteout(path) => self.media.home.stat(path)?.is_none(),
            _ => false,
        };
        let mut nodes = self.media.nodes.lock();
        // A leaf that lost a name stays reachable for those who have it open; one that nobody knows goes.
        let mut drop_now = kept;
        let mut lose = |nodes: &mut super::Nodes, path: &[u8]| {
            let Some(node) = nodes.at(path) else { return };
            if let Some(held) = nodes.get_mut(node)
                && held.paths.len() == 1
                && held.orphan.is_none()
                && let Some(orphan) = drop_now.take()
            {
                held.orphan = Some(orphan);
            }
            nodes.lose_name(node, path);
        };
        match step {
            Step::Unlink(path) | Step::Rmdir(path) => lose(&mut nodes, path),
            Step::Whiteout(path) if bare => lose(&mut nodes, path),
            Step::Whiteout(_) | Step::Unhide(_) => {}
            Step::Link(from, to) => {
                if let Some(node) = nodes.at(from) {
                    nodes.give_name(node, to);
                }
            }
            Step::Rename(from, to, Onto::Exchange) => {
                let aside = b"\0exchange";
                nodes.moved(from, aside);
                nodes.moved(to, from);
                nodes.moved(aside, to);
            }
            Step::Rename(from, to, _) => {
                lose(&mut nodes, to);
                nodes.moved(from, to);
            }
            Step::Place(_) | Step::MakeDirs(_) | Step::CopyUp(_) => {}
        }
        drop(nodes);
        if let (Some(orphan), Step::Unlink(path) | Step::Rename(_, path, _)) = (drop_now, step) {
            self.media.let_go(self.media.scopes.of(path)?, &orphan);
        }
        Ok(())
    }

    /// The number under which a release's entry is listed: its node's where it has one.
    fn number_of_lower(&self, path: &[u8], lower: &Node) -> NodeId {
        let nodes = self.media.nodes.lock();
        let held = nodes.at(path).and_then(|node| Some((node, &nodes.get(node)?.backing)));
        match (held, lower.kind) {
            (Some((node, Backing::Dir)), Kind::Dir) => node,
            (Some((node, Backing::Lower { node: was, .. })), _) if *was == lower.nodeid => node,
            (_, Kind::Dir) => super::media_of(NodeId::of_dir(path)),
            _ => super::media_of(lower.nodeid),
        }
    }

    /// The visible names of a directory: number for d_ino, type, name.
    pub(super) fn entries(&self, path: &[u8]) -> Result<Vec<(NodeId, crate::fs::attr::Type, Vec<u8>)>> {
        use crate::fs::attr::Type;
        let home = &self.media.home;
        let mut found = std::collections::BTreeMap::new();
        if let (Whiteout::None, Some(release)) = (home.whiteout(path)?, self.release_of(path))
            && let manifest = &release.manifest
            && let Some(index) = manifest.find_path(docroot_path(path).1)?
            && manifest.node(index)?.kind == Kind::Dir
        {
            let whited = home.whiteouts_in(path)?;
            for child in manifest.children(index)? {
                let (name, node) = (manifest.name(child)?, manifest.node(child)?);
                if !whited.contains(name) {
                    let number = self.number_of_lower(&[path, name].join(&b'/'), &node);
                    found.insert(name.to_vec(), (number, Type::from(node.kind)));
                }
            }
        }
        let listed = home.list(path)?;
        let nodes = self.media.nodes.lock();
        for (name, id, kind) in listed {
            let whole = [path, &name[..]].join(&b'/');
            let (number, kind) = match kind {
                FileType::Directory => (super::media_of(NodeId::of_dir(&whole)), Type::Dir),
                FileType::Symlink => (nodes.number_of_file(id), Type::Symlink),
                FileType::Fifo => (nodes.number_of_file(id), Type::Fifo),
                FileType::Socket => (nodes.number_of_file(id), Type::Socket),
                FileType::RegularFile => (nodes.number_of_file(id), Type::File),
                _ => (nodes.number_of_file(id), Type::Device),
            };
            found.insert(name, (nodes.at(&whole).unwrap_or(number), kind));
        }
        Ok(found.into_iter().map(|(name, (number, kind))| (number, kind, name)).collect())
    }
}
