//! What the writable layer hides of the release, and giving it up: `status --shadowed`, `media restore`.

use super::lookup::Visible;
use super::mutate::Materials;
use super::own::OwnNames;
use super::{Media, Task};
use crate::error::{self, Error, Result};
use crate::fs::epoch::Epoch;
use crate::protocol::request::Own;
use crate::store::media::home::{Whiteout, upper_kind};
use crate::tree::union::{self, Layers, Name, Plan, Shown, UpperKind};
use crate::tree::{Kind, LayerPath, NodeId, Tree, split};
use std::collections::BTreeSet;

/// How an entry of the release is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By a whiteout: it was removed.
    Removed,
    /// By an entry of the writable layer.
    Replaced,
}

/// A name that shows the release's entry again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Path in the docroot.
    pub path: Vec<u8>,
    /// What stood there.
    pub known: KnownName,
}

/// A name that was given up, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownName {
    /// The directory.
    pub dir: NodeId,
    /// The name in it.
    pub name: Vec<u8>,
    /// What stood there, if the kernel knows it: it may be open, or have other names.
    pub node: Option<NodeId>,
}

/// What a restore did.
#[derive(Debug)]
pub struct Restoration {
    /// Names that show the release's entry again.
    pub restored: Vec<Restored>,
    /// Names that only the writable layer had and that are gone.
    pub given_up: Vec<KnownName>,
    /// Why it stopped before it had done all.
    stopped: Option<Error>,
}

impl Restoration {
    /// It did not end well, for a further reason.
    pub fn fail(&mut self, error: Error) {
        self.stopped.get_or_insert(error);
    }

    /// Itself, if all was done.
    pub fn whole(self) -> Result<Self> {
        let Some(error) = &self.stopped else { return Ok(self) };
        let given_up = match self.given_up.len() {
            0 => String::new(),
            count => format!("{count} names that only the user had are gone, "),
        };
        Err(Error::failed(format!(
            "{given_up}{} names show the release's again, then it failed: {error}; mend that and restore again",
            self.restored.len()
        )))
    }
}

impl Media {
    /// Whether the layer that all releases share hides what a release has at this path of the docroot.
    pub fn shadows(&self, path: &[u8]) -> Result<bool> {
        let path = LayerPath::shared(path);
        Ok(self.home.whiteout(&path)? != Whiteout::None
            || self.home.stat(&path)?.is_some_and(|stat| upper_kind(&stat) == UpperKind::Leaf))
    }

    /// The release's entries that the writable layer hides; of a directory that is hidden whole, only itself.
    pub fn shadowed(&self, epoch: &Epoch) -> Result<Vec<(Vec<u8>, How)>> {
        let visible = Visible { media: self, epoch };
        let mut found = Vec::new();
        for scope in self.scopes.ids() {
            visible.shadowed_below(self.scopes.top_path(scope, &epoch.release.name), &mut found)?;
        }
        Ok(found)
    }

    /// The nodes of the release that [`Media::restore`] would show.
    pub fn would_show(&self, epoch: &Epoch, path: &[u8], own: Own) -> Result<BTreeSet<NodeId>> {
        let visible = Visible { media: self, epoch };
        let (_, plans) = visible.plan_restore(visible.place_to_restore(path)?, own)?;
        shown_at(epoch, plans.iter().map(|(path, _)| path.in_docroot()))
    }

    /// Drops what hides the release's entry at a path of the docroot, and all that it has below. What only the writable
    /// layer has stays, and if something of it is in the way, nothing is done; or it goes first.
    pub fn restore(&self, task: Task<'_>, path: &[u8], own: Own) -> Result<Restoration> {
        let whole = Visible { media: self, epoch: task.epoch }.place_to_restore(path)?;
        // Nobody changes a name below until all of it is done.
        let changing = self.change_at(task, &whole)?;
        changing.place_to_restore(path)?;
        let (names, plans) = changing.plan_restore(whole, own)?;
        let mut done = Restoration { restored: Vec::new(), given_up: Vec::new(), stopped: None };
        if let Err(error) = changing.give_up(names, &mut done.given_up) {
            done.stopped = Some(error);
            return Ok(done);
        }
        for (path, plan) in plans {
            let known = changing.known(&path);
            if let Err(error) = changing.carry_out(plan, Materials::default()) {
                done.stopped = Some(error);
                break;
            }
            done.restored.push(Restored { path: path.in_docroot().to_vec(), known });
        }
        Ok(done)
    }
}

/// The nodes that the release has at these paths of the docroot, those above first, and below them; and the directories
/// that the paths are names in.
pub fn shown_at<'p>(epoch: &Epoch, paths: impl Iterator<Item = &'p [u8]>) -> Result<BTreeSet<NodeId>> {
    let manifest = &epoch.release.manifest;
    let (mut found, mut above) = (BTreeSet::new(), BTreeSet::new());
    for path in paths {
        let Some(index) = manifest.find_path(path)? else { continue };
        above.insert(NodeId::of_dir(split(path).0));
        let mut left = vec![index];
        while let Some(index) = left.pop() {
            let node = manifest.node(index)?;
            if found.insert(node.nodeid) && node.kind == Kind::Dir {
                left.extend(manifest.children(index)?);
            }
        }
    }
    found.extend(above);
    Ok(found)
}

