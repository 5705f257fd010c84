//! verfs.toml: what an operator may set, each key explained where it stands.

use super::media::scope::Scope;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The store format that this verfs writes, and the newest that it reads. 1: verfs 0.1.
pub const FORMAT: u32 = 2;
/// The first format in which `active` has a checksum, `stamps` may be compacted, and the journal has older files.
pub(crate) const SEALED: u32 = 2;

/// What verfs.toml says.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    format: u32,
    /// Where the writable layer lies, if not in the store.
    #[serde(default)]
    pub media: Option<PathBuf>,
    /// Section `[switch]`.
    #[serde(default)]
    pub switch: SwitchSettings,
    /// Section `[access]`.
    #[serde(default)]
    pub access: Access,
    /// Section `[serve]`.
    #[serde(default)]
    pub serve: Serve,
    /// Every `[[scope]]`.
    #[serde(default, rename = "scope")]
    pub scopes: Vec<Scope>,
}

/// How a switch behaves.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct SwitchSettings {
    /// Whether two switches that change content may share a second (for tests).
    pub share_second: bool,
    /// How long the kernel may take to drop one thing that changes, in milliseconds.
    pub limit_ms: u64,
    /// How long a thread may take over one file before the swap, in milliseconds.
    pub settle_ms: u64,
    /// How replies in flight are waited for.
    pub barrier: Barrier,
}

/// How a directory's lock is taken and let go.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Barrier {
    /// `notify` on kernels up to 6.18, `rmdir` on later ones.
    #[default]
    Auto,
    /// An invalidation of a name that cannot exist.
    Notify,
    /// rmdir(2) of a name that cannot exist, through the mount.
    Rmdir,
}

/// Who may ask the daemon.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// Name of the group that may read the daemon's state; empty for root alone.
    pub group: String,
}

/// How the mount is served.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Serve {
    /// Threads that answer the kernel.
    pub threads: usize,
    /// Descriptors of objects that are kept open.
    pub descriptors: usize,
    /// Whether access lists (POSIX ACLs) decide in scopes beside modes.
    pub acls: bool,
}

impl Default for SwitchSettings {
    fn default() -> Self {
        Self { share_second: false, limit_ms: 2000, settle_ms: 40, barrier: Barrier::Auto }
    }
}

impl Default for Serve {
    fn default() -> Self {
        Self { threads: 8, descriptors: 1024, acls: false }
    }
}

impl SwitchSettings {
    /// `limit_ms` as a duration.
    pub fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms)
    }

    /// `settle_ms` as a duration.
    pub fn settle(&self) -> Duration {
        Duration::from_millis(self.settle_ms)
    }
}

impl Settings {
    /// Reads the text of verfs.toml.
    pub fn parse(text: &str) -> Result<Self> {
        // The format first: what a newer verfs wrote may hold keys that this one does not know.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let wrong = |error: toml::de::Error| {
            Error::request(format!("the settings cannot be read: {}", error.to_string().trim_end()))
        };
        let format = toml::from_str::<Format>(text).map_err(wrong)?.format;
        if format > FORMAT {
            return Err(Error::request(format!(
                "the store has format {format}, and this verfs reads up to {FORMAT}: use the newer verfs"
            )));
        }
        if format == 0 {
            return Err(Error::request("format = 0 is none: a store has format 1 or 2"));
        }
        let settings: Self = toml::from_str(text).map_err(wrong)?;
        let range = |key: &str, value: u64, from: u64, to: u64| {
            if (from..=to).contains(&value) {
                return Ok(());
            }
            Err(Error::request(format!("{key} = {value} is out of range: use {from} to {to}")))
        };
        range("switch.limit_ms", settings.switch.limit_ms, 10, 600_000)?;
        range("switch.settle_ms", settings.switch.settle_ms, 0, 1000)?;
        range("serve.threads", settings.serve.threads as u64, 1, 256)?;
        range("serve.descriptors", settings.serve.descriptors as u64, 16, 1_000_000)?;
        if settings.media.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(Error::request("media must be an absolute path"));
        }
        for (i, scope) in settings.scopes.iter().enumerate() {
            scope.check()?;
            if settings.scopes[..i].iter().any(|other| other.overlaps(scope)) {
                return Err(Error::request(format!(
                    "the scope {:?} lies in another scope or is one twice",
                    scope.path
                )));
            }
        }
        Ok(settings)
    }

    /// The format of the store.
    pub(crate) fn format(&self) -> u32 {
        self.format
    }

    /// Where in the text of verfs.toml the one digit of format 1 stands; `None` if it stands there otherwise.
    pub(crate) fn digit_of_format_1(text: &str) -> Option<usize> {
        let mut at = 0;
        for line in text.split_inclusive('\n').take_while(|line| !line.trim_start().starts_with('[')) {
            if let Some((key, value)) = line.split_once('=')
                && key.trim() == "format"
            {
                let is_one = value.split('#').next()?.trim() == "1";
                return is_one.then(|| at + key.len() + 1 + value.len() - value.trim_start().len());
            }
            at += line.len();
        }
        None
    }

    /// The text of verfs.toml for a new store.
    pub fn text(scopes: &[Scope], media: Option<&Path>) -> String {
        let quoted = |value: &str| toml::Value::String(value.to_owned()).to_string();
        let media = match media {
            Some(path) => format!("media = {}", quoted(&path.to_string_lossy())),
            None => "# media = \"/mnt/disk/shop\"".to_owned(),
        };
        let mut text = DEFAULT_TEXT.replace("{format}", &FORMAT.to_string()).replace("{media}", &media);
        for scope in scopes {
            text.push_str(&format!(
                "\n[[scope]]\npath = {}\nper_release = {}\nowner = {}\n",
                quoted(&scope.path),
                scope.per_release,
                quoted(&scope.owner)
            ));
        }
        text
    }
}

