//! Copies of the release's files on their way up.

use super::limits::{Reserved, disk_bytes};
use super::lookup::Visible;
use super::mutate::Materials;
use super::node::{Backing, Held};
use super::nodes::Nodes;
use super::scopes::ScopeId;
use super::{Caller, Lower, Media, Task};
use crate::error::{Errno, Error, Result};
use crate::fs::epoch::Release;
use crate::store::media::home::{COPYING, Copy, Leaf};
use crate::tree::union::{self, Plan, Step};
use crate::tree::{Kind, LayerPath, NodeId, Tree};
use std::sync::Arc;

/// A file of so many bytes is large: its copy takes a disk about a millisecond or more.
const LARGE: u64 = 1 << 20;

/// Large files of the release that a change would copy up.
#[derive(Debug, Default)]
pub struct LargeCopies {
    /// Which.
    pub nodes: Vec<NodeId>,
    /// The names on the way to what is changed, and the directories that they are in, as the kernel knows them.
    pub names: Vec<(NodeId, Vec<u8>)>,
}

/// The release's files that a plan wants to copy up, and what it was made for.
struct Wanted<const N: usize> {
    files: Vec<(LayerPath, Lower)>,
    paths: [LayerPath; N],
}

/// Copies that were made for a plan.
#[derive(Debug, Default)]
pub(super) struct Copies<'a>(Vec<CopyOf<'a>>);

/// A copy, and of what: the path, unless its file has none any more, and the release's node.
#[derive(Debug)]
struct CopyOf<'a> {
    path: Option<LayerPath>,
    node: NodeId,
    made: Made<'a>,
}

/// A copy, and the room that is kept free for it until it is counted.
#[derive(Debug)]
pub(super) struct Made<'a> {
    pub(super) copy: Copy<'a>,
    _room: Option<Reserved<'a>>,
}

impl<'a> Copies<'a> {
    /// The copy of this file, if it was made.
    pub(super) fn take(&mut self, path: &LayerPath, node: NodeId) -> Option<Made<'a>> {
        let at = self.0.iter().position(|of| of.path.as_ref() == Some(path) && of.node == node)?;
        Some(self.0.swap_remove(at).made)
    }
}

impl Media {
    /// The release's files that a plan will want to copy up if it comes out as it does now, if one of them has so many
    /// bytes; and the paths.
    fn to_copy<const N: usize>(
        &self,
        task: Task<'_>,
        at_least: u64,
        paths: &impl Fn(&Nodes) -> Result<[LayerPath; N]>,
        plan: impl Fn(&Visible<'_>, Task<'_>, &[LayerPath; N]) -> Result<Plan>,
    ) -> Result<Option<Wanted<N>>> {
        let (paths, lower) = {
            let nodes = self.nodes.lock();
            let paths = paths(&nodes)?;
            let lower = |path: &LayerPath| match &nodes.get(nodes.at(path)?)?.backing {
                Backing::Lower { release, index, .. } => Some((release.clone(), *index)),
                _ => None,
            };
            let lower: Vec<_> = paths.iter().filter_map(lower).collect();
            (paths, lower)
        };
        let is_wanted = |(release, index): &(Arc<Release>, u32)| {
            release.manifest.node(*index).is_ok_and(|node| node.size >= at_least)
        };
        if !lower.iter().any(is_wanted) {
            return Ok(None);
        }
        let visible = Visible { media: self, epoch: task.epoch };
        // What is refused is refused, and noted, under the claim.
        let task = Task { caller: Caller { notes: false, ..task.caller }, ..task };
        let Ok(plan) = plan(&visible, task, &paths) else { return Ok(None) };
        let mut files = Vec::new();
        for step in plan {
            let Step::CopyUp(path) = step else { continue };
            if let Some(lower) = visible.look(&path)?.lower
                && lower.node.kind == Kind::File
            {
                files.push((path, lower));
            }
        }
        Ok(Some(Wanted { files, paths }))
    }

