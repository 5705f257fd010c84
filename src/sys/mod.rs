//! The only unsafe code, and what a panic does.

mod credentials;
mod handle;
mod mapped;
mod memory;
mod panic;

pub(crate) use credentials::AsCaller;
pub use handle::Handle;
pub use mapped::Mapped;
pub(crate) use memory::give_memory_back;
pub(crate) use panic::{caught, log_panics, to_the_end};
