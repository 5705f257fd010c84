//! Paths as bytes, the names in them parted by slashes: those of the docroot, and those of the writable layer.

use super::{NodeId, ReleaseName};
use std::fmt;
use std::ops::Range;

/// The path of a name in a directory; the root's is empty.
pub fn path_in(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, name].join(&b'/') }
}

/// Splits a path into its directory and its last name.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Whether a path is this directory or lies in it.
pub fn is_within(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Which writable layer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerId {
    /// The one that all releases share.
    Shared,
    /// The one that this release has to itself.
    Own(ReleaseName),
}

/// A path in a writable layer: paths of two layers never mean the same file, whatever they are in the docroot.
///
/// They are ordered by layer, then bytewise: what lies below a directory is one range ([`LayerPath::descendants`]).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerPath {
    layer: LayerId,
    path: Vec<u8>,
}

impl LayerPath {
    /// The place of a path of the docroot in a layer.
    pub fn new(layer: LayerId, path: impl Into<Vec<u8>>) -> Self {
        Self { layer, path: path.into() }
    }

    /// The same in the layer that all releases share.
    pub fn shared(path: impl Into<Vec<u8>>) -> Self {
        Self::new(LayerId::Shared, path)
    }

    /// The layer.
    pub fn layer(&self) -> &LayerId {
        &self.layer
    }

    /// The path in the docroot at which it shows.
    pub fn in_docroot(&self) -> &[u8] {
        &self.path
    }

    /// The directory that it is a name in, as a path in the docroot; of the root, the root.
    pub fn parent_in_docroot(&self) -> &[u8] {
        split(&self.path).0
    }

    /// The directory that it is a name in; of the root, the root.
    pub fn parent(&self) -> Self {
        Self::new(self.layer.clone(), self.parent_in_docroot())
    }

    /// Its last name; empty of the root.
    pub fn name(&self) -> &[u8] {
        split(&self.path).1
    }

    /// Whether it is the root of its layer.
    pub fn is_root(&self) -> bool {
        self.path.is_empty()
    }

    /// The path of a name in this directory.
    pub fn join(&self, name: &[u8]) -> Self {
        Self::new(self.layer.clone(), path_in(&self.path, name))
    }

    /// The names that lead here from the root.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.path.split(|b| *b == b'/').filter(|name| !name.is_empty())
    }

    /// The paths that lead here from the root, which is not among them: the topmost first, this one last.
    pub fn from_the_top(&self) -> impl Iterator<Item = Self> {
        let ends = (0..self.path.len()).filter(|at| self.path[*at] == b'/');
        let ends = ends.chain((!self.is_root()).then_some(self.path.len()));
        ends.map(|end| Self::new(self.layer.clone(), &self.path[..end]))
    }

    /// Whether it is this directory or lies in it.
    pub fn is_within(&self, dir: &Self) -> bool {
        self.layer == dir.layer && is_within(&self.path, &dir.path)
    }

    /// All paths below this directory, which is not the root and not among them. In the order of bytes `0` is next to
    /// the slash.
    pub fn descendants(&self) -> Range<Self> {
        let end = |byte: u8| Self::new(self.layer.clone(), [&self.path[..], &[byte]].concat());
        end(b'/')..end(b'/' + 1)
    }

    /// Where it lies when the directory `from`, which it is or lies in, has become `to`.
    pub fn moved(&self, from: &Self, to: &Self) -> Option<Self> {
        let rest = self.path.strip_prefix(&from.path[..]).filter(|_| self.is_within(from))?;
        Some(if rest.is_empty() { to.clone() } else { to.join(rest.strip_prefix(b"/").unwrap_or(rest)) })
    }

    /// The number of a directory here, unless it is known by another. In a release's own layer it is a hash of the
    /// release's name, a NUL and the path.
    pub fn dir_node(&self) -> NodeId {
        let number = match &self.layer {
            LayerId::Shared => NodeId::of_dir(&self.path),
            LayerId::Own(release) => NodeId::of_dir(&[release.as_str().as_bytes(), &self.path].join(&0)),
        };
        number.scoped()
    }
}

impl fmt::Debug for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.escape_ascii();
        match &self.layer {
            LayerId::Shared => write!(f, "{path}"),
            LayerId::Own(release) => write!(f, "{release}:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn own(release: &str, path: &str) -> LayerPath {
        LayerPath::new(LayerId::Own(release.parse().expect("a name")), path)
    }

    #[test]
    fn a_path_has_a_directory_and_a_name_in_its_layer() {
        for (path, dir, name) in [("a/b/c", "a/b", "c"), ("a", "", "a"), ("", "", "")] {
            let path = own("01", path);
            assert_eq!((path.parent(), path.name()), (own("01", dir), name.as_bytes()));
            assert_eq!(path.parent_in_docroot(), dir.as_bytes());
        }
        assert_eq!(own("01", "").join(b"a").join(b"b"), own("01", "a/b"));
        assert_eq!(own("01", "a/b").in_docroot(), LayerPath::shared("a/b").in_docroot());
    }

    #[test]
    fn a_path_is_led_to_from_the_top() {
        let leads = |path: &str| own("01", path).from_the_top().collect::<Vec<_>>();
        assert_eq!(leads("a/b/c"), ["a", "a/b", "a/b/c"].map(|path| own("01", path)));
        assert_eq!(leads(""), []);
    }

    #[test]
    fn paths_below_a_directory_are_one_range_of_its_layer() {
        let layers = |path: &str| [LayerPath::shared(path), own("01", path), own("02", path)];
        let all: BTreeSet<LayerPath> =
            ["a", "a!", "a/", "a/b", "a/b/c", "a/\u{7f}", "a0", "ab", "b"].into_iter().flat_map(layers).collect();
        for dir in layers("a") {
            let below: Vec<_> = all.range(dir.descendants()).cloned().collect();
            let expected: Vec<_> = all.iter().filter(|path| **path != dir && path.is_within(&dir)).cloned().collect();
            assert_eq!(below, expected);
            assert_eq!(below.len(), 4);
        }
    }

    #[test]
    fn what_lies_in_a_directory_moves_with_it() {
        let (from, to) = (own("01", "a/b"), own("01", "c"));
        for (path, moved) in [("a/b", Some("c")), ("a/b/d", Some("c/d")), ("a/bc", None), ("a", None)] {
            assert_eq!(own("01", path).moved(&from, &to), moved.map(|path| own("01", path)), "{path}");
        }
        assert_eq!(LayerPath::shared("a/b/d").moved(&from, &to), None, "another layer");
    }

    #[test]
    fn directories_of_two_layers_are_two_nodes_with_the_numbers_that_the_kernel_may_hold() {
        assert_eq!(LayerPath::shared("a/b").dir_node(), NodeId::of_dir(b"a/b").scoped());
        assert_eq!(own("01", "a/b").dir_node(), NodeId::of_dir(b"01\0a/b").scoped());
    }
}
