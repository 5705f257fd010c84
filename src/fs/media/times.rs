//! When the entries of a directory of both layers changed last: in the upper layer, in the release by a switch, or when
//! one of the release's was hidden (`store::media::home` keeps the times).

use super::lookup::Visible;
use super::mutate::Changing;
use super::namespace::{Claim, NamespaceGuard};
use super::node::Backing;
use super::nodes::paths_of;
use super::{Lower, Media, Task};
use crate::error::{OnDisk, Result};
use crate::fs::attr::Attr;
use crate::store::active::stamps::Stamp;
use crate::store::media::home::LowerChanged;
use crate::tree::union::Step;
use crate::tree::{Kind, LayerPath, NodeId};
use std::os::fd::OwnedFd;

impl Visible<'_> {
    /// When what a directory shows of the release changed last.
    fn lower_changed(&self, path: &LayerPath, lower: &Lower) -> Result<LowerChanged> {
        let whiteouts = self.media.home.whiteouts_changed(path)?;
        // A directory above a scope is nobody's.
        let release = match self.media.scopes.of(path.in_docroot()) {
            Ok(scope) => self.media.mtime_in(scope, self.epoch, &lower.node),
            Err(_) => self.epoch.mtime(&lower.node),
        };
        Ok(LowerChanged { release, whiteouts })
    }

    /// A directory that the release has too, of which these are the attributes that one layer has, changed when the
    /// later of its layers did; unless its mtime was set since.
    pub(super) fn with_times_of_both(&self, path: &LayerPath, lower: &Lower, attr: Attr) -> Result<Attr> {
        let changed = self.lower_changed(path, lower)?;
        let mut last = changed.last();
        let ctime = attr.ctime.max(last);
        if attr.mtime < last {
            last = changed.last_after(self.media.home.over_until(path)?);
        }
        Ok(Attr { mtime: attr.mtime.max(last), ctime, ..attr })
    }
}

impl Changing<'_> {
    /// Nobody else changes the times of these directories until this is dropped. It is asked for inside a claim of
    /// names, for one small step on the disk, and nothing is claimed inside it.
    fn times(&self, dirs: impl IntoIterator<Item = LayerPath>) -> NamespaceGuard<'_> {
        self.media.namespace.claim(dirs.into_iter().map(Claim::Times).collect())
    }

    /// The times of the directories in which a step changes names. [`Step::Unhide`] touches the directory at its path
    /// itself: only a restore does that, and it has claimed the whole tree.
    pub(super) fn times_of(&self, step: &Step) -> NamespaceGuard<'_> {
        self.times(paths_of(step).map(LayerPath::parent))
    }

    /// Makes the upper directories down to a path, each as the one that shows. None above them changes by that.
    pub(super) fn make_dirs(&self, path: &LayerPath) -> Result<()> {
        let home = &self.media.home;
        // Mostly it is there.
        if path.is_root() || home.stat(path)?.is_some() {
            return Ok(());
        }
        for dir in path.from_the_top() {
            if home.stat(&dir)?.is_some() {
                continue;
            }
            let like = match self.look(&dir)?.lower.filter(|lower| lower.node.kind == Kind::Dir) {
                Some(mut lower) => {
                    lower.node.mtime = self.lower_changed(&dir, &lower)?.last().as_nanos();
                    Some((lower.node, lower.release.manifest.xattrs(lower.index)?))
                }
                None => None,
            };
            let known_as = self.media.nodes.lock().number_of_dir(&dir);
            let _times = self.times([dir.parent()]);
            home.make_dir(&dir, like.as_ref(), known_as)?;
            self.count_names(&dir, 1);
        }
        Ok(())
    }

    /// The same for the directories of whiteouts.
    pub(super) fn make_whiteouts_dirs(&self, path: &LayerPath) -> Result<()> {
        let home = &self.media.home;
        if home.whiteouts_dir(path)?.is_some() {
            return Ok(());
        }
        for dir in path.from_the_top() {
            if home.whiteouts_dir(&dir)?.is_none() {
                let _times = self.times([dir.parent()]);
                home.make_whiteouts_dir(&dir)?;
            }
        }
        Ok(())
    }
}

impl Media {
    /// Nobody else changes the times of a directory until this is dropped; those of a file are nobody's but its own.
    pub(super) fn times_of_dir(&self, node: NodeId) -> Result<Option<(NamespaceGuard<'_>, LayerPath)>> {
        loop {
            let held = self.node(node)?;
            let (Backing::Dir, Some(path)) = (held.backing, held.path) else { return Ok(None) };
            let guard = self.namespace.claim(vec![Claim::Times(path.clone())]);
            if self.nodes.lock().path(node)?.as_ref() == Some(&path) {
                return Ok(Some((guard, path)));
            }
        }
    }

    /// The mtime of an upper directory was set: it shows, though what the release has there may have changed later.
    pub(super) fn note_mtime_set(&self, task: Task<'_>, path: &LayerPath, dir: &OwnedFd) -> Result<()> {
        let visible = Visible { media: self, epoch: task.epoch };
        let layered = visible.look(path)?;
        let Some(lower) = layered.lower.filter(|lower| !layered.layers.whiteout && lower.node.kind == Kind::Dir) else {
            return Ok(());
        };
        let changed = visible.lower_changed(path, &lower)?;
        let stat = rustix::fs::fstat(dir).on_disk("looking at", || self.home.show(path))?;
        let set = Stamp { second: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
        match set < changed.last() {
            true => self.home.set_over(path, dir, changed),
            false => Ok(()),
        }
    }
}
