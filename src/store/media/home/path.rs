//! Paths in the writable layer, as bytes: a path in the docroot, with a release's name and a NUL before it in the layer
//! that this release has to itself.

use crate::tree::ReleaseName;

/// Splits a path into its directory and its last name.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| matches!(b, b'/' | 0)) {
        Some(at) if path[at] == 0 => (&path[..=at], &path[at + 1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// The path in the layer that this release has to itself.
pub fn in_own_layer(release: &ReleaseName, path: &[u8]) -> Vec<u8> {
    [release.as_str().as_bytes(), path].join(&0)
}

/// The release whose own layer a path means, if it does; and the path in the docroot.
pub fn docroot_path(path: &[u8]) -> (Option<&[u8]>, &[u8]) {
    match path.iter().position(|b| *b == 0) {
        Some(at) => (Some(&path[..at]), &path[at + 1..]),
        None => (None, path),
    }
}

/// Where the paths of a directory and of those above it end, the topmost first.
pub fn ends(dir: &[u8]) -> impl Iterator<Item = usize> {
    let begin = dir.len() - docroot_path(dir).1.len();
    (begin..dir.len()).filter(|at| dir[*at] == b'/').chain((begin < dir.len()).then_some(dir.len()))
}
