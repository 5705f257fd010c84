//! A tree in memory, for tests.

use super::{Digest, Kind, Node, NodeId, Owner, StoredId, Tree};
use crate::error::{Errno, Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A directory.
    Dir { mode: u16 },
    /// A file.
    File { content: Vec<u8>, mode: u16 },
    /// A symlink.
    Symlink { target: Vec<u8> },
}

struct Flat {
    path: Vec<u8>,
    node: Node,
    children: Range<u32>,
    digest: Digest,
}

/// The tree, breadth-first.
pub(super) struct Plain(Vec<Flat>);

impl Plain {
    /// Of a map from paths to what stands there; directories must be in it.
    pub(super) fn new(items: &BTreeMap<Vec<u8>, Item>) -> Self {
        let mut flat = vec![flat(b"", &Item::Dir { mode: 0o755 }, 0)];
        let mut next = 0;
        while next < flat.len() {
            let start = flat.len() as u32;
            if flat[next].node.kind == Kind::Dir {
                let dir = flat[next].path.clone();
                let children: Vec<Flat> = items
                    .iter()
                    .filter(|(path, _)| parent(path) == dir)
                    .map(|(path, item)| self::flat(path, item, next as u32))
                    .collect();
                flat.extend(children);
            }
            flat[next].children = start..flat.len() as u32;
            next += 1;
        }
        for at in (0..flat.len()).rev().filter(|at| flat[*at].node.kind == Kind::Dir).collect::<Vec<_>>() {
            let said: Vec<String> = flat[at]
                .children
                .clone()
                .map(|child| &flat[child as usize])
                .map(|child| format!("{:?} {} {:?}", child.path, child.node.mode, (child.node.nodeid, child.digest)))
                .collect();
            flat[at].digest = Digest::of(said.join("\n").as_bytes());
        }
        Self(flat)
    }

    /// The path of a node.
    pub(super) fn path(&self, index: u32) -> Vec<u8> {
        self.0[index as usize].path.clone()
    }

    /// The nodeid of what stands at a path.
    pub(super) fn nodeid_of(&self, path: &[u8]) -> NodeId {
        self.0.iter().find(|flat| flat.path == path).map_or(NodeId::NONE, |flat| flat.node.nodeid)
    }
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(b"", |at| &path[..at])
}

fn flat(path: &[u8], item: &Item, parent: u32) -> Flat {
    let owner = Owner::default();
    let (kind, mode, content) = match item {
        Item::Dir { mode } => (Kind::Dir, *mode, &b""[..]),
        Item::File { content, mode } => (Kind::File, *mode, &content[..]),
        Item::Symlink { target } => (Kind::Symlink, 0o777, &target[..]),
    };
    let digest = Digest::of(content);
    let nodeid = match kind {
        Kind::Dir => NodeId::of_dir(path),
        _ => StoredId::of_leaf(path, kind, digest, mode, owner).served(),
    };
    let node =
        Node { nodeid, kind, mode, owner, size: content.len() as u64, on_disk: content.len() as u64, mtime: 0, parent };
    Flat { path: path.to_vec(), node, children: 0..0, digest }
}

impl Tree for Plain {
    fn node(&self, index: u32) -> Result<Node> {
        self.0.get(index as usize).map(|flat| flat.node).ok_or(Error::answer(Errno::IO))
    }

    fn name(&self, index: u32) -> Result<&[u8]> {
        let path = &self.0[index as usize].path;
        Ok(path.iter().rposition(|b| *b == b'/').map_or(&path[..], |at| &path[at + 1..]))
    }

    fn children(&self, index: u32) -> Result<Range<u32>> {
        Ok(self.0[index as usize].children.clone())
    }

    fn digest(&self, index: u32) -> Result<Digest> {
        Ok(self.0[index as usize].digest)
    }
}
