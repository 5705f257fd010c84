//! The scopes of a store in a release: the directories that they lie in are there, whatever the source has.

use super::show;
use super::walk::{Found, Walk};
use crate::store::manifest::BuildNode;
use crate::store::scope::Scope;
use crate::tree::Kind;

/// Adds the directories that scopes lie in and the source lacks, as the source's own top directory is. Gives warnings
/// about what a scope covers.
pub fn make_room(walk: &mut Walk, scopes: &[Scope]) -> Vec<String> {
    let mut warnings = Vec::new();
    for scope in scopes {
        let path = scope.path.as_bytes();
        let mut parent = 0;
        for end in (0..path.len()).filter(|at| path[*at] == b'/') {
            match walk.found.iter().position(|found| found.path == path[..end]) {
                Some(dir) if walk.found[dir].node.kind == Kind::Dir => parent = dir as u32,
                Some(other) => {
                    let what = word(walk.found[other].node.kind);
                    let at = show(&path[..end]);
                    warnings.push(format!("the scope {} cannot be reached: {at} is a {what} here", scope.path));
                    break;
                }
                None => parent = add_dir(walk, parent, &path[..end]),
            }
        }
        let top = walk.found.iter().find(|found| found.path == path && found.node.kind != Kind::Dir);
        if let Some(top) = top {
            warnings.push(format!(
                "{} is a {} in this release and a scope: the scope is what shows",
                scope.path,
                word(top.node.kind)
            ));
        }
    }
    warnings
}

fn add_dir(walk: &mut Walk, parent: u32, path: &[u8]) -> u32 {
    let top = &walk.found[0];
    let name = &path[path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1)..];
    let mut node = BuildNode::new(name, Kind::Dir, top.node.mode);
    (node.owner, node.mtime) = (top.node.owner, top.node.mtime);
    walk.found.push(Found { path: path.to_vec(), parent, node, look: top.look, blocks_bytes: 0 });
    walk.found.len() as u32 - 1
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Dir => "directory",
        Kind::File => "file",
        Kind::Symlink => "symlink",
    }
}
