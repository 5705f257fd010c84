//! The scopes of a store in a release: the directories that they lie in are there, whatever the source has.

use super::show;
use super::walk::{Found, Walk};
use crate::store::media::scope::Scope;
use crate::store::release::manifest::BuildNode;
use crate::tree::Kind;

/// Adds the directories that scopes lie in and the source lacks, as the source's own top directory is. Gives warnings
/// about what a scope covers.
pub(super) fn make_room(walk: &mut Walk, scopes: &[Scope]) -> Vec<String> {
    let mut warnings = Vec::new();
    for scope in scopes {
        let path = scope.path.as_bytes();
        let mut dirs: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let top = dirs.pop().unwrap_or_default();
        let mut parent = 0;
        let mut reached = true;
        for dir in dirs {
            match walk.find(parent, dir) {
                Some(found) if walk.found[found as usize].node.kind == Kind::Dir => parent = found,
                Some(other) => {
                    let what = word(walk.found[other as usize].node.kind);
                    let at = show(&walk.path(other as usize));
                    warnings.push(format!("the scope {} cannot be reached: {at} is a {what} here", scope.path));
                    reached = false;
                    break;
                }
                None => parent = add_dir(walk, parent, dir),
            }
        }
        let top = walk.find(parent, top).filter(|_| reached).map(|top| walk.found[top as usize].node.kind);
        if let Some(kind) = top.filter(|kind| *kind != Kind::Dir) {
            let what = word(kind);
            warnings.push(format!("{} is a {what} in this release and a scope: the scope is what shows", scope.path));
        }
    }
    warnings
}

fn add_dir(walk: &mut Walk, parent: u32, name: &[u8]) -> u32 {
    let top = &walk.found[0];
    let mut node = BuildNode::new(name, Kind::Dir, top.node.mode);
    (node.owner, node.mtime) = (top.node.owner, top.node.mtime);
    walk.found.push(Found { parent, node, look: top.look, blocks_bytes: 0, known: false, trusted: false });
    walk.found.len() as u32 - 1
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Dir => "directory",
        Kind::File => "file",
        Kind::Symlink => "symlink",
    }
}
