//! A model of what the kernel keeps of a FUSE file system: dentries, attributes, and each directory's lock (Linux,
//! fs/fuse/dir.c, fs/fuse/inode.c, fs/dcache.c).
//!
//! - A dentry is found while it is *hashed*, and lives on unhashed while something holds it or one below it. A directory
//!   has one dentry at most: looked up again, the old one is attached again, with what is still below it.
//! - What is *believed* needs no question. TTLs are for ever or for no time.
//! - A LOOKUP of a name that is not cached, and READDIR, hold the directory's lock, shared, until their reply was used.
//!   The question whether a dentry is still right (`fuse_dentry_revalidate`) takes no lock.
//! - Dropping a name takes the lock alone; dropping attributes takes none, but an answer to a question that is older is
//!   not believed (`attr_version`).

use std::collections::{BTreeMap, BTreeSet};
use verfs::fs::{Attr, Entry, Listed, Ttl, Type};
use verfs::tree::NodeId;

/// A dentry, by its place among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DentryId(usize);

/// The root's, which is always held.
pub const ROOT: DentryId = DentryId(0);

#[derive(Debug)]
struct Dentry {
    parent: DentryId,
    name: String,
    /// `None`: there is nothing of this name.
    node: Option<NodeId>,
    hashed: bool,
    believed: bool,
    /// It is believed because of an answer that was sent before the last swap and used after it.
    late: bool,
    /// The version at which it was attached again by an answer about what the active release does not have.
    attached_gone: u64,
    holds: usize,
    /// Those that live below it, hashed or not.
    children: BTreeSet<DentryId>,
    alive: bool,
}

#[derive(Debug)]
struct Inode {
    attr: Attr,
    believed: bool,
    version: u64,
    dentries: BTreeSet<DentryId>,
}

#[derive(Debug, Default)]
struct Lock {
    shared: usize,
    /// Somebody waits for it alone: nobody else gets it shared.
    wanted: bool,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Kernel {
    dentries: Vec<Dentry>,
    inodes: BTreeMap<NodeId, Inode>,
    locks: BTreeMap<NodeId, Lock>,
    /// Names that are being looked up under the lock: others who want one wait for the reply.
    in_lookup: BTreeSet<(DentryId, String)>,
    version: u64,
}

/// What is cached of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cached {
    /// It stands for this.
    Here(DentryId),
    /// It stands for nothing.
    Nothing,
    /// It stood for this: whether it does must be asked.
    AskAgain(DentryId),
    /// It must be looked up.
    Unknown,
}

impl Kernel {
    /// That has only the root.
    pub fn new(root: Attr) -> Self {
        let dentry = Dentry {
            parent: ROOT,
            name: String::new(),
            node: Some(root.node),
            hashed: true,
            believed: true,
            late: false,
            attached_gone: 0,
            holds: 1,
            children: BTreeSet::new(),
            alive: true,
        };
        let inode = Inode { attr: root, believed: false, version: 0, dentries: BTreeSet::from([ROOT]) };
        Self {
            dentries: vec![dentry],
            inodes: BTreeMap::from([(root.node, inode)]),
            locks: BTreeMap::new(),
            in_lookup: BTreeSet::new(),
            version: 1,
        }
    }

    fn at(&self, id: DentryId) -> &Dentry {
        &self.dentries[id.0]
    }

    fn at_mut(&mut self, id: DentryId) -> &mut Dentry {
        &mut self.dentries[id.0]
    }

    // What a walk does.

    /// The node that a dentry stands for.
    pub fn node(&self, id: DentryId) -> NodeId {
        self.at(id).node.expect("nothing is held of a name that stands for nothing")
    }

    pub fn is_dir(&self, id: DentryId) -> bool {
        self.inodes[&self.node(id)].attr.kind == Type::Dir
    }

    pub fn hold(&mut self, id: DentryId) {
        self.at_mut(id).holds += 1;
    }

    pub fn let_go(&mut self, id: DentryId) {
        self.at_mut(id).holds -= 1;
        self.reap(id);
    }

    fn hashed(&self, dir: DentryId, name: &str) -> Option<DentryId> {
        let mut children = self.at(dir).children.iter().copied();
        children.find(|child| self.at(*child).hashed && self.at(*child).name == name)
    }

    /// What is cached of a name. One that stood for nothing and is not believed is dropped.
    pub fn cached(&mut self, dir: DentryId, name: &str) -> Cached {
        let Some(child) = self.hashed(dir, name) else { return Cached::Unknown };
        match (self.at(child).node, self.at(child).believed) {
            (Some(_), true) => Cached::Here(child),
            (Some(_), false) => Cached::AskAgain(child),
            (None, true) => Cached::Nothing,
            (None, false) => {
                self.invalidate(child);
                Cached::Unknown
            }
        }
    }

