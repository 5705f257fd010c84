//! What lies on disk.
//!
//! ```text
//! STORE/
//!   verfs.toml      settings; its `format` is that of the store
//!   objects/ab/…    file contents, named by the rest of their BLAKE3 hash, mode 0444
//!   objects/packs/… many small contents in one file (see objects/pack.rs)
//!   releases/NAME   a manifest; the release exists if and only if this file does
//!   active          the active release, the switch number, its second, how much of `stamps` counts
//!   stamps          which switch last changed which node: appended to, and compacted
//!   journal.jsonl   one line per add, switch, rollback, remove, gc; journal.jsonl.1 … are older, the oldest first
//!   stat-cache      how the files of the last add looked (see import/stat_cache.rs)
//!   reserve         room that is given up so that a rollback works on a full disk
//!   media/ whiteouts/ own/ orphans/ tmp/     the writable layer (see media/layout.rs); tmp/add-… are imports
//!   run/            control.sock while mounted
//! ```
//!
//! `objects` and `releases` are 0700: modes inside a release must mean something. All of it is believed only if it is
//! root's or the caller's: see trust.rs.

pub mod active;
pub(crate) mod durable;
pub(crate) mod journal;
pub(crate) mod lock;
pub(crate) mod look;
pub mod media;
pub mod release;
mod sealed;
pub mod settings;
pub(crate) mod trust;

use crate::error::{Context, Error, Result};
use crate::fault;
use crate::tree::ReleaseName;
use durable::Dir;
use lock::{Hold, Lock};
use release::manifest::Manifest;
use rustix::fs::OFlags;
use settings::Settings;
use std::fmt::Display;
use std::fs::{self, DirBuilder};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The directories of a store, and their modes.
const LAYOUT: &[(&str, u32)] = &[("objects", 0o700), ("releases", 0o700), ("tmp", 0o700), ("run", 0o750)];

/// What else lies in a store, if it is there.
const FILES: &[&str] = &["verfs.toml", "active", "stamps", "journal.jsonl", "stat-cache", "reserve", "verfs.log"];

/// What the daemon of an earlier verfs made without a umask, beside journals that were put aside.
const ONCE_OPEN: &[&str] = &["stamps", "journal.jsonl", "verfs.log"];

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    dir: Dir,
    settings: Settings,
}

impl Store {
    /// Makes a store in a directory that is empty or not there.
    pub fn init(root: &Path, settings: &str) -> Result<Self> {
        let parsed = Settings::parse(settings)?;
        trust::check_place(root)?;
        match fs::metadata(root) {
            Ok(meta) if !meta.is_dir() => {
                return Err(Error::request(format!("{} cannot be a store: it is not a directory", root.display())));
            }
            Ok(_) if look::is_there(&root.join("verfs.toml"))? => {
                return Err(Error::request(format!("{} is a store already", root.display())));
            }
            Ok(_) => check_is_free(root)?,
            Err(error) if error.kind() == ErrorKind::NotFound => make_dir(root, 0o755)?,
            Err(error) => return Err(Error::request(format!("{} cannot be a store: {error}", root.display()))),
        }
        let root = &fs::canonicalize(root).context(|| format!("looking at {}", root.display()))?;
        let dir = Dir::open(root)?;
        for (name, mode) in LAYOUT {
            make_dir(&root.join(name), *mode)?;
            dir.check(name)?;
        }
        // The owners of the scopes' tops are looked up before anything depends on them.
        let made = Self { root: root.clone(), dir, settings: parsed };
        made.make_layer()?;
        let dir = made.dir();
        durable::make_reserve(dir)?;
        // The settings come last: a store without them is none.
        dir.replace("verfs.toml", settings.as_bytes(), 0o644)?;
        Self::open(root)
    }

