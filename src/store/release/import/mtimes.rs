//! Which mtime a node gets: the one with which its content first appeared at its path in this store.
//!
//! So that two releases never disagree about the mtime of a node that is the same in both: a switch between them does
//! not touch it, and the kernel may go on believing what it has.

use crate::error::Result;
use crate::store::release::manifest::{BuildNode, Builder, Manifest};
use crate::store::since_epoch;
use crate::tree::{Kind, Node, Tree, path_in};
use rayon::prelude::*;

/// Settles the mtimes of all nodes against the releases of the store, the newest first: there most is the same.
pub(super) fn settle(earlier: &[Manifest], builder: &mut Builder) -> Result<()> {
    let now = i64::try_from(since_epoch().as_nanos()).unwrap_or(i64::MAX);
    let nodes = &builder.nodes;
    let settled: Vec<(u32, i64)> = directories(builder)
        .into_par_iter()
        .map(|(dir, path)| settle_in(earlier, nodes, dir, &path))
        .collect::<Result<Vec<_>>>()?
        .concat();
    for node in &mut builder.nodes {
        // A time in the future would make caches keep what they should not.
        node.mtime = node.mtime.min(now);
    }
    for (number, mtime) in settled {
        builder.nodes[number as usize].mtime = mtime;
    }
    Ok(())
}

/// The directories with their paths.
fn directories(builder: &Builder) -> Vec<(u32, Vec<u8>)> {
    let mut dirs = vec![(0, Vec::new())];
    let mut next = 0;
    while let Some((number, path)) = dirs.get(next).cloned() {
        for child in &builder.nodes[number as usize].children {
            let node = &builder.nodes[*child as usize];
            if node.kind == Kind::Dir {
                dirs.push((*child, path_in(&path, &node.name)));
            }
        }
        next += 1;
    }
    dirs
}

/// The mtimes that an earlier release has for a directory, and for the files and symlinks in it, each where it is the
/// same there.
fn settle_in(earlier: &[Manifest], nodes: &[BuildNode], dir: u32, path: &[u8]) -> Result<Vec<(u32, i64)>> {
    let here = &nodes[dir as usize];
    let mut settled = Vec::with_capacity(here.children.len() + 1);
    let mut children = here.children.clone();
    children.sort_unstable_by(|a, b| nodes[*a as usize].name.cmp(&nodes[*b as usize].name));
    let mut open = children.clone();
    open.retain(|child| nodes[*child as usize].kind != Kind::Dir);
    let mut dir_open = true;
    for manifest in earlier {
        let Some(index) = manifest.find_path(path)? else { continue };
        let there = manifest.node(index)?;
        if there.kind != Kind::Dir {
            continue;
        }
        if dir_open
            && same_entries(manifest, (index, &there), here, children.iter().map(|child| &nodes[*child as usize]))?
        {
            settled.push((dir, there.mtime));
            dir_open = false;
        }
        let mut theirs = manifest.children(index)?.peekable();
        let mut left = Vec::new();
        for child in open {
            let ours = &nodes[child as usize];
            while let Some(their) = theirs.peek()
                && manifest.name(*their)? < &ours.name[..]
            {
                theirs.next();
            }
            match theirs.peek() {
                Some(their) if manifest.name(*their)? == ours.name && same_leaf(manifest, *their, ours)? => {
                    settled.push((child, manifest.node(*their)?.mtime));
                }
                _ => left.push(child),
            }
        }
        open = left;
        if open.is_empty() && !dir_open {
            break;
        }
    }
    Ok(settled)
}

/// Whether a file or symlink has the same content.
fn same_leaf(manifest: &Manifest, their: u32, ours: &BuildNode) -> Result<bool> {
    Ok(manifest.node(their)?.kind == ours.kind && manifest.digest(their)? == ours.content())
}

