//! The daemon: wires store, file system, kernel and control socket together, and owns the switch.

mod holders;
mod invalidate;
mod mounts;
mod serve;
mod service;
mod switch;
pub mod unmounted;

pub use holders::{Holder, holders};
pub use mounts::{Mounted, mounted};
pub use serve::{Options, Ready, serve};
