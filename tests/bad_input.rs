//! Bad input: the message says what happened, to what, and what to do; the exit code is 2 where
//! the request was wrong and 1 where it failed; and on disk nothing has changed.
#![allow(clippy::unwrap_used)]

#[path = "bad_input/damage.rs"]
mod damage;
#[path = "bad_input/disk.rs"]
mod disk;
#[path = "bad_input/full.rs"]
mod full;
#[path = "bad_input/listing.rs"]
mod listing;
#[path = "bad_input/mountpoint.rs"]
mod mountpoint;
#[path = "bad_input/object.rs"]
mod object;
#[path = "bad_input/refusal.rs"]
mod refusal;
#[path = "bad_input/release.rs"]
mod release;
#[path = "bad_input/settings.rs"]
mod settings;
#[path = "bad_input/source.rs"]
mod source;
#[path = "bad_input/store.rs"]
mod store;
mod support;
#[path = "bad_input/watch.rs"]
mod watch;

use support::Rig;
use support::tree::Tree;

fn store_with_one_release() -> Rig {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("index.html", "one"));
    rig
}
