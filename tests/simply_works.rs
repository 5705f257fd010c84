//! What a release may hold, and what the mount is used for: it must simply work.
#![allow(clippy::unwrap_used)]

#[path = "simply_works/attributes.rs"]
mod attributes;
#[path = "simply_works/export.rs"]
mod export;
#[path = "simply_works/large.rs"]
mod large;
#[path = "simply_works/mapping.rs"]
mod mapping;
#[path = "simply_works/names.rs"]
mod names;
#[path = "simply_works/options.rs"]
mod options;
#[path = "simply_works/plain.rs"]
mod plain;
#[path = "simply_works/refused.rs"]
mod refused;
mod support;
#[path = "simply_works/symlinks.rs"]
mod symlinks;
#[path = "simply_works/tools.rs"]
mod tools;