/// Whether a directory itself is the same: its mode, its owner, and what its names stand for. A directory in
/// it stands for itself, whatever it holds.
fn same_entries<'a>(
    manifest: &Manifest,
    (index, there): (u32, &Node),
    here: &BuildNode,
    ours: impl Iterator<Item = &'a BuildNode>,
) -> Result<bool> {
    let children = manifest.children(index)?;
    if there.mode != here.mode || there.owner != here.owner || children.len() != here.children.len() {
        return Ok(false);
    }
    for (child, ours) in children.zip(ours) {
        let theirs = manifest.node(child)?;
        let same = theirs.kind == ours.kind
            && manifest.name(child)? == ours.name
            && match ours.kind {
                Kind::Dir => true,
                _ => {
                    theirs.mode == ours.mode && theirs.owner == ours.owner && manifest.digest(child)? == ours.content()
                }
            };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Digest;
    use proptest::prelude::*;

    /// A few names in three directories: a letter of content, or none; as file, symlink or directory.
    type Entries = Vec<Option<(u8, u8)>>;

    fn builder(entries: &Entries, mtime: i64) -> Builder {
        let node = |name: &[u8], kind| {
            let mut node = BuildNode::new(name, kind, 0o755);
            node.mtime = mtime;
            node
        };
        let mut builder = Builder::new(node(b"", Kind::Dir));
        let inner = builder.push(0, node(b"m", Kind::Dir));
        let deep = builder.push(inner, node(b"m", Kind::Dir));
        for (number, entry) in entries.iter().enumerate() {
            let Some((kind, content)) = entry else { continue };
            let kind = [Kind::File, Kind::Symlink, Kind::Dir][usize::from(*kind)];
            let mut node = node(format!("{}", number / 3).as_bytes(), kind);
            (node.digest, node.target) = (Digest::of(&[*content]), vec![*content]);
            node.mtime += number as i64;
            builder.push([0, inner, deep][number % 3], node);
        }
        builder
    }

    /// The same, said node by node: the newest release that has the same thing at the path.
    fn expected(earlier: &[Manifest], builder: &Builder, number: u32, path: &[u8]) -> Option<i64> {
        let here = &builder.nodes[number as usize];
        earlier.iter().find_map(|manifest| {
            let index = manifest.find_path(path).expect("sound")?;
            let there = manifest.node(index).expect("sound");
            let same = there.kind == here.kind
                && match here.kind {
                    Kind::Dir => {
                        let name = |child: u32| manifest.name(child).expect("sound").to_vec();
                        let shown =
                            |name: &[u8], kind, content| (name.to_vec(), (kind != Kind::Dir).then_some(content));
                        let theirs = manifest.children(index).expect("sound").map(|child| {
                            let kind = manifest.node(child).expect("sound").kind;
                            (kind as u8, shown(&name(child), kind, manifest.digest(child).expect("sound")))
                        });
                        let ours = here.children.iter().map(|child| &builder.nodes[*child as usize]);
                        let mut ours: Vec<_> =
                            ours.map(|node| (node.kind as u8, shown(&node.name, node.kind, node.content()))).collect();
                        ours.sort_by(|(_, a), (_, b)| a.0.cmp(&b.0));
                        theirs.eq(ours)
                    }
                    _ => manifest.digest(index).expect("sound") == here.content(),
                };
            same.then_some(there.mtime)
        })
    }

    proptest! {
        #[test]
        fn each_node_gets_the_mtime_of_the_newest_release_that_has_the_same(
            trees in prop::collection::vec(prop::collection::vec(prop::option::of((0..3u8, 0..2u8)), 12), 1..4),
        ) {
            let (here, earlier) = trees.split_first().expect("one at least");
            let here = builder(here, 1);
            let earlier: Vec<Manifest> = earlier
                .iter()
                .zip(2..)
                .map(|(tree, edition)| {
                    let bytes = builder(tree, edition * 1000).encode(edition).expect("encodes");
                    Manifest::from_bytes(bytes, std::path::Path::new("earlier")).expect("opens")
                })
                .collect();
            for (dir, path) in directories(&here) {
                let settled = settle_in(&earlier, &here.nodes, dir, &path).expect("sound");
                let get = |number| settled.iter().find(|(settled, _)| *settled == number).map(|(_, mtime)| *mtime);
                prop_assert_eq!(get(dir), expected(&earlier, &here, dir, &path));
                for child in &here.nodes[dir as usize].children {
                    let node = &here.nodes[*child as usize];
                    if node.kind != Kind::Dir {
                        let path = path_in(&path, &node.name);
                        prop_assert_eq!(get(*child), expected(&earlier, &here, *child, &path));
                    }
                }
            }
        }
    }
}
