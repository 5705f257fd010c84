//! Verbs that put content into a store, take it out, or check it.

use super::output::{Output, show_bytes};
use super::progress::Bar;
use super::{switch, which};
use crate::control::protocol::Request;
use crate::error::{Context, Error, Result};
use crate::store::Store;
use crate::store::media::scope::{Scope, parse_owner};
use crate::store::release::import::{self, AddOptions};
use crate::store::release::{export as exporting, gc as collecting, verify as verifying};
use crate::store::settings::Settings;
use crate::tree::{Digest, ReleaseName};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long the daemon may take to look for objects in use.
const PINNED_WAIT: Duration = Duration::from_secs(120);

/// Make a store
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs init /srv/shop --writable media --owner www-data:www-data")]
pub struct Init {
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
pub struct Add {
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
pub struct Export {
    /// The release
    name: String,
    /// A directory that is empty or not there
    dir: PathBuf,
}

/// Forget a release; `gc` frees its content
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs remove 01 && verfs gc")]
pub struct Remove {
    /// The release: not the active one, nor the one before it
    name: String,
}

/// Free the content that no release needs
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs gc")]
pub struct Gc {}

/// Hash everything and name what is damaged
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs verify 03")]
pub struct Verify {
    /// Only this release
    name: Option<String>,
}

pub fn init(verb: &Init, store: Option<&Path>, output: Output) -> Result<()> {
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
    let value = json!({ "store": store.root().display().to_string() });
    output.result(&value, || format!("made the store {}\n", store.root().display()));
    Ok(())
}

pub fn add(verb: &Add, store: Option<&Path>, output: Output) -> Result<()> {
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
    let mut value = json!({
        "name": name.as_str(), "files": added.files, "bytes": added.bytes,
        "read_bytes": added.read_bytes, "new_bytes": added.new_bytes, "seconds": added.seconds, "identical": added.identical, "warnings": added.warnings,
    });
    let text = if added.identical {
        format!("release {name} is there already, with the same content\n")
    } else {
        format!(
            "added {name}: {} files, {}, of it read {}, new {}, {:.1} s\n",
            added.files,
            show_bytes(added.bytes),
            show_bytes(added.read_bytes),
            show_bytes(added.new_bytes),
            added.seconds
        )
    };
    if !verb.switch {
        output.result(&value, || text);
        return Ok(());
    }
    let switched = switch::to(&opened, Some(&name), false, verb.message.clone())?;
    value["switch"] = switched.clone();
    output.result(&value, || text + &switch::text(&switched));
    Ok(())
}

pub fn export(verb: &Export, store: Option<&Path>, output: Output) -> Result<()> {
    let name: ReleaseName = verb.name.parse()?;
    let files = exporting::export(&which::store(store)?, &name, &verb.dir)?;
    let value = json!({ "name": name.as_str(), "dir": verb.dir.display().to_string(), "files": files });
    output.result(&value, || format!("wrote {files} files of {name} to {}\n", verb.dir.display()));
    Ok(())
}

pub fn remove(verb: &Remove, store: Option<&Path>, output: Output) -> Result<()> {
    let name: ReleaseName = verb.name.parse()?;
    collecting::remove(&which::store(store)?, &name)?;
    let value = json!({ "removed": name.as_str() });
    output.result(&value, || format!("removed {name}; `verfs gc` frees what only it needed\n"));
    Ok(())
}

pub fn gc(_verb: &Gc, store: Option<&Path>, output: Output) -> Result<()> {
    let store = which::store(store)?;
    let freed = collecting::gc(&store, || pinned(&store));
    if let Some(mut daemon) = which::daemon(&store)?
        && let Err(error) = daemon.call(&Request::Repacked, PINNED_WAIT)
    {
        log::warn!("{error}: until the next switch the mount keeps the room of what was written anew");
    }
    let freed = freed?;
    let litter: Vec<String> = freed.litter.iter().map(|path| path.display().to_string()).collect();
    let value = json!({ "objects": freed.objects, "bytes": freed.bytes, "in_use": freed.in_use, "litter": litter });
    output.result(&value, || {
        let mut text = format!("freed {} objects, {}\n", freed.objects, show_bytes(freed.bytes));
        if freed.in_use > 0 {
            text += &format!("kept {} objects of removed releases that are still in use\n", freed.in_use);
        }
        for path in litter {
            text += &format!("removed {path}, left by an interrupted command\n");
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
            None => Err(Error::failed(format!(
                "a process has the store {} locked and does not answer, so nobody can say what it still reads; end it, or \
                 run gc again when it answers",
                store.root().display()
            ))),
        };
    };
    let mut after = Some(0);
    while let Some(page) = after {
        let reply = daemon.call(&Request::Pinned { after: page }, PINNED_WAIT)?;
        let objects = reply["objects"].as_array().into_iter().flatten();
        pinned.extend(objects.filter_map(Value::as_str).filter_map(|hex| Digest::from_hex(hex.as_bytes())));
        after = reply["next"].as_u64();
    }
    Ok(pinned)
}

pub fn verify(verb: &Verify, store: Option<&Path>, output: Output) -> Result<ExitCode> {
    let store = which::store(store)?;
    let name: Option<ReleaseName> = verb.name.as_deref().map(str::parse).transpose()?;
    let bar = Bar::new(output);
    let report = verifying::verify(&store, name.as_ref(), &|bytes| bar.advance(bytes));
    bar.finish();
    let report = report?;
    let value = json!({
        "releases": report.releases, "objects": report.objects, "bytes": report.bytes, "damaged": report.damaged,
    });
    output.result(&value, || {
        let mut text = format!(
            "checked {} releases and {} objects, {}\n",
            report.releases,
            report.objects,
            show_bytes(report.bytes)
        );
        match report.damaged.len() {
            0 => text += "nothing is damaged\n",
            _ => report.damaged.iter().for_each(|line| text += &format!("damaged: {line}\n")),
        }
        text
    });
    Ok(if report.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
