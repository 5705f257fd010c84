//! Whom verfs believes: what it opens belongs to root, or to the caller, and nobody else may write it.
//!
//! The same holds of every directory above, because whoever may write one of them can put something else in its place.
//! As for ssh (StrictModes in sshd_config(5)) others may write a directory above that is sticky: in it nobody renames
//! what is not his own.

use crate::error::{Context, Error, Result};
use nix::unistd::User;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Below a directory, without a symlink on the way.
pub(crate) const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Group and others.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Opens a directory at a path that has no symlink in it.
pub(crate) fn open_dir(real: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, real, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// Opens a directory by its name in another, unless it is a symlink.
pub(crate) fn open_dir_in(dir: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(dir, name, flags, Mode::empty(), BENEATH)
}

/// Opens a file by its name in a directory, unless it is a symlink. One that is made has the mode 0644, less umask.
pub(crate) fn open_file_in(dir: impl AsFd, name: &str, flags: OFlags) -> rustix::io::Result<File> {
    // openat2(2) takes a mode only with O_CREAT.
    let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o644) } else { Mode::empty() };
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(dir, name, flags, mode, BENEATH).map(File::from)
}

/// Refuses a path that somebody else could replace. It is absolute and has no symlink in it; its end need not be there.
///
/// # Errors
/// A directory above it belongs to somebody else, or others may write it and it is not sticky: exit code 1.
pub(crate) fn check_above(real: &Path) -> Result<()> {
    for dir in real.ancestors().skip(1) {
        let stat = rustix::fs::lstat(dir).context(|| format!("looking at {}", dir.display()))?;
        check_owner(&stat, dir, &[])?;
        if stat.st_mode & OTHERS_WRITE != 0 && stat.st_mode & STICKY == 0 {
            return Err(writable(dir));
        }
    }
    Ok(())
}

/// Refuses a place for something new: [`check_above`], of the directories that are there.
pub(crate) fn check_place(path: &Path) -> Result<()> {
    let path = std::path::absolute(path).context(|| format!("looking at {}", path.display()))?;
    for dir in path.ancestors() {
        match std::fs::canonicalize(dir) {
            Ok(real) if dir == path => {
                check_above(&real)?;
                let stat = rustix::fs::lstat(&real).context(|| format!("looking at {}", real.display()))?;
                return check(&stat, &real);
            }
            Ok(real) => return check_above(&real.join("new")),
            // Whoever makes something there is told why that does not work.
            Err(_) => {}
        }
    }
    Ok(())
}

/// Refuses what belongs to somebody else, or what others may write.
///
/// # Errors
/// As above: exit code 1. The message says what to do.
pub(crate) fn check(stat: &Stat, shown: &Path) -> Result<()> {
    check_owner(stat, shown, &[])?;
    match stat.st_mode & OTHERS_WRITE {
        0 => Ok(()),
        _ => Err(writable(shown)),
    }
}

/// Refuses what belongs to somebody else than root, the caller or one of these.
pub(crate) fn check_owner(stat: &Stat, shown: &Path, or: &[u32]) -> Result<()> {
    let (owner, caller) = (stat.st_uid, rustix::process::geteuid().as_raw());
    if owner == 0 || owner == caller || or.contains(&owner) {
        return Ok(());
    }
    let name = User::from_uid(owner.into()).ok().flatten().map_or_else(String::new, |user| format!(" ({})", user.name));
    let todo = match caller {
        0 => format!("if you know what is in it, run: chown -h root: {}", shown.display()),
        _ => "use what is yours or root's".to_owned(),
    };
    Err(Error::failed(format!("{} belongs to user {owner}{name}, so verfs does not use it; {todo}", shown.display())))
}

/// [`check`] of a name in a directory, if it is there; it must be a plain file or a directory.
pub(crate) fn check_in(dir: impl AsFd, name: &str, shown: &Path) -> Result<()> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error).context(|| format!("looking at {}", shown.display())),
        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::Directory => check(&stat, shown),
            _ => Err(swapped(shown)),
        },
    }
}

/// Takes the right to write from all but the owner, if root calls and a name is a plain file of root's. The directory
/// passed [`check`]: what is in it is nobody else's doing.
pub(crate) fn keep_from_others_in(dir: impl AsFd, name: &str, shown: &Path) -> Result<()> {
    let is_open = |stat: &Stat| {
        FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_uid == 0 && stat.st_mode & OTHERS_WRITE != 0
    };
    let what = || format!("taking the right to write {} from others", shown.display());
    match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_open(&stat) && rustix::process::geteuid().is_root() => {}
        // Whatever else it is, `check_in` judges it.
        _ => return Ok(()),
    }
    let file = match open_file_in(&dir, name, OFlags::RDONLY | OFlags::NONBLOCK) {
        // Another process put the journal aside, or removed the oldest.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        opened => opened.context(what)?,
    };
    let stat = rustix::fs::fstat(&file).context(what)?;
    if !is_open(&stat) {
        return Ok(());
    }
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777 & !OTHERS_WRITE);
    rustix::fs::fchmod(&file, mode).context(what)?;
    log::warn!(
        "{} could be written by others than root, as an earlier verfs made it; its mode is {mode:04o} from now on",
        shown.display(),
        mode = mode.bits()
    );
    Ok(())
}

/// "There is something else at this path."
pub(crate) fn swapped(shown: &Path) -> Error {
    Error::failed(format!(
        "{} is a symlink or of another type than verfs made it, so somebody put it there; look at it and move it away",
        shown.display()
    ))
}

fn writable(shown: &Path) -> Error {
    Error::failed(format!(
        "{} may be written by others than its owner, so verfs does not use it; run: chmod go-w {0}",
        shown.display()
    ))
}
