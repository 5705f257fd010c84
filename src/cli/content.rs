//! Verbs that put content into a store, take it out, or check it.

use super::output::{Output, show_bytes};
use super::progress::Bar;
use super::{switch, which};
use crate::error::{Context, Error, Result};
use crate::protocol::{Added, EncodedPath, Exported, Freed, Initialized, Removed, Verified, request};
use crate::store::Store;
use crate::store::media::scope::{Scope, parse_owner};
use crate::store::release::import::{self, AddOptions};
use crate::store::release::{export as exporting, gc as collecting, verify as verifying};
use crate::store::settings::Settings;
use crate::tree::{Digest, ReleaseName};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long the daemon may take to look for objects in use.
const PINNED_WAIT: Duration = Duration::from_secs(120);

/// Make a store
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs init /srv/shop --writable media --owner www-data:www-data")]
pub(super) struct Init {
    /// A directory that is empty or not there
    #[arg(value_name = "STORE")]
    path: PathBuf,
    /// A path of the docroot that may be written to, the same in every release
    #[arg(long, value_name = "PATH")]
    writable: Vec<String>,
    /// A path that may be written to, each release with its own
    #[arg(long, value_name = "PATH")]
    per_release: Vec<String>,
    /// Owner of these paths' top directories
    #[arg(long, value_name = "USER:GROUP")]
    owner: Option<String>,
    /// Where what is written goes, if not into the store: a directory, on another disk perhaps
    #[arg(long, value_name = "DIR")]
    media: Option<PathBuf>,
}

/// Freeze a directory as a release
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs add 03 ./build --switch -m 'spring prices'")]
pub(super) struct Add {
    /// Name of the release
    name: String,
    /// The directory; a symlink to it is followed
    source: PathBuf,
    /// Switch to it when it is there
    #[arg(long)]
    switch: bool,
    /// With --switch: a line for the journal
    #[arg(short, long, requires = "switch")]
    message: Option<String>,
    /// Owner of everything in the release, instead of the source's
    #[arg(long, value_name = "USER:GROUP")]
    owner: Option<String>,
    /// Modes of files, and of directories after a comma, in octal: 0644 or 0640,0750
    #[arg(long, value_name = "FILES[,DIRS]")]
    mode: Option<String>,
    /// Take .git, .hg and .svn too
    #[arg(long)]
    include_vcs: bool,
    /// Begin even if the disk looks too small
    #[arg(long)]
    skip_space_check: bool,
    /// Read every file, those too that look as when the last `add` read them
    #[arg(long)]
    rehash: bool,
}

/// Write a release out as plain files
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs export 03 /tmp/release-03")]
pub(super) struct Export {
    /// The release
    name: String,
    /// A directory that is empty or not there
    dir: PathBuf,
}

/// Forget a release; `gc` frees its content
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs remove 01 && verfs gc")]
pub(super) struct Remove {
    /// The release: not the active one, nor the one before it
    name: String,
}

/// Free the content that no release needs
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs gc")]
pub(super) struct Gc {}

/// Hash everything and name what is damaged
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs verify 03")]
pub(super) struct Verify {
    /// Only this release
    name: Option<String>,
}

pub(super) fn init(verb: &Init, store: Option<&Path>, output: Output) -> Result<()> {
    let path = which::agreed(&verb.path, store)?;
    let owner = verb.owner.as_deref().unwrap_or_default();
    if !owner.is_empty() {
        parse_owner(owner)?;
    }
    let scope = |path: &String, per_release| Scope::new(path.trim_end_matches('/'), per_release, owner);
    let shared = verb.writable.iter().map(|path| scope(path, false));
    let scopes: Vec<Scope> = shared.chain(verb.per_release.iter().map(|path| scope(path, true))).collect();
    let media = verb.media.as_deref().map(std::path::absolute).transpose().context(|| "reading --media")?;
    let store = Store::init(&path, &Settings::text(&scopes, media.as_deref()))?;
    let value = Initialized { store: EncodedPath::from(store.root()) };
    output.result(&value, || format!("made the store {}\n", store.root().display()));
    Ok(())
}

pub(super) fn add(verb: &Add, store: Option<&Path>, output: Output) -> Result<()> {
    let name: ReleaseName = verb.name.parse()?;
    let options = AddOptions {
        owner: verb.owner.as_deref().map(parse_owner).transpose()?,
        mode: verb.mode.as_deref().map(parse_mode).transpose()?,
        include_vcs: verb.include_vcs,
        skip_space_check: verb.skip_space_check,
        rehash: verb.rehash,
    };
    let opened = which::store(store)?;
    let bar = Bar::new(output);
    let added = import::add(&opened, &name, &verb.source, &options, &bar);
    bar.finish();
    let added = added?;
    output.warnings(&added.warnings);
    let text = if added.identical {
        format!("release {name} is there already, with the same content\n")
    } else {
        format!(
            "added {name}: {} files, {}, of it read {}, new {}, {:.1} s\n",
            added.files,
            show_bytes(added.bytes),
            show_bytes(added.read_bytes),
            show_bytes(added.new_bytes),
            added.took.as_secs_f64()
        )
    };
    let switched = match verb.switch {
        true => Some(switch::to(&opened, Some(&name), false, verb.message.clone())?),
        false => None,
    };
    let text = text + &switched.as_ref().map(switch::text).unwrap_or_default();
    let value = Added {
        name: name.to_string(),
        files: added.files,
        bytes: added.bytes,
        read_bytes: added.read_bytes,
        new_bytes: added.new_bytes,
        call_us: added.took.as_micros() as u64,
        identical: added.identical,
        warnings: added.warnings,
        switch: switched,
    };
    output.result(&value, || text);
    Ok(())
}

