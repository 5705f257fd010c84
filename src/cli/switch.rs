//! `switch` and `rollback`: by the daemon if the store is mounted, else on disk alone.

use super::output::{Output, show_path};
use super::releases::{Difference, differences};
use super::which;
use crate::control::protocol::{Request, json_path};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::journal::Asker;
use crate::store::release::manifest::Manifest;
use crate::switch::{Switcher, Target};
use crate::tree::ReleaseName;
use crate::worker::report;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a daemon may take for a switch, with the wait for a second and the limit for stuck clients.
const SWITCH_WAIT: Duration = Duration::from_secs(1300);
/// How long another command that switches without a daemon, or a daemon that starts, is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Make another release the active one
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs switch 03 -m 'spring prices'")]
pub struct Switch {
    /// The release
    name: String,
    /// A line for the journal
    #[arg(short, long)]
    message: Option<String>,
    /// Only print what would change
    #[arg(long, conflicts_with = "message")]
    dry_run: bool,
}

/// Go back to the release that was active before the last switch, or to the one named
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs rollback -m 'checkout is broken'")]
pub struct Rollback {
    /// The release; else the one before the last switch
    name: Option<String>,
    /// A line for the journal
    #[arg(short, long)]
    message: Option<String>,
}

pub fn switch(verb: &Switch, store: Option<&Path>, output: Output) -> Result<()> {
    let name: ReleaseName = verb.name.parse()?;
    let store = which::store(store)?;
    if verb.dry_run {
        return dry_run(&store, &name, output);
    }
    print(&to(&store, Some(&name), false, verb.message.clone())?, output);
    Ok(())
}

pub fn rollback(verb: &Rollback, store: Option<&Path>, output: Output) -> Result<()> {
    let name: Option<ReleaseName> = verb.name.as_deref().map(str::parse).transpose()?;
    print(&to(&which::store(store)?, name.as_ref(), true, verb.message.clone())?, output);
    Ok(())
}

/// Switches, with a daemon or without, and gives what is printed.
pub fn to(store: &Store, name: Option<&ReleaseName>, rollback: bool, message: Option<String>) -> Result<Value> {
    let request = Target { to: name.cloned(), rollback };
    let target = request.resolve(store, store.active()?.as_ref())?;
    check(&store.manifest(&target)?)?;
    let begun = Instant::now();
    loop {
        if let Some(mut daemon) = which::daemon(store)? {
            let uid = Asker::this_process().sudo_uid;
            let name = name.map(ToString::to_string);
            let request = match (rollback, name) {
                (false, Some(release)) => Request::Switch { release, message, uid },
                (_, release) => Request::Rollback { release, message, uid },
            };
            return daemon.call(&request, SWITCH_WAIT);
        }
        if let Some(lock) = store.lock_active()? {
            let switcher = Switcher::unmounted(store, &lock)?;
            return Ok(report(&switcher.switch(&request, message, Asker::this_process())?));
        }
        if begun.elapsed() > LOCK_WAIT {
            return Err(Error::failed(format!(
                "a process has the store {} locked and does not answer; end it and switch again",
                store.root().display()
            )));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Reads the whole manifest: damage is found before it matters. That is this command's work and not the daemon's, and at
/// a low priority: it can wait for the visitors.
fn check(manifest: &Manifest) -> Result<()> {
    std::thread::scope(|scope| {
        let checking = std::thread::Builder::new().spawn_scoped(scope, || {
            // In Linux the priority is that of the thread.
            let _ = rustix::process::nice(10);
            manifest.verify()
        });
        match checking.map(|thread| thread.join()) {
            Ok(Ok(checked)) => checked,
            _ => manifest.verify(),
        }
    })
}

fn dry_run(store: &Store, name: &ReleaseName, output: Output) -> Result<()> {
    let new = store.manifest(name)?;
    let Some(active) = store.active()? else {
        output.result(&json!({ "from": null, "to": name.as_str(), "changes": [] }), || {
            format!("no release is active; {name} would become the first\n")
        });
        return Ok(());
    };
    let old = store.manifest(&active.release()?)?;
    let found = differences(&old, &new)?;
    let value = json!({
        "from": active.release, "to": name.as_str(), "hidden": 0,
        "changes": found.iter().map(|Difference { kind, path }| json!({ "change": kind.word(), "path": json_path(path) }))
            .collect::<Vec<_>>(),
    });
    output.result(&value, || {
        let mut text = String::new();
        for Difference { kind, path } in &found {
            text += &format!("{} {}\n", kind.letter(), show_path(path));
        }
        text + &format!("{} -> {name}: {} changed entries; nothing was switched\n", active.release, found.len())
    });
    Ok(())
}

fn print(value: &Value, output: Output) {
    let warnings: Vec<String> =
        value["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    output.warnings(&warnings);
    output.result(value, || text(value));
}

/// The line for people.
pub fn text(value: &Value) -> String {
    let word = |key: &str| value[key].as_str().unwrap_or("nothing").to_owned();
    let (from, to) = (word("from"), word("to"));
    if from == to {
        return format!("{to} is active already; nothing to do\n");
    }
    let hidden = value["hidden"].as_u64().map_or("an unknown number".to_owned(), |hidden| hidden.to_string());
    let mut text = format!(
        "{from} -> {to}: {} changed entries, {hidden} hidden by media, {} us",
        value["changed"], value["call_us"]
    );
    if value["waited_ms"].as_u64().unwrap_or(0) > 0 {
        text += &format!(" (and {} ms for a second of its own)", value["waited_ms"]);
    }
    if value["mounted"] == json!(false) {
        text += "; not mounted: the next mount serves it";
    }
    if value["tidy"] == json!("pending") {
        text += "; a stuck client keeps old names in the kernel's memory, the next switch drops them";
    }
    text + "\n"
}
