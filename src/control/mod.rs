//! The control socket: how a command talks to the daemon that serves a store.
//!
//! The daemon listens on `STORE/run/control.sock`. What the lines mean says [`crate::protocol`]: each request gets one
//! reply, in order, and a connection may carry several.
//!
//! - [`listener`] owns the socket and its file: bound here, or adopted from another process.
//! - [`server`] is the daemon's end: who may ask, and how long anybody may take. `acceptor` lets connections in,
//!   `session` answers what comes over one, `connections` counts them.
//! - [`client`] is the other end, for the command line.
//! - `address` finds the socket whatever the length of its path; `lines` cuts a stream into lines under a deadline.
//!
//! This is one of the three doors where errors are translated: an [`crate::error::Error`] becomes a text, an exit code
//! and a kind on the wire, and becomes an `Error` again in the client.

mod acceptor;
mod address;
pub mod client;
mod connections;
mod lines;
pub mod listener;
pub mod server;
mod session;
