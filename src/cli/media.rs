//! `media`: taking uploads over, and giving up what hides a release.

use super::output::{Output, show_path};
use super::which;
use crate::control::client::Client;
use crate::error::{Error, Result};
use crate::protocol::request::Own;
use crate::protocol::{Adopted, EncodedPath, Restored, Way, request};
use crate::store::Store;
use crate::store::journal::{Asker, Line};
use crate::store::media::adopt;
use crate::store::media::scope::{Believed, Scope};
use crate::worker::{mounted, unmounted};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the daemon may take to restore what is below a directory.
const RESTORE_WAIT: Duration = Duration::from_secs(120);

/// Take uploads over, or give up what hides a release's files
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs media adopt /var/www/uploads")]
pub(super) struct Media {
    #[command(subcommand)]
    verb: MediaVerb,
}

#[derive(Debug, clap::Subcommand)]
enum MediaVerb {
    Adopt(Adopt),
    Restore(Restore),
}

/// Make a directory of uploads that is there already the content of a scope
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs media adopt /var/www/uploads --scope media\n\
    On the same disk it is renamed, which takes no time and leaves nothing where it was.")]
struct Adopt {
    /// The directory
    dir: PathBuf,
    /// The scope; may be left out if there is only one that is shared
    #[arg(long, value_name = "PATH")]
    scope: Option<String>,
    /// Copy it if it lies on another disk; it stays where it is
    #[arg(long)]
    copy: bool,
}

/// Let the release's file show again: drop the upload, or the removal, that hides it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs media restore media/logo.png\n\
    Of a directory, all below it that is hidden; see `verfs status --shadowed`. What is given up is gone for good.")]
struct Restore {
    /// A path in the docroot
    path: PathBuf,
    /// Whether files and directories stay that the release lacks there. With `no` all of them are removed, for good:
    /// then the path shows what the release has, and nothing else
    #[arg(long, value_enum, default_value_t = KeepOwn::Yes)]
    keep_own: KeepOwn,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum KeepOwn {
    Yes,
    No,
}

impl From<KeepOwn> for Own {
    fn from(keep: KeepOwn) -> Self {
        match keep {
            KeepOwn::Yes => Self::Keep,
            KeepOwn::No => Self::GiveUp,
        }
    }
}

pub(super) fn media(verb: &Media, store: Option<&Path>, output: Output) -> Result<()> {
    let store = which::store(store)?;
    match &verb.verb {
        MediaVerb::Adopt(verb) => adopt(verb, &store, output),
        MediaVerb::Restore(verb) => restore(verb, &store, output),
    }
}

fn adopt(verb: &Adopt, store: &Store, output: Output) -> Result<()> {
    let scope = scope_for(verb, store)?;
    if scope.ttl == Believed::Forever && which::daemon(store)?.is_some() {
        return Err(Error::request(format!(
            "the scope {} has ttl = \"forever\", so the mount would not see it; `verfs umount` first",
            scope.path
        )));
    }
    let adopted = adopt::adopt(store, scope, &verb.dir, verb.copy)?;
    let way = match adopted.way {
        Way::Renamed => "renamed",
        Way::Cloned => "cloned",
        Way::Copied => "copied",
    };
    let dir = EncodedPath::from(adopted.target.as_path());
    let value = Adopted { scope: scope.path.clone(), way: adopted.way, dir };
    output.result(&value, || format!("{way} {} to {}\n", verb.dir.display(), adopted.target.display()));
    Ok(())
}

fn scope_for<'a>(verb: &Adopt, store: &'a Store) -> Result<&'a Scope> {
    let shared: Vec<&Scope> = store.settings().scopes.iter().filter(|scope| !scope.per_release).collect();
    let names: Vec<&str> = shared.iter().map(|scope| &scope.path[..]).collect();
    let there = format!("shared scopes are: {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") });
    match (&verb.scope, &shared[..]) {
        (Some(wanted), _) => {
            let wanted = wanted.trim_end_matches('/');
            let found = shared.into_iter().find(|scope| scope.path == wanted);
            found.ok_or_else(|| Error::request(format!("{wanted:?} is no shared scope; {there}")))
        }
        (None, [only]) => Ok(only),
        (None, _) => Err(Error::request(format!("into which scope? Say --scope PATH; {there}"))),
    }
}

