//! Which mtime a node gets: the one with which its content first appeared at its path in this store.
//!
//! So that two releases never disagree about the mtime of what is the same in both: a switch between them
//! does not touch it, and the kernel may go on believing what it has.

use crate::error::Result;
use crate::store::manifest::{BuildNode, Builder, Manifest};
use crate::store::{Store, since_epoch};
use crate::tree::{Digest, Kind, Node, Tree};
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
    let paths = paths(builder);
    let nodes = &builder.nodes;
    let settled: Vec<i64> = (0..nodes.len())
        .into_par_iter()
        .map(|number| {
            for manifest in &earlier {
                if let Some(mtime) = same_in(manifest, nodes, number, &paths[number])? {
                    return Ok(mtime);
                }
            }
            // A time in the future would make caches keep what they should not.
            Ok(nodes[number].mtime.min(now))
        })
        .collect::<Result<_>>()?;
    for (node, mtime) in builder.nodes.iter_mut().zip(settled) {
        node.mtime = mtime;
    }
    Ok(())
}

fn paths(builder: &Builder) -> Vec<Vec<u8>> {
    let mut paths = vec![Vec::new(); builder.nodes.len()];
    for number in 0..builder.nodes.len() {
        for child in &builder.nodes[number].children {
            let name = &builder.nodes[*child as usize].name;
            let dir = &paths[number];
            paths[*child as usize] = if dir.is_empty() { name.clone() } else { [dir, &name[..]].join(&b'/') };
        }
    }
    paths
}

/// The mtime of the node at this path in a release, if it is the same there.
fn same_in(manifest: &Manifest, nodes: &[BuildNode], number: usize, path: &[u8]) -> Result<Option<i64>> {
    let Some(index) = manifest.find_path(path)? else { return Ok(None) };
    let (there, here) = (manifest.node(index)?, &nodes[number]);
    let same = there.kind == here.kind
        && match here.kind {
            Kind::File => manifest.digest(index)? == here.digest,
            Kind::Symlink => manifest.digest(index)? == Digest::of(&here.target),
            Kind::Dir => same_entries(manifest, (index, &there), nodes, here)?,
        };
    Ok(same.then_some(there.mtime))
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
                kind => {
                    let digest = if kind == Kind::File { ours.digest } else { Digest::of(&ours.target) };
                    theirs.mode == ours.mode && theirs.owner == ours.owner && manifest.digest(child)? == digest
                }
            };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}
