//! Uploaders and deleters of a writable directory, and the comparison of what they were told with what is there.
//!
//! Owns: the six ways of working, and what each worker knows of the directory that it alone writes to.
//! The rule: what every call has acknowledged is there, byte for byte, until its own writer replaces or deletes it; what
//! was deleted stays away. Each worker checks a name before it touches it again, and `Known` compares all that is left.
//! The tests and the example `visitors` share this file; it knows nothing of verfs, only of a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// No round of a worker within this time means that it is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many complaints are kept word for word; the rest is only counted.
const COMPLAINTS_KEPT: usize = 12;
/// A file that is appended to is started anew after so many lines.
const LINES: u64 = 1000;
/// A deleter removes what it made so many rounds ago.
const AGE: u64 = 10;
/// Of what lay in a deleter's directory before it came, it removes one in so many rounds.
const ROUNDS_A_VICTIM: u64 = 5;

/// One round of a worker.
type Way = fn(&mut Worker, u64) -> io::Result<()>;

/// Each worker's directory, and how it works.
const WAYS: [(&str, Way); 6] = [
    ("renamed", write_and_rename),
    ("moved", write_and_move),
    ("truncated", truncate_and_write),
    ("appended", append),
    ("deleted-1", make_and_delete),
    ("deleted-2", make_and_delete),
];

/// The directories of the two deleters: what is in them from the start gets deleted too.
pub const DELETED: [&str; 2] = ["deleted-1", "deleted-2"];

/// Four uploaders and two deleters in a directory.
pub struct Uploads {
    dir: PathBuf,
    pause: Duration,
    /// What each of them has done.
    rounds: [AtomicU64; WAYS.len()],
}

impl Uploads {
    /// To be done in `dir`, with a pause after each round.
    pub fn new(dir: &Path, pause: Duration) -> Self {
        Uploads { dir: dir.to_owned(), pause, rounds: Default::default() }
    }