    /// Opens the store in this directory.
    pub fn open(root: &Path) -> Result<Self> {
        let or_no_store = |path: &Path, error: std::io::Error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => no_store(root),
            _ => Error::io(format!("reading {}", path.display()), error),
        };
        let real = fs::canonicalize(root).map_err(|error| or_no_store(root, error))?;
        let opened = trust::open_dir(&real).map_err(|error| or_no_store(&real, error.into()))?;
        let dir = Dir::of(opened, &real);
        let text = dir.read("verfs.toml")?.ok_or_else(|| no_store(root))?;
        trust::check_above(&real)?;
        trust::check(&dir.stat()?, &real)?;
        let aside: Vec<_> = dir.names()?.into_iter().filter(|name| journal::number_aside(name).is_some()).collect();
        let aside = || aside.iter().map(String::as_str);
        aside().chain(ONCE_OPEN.iter().copied()).try_for_each(|name| dir.keep_from_others(name))?;
        let parts = FILES.iter().copied().chain(LAYOUT.iter().map(|(name, _)| *name));
        parts.chain(aside()).try_for_each(|name| dir.check(name))?;
        let path = real.join("verfs.toml");
        let wrong = |error: &dyn Display| Error::request(format!("{}: {error}", path.display()));
        let text = String::from_utf8(text).map_err(|error| wrong(&error))?;
        let settings = Settings::parse(&text).map_err(|error| wrong(&error))?;
        Ok(Self { root: real, dir, settings })
    }

    /// The directory of the store, without symlinks in it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What verfs.toml says.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The directory, for durable writes.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Notes in verfs.toml that an older verfs must not use the store any more. One digit is written where it stands:
    /// a crash leaves the old or the new one, and the file stays its owner's. `active` has its checksum by then.
    fn raise_format(&self) -> Result<()> {
        if self.settings.format() >= settings::FORMAT {
            return Ok(());
        }
        let path = self.root.join("verfs.toml");
        let what = || format!("writing format = {} into {}", settings::FORMAT, path.display());
        let mut file = self.dir.open_file("verfs.toml", OFlags::RDWR)?;
        let mut text = String::new();
        file.read_to_string(&mut text).context(what)?;
        if Settings::parse(&text).is_ok_and(|settings| settings.format() >= settings::FORMAT) {
            return Ok(());
        }
        let at = Settings::digit_of_format_1(&text).ok_or_else(|| {
            Error::failed(format!(
                "{} does not say its format in a line of its own, so it cannot be raised; write format = {} there",
                path.display(),
                settings::FORMAT
            ))
        })?;
        file.write_all_at(settings::FORMAT.to_string().as_bytes(), at as u64).context(what)?;
        file.sync_all().context(what)?;
        fault::point("format.raised");
        Ok(())
    }

    /// Where the manifest of a release lies.
    pub fn manifest_path(&self, name: &ReleaseName) -> PathBuf {
        self.root.join("releases").join(name.as_str())
    }

    /// Where the control socket of the daemon lies.
    pub fn socket_path(&self) -> PathBuf {
        self.root.join("run/control.sock")
    }

    /// Opens the manifest of a release.
    pub fn manifest(&self, name: &ReleaseName) -> Result<Manifest> {
        let path = self.manifest_path(name);
        match look::is_there(&path)? {
            true => Manifest::open(&path),
            false => Err(self.unknown(name)),
        }
    }

    /// "There is no such release", with the ones that there are.
    pub fn unknown(&self, name: &ReleaseName) -> Error {
        let names: Vec<String> = match self.releases() {
            Ok(names) => names.iter().map(ToString::to_string).collect(),
            Err(error) => return error,
        };
        let known = match names.len() {
            0 => "the store is empty; add one with `verfs add`".to_owned(),
            1..=12 => format!("there are: {}", names.join(", ")),
            n => format!("there are {n}; see `verfs list`"),
        };
        Error::not_found(format!("no release {name} in {}; {known}", self.root.display()))
    }

    /// The names of all releases, sorted.
    pub fn releases(&self) -> Result<Vec<ReleaseName>> {
        let path = self.root.join("releases");
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).context(|| format!("reading {}", path.display()))? {
            let entry = entry.context(|| format!("reading {}", path.display()))?;
            // Temporary files begin with a dot, which no release name does.
            if let Some(name) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The release that was added last.
    pub fn newest(&self) -> Result<Option<ReleaseName>> {
        let mut newest = None;
        for name in self.releases()? {
            match self.manifest(&name) {
                Ok(manifest) => newest = newest.max(Some((manifest.added(), name))),
                Err(error) => log::warn!("{error}"),
            }
        }
        Ok(newest.map(|(_, name)| name))
    }

    /// Keeps other processes from changing what is active: held by the daemon for its life, and by a command
    /// that switches without one.
    pub fn lock_active(&self) -> Result<Option<Lock>> {
        Lock::try_take(&self.root.join("run"), Hold::Exclusive)
    }

    /// Keeps releases from going while one is made active (shared), or lets one go (exclusive). Held briefly.
    pub fn lock_releases(&self, hold: Hold) -> Result<Lock> {
        Lock::take(&self.root.join("releases"), hold)
    }

    /// Keeps objects from going (shared: `add`, `verify`) or lets them go (exclusive: `gc`); `what` is the command.
    pub fn lock_objects(&self, hold: Hold, what: &str) -> Result<Lock> {
        Lock::try_take(&self.root.join("objects"), hold)?.ok_or_else(|| {
            let other = match hold {
                Hold::Shared => "a gc",
                Hold::Exclusive => "an add, a verify or a gc",
            };
            Error::busy(format!(
                "the store {} is in use by {other}; run {what} again when that is done",
                self.root.display()
            ))
        })
    }
}

/// Refuses a directory with something in it. What an interrupted init left is taken up; anything else is somebody's.
fn check_is_free(root: &Path) -> Result<()> {
    for path in look::entries(root)?.unwrap_or_default() {
        let name = path.file_name().unwrap_or_default();
        let ours = LAYOUT.iter().chain(media::layout::LAYOUT).any(|(ours, _)| name == *ours);
        let is_left = match ours {
            true => name == "media" || look::entries(&path)?.is_none_or(|inside| inside.is_empty()),
            false => name == "reserve",
        };
        if !is_left {
            return Err(Error::request(format!(
                "{} is not empty ({} is in it); a store needs a directory of its own",
                root.display(),
                name.display()
            )));
        }
    }
    Ok(())
}

fn no_store(root: &Path) -> Error {
    Error::not_found(format!("no store in {}; make one with `verfs init {0}`", root.display()))
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path).context(|| format!("making {}", path.display()))
}

/// Seconds since 1970.
pub fn now() -> i64 {
    since_epoch().as_secs() as i64
}

/// Time since 1970; a clock before that counts as 1970.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
