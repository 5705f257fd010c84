//! Makes a manifest of a tree in memory.

use super::format::{self, HEADER_LEN, Header, NodeRecord, SECTIONS};
use super::{Manifest, Xattrs};
use crate::error::{Error, Result};
use crate::tree::{Digest, Kind, Owner, StoredId, Tree, path_in};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;
use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{I64, U16, U32, U64};

/// A node that is to stand in a manifest.
#[derive(Clone, Debug)]
pub struct BuildNode {
    /// Name in its directory; empty for the root.
    pub name: Vec<u8>,
    /// File, directory or symlink.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// User and group.
    pub owner: Owner,
    /// Nanoseconds since 1970.
    pub mtime: i64,
    /// A file's size in bytes.
    pub size: u64,
    /// How many of them lie on a disk: a file with holes has fewer.
    pub on_disk: u64,
    /// Hash of a file's content; of no meaning for others.
    pub digest: Digest,
    /// A symlink's target.
    pub target: Vec<u8>,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Numbers, in the builder, of a directory's entries.
    pub children: Vec<u32>,
}

impl BuildNode {
    /// A node with nothing in it yet.
    pub fn new(name: &[u8], kind: Kind, mode: u16) -> Self {
        Self {
            name: name.to_vec(),
            kind,
            mode,
            owner: Owner::default(),
            mtime: 0,
            size: 0,
            on_disk: u64::MAX,
            digest: Digest([0; 32]),
            target: Vec::new(),
            xattrs: Vec::new(),
            children: Vec::new(),
        }
    }
}

/// Gathers nodes; number 0 is the root.
#[derive(Debug)]
pub struct Builder {
    /// All nodes; `children` refers to positions here.
    pub nodes: Vec<BuildNode>,
}

impl Builder {
    /// Begins with this root directory.
    pub fn new(root: BuildNode) -> Self {
        Self { nodes: vec![root] }
    }

    /// Puts a node into a directory and gives its number.
    pub fn push(&mut self, dir: u32, node: BuildNode) -> u32 {
        let number = self.nodes.len() as u32;
        self.nodes.push(node);
        self.nodes[dir as usize].children.push(number);
        number
    }

