//! A scope, a path of the docroot that may be written to, and its rules as verfs.toml states them.

use crate::error::{Error, Result};
use crate::tree::Owner;
use bytesize::ByteSize;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use nix::unistd::{Group, User};
use serde::Deserialize;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// What each name counts to the limit of its scope, in bytes, beside the blocks of its file: a directory takes a block
/// of most disks, and the inode of any other name with its share of the directory no more.
pub const NAME: u64 = 4096;

/// A path of the docroot that may be written to.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// Path below the docroot.
    pub path: String,
    /// Whether each release has its own.
    #[serde(default)]
    pub per_release: bool,
    /// Owner of the top directory, as `user:group`; empty: root.
    #[serde(default)]
    pub owner: String,
    /// Mode of the top directory, in octal.
    #[serde(default)]
    pub mode: Mode,
    /// Patterns of names that cannot be made here.
    #[serde(default)]
    pub deny: Deny,
    /// How much the files here may take on disk.
    #[serde(default)]
    pub limit: Option<ByteSize>,
    /// How long the kernel may believe what it was told of entries here.
    #[serde(default)]
    pub ttl: Believed,
}

/// A mode, written in octal.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct Mode(pub u32);

/// Patterns of denied names. Case does not count: web servers do not look at it either (mod_mime, AddHandler).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Deny {
    patterns: Vec<String>,
    set: GlobSet,
}

/// How long the kernel may believe what it was told.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum Believed {
    /// Somebody may write behind the mount, and is seen after this time.
    For(Duration),
    /// Nobody writes behind the mount.
    Forever,
}

impl Scope {
    /// A scope with no rules but these.
    pub fn new(path: &str, per_release: bool, owner: &str) -> Self {
        Self { path: path.to_owned(), per_release, owner: owner.to_owned(), ..Self::default() }
    }

    /// Refuses a path that is absolute, or leads out of the docroot, and an owner that is not there.
    pub fn check(&self) -> Result<()> {
        let path = &self.path;
        let why = if path.is_empty() {
            "it is empty"
        } else if path.starts_with('/') {
            "it is absolute: give the path below the docroot"
        } else if path.split('/').any(|name| matches!(name, "" | "." | "..")) || path.contains('\0') {
            "it has an empty, \".\" or \"..\" part"
        } else {
            return Ok(());
        };
        Err(Error::request(format!("{path:?} cannot be a scope: {why}")))
    }

    /// The owner of the top directory; `None`: whoever makes it.
    pub fn top_owner(&self) -> Result<Option<Owner>> {
        if self.owner.is_empty() { Ok(None) } else { parse_owner(&self.owner).map(Some) }
    }

    /// Whether one of them lies in the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        let within =
            |top: &str, path: &str| path == top || path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'));
        within(&self.path, &other.path) || within(&other.path, &self.path)
    }
}

/// Reads `user:group`, by names or numbers; of a user alone it is that user's own group.
pub fn parse_owner(text: &str) -> Result<Owner> {
    let wrong = |what: String| Error::request(format!("{text:?} is no owner: {what}; use USER:GROUP"));
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let (uid, own_group) = match user.parse::<u32>() {
        Ok(uid) => (uid, None),
        Err(_) => match User::from_name(user) {
            Ok(Some(user)) => (user.uid.as_raw(), Some(user.gid.as_raw())),
            Ok(None) => return Err(wrong(format!("there is no user {user:?}"))),
            Err(error) => return Err(Error::io(format!("looking for the user {user:?}"), error)),
        },
    };
    let gid = match group {
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => match Group::from_name(group) {
                Ok(Some(group)) => group.gid.as_raw(),
                Ok(None) => return Err(wrong(format!("there is no group {group:?}"))),
                Err(error) => return Err(Error::io(format!("looking for the group {group:?}"), error)),
            },
        },
        None => own_group.ok_or_else(|| wrong("a group is missing".to_owned()))?,
    };
    Ok(Owner { uid, gid })
}

impl Default for Mode {
    fn default() -> Self {
        Self(0o755)
    }
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if mode <= 0o7777 => Ok(Self(mode)),
            _ => Err(format!("mode = {text:?} is no mode: write it in octal, as \"2775\"")),
        }
    }
}

impl Deny {
    /// Whether nothing is denied.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Whether a name is denied.
    pub fn denies(&self, name: &[u8]) -> bool {
        self.set.is_match(std::ffi::OsStr::from_bytes(name))
    }
}

impl PartialEq for Deny {
    fn eq(&self, other: &Self) -> bool {
        self.patterns == other.patterns
    }
}

impl Eq for Deny {}

impl TryFrom<Vec<String>> for Deny {
    type Error = String;

    fn try_from(patterns: Vec<String>) -> std::result::Result<Self, String> {
        let mut set = GlobSetBuilder::new();
        for pattern in &patterns {
            if pattern.is_empty() || pattern.contains('/') {
                return Err(format!("deny = {pattern:?} is no pattern of a name: write it as \"*.php\""));
            }
            let glob = GlobBuilder::new(pattern).case_insensitive(true).build();
            set.add(glob.map_err(|error| format!("deny = {pattern:?}: {error}"))?);
        }
        let set = set.build().map_err(|error| format!("deny: {error}"))?;
        Ok(Self { patterns, set })
    }
}

impl Default for Believed {
    fn default() -> Self {
        Self::For(Duration::from_secs(1))
    }
}

impl TryFrom<String> for Believed {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        let wrong = |why| format!("ttl = {text:?}: {why}; write it as \"1s\", or \"forever\" if only the mount writes");
        let time = humantime::parse_duration(&text).map_err(|error| wrong(error.to_string()))?;
        match time <= Duration::from_secs(86_400) {
            true => Ok(Self::For(time)),
            false => Err(wrong("more than a day".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_names_are_matched_whole_and_without_case() {
        let deny = Deny::try_from(["*.php", "*.ph[pt]*", ".htaccess"].map(str::to_owned).to_vec()).expect("patterns");
        for name in [&b"a.php"[..], b"A.PHP", b".php", b"x.phtml", b".htaccess", b".HTACCESS", b"\xff.php", b"a\nb.php"]
        {
            assert!(deny.denies(name), "{}", name.escape_ascii());
        }
        for name in [&b"php"[..], b"a.ph", b"x.htaccess", b"photo.jpg"] {
            assert!(!deny.denies(name), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn owners_are_read_as_typed() {
        assert_eq!(parse_owner("root:root").expect("names"), Owner { uid: 0, gid: 0 });
        assert_eq!(parse_owner("5:7").expect("numbers"), Owner { uid: 5, gid: 7 });
        assert_eq!(parse_owner("root").expect("user alone"), Owner { uid: 0, gid: 0 });
        assert!(parse_owner("no-such-user:root").is_err() && parse_owner("5").is_err());
    }
}
