//! What is in a store and what was done to it: `init`, `add`, `list`, `log`, `export`, `remove`, `gc`, `verify`.

use super::{EncodedPath, Switched, Time};
use crate::tree::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A store that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Initialized {
    /// Its directory.
    pub store: EncodedPath,
}

/// A release that was added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Added {
    /// Its name.
    pub name: String,
    /// Files in it.
    pub files: u64,
    /// Their content.
    pub bytes: u64,
    /// How much of it was read: the stat cache knew the rest.
    pub read_bytes: u64,
    /// How much of it the store did not have.
    pub new_bytes: u64,
    /// Time of the call.
    pub call_us: u64,
    /// Whether it was there already, with the same content: then nothing was done.
    pub identical: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// With `--switch`: the switch to it.
    pub switch: Option<Switched>,
}

/// A line of `list`: a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Files in it; none if it is damaged.
    pub files: Option<u64>,
    /// Their content; none if it is damaged.
    pub bytes: Option<u64>,
    /// When it was added; none if it is damaged.
    pub added: Option<Time>,
    /// Whether it is the active one.
    pub active: bool,
    /// What it is to the store, if that is anything.
    pub state: Option<State>,
    /// How it is damaged.
    pub error: Option<String>,
}

/// What a release is to its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is served.
    Active,
    /// It was active before: `rollback` goes back to it.
    Previous,
    /// Its manifest cannot be read, active or not.
    Damaged,
}

/// A line of `log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogLine {
    /// When.
    pub time: Time,
    /// Who asked, as the kernel knows it.
    pub uid: u32,
    /// Who asked before sudo.
    pub sudo_uid: Option<u32>,
    /// add, switch, rollback, remove, gc, adopt, restore.
    pub action: String,
    /// The release that was active before, or that was removed.
    pub from: Option<String>,
    /// The release that was added or made active.
    pub to: Option<String>,
    /// What was said with `-m`.
    pub message: Option<String>,
    /// Whether it was done.
    pub ok: bool,
    /// The number of the switch.
    pub switch: Option<u32>,
    /// Why it was not done, or how the line came to stand there.
    pub note: Option<String>,
}

/// A release that was written out as plain files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Exported {
    /// Its name.
    pub name: String,
    /// Where.
    pub dir: EncodedPath,
    /// Files written.
    pub files: u64,
}

/// A release that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Removed {
    /// Its name.
    pub removed: String,
}

/// What `gc` freed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Freed {
    /// Objects removed.
    pub objects: u64,
    /// Their content.
    pub bytes: u64,
    /// Objects of removed releases that are kept, because an open file of the mount needs them.
    pub in_use: u64,
    /// What interrupted commands left behind, now removed.
    pub litter: Vec<EncodedPath>,
}

/// What `verify` found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Verified {
    /// Releases checked.
    pub releases: u64,
    /// Objects hashed.
    pub objects: u64,
    /// Their content.
    pub bytes: u64,
    /// What is damaged, a sentence each.
    pub damaged: Vec<String>,
}

/// A page of the objects that the mount still reads, of releases that were removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PinnedPage {
    /// Their hashes.
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub objects: Vec<Digest>,
    /// Where the next page begins; none if this is the last one.
    pub next: Option<u64>,
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(text.as_bytes())
            .ok_or_else(|| de::Error::invalid_value(de::Unexpected::Str(&text), &"64 hexadecimal digits"))
    }
}
