//! Verbs that show what there is.

use super::output::{Output, show_bytes, show_path, table};
use super::which;
use crate::control::protocol::{Request, json_path};
use crate::error::Result;
use crate::fs::media::How;
use crate::store::Store;
use crate::store::journal::{Line, rfc3339};
use crate::store::release::manifest::Manifest;
use crate::tree::{ChangedEntry, Kind, ReleaseName, Side, Tree, change_set};
use crate::worker::unmounted;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

const STATUS_WAIT: Duration = Duration::from_secs(10);

/// What is served, since when
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs status --json")]
pub struct Status {
    /// List what uploads and removals hide of the active release instead
    #[arg(long)]
    shadowed: bool,
}

/// The releases of the store
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs list")]
pub struct List {}

/// The journal: what was done to the store, by whom
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs log -n 20")]
pub struct Log {
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
}

/// The paths in which two releases differ
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs diff 02 03\nA added, D deleted, M content, T kind, P mode or owner")]
pub struct Diff {
    /// The release before
    a: String,
    /// The release after
    b: String,
}

pub fn status(verb: &Status, store: Option<&Path>, output: Output) -> Result<()> {
    let store = which::store(store)?;
    if verb.shadowed {
        return shadowed(&store, output);
    }
    let value = match which::daemon(&store)? {
        Some(mut daemon) => daemon.call(&Request::Status, STATUS_WAIT)?,
        None => offline_status(&store)?,
    };
    output.result(&value, || status_text(&value));
    Ok(())
}

fn shadowed(store: &Store, output: Output) -> Result<()> {
    let found = unmounted::shadowed(store)?;
    let word = |how: How| match how {
        How::Removed => "removed",
        How::Replaced => "replaced",
    };
    let all: Vec<Value> =
        found.iter().map(|(path, how)| json!({ "path": json_path(path), "how": word(*how) })).collect();
    output.result(&json!({ "shadowed": all }), || {
        let lines: String = found.iter().map(|(path, how)| format!("{} {}\n", word(*how), show_path(path))).collect();
        lines + &format!("{} of the release are hidden; `verfs media restore PATH` shows one again\n", found.len())
    });
    Ok(())
}

/// What can be said of a store that is not mounted.
fn offline_status(store: &Store) -> Result<Value> {
    let active = store.active()?;
    Ok(json!({
        "store": store.root().display().to_string(),
        "mountpoint": Value::Null,
        "release": active.as_ref().map(|active| &active.release),
        "previous": active.as_ref().and_then(|active| active.previous.as_ref()),
        "since": active.as_ref().map(|active| rfc3339(active.since)),
        "switch": active.as_ref().map_or(0, |active| active.switch),
        "switches": 0,
        "keeper_pid": Value::Null,
        "worker_pid": Value::Null,
        "upcalls": {},
        "degraded": [],
    }))
}