    /// Whether it is believed because of an answer that came late.
    pub fn is_late(&self, id: DentryId) -> bool {
        self.at(id).late
    }

    /// The attributes that are believed.
    pub fn attributes(&self, id: DentryId) -> Option<Attr> {
        let inode = &self.inodes[&self.node(id)];
        inode.believed.then_some(inode.attr)
    }

    /// The version that a question is asked at.
    pub fn version(&self) -> u64 {
        self.version
    }

    // Locks.

    /// Takes a directory's lock, shared, if nobody has it alone or waits for that.
    pub fn lock_shared(&mut self, dir: DentryId) -> bool {
        let lock = self.locks.entry(self.node(dir)).or_default();
        let free = !lock.wanted;
        lock.shared += usize::from(free);
        free
    }

    pub fn unlock_shared(&mut self, dir: DentryId) {
        let node = self.node(dir);
        self.locks.get_mut(&node).expect("it is locked").shared -= 1;
    }

    /// Begins the lookup of a name under the lock; false if somebody else looks it up.
    pub fn begin_lookup(&mut self, dir: DentryId, name: &str) -> bool {
        self.in_lookup.insert((dir, name.to_owned()))
    }

    // How replies are used.

    /// `fuse_change_attributes`: an answer that was asked for before something newer was known is not taken over.
    pub fn take_attributes(&mut self, attr: &Attr, ttl: Ttl, asked_at: u64) {
        self.version += 1;
        let version = self.version;
        let Some(inode) = self.inodes.get_mut(&attr.node) else { return };
        if inode.version <= asked_at {
            (inode.attr, inode.believed, inode.version) = (*attr, ttl != Ttl::Zero, version);
        }
    }

    /// `fuse_iget`: the inode of a reply.
    fn inode(&mut self, attr: &Attr, ttl: Ttl, asked_at: u64) {
        let new = || Inode { attr: *attr, believed: false, version: 0, dentries: BTreeSet::new() };
        self.inodes.entry(attr.node).or_insert_with(new);
        self.take_attributes(attr, ttl, asked_at);
    }

    /// The reply to a lookup under the lock: `fuse_lookup`. Gives what the name stands for. `gone`: the release that was
    /// active when it was sent does not have it.
    pub fn use_lookup(
        &mut self,
        dir: DentryId,
        name: &str,
        entry: &Entry,
        asked_at: u64,
        gone: bool,
    ) -> Option<DentryId> {
        self.in_lookup.remove(&(dir, name.to_owned()));
        if let Some(attr) = &entry.attr {
            self.inode(attr, entry.attr_ttl, asked_at);
        }
        let child = self.splice(dir, name, entry.attr.map(|attr| attr.node), gone);
        (self.at_mut(child).believed, self.at_mut(child).late) = (entry.entry_ttl != Ttl::Zero, false);
        entry.attr.map(|_| child)
    }

    /// The reply to the question whether a dentry is right: `fuse_dentry_revalidate`. If it is not, the dentry is dropped.
    pub fn use_revalidation(&mut self, id: DentryId, entry: &Entry, asked_at: u64, late: bool) -> bool {
        match &entry.attr {
            Some(attr) if attr.node == self.node(id) => {
                self.take_attributes(attr, entry.attr_ttl, asked_at);
                // The second of the known orders of steps at the head of tests/sim.rs.
                let attached = self.at(id).attached_gone >= asked_at;
                (self.at_mut(id).believed, self.at_mut(id).late) = (entry.entry_ttl != Ttl::Zero && !attached, late);
                true
            }
            _ => {
                self.invalidate(id);
                false
            }
        }
    }

    /// An entry of READDIRPLUS: `fuse_direntplus_link`.
    pub fn use_listed(&mut self, dir: DentryId, listed: &Listed, asked_at: u64, gone: bool) {
        let name = String::from_utf8(listed.name.clone()).expect("our names");
        // Somebody who looks it up waits for its reply, and so does this; the reply comes in any order.
        if name == "." || name == ".." || self.in_lookup.contains(&(dir, name.clone())) {
            return;
        }
        let same = |kernel: &Self, child| kernel.at(child).node == Some(listed.attr.node);
        let child = match self.hashed(dir, &name) {
            Some(child) if same(self, child) => {
                self.take_attributes(&listed.attr, listed.ttl, asked_at);
                child
            }
            other => {
                other.into_iter().for_each(|child| self.invalidate(child));
                self.inode(&listed.attr, listed.ttl, asked_at);
                self.splice(dir, &name, Some(listed.attr.node), gone)
            }
        };
        (self.at_mut(child).believed, self.at_mut(child).late) = (listed.ttl != Ttl::Zero, false);
    }

