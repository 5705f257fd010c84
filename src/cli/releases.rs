//! Verbs that show what there is.

use super::output::{Output, show_bytes, show_path, table};
use super::which;
use crate::error::Result;
use crate::fs::media;
use crate::protocol::{
    Change, Difference, EncodedPath, How, Listed, LogLine, Shadowed, ShadowedName, State, StoreStatus, Switching, Time,
    request,
};
use crate::store::Store;
use crate::store::active::Active;
use crate::store::journal::Journal;
use crate::store::release::manifest::Manifest;
use crate::tree::{ChangedEntry, Kind, ReleaseName, Side, Tree, change_set};
use crate::worker::unmounted;
use std::path::Path;
use std::time::Duration;

const STATUS_WAIT: Duration = Duration::from_secs(10);

/// What is served, since when
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs status --json")]
pub(super) struct Status {
    /// List what uploads and removals hide of the active release instead
    #[arg(long)]
    shadowed: bool,
}

/// The releases of the store
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs list")]
pub(super) struct List {}

/// The journal: what was done to the store, by whom
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs log -n 20")]
pub(super) struct Log {
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
}

/// The paths in which two releases differ
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs diff 02 03\nA added, D deleted, M content, T kind, P mode or owner")]
pub(super) struct Diff {
    /// The release before
    a: String,
    /// The release after
    b: String,
}

pub(super) fn status(verb: &Status, store: Option<&Path>, output: Output) -> Result<()> {
    let store = which::store(store)?;
    if verb.shadowed {
        return shadowed(&store, output);
    }
    let status = match which::daemon(&store)? {
        Some(mut daemon) => daemon.call(request::Status {}, STATUS_WAIT)?,
        None => store.status(store.active()?.as_ref()),
    };
    output.result(&status, || status_text(&status));
    Ok(())
}

fn shadowed(store: &Store, output: Output) -> Result<()> {
    let name = |(path, how): (Vec<u8>, media::How)| ShadowedName {
        path: EncodedPath::from(&path[..]),
        how: match how {
            media::How::Removed => How::Removed,
            media::How::Replaced => How::Replaced,
        },
    };
    let value = Shadowed { shadowed: unmounted::shadowed(store)?.into_iter().map(name).collect() };
    output.result(&value, || {
        let line = |ShadowedName { path, how }: &ShadowedName| {
            let word = match how {
                How::Removed => "removed",
                How::Replaced => "replaced",
            };
            format!("{word} {}\n", show_path(&path.decode()))
        };
        let count = value.shadowed.len();
        value.shadowed.iter().map(line).collect::<String>()
            + &format!("{count} of the release are hidden; `verfs media restore PATH` shows one again\n")
    });
    Ok(())
}

fn status_text(status: &StoreStatus) -> String {
    fn or_dash(value: Option<&impl ToString>) -> String {
        value.map_or("-".to_owned(), ToString::to_string)
    }
    let mut lines = vec![
        ["store", &status.store.to_string()].map(str::to_owned),
        ["mounted on", &or_dash(status.mountpoint.as_ref())].map(str::to_owned),
        ["release", &or_dash(status.release.as_ref())].map(str::to_owned),
        ["since", &or_dash(status.since.as_ref())].map(str::to_owned),
        ["previous", &or_dash(status.previous.as_ref())].map(str::to_owned),
        ["switches", &status.switches.to_string()].map(str::to_owned),
        ["process", &or_dash(status.worker_pid.as_ref())].map(str::to_owned),
    ];
    let mut line = |word: &str, text: String| lines.push([word.to_owned(), text]);
    if let Some(Switching { from, to, phase, since }) = &status.switching {
        line("switching", format!("{} -> {to}, phase {phase}, since {since}", or_dash(from.as_ref())));
    }
    for limit in &status.limits {
        let used = limit.used_bytes.map_or("not measured yet".to_owned(), show_bytes);
        line("limit", format!("{}: {used} of {}", limit.path, show_bytes(limit.limit_bytes)));
    }
    for refusal in &status.refused.most {
        let path = show_path(&refusal.path.decode());
        line("refused", format!("{} x {path} by user {}: {}", refusal.count, refusal.uid, refusal.why));
    }
    for degraded in &status.degraded {
        line("degraded", degraded.clone());
    }
    let counted = status.upcalls.iter().filter(|(_, count)| **count > 0);
    let upcalls: Vec<String> = counted.map(|(name, count)| format!("{name} {count}")).collect();
    if !upcalls.is_empty() {
        line("upcalls", upcalls.join(", "));
    }
    table(&lines.into_iter().map(Vec::from).collect::<Vec<_>>())
}

pub(super) fn list(_verb: &List, store: Option<&Path>, output: Output) -> Result<()> {
    let store = which::store(store)?;
    let active = store.active()?;
    let releases = store.releases()?;
    let mut listed: Vec<Listed> = releases.iter().map(|name| look_at(&store, name, active.as_ref())).collect();
    // Damaged ones last.
    listed.sort_by_key(|release| release.added.unwrap_or(Time(i64::MAX)));
    output.result(&listed, || {
        let head = ["RELEASE", "FILES", "SIZE", "ADDED", "STATE"].map(str::to_owned).to_vec();
        table(&std::iter::once(head).chain(listed.iter().map(list_row)).collect::<Vec<_>>())
    });
    Ok(())
}