    /// Works until told to stop, as the owner of the directory. Gives what must be there now.
    pub fn work_until(&self, stop: &AtomicBool) -> Known {
        thread::scope(|scope| {
            let workers: Vec<_> = WAYS
                .iter()
                .zip(&self.rounds)
                .map(|((name, way), rounds)| scope.spawn(|| self.work(name, *way, rounds, stop)))
                .collect();
            let mut known = Known::default();
            for worker in workers {
                match worker.join() {
                    Ok(other) => known.merge(other),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            known
        })
    }

    fn work(&self, name: &'static str, way: Way, rounds: &AtomicU64, stop: &AtomicBool) -> Known {
        let mut worker = Worker { dir: self.dir.join(name), name, victims: Vec::new(), known: Known::default() };
        let mut done = become_owner_of(&self.dir).and_then(|()| worker.settle());
        let mut round = 0;
        while done.is_ok() && !stop.load(SeqCst) {
            done = way(&mut worker, round);
            round += 1;
            rounds.store(round, SeqCst);
            thread::sleep(self.pause);
        }
        if let Err(error) = done {
            worker.known.complain(format!("{name}, round {round}: {error}"));
            // Nobody needs to wait for it any more: what went wrong is said at the end.
            rounds.store(u64::MAX, SeqCst);
        }
        worker.known.untouched = worker.victims.iter().map(|victim| worker.key(victim)).collect();
        worker.known
    }

    /// Waits until each of them has come to the end of another round.
    pub fn wait_for_a_round(&self) {
        let deadline = Instant::now() + PATIENCE;
        for rounds in &self.rounds {
            let goal = rounds.load(SeqCst).saturating_add(1);
            while rounds.load(SeqCst) < goal {
                assert!(Instant::now() < deadline, "the uploaders are stuck");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Makes the calling thread, if it is root's, the owner's.
fn become_owner_of(dir: &Path) -> io::Result<()> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let owner = fs::metadata(dir)?;
    if owner.uid() != rustix::process::geteuid().as_raw() {
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid()), rustix::fs::Gid::from_raw(owner.gid()));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    Ok(())
}

/// One of them, in a directory of its own.
struct Worker {
    dir: PathBuf,
    name: &'static str,
    /// What lay there from the start.
    victims: Vec<String>,
    known: Known,
}

impl Worker {
    fn settle(&mut self) -> io::Result<()> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        self.victims = names(&self.dir)?;
        Ok(())
    }

    fn at(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    fn key(&self, file: &str) -> String {
        format!("{}/{file}", self.name)
    }

    /// Something that no other file and no other round writes.
    fn content(&self, file: &str, round: u64) -> Vec<u8> {
        // Most are small; some need many writes of the kernel's largest size.
        let size = if round % 50 == 49 { 400_000 } else { round * 7919 % 20_000 };
        let line = format!("{}/{file}, round {round}\n", self.name);
        line.bytes().cycle().take(size as usize).collect()
    }

    /// Compares a file with what is known of it, before it changes.
    fn check(&mut self, file: &str) {
        let (dir, key) = (self.dir.clone(), self.key(file));
        self.known.check(&key, "before it changed", &mut |_| read(&dir.join(file)));
    }

    fn uploaded(&mut self, file: &str, content: Vec<u8>) {
        let key = self.key(file);
        self.known.uploads += 1;
        self.known.gone.remove(&key);
        self.known.there.insert(key, content);
    }

    fn delete(&mut self, file: &str) -> io::Result<()> {
        fs::remove_file(self.at(file))?;
        let key = self.key(file);
        self.known.deletions += 1;
        self.known.there.remove(&key);
        self.known.gone.insert(key);
        Ok(())
    }
}

/// A new file, renamed over the old one.
fn write_and_rename(worker: &mut Worker, round: u64) -> io::Result<()> {
    let file = format!("{}", round % 200);
    worker.check(&file);
    let content = worker.content(&file, round);
    fs::write(worker.at("partial"), &content)?;
    fs::rename(worker.at("partial"), worker.at(&file))?;
    worker.uploaded(&file, content);
    Ok(())
}

/// A new file, moved over the old one from another directory.
fn write_and_move(worker: &mut Worker, round: u64) -> io::Result<()> {
    let file = format!("{}", round % 200);
    worker.check(&file);
    let content = worker.content(&file, round);
    fs::create_dir_all(worker.at("incoming"))?;
    fs::write(worker.at("incoming/partial"), &content)?;
    fs::rename(worker.at("incoming/partial"), worker.at(&file))?;
    worker.uploaded(&file, content);
    Ok(())
}

/// The same file, emptied and written again; now and then it is synced.
fn truncate_and_write(worker: &mut Worker, round: u64) -> io::Result<()> {
    let file = format!("{}", round % 50);
    worker.check(&file);
    let content = worker.content(&file, round);
    let mut open = File::create(worker.at(&file))?;
    open.write_all(&content)?;
    if round.is_multiple_of(7) {
        open.sync_all()?;
    }
    worker.uploaded(&file, content);
    Ok(())
}

/// A line more, with a descriptor of its own, as a log is written.
fn append(worker: &mut Worker, round: u64) -> io::Result<()> {
    let file = format!("{}", round / LINES % 8);
    if round.is_multiple_of(LINES) {
        worker.check(&file);
        if worker.known.there.contains_key(&worker.key(&file)) {
            worker.delete(&file)?;
        }
    }
    let line = format!("line {round}\n");
    File::options().append(true).create(true).open(worker.at(&file))?.write_all(line.as_bytes())?;
    let mut content = worker.known.there.remove(&worker.key(&file)).unwrap_or_default();
    content.extend(line.into_bytes());
    worker.uploaded(&file, content);
    Ok(())
}

/// Makes one, and deletes one that it made some rounds ago; now and then also one that it found there.
fn make_and_delete(worker: &mut Worker, round: u64) -> io::Result<()> {
    let name = |round: u64| format!("made-{}", round % 60);
    let file = name(round);
    worker.check(&file);
    let content = worker.content(&file, round);
    File::create_new(worker.at(&file))?.write_all(&content)?;
    worker.uploaded(&file, content);
    if let Some(old) = round.checked_sub(AGE) {
        worker.check(&name(old));
        worker.delete(&name(old))?;
    }
    if round.is_multiple_of(ROUNDS_A_VICTIM)
        && let Some(victim) = worker.victims.pop()
    {
        worker.delete(&victim)?;
    }
    Ok(())
}

/// What the workers were told.
#[derive(Default)]
pub struct Known {
    /// Every file that must be there, by its path below the directory.
    there: BTreeMap<String, Vec<u8>>,
    /// Every path that must not be there.
    gone: BTreeSet<String>,
    /// What was there before, and was not deleted yet.
    untouched: BTreeSet<String>,
    /// Acknowledged uploads, each of them checked before the next one to its name.
    pub uploads: u64,
    /// Acknowledged deletions.
    pub deletions: u64,
    /// Uploads that are not there or not what was written, deletions that did not last, and calls that failed.
    pub lost: u64,
    pub complaints: Vec<String>,
}

impl Known {
    fn merge(&mut self, other: Known) {
        self.there.extend(other.there);
        self.gone.extend(other.gone);
        self.untouched.extend(other.untouched);
        self.uploads += other.uploads;
        self.deletions += other.deletions;
        self.lost += other.lost;
        self.complaints.extend(other.complaints);
        self.complaints.truncate(COMPLAINTS_KEPT);
    }

    /// How many files must be there, and how many must not.
    pub fn count(&self) -> (usize, usize) {
        (self.there.len(), self.gone.len())
    }

    /// Compares everything with what `read` gives for it: the content, or none if it is not there.
    pub fn compare(&mut self, how: &str, mut read: impl FnMut(&str) -> io::Result<Option<Vec<u8>>>) {
        let keys: Vec<String> = self.there.keys().chain(&self.gone).cloned().collect();
        for key in keys {
            self.check(&key, how, &mut read);
        }
    }

    /// Compares everything with what is in the directory, by name and by listing.
    pub fn compare_with(&mut self, dir: &Path, how: &str) {
        self.compare(how, |key| read(&dir.join(key)));
        for (name, _) in WAYS {
            let listed: BTreeSet<String> = match names(&dir.join(name)) {
                Ok(names) => names.into_iter().map(|file| format!("{name}/{file}")).collect(),
                Err(error) => {
                    self.complain(format!("{name}, {how}: {error}"));
                    continue;
                }
            };
            let below = format!("{name}/");
            let all = self.there.keys().chain(&self.untouched);
            let wanted: BTreeSet<String> = all.filter(|key| key.starts_with(&below)).cloned().collect();
            for key in wanted.difference(&listed) {
                self.complain(format!("{key}, {how}: not listed"));
            }
            for key in listed.difference(&wanted) {
                self.complain(format!("{key}, {how}: listed, and should not be there"));
            }
        }
    }

    fn check(&mut self, key: &str, how: &str, read: &mut dyn FnMut(&str) -> io::Result<Option<Vec<u8>>>) {
        let wrong = match (self.there.get(key), read(key)) {
            (_, Err(error)) => error.to_string(),
            (None, Ok(None)) => return,
            (None, Ok(Some(_))) => "it should not be there".to_owned(),
            (Some(_), Ok(None)) => "it is not there".to_owned(),
            (Some(content), Ok(Some(found))) if *content == found => return,
            (Some(content), Ok(Some(found))) => {
                let same = content.iter().zip(&found).take_while(|(a, b)| a == b).count();
                let (wanted, length) = (content.len(), found.len());
                format!("{length} bytes, not the {wanted} that were written; the first {same} agree")
            }
        };
        self.complain(format!("{key}, {how}: {wrong}"));
    }

    fn complain(&mut self, text: String) {
        self.lost += 1;
        if self.complaints.len() < COMPLAINTS_KEPT {
            self.complaints.push(text);
        }
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The files of a directory.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}