fn restore(verb: &Restore, store: &Store, output: Output) -> Result<()> {
    let path = docroot_path(&verb.path, store)?;
    let mut line = Line::done("restore", Asker::this_process());
    let restored = match restored(store, &path, verb.keep_own.into()) {
        Ok(restored) => restored,
        Err(error) => {
            // Refused, it did nothing. Else some uploads may be given up.
            if !error.is_request() {
                (line.ok, line.note) = (false, Some(format!("{}: {error}", show_path(&path))));
                let unnoted = |why: &Error| log::warn!("the journal has no line of this: {why}");
                match store.write_journal(&line) {
                    // Who may not write to the store has changed nothing.
                    Err(why) if !why.is_denied() => unnoted(&why),
                    _ => {}
                }
            }
            return Err(error);
        }
    };
    let given_up = match restored.given_up {
        0 => String::new(),
        count => format!(", {count} of the user's given up"),
    };
    line.note = Some(format!("{} ({} names{given_up})", show_path(&path), restored.count));
    if restored.count + restored.given_up > 0 {
        store.write_journal(&line)?;
    }
    output.result(&restored, || restored_text(&path, &restored));
    Ok(())
}

fn restored_text(path: &[u8], restored: &Restored) -> String {
    if restored.count + restored.given_up == 0 {
        return format!("nothing hides {}; nothing to do\n", show_path(path));
    }
    let names = restored.restored.iter();
    let mut text: String =
        names.map(|name| format!("{} shows the release's again\n", show_path(&name.decode()))).collect();
    let listed = restored.restored.len() as u64;
    if listed < restored.count {
        text += &format!("and {} more: {} in all\n", restored.count - listed, restored.count);
    }
    if restored.given_up > 0 {
        text += &format!("{} names that the release lacks are gone\n", restored.given_up);
    }
    text
}

/// By the daemon, which tells the kernel; without one on disk alone.
fn restored(store: &Store, path: &[u8], own: Own) -> Result<Restored> {
    if let Some(mut daemon) = which::daemon(store)? {
        return restored_by(&mut daemon, &EncodedPath::from(path), own);
    }
    let Some(lock) = store.lock_active()? else {
        return Err(Error::busy(format!(
            "a process has the store {} locked and does not answer; end it and try again",
            store.root().display()
        )));
    };
    let done = unmounted::restore(store, &lock, path, own)?;
    let restored: Vec<EncodedPath> =
        done.restored.iter().map(|restored| EncodedPath::from(&restored.path[..])).collect();
    Ok(Restored { count: restored.len() as u64, restored, given_up: done.given_up.len() as u64, next: None })
}

/// All pages of the answer. What was restored is restored, so a page that does not come only shortens the list.
fn restored_by(daemon: &mut Client, path: &EncodedPath, own: Own) -> Result<Restored> {
    let mut all = daemon.call(request::Restore { path: path.clone(), after: 0, own }, RESTORE_WAIT)?;
    while let Some(after) = all.next.take() {
        match daemon.call(request::Restore { path: path.clone(), after, own }, RESTORE_WAIT) {
            Ok(page) => {
                all.restored.extend(page.restored);
                all.next = page.next;
            }
            Err(error) => log::warn!("not all names are listed: {error}"),
        }
    }
    Ok(all)
}

/// The path in the docroot: as it is given, or below the mountpoint.
fn docroot_path(path: &Path, store: &Store) -> Result<Vec<u8>> {
    let mut path = path.to_owned();
    if path.is_absolute() {
        let mounts = mounted()?;
        let inside = mounts.iter().filter(|mount| mount.store == store.root());
        let found = inside.into_iter().find_map(|mount| path.strip_prefix(&mount.mountpoint).ok().map(Path::to_owned));
        path = found.ok_or_else(|| {
            Error::request(format!("{} is not below the mountpoint; give the path in the docroot", path.display()))
        })?;
    }
    let clean: PathBuf = path.components().filter(|part| *part != std::path::Component::CurDir).collect();
    if clean.components().any(|part| part == std::path::Component::ParentDir) || clean.as_os_str().is_empty() {
        return Err(Error::request(format!("{} is no path in the docroot", path.display())));
    }
    Ok(clean.as_os_str().as_bytes().to_vec())
}
