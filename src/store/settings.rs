//! verfs.toml: what an operator may set, each key explained where it stands.

use crate::error::{Error, Result};
use serde::Deserialize;
use std::time::Duration;

/// The store format that this verfs writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// What verfs.toml says.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    format: u32,
    /// Section `[switch]`.
    #[serde(default)]
    pub switch: Switch,
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
pub struct Switch {
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
}

/// A path of the docroot that may be written to.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// Path below the docroot.
    pub path: String,
    /// Whether each release has its own.
    #[serde(default)]
    pub per_release: bool,
    /// Owner of the top directory, as `user:group`.
    #[serde(default)]
    pub owner: String,
}

impl Default for Switch {
    fn default() -> Self {
        Self { share_second: false, limit_ms: 2000, settle_ms: 40, barrier: Barrier::Auto }
    }
}

impl Default for Serve {
    fn default() -> Self {
        Self { threads: 8, descriptors: 1024 }
    }
}

impl Switch {
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
        for (i, scope) in settings.scopes.iter().enumerate() {
            check_scope_path(&scope.path)?;
            if settings.scopes[..i]
                .iter()
                .any(|other| within(&other.path, &scope.path) || within(&scope.path, &other.path))
            {
                return Err(Error::request(format!(
                    "the scope {:?} lies in another scope or is one twice",
                    scope.path
                )));
            }
        }
        Ok(settings)
    }

    /// The text of verfs.toml for a new store.
    pub fn text(scopes: &[Scope]) -> String {
        let mut text = DEFAULT_TEXT.replace("{format}", &FORMAT.to_string());
        for scope in scopes {
            let quoted = |value: &str| toml::Value::String(value.to_owned()).to_string();
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

/// Refuses a scope that is absolute, or leads out of the docroot.
pub fn check_scope_path(path: &str) -> Result<()> {
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

fn within(top: &str, path: &str) -> bool {
    path == top || path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'))
}

const DEFAULT_TEXT: &str = r#"# Settings of this verfs store. Read at mount and on `verfs reload`.

# Format of the store. Do not change it.
format = {format}

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

# A path of the docroot that may be written to; everything else is read-only. At the next mount:
#   [[scope]]
#   path = "media"           below the docroot
#   per_release = false      true: each release has its own (not served by this version: read-only)
#   owner = "www-data:www-data"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_text_says_the_defaults() {
        let scope = Scope { path: "wp-content/up \"loads".into(), per_release: true, owner: "a:b".into() };
        let settings = Settings::parse(&Settings::text(std::slice::from_ref(&scope))).expect("default text");
        assert_eq!(settings.switch, Switch::default());
        assert_eq!(settings.serve, Serve::default());
        assert_eq!(settings.access, Access::default());
        assert_eq!(settings.scopes, [scope]);
    }

    #[test]
    fn wrong_settings_are_refused_with_the_reason() {
        let table = [
            ("", "format"),
            ("format = 2", "newer verfs"),
            ("format = 2\nnew_key = 1", "newer verfs"),
            ("format = 1\ntypo = 1", "typo"),
            ("format = 1\n[switch]\nlimit = 3", "limit"),
            ("format = 1\n[switch]\nlimit_ms = 1", "limit_ms"),
            ("format = 1\n[serve]\nthreads = 0", "threads"),
            ("format = 1\n[[scope]]\npath = \"/media\"", "absolute"),
            ("format = 1\n[[scope]]\npath = \"a/../b\"", "part"),
            ("format = 1\n[[scope]]\npath = \"a\"\n[[scope]]\npath = \"a/b\"", "another scope"),
            ("format = ", "cannot be read"),
        ];
        for (text, says) in table {
            let error = Settings::parse(text).expect_err(text);
            assert!(error.to_string().contains(says), "{text:?}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
