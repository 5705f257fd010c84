//! The journal: one line of JSON per add, switch, rollback, remove and gc.

use super::Store;
use super::durable::with_reserve;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::protocol::{LogLine, Time};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};

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

impl Store {
    /// Adds a line, durably.
    pub fn write_journal(&self, line: &Line) -> Result<()> {
        fault::point("journal.before");
        let path = self.root().join("journal.jsonl");
        let mut text = serde_json::to_vec(line).map_err(|error| Error::failed(error.to_string()))?;
        text.push(b'\n');
        with_reserve(self.dir(), || {
            let what = || format!("writing {}", path.display());
            let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path).context(what)?;
            let before = file.metadata().context(what)?.len();
            // A line that a crash cut off must not swallow this one.
            let bytes = if ends_in_newline(&mut file, before).context(what)? {
                text.clone()
            } else {
                [b"\n", &text[..]].concat()
            };
            let written = file.write_all(&bytes).and_then(|()| file.sync_data());
            if written.is_err() {
                let _ = file.set_len(before);
            }
            written.context(what)
        })?;
        fault::point("journal.after");
        Ok(())
    }

    /// All lines, oldest first. One that cannot be read (a crash cut it off) is left out.
    pub fn journal(&self) -> Result<Vec<Line>> {
        let path = self.root().join("journal.jsonl");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(|| format!("reading {}", path.display())),
        };
        let mut lines = Vec::new();
        for line in BufReader::new(file).split(b'\n') {
            let line = line.context(|| format!("reading {}", path.display()))?;
            if let Ok(line) = serde_json::from_slice(&line) {
                lines.push(line);
            }
        }
        Ok(lines)
    }

    /// Writes the line of a switch that was done and then cut off before it could be noted.
    pub fn mend_journal(&self) -> Result<()> {
        let Some(active) = self.active()? else { return Ok(()) };
        let noted = self.journal()?.iter().filter_map(|line| line.switch).max().unwrap_or(0);
        if noted >= active.switch {
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

fn ends_in_newline(file: &mut File, len: u64) -> std::io::Result<bool> {
    if len == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(len - 1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}
