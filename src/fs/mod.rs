//! The operations of the mount, with verfs's own types.
//!
//! What is answered comes from an [`Epoch`], an immutable snapshot; [`Fs::answer`] keeps the one rule that makes the
//! switch exact: a reply is sent under the read side of the epoch lock, and only if the epoch is still the one that it
//! was computed from.

mod attr;
mod change;
mod contents;
mod counters;
mod epoch;
pub mod faults;
mod listing;
pub mod media;
mod mount;
mod probe;
pub mod refused;
mod threads;

pub use attr::{Attr, Entry, Ttl, Type};
pub use contents::{Contents, ReadBytes};
pub use counters::{Counters, Operation};
pub use epoch::{Epoch, Epochs, Release, Transition, Turn};
pub use listing::{ListRequest, Listed, Listing, Position};
pub use media::Media;
pub use mount::LookupRef;

use crate::error::{Errno, Error, OnDisk, Result};
use crate::store::media::home::is_acl;
use crate::store::release::objects::{Content, Objects};
use crate::tree::{EntryName, Kind, LayerPath, NodeId, Tree, name_key};
use faults::{Asked, Disk, Faults};
use media::{Caller, Reading};
use refused::{Refused, Why};
use std::fs::File;
use std::sync::Arc;

/// What is mounted.
pub struct Fs {
    /// The epoch that is served, and its lock.
    pub epochs: Epochs,
    /// Upcalls by operation.
    pub counters: Counters,
    /// Contents of objects.
    pub descriptors: Contents,
    /// The writable layer, if the store has scopes.
    pub media: Option<Media>,
    /// Writes that were refused.
    pub refused: Arc<Refused>,
    /// What the disks could not do.
    pub faults: Faults,
    store: File,
}

/// An answer that is not sent yet, and the epoch that it was computed from.
#[derive(Debug)]
pub struct Computed<T> {
    epoch: Arc<Epoch>,
    answer: Result<T>,
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fs")
    }
}

impl Fs {
    /// Serves this epoch; `store` is the open directory of the store, `descriptors` how many objects are kept
    /// open.
    pub fn new(
        epoch: Epoch,
        objects: Objects,
        store: File,
        descriptors: usize,
        media: Option<Media>,
        refused: Arc<Refused>,
    ) -> Self {
        Self {
            epochs: Epochs::new(epoch),
            counters: Counters::default(),
            descriptors: Contents::new(objects, descriptors),
            media,
            refused,
            faults: Faults::default(),
            store,
        }
    }

    /// The releases of which something is still served: the active one, earlier ones, and those of files in scopes.
    pub fn releases(&self) -> Vec<Arc<Release>> {
        let mut releases = self.epochs.releases();
        for (release, _) in self.media.as_ref().map_or(Vec::new(), Media::held_of_releases) {
            if !releases.iter().any(|other| Arc::ptr_eq(other, &release)) {
                releases.push(release);
            }
        }
        releases
    }

    /// Computes an answer without any lock, and sends it under the read side of the epoch lock if the epoch is
    /// still the same; else computes it again. `compute` may read the disk; `send` must only send.
    pub fn answer<T>(&self, compute: impl Fn(&Epoch) -> Result<T>, send: impl FnOnce(&Epoch, Result<T>)) {
        let mut unsent = Some(send);
        while let Some(send) = unsent {
            unsent = self.send(self.compute(&compute), send);
        }
    }

    /// Computes an answer from the epoch that is served, without any lock.
    pub fn compute<T>(&self, compute: impl Fn(&Epoch) -> Result<T>) -> Computed<T> {
        let epoch = self.epochs.load();
        let mut answer = compute(&epoch);
        if let Some(bad) = epoch.bad() {
            let whole = Asked::of(Operation::Lookup, NodeId::ROOT);
            answer = self.noted(&whole, Err(bad.damaged("a page of it cannot be read")));
        }
        Computed { epoch, answer }
    }

    /// Sends an answer under the read side of the epoch lock. If it was computed from another epoch than the one that
    /// is served by now, nothing is sent, and `send` comes back.
    pub fn send<T, S: FnOnce(&Epoch, Result<T>)>(&self, computed: Computed<T>, send: S) -> Option<S> {
        let Computed { epoch, answer } = computed;
        let guard = self.epochs.lock();
        if !Arc::ptr_eq(&guard, &epoch) {
            return Some(send);
        }
        send(&epoch, answer);
        None
    }

    /// Notes the outcome of a request: a fault of a disk, or that it works.
    fn noted<T>(&self, asked: &Asked<'_>, done: Result<T>) -> Result<T> {
        let own = if asked.node.is_scoped() { Disk::Media } else { Disk::Store };
        match &done {
            Ok(_) => self.faults.worked(asked, own),
            Err(error) => {
                let objects = self.descriptors.objects().root().as_os_str().as_encoded_bytes();
                let disk = match error {
                    Error::Damaged(_) => Disk::Store,
                    Error::Disk { path, .. } if path.starts_with(objects) => Disk::Store,
                    _ => own,
                };
                self.faults.note(asked, disk, error);
            }
        }
        done
    }

