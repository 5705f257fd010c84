//! `switch` and `rollback`: by the daemon if the store is mounted, else on disk alone.

use super::output::{Output, show_path};
use super::releases::{differences, letter};
use super::which;
use crate::error::{Error, Result};
use crate::protocol::{DryRun, Switched, Tidy, request};
use crate::store::Store;
use crate::store::journal::Asker;
use crate::store::release::manifest::Manifest;
use crate::switch::{Switcher, Target};
use crate::tree::ReleaseName;
use crate::worker::{report, unmounted};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a daemon may take for a switch, with the wait for a second and the limit for stuck clients.
const SWITCH_WAIT: Duration = Duration::from_secs(1300);
/// How long another command that switches without a daemon, or a daemon that starts, is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Make another release the active one
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs switch 03 -m 'spring prices'")]
pub(super) struct Switch {
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
pub(super) struct Rollback {
    /// The release; else the one before the last switch
    name: Option<String>,
    /// A line for the journal
    #[arg(short, long)]
    message: Option<String>,
}

pub(super) fn switch(verb: &Switch, store: Option<&Path>, output: Output) -> Result<()> {
    let name: ReleaseName = verb.name.parse()?;
    let store = which::store(store)?;
    if verb.dry_run {
        return dry_run(&store, &name, output);
    }
    print(&to(&store, Some(&name), false, verb.message.clone())?, output);
    Ok(())
}

pub(super) fn rollback(verb: &Rollback, store: Option<&Path>, output: Output) -> Result<()> {
    let name: Option<ReleaseName> = verb.name.as_deref().map(str::parse).transpose()?;
    print(&to(&which::store(store)?, name.as_ref(), true, verb.message.clone())?, output);
    Ok(())
}

/// Switches, with a daemon or without, and gives what is printed.
pub(super) fn to(
    store: &Store,
    name: Option<&ReleaseName>,
    rollback: bool,
    message: Option<String>,
) -> Result<Switched> {
    let request = Target { to: name.cloned(), rollback };
    let target = request.resolve(store, store.active()?.as_ref())?;
    check(&store.manifest(&target)?)?;
    let begun = Instant::now();
    loop {
        if let Some(mut daemon) = which::daemon(store)? {
            let uid = Asker::this_process().sudo_uid;
            return match (rollback, name.cloned()) {
                (false, Some(release)) => daemon.call(request::Switch { release, message, uid }, SWITCH_WAIT),
                (_, release) => daemon.call(request::Rollback { release, message, uid }, SWITCH_WAIT),
            };
        }
        if let Some(lock) = store.lock_active()? {
            let switcher = Switcher::unmounted(store, &lock)?;
            return Ok(report(switcher.switch(&request, message, Asker::this_process())?));
        }
        if begun.elapsed() > LOCK_WAIT {
            return Err(Error::busy(format!(
                "a process has the store {} locked and does not answer; end it and switch again",
                store.root().display()
            )));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Reads the whole manifest: damage is found before it matters. The command does it and not the daemon, at a low
/// priority: it can wait for the visitors.
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
        let first = DryRun { from: None, to: name.to_string(), hidden: 0, changes: Vec::new() };
        output.result(&first, || format!("no release is active; {name} would become the first\n"));
        return Ok(());
    };
    let old = store.manifest(&active.release()?)?;
    let changes = differences(&old, &new)?;
    let hidden = unmounted::hidden_in_switch(store, name)? as u64;
    let value = DryRun { from: Some(active.release.clone()), to: name.to_string(), hidden, changes };
    output.result(&value, || {
        let mut text = String::new();
        for difference in &value.changes {
            text += &format!("{} {}\n", letter(difference.change), show_path(&difference.path.decode()));
        }
        let count = value.changes.len();
        text + &format!(
            "{} -> {name}: {count} changed entries, {hidden} hidden by media; nothing was switched\n",
            active.release
        )
    });
    Ok(())
}

fn print(switched: &Switched, output: Output) {
    output.warnings(&switched.warnings);
    output.result(switched, || text(switched));
}

/// The line for people.
pub(super) fn text(switched: &Switched) -> String {
    let Switched { from, to, changed, hidden, call_us, .. } = switched;
    if from.as_ref() == Some(to) {
        return format!("{to} is active already; nothing to do\n");
    }
    let from = from.as_deref().unwrap_or("nothing");
    let hidden = hidden.map_or("an unknown number".to_owned(), |hidden| hidden.to_string());
    let mut text = format!("{from} -> {to}: {changed} changed entries, {hidden} hidden by media, {call_us} us");
    if switched.waited_us >= 1000 {
        text += &format!(" (and {} ms for a second of its own)", switched.waited_us / 1000);
    }
    if !switched.mounted {
        text += "; not mounted: the next mount serves it";
    }
    if switched.tidy == Tidy::Pending {
        text += "; a stuck client keeps old names in the kernel's memory, the next switch drops them";
    }
    text + "\n"
}
