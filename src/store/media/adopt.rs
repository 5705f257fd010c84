//! `media adopt`: a directory of uploads that is there already becomes a scope, in place where the disk allows it.

use crate::error::{Context, Error, Result};
use crate::protocol::Way;
use crate::store::durable::Dir;
use crate::store::journal::{Asker, Line};
use crate::store::media::home::remove_all;
use crate::store::media::scope::Scope;
use crate::store::{Store, look};
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
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
    store.make_layer()?;
    let target = home.join("media").join(&scope.path);
    let there = look::entries(&target)?.unwrap_or_default();
    if let Some(first) = there.first() {
        return Err(Error::request(format!(
            "the scope {} is not empty ({} is in it); move what is in {} away first",
            scope.path,
            first.file_name().unwrap_or_default().display(),
            target.display()
        )));
    }
    // Over an empty directory rename(2) works at once.
    let way = match rustix::fs::rename(&real, &target) {
        Ok(()) => Way::Renamed,
        // Another disk, or a mountpoint, or a subvolume.
        Err(Errno::XDEV | Errno::BUSY) => copy(home, &real, &target, may_copy)?,
        Err(error) => return Err(Error::io(format!("renaming {} to {}", real.display(), target.display()), error)),
    };
    let above = target.parent().unwrap_or(home);
    Dir::open(above)?.sync()?;
    if let (Way::Renamed, Some(above)) = (way, real.parent()) {
        Dir::open(above)?.sync()?;
    }
    let mut line = Line::done("adopt", Asker::this_process());
    line.note = Some(format!("{} as the scope {}", real.display(), scope.path));
    store.write_journal(&line)?;
    Ok(Adopted { way, target })
}

/// By cp(1), which knows holes, links, attributes and lists of rights: first without copying a block.
fn copy(home: &Path, from: &Path, target: &Path, may_copy: bool) -> Result<Way> {
    let (space, name) = (home.join("tmp"), format!("up-adopt-{}", std::process::id()));
    let work = space.join(&name);
    let space = OwnedFd::from(File::open(&space).context(|| format!("opening {}", space.display()))?);
    let discard = || remove_all(&space, name.as_bytes()).context(|| format!("removing {}", work.display()));
    let run = |how: &str| -> Result<bool> {
        discard()?;
        let done = Command::new("cp").args(["-a", how, "--"]).args([from, &work]).output().context(|| "running cp")?;
        if !done.status.success() && how == "--reflink=auto" {
            let said = String::from_utf8_lossy(&done.stderr);
            let _ = discard();
            return Err(Error::failed(format!("copying {}: {}", from.display(), said.trim())));
        }
        Ok(done.status.success())
    };
    let way = if run("--reflink=always")? {
        Way::Cloned
    } else if may_copy && run("--reflink=auto")? {
        Way::Copied
    } else {
        let _ = discard();
        return Err(Error::request(format!(
            "{} is on another disk than {} or is a mountpoint, so it cannot be renamed; say --copy to copy it, or let \
             the writable layer lie there (media in verfs.toml)",
            from.display(),
            home.display()
        )));
    };
    let placed =
        rustix::fs::open(&work, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())
            .and_then(rustix::fs::syncfs)
            .and_then(|()| rustix::fs::rename(&work, target));
    if placed.is_err() {
        let _ = discard();
    }
    placed.context(|| format!("renaming the copy to {}", target.display()))?;
    Ok(way)
}
