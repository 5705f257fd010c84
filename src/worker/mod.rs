//! The worker: wires store, file system, kernel and control socket together.

mod serve;
mod service;
pub mod unmounted;

pub use crate::switch::{Holder, Mounted, holders, mounted};
pub use serve::{Options, Ready, serve};
pub use service::report;