pub(super) fn export(verb: &Export, store: Option<&Path>, output: Output) -> Result<()> {
    let name: ReleaseName = verb.name.parse()?;
    let files = exporting::export(&which::store(store)?, &name, &verb.dir)?;
    let value = Exported { name: name.to_string(), dir: EncodedPath::from(verb.dir.as_path()), files };
    output.result(&value, || format!("wrote {files} files of {name} to {}\n", verb.dir.display()));
    Ok(())
}

pub(super) fn remove(verb: &Remove, store: Option<&Path>, output: Output) -> Result<()> {
    let name: ReleaseName = verb.name.parse()?;
    collecting::remove(&which::store(store)?, &name)?;
    let value = Removed { removed: name.to_string() };
    output.result(&value, || format!("removed {name}; `verfs gc` frees what only it needed\n"));
    Ok(())
}

pub(super) fn gc(_verb: &Gc, store: Option<&Path>, output: Output) -> Result<()> {
    let store = which::store(store)?;
    let freed = collecting::gc(&store, || pinned(&store));
    if let Some(mut daemon) = which::daemon(&store)?
        && let Err(error) = daemon.call(request::Repacked {}, PINNED_WAIT)
    {
        log::warn!("{error}: until the next switch the mount keeps the room of what was written anew");
    }
    let freed = freed?;
    let value = Freed {
        objects: freed.objects,
        bytes: freed.bytes,
        in_use: freed.in_use,
        litter: freed.litter.iter().map(|path| EncodedPath::from(path.as_path())).collect(),
    };
    output.result(&value, || {
        let mut text = format!("freed {} objects, {}\n", freed.objects, show_bytes(freed.bytes));
        if freed.in_use > 0 {
            text += &format!("kept {} objects of removed releases that are still in use\n", freed.in_use);
        }
        for path in &freed.litter {
            text += &format!("removed {}, left by an interrupted command\n", path.display());
        }
        text
    });
    Ok(())
}

/// Objects that the mount still reads, of releases that were removed.
fn pinned(store: &Store) -> Result<HashSet<Digest>> {
    let mut pinned = HashSet::new();
    let Some(mut daemon) = which::daemon(store)? else {
        return match store.lock_active()? {
            Some(_) => Ok(pinned),
            None => Err(Error::busy(format!(
                "a process has the store {} locked and does not answer, so nobody can say what it still reads; end \
                 it, or run gc again when it answers",
                store.root().display()
            ))),
        };
    };
    let mut next = Some(0);
    while let Some(after) = next {
        let page = daemon.call(request::Pinned { after }, PINNED_WAIT)?;
        pinned.extend(page.objects);
        next = page.next;
    }
    Ok(pinned)
}

pub(super) fn verify(verb: &Verify, store: Option<&Path>, output: Output) -> Result<ExitCode> {
    let store = which::store(store)?;
    let name: Option<ReleaseName> = verb.name.as_deref().map(str::parse).transpose()?;
    let bar = Bar::new(output);
    let report = verifying::verify(&store, name.as_ref(), &|bytes| bar.advance(bytes));
    bar.finish();
    let report = report?;
    let value = Verified {
        releases: report.releases as u64,
        objects: report.objects as u64,
        bytes: report.bytes,
        damaged: report.damaged,
    };
    output.result(&value, || {
        let mut text =
            format!("checked {} releases and {} objects, {}\n", value.releases, value.objects, show_bytes(value.bytes));
        match value.damaged.len() {
            0 => text += "nothing is damaged\n",
            _ => value.damaged.iter().for_each(|line| text += &format!("damaged: {line}\n")),
        }
        text
    });
    Ok(if value.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Modes of files and of directories. For files alone, directories get the same, with search where it has read.
fn parse_mode(text: &str) -> Result<(u16, u16)> {
    let octal = |text: &str| {
        u16::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
            Error::request(format!("{text:?} is no mode: use octal digits, as in --mode 0644 or --mode 0640,0750"))
        })
    };
    match text.split_once(',') {
        Some((files, dirs)) => Ok((octal(files)?, octal(dirs)?)),
        None => {
            let files = octal(text)?;
            Ok((files, files | (files & 0o444) >> 2))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_typed() {
        assert_eq!(parse_mode("0644").expect("mode"), (0o644, 0o755));
        assert_eq!(parse_mode("0640,0750").expect("modes"), (0o640, 0o750));
        assert!(parse_mode("u+r").is_err() && parse_mode("77777").is_err());
    }
}
