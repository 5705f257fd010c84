//! Whatever makes the readers' life harder, and judges nothing: walkers that are stopped and
//! killed, caches that are dropped.

use crate::chance::Chance;
use crate::pace::Member;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Starts walkers over the mount, stops them, lets them go on, kills most of them.
pub fn walkers(mount: &Path, member: &Member<'_>, seed: u64) {
    let mut chance = Chance::new(seed);
    while member.goes_on() {
        let mut walker = Walker::start(mount, &mut chance);
        let moments = 1 + chance.below(6);
        for _ in 0..moments {
            pause(&mut chance, 8_000);
            walker.signal(Signal::STOP);
            pause(&mut chance, 8_000);
            walker.signal(Signal::CONT);
            if member.is_called() {
                break;
            }
        }
        if chance.percent(70) {
            walker.signal(Signal::KILL);
        }
        walker.end(Duration::from_millis(300));
    }
}

/// Drops the kernel's dentries and inodes every few milliseconds.
pub fn dropper(member: &Member<'_>, every_us: usize, seed: u64) {
    let mut chance = Chance::new(seed);
    while member.goes_on() {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        pause(&mut chance, every_us);
    }
}

fn pause(chance: &mut Chance, most_us: usize) {
    thread::sleep(Duration::from_micros(chance.below(most_us) as u64));
}

struct Walker(Child);

impl Walker {
    fn start(mount: &Path, chance: &mut Chance) -> Walker {
        let mut command = match chance.below(3) {
            0 => {
                let mut find = Command::new("find");
                find.arg(mount).args(["-printf", "%s %T@ %l\\n"]);
                find
            }
            1 => {
                let mut grep = Command::new("grep");
                grep.args(["-rqs", "what no file says"]).arg(mount);
                grep
            }
            _ => {
                let mut list = Command::new("ls");
                list.arg("-lRU").arg(mount);
                list
            }
        };
        let quiet = command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        Walker(quiet.stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        let _ = kill_process(pid, signal);
    }

    /// Waits for it, and kills it when it takes too long.
    fn end(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        while self.0.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                self.0.kill().unwrap();
                self.0.wait().unwrap();
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
