//! Listings of directories in scopes: made once for an open directory, and kept while it is read.

use super::Media;
use super::entries::VisibleName;
use super::lookup::Visible;
use crate::error::{Errno, Error, Result};
use crate::fs::attr::{Attr, Ttl, Type};
use crate::fs::epoch::Epoch;
use crate::fs::listing::{ListRequest, Listed, Listing, Position};
use crate::tree::NodeId;
use std::sync::Arc;

/// An entry of a listing that is kept.
#[derive(Debug)]
pub(crate) struct ListedEntry {
    cookie: u64,
    number: NodeId,
    kind: Type,
    name: Vec<u8>,
}

impl Media {
    /// Entries of a directory whose cookies are greater than the last one's.
    pub fn list(&self, epoch: &Epoch, request: ListRequest) -> Result<Vec<Listed>> {
        let ListRequest { dir, from: Position { handle, cookie: after }, most, listing } = request;
        let visible = Visible { media: self, epoch };
        let own = visible.attr_of(dir)?;
        let kept = if after == 0 { None } else { self.mount.listing(handle) };
        let whole = match kept {
            Some(whole) => whole,
            None => {
                let whole = Arc::new(self.listing_of(&visible, dir)?);
                self.mount.keep_listing(handle, whole.clone());
                whole
            }
        };
        let mut listed = Vec::new();
        for (cookie, name) in [(1, &b"."[..]), (2, b"..")] {
            if after < cookie {
                let node = if cookie == 1 { dir } else { self.parent_node(dir)? };
                let attr = Attr { node, ..own };
                listed.push(Listed { name: name.to_vec(), cookie, attr, ttl: Ttl::Zero, lookup: None });
            }
        }
        let from = whole.partition_point(|entry| entry.cookie <= after);
        let dots = listed.len();
        for ListedEntry { cookie, number, kind, name } in &whole[from..] {
            if listed.len() - dots == most {
                break;
            }
            let mut entry = Listed {
                name: name.clone(),
                cookie: *cookie,
                attr: Attr { node: *number, kind: *kind, ..own },
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
        Ok(listed)
    }

    /// The entries of a directory, by cookie. It is made again if the directory moved while its layers were read.
    fn listing_of(&self, visible: &Visible<'_>, dir: NodeId) -> Result<Vec<ListedEntry>> {
        let entries = self.by_name(dir, |held| {
            let path = held.path.as_ref().ok_or(Error::answer(Errno::NOENT))?;
            let entries = visible.entries(path)?;
            match visible.is_there(path)? {
                true => Ok(entries),
                false => Err(Error::answer(Errno::NOENT)),
            }
        })?;
        let listed = entries.into_iter();
        let mut listed: Vec<_> = listed
            .map(|VisibleName { number, kind, name }| ListedEntry { cookie: cookie(&name), number, kind, name })
            .collect();
        listed.sort_unstable_by_key(|entry| entry.cookie);
        Ok(listed)
    }

    fn parent_node(&self, dir: NodeId) -> Result<NodeId> {
        let path = self.nodes.lock().dir_path(dir)?;
        Ok(match self.scopes.is_top(path.in_docroot()) {
            true => NodeId::of_dir(path.parent_in_docroot()),
            false => path.parent().dir_node(),
        })
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
fn cookie(name: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    blake3::Hasher::new().update(name).finalize_xof().fill(&mut bytes);
    (u64::from_le_bytes(bytes) >> 1).max(3)
}
