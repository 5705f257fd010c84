//! Listings: pinned to the switch under which they began.
//!
//! The handle of an open directory is the number of that switch, so no table of handles is needed, and the
//! cookie of an entry is its position. What a listing tells the kernel beside the names (READDIRPLUS) is what
//! holds now: an entry that the active release does not have identically gets TTL 0.

use super::Fs;
use super::attr::{Attr, Ttl};
use super::counters::Operation;
use super::epoch::{Epoch, Located, Release};
use super::faults::Asked;
use super::mount::LookupRef;
use crate::error::{Errno, Error, Result};
use crate::store::active::stamps::Stamp;
use crate::tree::{Kind, NodeId, Tree};
use std::ops::Range;
use std::sync::Arc;

/// Where a listing goes on.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// The handle that OPENDIR was answered with; of a directory of a release the switch that the listing is pinned to.
    pub handle: u64,
    /// The cookie of the last entry that was read; 0 at the beginning.
    pub cookie: u64,
}

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Names (READDIR).
    Names,
    /// Names, and attributes that the kernel may keep (READDIRPLUS).
    Plus,
}

/// Entries of a directory that are asked for.
#[derive(Clone, Copy, Debug)]
pub struct ListRequest {
    /// The directory.
    pub dir: NodeId,
    /// Behind which of its entries.
    pub from: Position,
    /// How many at most.
    pub most: usize,
    /// What of each.
    pub listing: Listing,
}

/// An entry of a listing.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: Vec<u8>,
    /// The cookie with which the listing goes on behind it.
    pub cookie: u64,
    /// What it stands for.
    pub attr: Attr,
    /// How long entry and attributes may be believed: the protocol library has one for both here.
    pub ttl: Ttl,
    /// The lookup that the kernel is to count if it keeps the entry, of a node in a scope.
    pub lookup: Option<LookupRef>,
}

impl Fs {
    /// Entries of a directory.
    pub fn list(&self, epoch: &Epoch, request: ListRequest) -> Result<Vec<Listed>> {
        let operation = match request.listing {
            Listing::Names => Operation::Readdir,
            Listing::Plus => Operation::Readdirplus,
        };
        self.noted(&Asked::of(operation, request.dir), self.entries(epoch, request))
    }

    pub(super) fn entries(&self, epoch: &Epoch, request: ListRequest) -> Result<Vec<Listed>> {
        let ListRequest { dir, from, most, listing } = request;
        if let Some(media) = self.media_of(dir) {
            return media.list(epoch, request);
        }
        let switch = u32::try_from(from.handle).unwrap_or(u32::MAX);
        let (release, index) = match self.epochs.release_for_listing(switch, dir)? {
            Some(found) => found,
            None => {
                let found = epoch.find(dir)?;
                (found.release.clone(), found.index)
            }
        };
        let shown = Located { release: &release, index, live: Arc::ptr_eq(&release, &epoch.release) };
        let node = release.manifest.node(index)?;
        if node.kind != Kind::Dir {
            return Err(Error::answer(Errno::NOTDIR));
        }
        let children = release.manifest.children(index)?;
        // The active release's own number of this directory, where it shows another release's.
        let active = if shown.live { None } else { epoch.release.manifest.find_node(dir)? };
        let tops = self.tops_beside(dir, &release, children.clone())?;
        let mut listed = Vec::with_capacity(most.min(children.len() + 2));
        let mut position = from.cookie;
        while listed.len() < most {
            let entry = match position {
                0 => dot(epoch, b".", shown, dir)?,
                1 => dot(epoch, b"..", shown, release.manifest.node(node.parent)?.nodeid)?,
                n => match u32::try_from(n - 2).ok().and_then(|n| children.start.checked_add(n)) {
                    Some(child) if child < children.end => {
                        let name = release.manifest.name(child)?;
                        let child = Located { index: child, ..shown };
                        match self.top_listed(epoch, dir, name)? {
                            Some(top) => top,
                            None if listing == Listing::Plus => child_of(epoch, dir, child, active)?,
                            None => name_of(child)?,
                        }
                    }
                    Some(past) => match tops.get((past - children.end) as usize) {
                        Some(name) => match self.top_listed(epoch, dir, name)? {
                            Some(top) => top,
                            None => break,
                        },
                        None => break,
                    },
                    None => break,
                },
            };
            position += 1;
            listed.push(Listed { cookie: position, ..entry });
        }
        Ok(listed)
    }

