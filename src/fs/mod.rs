//! The operations of the mount, with verfs's own types.
//!
//! What is answered comes from a [`View`], an immutable snapshot; [`Fs::answer`] keeps the one rule that makes
//! the switch exact: a reply is sent under the read side of the view lock, and only if the view is still the
//! one that it was computed from.

mod attr;
mod change;
mod contents;
mod counters;
mod epoch;
mod listing;
pub mod media;
pub mod refused;
mod threads;

pub use attr::{Attr, Entry, Ttl, Type};
pub use contents::{Answer, Descriptors};
pub use counters::{Counters, Operation};
pub use epoch::{Board, Release, Transition, View};
pub use listing::{Listed, Position};
pub use media::Media;

use crate::error::{Errno, Error, Result};

use crate::store::media::home::is_list;
use crate::store::release::objects::{Content, Objects};
use crate::tree::{EntryName, Kind, NodeId, Tree, name_key};
use media::{Answering, Caller, Reading};
use refused::{Refused, Why};
use std::fs::File;
use std::sync::Arc;

/// What is mounted.
pub struct Fs {
    /// The view that is served, and its lock.
    pub board: Board,
    /// Upcalls by operation.
    pub counters: Counters,
    /// Descriptors of objects.
    pub descriptors: Descriptors,
    /// The writable layer, if the store has scopes.
    pub media: Option<Media>,
    /// Writes that were refused.
    pub refused: Arc<Refused>,
    store: File,
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fs")
    }
}

impl Fs {
    /// Serves this view; `store` is the open directory of the store, `descriptors` how many objects are kept
    /// open.
    pub fn new(
        view: View,
        objects: Objects,
        store: File,
        descriptors: usize,
        media: Option<Media>,
        refused: Arc<Refused>,
    ) -> Self {
        Self {
            board: Board::new(view),
            counters: Counters::default(),
            descriptors: Descriptors::new(objects, descriptors),
            media,
            refused,
            store,
        }
    }

    /// Computes an answer without any lock, and sends it under the read side of the view lock if the view is
    /// still the same; else computes it again. `compute` may read the disk; `send` must only send.
    pub fn answer<T>(&self, compute: impl Fn(&View) -> Result<T>, send: impl FnOnce(&View, Result<T>)) {
        loop {
            let _answering = self.answering();
            let view = self.board.view();
            let mut answer = compute(&view);
            if let Some(bad) = view.bad() {
                answer = Err(bad.damaged("a page of it cannot be read"));
            }
            let guard = self.board.lock();
            if !Arc::ptr_eq(&guard, &view) {
                continue;
            }
            if let Err(error) = &answer {
                report(error);
            }
            return send(&view, answer);
        }
    }

