//! The worker: wires store, file system, kernel and control socket together.

mod restore;
mod serve;
mod service;
pub(crate) mod unmounted;

pub(crate) use crate::switch::{Mounted, holders, mounted};
pub(crate) use serve::{Options, Ready, serve};
pub(crate) use service::report;
