//! A child that cleans up behind a test process that does not live to do it.
//!
//! A thread that waits for a disk cannot be ended, and keeps every descriptor of its process open: so the end of the
//! process is seen by its state, and what it waits for must be let go from outside.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Waits until the test process is gone, or has ended but for threads that cannot.
const WATCH: &str = r#"
while kill -0 "$PPID" && ! grep -q '^State:.Z' "/proc/$PPID/status"; do sleep 0.5; done
"#;

/// Watches until it is dropped.
pub struct Guardian(Child);

impl Guardian {
    /// If this process ends before the value does, `script` is run (sh(1)); `$0` in it is `argument`.
    pub fn start(script: &str, argument: impl AsRef<OsStr>) -> Guardian {
        let mut sh = Command::new("sh");
        sh.arg("-c").arg(format!("{WATCH}{script}")).arg(argument);
        sh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        // A signal to the test's group must not end it before its work.
        Guardian(sh.process_group(0).spawn().unwrap())
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
