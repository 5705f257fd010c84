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
    /// A tree that has it.
    pub side: Side,
    /// Its number there.
    pub index: u32,
}

/// A file whose mode or owner changed and whose content did not: it keeps its mtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarriedFile {
    /// Its node in the old tree.
    pub old: NodeId,
    /// Its node in the new tree.
    pub new: NodeId,
    /// The number of the new node.
    pub index: u32,
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
    /// Files whose mode or owner changed and whose content did not.
    pub carried: Vec<CarriedFile>,
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

/// A node of one of the two trees, and its number there.
#[derive(Clone, Copy)]
struct Numbered {
    index: u32,
    node: Node,
}

impl Numbered {
    fn of(tree: &impl Tree, index: u32) -> Result<Self> {
        Ok(Self { index, node: tree.node(index)? })
    }
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

fn compare<O: Tree, N: Tree>(old: &O, new: &N, pair: &Pair, set: &mut ChangeSet, pairs: &mut Vec<Pair>) -> Result<()> {
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
        let was = o.map(|index| Numbered::of(old, index)).transpose()?;
        let is = n.map(|index| Numbered::of(new, index)).transpose()?;
        changed |= compare_entry(was, is, pair, set, pairs, || match (o, n) {
            (Some(o), Some(n)) => Ok(old.digest(o)? == new.digest(n)?),
            _ => Ok(false),
        })?;
    }
    if changed {
        let (side, index) = match (pair.new, pair.old) {
            (Some(index), _) => (Side::New, index),
            (None, Some(index)) => (Side::Old, index),
            (None, None) => return Ok(()),
        };
        set.dirs.push(ChangedDir { node: pair.node, parent: pair.parent, side, index });
        if pair.new.is_some() {
            set.stamped.push(pair.node);
        }
    }
    Ok(())
}

