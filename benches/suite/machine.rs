//! What machine this is: without it a figure says nothing.

use super::stage::Outcome;
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::process::Command;

#[derive(Serialize)]
pub struct Machine {
    pub date: String,
    pub verfs: String,
    pub kernel: String,
    pub system: String,
    pub processor: String,
    pub processors: usize,
    pub memory_gib: u64,
    pub disk: String,
    /// Load average of the minute before the run.
    pub load: String,
    /// What of it moves figures, a sentence each.
    pub peculiar: Vec<&'static str>,
}

impl Machine {
    /// `scratch` lies on the disk that is measured.
    pub fn look(scratch: &Path) -> Outcome<Machine> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str, mark: char| {
            let line = text.lines().find(|line| line.starts_with(key)).and_then(|line| line.split_once(mark));
            line.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().trim_matches('"').to_owned())
        };
        let uname = rustix::system::uname();
        let memory = value(&read("/proc/meminfo"), "MemTotal", ':');
        let kib: u64 = memory.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let today = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        Ok(Machine {
            date: today.chars().take(10).collect(),
            verfs: version(),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            system: value(&read("/etc/os-release"), "PRETTY_NAME", '='),
            processor: value(&read("/proc/cpuinfo"), "model name", ':'),
            processors: std::thread::available_parallelism()?.get(),
            // The kernel keeps some of it for itself before it counts.
            memory_gib: kib.div_ceil(1 << 20),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            disk: disk_of(scratch).unwrap_or_else(|| "unknown".to_owned()),
            peculiar: peculiar(),
        })
    }

    pub fn words(&self) -> String {
        let words = format!(
            "Machine: {} processors ({}), {} GiB of memory, {}, {}, scratch directory on {}; load average {} before the run. verfs {}, {}.",
            self.processors,
            self.processor,
            self.memory_gib,
            self.system,
            self.kernel,
            self.disk,
            self.load,
            self.verfs,
            self.date
        );
        self.peculiar.iter().fold(words, |words, sentence| format!("{words} {sentence}"))
    }
}

fn peculiar() -> Vec<&'static str> {
    let mut found = Vec::new();
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut names = names.filter_map(|process| fs::read_to_string(process.path().join("comm")).ok());
    if names.any(|name| name.starts_with("kdamond")) {
        found.push("Its kernel takes pages out of the page cache by itself (DAMON), so what is hot is read again now and then: that shows as upcalls.");
    }
    let poll = fs::read_to_string("/sys/module/haltpoll/parameters/guest_halt_poll_ns");
    if poll.is_ok_and(|nanoseconds| nanoseconds.trim() == "0") {
        found.push("Its idle processors halt at once (guest_halt_poll_ns is 0), so that waking one, as every upcall does, takes long.");
    }
    found
}

/// The version, and the commit if this is a checkout.
fn version() -> String {
    let commit = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| format!(" ({})", String::from_utf8_lossy(&output.stdout).trim()))
        .unwrap_or_default();
    format!("{}{commit}", env!("CARGO_PKG_VERSION"))
}

/// File system and kind of the disk, such as "ext4 on virtio".
fn disk_of(scratch: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let (device, _, kind) = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?, words.next()?))
        })
        .filter(|(_, at, _)| scratch.starts_with(at))
        .max_by_key(|(_, at, _)| at.len())?;
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    let turns = fs::read_to_string(format!("/sys/block/{name}/queue/rotational")).unwrap_or_default();
    let what = match (name.starts_with("vd"), turns.trim()) {
        (true, _) => "a virtual disk",
        (_, "0") => "a solid state disk",
        (_, "1") => "a disk that turns",
        _ => "a disk of unknown kind",
    };
    Some(format!("{kind}, {what}"))
}