fn look_at(store: &Store, name: &ReleaseName, active: Option<&Active>) -> Listed {
    let is_active = active.is_some_and(|active| active.release == name.as_str());
    let is_previous = active.is_some_and(|active| active.previous.as_deref() == Some(name.as_str()));
    let listed = Listed {
        name: name.to_string(),
        files: None,
        bytes: None,
        added: None,
        active: is_active,
        state: Some(State::Damaged),
        error: None,
    };
    match store.manifest(name) {
        Ok(manifest) => Listed {
            files: Some(manifest.files()),
            bytes: Some(manifest.content_bytes()),
            added: Some(Time(manifest.added())),
            state: is_active.then_some(State::Active).or(is_previous.then_some(State::Previous)),
            ..listed
        },
        Err(error) => Listed { error: Some(error.to_string()), ..listed },
    }
}

fn list_row(release: &Listed) -> Vec<String> {
    let dash = || "-".to_owned();
    let state = match (&release.error, release.state) {
        (Some(error), _) => error,
        (None, Some(State::Active)) => "active",
        (None, Some(State::Previous)) => "previous",
        (None, Some(State::Damaged)) => "damaged",
        (None, None) => "",
    };
    vec![
        release.name.clone(),
        release.files.map_or_else(dash, |files| files.to_string()),
        release.bytes.map_or_else(dash, show_bytes),
        release.added.map_or_else(dash, |added| added.to_string()),
        state.to_owned(),
    ]
}

pub(super) fn log(verb: &Log, store: Option<&Path>, output: Output) -> Result<()> {
    let Journal { mut lines, damaged } = which::store(store)?.journal()?;
    damaged.iter().for_each(|damaged| log::warn!("{damaged}"));
    if let Some(most) = verb.lines {
        lines.drain(..lines.len().saturating_sub(most));
    }
    let lines: Vec<LogLine> = lines.into_iter().map(LogLine::from).collect();
    output.result(&lines, || {
        let head = ["TIME", "UID", "ACTION", "FROM", "TO", "RESULT", "MESSAGE"].map(str::to_owned).to_vec();
        table(&std::iter::once(head).chain(lines.iter().map(log_row)).collect::<Vec<_>>())
    });
    Ok(())
}

fn log_row(line: &LogLine) -> Vec<String> {
    let who = match line.sudo_uid {
        Some(sudo) => format!("{} (sudo {sudo})", line.uid),
        None => line.uid.to_string(),
    };
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let said = line.message.clone().or_else(|| line.note.clone()).unwrap_or_default();
    let result = if line.ok { "ok" } else { "failed" }.to_owned();
    vec![line.time.to_string(), who, line.action.clone(), or_dash(&line.from), or_dash(&line.to), result, said]
}

/// How `diff` marks a change.
pub(super) fn letter(change: Change) -> char {
    match change {
        Change::Added => 'A',
        Change::Deleted => 'D',
        Change::Content => 'M',
        Change::Kind => 'T',
        Change::Permission => 'P',
    }
}

/// The paths in which two releases differ, sorted.
pub(super) fn differences(old: &Manifest, new: &Manifest) -> Result<Vec<Difference>> {
    let mut found: Vec<(Vec<u8>, Change)> = Vec::new();
    let set = change_set(old, new)?;
    for ChangedEntry { side, index, .. } in &set.entries {
        let path = if *side == Side::Old { old } else { new }.path_of(*index)?;
        let change = match (old.find_path(&path)?, new.find_path(&path)?) {
            (None, _) => Change::Added,
            (_, None) => Change::Deleted,
            (Some(o), Some(n)) => {
                let (a, b) = (old.node(o)?, new.node(n)?);
                if a.kind != b.kind {
                    Change::Kind
                } else if a.kind != Kind::Dir && old.digest(o)? != new.digest(n)? {
                    Change::Content
                } else {
                    Change::Permission
                }
            }
        };
        found.push((path, change));
    }
    for dir in &set.dirs {
        let path = if dir.side == Side::Old { old } else { new }.path_of(dir.index)?;
        if let (Some(o), Some(n)) = (old.find_path(&path)?, new.find_path(&path)?) {
            let (a, b) = (old.node(o)?, new.node(n)?);
            if a.kind == b.kind && (a.mode != b.mode || a.owner != b.owner) {
                found.push((path, Change::Permission));
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found.iter().map(|(path, change)| Difference { change: *change, path: EncodedPath::from(&path[..]) }).collect())
}

pub(super) fn diff(verb: &Diff, store: Option<&Path>, output: Output) -> Result<()> {
    let store = which::store(store)?;
    let (old, new) = (store.manifest(&verb.a.parse()?)?, store.manifest(&verb.b.parse()?)?);
    let found = differences(&old, &new)?;
    output.result(&found, || {
        let line = |found: &Difference| format!("{} {}\n", letter(found.change), show_path(&found.path.decode()));
        found.iter().map(line).collect()
    });
    Ok(())
}
