//! A client that holds a directory's lock for ever, as a process of its own: this test program
//! run again, with the one test that does nothing but that.
#![allow(dead_code)] // each of its users needs a part of it

use crate::support::sys;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Which directory the process is to hold.
const HOLD: &str = "VERFS_TEST_HOLD";
/// What it says when it does.
const INSIDE: &str = "inside getdents";

/// A process that is inside getdents, until it is dropped.
pub struct Stuck(Child);

impl Stuck {
    /// Starts it, and waits until it is inside.
    pub fn start(dir: &Path) -> Stuck {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "stays_inside_getdents_until_killed", "--nocapture"])
            .env(HOLD, dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let stuck = Stuck(child);
        let mut lines = BufReader::new(output).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains(INSIDE)), "the client is not stuck");
        stuck
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Its name, as the kernel has it.
    pub fn name(&self) -> String {
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", self.pid())).unwrap();
        comm.trim().to_owned()
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The process's own part.
pub fn stay() {
    let Some(dir) = std::env::var_os(HOLD) else {
        eprintln!("skipped: runs only as the child of another test");
        return;
    };
    let dir = File::open(dir).unwrap();
    let error = sys::stay_inside_getdents(dir.as_fd(), || println!("{INSIDE}"));
    panic!("{error}");
}
