//! What the kernel is told of a node, and how long it may believe it.

use super::mount::LookupRef;
use crate::store::active::stamps::Stamp;
use crate::tree::{Kind, Node, NodeId, Owner};
use rustix::fs::FileType;
use std::time::Duration;

/// How long the kernel may keep what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ttl {
    /// Not at all: it asks again at the next use.
    Zero,
    /// For this time: somebody may change a media entry behind the mount.
    For(Duration),
    /// Until a switch says otherwise.
    Forever,
}

impl Ttl {
    /// `Forever` if it holds, else `Zero`.
    pub fn forever_if(holds: bool) -> Self {
        if holds { Self::Forever } else { Self::Zero }
    }
}

/// What a node is: in the writable layer it may be more than a release can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Type {
    Dir,
    File,
    Symlink,
    Fifo,
    Socket,
    Device,
}

impl From<Kind> for Type {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Dir => Self::Dir,
            Kind::File => Self::File,
            Kind::Symlink => Self::Symlink,
        }
    }
}

impl From<FileType> for Type {
    fn from(kind: FileType) -> Self {
        match kind {
            FileType::Directory => Self::Dir,
            FileType::RegularFile => Self::File,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            _ => Self::Device,
        }
    }
}

/// The attributes of a node as they are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The node; also its inode number.
    pub node: NodeId,
    /// What it is.
    pub kind: Type,
    /// Permission bits; those of release files have no write bits, because nothing there can be written.
    pub mode: u16,
    /// User and group.
    pub owner: Owner,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks on disk.
    pub blocks: u64,
    /// Names that it has.
    pub links: u32,
    /// Last access; of release nodes the mtime.
    pub atime: Stamp,
    /// Last change of the content.
    pub mtime: Stamp,
    /// Last change of the node; of release nodes the mtime.
    pub ctime: Stamp,
}

impl Attr {
    /// What is served of a node of a manifest.
    pub fn of(node: &Node, mtime: Stamp) -> Self {
        let mode = match node.kind {
            Kind::File => node.mode & !0o222,
            Kind::Dir | Kind::Symlink => node.mode,
        };
        // A directory's size is of no use to anybody, but 0 looks broken in `ls`.
        let (size, on_disk) = if node.kind == Kind::Dir { (4096, 4096) } else { (node.size, node.on_disk) };
        Self {
            node: node.nodeid,
            kind: node.kind.into(),
            mode,
            owner: node.owner,
            size,
            blocks: on_disk.div_ceil(512),
            // 1 for directories too: it says that subdirectories are not counted (as btrfs and overlayfs say it).
            links: 1,
            atime: mtime,
            mtime,
            ctime: mtime,
        }
    }
}

/// The answer to a lookup.
#[derive(Debug)]
pub struct Entry {
    /// `None`: the name stands for nothing.
    pub attr: Option<Attr>,
    /// How long the name may be believed to stand for that.
    pub entry_ttl: Ttl,
    /// How long the attributes may be believed.
    pub attr_ttl: Ttl,
    /// The lookup that the kernel is to count, of a node in a scope.
    pub lookup: Option<LookupRef>,
}
