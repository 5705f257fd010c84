//! What only the writable layer has below what is restored: it is given up too if that is asked for.

use super::lookup::Visible;
use super::mutate::{Changing, LONGEST_PATH, Materials};
use super::shadow::KnownName;
use crate::error::{self, Error, Result};
use crate::store::media::home::upper_kind;
use crate::tree::LayerPath;
use crate::tree::union::{self, Layers, Name, Plan, UpperKind};
use rustix::fs::FileType;
use std::sync::Arc;

/// Names that the release lacks, each after the directory that it is in. A name keeps no path of its own: they take the
/// bytes of the names, however deep these lie.
#[derive(Default)]
pub(super) struct OwnNames(Vec<OwnName>);

struct OwnName {
    dir: Dir,
    name: Vec<u8>,
    kind: UpperKind,
}

/// Where a name is one.
#[derive(Clone)]
enum Dir {
    /// In a directory whose path the release has too.
    Shared(Arc<LayerPath>),
    /// In the directory with this index among the names.
    Own(usize),
}

impl OwnNames {
    /// Where a name in a directory lies, or the directory itself. A directory stands before the names in it, so it is
    /// there as long as they are.
    fn path_in(&self, dir: &Dir, name: Option<&[u8]>) -> LayerPath {
        let (mut dir, mut names) = (dir, Vec::from_iter(name));
        let top = loop {
            match dir {
                Dir::Shared(path) => break path,
                Dir::Own(at) => {
                    names.push(&self.0[*at].name);
                    dir = &self.0[*at].dir;
                }
            }
        };
        names.reverse();
        if names.is_empty() { LayerPath::clone(top) } else { top.join(&names.join(&b'/')) }
    }
}

impl Visible<'_> {
    /// Adds the names in an upper directory that the release lacks, and all below them.
    ///
    /// # Errors
    /// A path is longer than one may be that is made: the way to each name is gone once more to remove it.
    pub(super) fn add_own(&self, dir: &LayerPath, own: &mut OwnNames) -> Result<()> {
        let mut next = own.0.len();
        self.add_names(Dir::Shared(Arc::new(dir.clone())), own)?;
        while let Some(name) = own.0.get(next) {
            if name.kind == UpperKind::Dir {
                self.add_names(Dir::Own(next), own)?;
            }
            next += 1;
        }
        Ok(())
    }

    fn add_names(&self, dir: Dir, own: &mut OwnNames) -> Result<()> {
        let home = &self.media.home;
        let above = own.path_in(&dir, None);
        for entry in home.list(&above)? {
            let path = above.join(&entry.name);
            if self.kind_in_release(&path)?.is_some() {
                continue;
            }
            if path.in_docroot().len() > LONGEST_PATH {
                return Err(Error::request(format!(
                    "{}: the path of a name in it is longer than {LONGEST_PATH} bytes (ENAMETOOLONG): move it up or \
                     remove it first; nothing was changed",
                    error::Shown(above.in_docroot())
                )));
            }
            let kind = match entry.kind {
                FileType::Directory => UpperKind::Dir,
                FileType::Unknown => home.stat(&path)?.as_ref().map_or(UpperKind::Leaf, upper_kind),
                _ => UpperKind::Leaf,
            };
            own.0.push(OwnName { dir: dir.clone(), name: entry.name, kind });
        }
        Ok(())
    }
}

impl Changing<'_> {
    /// Removes the names, those in a directory before itself; `gone` gets each.
    pub(super) fn give_up(&self, mut own: OwnNames, gone: &mut Vec<KnownName>) -> Result<()> {
        while let Some(OwnName { dir, name, kind }) = own.0.pop() {
            let path = own.path_in(&dir, Some(&name));
            let known = self.known(&path);
            self.carry_out(plan_to_remove(&path, kind)?, Materials::default())?;
            gone.push(known);
        }
        Ok(())
    }
}

/// How a name goes that the release lacks; what a directory held is gone.
fn plan_to_remove(path: &LayerPath, kind: UpperKind) -> Result<Plan> {
    let at = Name { path, layers: Layers { upper: Some(kind), ..Layers::default() } };
    match kind {
        UpperKind::Dir => union::rmdir(at, true),
        UpperKind::Leaf => union::unlink(at),
    }
}
