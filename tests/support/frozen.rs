//! A disk that stands still, as for a snapshot: who changes something there waits, who looks is answered.

use super::guardian::Guardian;
use super::sys;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

/// Frozen until it is thawed or dropped, or until the test process ends in any way: nothing that waits for a frozen
/// disk can be ended or unmounted.
pub struct Frozen {
    top: File,
    guardian: Mutex<Option<Guardian>>,
}

impl Frozen {
    /// Freezes what is mounted at a path (fsfreeze(8)).
    pub fn freeze(dir: &Path) -> Frozen {
        let guardian = Guardian::start(r#"fsfreeze --unfreeze "$0"; umount --lazy "$0""#, dir);
        let frozen = Frozen { top: File::open(dir).unwrap(), guardian: Mutex::new(Some(guardian)) };
        sys::set_frozen(&frozen.top, true).unwrap_or_else(|error| panic!("freezing {}: {error}", dir.display()));
        frozen
    }

    /// Lets the disk go on. Once more does nothing.
    pub fn thaw(&self) {
        if let Some(guardian) = self.guardian.lock().unwrap().take() {
            if let Err(error) = sys::set_frozen(&self.top, false) {
                eprintln!("a frozen disk cannot be thawed: {error}");
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
