//! The change set: the directory entries in which two trees differ, leaves first.
//!
//! The walk goes down both trees at once and passes by every directory whose subtree digest is the same in
//! both, so its cost grows with what differs. The rules are those of docs/SEMANTICS.md, "The change set".

use super::{Kind, Node, NodeId, Tree};
use crate::error::Result;
use crate::fault::{self, Skip};
use std::cmp::Ordering;

/// Which of the two trees a number belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The tree that is being left.
    Old,
    /// The tree that is coming.
    New,
}

/// A name that does not mean the same in both trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedEntry {
    /// The directory it stands in.
    pub dir: NodeId,
    /// The tree in which `index` has the name.
    pub side: Side,
    /// The number of the node that bears the name.
    pub index: u32,
}

/// A directory with a changed name, or whose own mode or owner changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedDir {
    /// The directory.
    pub node: NodeId,
    /// The directory that it stands in; the root stands in itself.
    pub parent: NodeId,
    /// A tree that has it, and its number there.
    pub at: (Side, u32),
}

/// In what two trees differ.
#[derive(Debug, Default)]
pub struct ChangeSet {
    /// Changed names, leaves first: whatever lies below a name comes before it.
    pub entries: Vec<ChangedEntry>,
    /// Changed directories.
    pub dirs: Vec<ChangedDir>,
    /// Nodes of the new tree at whose path another content, or none, was before, and changed directories of
    /// the new tree: they get a new mtime.
    pub stamped: Vec<NodeId>,
    /// Files whose mode or owner changed and whose content did not, as (old node, new node): they keep their
    /// mtime. The second number is the new node's index.
    pub carried: Vec<(NodeId, NodeId, u32)>,
    /// Old and new nodes of changed files and symlinks: what the kernel believes of their attributes is to be
    /// forgotten after the switch.
    pub leaves: Vec<NodeId>,
}

impl ChangeSet {
    /// Whether the content of any path differs: then the switch takes a second of its own.
    pub fn changes_content(&self) -> bool {
        // A name that goes stamps its directory.
        !self.stamped.is_empty()
    }
}

/// A pair of directories at one path; at least one of the two is there.
struct Pair {
    old: Option<u32>,
    new: Option<u32>,
    node: NodeId,
    parent: NodeId,
    /// Whether the name of the directory itself, or of one above it, is in the change set.
    whole: bool,
}

/// The change set from `old` to `new`.
pub fn change_set<O: Tree, N: Tree>(old: &O, new: &N) -> Result<ChangeSet> {
    let mut set = ChangeSet::default();
    let mut pairs = vec![Pair { old: Some(0), new: Some(0), node: NodeId::ROOT, parent: NodeId::ROOT, whole: false }];
    while let Some(pair) = pairs.pop() {
        if !pair.whole && same_subtree(old, new, &pair)? {
            continue;
        }
        compare(old, new, &pair, &mut set, &mut pairs)?;
    }
    // The walk puts a directory's names before those below it; the kernel must drop them the other way round.
    set.entries.reverse();
    set.dirs.reverse();
    Ok(set)
}

fn same_subtree<O: Tree, N: Tree>(old: &O, new: &N, pair: &Pair) -> Result<bool> {
    let (Some(o), Some(n)) = (pair.old, pair.new) else { return Ok(false) };
    let (on, nn) = (old.node(o)?, new.node(n)?);
    Ok(on.mode == nn.mode && on.owner == nn.owner && old.digest(o)? == new.digest(n)?)
}

fn compare<O: Tree, N: Tree>(
    old: &O,
    new: &N,
    pair: &Pair,
    set: &mut ChangeSet,
    pairs: &mut Vec<Pair>,
) -> Result<()> {
    let mut changed = pair.whole;
    if let (Some(o), Some(n)) = (pair.old, pair.new) {
        let (on, nn) = (old.node(o)?, new.node(n)?);
        changed |= on.mode != nn.mode || on.owner != nn.owner;
    }
    let mut olds = match pair.old {
        Some(index) => old.children(index)?,
        None => 0..0,
    };
    let mut news = match pair.new {
        Some(index) => new.children(index)?,
        None => 0..0,
    };
    while !olds.is_empty() || !news.is_empty() {
        let order = if olds.is_empty() {
            Ordering::Greater
        } else if news.is_empty() {
            Ordering::Less
        } else {
            old.name(olds.start)?.cmp(new.name(news.start)?)
        };
        let o = if order.is_le() { olds.next() } else { None };
        let n = if order.is_ge() { news.next() } else { None };
        let on = o.map(|index| old.node(index)).transpose()?;
        let nn = n.map(|index| new.node(index)).transpose()?;
        changed |= compare_entry((o, on), (n, nn), pair, set, pairs, || match (o, n) {
            (Some(o), Some(n)) => Ok(old.digest(o)? == new.digest(n)?),
            _ => Ok(false),
        })?;
    }
    if changed {
        let at = match (pair.new, pair.old) {
            (Some(index), _) => (Side::New, index),
            (None, Some(index)) => (Side::Old, index),
            (None, None) => return Ok(()),
        };
        set.dirs.push(ChangedDir { node: pair.node, parent: pair.parent, at });
        if pair.new.is_some() {
            set.stamped.push(pair.node);
        }
    }
    Ok(())
}

/// Compares what the two trees say of one name; says whether the name is a changed one.
fn compare_entry(
    (o, on): (Option<u32>, Option<Node>),
    (n, nn): (Option<u32>, Option<Node>),
    pair: &Pair,
    set: &mut ChangeSet,
    pairs: &mut Vec<Pair>,
    same_content: impl Fn() -> Result<bool>,
) -> Result<bool> {
    let old_dir = on.filter(|node| node.kind == Kind::Dir);
    let new_dir = nn.filter(|node| node.kind == Kind::Dir);
    // A directory in both stays the same live node; anything else that differs changes its name's meaning.
    let stays = match (on, nn) {
        (Some(a), Some(b)) => a.nodeid == b.nodeid,
        _ => false,
    };
    let named = pair.whole || !stays;
    if named {
        if let Some(index) = o {
            set.entries.push(ChangedEntry { dir: pair.node, side: Side::Old, index });
        } else if let Some(index) = n {
            set.entries.push(ChangedEntry { dir: pair.node, side: Side::New, index });
        }
        let leaf = |node: Option<Node>| node.filter(|node| node.kind != Kind::Dir);
        set.leaves.extend(leaf(on).iter().chain(leaf(nn).iter()).map(|node| node.nodeid));
        match (leaf(on), leaf(nn), n) {
            (Some(a), Some(b), Some(index)) if a.kind == b.kind && same_content()? => {
                set.carried.push((a.nodeid, b.nodeid, index));
            }
            (_, Some(b), _) => set.stamped.push(b.nodeid),
            _ => {}
        }
    }
    if old_dir.is_some() || new_dir.is_some() {
        let whole = named;
        if !(whole && fault::skips(Skip::DeepChangeSet)) {
            let node = new_dir.or(old_dir).map_or(NodeId::NONE, |node| node.nodeid);
            pairs.push(Pair {
                old: old_dir.and(o),
                new: new_dir.and(n),
                node,
                parent: pair.node,
                whole,
            });
        }
    }
    Ok(named)
}