fn status_text(value: &Value) -> String {
    let word = |key: &str| match &value[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut lines = vec![
        vec!["store".to_owned(), word("store")],
        vec!["mounted on".to_owned(), word("mountpoint")],
        vec!["release".to_owned(), word("release")],
        vec!["since".to_owned(), word("since")],
        vec!["previous".to_owned(), word("previous")],
        vec!["switches".to_owned(), word("switches")],
        vec!["process".to_owned(), word("worker_pid")],
    ];
    if let Some(to) = value["switching"]["to"].as_str() {
        let text = |key: &str| value["switching"][key].as_str().unwrap_or("nothing");
        let (from, phase, since) = (text("from"), text("phase"), text("since"));
        lines.push(vec!["switching".to_owned(), format!("{from} -> {to}, phase {phase}, since {since}")]);
    }
    for limit in value["limits"].as_array().into_iter().flatten() {
        let used = limit["used"].as_u64().map_or("not measured yet".to_owned(), show_bytes);
        let most = show_bytes(limit["limit"].as_u64().unwrap_or_default());
        lines.push(vec![
            "limit".to_owned(),
            format!("{}: {used} of {most}", limit["path"].as_str().unwrap_or_default()),
        ]);
    }
    for refusal in value["refused"]["most"].as_array().into_iter().flatten() {
        let path = refusal["path"].as_str().unwrap_or_default();
        lines.push(vec![
            "refused".to_owned(),
            format!(
                "{} x {} by user {}: {}",
                refusal["count"],
                show_path(path.as_bytes()),
                refusal["uid"],
                refusal["why"].as_str().unwrap_or_default()
            ),
        ]);
    }
    for line in value["degraded"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        lines.push(vec!["degraded".to_owned(), line.to_owned()]);
    }
    if let Some(upcalls) = value["upcalls"].as_object() {
        let busy: Vec<String> = upcalls
            .iter()
            .filter(|(_, count)| count.as_u64() != Some(0))
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        if !busy.is_empty() {
            lines.push(vec!["upcalls".to_owned(), busy.join(", ")]);
        }
    }
    table(&lines)
}

pub fn list(_verb: &List, store: Option<&Path>, output: Output) -> Result<()> {
    let store = which::store(store)?;
    let active = store.active()?;
    let state = |name: &ReleaseName| match &active {
        Some(active) if active.release == name.as_str() => "active",
        Some(active) if active.previous.as_deref() == Some(name.as_str()) => "previous",
        _ => "",
    };
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for name in store.releases()? {
        match store.manifest(&name) {
            Ok(manifest) => {
                rows.push((
                    manifest.added(),
                    vec![
                        name.to_string(),
                        manifest.files().to_string(),
                        show_bytes(manifest.content_bytes()),
                        rfc3339(manifest.added()),
                        state(&name).to_owned(),
                    ],
                ));
                values.push((
                    manifest.added(),
                    json!({
                        "name": name.as_str(), "files": manifest.files(), "bytes": manifest.content_bytes(),
                        "added": rfc3339(manifest.added()), "active": state(&name) == "active", "state": state(&name),
                    }),
                ));
            }
            Err(error) => {
                rows.push((i64::MAX, vec![name.to_string(), "-".into(), "-".into(), "-".into(), error.to_string()]));
                values.push((
                    i64::MAX,
                    json!({
                        "name": name.as_str(), "files": null, "bytes": null, "added": null,
                        "active": state(&name) == "active", "state": "damaged", "error": error.to_string(),
                    }),
                ));
            }
        }
    }
    rows.sort_by_key(|(added, _)| *added);
    values.sort_by_key(|(added, _)| *added);
    let value = Value::Array(values.into_iter().map(|(_, value)| value).collect());
    output.result(&value, || {
        let head = ["RELEASE", "FILES", "SIZE", "ADDED", "STATE"].map(str::to_owned).to_vec();
        table(&std::iter::once(head).chain(rows.into_iter().map(|(_, row)| row)).collect::<Vec<_>>())
    });
    Ok(())
}

pub fn log(verb: &Log, store: Option<&Path>, output: Output) -> Result<()> {
    let mut lines = which::store(store)?.journal()?;
    if let Some(most) = verb.lines {
        lines.drain(..lines.len().saturating_sub(most));
    }
    let value = json!(lines);
    output.result(&value, || {
        let head = ["TIME", "UID", "ACTION", "FROM", "TO", "RESULT", "MESSAGE"].map(str::to_owned).to_vec();
        let row = |line: &Line| {
            let who = match line.sudo_uid {
                Some(sudo) => format!("{} (sudo {sudo})", line.uid),
                None => line.uid.to_string(),
            };
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let said = line.message.clone().or_else(|| line.note.clone()).unwrap_or_default();
            let result = if line.ok { "ok" } else { "failed" }.to_owned();
            vec![line.time.clone(), who, line.action.clone(), or_dash(&line.from), or_dash(&line.to), result, said]
        };
        table(&std::iter::once(head).chain(lines.iter().map(row)).collect::<Vec<_>>())
    });
    Ok(())
}

/// In what way a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Deleted,
    Content,
    Kind,
    Permission,
}

impl Change {
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Deleted => 'D',
            Self::Content => 'M',
            Self::Kind => 'T',
            Self::Permission => 'P',
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Deleted => "deleted",
            Self::Content => "content",
            Self::Kind => "kind",
            Self::Permission => "permission",
        }
    }
}

/// A path that differs.
#[derive(Debug)]
pub struct Difference {
    pub kind: Change,
    pub path: Vec<u8>,
}

/// The paths in which two releases differ, sorted.
pub fn differences(old: &Manifest, new: &Manifest) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    let set = change_set(old, new)?;
    for ChangedEntry { side, index, .. } in &set.entries {
        let path = if *side == Side::Old { old } else { new }.path_of(*index)?;
        let kind = match (old.find_path(&path)?, new.find_path(&path)?) {
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
        found.push(Difference { kind, path });
    }
    for dir in &set.dirs {
        let (side, index) = dir.at;
        let path = if side == Side::Old { old } else { new }.path_of(index)?;
        if let (Some(o), Some(n)) = (old.find_path(&path)?, new.find_path(&path)?) {
            let (a, b) = (old.node(o)?, new.node(n)?);
            if a.kind == b.kind && (a.mode != b.mode || a.owner != b.owner) {
                found.push(Difference { kind: Change::Permission, path });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

pub fn diff(verb: &Diff, store: Option<&Path>, output: Output) -> Result<()> {
    let store = which::store(store)?;
    let (old, new) = (store.manifest(&verb.a.parse()?)?, store.manifest(&verb.b.parse()?)?);
    let found = differences(&old, &new)?;
    let value: Vec<Value> = found
        .iter()
        .map(|Difference { kind, path }| json!({ "change": kind.word(), "path": json_path(path) }))
        .collect();
    output.result(&Value::Array(value), || {
        found.iter().map(|Difference { kind, path }| format!("{} {}\n", kind.letter(), show_path(path))).collect()
    });
    Ok(())
}