    /// Tops of scopes in a directory of the release that the release has no name for: they come last.
    fn tops_beside(&self, dir: NodeId, release: &Release, children: Range<u32>) -> Result<Vec<Vec<u8>>> {
        let Some(media) = &self.media else { return Ok(Vec::new()) };
        let mut beside = Vec::new();
        for name in media.scopes.tops_in(dir) {
            let has = |child: u32| release.manifest.name(child).is_ok_and(|other| other == name);
            if !children.clone().any(has) {
                beside.push(name.to_vec());
            }
        }
        Ok(beside)
    }

    /// A name that is the top of a scope, as it is listed in a directory of the release.
    fn top_listed(&self, epoch: &Epoch, dir: NodeId, name: &[u8]) -> Result<Option<Listed>> {
        let Some(media) = &self.media else { return Ok(None) };
        let Some(scope) = media.scopes.top(dir, name) else { return Ok(None) };
        let entry = media.list_top(epoch, scope)?;
        Ok(entry.attr.map(|attr| Listed {
            name: name.to_vec(),
            cookie: 0,
            attr,
            ttl: entry.attr_ttl,
            lookup: entry.lookup,
        }))
    }
}

/// "." or "..": the kernel takes no attributes from them.
fn dot(epoch: &Epoch, name: &[u8], shown: Located<'_>, node: NodeId) -> Result<Listed> {
    Ok(Listed { name: name.to_vec(), cookie: 0, attr: attr_of_gone(epoch, shown, node)?, ttl: Ttl::Zero, lookup: None })
}

/// An entry without anything that the kernel could keep: of its attributes only number and kind are used.
fn name_of(child: Located<'_>) -> Result<Listed> {
    let node = child.manifest().node(child.index)?;
    let attr = Attr::of(&node, Stamp::from_nanos(node.mtime));
    Ok(Listed { name: child.manifest().name(child.index)?.to_vec(), cookie: 0, attr, ttl: Ttl::Zero, lookup: None })
}

fn child_of(epoch: &Epoch, dir: NodeId, child: Located<'_>, active: Option<u32>) -> Result<Listed> {
    let name = child.manifest().name(child.index)?;
    let shown = child.manifest().node(child.index)?;
    let now = if child.live { Some(child) } else { same_now(epoch, active, name, shown.nodeid)? };
    let (attr, same) = match now {
        Some(found) => (epoch.attr(found)?, true),
        None => (attr_of_gone(epoch, child, shown.nodeid)?, false),
    };
    let certain = same && !epoch.changes(dir, name) && !epoch.is_uncertain(attr.node);
    Ok(Listed { name: name.to_vec(), cookie: 0, attr, ttl: Ttl::forever_if(certain), lookup: None })
}

/// Where the active release has the same node under the same name, if it does.
fn same_now<'a>(epoch: &'a Epoch, dir: Option<u32>, name: &[u8], node: NodeId) -> Result<Option<Located<'a>>> {
    let Some(dir) = dir else { return Ok(None) };
    let release: &Arc<Release> = &epoch.release;
    let Some(index) = release.manifest.find_child(dir, name)? else { return Ok(None) };
    let same = release.manifest.node(index)?.nodeid == node;
    Ok(same.then_some(Located { release, index, live: true }))
}

/// Attributes of a node that the listing shows and the active release may not have: those of the last active release
/// that had it, as everywhere.
fn attr_of_gone(epoch: &Epoch, shown: Located<'_>, node: NodeId) -> Result<Attr> {
    match epoch.find(node) {
        Ok(found) => epoch.attr(found),
        Err(Error::Errno(_)) => epoch.attr(shown),
        Err(error) => Err(error),
    }
}