    /// `d_splice_alias`: a directory that has a dentry keeps it, wherever that was.
    fn splice(&mut self, dir: DentryId, name: &str, node: Option<NodeId>, gone: bool) -> DentryId {
        let known = node.map(|node| &self.inodes[&node]).filter(|inode| inode.attr.kind == Type::Dir);
        let alias = known.and_then(|inode| inode.dentries.first().copied());
        if let Some(alias) = alias {
            assert_eq!((self.at(alias).parent, &*self.at(alias).name), (dir, name), "a directory is its path");
            if gone && !self.at(alias).hashed {
                self.at_mut(alias).attached_gone = self.version;
            }
            self.at_mut(alias).hashed = true;
            return alias;
        }
        let id = DentryId(self.dentries.len());
        self.dentries.push(Dentry {
            parent: dir,
            name: name.to_owned(),
            node,
            hashed: true,
            believed: false,
            late: false,
            attached_gone: 0,
            holds: 0,
            children: BTreeSet::new(),
            alive: true,
        });
        self.at_mut(dir).children.insert(id);
        if let Some(inode) = node.and_then(|node| self.inodes.get_mut(&node)) {
            inode.dentries.insert(id);
        }
        id
    }

    // What goes.

    /// `d_invalidate`: the name is not found any more, and what nobody holds below it goes.
    fn invalidate(&mut self, id: DentryId) {
        self.at_mut(id).hashed = false;
        self.shrink(id);
        self.reap(id);
    }

    fn shrink(&mut self, id: DentryId) {
        for child in self.at(id).children.clone() {
            self.shrink(child);
            self.prune(child);
        }
    }

    /// Drops a dentry that nobody holds and that has none below it.
    fn prune(&mut self, id: DentryId) -> bool {
        let Dentry { holds: 0, alive: true, parent, node, ref children, .. } = *self.at(id) else { return false };
        if !children.is_empty() {
            return false;
        }
        (self.at_mut(id).alive, self.at_mut(id).hashed) = (false, false);
        self.at_mut(parent).children.remove(&id);
        if let Some(node) = node {
            let inode = self.inodes.get_mut(&node).expect("a dentry's inode is there");
            inode.dentries.remove(&id);
            if inode.dentries.is_empty() {
                self.inodes.remove(&node);
            }
        }
        true
    }

    /// Drops a dentry that is unhashed and needed by nobody, and so on upwards.
    fn reap(&mut self, id: DentryId) {
        let parent = self.at(id).parent;
        if id != ROOT && !self.at(id).hashed && self.prune(id) {
            self.reap(parent);
        }
    }

    /// Memory is short: drops one dentry, chosen by this number, if nobody needs it.
    pub fn press(&mut self, number: usize) {
        let id = DentryId(number % self.dentries.len());
        let parent = self.at(id).parent;
        if self.prune(id) {
            self.reap(parent);
        }
    }

    pub fn dentries(&self) -> usize {
        self.dentries.len()
    }

    // What it is told.

    /// Asks for a directory's lock alone; true if it is free now. An unknown directory has none.
    pub fn want_lock(&mut self, dir: NodeId) -> bool {
        if !self.inodes.contains_key(&dir) {
            return true;
        }
        let lock = self.locks.entry(dir).or_default();
        lock.wanted = lock.shared > 0;
        !lock.wanted
    }

    /// Asks no more.
    pub fn give_up_lock(&mut self, dir: NodeId) {
        self.locks.entry(dir).or_default().wanted = false;
    }

    /// FUSE_NOTIFY_INVAL_ENTRY, with the directory's lock free.
    pub fn drop_entry(&mut self, dir: NodeId, name: &str) {
        let Some(inode) = self.inodes.get(&dir) else { return };
        let Some(alias) = inode.dentries.first().copied() else { return };
        let Some(child) = self.hashed(alias, name) else { return };
        self.inodes.get_mut(&dir).expect("seen above").believed = false;
        self.at_mut(child).believed = false;
        self.invalidate(child);
    }

    /// FUSE_NOTIFY_INVAL_INODE.
    pub fn drop_attributes(&mut self, node: NodeId) {
        let Some(inode) = self.inodes.get_mut(&node) else { return };
        self.version += 1;
        (inode.version, inode.believed) = (self.version, false);
    }
}
