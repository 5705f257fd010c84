//! Steps: small changes of the disk, announced before and noted afterwards.

use super::super::node::{Backing, MediaNode};
use super::{MOVES, Nodes};
use crate::store::media::home::Orphan;
use crate::tree::union::{Onto, Step};
use crate::tree::{LayerPath, NodeId};

/// A step under way: the nodes whose names it changes.
#[derive(Debug)]
pub(in crate::fs::media) struct Announced<'s> {
    step: &'s Step,
    from: Option<NodeId>,
    to: Option<NodeId>,
    /// Directories that it moves, by the names that they have before.
    dirs: Vec<&'s LayerPath>,
}

/// What came of a step.
#[derive(Debug)]
pub(in crate::fs::media) enum StepOutcome {
    /// It failed.
    Failed,
    /// It was done; the leaf that it took out of the tree, and that is kept.
    Done(Option<Orphan>),
    /// It was a whiteout, and left nothing at its name.
    NameGone,
}

impl Nodes {
    /// Announces a step: its disk work comes next, and then [`Nodes::end_step`], whatever came of it.
    pub(in crate::fs::media) fn begin_step<'s>(&mut self, step: &'s Step) -> Announced<'s> {
        let (from, to) = match step {
            Step::Unlink(path) | Step::Rmdir(path) | Step::Whiteout(path) | Step::Link(path, _) => {
                (self.at(path), None)
            }
            Step::CopyUp(path) => (self.at(path), None),
            Step::Rename(from, to, _) => (self.at(from), self.at(to)),
            Step::Place(_) | Step::MakeDirs(_) | Step::Unhide(_) => (None, None),
        };
        let mut dirs = Vec::new();
        if let Step::Rename(old, new, _) = step {
            for (node, path) in [(from, old), (to, new)] {
                let is_dir = |held: &MediaNode| matches!(held.backing, Backing::Dir);
                if node.and_then(|node| self.nodes.peek(&node)).is_some_and(is_dir) {
                    dirs.push(path);
                    self.moving.push(path.clone());
                }
            }
        }
        for node in from.iter().chain(to.iter()) {
            if let Some(held) = self.nodes.peek_mut(node) {
                held.moving += 1;
            }
        }
        Announced { step, from, to, dirs }
    }

    /// A step is over: names change here as they did on the disk. Gives back the leaf that it took out of the tree if
    /// nobody knows it.
    pub(in crate::fs::media) fn end_step(&mut self, announced: Announced<'_>, outcome: StepOutcome) -> Option<Orphan> {
        let Announced { step, from, to, dirs } = announced;
        for node in from.iter().chain(to.iter()) {
            if let Some(held) = self.nodes.peek_mut(node) {
                held.moving -= 1;
            }
        }
        for dir in dirs {
            if let Some(at) = self.moving.iter().position(|moving| moving == dir) {
                self.moving.swap_remove(at);
            }
        }
        for path in paths_of(step) {
            self.ended[self.counter(&path.parent())] += 1;
        }
        let mut kept = match outcome {
            StepOutcome::Failed => return None,
            StepOutcome::Done(kept) => kept,
            StepOutcome::NameGone => {
                paths_of(step).for_each(|path| self.lose(from, path, &mut None));
                return None;
            }
        };
        match step {
            Step::Unlink(path) | Step::Rmdir(path) => self.lose(from, path, &mut kept),
            Step::Link(_, to) => {
                if let Some(node) = from {
                    self.give_name(node, to);
                }
            }
            Step::Rename(from, to, Onto::Exchange) => {
                [(from, to), (to, from)].into_iter().for_each(|(from, to)| self.note_move(from, to));
                self.places.exchange(from, to);
                [from, to].into_iter().for_each(|path| self.forget_look(path));
            }
            Step::Rename(old, new, _) => {
                self.lose(to, new, &mut kept);
                self.note_move(old, new);
                self.places.rename(old, new);
                self.forget_look(new);
                if let Some(node) = from {
                    self.give_name(node, new);
                }
            }
            Step::Whiteout(_) | Step::Unhide(_) | Step::Place(_) | Step::MakeDirs(_) | Step::CopyUp(_) => {}
        }
        kept
    }

    /// The node that had a name loses it, and keeps the leaf if that was its last one.
    fn lose(&mut self, node: Option<NodeId>, path: &LayerPath, kept: &mut Option<Orphan>) {
        let place = self.places.find(path);
        if let Some(held) = node.and_then(|node| self.nodes.peek_mut(&node))
            && held.names.iter().all(|name| Some(*name) == place)
            && held.orphan.is_none()
        {
            held.orphan = kept.take();
        }
        let now = self.at(path).filter(|now| Some(*now) != node);
        for node in node.into_iter().chain(now) {
            self.lose_name(node, path);
        }
    }

    /// Remembers that a directory is renamed, for the looks that this overlaps.
    fn note_move(&mut self, from: &LayerPath, to: &LayerPath) {
        let is_dir = |held: &MediaNode| matches!(held.backing, Backing::Dir);
        if self.at(from).and_then(|node| self.nodes.peek(&node)).is_some_and(is_dir) {
            self.moved += 1;
            self.last_moved.truncate(MOVES - 1);
            self.last_moved.push_front([from.clone(), to.clone()]);
        }
    }

    /// A rename moved the ctime of what is at a path now.
    fn forget_look(&mut self, path: &LayerPath) {
        if let Some(held) = self.at(path).and_then(|node| self.nodes.peek_mut(&node)) {
            held.look = None;
        }
    }
}

/// The paths whose names a step changes.
pub(in crate::fs::media) fn paths_of(step: &Step) -> impl Iterator<Item = &LayerPath> {
    let (first, second) = match step {
        Step::MakeDirs(path)
        | Step::CopyUp(path)
        | Step::Whiteout(path)
        | Step::Unhide(path)
        | Step::Place(path)
        | Step::Unlink(path)
        | Step::Rmdir(path) => (path, None),
        Step::Rename(from, to, _) | Step::Link(from, to) => (from, Some(to)),
    };
    std::iter::once(first).chain(second)
}