    /// The bytes of the manifest; `added` is in seconds since 1970.
    pub fn encode(mut self, added: i64) -> Result<Vec<u8>> {
        if u32::try_from(self.nodes.len()).is_err() {
            return Err(Error::failed("a release can hold 4,294,967,295 nodes at most"));
        }
        let (order, levels) = self.breadth_first();
        let (records, mut tables) = self.records(&order)?;
        let index = self.index(&order, &records)?;
        let digests = self.digests(&order, &levels, &records, &tables);

        let files = || self.nodes.iter().filter(|node| node.kind == Kind::File);
        let mut header = Header {
            count: records.len() as u32,
            files: files().count() as u64,
            bytes: files().map(|node| node.size).sum(),
            added,
            sections: [(0, 0); SECTIONS],
            body_digest: [0; 32],
        };
        let owners: Vec<u8> = tables
            .owner_list
            .iter()
            .flat_map(|owner| [owner.uid.to_le_bytes(), owner.gid.to_le_bytes()].concat())
            .collect();
        let parts: [&[u8]; SECTIONS] = [
            records.as_bytes(),
            digests.as_flattened(),
            index.as_bytes(),
            &owners,
            &std::mem::take(&mut tables.names),
            &format::encode_xattrs(&tables.xattr_list),
        ];
        let mut out = vec![0; HEADER_LEN];
        for (section, part) in header.sections.iter_mut().zip(parts) {
            out.resize(out.len().next_multiple_of(64), 0);
            *section = (out.len(), part.len());
            out.extend_from_slice(part);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_rayon(&out[HEADER_LEN..]);
        header.body_digest = *hasher.finalize().as_bytes();
        out[..HEADER_LEN].copy_from_slice(&header.encode());
        Ok(out)
    }

    /// Numbers in the builder, in the order of the manifest; and where in it each level of the tree begins.
    fn breadth_first(&mut self) -> (Vec<u32>, Vec<usize>) {
        let (mut order, mut levels) = (vec![0], Vec::new());
        let mut next = 0;
        while next < order.len() {
            levels.push(next);
            let end = order.len();
            for at in next..end {
                let number = order[at] as usize;
                let mut children = std::mem::take(&mut self.nodes[number].children);
                children.sort_unstable_by(|a, b| self.nodes[*a as usize].name.cmp(&self.nodes[*b as usize].name));
                order.extend_from_slice(&children);
                self.nodes[number].children = children;
            }
            next = end;
        }
        (order, levels)
    }

    /// The place in the manifest of each node's directory, and the paths of the directories that hold something.
    fn parents(&self, order: &[u32]) -> (Vec<u32>, HashMap<u32, Vec<u8>>) {
        let mut parents = vec![0u32; order.len()];
        let mut paths = HashMap::from([(0, Vec::new())]);
        let mut first_child = 1;
        for (at, number) in order.iter().enumerate() {
            let node = &self.nodes[*number as usize];
            if !node.children.is_empty() {
                let end = first_child + node.children.len();
                parents[first_child..end].fill(at as u32);
                first_child = end;
                let path = path_in(&paths[&parents[at]], &node.name);
                paths.insert(at as u32, path);
            }
        }
        (parents, paths)
    }

    fn records(&self, order: &[u32]) -> Result<(Vec<NodeRecord>, Tables)> {
        let mut tables = Tables::default();
        let mut records: Vec<NodeRecord> = Vec::with_capacity(order.len());
        let (parents, paths) = self.parents(order);
        let nodeids: Vec<StoredId> = order
            .par_iter()
            .zip(&parents)
            .map(|(number, parent)| {
                let node = &self.nodes[*number as usize];
                let path = path_in(&paths[parent], &node.name);
                match node.kind {
                    Kind::Dir => StoredId::of_dir(&path),
                    kind => StoredId::of_leaf(&path, kind, node.content(), node.mode, node.owner),
                }
            })
            .collect();
        let mut first_child = 1;
        for (at, number) in order.iter().enumerate() {
            let node = &self.nodes[*number as usize];
            let size = match node.kind {
                Kind::Dir => {
                    let len = node.children.len() as u32;
                    first_child += len;
                    NodeRecord::range_field(first_child - len, len)
                }
                Kind::File => U64::new(node.size),
                Kind::Symlink => NodeRecord::range_field(tables.heap(&node.target)?, node.target.len() as u32),
            };
            records.push(NodeRecord {
                nodeid: U64::new(nodeids[at].0),
                size,
                mtime: I64::new(node.mtime),
                name: U32::new(tables.heap(&node.name)?),
                parent: U32::new(parents[at]),
                mode: U16::new(node.mode),
                owner: U16::new(tables.owner(node.owner)?),
                name_len: node.name.len() as u8,
                kind: node.kind as u8,
                xattr: U16::new(tables.xattrs(&format::with_holes(&node.xattrs, node.size, node.on_disk))?),
            });
        }
        Ok((records, tables))
    }

    /// Node numbers sorted by nodeid. Two nodes served with one nodeid are refused: the kernel would take them for one.
    fn index(&self, order: &[u32], records: &[NodeRecord]) -> Result<Vec<U32>> {
        let mut index: Vec<(u64, u32)> =
            records.iter().zip(0..).map(|(record, number)| (record.nodeid.get(), number)).collect();
        index.par_sort_unstable();
        let served = |number| StoredId(number).served();
        if let Some(pair) = index.windows(2).find(|pair| served(pair[0].0) == served(pair[1].0)) {
            let [one, other] = [pair[0].1, pair[1].1].map(|at| self.shown(order, records, at));
            return Err(Error::refused(format!(
                "{one} and {other} have the same number, and the kernel would take one for the other; rename or change \
                 one of them, and add again"
            )));
        }
        Ok(index.into_iter().map(|(_, number)| U32::new(number)).collect())
    }

    /// The path of a node, by its place in the manifest, for a message.
    fn shown(&self, order: &[u32], records: &[NodeRecord], mut at: u32) -> String {
        let mut names = Vec::new();
        while at != 0 {
            names.push(&self.nodes[order[at as usize] as usize].name[..]);
            at = records[at as usize].parent.get();
        }
        names.reverse();
        String::from_utf8_lossy(&names.join(&b'/')).escape_debug().to_string()
    }

    /// From the last level to the root: a directory's entries stand on the level behind it.
    fn digests(&self, order: &[u32], levels: &[usize], records: &[NodeRecord], tables: &Tables) -> Vec<[u8; 32]> {
        let mut digests = vec![[0; 32]; records.len()];
        let xattr_hashes: Vec<Option<Digest>> =
            tables.xattr_list.iter().map(|set| hash_of(&format::of_user(set.clone()))).collect();
        let mut end = order.len();
        for begin in levels.iter().rev() {
            let (before, behind) = digests.split_at_mut(end);
            before[*begin..].par_iter_mut().enumerate().for_each(|(number, digest)| {
                let at = begin + number;
                let node = &self.nodes[order[at] as usize];
                *digest = match node.kind {
                    Kind::Dir => {
                        let (first, len) = records[at].range();
                        let mut hasher = DirHasher::new();
                        for child in first as usize..(first + len) as usize {
                            let record = &records[child];
                            let entry = &self.nodes[order[child] as usize];
                            let xattrs = match record.xattr.get() {
                                0 => None,
                                set => xattr_hashes[set as usize - 1],
                            };
                            hasher.entry(&DirEntry {
                                name: &entry.name,
                                kind: entry.kind,
                                mode: entry.mode,
                                owner: entry.owner,
                                size: entry.size_field(),
                                nodeid: record.stored_id(),
                                digest: Digest(behind[child - end]),
                                xattrs,
                            });
                        }
                        hasher.finish().0
                    }
                    _ => node.content().0,
                };
            });
            end = *begin;
        }
        digests
    }
}

impl BuildNode {
    /// Hash of a file's content, or of a symlink's target.
    pub fn content(&self) -> Digest {
        match self.kind {
            Kind::Symlink => Digest::of(&self.target),
            _ => self.digest,
        }
    }

