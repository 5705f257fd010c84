//! verfs: a docroot that switches.
//!
//! A store holds immutable releases; one of them is mounted, and `switch` replaces it by swapping one
//! pointer. The layers point one way, and `tests/layering.rs` keeps them so:
//!
//! ```text
//! main > cli > worker > control > fuse > switch > fs > store > protocol > tree > error, sys, fault
//! ```

#![warn(missing_debug_implementations, unreachable_pub)]

pub mod cli;
pub mod control;
pub mod error;
pub mod fault;
pub mod fs;
pub mod fuse;
pub mod protocol;
pub mod store;
pub mod switch;
pub mod sys;
pub mod tree;
pub mod worker;
