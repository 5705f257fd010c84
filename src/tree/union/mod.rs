//! The visible tree of the writable layer over the release: who shows at a name, and what a change does.
//!
//! A change is a [`Plan`], an ordered list of small steps that the store carries out. After every prefix of every
//! plan each name shows the old or the new state, never a third: a copy takes its name whole, a whiteout is put
//! before the entry above it goes.
//!
//! A whiteout hides the release's entry of its name and all below it; an entry of the upper layer wins over both.
//! So a directory of the upper layer under a whiteout is opaque, and shows nothing of the release.

use super::{Kind, LayerPath};
use crate::error::{Errno, Error, Result};

/// What an entry of the upper layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpperKind {
    /// A directory.
    Dir,
    /// Anything else: a file, a symlink, a fifo, a socket.
    Leaf,
}

/// What the layers say of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    /// The writable layer's entry.
    pub upper: Option<UpperKind>,
    /// Whether a whiteout stands at the very name.
    pub whiteout: bool,
    /// The release's entry, unless something above the name hides it.
    pub lower: Option<Kind>,
}

/// What shows at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nothing.
    Nothing,
    /// The writable layer's entry alone.
    Upper(UpperKind),
    /// Directories of both layers, as one.
    Merged,
    /// The release's entry.
    Lower(Kind),
}

impl Shown {
    /// Whether it is a directory, of whichever layer.
    pub fn is_dir(self) -> bool {
        matches!(self, Self::Merged | Self::Upper(UpperKind::Dir) | Self::Lower(Kind::Dir))
    }
}

impl Layers {
    /// What shows.
    pub fn shown(self) -> Shown {
        match (self.upper, self.below()) {
            (Some(UpperKind::Dir), Some(Kind::Dir)) => Shown::Merged,
            (Some(upper), _) => Shown::Upper(upper),
            (None, Some(kind)) => Shown::Lower(kind),
            (None, None) => Shown::Nothing,
        }
    }

    /// The release's entry that would show if the upper one were not there.
    fn below(self) -> Option<Kind> {
        if self.whiteout { None } else { self.lower }
    }

    fn is_dir(self) -> bool {
        self.shown().is_dir()
    }
}

/// A name, and what the layers say of it.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    /// Where it lies.
    pub path: &'a LayerPath,
    /// What the layers say there.
    pub layers: Layers,
}

/// How a rename treats what is at its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// It goes.
    Replace,
    /// It makes the rename fail (RENAME_NOREPLACE).
    Nothing,
    /// The two change places (RENAME_EXCHANGE).
    Exchange,
}

/// One step, small enough to have happened or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the upper directories down to this path, each dressed as the one that shows.
    MakeDirs(LayerPath),
    /// Copy the release's leaf into the upper layer under its own name.
    CopyUp(LayerPath),
    /// Hide the release's entry here.
    Whiteout(LayerPath),
    /// Take the whiteout here away.
    Unhide(LayerPath),
    /// Give the new entry that was made in the work space its name.
    Place(LayerPath),
    /// Rename in the upper layer; for [`Onto::Replace`] what is replaced is kept as an orphan.
    Rename(LayerPath, LayerPath, Onto),
    /// A second name for a leaf of the upper layer.
    Link(LayerPath, LayerPath),
    /// Take a leaf of the upper layer away; it is kept as an orphan.
    Unlink(LayerPath),
    /// Take an empty directory of the upper layer away.
    Rmdir(LayerPath),
}

/// Steps in order.
pub type Plan = Vec<Step>;

/// A new entry. A whiteout at its name stays: it keeps the release's entry hidden when the new one goes again.
pub fn create(at: Name<'_>) -> Result<Plan> {
    match at.layers.shown() {
        Shown::Nothing => Ok(vec![Step::MakeDirs(at.path.parent()), Step::Place(at.path.clone())]),
        _ => Err(Error::answer(Errno::EXIST)),
    }
}

/// The entry in the upper layer, so that it can be changed there.
pub fn bring_up(at: Name<'_>) -> Result<Plan> {
    match at.layers.shown() {
        Shown::Nothing => Err(Error::answer(Errno::NOENT)),
        Shown::Upper(_) | Shown::Merged => Ok(Vec::new()),
        Shown::Lower(Kind::Dir) => Ok(vec![Step::MakeDirs(at.path.clone())]),
        Shown::Lower(_) => Ok(vec![Step::MakeDirs(at.path.parent()), Step::CopyUp(at.path.clone())]),
    }
}

/// unlink(2).
pub fn unlink(at: Name<'_>) -> Result<Plan> {
    if at.layers.is_dir() {
        return Err(Error::answer(Errno::ISDIR));
    }
    let mut plan = hide(at);
    match at.layers.shown() {
        Shown::Nothing => return Err(Error::answer(Errno::NOENT)),
        Shown::Upper(_) => plan.push(Step::Unlink(at.path.clone())),
        Shown::Lower(_) | Shown::Merged => {}
    }
    Ok(plan)
}