    /// The writable layer, for a node of it.
    fn media_of(&self, node: NodeId) -> Option<&Media> {
        self.media.as_ref().filter(|_| node.is_scoped())
    }

    /// The disk of the writable layer that a look at a node may wait for; none for what releases hold.
    pub fn disk_to_look(&self, node: NodeId) -> Option<u64> {
        self.media_of(node)?.disk_to_look(node)
    }

    /// The same for a listing: a directory of a release may show the top of a scope that nobody has looked at yet.
    pub fn disk_to_list(&self, dir: NodeId) -> Option<u64> {
        let media = self.media.as_ref()?;
        let unknown = |scope| !media.remembers_top(&self.epochs.load(), scope);
        match dir.is_scoped() || media.scopes.scopes_in(dir).any(unknown) {
            true => Some(media.disk_of(dir)),
            false => None,
        }
    }

    /// The disk that a change of a node, or of a name in it, may wait for; none outside the scopes, where it is
    /// refused.
    pub fn disk_to_change(&self, node: NodeId) -> Option<u64> {
        Some(self.media_of(node)?.disk_of(node))
    }

    /// The disk that a lookup may wait for.
    pub fn disk_to_look_up(&self, dir: NodeId, name: &[u8]) -> Option<u64> {
        let media = self.media.as_ref()?;
        match dir.is_scoped() || media.scopes.top(dir, name).is_some() {
            true => Some(media.disk_of(dir)),
            false => None,
        }
    }

    /// The writable layer, for a change of this node or of a name in it: outside the scopes EROFS, and noted.
    fn writable(&self, caller: Caller, node: NodeId, name: &[u8]) -> Result<&Media> {
        if let Some(media) = self.media_of(node) {
            return Ok(media);
        }
        let epoch = self.epochs.load();
        let mut path = epoch.find(node).and_then(|at| at.manifest().path_of(at.index)).unwrap_or_default();
        if !path.is_empty() && !name.is_empty() {
            path.push(b'/');
        }
        path.extend(name);
        self.refused.note(&path, caller.uid, Why::Outside);
        Err(Error::Refused)
    }

    /// What a name in a directory stands for.
    pub fn lookup(&self, epoch: &Epoch, dir: NodeId, name: &[u8]) -> Result<Entry> {
        self.noted(&Asked::named(Operation::Lookup, dir, name), self.look_up(epoch, dir, name))
    }

    fn look_up(&self, epoch: &Epoch, dir: NodeId, name: &[u8]) -> Result<Entry> {
        if EntryName::new(name).is_none() {
            return Err(Error::answer(Errno::NAMETOOLONG));
        }
        if let Some(media) = self.media_of(dir) {
            return media.lookup(epoch, dir, name);
        }
        if let Some(media) = &self.media
            && let Some(scope) = media.scopes.top(dir, name)
        {
            return media.lookup_top(epoch, scope);
        }
        epoch.entry(dir, name)
    }

    /// Answers a lookup by `request`: at once, or, where a switch is about to swap and this thread is a newcomer,
    /// after it.
    pub fn gated(&self, dir: NodeId, name: &[u8], thread: u32, request: impl FnOnce(Turn) + Send + 'static) {
        let epoch = self.epochs.load();
        let Some(transition) = epoch.transition.as_ref().filter(|transition| transition.changes(dir, name)) else {
            return request(Turn::Own);
        };
        // A missing name is answered at once: behind its lookup the kernel keeps other threads waiting, also those in
        // the middle of a file.
        if !matches!(epoch.entry(dir, name), Ok(Entry { attr: Some(_), .. })) {
            return request(Turn::Own);
        }
        if let Some(request) = transition.gate.pass(thread, name_key(dir, name), Box::new(request)) {
            request(Turn::Own);
        }
    }

    /// The attributes of a node, computed from this epoch, are being sent.
    pub fn attrs_sent(&self, epoch: &Epoch, node: NodeId) {
        epoch.attrs_sent(node.unscoped());
    }

    /// The number by which the kernel knows the directory at a path of a shared scope.
    pub fn known_as(&self, dir: &[u8]) -> NodeId {
        match &self.media {
            Some(media) => media.number_of_dir(&LayerPath::shared(dir)),
            None => NodeId::of_dir(dir),
        }
    }

    /// The kernel forgot a node.
    pub fn forget(&self, node: NodeId, times: u64) {
        if let Some(media) = self.media_of(node) {
            media.forget(node, times);
        }
    }

