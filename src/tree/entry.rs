//! Names and kinds: what may stand in a tree.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A name in a directory: bytes, not a string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName(Box<[u8]>);

impl EntryName {
    /// Longest name, in bytes: NAME_MAX of Linux.
    pub const MAX: usize = 255;

    /// A name, if it can be one: 1 to 255 bytes, no slash, no NUL, not "." or "..".
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let fits = (1..=Self::MAX).contains(&bytes.len());
        let plain = bytes != b"." && bytes != b".." && !bytes.iter().any(|b| matches!(b, b'/' | 0));
        (fits && plain).then(|| Self(bytes.into()))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The name of a release: `[A-Za-z0-9][A-Za-z0-9._-]{0,127}`. Every path in a release's own layer has it, so a clone
/// shares the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseName(Arc<str>);

impl ReleaseName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ReleaseName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if first && rest && text.len() <= 128 {
            return Ok(Self(text.into()));
        }
        Err(Error::request(format!(
            "{text:?} cannot name a release: use 1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or a digit"
        )))
    }
}

impl fmt::Display for ReleaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a node is. The numbers are those of the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A directory.
    Dir = 1,
    /// A regular file.
    File = 2,
    /// A symbolic link.
    Symlink = 3,
}

impl Kind {
    /// The kind with this number. 0 is none, so that a page of zeros is no node.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Dir),
            2 => Some(Self::File),
            3 => Some(Self::Symlink),
            _ => None,
        }
    }
}

/// User and group that own a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_names_are_bytes_within_limits() {
        for good in [&b"a"[..], b"...", b"\xff\xfe", b"a b\n", &[b'x'; 255]] {
            assert!(EntryName::new(good).is_some(), "{good:?}");
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(EntryName::new(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn release_names_are_those_of_the_contract() {
        for good in ["02", "a", "2026-11-23_a.b", &"x".repeat(128)] {
            assert!(good.parse::<ReleaseName>().is_ok(), "{good}");
        }
        for bad in ["", ".hidden", "-v", "a/b", "a b", "é", "_x", &"x".repeat(129)] {
            assert!(bad.parse::<ReleaseName>().is_err(), "{bad}");
        }
    }
}
