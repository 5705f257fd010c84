//! `media adopt`: a directory of uploads that is there already becomes a scope, in place where the disk allows it.

use crate::error::{Context, Error, Result};
use crate::protocol::Way;
use crate::store::durable::Dir;
use crate::store::journal::{Asker, Line};
use crate::store::media::home::{Home, proc_link};
use crate::store::media::scope::Scope;
use crate::store::{Store, look, trust};
use crate::tree::LayerPath;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What was done.
#[derive(Debug)]
pub(crate) struct Adopted {
    /// How.
    pub way: Way,
    /// Where it lies now.
    pub target: PathBuf,
}

/// Makes what is in `dir` the content of a shared scope that has none yet. All of it or nothing.
pub(crate) fn adopt(store: &Store, scope: &Scope, dir: &Path, may_copy: bool) -> Result<Adopted> {
    let home = store.media_home();
    let real = fs::canonicalize(dir)
        .map_err(|error| Error::request(format!("{} cannot be adopted: {error}", dir.display())))?;
    if !look::is_dir(&real)? {
        return Err(Error::request(format!("{} is not a directory", dir.display())));
    }
    let real_home = fs::canonicalize(home).context(|| format!("reading {}", home.display()))?;
    for root in [store.root(), &real_home] {
        if real.starts_with(root) || root.starts_with(&real) {
            return Err(Error::request(format!(
                "{} and the store's {} lie one inside the other: nothing to adopt",
                dir.display(),
                root.display()
            )));
        }
    }
    let layer = store.make_layer()?;
    let top = LayerPath::shared(scope.path.as_bytes());
    let target = home.join("media").join(&scope.path);
    if let Some(first) = layer.list(&top)?.first() {
        return Err(Error::request(format!(
            "the scope {} is not empty ({} is in it); move what is in {} away first",
            scope.path,
            OsStr::from_bytes(&first.name).display(),
            target.display()
        )));
    }
    // Held, so that nobody puts another directory in its place meanwhile.
    let (Some(above), Some(name)) = (real.parent(), real.file_name()) else {
        return Err(Error::request(format!("{} cannot be adopted: it has no name", real.display())));
    };
    let above = Dir::open(above)?;
    let (to, to_name) = layer.parent_of(&top)?;
    // Over an empty directory rename(2) works at once.
    let way = match rustix::fs::renameat(&above, name, &to, &to_name[..]) {
        Ok(()) => Way::Renamed,
        // Another disk, or a mountpoint, or a subvolume.
        Err(Errno::XDEV | Errno::BUSY) => {
            let copied = copy(&layer, home, &real, may_copy)?;
            let placed = rustix::fs::renameat(layer.work_space(), &copied.name, &to, &to_name[..]);
            placed.context(|| format!("renaming the copy to {}", target.display()))?;
            copied.way
        }
        Err(error) => return Err(Error::io(format!("renaming {} to {}", real.display(), target.display()), error)),
    };
    layer.sync_dir(&top.parent())?;
    if way == Way::Renamed {
        above.sync()?;
    }
    let mut line = Line::done("adopt", Asker::this_process());
    line.note = Some(format!("{} as the scope {}", real.display(), scope.path));
    store.write_journal(&line)?;
    Ok(Adopted { way, target })
}

/// A copy in the work space. If it gets no name elsewhere it goes.
struct StagedCopy<'a> {
    layer: &'a Home,
    name: String,
    way: Way,
}

impl Drop for StagedCopy<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.layer.remove_work(&self.name) {
            log::warn!("{error}; the next mount does it");
        }
    }
}

/// By cp(1), which knows holes, links, attributes and lists of rights: first without copying a block.
fn copy<'a>(layer: &'a Home, home: &Path, from: &Path, may_copy: bool) -> Result<StagedCopy<'a>> {
    let mut copied = StagedCopy { layer, name: format!("up-adopt-{}", std::process::id()), way: Way::Cloned };
    let run = |how: &str| -> Result<bool> {
        layer.remove_work(&copied.name)?;
        let mut cp = Command::new("cp");
        // The work space as it is open, whatever lies at its path.
        cp.current_dir(proc_link(layer.work_space())).args(["-a", how, "--"]).arg(from).arg(&copied.name);
        let done = cp.output().context(|| "running cp")?;
        if !done.status.success() && how == "--reflink=auto" {
            let said = String::from_utf8_lossy(&done.stderr);
            return Err(Error::failed(format!("copying {}: {}", from.display(), said.trim())));
        }
        Ok(done.status.success())
    };
    if !run("--reflink=always")? {
        if !may_copy {
            return Err(Error::request(format!(
                "{} is on another disk than {} or is a mountpoint, so it cannot be renamed; say --copy to copy it, or \
                 let the writable layer lie there (media in verfs.toml)",
                from.display(),
                home.display()
            )));
        }
        run("--reflink=auto")?;
        copied.way = Way::Copied;
    }
    let synced = trust::open_dir_in(layer.work_space(), &copied.name).and_then(rustix::fs::syncfs);
    synced.context(|| format!("syncing the copy of {}", from.display()))?;
    Ok(copied)
}
