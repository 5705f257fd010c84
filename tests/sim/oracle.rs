//! What may be seen: every switch makes a view, and whoever looks sees one that was there while they looked.

use crate::world::{Item, Tree, join};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use verfs::fs::Attr;
use verfs::store::active::stamps::Stamp;
use verfs::tree::NodeId;

/// What a walk to a path met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    Node(NodeId),
    Nothing,
    NotDir,
}

/// What is served between two switches.
#[derive(Debug)]
struct View {
    tree: Arc<Tree>,
    /// The mtimes that a switch gave.
    stamps: BTreeMap<NodeId, Stamp>,
}

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Names and attributes.
    All,
    /// Names alone.
    Names,
}

/// All views that were served, and the one that comes.
#[derive(Debug)]
pub struct Oracle {
    views: Vec<View>,
    coming: Option<View>,
    /// The last whose switch has returned.
    returned: usize,
    judged: Judged,
    /// How often a transition was opened, closed or ended by a swap.
    turns: usize,
}

impl Since {
    /// For a walk that met what a late answer made the kernel believe: until the switch returns, that may be old.
    pub fn relax(&mut self) {
        self.served = self.returned;
    }
}

/// When something began: views before these were gone by then.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    /// For names: the view that was served.
    served: usize,
    /// For attributes: that of the last switch that had returned.
    returned: usize,
    turn: usize,
}

impl Oracle {
    pub fn new(tree: Arc<Tree>, judged: Judged) -> Self {
        Self { views: vec![View { tree, stamps: BTreeMap::new() }], coming: None, returned: 0, judged, turns: 0 }
    }

    pub fn now(&self) -> Since {
        Since { served: self.last(), returned: self.returned, turn: self.turns }
    }

    /// A transition opens or closes.
    pub fn turn(&mut self) {
        self.turns += 1;
    }

    /// What is served.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.views[self.views.len() - 1].tree
    }

    /// A switch begins: what it changes gets this stamp.
    pub fn begin(&mut self, tree: Arc<Tree>, stamp: Stamp) {
        let before = &self.views[self.views.len() - 1];
        let (old, new) = (&before.tree.items, &tree.items);
        let mut stamps = before.stamps.clone();
        let served = |node: &NodeId| before.stamps.get(node).copied().unwrap_or(Stamp::from_nanos(0));
        for (path, (item, node)) in new {
            let was = old.get(path);
            let same = match (was, item) {
                (Some((Item::Dir { mode: a }, _)), Item::Dir { mode: b }) => {
                    a == b && names(old, path) == names(new, path)
                }
                (Some((Item::File { content: a, .. }, _)), Item::File { content: b, .. }) => a == b,
                _ => false,
            };
            match was {
                Some((_, was)) if same => stamps.insert(*node, served(was)),
                _ => stamps.insert(*node, stamp),
            };
        }
        self.coming = Some(View { tree, stamps });
    }

    /// The instant of the switch.
    pub fn swap(&mut self) {
        self.turn();
        self.views.extend(self.coming.take());
    }

    /// The switch returned, with success or without.
    pub fn end(&mut self) {
        self.coming = None;
        self.returned = self.views.len() - 1;
    }

    /// The last tree up to a view that has a directory at a path.
    fn last_with(&self, view: usize, dir: &str) -> Option<&Tree> {
        let has = |view: &&View| view.tree.items.get(dir).is_some_and(|(item, _)| item.is_dir());
        self.views[..=view].iter().rev().find(has).map(|view| &*view.tree)
    }

    fn resolve(&self, view: usize, base: &str, walk: &[&str]) -> Met {
        let Some(tree) = self.last_with(view, base) else { return Met::Nothing };
        let mut path = base.to_owned();
        for name in walk {
            match tree.items.get(&path) {
                Some((Item::Dir { .. }, _)) => path = join(&path, name),
                _ => return Met::NotDir,
            }
            if !tree.items.contains_key(&path) {
                return Met::Nothing;
            }
        }
        Met::Node(tree.items[&path].1)
    }

    /// Whether one view that was served since then explains what a walk met.
    pub fn check_walk(&self, since: Since, base: &str, walk: &[&str], met: Met) -> Result<(), String> {
        let views = since.served..self.views.len();
        if views.clone().any(|view| self.resolve(view, base, walk) == met) {
            return Ok(());
        }
        let right: Vec<Met> = views.map(|view| self.resolve(view, base, walk)).collect();
        Err(format!("a walk from {base:?} along {walk:?} met {met:?}, and right is one of {right:?}"))
    }

    /// Whether a view explains the attributes of the node at a path.
    pub fn check_attributes(&self, since: Since, path: &str, attr: &Attr) -> Result<(), String> {
        let right = |view: usize| {
            let stamp = self.views[view].stamps.get(&attr.node).copied().unwrap_or(Stamp::from_nanos(0));
            let mode = match self.last_with(view, path) {
                Some(tree) if tree.items[path].1 == attr.node => tree.items[path].0.mode(),
                // A file's number tells its mode.
                _ => attr.mode,
            };
            (mode, stamp)
        };
        let views = since.returned..self.views.len();
        if self.judged == Judged::Names || views.clone().any(|view| right(view) == (attr.mode, attr.mtime)) {
            return Ok(());
        }
        let right: Vec<_> = views.map(right).collect();
        Err(format!("{path:?} has the attributes {:?}, and right is one of {right:?}", (attr.mode, attr.mtime)))
    }

    /// Whether a view that was served up to `until` explains a listing.
    pub fn check_listing(
        &self,
        since: Since,
        until: usize,
        dir: &str,
        listed: &BTreeMap<String, NodeId>,
    ) -> Result<(), String> {
        let mut right =
            (since.served..=until).map(|view| self.last_with(view, dir).map(|tree| names(&tree.items, dir)));
        let listed: BTreeSet<(&str, NodeId)> = listed.iter().map(|(name, node)| (&**name, *node)).collect();
        match right.any(|right| right.as_ref() == Some(&listed)) {
            true => Ok(()),
            false => Err(format!("a listing of {dir:?} shows {listed:?}")),
        }
    }

    /// Whether another transition, or another view, has come since then.
    pub fn is_late(&self, since: Since) -> bool {
        since.turn < self.turns
    }

    /// Whether the release that was served then has a node.
    pub fn has(&self, since: Since, node: NodeId) -> bool {
        self.views[since.served].tree.items.values().any(|(_, other)| *other == node)
    }

    /// The last view that is served.
    pub fn last(&self) -> usize {
        self.views.len() - 1
    }
}

fn names<'a>(items: &'a BTreeMap<String, (Item, NodeId)>, dir: &str) -> BTreeSet<(&'a str, NodeId)> {
    let name = |path: &'a String| {
        let rest = if dir.is_empty() { path } else { path.strip_prefix(dir)?.strip_prefix('/')? };
        (!rest.is_empty() && !rest.contains('/')).then_some(rest)
    };
    items.iter().filter_map(|(path, (_, node))| Some((name(path)?, *node))).collect()
}
