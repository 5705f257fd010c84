//! What may be asked of a daemon, and the type of each answer.

use super::{Done, EncodedPath, Head, MAX_LINE, PROTOCOL, PinnedPage, Reloaded, Restored, Switched};
use crate::error::{Error, Result};
use crate::tree::ReleaseName;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::error::Category;

/// A request of any kind, as it stands in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// What is served, since when, and the counters.
    Status(Status),
    /// Serve another release.
    Switch(Switch),
    /// Serve the release that was active before the last switch, or the one that is named.
    Rollback(Rollback),
    /// Read the settings again.
    Reload(Reload),
    /// End the mount and the daemon.
    Umount(Umount),
    /// Which objects are still in use though no release holds them; asked by `gc`.
    Pinned(Pinned),
    /// Look again which packs there are; said by `gc`, which may have written them anew: as long as they are open their
    /// room is not free.
    Repacked(Repacked),
    /// Let what the writable layer hides at a path show again.
    Restore(Restore),
}

/// A request of one kind, which has one type of answer.
pub trait Call: Into<Request> {
    /// The answer.
    type Reply: DeserializeOwned;
}

macro_rules! calls {
    ($($request:ident => $reply:ty,)*) => {$(
        impl From<$request> for Request {
            fn from(request: $request) -> Self {
                Self::$request(request)
            }
        }

        impl Call for $request {
            type Reply = $reply;
        }
    )*};
}

calls! {
    Status => super::StoreStatus,
    Switch => Switched,
    Rollback => Switched,
    Reload => Reloaded,
    Umount => Done,
    Pinned => PinnedPage,
    Repacked => Done,
    Restore => Restored,
}

/// See [`Request::Status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Status {}

/// See [`Request::Switch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Switch {
    /// The release to serve.
    #[cfg_attr(test, schemars(with = "String"))]
    pub release: ReleaseName,
    /// A line for the journal.
    #[serde(default)]
    pub message: Option<String>,
    /// SUDO_UID as the caller tells it, for the journal only: rights come from the peer's credentials.
    #[serde(default)]
    pub uid: Option<u32>,
}

/// See [`Request::Rollback`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The release to go back to; none: the one before the last switch.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub release: Option<ReleaseName>,
    /// A line for the journal.
    #[serde(default)]
    pub message: Option<String>,
    /// SUDO_UID as the caller tells it, for the journal only.
    #[serde(default)]
    pub uid: Option<u32>,
}

/// See [`Request::Reload`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Reload {}

/// See [`Request::Umount`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Umount {
    /// Detach now, and end when the last user has gone.
    #[serde(default)]
    pub lazy: bool,
}

/// See [`Request::Pinned`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    /// Where the page begins: what the previous reply said, 0 for the first.
    #[serde(default)]
    pub after: u64,
}

/// See [`Request::Repacked`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Repacked {}

/// See [`Request::Restore`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// Path in the docroot.
    pub path: EncodedPath,
    /// 0: restore. Else nothing is restored: it is a page of what the last `restore` of this path said, from there on.
    #[serde(default)]
    pub after: u64,
    /// What becomes of what the release lacks there. Left out where it stays: an older daemon knows no other way, and
    /// refuses what it does not know.
    #[serde(default, skip_serializing_if = "Own::is_kept")]
    pub own: Own,
}

/// What becomes of names that only the writable layer has, below a path that is restored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Own {
    /// They stay.
    #[default]
    Keep,
    /// They go, with what they stand for.
    GiveUp,
}

impl Own {
    fn is_kept(&self) -> bool {
        *self == Self::Keep
    }
}

impl Request {
    /// The name of the operation, as it stands on the wire.
    pub fn op(&self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Switch(_) => "switch",
            Self::Rollback(_) => "rollback",
            Self::Reload(_) => "reload",
            Self::Umount(_) => "umount",
            Self::Pinned(_) => "pinned",
            Self::Repacked(_) => "repacked",
            Self::Restore(_) => "restore",
        }
    }

    /// Whether only root and the daemon's own uid may ask it. `Pinned` changes nothing, but only `gc` needs it, and
    /// it tells what a release held.
    pub fn mutates(&self) -> bool {
        !matches!(self, Self::Status(_))
    }

    /// The oldest protocol in which it means what it means now.
    fn protocol(&self) -> u32 {
        match self {
            Self::Umount(_) => 0,
            _ => PROTOCOL,
        }
    }
}

/// A request as it stands in a line: the number beside its own fields.
#[derive(Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub(super) struct RequestLine<R> {
    /// The oldest protocol in which the request means what is meant.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    protocol: u32,
    #[serde(flatten)]
    request: R,
}

/// Reads one request from a line without its newline.
///
/// # Errors
/// A line that is too long, not UTF-8, not JSON, of a newer protocol, or says something we do not know: exit code 2,
/// and the text says which.
pub fn decode_request(line: &[u8]) -> Result<Request> {
    if line.len() > MAX_LINE {
        return Err(too_long());
    }
    let text = std::str::from_utf8(line)
        .map_err(|error| Error::request(format!("the request is not UTF-8: byte {} is wrong", error.valid_up_to())))?;
    // Asked here, as serde would take an array of the fields' values, too.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(Error::request("the request is no JSON object; a request is one line, as {\"op\":\"status\"}"));
    }
    let wrong = |error: serde_json::Error| {
        Error::request(match error.classify() {
            Category::Data => format!("the request is not understood: {error}"),
            _ => format!("the request is not JSON: {error}"),
        })
    };
    let Head { protocol } = serde_json::from_str(text).map_err(wrong)?;
    if protocol > PROTOCOL {
        return Err(Error::request(format!(
            "the request is of protocol {protocol}, and the daemon speaks {PROTOCOL}: it is older than this command. \
             Restart it: `verfs umount`, then `verfs mount`"
        )));
    }
    serde_json::from_str::<RequestLine<Request>>(text).map(|line| line.request).map_err(wrong)
}

/// The error for a request line over [`MAX_LINE`].
pub fn too_long() -> Error {
    Error::request(format!("the request is too long: at most {MAX_LINE} bytes a line"))
}

/// One request as a line, newline included.
///
/// # Errors
/// Longer than [`MAX_LINE`] (a very long message): exit code 2.
pub fn encode_request(request: &Request) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&RequestLine { protocol: request.protocol(), request })
        .map_err(|error| Error::failed(format!("the request cannot be written as JSON: {error}")))?;
    if line.len() > MAX_LINE {
        return Err(too_long());
    }
    line.push(b'\n');
    Ok(line)
}

impl Serialize for ReleaseName {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ReleaseName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
