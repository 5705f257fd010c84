//! Listings of directories in scopes: made for an open directory, window by window, and kept while it is read.

use super::Media;
use super::entries::{VisibleName, Window};
use super::lookup::Visible;
use crate::error::{Errno, Error, Result};
use crate::fs::attr::{Attr, Ttl};
use crate::fs::epoch::Epoch;
use crate::fs::listing::{ListRequest, Listed, Listing, Position};
use crate::tree::{LayerPath, NodeId};
use std::sync::Arc;

impl Media {
    /// Entries of a directory whose cookies are greater than the last one's.
    pub fn list(&self, epoch: &Epoch, request: ListRequest) -> Result<Vec<Listed>> {
        let ListRequest { dir, from: Position { handle, cookie: mut after }, most, listing } = request;
        let visible = Visible { media: self, epoch };
        let own = visible.attr_of(dir)?;
        let begins = after == 0;
        let mut listed = Vec::new();
        for (cookie, name) in [(1, &b"."[..]), (2, b"..")] {
            if after < cookie {
                let node = if cookie == 1 { dir } else { self.parent_node(dir)? };
                let attr = Attr { node, ..own };
                listed.push(Listed { name: name.to_vec(), cookie, attr, ttl: Ttl::Zero, lookup: None });
                after = cookie;
            }
        }
        let dots = listed.len();
        let mut kept = if begins { None } else { self.mount.listing(handle) };
        loop {
            let window = match kept.take().filter(|window| window.has_next(after)) {
                Some(window) => window,
                None => {
                    let window = Arc::new(self.next_window(&visible, dir, if begins { 0 } else { after })?);
                    self.mount.keep_listing(handle, window.clone());
                    window
                }
            };
            for VisibleName { cookie, number, kind, name } in window.behind(after) {
                if listed.len() - dots == most {
                    return Ok(listed);
                }
                let mut entry = Listed {
                    name: name.to_vec(),
                    cookie,
                    attr: Attr { node: number, kind, ..own },
                    ttl: Ttl::Zero,
                    lookup: None,
                };
                if listing == Listing::Plus {
                    let now = visible.entry_in(dir, name)?;
                    // One that went since the listing was made is left out.
                    let Some(attr) = now.attr else { continue };
                    (entry.attr, entry.ttl, entry.lookup) = (attr, now.attr_ttl, now.lookup);
                }
                listed.push(entry);
            }
            match window.end {
                // An empty reply would end the listing.
                Some(end) if listed.is_empty() && end > after => after = end,
                _ => return Ok(listed),
            }
        }
    }

    /// The next names of a directory. They are read again if the directory moved while its layers were read.
    fn next_window(&self, visible: &Visible<'_>, dir: NodeId, after: u64) -> Result<Window> {
        self.by_name(dir, |held| {
            let path = held.path.as_ref().ok_or(Error::answer(Errno::NOENT))?;
            let window = visible.window(path, after)?;
            match visible.is_there(path)? {
                true => Ok(window),
                false => Err(Error::answer(Errno::NOENT)),
            }
        })
    }

    fn parent_node(&self, dir: NodeId) -> Result<NodeId> {
        let path = self.nodes.lock().dir_path(dir)?;
        Ok(self.number_above(&path))
    }

    /// The number by which the kernel knows the directory that a path lies in.
    pub(super) fn number_above(&self, path: &LayerPath) -> NodeId {
        match self.scopes.is_top(path.in_docroot()) {
            true => NodeId::of_dir(path.parent_in_docroot()),
            false => self.nodes.lock().number_of_dir(&path.parent()),
        }
    }

    /// The handle of a listing that begins.
    pub fn begin_listing(&self) -> u64 {
        self.mount.begin_listing()
    }

    /// A listing is over.
    pub fn end_listing(&self, handle: u64) {
        self.mount.end_listing(handle);
    }
}

/// The cookie of a name: 63 bits of its hash, past those of "." and "..". It does not change while others come and go.
pub(super) fn cookie(name: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    blake3::Hasher::new().update(name).finalize_xof().fill(&mut bytes);
    (u64::from_le_bytes(bytes) >> 1).max(3)
}
