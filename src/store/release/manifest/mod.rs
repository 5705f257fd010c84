//! The manifest: a release's metadata, flat, versioned, mapped and not parsed.
//!
//! ```text
//! 0      header, 4,096 bytes (see `format`): magic, version, counts, where each section lies,
//!        BLAKE3 of everything after the header, BLAKE3 of the header itself
//! 4096   records   40 bytes a node, breadth-first; the children of a directory contiguous, sorted bytewise
//!        digests   32 bytes a node: content, target, or subtree of a directory
//!        index      4 bytes a node: node numbers sorted by nodeid
//!        owners     8 bytes each: uid, gid
//!        names     names and symlink targets, one after the other
//!        xattrs    sets of extended attributes, 4-byte offsets first
//! ```
//!
//! Everything is little-endian, every section begins at a multiple of 64. The header is checked at open, a
//! directory against its digest when first used, everything by [`Manifest::verify`]. Sections are
//! bounds-checked once, every offset and range at use, and children only point forward: damage gives an error
//! that names the file, never a crash.

mod build;
mod format;
#[cfg(test)]
mod tests;

pub use build::{BuildNode, Builder};

use crate::error::{Context, Errno, Error, Result};
use crate::store::release::search::among_hashes;
use crate::sys::Mapped;
use crate::tree::{Digest, Kind, Node, NodeId, Owner, Tree};
use format::{Header, NodeRecord, Section};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::FromBytes;

/// Extended attributes of a node: name and value.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

enum Bytes {
    Mapped(Mapped),
    Heap(Vec<u8>),
}

/// A manifest, open for reading.
pub struct Manifest {
    bytes: Bytes,
    path: PathBuf,
    header: Header,
    /// One bit a node: directories whose entries were found to match their digest.
    checked: Box<[AtomicU64]>,
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Manifest({}, {} nodes)", self.path.display(), self.len())
    }
}

