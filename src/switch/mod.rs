//! The switch: from a request to another release being served, in stages, the same with a mount and without.
//!
//! ```text
//!   Target ──plan──▶ Plan ──prepare──▶ Prepared ──stamp(moment)──▶ Stamped ──commit──▶ Commit ──run──▶ Switched
//!                     │                   │                           │                  │
//!                     ▼                   ▼                           ▼                  ▼ until it is recorded
//!                   dropped ──────── the release is let go ─── the stamps are taken back ─── the old epoch is served
//! ```
//!
//! Each stage is a type that consumes the one before; dropping one takes it back. What may come between two of them (a
//! hook, a gate, a confirmation, the word of a fleet) holds the stage meanwhile.
//!
//! - `plan` says what would change and what the operator should know.
//! - `prepare` holds the release against `remove`, and writes the stamps for a [`Moment`]: its own, or one that is
//!   given.
//! - `commit` is the four steps of docs/SEMANTICS.md as effects; `runners` carry them out, or a simulation.
//! - `invalidate` is what the kernel is to forget, as data; `invalidator` is the thread that tells the [`Kernel`].
//! - `let_go` lets go of releases that were removed, once the kernel holds nothing of them.
//! - `restamp` is no switch: it stamps what shows again because the writable layer gives up what hid it.
//! - `publish` is what `status` shows. `busy` and `mounts` find who is in the way.
//!
//! **Locks.** The turn (one switch at a time) is taken first, the store's lock on its releases next, the epoch lock for
//! an instant. Only switches, restores and the letting go take the turn: what others want to know is published.

mod aside;
mod busy;
mod commit;
mod invalidate;
mod invalidator;
mod journal;
mod kernel;
mod let_go;
mod moment;
mod mounts;
mod plan;
mod prepare;
mod publish;
mod restamp;
mod runners;
mod shadowed;
mod switcher;
mod target;

pub use busy::{Holder, holders, lock_holders};
pub use commit::{Commit, Effect, End, Outcome, Runner, Tidy};
pub use invalidate::{Invalidations, KnownAs, Notice, Phase, ReleasePair};
pub use kernel::{Kernel, Use};
pub use moment::{Clock, Moment, SecondOf, SystemClock};
pub use mounts::{Mounted, below, kind_on, mounted, set_read_ahead};
pub use plan::{Before, Plan};
pub use prepare::{Prepared, Stamped};
pub use publish::{Published, Snapshot, Stage, UnderWay};
pub use restamp::Restamped;
pub use shadowed::media_of;
pub use switcher::{First, Mount, Switched, Switcher};
pub use target::Target;