    fn size_field(&self) -> u64 {
        match self.kind {
            Kind::Dir => 0,
            Kind::File => self.size,
            Kind::Symlink => self.target.len() as u64,
        }
    }
}

#[derive(Default)]
struct Tables {
    names: Vec<u8>,
    owners: HashMap<Owner, u16>,
    owner_list: Vec<Owner>,
    xattr_sets: HashMap<Xattrs, u16>,
    xattr_list: Vec<Xattrs>,
}

impl Tables {
    fn heap(&mut self, bytes: &[u8]) -> Result<u32> {
        let at = u32::try_from(self.names.len()).map_err(|_| Error::failed("a release can hold 4 GiB of names"))?;
        self.names.extend_from_slice(bytes);
        Ok(at)
    }

    fn owner(&mut self, owner: Owner) -> Result<u16> {
        if let Some(index) = self.owners.get(&owner) {
            return Ok(*index);
        }
        let index = u16::try_from(self.owner_list.len())
            .map_err(|_| Error::failed("a release can hold files of 65,536 different owners; use --owner"))?;
        self.owners.insert(owner, index);
        self.owner_list.push(owner);
        Ok(index)
    }

    fn xattrs(&mut self, set: &Xattrs) -> Result<u16> {
        if set.is_empty() {
            return Ok(0);
        }
        if let Some(number) = self.xattr_sets.get(set) {
            return Ok(*number);
        }
        let number = u16::try_from(self.xattr_list.len() + 1)
            .map_err(|_| Error::failed("a release can hold 65,535 different sets of extended attributes"))?;
        self.xattr_sets.insert(set.clone(), number);
        self.xattr_list.push(set.clone());
        Ok(number)
    }
}

/// What a directory's digest covers of an entry: everything but its mtime, because a checkout gives every
/// file a new mtime and that must not make every file a changed one.
struct DirEntry<'a> {
    name: &'a [u8],
    kind: Kind,
    mode: u16,
    owner: Owner,
    size: u64,
    nodeid: StoredId,
    digest: Digest,
    xattrs: Option<Digest>,
}

struct DirHasher(blake3::Hasher);

impl DirHasher {
    fn new() -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"verfs entries 1\0");
        Self(hasher)
    }

    fn entry(&mut self, entry: &DirEntry<'_>) {
        let mut fixed = [0; 64];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            fixed[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&(entry.name.len() as u16).to_le_bytes());
        put(&[entry.kind as u8, u8::from(entry.xattrs.is_some())]);
        put(&entry.mode.to_le_bytes());
        put(&entry.owner.uid.to_le_bytes());
        put(&entry.owner.gid.to_le_bytes());
        put(&entry.size.to_le_bytes());
        put(&entry.nodeid.0.to_le_bytes());
        put(&entry.digest.0);
        self.0.update(&fixed[..at]).update(entry.name);
        if let Some(xattrs) = entry.xattrs {
            self.0.update(&xattrs.0);
        }
    }

    fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

/// The hash of a set of extended attributes, if there are any.
fn hash_of(xattrs: &Xattrs) -> Option<Digest> {
    (!xattrs.is_empty()).then(|| Digest::of(&format::encode_xattr_set(xattrs)))
}

/// The digest of a directory with these entries, from what the manifest now says of them.
pub(super) fn dir_digest(manifest: &Manifest, children: Range<u32>) -> Result<Digest> {
    let mut hasher = DirHasher::new();
    for child in children {
        let node = manifest.node(child)?;
        let xattrs = hash_of(&manifest.xattrs(child)?);
        hasher.entry(&DirEntry {
            name: manifest.name(child)?,
            kind: node.kind,
            mode: node.mode,
            owner: node.owner,
            size: node.size,
            nodeid: manifest.record(child)?.stored_id(),
            digest: manifest.digest(child)?,
            xattrs,
        });
    }
    Ok(hasher.finish())
}
