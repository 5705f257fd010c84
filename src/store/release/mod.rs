//! Releases on disk: what they hold, and how they come and go.
//!
//! - `manifest` is a release's metadata, `objects` the contents that all releases share.
//! - `import` (`add`) makes a release; `export` writes one out.
//! - `gc` and `repack` free what no release needs; `verify` hashes everything.

pub mod export;
pub mod gc;
pub mod import;
pub mod manifest;
pub mod objects;
mod repack;
mod search;
mod sparse;
pub mod verify;