/// Compares what the two trees say of one name; says whether the name is a changed one.
fn compare_entry(
    was: Option<Numbered>,
    is: Option<Numbered>,
    pair: &Pair,
    set: &mut ChangeSet,
    pairs: &mut Vec<Pair>,
    same_content: impl Fn() -> Result<bool>,
) -> Result<bool> {
    let dir = |found: Option<Numbered>| found.filter(|found| found.node.kind == Kind::Dir);
    let leaf = |found: Option<Numbered>| found.filter(|found| found.node.kind != Kind::Dir);
    // A directory in both stays the same live node; anything else that differs changes its name's meaning.
    let stays = match (was, is) {
        (Some(a), Some(b)) => a.node.nodeid == b.node.nodeid,
        _ => false,
    };
    let named = pair.whole || !stays;
    if named {
        if let Some(Numbered { index, .. }) = was {
            set.entries.push(ChangedEntry { dir: pair.node, side: Side::Old, index });
        } else if let Some(Numbered { index, .. }) = is {
            set.entries.push(ChangedEntry { dir: pair.node, side: Side::New, index });
        }
        set.leaves.extend(leaf(was).iter().chain(leaf(is).iter()).map(|found| found.node.nodeid));
        match (leaf(was), leaf(is)) {
            (Some(a), Some(b)) if a.node.kind == b.node.kind && same_content()? => {
                set.carried.push(CarriedFile { old: a.node.nodeid, new: b.node.nodeid, index: b.index });
            }
            (_, Some(b)) => set.stamped.push(b.node.nodeid),
            _ => {}
        }
    }
    let (old_dir, new_dir) = (dir(was), dir(is));
    if let Some(shown) = new_dir.or(old_dir) {
        let whole = named;
        if !(whole && fault::skips(Skip::DeepChangeSet)) {
            let (old, new) = (old_dir.map(|found| found.index), new_dir.map(|found| found.index));
            pairs.push(Pair { old, new, node: shown.node.nodeid, parent: pair.node, whole });
        }
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::plain::{Item, Plain};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    type Model = BTreeMap<Vec<u8>, Item>;

    /// (directory path, name) pairs of a change set, in order.
    fn names(set: &ChangeSet, old: &Plain, new: &Plain) -> Vec<Vec<u8>> {
        let path = |entry: &ChangedEntry| match entry.side {
            Side::Old => old.path(entry.index),
            Side::New => new.path(entry.index),
        };
        set.entries
            .iter()
            .map(|entry| {
                let path = path(entry);
                let dir = path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &path[..at]);
                assert_eq!(entry.dir, NodeId::of_dir(dir), "the directory is that of the path");
                path
            })
            .collect()
    }

    /// What the rules say, by looking at every path: a name is changed if it does not stand for the same node in
    /// both, or if a name above it is changed.
    fn expected(old: &Model, new: &Model) -> BTreeSet<Vec<u8>> {
        let same = |path: &[u8]| match (old.get(path), new.get(path)) {
            (Some(Item::Dir { .. }), Some(Item::Dir { .. })) => true,
            (a, b) => a == b,
        };
        let above = |path: &[u8]| {
            (0..path.len()).filter(|at| path[*at] == b'/').map(|at| path[..at].to_vec()).collect::<Vec<_>>()
        };
        let all: BTreeSet<&Vec<u8>> = old.keys().chain(new.keys()).collect();
        all.into_iter().filter(|path| !same(path) || above(path).iter().any(|up| !same(up))).cloned().collect()
    }

    fn check(old: &Model, new: &Model) {
        let (a, b) = (Plain::new(old), Plain::new(new));
        let set = change_set(&a, &b).expect("plain trees can be read");
        let names = names(&set, &a, &b);
        let unique: BTreeSet<Vec<u8>> = names.iter().cloned().collect();
        assert_eq!(unique.len(), names.len(), "no name twice");
        assert_eq!(unique, expected(old, new));
        for (at, name) in names.iter().enumerate() {
            let below = [&name[..], b"/"].concat();
            assert!(!names[at..].iter().any(|later| later.starts_with(&below)), "leaves first");
        }
        // A changed directory is one with a changed name or another mode; those that are there now are stamped.
        let dir_of = |path: &[u8]| path.iter().rposition(|b| *b == b'/').map_or(Vec::new(), |at| path[..at].to_vec());
        let mut dirs: BTreeSet<Vec<u8>> = names.iter().map(|name| dir_of(name)).collect();
        for (path, item) in old.iter().filter(|(path, _)| new.contains_key(*path)) {
            if matches!((item, &new[path]), (Item::Dir { mode: a }, Item::Dir { mode: b }) if a != b) {
                dirs.insert(path.clone());
            }
        }
        let is_dir = |model: &Model, path: &[u8]| path.is_empty() || matches!(model.get(path), Some(Item::Dir { .. }));
        for path in old.keys().chain(new.keys()) {
            // A directory that appears or goes is changed, even when it is empty.
            if is_dir(old, path) != is_dir(new, path) {
                dirs.insert(path.clone());
            }
        }
        let found: BTreeSet<NodeId> = set.dirs.iter().map(|dir| dir.node).collect();
        assert_eq!(found, dirs.iter().map(|dir| NodeId::of_dir(dir)).collect::<BTreeSet<_>>());
        for dir in dirs.iter().filter(|dir| is_dir(new, dir)) {
            assert!(set.stamped.contains(&NodeId::of_dir(dir)), "{dir:?} gets a new mtime");
        }
        // A file is stamped if and only if the content at its path changed.
        for (path, item) in new.iter().filter(|(_, item)| !matches!(item, Item::Dir { .. })) {
            let content = |item: &Item| match item {
                Item::File { content, .. } => Some((Kind::File, content.clone())),
                Item::Symlink { target } => Some((Kind::Symlink, target.clone())),
                Item::Dir { .. } => None,
            };
            let changed = old.get(path).and_then(content) != content(item);
            let node = b.nodeid_of(path);
            assert_eq!(set.stamped.contains(&node), changed, "{}", String::from_utf8_lossy(path));
            let carried = set.carried.iter().any(|file| file.new == node);
            assert_eq!(carried, !changed && old.get(path) != Some(item), "{}", String::from_utf8_lossy(path));
        }
    }

    fn item() -> impl Strategy<Value = Item> {
        prop_oneof![
            3 => prop_oneof![Just(0o755), Just(0o700)].prop_map(|mode| Item::Dir { mode }),
            3 => (0u8..3, prop_oneof![Just(0o644), Just(0o600)])
                .prop_map(|(content, mode)| Item::File { content: vec![content], mode }),
            1 => (0u8..2).prop_map(|target| Item::Symlink { target: vec![b'a' + target] }),
        ]
    }

    /// Trees over a tiny alphabet, so that two of them often have the same paths.
    fn model() -> impl Strategy<Value = Model> {
        proptest::collection::vec((proptest::collection::vec(0u8..3, 1..4), item()), 0..14).prop_map(|items| {
            let mut model = Model::new();
            for (names, item) in items {
                let names: Vec<Vec<u8>> = names.iter().map(|name| vec![b'a' + name]).collect();
                let free = (1..names.len())
                    .all(|depth| matches!(model.get(&names[..depth].join(&b'/')), None | Some(Item::Dir { .. })));
                let path = names.join(&b'/');
                let below = [&path[..], b"/"].concat();
                let bears = model.keys().any(|other| other.starts_with(&below));
                if !free || (bears && !matches!(item, Item::Dir { .. })) {
                    continue;
                }
                for depth in 1..names.len() {
                    model.entry(names[..depth].join(&b'/')).or_insert(Item::Dir { mode: 0o755 });
                }
                model.insert(path, item);
            }
            model
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn change_set_is_what_the_rules_say(old in model(), new in model()) {
            check(&old, &new);
        }
    }

    #[test]
    fn nothing_changes_between_equal_trees() {
        let model: Model = [(b"d".to_vec(), Item::Dir { mode: 0o755 })].into();
        let (a, b) = (Plain::new(&model), Plain::new(&model));
        let set = change_set(&a, &b).expect("plain");
        assert!(set.entries.is_empty() && set.dirs.is_empty() && !set.changes_content());
    }
}
