//! The visible names of a directory in a scope, in windows: so a directory of a million names takes no more memory than
//! one of some thousand.
//!
//! Names are in the order of their cookies. A window is read by going once over the whole directory and keeping the
//! names that come next.

use super::listing::cookie;
use super::lookup::Visible;
use crate::error::Result;
use crate::fs::attr::Type;
use crate::store::media::home::{Inode, Whiteout};
use crate::tree::union::UpperKind;
use crate::tree::{Kind, LayerPath, Node, NodeId, Tree};
use rustix::fs::FileType;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::ops::ControlFlow;

/// Names of each layer in a window, at most: with 255 bytes each that is 5 MiB.
const WINDOW: usize = 16 << 10;
/// For so many names at a time the lock of the nodes is taken.
const AT_A_TIME: usize = 256;

/// A visible name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct VisibleName<'w> {
    pub(super) cookie: u64,
    /// The number for d_ino.
    pub(super) number: NodeId,
    pub(super) kind: Type,
    pub(super) name: &'w [u8],
}

/// The visible names whose cookies come next. It may be kept for long beside many others, so it lies in two pieces of
/// memory, however many names it has.
#[derive(Debug)]
pub(crate) struct Window {
    /// Behind this cookie.
    after: u64,
    /// Up to this one; `None`: to the end of the directory.
    pub(super) end: Option<u64>,
    entries: Vec<WindowEntry>,
    /// The names, one after the other.
    names: Vec<u8>,
}

#[derive(Debug)]
struct WindowEntry {
    cookie: u64,
    number: NodeId,
    kind: Type,
    /// Where its name begins.
    name: usize,
}

impl Window {
    /// Whether it has what comes behind a cookie.
    pub(super) fn has_next(&self, after: u64) -> bool {
        self.after <= after && self.end.is_none_or(|end| after < end)
    }

    /// What comes behind a cookie.
    pub(super) fn behind(&self, after: u64) -> impl Iterator<Item = VisibleName<'_>> {
        let from = self.entries.partition_point(|entry| entry.cookie <= after);
        let entries = self.entries.get(from..).unwrap_or_default();
        let ends = entries.iter().skip(1).map(|entry| entry.name).chain([self.names.len()]);
        entries.iter().zip(ends).map(|(entry, end)| VisibleName {
            cookie: entry.cookie,
            number: entry.number,
            kind: entry.kind,
            name: self.names.get(entry.name..end).unwrap_or_default(),
        })
    }

    /// Bytes of memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<WindowEntry>() + self.names.capacity()
    }
}

/// The first names behind a cookie, of those that are offered in any order.
struct First<T> {
    after: u64,
    most: usize,
    names: BinaryHeap<Offered<T>>,
    /// The least cookie that was left out.
    left_out: Option<u64>,
}

/// A name in the order of its cookie.
struct Offered<T> {
    key: (u64, Box<[u8]>),
    what: T,
}

impl<T> PartialEq for Offered<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<T> Eq for Offered<T> {}

impl<T> PartialOrd for Offered<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Offered<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl<T> First<T> {
    fn new(after: u64, most: usize) -> Self {
        Self { after, most, names: BinaryHeap::new(), left_out: None }
    }

    fn offer(&mut self, name: &[u8], what: T) {
        let cookie = cookie(name);
        if cookie <= self.after || self.left_out.is_some_and(|least| least <= cookie) {
            return;
        }
        self.names.push(Offered { key: (cookie, name.into()), what });
        if self.names.len() > self.most {
            // Names of one cookie stay together.
            let Some(last) = self.names.pop() else { return };
            self.left_out = Some(last.key.0);
            while self.names.peek().is_some_and(|name| name.key.0 == last.key.0) {
                self.names.pop();
            }
        }
    }

    /// The last cookie up to which nothing was left out.
    fn end(&self) -> Option<u64> {
        self.left_out.map(|least| least - 1)
    }
}

/// What a layer has at a name.
#[derive(Clone, Copy)]
enum Layer {
    Lower(Node),
    Upper(Inode, FileType),
    /// A directory, and the release has one too.
    Merged,
}