    /// Held while an answer is made and sent that may tell the kernel of nodes in scopes.
    pub fn answering(&self) -> Option<Answering<'_>> {
        self.media.as_ref().map(Media::answering)
    }

    /// The writable layer, for a node of it.
    fn media_of(&self, node: NodeId) -> Option<&Media> {
        self.media.as_ref().filter(|_| media::is_media(node))
    }

    /// The writable layer, for a change of this node or of a name in it: outside the scopes EROFS, and noted.
    fn writable(&self, caller: Caller, node: NodeId, name: &[u8]) -> Result<&Media> {
        if let Some(media) = self.media_of(node) {
            return Ok(media);
        }
        let view = self.board.view();
        let mut path = view.find(node).and_then(|at| at.manifest().path_of(at.index)).unwrap_or_default();
        if !path.is_empty() && !name.is_empty() {
            path.push(b'/');
        }
        path.extend(name);
        self.refused.note(&path, caller.uid, Why::Outside);
        Err(Errno::ROFS.into())
    }

    /// What a name in a directory stands for.
    pub fn lookup(&self, view: &View, dir: NodeId, name: &[u8]) -> Result<Entry> {
        if EntryName::new(name).is_none() {
            return Err(Errno::NAMETOOLONG.into());
        }
        if let Some(media) = self.media_of(dir) {
            return media.lookup(view, dir, name);
        }
        if let Some(media) = &self.media
            && let Some(scope) = media.scopes.top(dir, name)
        {
            return media.lookup_top(view, scope);
        }
        view.entry(dir, name)
    }

    /// Answers a lookup by `request`: at once, or, where a switch is about to swap and this thread is a newcomer,
    /// after it.
    pub fn gated(&self, dir: NodeId, name: &[u8], thread: u32, request: impl FnOnce() + Send + 'static) {
        let view = self.board.view();
        let Some(transition) = view.transition.as_ref().filter(|transition| transition.changes(dir, name)) else {
            return request();
        };
        // A name that is not there is answered at once: the kernel keeps others waiting behind such a lookup, those
        // in the middle of something too.
        if !matches!(view.entry(dir, name), Ok(Entry { attr: Some(_), .. })) {
            return request();
        }
        if let Some(request) = transition.gate.pass(thread, name_key(dir, name), Box::new(request)) {
            request();
        }
    }

    /// The kernel is being told of a node: a media node counts it.
    pub fn told(&self, node: NodeId) {
        if let Some(media) = self.media_of(node) {
            media.told(node);
        }
    }

    /// The kernel is being told of a node's attributes, as of a view.
    pub fn told_attributes(&self, view: &View, node: NodeId) {
        view.told(if media::is_media(node) { media::release_node(node) } else { node });
    }

    /// The kernel forgot a node.
    pub fn forget(&self, node: NodeId, times: u64) {
        if let Some(media) = self.media_of(node) {
            media.forget(node, times);
        }
    }

    /// The attributes of a node, and how long they hold.
    pub fn getattr(&self, view: &View, node: NodeId) -> Result<(Attr, Ttl)> {
        match self.media_of(node) {
            Some(media) => media.getattr(view, node),
            None => view.attributes(node),
        }
    }

    /// The target of a symlink. It belongs to the node, so no view is waited for.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let view = self.board.view();
        if let Some(media) = self.media_of(node) {
            return media.readlink(&view, node);
        }
        let at = view.find(node)?;
        match at.manifest().node(at.index)?.kind {
            Kind::Symlink => Ok(at.manifest().target(at.index)?.to_vec()),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// The open object behind a file of a release. It belongs to the node, so no view is waited for.
    pub fn open_content(&self, node: NodeId) -> Result<Content> {
        let view = self.board.view();
        let at = view.find(node)?;
        let found = at.manifest().node(at.index)?;
        match found.kind {
            Kind::File => self.descriptors.open(at.manifest().digest(at.index)?, found.size),
            Kind::Dir => Err(Errno::ISDIR.into()),
            Kind::Symlink => Err(Errno::INVAL.into()),
        }
    }

    /// Reads up to `len` bytes of a file's content.
    pub fn read(&self, node: NodeId, offset: u64, len: u32, how: Reading) -> Result<Answer> {
        match self.media_of(node) {
            Some(media) => media.read(&self.descriptors, node, offset, len, how),
            None => self.descriptors.read(&self.open_content(node)?, offset, len as usize, !how.direct),
        }
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE.
    pub fn seek(&self, node: NodeId, offset: i64, whence: i32) -> Result<i64> {
        if let Some(media) = self.media_of(node) {
            return media.seek(&self.descriptors, node, offset, whence);
        }
        Ok(self.open_content(node)?.seek(offset, whence)?)
    }

    /// The value of an extended attribute: those of the user only.
    pub fn getxattr(&self, view: &View, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        if let Some(media) = self.media_of(node) {
            return media.getxattr(node, name);
        }
        if is_list(name) && self.media.as_ref().is_some_and(Media::uses_lists) {
            return Err(Errno::NODATA.into());
        }
        if !name.starts_with(b"user.") {
            return Err(Errno::OPNOTSUPP.into());
        }
        let at = view.find(node)?;
        let found = at.manifest().xattrs(at.index)?.into_iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value).ok_or(Error::Errno(Errno::NODATA))
    }

    /// The names of a node's extended attributes, each with a NUL behind it.
    pub fn listxattr(&self, view: &View, node: NodeId) -> Result<Vec<u8>> {
        let names = match self.media_of(node) {
            Some(media) => media.xattrs(node)?,
            None => {
                let at = view.find(node)?;
                at.manifest().xattrs(at.index)?
            }
        };
        let names = names.into_iter();
        Ok(names
            .flat_map(|(mut name, _)| {
                name.push(0);
                name
            })
            .collect())
    }

    /// Room on the store's disk.
    pub fn statfs(&self) -> Result<rustix::fs::StatVfs> {
        rustix::fs::fstatvfs(&self.store).map_err(|error| Error::io("asking for the free space of the store", error))
    }
}

/// Writes a line for what is a fault of the store's; an answer such as ENOENT is none.
pub fn report(error: &Error) {
    match error {
        Error::Errno(_) => {}
        _ => log::error!("{error}"),
    }
}
