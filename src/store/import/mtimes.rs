//! Which mtime a node gets: the one with which its content first appeared at its path in this store.
//!
//! So that two releases never disagree about the mtime of what is the same in both: a switch between them
//! does not touch it, and the kernel may go on believing what it has.

use crate::error::Result;
use crate::store::manifest::{BuildNode, Builder, Manifest};
use crate::store::{Store, since_epoch};
use crate::tree::{Kind, Node, Tree};
use rayon::prelude::*;

/// Settles the mtimes of all nodes against all releases of the store.
pub fn settle(store: &Store, builder: &mut Builder) -> Result<()> {
    let mut earlier = Vec::new();
    for name in store.releases()? {
        match store.manifest(&name) {
            Ok(manifest) => earlier.push(manifest),
            // A damaged release cannot be switched to either, so nothing will disagree with it.
            Err(error) => log::warn!("{error}"),
        }
    }
    // The newest first: there most is the same.
    earlier.sort_by_key(|manifest| std::cmp::Reverse(manifest.added()));

    let now = i64::try_from(since_epoch().as_nanos()).unwrap_or(i64::MAX);
    let nodes = &builder.nodes;
    let settled: Vec<(u32, i64)> = directories(builder)
        .into_par_iter()
        .map(|(dir, path)| settle_in(&earlier, nodes, dir, &path))
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
                let whole = if path.is_empty() { node.name.clone() } else { [&path, &node.name[..]].join(&b'/') };
                dirs.push((*child, whole));
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
    let mut open = here.children.clone();
    open.retain(|child| nodes[*child as usize].kind != Kind::Dir);
    open.sort_unstable_by(|a, b| nodes[*a as usize].name.cmp(&nodes[*b as usize].name));
    let mut dir_open = true;
    for manifest in earlier {
        let Some(index) = manifest.find_path(path)? else { continue };
        let there = manifest.node(index)?;
        if there.kind != Kind::Dir {
            continue;
        }
        if dir_open && same_entries(manifest, (index, &there), nodes, here)? {
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
fn same_entries(
    manifest: &Manifest,
    (index, there): (u32, &Node),
    nodes: &[BuildNode],
    here: &BuildNode,
) -> Result<bool> {
    let children = manifest.children(index)?;
    if there.mode != here.mode || there.owner != here.owner || children.len() != here.children.len() {
        return Ok(false);
    }
    let mut ours: Vec<&BuildNode> = here.children.iter().map(|child| &nodes[*child as usize]).collect();
    ours.sort_unstable_by(|a, b| a.name.cmp(&b.name));
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
