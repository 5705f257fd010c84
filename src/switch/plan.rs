//! What a switch would do. It changes nothing, and asks no disk but for the two manifests.

use super::invalidate::ReleasePair;
use crate::error::{Error, Result};
use crate::fs::media::Scopes;
use crate::fs::{Epoch, Release};
use crate::store::active::Active;
use crate::tree::{NodeId, ReleaseName, name_key};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is active before a switch, and in what the next release differs from it.
#[derive(Clone, Debug)]
pub struct Before {
    /// What the store says.
    pub active: Active,
    /// What is served, or would be.
    pub epoch: Arc<Epoch>,
    /// The two releases.
    pub pair: Arc<ReleasePair>,
}

/// What a switch would do.
#[derive(Debug)]
pub struct Plan {
    /// `None`: the store's first release becomes active.
    pub before: Option<Before>,
    /// The release that becomes active.
    pub to: Arc<Release>,
    /// Whether it is a rollback.
    pub rollback: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The first release of a store.
    pub fn first(to: Arc<Release>) -> Self {
        Self { before: None, to, rollback: false, warnings: Vec::new() }
    }

    /// From what is served to another release.
    pub fn new(
        active: Active,
        epoch: Arc<Epoch>,
        to: Arc<Release>,
        rollback: bool,
        scopes: Option<&Scopes>,
    ) -> Result<Self> {
        let pair = ReleasePair::new(epoch.release.clone(), to.clone(), scopes)
            .map_err(|error| advise(error, &epoch.release, &to.name))?;
        let before = Some(Before { active, epoch, pair: Arc::new(pair) });
        Ok(Self { before, to, rollback, warnings: Vec::new() })
    }

    /// The two releases, if there is one before.
    pub fn pair(&self) -> Option<&ReleasePair> {
        self.before.as_ref().map(|before| &*before.pair)
    }

    /// How many names change.
    pub fn changed(&self) -> usize {
        self.pair().map_or(0, ReleasePair::changed)
    }

    /// Whether the content of any path changes: then the switch takes a second of its own.
    pub fn changes_content(&self) -> bool {
        self.pair().is_some_and(|pair| pair.changes.changes_content())
    }

    /// Changed names in scopes, by their paths: the writable layer may shadow them.
    pub fn scoped_paths(&self) -> Result<Vec<Vec<u8>>> {
        self.pair().map_or(Ok(Vec::new()), ReleasePair::scoped_paths)
    }

    /// Tells the operator something.
    pub fn warn(&mut self, warning: String) {
        log::warn!("{warning}");
        self.warnings.push(warning);
    }

    /// A file system mounted on a changed name is unmounted by the kernel when the name goes: `below` are the
    /// mountpoints below ours.
    pub fn warn_of_mounts(&mut self, mountpoint: &Path, below: &[PathBuf]) -> Result<()> {
        let Some(pair) = self.pair().filter(|_| !below.is_empty()) else { return Ok(()) };
        let changed = pair.keys()?;
        let hit = |path: &&PathBuf| {
            let Ok(path) = path.strip_prefix(mountpoint) else { return false };
            let path = path.as_os_str().as_encoded_bytes();
            (0..path.len()).chain([path.len()]).filter(|end| *end == path.len() || path[*end] == b'/').any(|end| {
                let start = path[..end].iter().rposition(|b| *b == b'/');
                let dir = NodeId::of_dir(&path[..start.unwrap_or(0)]);
                let name = &path[start.map_or(0, |at| at + 1)..end];
                changed.contains(&name_key(dir, name))
            })
        };
        for path in below.iter().filter(hit) {
            self.warn(format!("{} is a mountpoint on a path that changes: the kernel unmounts it", path.display()));
        }
        Ok(())
    }
}

/// What to do when the release that is served cannot be compared with the next one any more.
fn advise(error: Error, served: &Release, next: &ReleaseName) -> Error {
    match &error {
        Error::Damaged(text) if served.manifest.verify().is_err() => Error::damaged(format!(
            "{text}. It is the release that is served, so it can be left only without a mount: `verfs umount`, \
             `verfs switch {next}`, `verfs mount`"
        )),
        _ => error,
    }
}
