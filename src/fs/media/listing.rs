//! Listings of directories in scopes: made once for an open directory, and kept while it is read.

use super::Media;
use crate::error::Result;
use crate::fs::attr::{Attr, Ttl, Type};
use crate::fs::epoch::Epoch;
use crate::fs::listing::Listed;
use crate::store::media::home::{docroot_path, split};
use crate::tree::NodeId;
use std::sync::Arc;

/// An entry of a listing that is kept.
pub struct ListedEntry {
    cookie: u64,
    number: NodeId,
    kind: Type,
    name: Vec<u8>,
}

impl Media {
    /// Up to `most` entries of a directory whose cookies are greater than `after`; with attributes for READDIRPLUS.
    pub fn list(
        &self,
        epoch: &Epoch,
        dir: NodeId,
        handle: u64,
        after: u64,
        most: usize,
        plus: bool,
    ) -> Result<Vec<Listed>> {
        let names = self.names(epoch);
        let path = self.dir_path(dir)?;
        let kept = if after == 0 { None } else { self.files.listings.lock().get(&handle).cloned() };
        let whole = match kept {
            Some(whole) => whole,
            None => {
                let mut whole: Vec<ListedEntry> = names
                    .entries(&path)?
                    .into_iter()
                    .map(|(number, kind, name)| ListedEntry { cookie: cookie(&name), number, kind, name })
                    .collect();
                whole.sort_unstable_by_key(|shown| shown.cookie);
                let whole = Arc::new(whole);
                self.files.listings.lock().push(handle, whole.clone());
                whole
            }
        };
        let mut listed = Vec::new();
        let own = names.attr_of(dir)?;
        for (cookie, name) in [(1, &b"."[..]), (2, b"..")] {
            if after < cookie {
                let node = if cookie == 1 { dir } else { self.parent_node(&path) };
                listed.push(Listed { name: name.to_vec(), cookie, attr: Attr { node, ..own }, ttl: Ttl::Zero });
            }
        }
        let from = whole.partition_point(|shown| shown.cookie <= after);
        let dots = listed.len();
        for ListedEntry { cookie, number, kind, name } in &whole[from..] {
            if listed.len() - dots == most {
                break;
            }
            let mut attr = Attr { node: *number, kind: *kind, ..own };
            let mut ttl = Ttl::Zero;
            if plus {
                let entry = names.entry(&[&path[..], name].join(&b'/'))?;
                // One that went since the listing was made is left out.
                let Some(now) = entry.attr else { continue };
                (attr, ttl) = (now, entry.attr_ttl);
            }
            listed.push(Listed { name: name.clone(), cookie: *cookie, attr, ttl });
        }
        Ok(listed)
    }

    fn parent_node(&self, path: &[u8]) -> NodeId {
        match self.scopes.is_top(path) {
            true => NodeId::of_dir(split(docroot_path(path).1).0),
            false => super::media_of(NodeId::of_dir(split(path).0)),
        }
    }

    /// A listing is over.
    pub fn end_listing(&self, handle: u64) {
        let gone = self.files.listings.lock().pop(&handle);
        drop(gone);
    }
}

/// The cookie of a name: 63 bits of its hash, past those of "." and "..". It does not change while others come and go.
fn cookie(name: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    blake3::Hasher::new().update(name).finalize_xof().fill(&mut bytes);
    (u64::from_le_bytes(bytes) >> 1).max(3)
}