    /// The attributes of a node, and how long they hold.
    pub fn getattr(&self, epoch: &Epoch, node: NodeId) -> Result<(Attr, Ttl)> {
        self.noted(&Asked::of(Operation::Getattr, node), self.attributes(epoch, node))
    }

    fn attributes(&self, epoch: &Epoch, node: NodeId) -> Result<(Attr, Ttl)> {
        match self.media_of(node) {
            Some(media) => media.getattr(epoch, node),
            None => epoch.attributes(node),
        }
    }

    /// The target of a symlink. It belongs to the node, so no epoch is waited for.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        self.noted(&Asked::of(Operation::Readlink, node), self.target(node))
    }

    fn target(&self, node: NodeId) -> Result<Vec<u8>> {
        let epoch = self.epochs.load();
        if let Some(media) = self.media_of(node) {
            return media.readlink(node);
        }
        let at = epoch.find(node)?;
        match at.manifest().node(at.index)?.kind {
            Kind::Symlink => Ok(at.manifest().target(at.index)?.to_vec()),
            _ => Err(Error::answer(Errno::INVAL)),
        }
    }

    /// The open object behind a file of a release. It belongs to the node, so no epoch is waited for.
    pub fn open_content(&self, node: NodeId) -> Result<Content> {
        let epoch = self.epochs.load();
        let at = epoch.find(node)?;
        let found = at.manifest().node(at.index)?;
        match found.kind {
            Kind::File => self.descriptors.open(at.manifest().digest(at.index)?, found.size),
            Kind::Dir => Err(Error::answer(Errno::ISDIR)),
            Kind::Symlink => Err(Error::answer(Errno::INVAL)),
        }
    }

    /// Reads up to `len` bytes of a file's content.
    pub fn read(&self, node: NodeId, offset: u64, len: u32, how: Reading) -> Result<ReadBytes> {
        self.noted(&Asked::range(node, offset, len), self.content(node, offset, len, how))
    }

    fn content(&self, node: NodeId, offset: u64, len: u32, how: Reading) -> Result<ReadBytes> {
        match self.media_of(node) {
            Some(media) => media.read(&self.descriptors, node, offset, len, how),
            None => self.descriptors.read(&self.open_content(node)?, offset, len as usize, !how.direct),
        }
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE.
    pub fn seek(&self, node: NodeId, offset: i64, whence: i32) -> Result<i64> {
        let found = match self.media_of(node) {
            Some(media) => media.seek(&self.descriptors, node, offset, whence),
            None => self.open_content(node).and_then(|content| self.descriptors.seek(&content, offset, whence)),
        };
        self.noted(&Asked::of(Operation::Lseek, node), found)
    }

    /// The value of an extended attribute: those of the user only.
    pub fn getxattr(&self, epoch: &Epoch, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.noted(&Asked::of(Operation::Getxattr, node), self.xattr(epoch, node, name))
    }

    fn xattr(&self, epoch: &Epoch, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        if let Some(media) = self.media_of(node) {
            return media.getxattr(epoch, node, name);
        }
        if is_acl(name) && self.media.as_ref().is_some_and(Media::uses_acls) {
            return Err(Error::answer(Errno::NODATA));
        }
        if !name.starts_with(b"user.") {
            return Err(Error::answer(Errno::OPNOTSUPP));
        }
        let at = epoch.find(node)?;
        let found = at.manifest().xattrs(at.index)?.into_iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value).ok_or(Error::answer(Errno::NODATA))
    }

    /// The names of a node's extended attributes, each with a NUL behind it.
    pub fn listxattr(&self, epoch: &Epoch, node: NodeId) -> Result<Vec<u8>> {
        let names = self.noted(&Asked::of(Operation::Listxattr, node), self.xattrs(epoch, node))?.into_iter();
        Ok(names
            .flat_map(|(mut name, _)| {
                name.push(0);
                name
            })
            .collect())
    }

    fn xattrs(&self, epoch: &Epoch, node: NodeId) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match self.media_of(node) {
            Some(media) => media.xattrs(epoch, node),
            None => {
                let at = epoch.find(node)?;
                at.manifest().xattrs(at.index)
            }
        }
    }

    /// Room on the disk that a node lies on: that of media, or the store's.
    pub fn statfs(&self, node: NodeId) -> Result<rustix::fs::StatVfs> {
        self.noted(&Asked::of(Operation::Statfs, node), self.room(node))
    }

    fn room(&self, node: NodeId) -> Result<rustix::fs::StatVfs> {
        if let Some(media) = self.media_of(node) {
            return media.room();
        }
        let shown = || self.descriptors.objects().root().as_os_str().as_encoded_bytes();
        rustix::fs::fstatvfs(&self.store).on_disk("asking for the room of", shown)
    }
}
