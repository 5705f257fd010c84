//! The journal: one line of JSON per add, switch, rollback, remove and gc, each with a checksum (see sealed.rs).
//!
//! ```text
//! journal.jsonl      the newest lines, up to 1 MiB
//! journal.jsonl.N    older ones; the higher N, the newer. 16 are kept
//! ```
//!
//! Any process may append at any time, and none waits for another: a line is one write(2) at the end of the file, and
//! the file is put aside by one rename to a number that is free.

use super::durable::with_reserve;
use super::sealed::{self, Flaw};
use super::{Store, settings};
use crate::error::{Context, Result};
use crate::fault;
use crate::protocol::{LogLine, Time};
use rustix::fs::{AtFlags, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A longer file is put aside, in bytes: about 5000 lines.
const FULL: u64 = 1 << 20;
/// How many files that were put aside are kept.
const KEPT: usize = 16;
/// What verfs 0.1 wrote into a line.
const KEYS_OF_0_1: &[&str] = &["time", "uid", "sudo_uid", "action", "from", "to", "message", "ok", "switch", "note"];

const NAME: &str = "journal.jsonl";
const ASIDE: &str = "journal.jsonl.";

/// The number of a file that was put aside, by its name.
pub(super) fn number_aside(name: &str) -> Option<u64> {
    name.strip_prefix(ASIDE)?.parse().ok()
}

/// A line of the journal.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Line {
    /// When.
    pub time: Time,
    /// Who asked, as the kernel knows it.
    pub uid: u32,
    /// Who asked before sudo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_uid: Option<u32>,
    /// add, switch, rollback, remove, gc, adopt, restore.
    pub action: String,
    /// The release that was active before.
    pub from: Option<String>,
    /// The release that was added, removed or made active.
    pub to: Option<String>,
    /// What was said with `-m`.
    pub message: Option<String>,
    /// Whether it was done.
    pub ok: bool,
    /// The number of the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<u32>,
    /// Why it was not done, or how it came to stand here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Who asked for something, for the journal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asker {
    /// The user id of the process.
    pub uid: u32,
    /// The user behind sudo.
    pub sudo_uid: Option<u32>,
}

impl Asker {
    /// This process, and the user who ran it by sudo.
    pub fn this_process() -> Self {
        Self {
            uid: rustix::process::getuid().as_raw(),
            sudo_uid: std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok()),
        }
    }
}

impl Line {
    /// A line for something that was done now.
    pub fn done(action: &str, asker: Asker) -> Self {
        Self {
            time: Time(super::now()),
            uid: asker.uid,
            sudo_uid: asker.sudo_uid,
            action: action.to_owned(),
            ok: true,
            ..Self::default()
        }
    }
}

impl From<Line> for LogLine {
    fn from(line: Line) -> Self {
        let Line { time, uid, sudo_uid, action, from, to, message, ok, switch, note } = line;
        Self { time, uid, sudo_uid, action, from, to, message, ok, switch, note }
    }
}

/// What the journal says.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// All whole lines, oldest first.
    pub lines: Vec<Line>,
    /// The damaged ones, a sentence each.
    pub damaged: Vec<String>,
}

impl Journal {
    /// Adds the lines of a file. One that a crash cut off is left out: what it told of is noted again.
    fn read(&mut self, path: &Path, file: File) -> Result<()> {
        for (number, line) in (1..).zip(BufReader::new(file).split(b'\n')) {
            let line = line.context(|| format!("reading {}", path.display()))?;
            match sealed::open(&line, KEYS_OF_0_1) {
                Ok(line) => self.lines.push(line),
                Err(Flaw::CutOff) => {}
                Err(flaw) => self.damaged.push(format!(
                    "line {number} of {} is damaged ({flaw}); the other lines can be read",
                    path.display()
                )),
            }
        }
        Ok(())
    }
}

impl Store {
    fn journal_path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Adds a line, durably.
    pub fn write_journal(&self, line: &Line) -> Result<()> {
        fault::point("journal.before");
        let text = sealed::seal(line)?;
        if let Err(error) = self.rotate_journal() {
            log::warn!("{error}: the journal goes on growing");
        }
        with_reserve(self.dir(), || {
            let what = || format!("writing {}", self.journal_path(NAME).display());
            let mut file = self.dir().open_file(NAME, OFlags::RDWR | OFlags::CREATE | OFlags::APPEND)?;
            // A line that was cut off must not swallow this one.
            let bytes = if ends_in_newline(&mut file).context(what)? { text.clone() } else { [b"\n", &*text].concat() };
            file.write_all(&bytes).and_then(|()| file.sync_data()).context(what)
        })?;
        fault::point("journal.after");
        Ok(())
    }

