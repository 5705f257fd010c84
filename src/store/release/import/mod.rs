//! `add`: freezes a directory into the store as a release.
//!
//! New contents are staged in `tmp/add-…`, synced, and only then renamed into `objects/`, so that what has its
//! name there is whole; then the manifest takes its name, and the release exists. Stopped anywhere before
//! that, nothing is there but staged files and objects that no release needs, and `gc` knows both.

mod content;
mod mtimes;
mod numbers;
mod scopes;
mod staging;
mod stat_cache;
mod walk;
mod warnings;

pub(super) use staging::Staging;
#[cfg(feature = "faults")]
pub use stat_cache::noted_digest;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::store::durable::{self, free_bytes};
use crate::store::journal::{Asker, Line};
use crate::store::lock::{Hold, Lock};
use crate::store::release::manifest::{BuildNode, Builder, Manifest};
use crate::store::{Store, look, make_dir};
use crate::tree::{Kind, Owner, ReleaseName, Tree};
use stat_cache::{Notes, StatCache};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use walk::{Found, Walk};

/// How often a source that changes while it is read is read again.
const ROUNDS: usize = 3;

/// How `add` goes about it.
#[derive(Clone, Debug, Default)]
pub struct AddOptions {
    /// Owner of everything in the release, instead of the source's.
    pub owner: Option<Owner>,
    /// Modes of files and of directories, instead of the source's.
    pub mode: Option<(u16, u16)>,
    /// Take .git, .hg and .svn too.
    pub include_vcs: bool,
    /// Begin even if the disk looks too small.
    pub skip_space_check: bool,
    /// Read every file, those too that look as when the last `add` read them.
    pub rehash: bool,
}

/// Told how far it is.
pub trait Progress: Sync {
    /// What there is to do, known after the walk.
    fn total(&self, files: u64, bytes: u64);
    /// This many more bytes were read.
    fn read(&self, bytes: u64);
}

/// What was added.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Regular files in the release.
    pub files: u64,
    /// Sum of their sizes in bytes.
    pub bytes: u64,
    /// Of these bytes, those that were read: the other files look as when the last `add` read them.
    pub read_bytes: u64,
    /// Bytes that the store did not have before.
    pub new_bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// Whether the release was there already, with the same content.
    pub identical: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Freezes `source` as release `name`.
pub fn add(
    store: &Store,
    name: &ReleaseName,
    source: &Path,
    options: &AddOptions,
    progress: &dyn Progress,
) -> Result<Summary> {
    let begun = Instant::now();
    let source = check_source(store, source)?;
    let _objects = store.lock_objects(Hold::Shared, "add")?;
    sweep(store)?;
    let staging = Staging::begin(store)?;
    fault::point("add.begun");

    let cache = StatCache::load(store, &source, options.rehash);
    let mut walk = read_source(store, &source, options, &cache, &staging, progress)?;
    let notes = Notes::of(&walk, &cache);
    let mut summary = Summary {
        read_bytes: walk.found.iter().filter(|found| found.is_read()).map(|found| found.node.size).sum(),
        new_bytes: staging.new_bytes(),
        warnings: warnings::of(&walk),
        ..Summary::default()
    };
    summary.warnings.extend(scopes::make_room(&mut walk, &store.settings().scopes));
    publish(store, name, walk, &staging, &mut summary)?;
    if let Some(notes) = notes {
        notes.save(store, &staging);
    }
    summary.took = begun.elapsed();
    Ok(summary)
}

/// Gives the contents and the manifest their places.
fn publish(store: &Store, name: &ReleaseName, walk: Walk, staging: &Staging, summary: &mut Summary) -> Result<()> {
    // One publisher at a time: the mtimes of a release depend on all the others.
    let _publish = Lock::take(&store.root().join("tmp"), Hold::Exclusive)?;
    let mut builder = builder(walk);
    let earlier = earlier(store)?;
    mtimes::settle(&earlier, &mut builder)?;
    let bytes = builder.encode(crate::store::now())?;
    let made = Manifest::from_bytes(bytes, &store.manifest_path(name))?;
    earlier.iter().try_for_each(|earlier| numbers::check(&made, earlier))?;
    (summary.files, summary.bytes) = (made.files(), made.content_bytes());
    if look::is_there(&store.manifest_path(name))? {
        let there = store.manifest(name)?;
        if !same_content(&there, &made)? {
            return Err(Error::refused(format!(
                "release {name} is there already, with other content; choose another name, or `verfs remove {name}` \
                 first"
            )));
        }
        summary.identical = true;
        // Content that the store had lost is there again.
        return staging.place();
    }
    staging.place()?;
    let releases = durable::Dir::open(&store.root().join("releases"))?;
    releases.create(name.as_str(), made.bytes(), 0o400)?;
    fault::point("add.manifest-placed");
    let mut line = Line::done("add", Asker::this_process());
    line.to = Some(name.to_string());
    store.write_journal(&line)
}

/// The releases of the store, the newest first.
fn earlier(store: &Store) -> Result<Vec<Manifest>> {
    let mut earlier = Vec::new();
    for name in store.releases()? {
        match store.manifest(&name) {
            Ok(manifest) => earlier.push(manifest),
            // A damaged release cannot be switched to either, so nothing will disagree with it.
            Err(error) => log::warn!("{error}"),
        }
    }
    earlier.sort_by_key(|manifest| std::cmp::Reverse(manifest.added()));
    Ok(earlier)
}