impl Manifest {
    /// Maps a manifest and checks its header.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).context(|| format!("opening the manifest {}", path.display()))?;
        let len = file.metadata().context(|| format!("reading the manifest {}", path.display()))?.len();
        if len < format::HEADER_LEN as u64 {
            return Err(Error::damaged(format!(
                "the manifest {} is damaged: {len} bytes are no manifest; add the release again or restore the file",
                path.display()
            )));
        }
        let mapped = Mapped::open(&file).context(|| format!("mapping the manifest {}", path.display()))?;
        Self::over(Bytes::Mapped(mapped), path)
    }

    /// A manifest in memory, for tests and for the fuzzer.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self> {
        Self::over(Bytes::Heap(bytes), path)
    }

    fn over(bytes: Bytes, path: &Path) -> Result<Self> {
        let header = Header::decode(bytes.get()).map_err(|why| match why {
            format::Unreadable::Newer(version) => Error::failed(format!(
                "the manifest {} has format {version}, newer than this verfs reads; use the newer verfs",
                path.display()
            )),
            format::Unreadable::Damaged(what) => damaged(path, what),
        })?;
        let words = (header.count as usize).div_ceil(64);
        let checked = std::iter::repeat_with(|| AtomicU64::new(0)).take(words).collect();
        let manifest = Self { bytes, path: path.to_owned(), header, checked };
        if manifest.node(0)?.kind != Kind::Dir {
            return Err(manifest.damaged("its root is no directory"));
        }
        Ok(manifest)
    }

    /// Number of nodes, the root included.
    pub fn len(&self) -> u32 {
        self.header.count
    }

    /// Never: a manifest has at least a root.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Number of regular files.
    pub fn files(&self) -> u64 {
        self.header.files
    }

    /// Sum of the sizes of the regular files, in bytes.
    pub fn content_bytes(&self) -> u64 {
        self.header.bytes
    }

    /// When the release was added: seconds since 1970.
    pub fn added(&self) -> i64 {
        self.header.added
    }

    /// A hash that no other manifest has.
    pub fn identity(&self) -> Digest {
        Digest(self.header.body_digest)
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get()
    }

    /// Where it lies, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a page of the mapped file could not be read since it was opened.
    pub fn is_bad(&self) -> bool {
        match &self.bytes {
            Bytes::Mapped(mapped) => mapped.is_bad(),
            Bytes::Heap(_) => false,
        }
    }

    /// An error that names this manifest.
    pub fn damaged(&self, what: &str) -> Error {
        damaged(&self.path, what)
    }

    fn section(&self, section: Section) -> &[u8] {
        // The header's ranges were checked against the length when it was decoded.
        &self.bytes.get()[self.header.range(section)]
    }

    fn record(&self, index: u32) -> Result<NodeRecord> {
        let at = index as usize * size_of::<NodeRecord>();
        self.section(Section::Records)
            .get(at..at + size_of::<NodeRecord>())
            .and_then(|bytes| NodeRecord::read_from_bytes(bytes).ok())
            .ok_or_else(|| self.damaged("a node number is out of range"))
    }

    fn heap(&self, offset: u32, len: usize) -> Result<&[u8]> {
        let start = offset as usize;
        self.section(Section::Names).get(start..start + len).ok_or_else(|| self.damaged("a name lies outside the file"))
    }

    /// The number of the entry of this name in a directory.
    pub fn find_child(&self, dir: u32, name: &[u8]) -> Result<Option<u32>> {
        let Range { mut start, mut end } = self.children(dir)?;
        while start < end {
            let middle = start + (end - start) / 2;
            match self.name(middle)?.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(middle)),
                std::cmp::Ordering::Less => start = middle + 1,
                std::cmp::Ordering::Greater => end = middle,
            }
        }
        Ok(None)
    }

    /// As [`Manifest::find_child`], for a number that may not be a directory's: then ENOTDIR.
    pub fn find_child_of(&self, index: u32, name: &[u8]) -> Result<Option<u32>> {
        match self.node(index)?.kind {
            Kind::Dir => self.find_child(index, name),
            _ => Err(Error::answer(Errno::NOTDIR)),
        }
    }

    /// The number of the node with this nodeid.
    pub fn find_node(&self, nodeid: NodeId) -> Result<Option<u32>> {
        // Nodeids have 62 bits.
        let entry = |at| self.index_entry(at);
        let found = among_hashes(self.header.count as usize, nodeid.0 << 2, |at| Ok(entry(at)?.1.cmp(&nodeid)))?;
        found.map(|at| Ok(entry(at)?.0)).transpose()
    }

    /// The nodeids of all nodes, ascending.
    pub fn nodeids(&self) -> impl Iterator<Item = Result<NodeId>> {
        (0..self.header.count as usize).map(|at| Ok(self.index_entry(at)?.1))
    }

    /// An entry of the index: the number of a node, and its nodeid.
    fn index_entry(&self, at: usize) -> Result<(u32, NodeId)> {
        let bytes: [u8; 4] = self.section(Section::Index)[at * 4..at * 4 + 4].try_into().unwrap_or_default();
        let number = u32::from_le_bytes(bytes);
        Ok((number, self.record(number)?.stored_id().served()))
    }

    /// The number of the node at this path (no leading slash).
    pub fn find_path(&self, path: &[u8]) -> Result<Option<u32>> {
        let mut at = 0;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            if self.node(at)?.kind != Kind::Dir {
                return Ok(None);
            }
            match self.find_child(at, name)? {
                Some(child) => at = child,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// The path of a node, without a leading slash.
    pub fn path_of(&self, index: u32) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = index;
        while at != 0 {
            names.push(self.name(at)?);
            at = self.node(at)?.parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// A symlink's target, checked against its hash.
    pub fn target(&self, index: u32) -> Result<&[u8]> {
        let record = self.record(index)?;
        if record.kind != Kind::Symlink as u8 {
            return Err(self.damaged("a target is asked of what is no symlink"));
        }
        let (offset, len) = record.range();
        let target = self.heap(offset, len as usize)?;
        if Digest::of(target) != self.digest(index)? {
            return Err(self.damaged("a symlink's target does not match its hash"));
        }
        Ok(target)
    }

    /// The extended attributes of a node.
    pub fn xattrs(&self, index: u32) -> Result<Xattrs> {
        self.xattr_set(&self.record(index)?).map(format::of_user)
    }

    fn xattr_set(&self, record: &NodeRecord) -> Result<Xattrs> {
        match record.xattr.get() {
            0 => Ok(Vec::new()),
            set => format::decode_xattrs(self.section(Section::Xattrs), set - 1)
                .ok_or_else(|| self.damaged("its extended attributes cannot be read")),
        }
    }

    /// Reads the whole file and checks everything that a hash covers; in one thread, since a switch does it beside
    /// visitors.
    pub fn verify(&self) -> Result<()> {
        let body = &self.bytes.get()[format::HEADER_LEN..];
        let digest = blake3::hash(body);
        if self.is_bad() || *digest.as_bytes() != self.header.body_digest {
            return Err(self.damaged("its content does not match its checksum"));
        }
        Ok(())
    }

    /// Compares a directory's entries with its digest, once.
    fn check_dir(&self, index: u32, children: &Range<u32>) -> Result<()> {
        let (word, bit) = (index as usize / 64, 1 << (index % 64));
        if self.checked[word].load(Ordering::Relaxed) & bit != 0 {
            return Ok(());
        }
        if build::dir_digest(self, children.clone())? != self.digest(index)? {
            return Err(self.damaged("a directory's entries do not match its hash"));
        }
        self.checked[word].fetch_or(bit, Ordering::Relaxed);
        Ok(())
    }

    fn owner(&self, index: u16) -> Result<Owner> {
        let at = index as usize * 8;
        let bytes =
            self.section(Section::Owners).get(at..at + 8).ok_or_else(|| self.damaged("an owner is out of range"))?;
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
        Ok(Owner { uid: word(0), gid: word(4) })
    }
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => mapped,
            Self::Heap(bytes) => bytes,
        }
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::damaged(format!(
        "the manifest {} is damaged: {what}; `verfs remove` the release and add it again, or restore the file",
        path.display()
    ))
}

impl Tree for Manifest {
    fn node(&self, index: u32) -> Result<Node> {
        let record = self.record(index)?;
        let kind = Kind::from_number(record.kind).ok_or_else(|| self.damaged("a node is of no kind"))?;
        let parent = record.parent.get();
        if parent >= index && index != 0 {
            return Err(self.damaged("a node comes before its directory"));
        }
        let size = match kind {
            Kind::Dir => 0,
            Kind::File => record.size.get(),
            Kind::Symlink => u64::from(record.range().1),
        };
        Ok(Node {
            nodeid: record.stored_id().served(),
            kind,
            mode: record.mode.get(),
            owner: self.owner(record.owner.get())?,
            size,
            on_disk: match kind == Kind::File && format::may_have_holes(size) {
                true => format::on_disk(&self.xattr_set(&record)?, size),
                false => size,
            },
            mtime: record.mtime.get(),
            parent,
        })
    }

    fn name(&self, index: u32) -> Result<&[u8]> {
        let record = self.record(index)?;
        self.heap(record.name.get(), record.name_len as usize)
    }

    fn children(&self, index: u32) -> Result<Range<u32>> {
        let record = self.record(index)?;
        if record.kind != Kind::Dir as u8 {
            return Err(self.damaged("entries are asked of what is no directory"));
        }
        let (start, len) = record.range();
        let end = start.checked_add(len).filter(|end| *end <= self.header.count);
        let children = match end {
            Some(end) if start > index || len == 0 => start..end,
            _ => return Err(self.damaged("a directory's entries are out of range")),
        };
        self.check_dir(index, &children)?;
        Ok(children)
    }

    fn digest(&self, index: u32) -> Result<Digest> {
        let at = index as usize * 32;
        self.section(Section::Digests)
            .get(at..at + 32)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Digest)
            .ok_or_else(|| self.damaged("a node number is out of range"))
    }
}