    /// Puts a full journal aside, and removes the oldest that was. verfs 0.1 knows of one file only.
    fn rotate_journal(&self) -> Result<()> {
        let what = || format!("putting {} aside", self.journal_path(NAME).display());
        let len = match rustix::fs::statat(self.dir(), NAME, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat.st_size as u64,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).context(what),
        };
        if len < FULL || self.settings().format() < settings::SEALED {
            return Ok(());
        }
        let mut aside = self.old_journals()?;
        let number = aside.last().map_or(0, |(number, _)| *number).saturating_add(1);
        let to = format!("{ASIDE}{number}");
        match rustix::fs::renameat_with(self.dir(), NAME, self.dir(), &to, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // Another process was faster.
            Err(Errno::NOENT | Errno::EXIST) => return Ok(()),
            Err(error) => return Err(error).context(what),
        }
        self.dir().sync()?;
        fault::point("journal.rotated");
        aside.push((number, to));
        for (_, oldest) in &aside[..aside.len().saturating_sub(KEPT)] {
            let shown = self.journal_path(oldest);
            match rustix::fs::unlinkat(self.dir(), oldest, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => log::info!("removed {}, the oldest of the journal", shown.display()),
                Err(error) => return Err(error).context(|| format!("removing {}", shown.display())),
            }
        }
        Ok(())
    }

    /// The files that were put aside, oldest first.
    fn old_journals(&self) -> Result<Vec<(u64, String)>> {
        let numbered = |name: String| Some((number_aside(&name)?, name));
        let mut found: Vec<_> = self.dir().names()?.into_iter().filter_map(numbered).collect();
        found.sort();
        Ok(found)
    }

    /// The files of the journal, open, oldest first.
    fn journal_files(&self) -> Result<Vec<(PathBuf, File)>> {
        let open = |name: &str| match self.dir().open_file(name, OFlags::RDONLY) {
            Err(error) if error.is_not_found() => Ok(None),
            opened => opened.map(|file| Some((self.journal_path(name), file))),
        };
        // The newest first: if another process puts it aside meanwhile, it is among those that were put aside.
        let newest = open(NAME)?;
        let is_newest = |file: &File| match &newest {
            Some((_, newest)) => Ok::<_, std::io::Error>(file.metadata()?.ino() == newest.metadata()?.ino()),
            None => Ok(false),
        };
        let mut files = Vec::new();
        for (_, name) in self.old_journals()? {
            let Some((path, file)) = open(&name)? else { continue };
            if !is_newest(&file).context(|| format!("looking at {}", path.display()))? {
                files.push((path, file));
            }
        }
        files.extend(newest);
        Ok(files)
    }

    /// All that the journal says, with the files that were put aside.
    pub(crate) fn journal(&self) -> Result<Journal> {
        let mut journal = Journal::default();
        for (path, file) in self.journal_files()? {
            journal.read(&path, file)?;
        }
        Ok(journal)
    }

    /// The number of the last switch that the journal knows. It reads no further back than it must.
    fn last_noted(&self) -> Result<u32> {
        for (path, file) in self.journal_files()?.into_iter().rev() {
            let mut journal = Journal::default();
            journal.read(&path, file)?;
            if let Some(last) = journal.lines.iter().filter_map(|line| line.switch).max() {
                return Ok(last);
            }
        }
        Ok(0)
    }

    /// Writes the line of a switch that was done and then cut off before it could be noted.
    pub fn mend_journal(&self) -> Result<()> {
        let Some(active) = self.active()? else { return Ok(()) };
        if self.last_noted()? >= active.switch {
            return Ok(());
        }
        let mut line = Line::done(if active.rolled_back { "rollback" } else { "switch" }, Asker::default());
        line.time = Time(active.since);
        line.from = active.previous.clone();
        line.to = Some(active.release.clone());
        line.switch = Some(active.switch);
        line.note = Some("noted afterwards: the process that did it was stopped".to_owned());
        self.write_journal(&line)
    }
}

fn ends_in_newline(file: &mut File) -> std::io::Result<bool> {
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(len - 1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}
