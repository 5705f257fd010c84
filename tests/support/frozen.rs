//! A disk that stands still, as for a snapshot: what changes it waits, whoever looks is answered.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// Frozen until it is thawed or dropped. If the test process ends in any other way, a child of it thaws the disk and takes
/// its mount away: nothing that waits for a frozen disk can be ended or unmounted.
pub struct Frozen {
    dir: PathBuf,
    guardian: Mutex<Option<Child>>,
}

/// Waits for a word. If there is none the test is dead.
const GUARDIAN: &str = r#"read -r word || { fsfreeze --unfreeze "$0"; umount --lazy "$0"; }"#;

impl Frozen {
    /// Freezes what is mounted at a path (fsfreeze(8)).
    pub fn freeze(dir: &Path) -> Frozen {
        use std::os::unix::process::CommandExt;
        let mut guardian = Command::new("sh");
        guardian.args(["-c", GUARDIAN]).arg(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A signal to the test's group must not end it before its work.
        let guardian = guardian.process_group(0).current_dir("/").spawn().unwrap();
        let frozen = Frozen { dir: dir.to_owned(), guardian: Mutex::new(Some(guardian)) };
        assert!(fsfreeze("--freeze", dir), "{} cannot be frozen", dir.display());
        frozen
    }

    /// Lets the disk go on.
    pub fn thaw(&self) {
        use std::io::Write;
        let Some(mut guardian) = self.guardian.lock().unwrap().take() else { return };
        if !fsfreeze("--unfreeze", &self.dir) {
            eprintln!("{} could not be thawed", self.dir.display());
        }
        let told = guardian.stdin.take().map(|mut word| word.write_all(b"thawed\n"));
        if !matches!((told, guardian.wait()), (Some(Ok(())), Ok(_))) {
            eprintln!("the guardian of {} was not there", self.dir.display());
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
