//! The only unsafe code.

mod credentials;
mod mapped;

pub(crate) use credentials::AsCaller;
pub use mapped::Mapped;
