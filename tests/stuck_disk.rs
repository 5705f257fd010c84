//! Looking never waits for writing: while the disk of the uploads stands still, is slow, or is at a long piece of work,
//! whoever looks is answered, and so is whoever changes something elsewhere.
//!
//! No test here measures a time: something is held up, and what must be answered is answered before it is let go.
#![allow(clippy::unwrap_used)]

#[path = "support/below.rs"]
mod below;
#[path = "stuck_disk/beside.rs"]
mod beside;
#[path = "stuck_disk/frozen.rs"]
mod frozen;
#[path = "support/gate.rs"]
mod gate;
#[path = "stuck_disk/long.rs"]
mod long;
#[path = "stuck_disk/looks.rs"]
mod looks;
#[path = "support/passthrough.rs"]
mod passthrough;
#[path = "stuck_disk/shop.rs"]
mod shop;
#[path = "stuck_disk/slow.rs"]
mod slow;
mod support;
#[path = "stuck_disk/writers.rs"]
mod writers;
