//! What the writable layer hides of the release, and giving it up: `status --shadowed`, `media restore`.

use super::lookup::Visible;
use super::mutate::Materials;
use super::{Media, Task};
use crate::error::{self, Error, Result};
use crate::fs::epoch::Epoch;
use crate::store::media::home::{Whiteout, upper_kind};
use crate::tree::union::{self, Layers, Name, Plan, Shown, UpperKind};
use crate::tree::{Kind, LayerPath, NodeId, Tree};
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
    /// The directory as the kernel knows it.
    pub dir: NodeId,
    /// The name in it.
    pub name: Vec<u8>,
}

/// What a restore did.
#[derive(Debug)]
pub struct Restoration {
    /// Names that show the release's entry again.
    pub restored: Vec<Restored>,
    /// Why it stopped before it had done all.
    stopped: Option<Error>,
}

impl Restoration {
    /// The names, if all was done.
    pub fn whole(self) -> Result<Vec<Restored>> {
        match self.stopped {
            None => Ok(self.restored),
            Some(error) => Err(Error::failed(format!(
                "{} names show the release's again, then it failed: {error}; mend that and restore again",
                self.restored.len()
            ))),
        }
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

    /// Drops what hides the release's entry at a path of the docroot, and all that it has below. What only the writable
    /// layer has stays. If something of it is in the way, nothing is done.
    pub fn restore(&self, task: Task<'_>, path: &[u8]) -> Result<Restoration> {
        let shown = error::Shown(path);
        let Ok(scope) = self.scopes.of(path) else {
            return Err(Error::request(format!("{shown} lies in no scope, so nothing hides the release there")));
        };
        let whole = LayerPath::new(self.scopes.layer(scope, &task.epoch.release.name), path);
        // Nobody changes a name below until all of it is done.
        let changing = self.change_at(task, &whole)?;
        if changing.name(&whole)?.layers.lower.is_none() {
            return Err(Error::request(format!(
                "release {} has nothing at {shown}, or a directory above it was removed: then restore that",
                task.epoch.release.name
            )));
        }
        let mut done = Restoration { restored: Vec::new(), stopped: None };
        for (path, plan) in changing.plan_restore(whole)? {
            if let Err(error) = changing.carry_out(plan, Materials::default()) {
                done.stopped = Some(error);
                break;
            }
            let dir = path.parent();
            let known_as = self.nodes.lock().number_of_dir(&dir);
            done.restored.push(Restored {
                path: path.in_docroot().to_vec(),
                dir: known_as,
                name: path.name().to_vec(),
            });
        }
        Ok(done)
    }
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

    fn kind_in_release(&self, path: &LayerPath) -> Result<Option<Kind>> {
        let Some(release) = self.release_of(path) else { return Ok(None) };
        match release.manifest.find_path(path.in_docroot())? {
            Some(index) => Ok(Some(release.manifest.node(index)?.kind)),
            None => Ok(None),
        }
    }

    /// A plan for each name at and below a path that hides what the release has, those above first. So after each step
    /// each name shows what it did or what the release has.
    fn plan_restore(&self, whole: LayerPath) -> Result<Vec<(LayerPath, Plan)>> {
        let home = &self.media.home;
        let (mut plans, mut paths) = (Vec::new(), vec![whole]);
        while let Some(path) = paths.pop() {
            // What it has, and not what shows: a directory that hides it may be given up too.
            let Some(lower) = self.kind_in_release(&path)? else { continue };
            let layers = Layers {
                upper: home.stat(&path)?.as_ref().map(upper_kind),
                whiteout: home.whiteout(&path)? == Whiteout::Here,
                lower: Some(lower),
            };
            let in_the_way = layers.upper == Some(UpperKind::Dir) && lower != Kind::Dir;
            let empty = !in_the_way || home.list(&path)?.is_empty();
            let plan = union::restore(Name { path: &path, layers }, empty).map_err(|_| {
                Error::request(format!(
                    "{} is a directory with files of its own in place of the release's file: remove it first; nothing \
                     was changed",
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
        Ok(plans)
    }
}