const DEFAULT_TEXT: &str = r#"# Settings of this verfs store. Read at mount and on `verfs reload`.

# Format of the store. Do not change it.
format = {format}

# Where what is written goes, if not into the store itself: a directory of its own, on another disk perhaps. At the
# next mount; what is there already has to be moved by hand (docs/OPERATIONS.md).
{media}

[switch]
# Two switches that change content never share a second, because web servers compare whole seconds:
# the later one waits, at most two seconds. true lifts the wait, for tests only.
share_second = false
# How long the kernel may take to drop one thing that changes, in milliseconds. Then the switch gives up, the
# old release stays, and the answer names the process that is in the way.
limit_ms = 2000
# A web server looks a file up for its length and then opens it. Before the swap, threads that are in the middle
# of a file finish with it, so that none gets the length of one release with the content of another; other lookups
# of changed names wait meanwhile. How long one may take over a file, in milliseconds; 0 swaps at once.
settle_ms = 40
# How replies in flight are waited for: "auto", "notify" (Linux up to 6.18) or "rmdir" (any Linux).
barrier = "auto"

[access]
# The group that may ask the daemon for its state; empty for root alone. Only root can change anything.
group = ""

[serve]
# Threads that answer the kernel.
threads = 8
# Descriptors of file contents that are kept open.
descriptors = 1024
# Whether access lists (POSIX ACLs, setfacl) decide in scopes beside modes. It costs one more request of the kernel for
# each file and directory that somebody but its owner uses, in releases too. Newer kernels ask for the list of the
# docroot's top directory at every path, if its mode has rights for the group: let releases have 0705 there. At the
# next mount.
acls = false

# A path of the docroot that may be written to; everything else is read-only. deny, limit and ttl take effect on
# `verfs reload`, the others at the next mount:
#   [[scope]]
#   path = "media"                       below the docroot
#   per_release = false                  true: each release has its own, empty at first (compiled templates, caches)
#   owner = "www-data:www-data"          of the top directory, when it is made
#   mode = "0755"                        the same
#   deny = ["*.php", ".htaccess"]        names that cannot be made here, in any case of letters
#   limit = "10 GiB"                     how much the files here may take on disk
#   ttl = "1s"                           when changes behind the mount are seen; "forever" if there are none
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_text_says_the_defaults() {
        let scope = Scope::new("wp-content/up \"loads", true, "a:b");
        let text = Settings::text(std::slice::from_ref(&scope), Some(Path::new("/mnt/a \"b")));
        let settings = Settings::parse(&text).expect("default text");
        assert_eq!(settings.media.as_deref(), Some(Path::new("/mnt/a \"b")));
        assert_eq!(Settings::parse(&Settings::text(&[], None)).expect("default text").media, None);
        assert_eq!(settings.switch, SwitchSettings::default());
        assert_eq!(settings.serve, Serve::default());
        assert_eq!(settings.access, Access::default());
        assert_eq!(settings.scopes, [scope]);
    }

    #[test]
    fn the_digit_of_format_1_is_found_where_it_stands_alone() {
        let table = [
            ("format = 1\n", Some(9)),
            ("# format = 1\n\n  format=1 # the store's\n", Some(23)),
            ("media = \"/m\"\nformat =   1", Some(24)),
            ("format = 2\n", None),
            ("format = 0x1\n", None),
            ("[switch]\nformat = 1\n", None),
        ];
        for (text, at) in table {
            assert_eq!(Settings::digit_of_format_1(text), at, "{text:?}");
            assert!(at.is_none_or(|at| &text[at..=at] == "1"), "{text:?}");
        }
    }

    #[test]
    fn wrong_settings_are_refused_with_the_reason() {
        let table = [
            ("", "format"),
            ("format = 0", "format 1 or 2"),
            ("format = 3", "newer verfs"),
            ("format = 3\nnew_key = 1", "newer verfs"),
            ("format = 1\ntypo = 1", "typo"),
            ("format = 1\n[switch]\nlimit = 3", "limit"),
            ("format = 1\n[switch]\nlimit_ms = 1", "limit_ms"),
            ("format = 1\n[serve]\nthreads = 0", "threads"),
            ("format = 1\n[[scope]]\npath = \"/media\"", "absolute"),
            ("format = 1\n[[scope]]\npath = \"a/../b\"", "part"),
            ("format = 1\n[[scope]]\npath = \"a\"\n[[scope]]\npath = \"a/b\"", "another scope"),
            ("format = 1\nmedia = \"a\"", "absolute"),
            ("format = 1\n[[scope]]\npath = \"a\"\ndeny = [\"a/b\"]", "a/b"),
            ("format = 1\n[[scope]]\npath = \"a\"\ndeny = [\"[\"]", "deny"),
            ("format = 1\n[[scope]]\npath = \"a\"\nmode = \"rwx\"", "octal"),
            ("format = 1\n[[scope]]\npath = \"a\"\nlimit = \"much\"", "much"),
            ("format = 1\n[[scope]]\npath = \"a\"\nttl = \"soon\"", "forever"),
            ("format = ", "cannot be read"),
        ];
        for (text, says) in table {
            let error = Settings::parse(text).expect_err(text);
            assert!(error.to_string().contains(says), "{text:?}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
