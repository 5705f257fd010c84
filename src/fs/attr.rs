//! What the kernel is told of a node, and how long it may believe it.

use crate::store::stamps::Stamp;
use crate::tree::{Kind, Node, NodeId, Owner};

/// How long the kernel may keep what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ttl {
    /// Not at all: it asks again at the next use.
    Zero,
    /// Until a switch says otherwise.
    Forever,
}

impl Ttl {
    /// `Forever` if it holds, else `Zero`.
    pub fn forever_if(holds: bool) -> Self {
        if holds { Self::Forever } else { Self::Zero }
    }
}

/// The attributes of a node as they are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The node; also its inode number.
    pub node: NodeId,
    /// What it is.
    pub kind: Kind,
    /// Permission bits; those of files have no write bits, because nothing here can be written.
    pub mode: u16,
    /// User and group.
    pub owner: Owner,
    /// Bytes.
    pub size: u64,
    /// Also served as atime and ctime.
    pub mtime: Stamp,
}

impl Attr {
    /// What is served of a node of a manifest.
    pub fn of(node: &Node, mtime: Stamp) -> Self {
        let mode = match node.kind {
            Kind::File => node.mode & !0o222,
            Kind::Dir | Kind::Symlink => node.mode,
        };
        // A directory's size is of no use to anybody, but 0 looks broken in `ls`.
        let size = if node.kind == Kind::Dir { 4096 } else { node.size };
        Self { node: node.nodeid, kind: node.kind, mode, owner: node.owner, size, mtime }
    }
}

/// The answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `None`: the name stands for nothing.
    pub attr: Option<Attr>,
    /// How long the name may be believed to stand for that.
    pub entry_ttl: Ttl,
    /// How long the attributes may be believed.
    pub attr_ttl: Ttl,
}
