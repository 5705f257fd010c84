//! Sixty-four who write at the same time, and what must be there when they are done.

use super::shop::{Shop, random};
use super::support::chance::Chance;
use super::support::user::WWW_DATA;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread::{Scope, ScopedJoinHandle};

/// How many there are.
pub const WRITERS: usize = 64;
/// So many overwrite an upload of their own, in three directories.
const OVERWRITING: usize = 24;
/// So many make a file each, in four directories.
const MAKING: usize = 8;
const MAKING_IN: usize = 4;
/// The others append a line each, to these many logs in two directories.
const LOGS: usize = 8;
/// Requests that wait when all of them are stuck: of those who make files in one directory, and of those who append
/// to one file, the kernel lets one through at a time.
pub const REQUESTS: usize = OVERWRITING + MAKING_IN + LOGS;

/// What one of them does.
enum Task {
    Overwrite,
    Make,
    Append,
}

/// One of them.
struct Writer {
    task: Task,
    /// Below the scope.
    path: String,
    /// What is written.
    content: Vec<u8>,
}

/// All of them, in a round of their own: their files are named after it.
pub struct Writers {
    round: usize,
    all: Vec<Writer>,
}

/// What is in an upload or a log beforehand.
const BEFORE: &[u8] = b"before\n";

impl Writers {
    /// Puts what they need into the store, which is not mounted.
    pub fn new(shop: &Shop, round: usize) -> Writers {
        let writers = Writers { round, all: (0..WRITERS).map(|number| writer(round, number)).collect() };
        for writer in &writers.all {
            match writer.task {
                Task::Make => shop.dir(writer.path.rsplit_once('/').unwrap().0),
                Task::Overwrite | Task::Append => shop.upload(&writer.path, BEFORE),
            }
        }
        writers
    }

    /// The directories that they write in, below the scope; some more than once.
    pub fn dirs(&self) -> impl Iterator<Item = &str> {
        self.all.iter().filter_map(|writer| Some(writer.path.rsplit_once('/')?.0))
    }

    /// Starts them, every other as the web server's user.
    pub fn start<'s>(&'s self, threads: &'s Scope<'s, '_>, scope: &'s Path) -> Vec<ScopedJoinHandle<'s, ()>> {
        let start = |(number, writer): (usize, &'s Writer)| {
            threads.spawn(move || match number % 2 {
                0 => writer.write(scope),
                _ => WWW_DATA.work_in(Path::new("/"), || writer.write(scope)),
            })
        };
        self.all.iter().enumerate().map(start).collect()
    }

    /// Everything that they wrote is there, once, below this directory.
    pub fn are_done(&self, scope: &Path) {
        let read = |path: &str| fs::read(scope.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        for writer in &self.all {
            match writer.task {
                Task::Overwrite | Task::Make => assert!(read(&writer.path) == writer.content, "{}", writer.path),
                Task::Append => {}
            }
        }
        for log in 0..LOGS {
            let path = log_path(self.round, log);
            let content = read(&path);
            let mut lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
            assert_eq!(lines.remove(0), BEFORE, "the first line of {path}");
            let wanted = self.all.iter().filter(|writer| matches!(writer.task, Task::Append) && writer.path == path);
            let wanted: BTreeSet<&[u8]> = wanted.map(|writer| &writer.content[..]).collect();
            assert_eq!(lines.len(), wanted.len(), "lines in {path}");
            assert!(lines.into_iter().collect::<BTreeSet<_>>() == wanted, "another line in {path}");
        }
    }
}

fn log_path(round: usize, log: usize) -> String {
    format!("log-{}/{round}-{log}.log", log % 2)
}

/// From 1 to 64 KiB.
fn writer(round: usize, number: usize) -> Writer {
    let seed = (round * 1000 + number) as u64;
    let len = 1024 + Chance::new(seed).below(63 * 1024);
    if number < OVERWRITING {
        let path = format!("write-{}/{round}-{number}.dat", number % 3);
        return Writer { task: Task::Overwrite, path, content: random(seed, len) };
    }
    if number < OVERWRITING + MAKING {
        let path = format!("make-{}/{round}-{number}.dat", number % MAKING_IN);
        return Writer { task: Task::Make, path, content: random(seed, len) };
    }
    let mut line = format!("{round} {number} ").into_bytes();
    line.extend(random(seed, len - line.len() - 1).iter().map(|byte| b'a' + byte % 26));
    line.push(b'\n');
    Writer { task: Task::Append, path: log_path(round, number % LOGS), content: line }
}

impl Writer {
    fn write(&self, scope: &Path) {
        let path = scope.join(&self.path);
        let mut options = File::options();
        match self.task {
            Task::Overwrite => options.write(true),
            Task::Make => options.write(true).create_new(true),
            Task::Append => options.append(true),
        };
        let mut file = options.open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // One call: of a line that is written in two, others could write in between.
        let wrote = file.write(&self.content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(wrote, self.content.len(), "{}", path.display());
    }
}