/// The real directory behind SOURCE, if it can be a source at all.
fn check_source(store: &Store, source: &Path) -> Result<PathBuf> {
    let real = fs::canonicalize(source)
        .map_err(|error| Error::request(format!("the source {} cannot be read: {error}", source.display())))?;
    if !look::is_dir(&real)? {
        return Err(Error::request(format!("the source {} is not a directory", source.display())));
    }
    if store.root().starts_with(&real) {
        return Err(Error::request(format!(
            "the store {} lies inside the source {}: a release cannot hold its own store; move one of them",
            store.root().display(),
            source.display()
        )));
    }
    Ok(real)
}

/// Reads the source until it stayed the same from the first look to the last.
fn read_source(
    store: &Store,
    source: &Path,
    options: &AddOptions,
    cache: &StatCache,
    staging: &Staging,
    progress: &dyn Progress,
) -> Result<Walk> {
    let mut changed = Vec::new();
    for _ in 0..ROUNDS {
        let mut walk = walk::walk(source, options)?;
        cache.trust(&mut walk, staging)?;
        let files = walk.found.iter().filter(|found| found.is_read());
        progress.total(files.clone().count() as u64, files.map(|found| found.node.size).sum());
        if !options.skip_space_check {
            check_space(store, &walk)?;
        }
        changed = content::stage(&mut walk, cache, staging, progress)?;
        if changed.is_empty() {
            changed = walk.changed_since();
        }
        if changed.is_empty() {
            apply(&mut walk, options);
            return Ok(walk);
        }
    }
    let names: Vec<String> = changed.iter().take(10).map(|path| show(path)).collect();
    Err(Error::failed(format!(
        "the source {} changed while it was read, {ROUNDS} times: {}{}; add it when nothing writes to it",
        source.display(),
        names.join(", "),
        if changed.len() > 10 { format!(" and {} more", changed.len() - 10) } else { String::new() }
    )))
}

/// A source that surely does not fit is refused before anything is written. A file of the same path and size
/// as in the newest release is taken to be in the store already.
fn check_space(store: &Store, walk: &Walk) -> Result<()> {
    let newest = match store.newest()? {
        Some(name) => Some(store.manifest(&name)?),
        None => None,
    };
    let mut need = 0;
    for (number, found) in walk.found.iter().enumerate().filter(|(_, found)| found.is_read()) {
        let known = match &newest {
            Some(manifest) => match manifest.find_path(&walk.path(number))? {
                Some(index) => manifest.node(index)?.size == found.node.size,
                None => false,
            },
            None => false,
        };
        if !known {
            need += found.blocks_bytes;
        }
    }
    let free = free_bytes(store.root())?;
    if need > free {
        let text = format!(
            "the disk of {} has {free} bytes free and the release may need {need}; free some space, or say \
             --skip-space-check if most of it is in the store under other paths",
            store.root().display()
        );
        return Err(Error::reported(ErrorKind::NoSpace, 1, text));
    }
    Ok(())
}

/// Owner and mode as the options say.
fn apply(walk: &mut Walk, options: &AddOptions) {
    for found in &mut walk.found {
        let node = &mut found.node;
        if let Some(owner) = options.owner {
            node.owner = owner;
        }
        match (options.mode, node.kind) {
            (Some((_, dirs)), Kind::Dir) => node.mode = dirs,
            (Some((files, _)), Kind::File) => node.mode = files,
            _ => {}
        }
    }
}

fn builder(walk: Walk) -> Builder {
    let mut nodes: Vec<BuildNode> = Vec::with_capacity(walk.found.len());
    for (number, Found { node, parent, .. }) in walk.found.into_iter().enumerate() {
        nodes.push(node);
        if number > 0 {
            nodes[parent as usize].children.push(number as u32);
        }
    }
    Builder { nodes }
}

/// Whether two manifests hold the same tree, mtimes apart.
fn same_content(a: &Manifest, b: &Manifest) -> Result<bool> {
    let (x, y) = (a.node(0)?, b.node(0)?);
    Ok(a.digest(0)? == b.digest(0)? && x.mode == y.mode && x.owner == y.owner && a.xattrs(0)? == b.xattrs(0)?)
}

/// Removes what interrupted imports left in the work space.
pub fn sweep(store: &Store) -> Result<Vec<PathBuf>> {
    let mut swept = durable::sweep_temporaries(&store.root().join("releases"))?;
    swept.extend(durable::sweep_temporaries(store.root())?);
    let tmp = store.root().join("tmp");
    make_dir(&tmp, 0o700)?;
    for entry in fs::read_dir(&tmp).context(|| format!("reading {}", tmp.display()))? {
        let path = entry.context(|| format!("reading {}", tmp.display()))?.path();
        let ours = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"add-"));
        // An import that still runs holds the lock of its directory. Another that sweeps may have been first.
        let abandoned = ours && matches!(Lock::try_take(&path, Hold::Exclusive), Ok(Some(_)));
        if !abandoned {
            continue;
        }
        match fs::remove_dir_all(&path) {
            Ok(()) => swept.push(path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("removing {}, left by an interrupted command: {error}", path.display()),
        }
    }
    Ok(swept)
}

/// A path for a message.
fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}
