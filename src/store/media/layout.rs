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

use crate::error::{Context, Error, Result};
use crate::store::media::home::remove_all;
use crate::store::media::scope::Scope;
use crate::store::{Store, look, make_dir};
use crate::tree::ReleaseName;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// The directories of a home, and their modes.
pub const LAYOUT: &[(&str, u32)] =
    &[("media", 0o755), ("whiteouts", 0o755), ("own", 0o755), ("tmp", 0o700), ("orphans", 0o700)];

impl Store {
    /// The directory of the writable layer.
    pub fn media_home(&self) -> &Path {
        self.settings().media.as_deref().unwrap_or_else(|| self.root())
    }

    /// Makes what is missing of the writable layer: its directories and the tops of the shared scopes.
    pub fn make_layer(&self) -> Result<()> {
        let home = self.media_home();
        if !look::is_dir(home)? {
            return Err(Error::failed(format!(
                "the writable layer should lie in {} (media in verfs.toml), which is no directory; mount its disk, or \
                 make it",
                home.display()
            )));
        }
        for (name, mode) in LAYOUT {
            let dir = home.join(name);
            if !look::is_there(&dir)? {
                make_dir(&dir, *mode)?;
            }
        }
        make_tops(&home.join("media"), self.settings().scopes.iter().filter(|scope| !scope.per_release))
    }

    /// Makes what is missing of a release's own layer.
    pub fn make_own_layer(&self, release: &ReleaseName) -> Result<()> {
        let mut scopes = self.settings().scopes.iter().filter(|scope| scope.per_release).peekable();
        if scopes.peek().is_none() {
            return Ok(());
        }
        let own = self.own_layer(release);
        make_dir(&own.join("whiteouts"), 0o755)?;
        make_dir(&own.join("media"), 0o755)?;
        make_tops(&own.join("media"), scopes)
    }

    /// The layer that a release has to itself.
    pub fn own_layer(&self, release: &ReleaseName) -> PathBuf {
        self.media_home().join("own").join(release.as_str())
    }

    /// Removes the own layers of releases that are not there any more.
    pub fn sweep_own_layers(&self) -> Result<Vec<PathBuf>> {
        let all = self.media_home().join("own");
        let mut swept = Vec::new();
        for path in look::entries(&all)?.unwrap_or_default() {
            let name =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<ReleaseName>().ok());
            let Some(name) = name else { continue };
            // Only where it is certain that the release is gone.
            if !look::is_there(&self.manifest_path(&name))? {
                let dir = OwnedFd::from(File::open(&all).context(|| format!("opening {}", all.display()))?);
                remove_all(&dir, name.as_str().as_bytes()).context(|| format!("removing {}", path.display()))?;
                swept.push(path);
            }
        }
        Ok(swept)
    }
}

/// Makes the tops that are missing; one that is there keeps its owner and mode.
fn make_tops<'a>(media: &Path, scopes: impl IntoIterator<Item = &'a Scope>) -> Result<()> {
    for scope in scopes {
        let top = media.join(&scope.path);
        if look::is_there(&top)? {
            continue;
        }
        make_dir(&top, 0o755)?;
        let what = || format!("giving {} to its owner", top.display());
        if let Some(owner) = scope.top_owner()? {
            chown(&top, Some(owner.uid), Some(owner.gid)).context(what)?;
        }
        fs::set_permissions(&top, fs::Permissions::from_mode(scope.mode.0)).context(what)?;
    }
    Ok(())
}
