//! What the page cache holds.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes of a file that are in memory.
pub fn resident(path: &Path) -> u64 {
    let mut fincore = Command::new("fincore");
    let output = fincore.args(["--bytes", "--noheadings", "--output", "RES"]).arg(path).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    told.trim().parse().unwrap_or_else(|_| panic!("fincore: {output:?}"))
}

/// Waits until at most so much of a file is in memory: pages are let go a moment after they were used.
pub fn wait_until_let_go(path: &Path, most: u64) {
    let end = Instant::now() + Duration::from_secs(20);
    while resident(path) > most {
        assert!(Instant::now() < end, "{} bytes of {} are in memory", resident(path), path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
