//! The adapter to the kernel: decode, one call into `fs`, reply. It decides nothing.

mod adapter;
mod connection;
mod convert;
mod copy_first;
mod dispatch;
mod lanes;
mod mountpoint;
mod notify;
mod requests;

pub(crate) use connection::{Connection, MountOptions};
pub(crate) use mountpoint::Mountpoint;
pub(crate) use notify::PageDropper;
