//! The adapter to the kernel: decode, one call into `fs`, reply. It decides nothing.

mod adapter;
mod convert;
mod lanes;
mod notify;
mod requests;
mod session;

pub use notify::{Kernel, Use};
pub use session::{MountOptions, Session, mount};