/// rmdir(2); `empty` is whether the directory shows no entry.
pub fn rmdir(at: Name<'_>, empty: bool) -> Result<Plan> {
    match at.layers.shown() {
        Shown::Nothing => return Err(Error::answer(Errno::NOENT)),
        _ if !at.layers.is_dir() => return Err(Error::answer(Errno::NOTDIR)),
        _ if !empty => return Err(Error::answer(Errno::NOTEMPTY)),
        _ => {}
    }
    let mut plan = hide(at);
    if at.layers.upper.is_some() {
        plan.push(Step::Rmdir(at.path.clone()));
    }
    Ok(plan)
}

/// link(2): a second name for a leaf.
pub fn link(from: Name<'_>, to: Name<'_>) -> Result<Plan> {
    if from.layers.is_dir() {
        return Err(Error::answer(Errno::PERM));
    }
    let mut plan = bring_up(from)?;
    if to.layers.shown() != Shown::Nothing {
        return Err(Error::answer(Errno::EXIST));
    }
    plan.push(Step::MakeDirs(to.path.parent()));
    plan.push(Step::Link(from.path.clone(), to.path.clone()));
    Ok(plan)
}

/// rename(2) and renameat2(2); `empty` is whether the target is a directory that shows no entry.
pub fn rename(from: Name<'_>, to: Name<'_>, onto: Onto, empty: bool) -> Result<Plan> {
    let (source, target) = (from.layers.shown(), to.layers.shown());
    if source == Shown::Nothing {
        return Err(Error::answer(Errno::NOENT));
    }
    if from.path == to.path {
        return Ok(Vec::new());
    }
    if to.path.is_within(from.path) || (onto == Onto::Exchange && from.path.is_within(to.path)) {
        return Err(Error::answer(Errno::INVAL));
    }
    match onto {
        Onto::Nothing if target != Shown::Nothing => return Err(Error::answer(Errno::EXIST)),
        Onto::Exchange if target == Shown::Nothing => return Err(Error::answer(Errno::NOENT)),
        Onto::Replace if target != Shown::Nothing => match (from.layers.is_dir(), to.layers.is_dir()) {
            (false, true) => return Err(Error::answer(Errno::ISDIR)),
            (true, false) => return Err(Error::answer(Errno::NOTDIR)),
            (true, true) if !empty => return Err(Error::answer(Errno::NOTEMPTY)),
            _ => {}
        },
        _ => {}
    }
    // As overlayfs without redirect_dir: what is in a release's directory would have to be copied.
    let moves = |shown| !matches!(shown, Shown::Merged | Shown::Lower(Kind::Dir));
    if !moves(source) || (onto == Onto::Exchange && !moves(target)) {
        return Err(Error::answer(Errno::XDEV));
    }
    let mut plan = bring_up(from)?;
    plan.push(Step::MakeDirs(to.path.parent()));
    plan.extend(hide(from));
    if onto == Onto::Exchange {
        plan.extend(bring_up(to)?);
    }
    // A directory that comes here must not show what this release, or a later one, has in one of the same name. What is
    // here stays until then: a release's directory, which is empty, becomes one of the upper layer.
    if from.layers.is_dir() && to.layers.below().is_some() {
        if target == Shown::Lower(Kind::Dir) {
            plan.push(Step::MakeDirs(to.path.clone()));
        }
        plan.extend(hide(to));
    }
    plan.push(Step::Rename(from.path.clone(), to.path.clone(), onto));
    Ok(plan)
}

/// Lets the release's entry show again; `empty` is whether the upper directory here has no entry of its own.
pub fn restore(at: Name<'_>, empty: bool) -> Result<Plan> {
    let Some(lower) = at.layers.lower else { return Err(Error::answer(Errno::NOENT)) };
    let mut plan = Plan::new();
    if at.layers.whiteout {
        plan.push(Step::Unhide(at.path.clone()));
    }
    match at.layers.upper {
        Some(UpperKind::Leaf) => plan.push(Step::Unlink(at.path.clone())),
        Some(UpperKind::Dir) if lower != Kind::Dir && !empty => return Err(Error::answer(Errno::NOTEMPTY)),
        Some(UpperKind::Dir) if lower != Kind::Dir => plan.push(Step::Rmdir(at.path.clone())),
        Some(UpperKind::Dir) | None => {}
    }
    Ok(plan)
}

/// A whiteout, if the release has something to hide here.
fn hide(at: Name<'_>) -> Plan {
    match at.layers.below() {
        Some(_) => vec![Step::Whiteout(at.path.clone())],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