/// How the release's entry at a place is hidden by the place itself.
fn hides(at: Name<'_>) -> Option<How> {
    match (at.layers.lower?, at.layers.upper) {
        (_, None) => at.layers.whiteout.then_some(How::Removed),
        (Kind::Dir, Some(UpperKind::Dir)) if !at.layers.whiteout => None,
        (_, Some(_)) => Some(How::Replaced),
    }
}

impl Visible<'_> {
    pub(super) fn known(&self, path: &LayerPath) -> KnownName {
        let nodes = self.media.nodes.lock();
        KnownName { dir: nodes.number_of_dir(&path.parent()), name: path.name().to_vec(), node: nodes.at(path) }
    }

    /// Every hidden name below a directory, those above first. Only directories that the release has are gone into: the
    /// way is no deeper than a release.
    fn shadowed_below(&self, dir: LayerPath, found: &mut Vec<(Vec<u8>, How)>) -> Result<()> {
        let mut dirs = vec![dir];
        while let Some(dir) = dirs.pop() {
            if !matches!(self.name(&dir)?.layers.shown(), Shown::Merged | Shown::Lower(Kind::Dir)) {
                continue;
            }
            for path in self.names_of_layer(&dir)? {
                let place = self.name(&path)?;
                match hides(place) {
                    Some(how) => found.push((path.in_docroot().to_vec(), how)),
                    None if place.layers.lower == Some(Kind::Dir) => dirs.push(path),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// The names in a directory of which the writable layer says anything, that the release has too, in order.
    fn names_of_layer(&self, dir: &LayerPath) -> Result<BTreeSet<LayerPath>> {
        let home = &self.media.home;
        let upper = home.list(dir)?.into_iter().map(|entry| entry.name);
        let mut found = BTreeSet::new();
        for name in home.names_in_whiteouts(dir)?.into_iter().chain(upper) {
            let path = dir.join(&name);
            if self.kind_in_release(&path)?.is_some() {
                found.insert(path);
            }
        }
        Ok(found)
    }

    pub(super) fn kind_in_release(&self, path: &LayerPath) -> Result<Option<Kind>> {
        let Some(release) = self.release_of(path) else { return Ok(None) };
        match release.manifest.find_path(path.in_docroot())? {
            Some(index) => Ok(Some(release.manifest.node(index)?.kind)),
            None => Ok(None),
        }
    }

    /// Where a path of the docroot lies that is to be restored, if it can be.
    fn place_to_restore(&self, path: &[u8]) -> Result<LayerPath> {
        let (shown, scopes, release) = (error::Shown(path), &self.media.scopes, &self.epoch.release.name);
        let Ok(scope) = scopes.of(path) else {
            return Err(Error::request(format!("{shown} lies in no scope, so nothing hides the release there")));
        };
        let whole = LayerPath::new(scopes.layer(scope, release), path);
        match self.name(&whole)?.layers.lower {
            Some(lower) if lower != Kind::Dir && scopes.is_top(path) => Err(Error::request(format!(
                "{shown} is a scope, which stays a directory though release {release} has none there"
            ))),
            Some(_) => Ok(whole),
            None => Err(Error::request(format!(
                "release {release} has nothing at {shown}, or a directory above it was removed: then restore that"
            ))),
        }
    }

    /// The names that go first, if what only the writable layer has is given up; and a plan for each name at and below
    /// a path that hides what the release has, those above first. So after each step each name shows what it did, or
    /// what the release has.
    fn plan_restore(&self, whole: LayerPath, own: Own) -> Result<(OwnNames, Vec<(LayerPath, Plan)>)> {
        let home = &self.media.home;
        let (mut names, mut plans, mut paths) = (OwnNames::default(), Vec::new(), vec![whole]);
        while let Some(path) = paths.pop() {
            // What it has, and not what shows: a directory that hides it may be given up too.
            let Some(lower) = self.kind_in_release(&path)? else { continue };
            let layers = Layers {
                upper: home.stat(&path)?.as_ref().map(upper_kind),
                whiteout: home.whiteout(&path)? == Whiteout::Here,
                lower: Some(lower),
            };
            let in_the_way = layers.upper == Some(UpperKind::Dir) && lower != Kind::Dir;
            if own == Own::GiveUp && layers.upper == Some(UpperKind::Dir) {
                self.add_own(&path, &mut names)?;
            }
            let empty = !in_the_way || own == Own::GiveUp || home.list(&path)?.is_empty();
            let plan = union::restore(Name { path: &path, layers }, empty).map_err(|_| {
                Error::request(format!(
                    "{} is a directory with files of its own in place of the release's file: remove it first, or give \
                     it up with --keep-own no; nothing was changed",
                    error::Shown(path.in_docroot())
                ))
            })?;
            if lower == Kind::Dir {
                paths.extend(self.names_of_layer(&path)?.into_iter().rev());
            }
            if !plan.is_empty() {
                plans.push((path, plan));
            }
        }
        Ok((names, plans))
    }
}
