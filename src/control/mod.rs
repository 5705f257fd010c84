//! The control socket: how a command talks to the daemon that serves a store.
//!
//! The daemon listens on `STORE/run/control.sock`. Each line is one JSON object, at most [`protocol::MAX_LINE`] bytes;
//! each request gets one reply, in order, and a connection may carry several.
//!
//! - [`protocol`] says what the lines mean. It is pure.
//! - [`server`] owns the socket and its file, who may ask, and how long anybody may take.
//! - [`client`] is the other end, for the command line.
//! - `place` finds the socket whatever the length of its path; `lines` cuts a stream into lines under a deadline;
//!   `hall` counts the clients.
//!
//! This is one of the three doors where errors are translated: an [`crate::error::Error`] becomes a text and an exit
//! code on the wire, and becomes an `Error` again in the client.

pub mod client;
mod hall;
mod lines;
mod place;
pub mod protocol;
pub mod server;