    /// Makes the copies that a plan will want if it comes out as it does now. That takes no claim: it may take long.
    pub(super) fn copies<const N: usize>(
        &self,
        task: Task<'_>,
        paths: &impl Fn(&Nodes) -> Result<[LayerPath; N]>,
        plan: impl Fn(&Visible<'_>, Task<'_>, &[LayerPath; N]) -> Result<Plan>,
    ) -> Result<Copies<'_>> {
        let mut copies = Copies::default();
        for (path, lower) in self.to_copy(task, 0, paths, plan)?.map_or(Vec::new(), |wanted| wanted.files) {
            let scope = self.scopes.of(path.in_docroot())?;
            let made = self.copy(task, (scope, Some(&path)), &lower.release, lower.index, None)?;
            copies.0.push(CopyOf { path: Some(path), node: lower.node.nodeid, made });
        }
        Ok(copies)
    }

    /// Those that are so large that nobody should hold a directory meanwhile.
    pub(super) fn large_copies<const N: usize>(
        &self,
        task: Task<'_>,
        paths: &impl Fn(&Nodes) -> Result<[LayerPath; N]>,
        plan: impl Fn(&Visible<'_>, Task<'_>, &[LayerPath; N]) -> Result<Plan>,
    ) -> LargeCopies {
        // What cannot be found out is told when it is done.
        let Ok(Some(wanted)) = self.to_copy(task, LARGE, paths, plan) else { return LargeCopies::default() };
        let nodes = self.nodes.lock();
        let large = wanted.files.iter().filter(|(_, lower)| lower.node.size >= LARGE);
        let name_at = |path: LayerPath| {
            let dir = path.parent();
            let in_a_scope = !dir.is_root() && self.scopes.of(dir.in_docroot()).is_ok();
            let known_as = if in_a_scope { nodes.number_of_dir(&dir) } else { NodeId::of_dir(dir.in_docroot()) };
            (known_as, path.name().to_vec())
        };
        LargeCopies {
            nodes: large.filter_map(|(path, _)| nodes.at(path)).collect(),
            names: wanted.paths.iter().flat_map(LayerPath::from_the_top).map(name_at).collect(),
        }
    }

    /// Brings what is behind a node into the upper layer, so that it can be changed; of a file only `keep` bytes.
    /// If its name has moved on, the copy gets none: what is written goes to what was opened, never to the path.
    pub(in crate::fs) fn bring_up(&self, task: Task<'_>, node: NodeId, keep: Option<u64>) -> Result<()> {
        let held = self.node(node)?;
        let mut copies = Copies::default();
        match &held.backing {
            Backing::Upper(_) => return Ok(()),
            Backing::Gone => return Err(Error::answer(Errno::STALE)),
            Backing::Dir => {}
            Backing::Lower { release, index, node: was } => {
                let visible = Visible { media: self, epoch: task.epoch };
                let path = held.path.as_ref();
                let shown = path.map_or(Ok(None), |path| visible.shown(path, *was))?;
                if let Some(path) = path {
                    self.may_make(path, task.caller)?;
                }
                // A name that still shows it shows it in the release that is served: the same content, and perhaps
                // other attributes than in the release that it was looked up in.
                let (release, index) = shown.map_or((release.clone(), *index), |shown| (shown.release, shown.index));
                if release.manifest.node(index)?.kind == Kind::File {
                    let made = self.copy(task, (held.scope, path), &release, index, keep)?;
                    copies.0.push(CopyOf { path: path.cloned(), node: *was, made });
                }
            }
        }
        let (changing, path) = self.change_node(task, node)?;
        let held = self.node(node)?;
        match (&held.backing, path) {
            (Backing::Upper(_), _) => Ok(()),
            (Backing::Gone, _) => Err(Error::answer(Errno::STALE)),
            (Backing::Dir, None) => Err(Error::answer(Errno::NOENT)),
            (Backing::Lower { node: was, .. }, path)
                if path.as_ref().map_or(Ok(None), |path| changing.shown(path, *was))?.is_none() =>
            {
                self.bring_up_nameless(node, &held, copies.0.pop().map(|of| of.made))
            }
            (_, Some(path)) => {
                let plan = union::bring_up(changing.name(&path)?)?;
                changing.carry_out(plan, Materials::of_copies(copies))
            }
            (Backing::Lower { .. }, None) => Err(Error::answer(Errno::STALE)),
        }
    }

    /// A copy of a release's file for this path, with the mtime that is served. It may take a while.
    pub(super) fn copy(
        &self,
        task: Task<'_>,
        at: (ScopeId, Option<&LayerPath>),
        release: &Release,
        index: u32,
        keep: Option<u64>,
    ) -> Result<Made<'_>> {
        let manifest = &release.manifest;
        let mut node = manifest.node(index)?;
        let len = keep.unwrap_or(node.size).min(node.size);
        let _room = self.may_take(at, task.caller, len)?;
        node.mtime = self.mtime_in(at.0, task.epoch, &node).as_nanos();
        let object = task.contents.open(manifest.digest(index)?, node.size)?;
        let known_as = self.known_as(at.1, node.nodeid);
        let copied = self.home.copy((&node, known_as), &object, &manifest.xattrs(index)?, len);
        let copied = copied.map_err(|error| match error {
            Error::Disk { operation: COPYING, errno: Errno::IO, .. } => task.contents.unreadable(&object, Errno::IO),
            error => error,
        });
        copied.map(|copy| Made { copy, _room })
    }

    /// The number by which the kernel knows a release's file.
    pub(super) fn known_as(&self, path: Option<&LayerPath>, node: NodeId) -> NodeId {
        path.and_then(|path| self.nodes.lock().at(path)).unwrap_or(node.scoped())
    }

    /// Brings a file up whose name has moved on.
    fn bring_up_nameless(&self, node: NodeId, held: &Held, made: Option<Made<'_>>) -> Result<()> {
        let made = made.ok_or(Error::answer(Errno::STALE))?;
        let orphan = made.copy.orphan()?;
        let Leaf { id, stat } = self.home.leaf_of_orphan(&orphan)?;
        self.usage.add(held.scope, disk_bytes(&stat));
        let mut nodes = self.nodes.lock();
        // Two writers of one nameless file: the first copy counts.
        let second = match nodes.get_mut(node) {
            Some(held) if held.orphan.is_none() => {
                held.orphan = Some(orphan);
                nodes.copied_up(node, id, stat.st_dev);
                None
            }
            _ => Some(orphan),
        };
        let closed = self.close(node);
        drop(nodes);
        drop(closed);
        second.iter().for_each(|orphan| self.let_go(held.scope, orphan));
        Ok(())
    }
}

impl Visible<'_> {
    /// This file of a release, if the path still shows it.
    fn shown(&self, path: &LayerPath, node: NodeId) -> Result<Option<super::Lower>> {
        let layered = self.look(path)?;
        let lower = matches!(layered.layers.shown(), union::Shown::Lower(_));
        Ok(layered.lower.filter(|now| lower && now.node.nodeid == node))
    }
}
