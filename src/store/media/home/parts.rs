//! The directories of the writable layer: made, opened, and checked to be root's.
//!
//! The home itself may be a user's, who can put anything in the place of what lies in it. So each directory is opened
//! by its name in the home, never through a symlink, and what is open is looked at: whose it is.

use super::{Home, names, remove_all};
use crate::error::{Context, OnDisk, Result};
use crate::store::lock::{Hold, Lock};
use crate::store::media::layout::LAYOUT;
use crate::store::media::scope::Scope;
use crate::store::trust;
use crate::tree::{LayerId, LayerPath, ReleaseName};
use rustix::fs::{AtFlags, Gid, Mode, Stat, Uid};
use rustix::io::Errno;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Opens the home. Nobody else can put something in its place.
pub(super) fn open_home(home: &Path) -> Result<OwnedFd> {
    let what = || format!("opening {}", home.display());
    let real = fs::canonicalize(home).context(what)?;
    trust::check_above(&real)?;
    trust::open_dir(&real).context(what)
}

/// Opens a directory of the home, which must be root's alone.
pub(super) fn open_part(home: &OwnedFd, path: &Path, name: &str) -> Result<OwnedFd> {
    let (opened, stat) = open_any(home, path, name)?;
    trust::check(&stat, &path.join(name))?;
    Ok(opened)
}

/// Opens the directory of media. It may be the owner's of a scope, and others may write it: each path below it is
/// followed without symlinks all the same.
pub(super) fn open_media(home: &OwnedFd, path: &Path, scopes: &[Scope]) -> Result<OwnedFd> {
    let (opened, stat) = open_any(home, path, "media")?;
    let owners = scopes.iter().filter_map(|scope| scope.top_owner().ok().flatten());
    trust::check_owner(&stat, &path.join("media"), &owners.map(|owner| owner.uid).collect::<Vec<_>>())?;
    Ok(opened)
}

fn open_any(home: &OwnedFd, path: &Path, name: &str) -> Result<(OwnedFd, Stat)> {
    let shown = path.join(name);
    let opened = match trust::open_dir_in(home, name) {
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(trust::swapped(&shown)),
        opened => opened.context(|| format!("opening {}", shown.display()))?,
    };
    let stat = rustix::fs::fstat(&opened).context(|| format!("looking at {}", shown.display()))?;
    Ok((opened, stat))
}

impl Home {
    /// Makes those of the directories that are missing.
    pub fn make_missing(home: &Path) -> Result<()> {
        let dir = open_home(home)?;
        for (name, mode) in LAYOUT {
            make_dir_in(&dir, name.as_bytes(), *mode).context(|| format!("making {}", home.join(name).display()))?;
        }
        Ok(())
    }

    /// Makes the tops of the shared scopes that are missing; one that is there keeps its owner and mode.
    pub fn make_tops(&self, scopes: &[Scope]) -> Result<()> {
        scopes.iter().filter(|scope| !scope.per_release).try_for_each(|scope| self.make_top(LayerId::Shared, scope))
    }

    /// Makes what is missing of a release's own layer.
    pub fn make_own_layer(&self, release: &ReleaseName, scopes: &[Scope]) -> Result<()> {
        let own = || scopes.iter().filter(|scope| scope.per_release);
        if own().next().is_none() {
            return Ok(());
        }
        let shown = || self.show_beside("own", release.as_str().as_bytes());
        make_dir_in(&self.own, release.as_str().as_bytes(), 0o755).on_disk("making", shown)?;
        let layer = trust::open_dir_in(&self.own, release.as_str()).on_disk("opening", shown)?;
        for tree in ["whiteouts", "media"] {
            make_dir_in(&layer, tree.as_bytes(), 0o755).on_disk("making", shown)?;
        }
        own().try_for_each(|scope| self.make_top(LayerId::Own(release.clone()), scope))
    }

    fn make_top(&self, layer: LayerId, scope: &Scope) -> Result<()> {
        let top = LayerPath::new(layer, scope.path.as_bytes());
        if self.stat(&top)?.is_some() {
            return Ok(());
        }
        for dir in top.parent().from_the_top() {
            let (above, name) = self.parent_of(&dir)?;
            make_dir_in(&above, &name, 0o755).on_disk("making", || self.show(&dir))?;
        }
        // Dressed before it has its name: one that is there is left as it is. A command may do this beside the daemon.
        let new = format!("up-{}-{}", std::process::id(), self.next_orphan());
        self.remove_work(&new)?;
        let shown = || self.show_beside("tmp", new.as_bytes());
        make_dir_in(&self.tmp, new.as_bytes(), 0o700).on_disk("making", shown)?;
        if let Some(owner) = scope.top_owner()? {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            rustix::fs::chownat(&self.tmp, &new, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .on_disk("giving to its owner", shown)?;
        }
        rustix::fs::chmodat(&self.tmp, &new, Mode::from_raw_mode(scope.mode.0), AtFlags::empty())
            .on_disk(super::copy::DRESSING, shown)?;
        match self.take_place(new.as_bytes(), &top) {
            Err(error) if error.errno() == Errno::EXIST => Ok(()),
            placed => placed,
        }
    }

    /// Keeps others off the layer: two stores may name one directory for theirs. `None` if another process has it.
    pub fn lock(&self) -> Result<Option<Lock>> {
        Lock::try_take_in(&self.orphans, Path::new("."), Hold::Exclusive, &self.path.join("orphans"))
    }

    /// Removes the own layers of releases that are not wanted any more.
    pub fn sweep_own(home: &Path, wanted: impl Fn(&ReleaseName) -> Result<bool>) -> Result<Vec<PathBuf>> {
        let own = open_part(&open_home(home)?, home, "own")?;
        let all = home.join("own");
        let mut swept = Vec::new();
        for name in names(&own).context(|| format!("reading {}", all.display()))? {
            let Some(release) = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok()) else { continue };
            if !wanted(&release)? {
                let path = all.join(release.as_str());
                remove_all(&own, &name).context(|| format!("removing {}", path.display()))?;
                swept.push(path);
            }
        }
        Ok(swept)
    }

    /// The work space, in which `up-…` is ours.
    pub(in crate::store) fn work_space(&self) -> &OwnedFd {
        &self.tmp
    }

    /// Removes something of the work space, if it is there.
    pub(in crate::store) fn remove_work(&self, name: &str) -> Result<()> {
        match remove_all(&self.tmp, name.as_bytes()) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed.on_disk("removing", || self.show_beside("tmp", name.as_bytes())),
        }
    }
}

/// Makes a directory, unless there is something of that name.
fn make_dir_in(dir: impl AsFd, name: &[u8], mode: u32) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode)) {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}
