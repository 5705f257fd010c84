//! The command line: what scripts and operators depend on.
#![allow(clippy::unwrap_used)]

#[path = "cli/content.rs"]
mod content;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/helper.rs"]
mod helper;
#[path = "cli/json.rs"]
mod json;
#[path = "cli/life.rs"]
mod life;
#[path = "cli/media.rs"]
mod media;
#[path = "cli/namespace.rs"]
mod namespace;
#[path = "cli/releases.rs"]
mod releases;
#[path = "cli/store.rs"]
mod store;
mod support;
#[path = "cli/switching.rs"]
mod switching;
#[path = "cli/umount.rs"]
mod umount;
#[path = "bad_input/watch.rs"]
mod watch;
#[path = "cli/which.rs"]
mod which;
