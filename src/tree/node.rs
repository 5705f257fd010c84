//! Identity: the number by which the kernel knows a node is a pure function of what the node is.
//!
//! So there is no inode table for releases, FORGET has nothing to do, and another process knows every number
//! at once. Directories are *live*: the number depends on the path alone, the entries are those of the active
//! release. A file or symlink with other content at the same path is another node, always.

use super::entry::{Kind, Owner};
use crate::fault::{self, Skip};
use std::fmt;

/// A BLAKE3 hash: of a file's content, a symlink's target, or a directory's subtree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// As 64 hexadecimal digits.
    pub fn to_hex(self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// The kernel's number for a node. All number spaces:
///
/// | numbers | whose |
/// |---|---|
/// | 0 | nobody's: a negative entry |
/// | 1 | the root (FUSE_ROOT_ID) |
/// | 2 to 15 | not used |
/// | 16 to 2^62 - 1 | releases: a hash |
/// | 2^62 to 2^63 - 1 | scopes; below the bit a release's number, a hash of an inode, or any |
/// | 2^63 and up | not used: many programs read st_ino as a signed number |
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory: FUSE_ROOT_ID.
    pub const ROOT: Self = Self(1);
    /// No node: what a negative entry holds.
    pub const NONE: Self = Self(0);
    /// Numbers below this are not handed out by hashing.
    const FIRST: u64 = 16;
    /// Set in the number of every node of a scope.
    const SCOPE: u64 = 1 << 62;

    /// The directory at this path (no leading slash; empty for the root).
    pub fn of_dir(path: &[u8]) -> Self {
        StoredId::of_dir(path).served()
    }

    /// Whether it is the number of a node in a scope.
    pub fn is_scoped(self) -> bool {
        self.0 & Self::SCOPE != 0
    }

    /// In a scope: the number of what has this one outside.
    pub fn scoped(self) -> Self {
        Self(self.0 | Self::SCOPE)
    }

    /// Outside the scopes: the number of what has this one in a scope.
    pub fn unscoped(self) -> Self {
        Self(self.0 & !Self::SCOPE)
    }

    /// A number as which it may lie on disk: the bit that is not served is 0.
    pub fn stored(self) -> StoredId {
        StoredId(if self.0 < Self::FIRST { self.0 } else { self.0 << 1 })
    }
}

/// The number of a release's node as it lies on disk, in manifests and stamps: 63 bits of a hash. 62 are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredId(pub u64);

impl StoredId {
    /// The directory at this path (no leading slash; empty for the root).
    pub fn of_dir(path: &[u8]) -> Self {
        if path.is_empty() {
            return NodeId::ROOT.stored();
        }
        Self::from_hash(blake3::Hasher::new().update(b"verfs dir 1\0").update(path))
    }

    /// The file or symlink at this path with this content, mode and owner.
    pub fn of_leaf(path: &[u8], kind: Kind, digest: Digest, mode: u16, owner: Owner) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(b"verfs leaf 1\0")
            .update(&[kind as u8])
            .update(&mode.to_le_bytes())
            .update(&owner.uid.to_le_bytes())
            .update(&owner.gid.to_le_bytes())
            .update(&digest.0)
            .update(path);
        Self::from_hash(&hasher)
    }

    /// The number that the kernel gets. The order stays, so what is sorted by the one is sorted by the other.
    pub fn served(self) -> NodeId {
        NodeId(if self.0 < NodeId::FIRST { self.0 } else { (self.0 >> 1).max(NodeId::FIRST) })
    }

    fn from_hash(hasher: &blake3::Hasher) -> Self {
        let mut bytes = [0; 8];
        hasher.finalize_xof().fill(&mut bytes);
        let bits = if fault::skips(Skip::WideHash) { 12 } else { 63 };
        Self((u64::from_le_bytes(bytes) >> (64 - bits)).max(NodeId::FIRST))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{:x}", self.0)
    }
}

/// A short key for "this name in this directory". Two names share one with a chance of 2^-64, and then an
/// entry that did not change is looked up once more: nothing else.
pub fn name_key(dir: NodeId, name: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    blake3::Hasher::new().update(&dir.0.to_le_bytes()).update(name).finalize_xof().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_another_node_when_anything_that_names_it_differs() {
        let owner = Owner { uid: 1, gid: 2 };
        let base = StoredId::of_leaf(b"a/b", Kind::File, Digest::of(b"x"), 0o644, owner);
        let others = [
            StoredId::of_leaf(b"a/c", Kind::File, Digest::of(b"x"), 0o644, owner),
            StoredId::of_leaf(b"a/b", Kind::Symlink, Digest::of(b"x"), 0o644, owner),
            StoredId::of_leaf(b"a/b", Kind::File, Digest::of(b"y"), 0o644, owner),
            StoredId::of_leaf(b"a/b", Kind::File, Digest::of(b"x"), 0o600, owner),
            StoredId::of_leaf(b"a/b", Kind::File, Digest::of(b"x"), 0o644, Owner { uid: 2, gid: 1 }),
            StoredId::of_dir(b"a/b"),
        ];
        for other in others {
            assert_ne!(base.served(), other.served());
            assert!(!other.served().is_scoped() && other.served().scoped().0 < 1 << 63, "{other:?}");
        }
        assert_eq!(base, StoredId::of_leaf(b"a/b", Kind::File, Digest::of(b"x"), 0o644, owner));
        assert_eq!(NodeId::of_dir(b""), NodeId::ROOT);
    }

    #[test]
    fn served_numbers_keep_the_order_of_the_stored_ones_and_find_back_to_themselves() {
        let stored = [0, 1, 15, 16, 17, 31, 32, 33, 34, 1 << 62, (1 << 63) - 1].map(StoredId);
        let served = stored.map(StoredId::served);
        assert!(served.is_sorted() && served.iter().all(|node| !node.is_scoped()), "{served:?}");
        assert!(served.iter().all(|node| node.stored().served() == *node), "{served:?}");
        assert_eq!((served[1], served[2], served[3]), (NodeId::ROOT, NodeId(15), NodeId(16)));
    }

    #[test]
    fn digests_survive_hexadecimal() {
        let digest = Digest::of(b"verfs");
        assert_eq!(Digest::from_hex(digest.to_hex().as_bytes()), Some(digest));
        assert_eq!(Digest::from_hex(b"zz"), None);
    }
}