impl Visible<'_> {
    /// The next visible names of a directory. Names that come or go meanwhile may be in it or not. Of all others none
    /// is missing: the layers are read in the order in which no step moves a name past the reader.
    pub(super) fn window(&self, path: &LayerPath, after: u64) -> Result<Window> {
        let home = &self.media.home;
        let mut whited = First::new(after, WINDOW);
        let mut lower = First::new(after, WINDOW);
        if let Some(dir) = self.lower_dir(path)? {
            home.each_whiteout(path, &mut |name| whited.offer(name, ()))?;
            let manifest = &dir.release.manifest;
            for child in manifest.children(dir.index)? {
                lower.offer(manifest.name(child)?, manifest.node(child)?);
            }
        }
        let mut upper = First::new(after, WINDOW);
        home.each(path, |name, id, kind| {
            upper.offer(name, (id, kind));
            ControlFlow::Continue(())
        })?;
        let end = [whited.end(), lower.end(), upper.end()].into_iter().flatten().min();
        let whited: HashSet<Box<[u8]>> = whited.names.into_iter().map(|hidden| hidden.key.1).collect();
        let mut found: BTreeMap<(u64, Box<[u8]>), Layer> = BTreeMap::new();
        for Offered { key, what } in lower.names {
            if !whited.contains(&key.1) {
                found.insert(key, Layer::Lower(what));
            }
        }
        for Offered { key, what: (id, kind) } in upper.names {
            let merged = |lower: &Layer| matches!(lower, Layer::Lower(Node { kind: Kind::Dir, .. }));
            let layer = match kind == FileType::Directory && found.get(&key).is_some_and(merged) {
                true => Layer::Merged,
                false => Layer::Upper(id, kind),
            };
            found.insert(key, layer);
        }
        found.retain(|(cookie, _), _| end.is_none_or(|end| *cookie <= end));
        let mut window = Window {
            after,
            end,
            entries: Vec::with_capacity(found.len()),
            names: Vec::with_capacity(found.keys().map(|(_, name)| name.len()).sum()),
        };
        self.number(path, found, &mut window);
        Ok(window)
    }

    /// Whether a directory shows any name.
    pub(super) fn has_names(&self, path: &LayerPath) -> Result<bool> {
        let home = &self.media.home;
        if let Some(dir) = self.lower_dir(path)? {
            let manifest = &dir.release.manifest;
            let mut hidden = 0;
            let mut failed = Ok(());
            home.each_whiteout(path, &mut |name| match manifest.find_child(dir.index, name) {
                Ok(child) => hidden += child.map_or(0, |_| 1),
                Err(error) => failed = Err(error),
            })?;
            failed?;
            if hidden < manifest.children(dir.index)?.len() {
                return Ok(true);
            }
        }
        let mut any = false;
        home.each(path, |_, _, _| {
            any = true;
            ControlFlow::Break(())
        })?;
        Ok(any)
    }

    /// The release's directory at a path, if it shows through.
    fn lower_dir(&self, path: &LayerPath) -> Result<Option<super::Lower>> {
        let Some(release) = self.release_of(path) else { return Ok(None) };
        let Some(index) = release.manifest.find_path(path.in_docroot())? else { return Ok(None) };
        let node = release.manifest.node(index)?;
        if node.kind != Kind::Dir || self.media.home.whiteout(path)? != Whiteout::None {
            return Ok(None);
        }
        Ok(Some(super::Lower { release: release.clone(), index, node }))
    }

    /// Notes the names with the numbers under which they are listed: their node's where they have one.
    fn number(&self, dir: &LayerPath, found: BTreeMap<(u64, Box<[u8]>), Layer>, window: &mut Window) {
        let mut found = found.into_iter().peekable();
        while found.peek().is_some() {
            let nodes = self.media.nodes.lock();
            let place = nodes.place(dir);
            for ((cookie, name), layer) in found.by_ref().take(AT_A_TIME) {
                let known = nodes.in_place(place, &name);
                let number_of_dir = || known.unwrap_or_else(|| dir.join(&name).dir_node());
                let (number, kind) = match layer {
                    Layer::Lower(Node { kind: Kind::Dir, .. }) | Layer::Merged => (number_of_dir(), Type::Dir),
                    Layer::Lower(lower) => {
                        let known = known.filter(|node| nodes.is_lower(*node, &lower));
                        (known.unwrap_or(lower.nodeid.scoped()), Type::from(lower.kind))
                    }
                    Layer::Upper(inode, kind) => {
                        let is_dir = kind == FileType::Directory;
                        let upper_kind = if is_dir { UpperKind::Dir } else { UpperKind::Leaf };
                        let own = || self.media.home.number_of_inode(inode, upper_kind);
                        (known.or_else(|| nodes.of_inode(inode)).unwrap_or_else(own), kind.into())
                    }
                };
                window.entries.push(WindowEntry { cookie, number, kind, name: window.names.len() });
                window.names.extend_from_slice(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn windows_have_each_name_once_and_in_order(
            names in prop::collection::hash_set("[a-z]{1,3}", 0..200),
            most in 1..20usize,
        ) {
            let with_cookie = |name: &String| (cookie(name.as_bytes()), name.clone().into_bytes());
            let mut all: Vec<_> = names.iter().map(with_cookie).collect();
            all.sort();
            let (mut after, mut seen) = (0, Vec::new());
            loop {
                let mut first = First::new(after, most);
                names.iter().for_each(|name| first.offer(name.as_bytes(), ()));
                let end = first.end();
                prop_assert!(first.names.len() <= most);
                seen.extend(first.names.into_sorted_vec().into_iter().map(|name| (name.key.0, name.key.1.to_vec())));
                match end {
                    Some(end) => {
                        prop_assert!(end > after, "it gets on");
                        after = end;
                    }
                    None => break,
                }
            }
            prop_assert_eq!(seen, all);
        }
    }
}
