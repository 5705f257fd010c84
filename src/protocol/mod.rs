//! What commands, daemon and scripts say to each other, as types: every request and reply of the control socket, and
//! everything that a verb prints with `--json`. Pure: no I/O, and no bytes make a decoder panic.
//!
//! On the socket each line is one JSON object of at most [`MAX_LINE`] bytes, its newline not counted:
//!
//! ```text
//! request   {"protocol":1,"op":"status"}
//!           {"protocol":1,"op":"switch","release":"03","message":"spring","uid":1000}   message, uid: may be missing
//!           {"protocol":1,"op":"rollback","release":null,"message":null,"uid":null}     all three may be missing
//!           {"protocol":1,"op":"reload"}
//!           {"op":"umount","lazy":false}                                                lazy: false when missing
//!           {"protocol":1,"op":"pinned","after":0}                                      after: 0 when missing
//!           {"protocol":1,"op":"repacked"}
//!           {"protocol":1,"op":"restore","path":"media/logo.png","after":0}             after: 0 when missing
//!           {"protocol":1,"op":"restore","path":"media/news","after":0,"own":"give_up"} own: "keep" when missing
//! reply     {"protocol":1,"ok":VALUE}                                                   VALUE: a `Call::Reply`
//!           {"error":TEXT,"code":1,"kind":"busy"}                                       a `Failure`
//! ```
//!
//! # Versions
//!
//! `protocol` is the oldest [`PROTOCOL`] in which the line means what it means now; missing, it is 0. A daemon refuses
//! a request of a newer protocol than its own, and a command refuses such a reply; both say what to do. A change of
//! what a request or a reply means adds one to [`PROTOCOL`]. `umount`, its reply and errors have no number, and stay as
//! they are: so a command can end any daemon, older or newer.
//!
//! Requests are strict: an unknown op or field is refused, so that a typo never does half of what was meant. Replies
//! are read leniently, so that a newer daemon may say more.
//!
//! # Values
//!
//! A time is a [`Time`], RFC 3339 in UTC. A duration is in microseconds and its name ends in `_us`; a size is in bytes
//! and its name is or ends in `bytes`. A path is an [`EncodedPath`]. What there is nothing to say of is `null`, not
//! left out. docs/schema has a JSON schema of each type; a unit test keeps it true.

mod failure;
mod media;
mod mount;
mod path;
mod reply;
pub mod request;
#[cfg(test)]
mod schema;
mod status;
mod store;
mod switch;
#[cfg(test)]
mod tests;
mod time;

pub use failure::Failure;
pub use media::{Adopted, How, Restored, Shadowed, ShadowedName, Way};
pub use mount::{Done, Reloaded, Serving, Unmounted};
pub use path::EncodedPath;
pub use reply::{Reply, decode_reply, encode_reply};
pub use request::{Call, Request, decode_request, encode_request, too_long};
pub use status::{Descriptors, FaultKind, Faults, Limit, Refusal, Refused, StoreStatus, Switching};
pub use store::{Added, Exported, Freed, Initialized, Listed, LogLine, PinnedPage, Removed, State, Verified};
pub use switch::{Change, Difference, DryRun, Switched, Tidy};
pub use time::Time;

use serde::{Deserialize, Serialize};

/// The protocol that this program speaks.
pub const PROTOCOL: u32 = 1;

/// The longest line in bytes, in both directions, its newline not counted.
pub const MAX_LINE: usize = 64 * 1024;

/// The first look at a line: its number, whatever else it says.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    protocol: u32,
}

/// How many of `items`, from the first on, take at most `bytes` in a JSON array: a reply must fit into a line.
pub fn fitting<T: Serialize>(items: &[T], bytes: usize) -> usize {
    let mut taken = 0;
    let fits = |item: &&T| {
        taken += serde_json::to_vec(item).map_or(0, |text| text.len() + 1);
        taken <= bytes
    };
    items.iter().take_while(fits).count()
}

/// The number is left out where it is 0.
fn is_zero(number: &u32) -> bool {
    *number == 0
}
