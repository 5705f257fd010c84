//! A disk that stands still, as for a snapshot: who changes something there waits, who looks is answered.

use super::guardian::Guardian;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Frozen until it is thawed or dropped, or until the test process ends in any way: nothing that waits for a frozen disk
/// can be ended or unmounted.
pub struct Frozen {
    dir: PathBuf,
    guardian: Mutex<Option<Guardian>>,
}

impl Frozen {
    /// Freezes what is mounted at a path (fsfreeze(8)).
    pub fn freeze(dir: &Path) -> Frozen {
        let guardian = Guardian::start(r#"fsfreeze --unfreeze "$0"; umount --lazy "$0""#, dir);
        let frozen = Frozen { dir: dir.to_owned(), guardian: Mutex::new(Some(guardian)) };
        assert!(fsfreeze("--freeze", dir), "{} cannot be frozen", dir.display());
        frozen
    }

    /// Lets the disk go on. Once more does nothing.
    pub fn thaw(&self) {
        if let Some(guardian) = self.guardian.lock().unwrap().take() {
            if !fsfreeze("--unfreeze", &self.dir) {
                eprintln!("{} could not be thawed", self.dir.display());
            }
            drop(guardian);
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
    }
}

fn fsfreeze(how: &str, dir: &Path) -> bool {
    Command::new("fsfreeze").arg(how).arg(dir).status().is_ok_and(|status| status.success())
}
