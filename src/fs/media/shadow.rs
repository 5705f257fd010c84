//! What the writable layer hides of the release, and giving it up: `status --shadowed`, `media restore`.

use super::lookup::Visible;
use super::mutate::Materials;
use super::{Media, Task};
use crate::error::{self, Error, Result};
use crate::fs::epoch::Epoch;
use crate::store::media::home::{Whiteout, upper_kind};
use crate::tree::union::{self, Name, Shown, UpperKind};
use crate::tree::{Kind, LayerPath, NodeId};
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
            visible.shadowed_below(&self.scopes.top_path(scope, &epoch.release.name), &mut |at, how| {
                found.push((at.path.in_docroot().to_vec(), how));
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Drops what hides the release's entry at a path of the docroot, and below it.
    pub fn restore(&self, task: Task<'_>, path: &[u8]) -> Result<Vec<Restored>> {
        let shown = error::Shown(path);
        let visible = Visible { media: self, epoch: task.epoch };
        let Ok(scope) = self.scopes.of(path) else {
            return Err(Error::request(format!("{shown} lies in no scope, so nothing hides the release there")));
        };
        let whole = LayerPath::new(self.scopes.layer(scope, &task.epoch.release.name), path);
        let mut hidden = Vec::new();
        let place = visible.name(&whole)?;
        if place.layers.lower.is_none() {
            return Err(Error::request(format!(
                "release {} has nothing at {shown}, or a directory above it was removed: then restore that",
                task.epoch.release.name
            )));
        }
        if let Some(how) = hides(place) {
            hidden.push((whole.clone(), how));
        }
        visible.shadowed_below(&whole, &mut |at, how| {
            hidden.push((at.path.clone(), how));
            Ok(())
        })?;
        let mut restored = Vec::new();
        for (path, _) in hidden {
            let changing = self.change_at(task, &path)?;
            let own = !changing.has_names(&path)?;
            let plan = union::restore(changing.name(&path)?, own).map_err(|_| {
                Error::request(format!(
                    "{} is a directory with files of its own in place of the release's file: remove it first",
                    error::Shown(path.in_docroot())
                ))
            })?;
            changing.carry_out(plan, Materials::default())?;
            let dir = path.parent();
            let known = self.nodes.lock().at(&dir);
            restored.push(Restored {
                path: path.in_docroot().to_vec(),
                dir: known.unwrap_or_else(|| dir.dir_node()),
                name: path.name().to_vec(),
            });
        }
        Ok(restored)
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
    fn shadowed_below(&self, dir: &LayerPath, found: &mut impl FnMut(Name<'_>, How) -> Result<()>) -> Result<()> {
        let home = &self.media.home;
        let mut dirs = vec![dir.clone()];
        while let Some(dir) = dirs.pop() {
            if !matches!(self.name(&dir)?.layers.shown(), Shown::Merged | Shown::Lower(Kind::Dir)) {
                continue;
            }
            let mut names: BTreeSet<Vec<u8>> = home.names_in_whiteouts(&dir)?.into_iter().collect();
            names.extend(home.list(&dir)?.into_iter().map(|entry| entry.name));
            for name in names {
                let path = dir.join(&name);
                let place = self.name(&path)?;
                match hides(place) {
                    Some(how) => found(place, how)?,
                    None if place.layers.lower == Some(Kind::Dir) => dirs.push(path),
                    None => {}
                }
            }
        }
        Ok(())
    }
}
