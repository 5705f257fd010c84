//! Where the writable layer lies, and its directories, made where they are missing.
//!
//! ```text
//! HOME/            the store, or the directory that `media` in verfs.toml names: another disk's, say
//!   media/         what was written in shared scopes, as plain files at their paths in the docroot
//!   whiteouts/     what of the release is hidden there: see home/whiteouts.rs
//!   own/NAME/      media/ and whiteouts/ of release NAME, for scopes that each release has to itself
//!   tmp/ orphans/  copy-ups in the making; files that were unlinked while open
//!   tmp/reserve    room for whiteouts on a full disk: see home/reserve.rs
//! ```
//!
//! HOME may be anybody's. Its directories are root's (`media` may be the owner's of a scope); others are refused.

use crate::error::{Error, Result};
use crate::store::media::home::Home;
use crate::store::{Store, look};
use crate::tree::ReleaseName;
use std::path::{Path, PathBuf};

/// The directories of a home, and their modes.
pub const LAYOUT: &[(&str, u32)] =
    &[("media", 0o755), ("whiteouts", 0o755), ("own", 0o755), ("tmp", 0o700), ("orphans", 0o700)];

impl Store {
    /// The directory of the writable layer.
    pub fn media_home(&self) -> &Path {
        self.settings().media.as_deref().unwrap_or_else(|| self.root())
    }

    /// Opens the writable layer. Makes what is missing of it: its directories and the tops of the shared scopes.
    pub fn make_layer(&self) -> Result<Home> {
        let home = self.media_home();
        if !look::is_dir(home)? {
            return Err(Error::failed(format!(
                "the writable layer should lie in {} (media in verfs.toml), which is no directory; mount its disk, or \
                 make it",
                home.display()
            )));
        }
        Home::make_missing(home)?;
        let scopes = &self.settings().scopes;
        let home = Home::open(home, scopes)?;
        home.make_tops(scopes)?;
        Ok(home)
    }

    /// Removes the own layers of releases that are not there any more.
    pub fn sweep_own_layers(&self) -> Result<Vec<PathBuf>> {
        let home = self.media_home();
        if !look::is_there(&home.join("own"))? {
            return Ok(Vec::new());
        }
        // Only where it is certain that the release is gone.
        Home::sweep_own(home, |name: &ReleaseName| look::is_there(&self.manifest_path(name)))
    }
}
