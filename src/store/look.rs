//! What is at a path. "Nothing is there" and "it cannot be looked at" are two answers.

use crate::error::{Context, Error, Result};
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// How what is at a path looks, symlinks followed; `None` if nothing is there.
pub(crate) fn metadata(path: &Path) -> Result<Option<Metadata>> {
    found(path, fs::metadata(path))
}

/// Whether something is at a path, be it a symlink that leads nowhere.
pub(crate) fn is_there(path: &Path) -> Result<bool> {
    found(path, fs::symlink_metadata(path)).map(|found| found.is_some())
}

/// Whether a directory is at a path, symlinks followed.
pub(crate) fn is_dir(path: &Path) -> Result<bool> {
    metadata(path).map(|found| found.is_some_and(|meta| meta.is_dir()))
}

/// What lies in a directory; `None` if the directory is not there.
pub(crate) fn entries(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    let all = fs::read_dir(path).and_then(|all| all.map(|entry| Ok(entry?.path())).collect());
    match all {
        Ok(all) => Ok(Some(all)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("reading {}", path.display())),
    }
}

/// Whether a process is alive, or a zombie.
pub(crate) fn is_process(pid: u32) -> Result<bool> {
    use rustix::process::{Pid, test_kill_process};
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
    match test_kill_process(process) {
        Ok(()) | Err(rustix::io::Errno::PERM) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error).context(|| format!("asking for process {pid}")),
    }
}

fn found(path: &Path, found: std::io::Result<Metadata>) -> Result<Option<Metadata>> {
    match found {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::io(format!("looking at {}", path.display()), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told_from_what_cannot_be_looked_at() {
        let dir = tempfile::tempdir().expect("scratch");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "x").expect("write");
        std::os::unix::fs::symlink("nowhere", at("link")).expect("symlink");
        assert!(is_there(&at("file")).expect("seen") && !is_there(&at("none")).expect("seen"));
        assert!(!is_there(&at("file/below")).expect("seen"), "below a file nothing is");
        assert!(is_there(&at("link")).expect("seen") && metadata(&at("link")).expect("seen").is_none());
        assert!(is_dir(dir.path()).expect("seen") && !is_dir(&at("file")).expect("seen"));
        assert_eq!(entries(dir.path()).expect("seen").map(|all| all.len()), Some(2));
        assert!(entries(&at("none")).expect("seen").is_none() && entries(&at("file")).is_err());
        // Root may look everywhere, so another reason than missing rights.
        let long = at(&"x".repeat(300));
        assert!(metadata(&long).is_err() && is_there(&long).is_err() && is_dir(&long).is_err());
    }

    #[test]
    fn this_process_lives_and_one_without_a_number_does_not() {
        assert!(is_process(std::process::id()).expect("asked"));
        assert!(!is_process(u32::MAX).expect("asked"));
    }
}
