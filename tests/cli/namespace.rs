//! A mount namespace of its own, in which no other mount of verfs is to be seen: what "the only
//! mounted one" means does not depend on what else this machine does.

use std::process::{Command, Stdio};

/// What a script in a namespace said.
#[derive(Debug)]
pub struct Said {
    pub stdout: String,
    pub stderr: String,
}

/// Runs a shell script in a namespace of its own. `$VERFS` is the program, `$1` and so on are
/// `args`. Nothing that is mounted in it outlives the script.
pub fn run(script: &str, args: &[&str]) -> Said {
    let prelude = "set -u
        others() { awk '$9 == \"fuse.verfs\" || $8 == \"fuse.verfs\" || $10 == \"fuse.verfs\" {print $5}' /proc/self/mountinfo; }
        clear() { others | while read -r mountpoint; do umount -l -c \"$mountpoint\"; done; }
        clear
        trap clear EXIT
        ";
    let output = Command::new("timeout")
        .args(["120", "unshare", "-m", "--propagation", "private", "sh", "-c"])
        .arg(format!("{prelude}{script}"))
        .arg("sh")
        .args(args)
        .env("VERFS", env!("CARGO_BIN_EXE_verfs"))
        .env_remove("VERFS_STORE")
        .env_remove("VERFS_FAULT")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_ne!(output.status.code(), Some(124), "the script did not end: {output:?}");
    Said {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
