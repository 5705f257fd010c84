//! `remove` and `gc`: releases are forgotten, and objects that nobody needs are freed.

use crate::error::{Context, Error, Result};
use crate::fault;
use crate::store::durable::Dir;
use crate::store::journal::{Asker, Line};
use crate::store::lock::Hold;
use crate::store::release::import;
use crate::store::release::objects::Objects;
use crate::store::release::repack::repack;
use crate::store::{Store, look};
use crate::tree::{Digest, Kind, ReleaseName, Tree};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;

/// What `gc` did.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    /// Objects removed.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that no release needs and an open file of the mount still does.
    pub in_use: u64,
    /// What interrupted commands left behind, now removed.
    pub litter: Vec<PathBuf>,
}

/// Forgets a release: never the active one or the one before it.
pub(crate) fn remove(store: &Store, name: &ReleaseName) -> Result<()> {
    let releases = store.lock_releases(Hold::Exclusive)?;
    let path = store.manifest_path(name);
    if !look::is_there(&path)? {
        return Err(store.unknown(name));
    }
    if let Some(active) = store.active()? {
        if active.release == name.as_str() {
            return Err(Error::refused(format!(
                "release {name} is active; switch to another one before you remove it"
            )));
        }
        if active.previous.as_deref() == Some(name.as_str()) {
            return Err(Error::refused(format!(
                "release {name} was active before {}: it is kept for a rollback, until the next switch",
                active.release
            )));
        }
    }
    fault::point("remove.before");
    fs::remove_file(&path).context(|| format!("removing {}", path.display()))?;
    Dir::open(&store.root().join("releases"))?.sync()?;
    fault::point("remove.unlinked");
    let mut line = Line::done("remove", Asker::this_process());
    line.from = Some(name.to_string());
    store.write_journal(&line)?;
    // Its own layer may lie on another disk, which must keep no switch waiting.
    drop(releases);
    store.sweep_own_layers().map(drop)
}

/// Frees the objects that no release needs. `in_use` gives those that the mount still reads from releases
/// that were removed.
pub(crate) fn gc(store: &Store, in_use: impl FnOnce() -> Result<HashSet<Digest>>) -> Result<Freed> {
    let _objects = store.lock_objects(Hold::Exclusive, "gc")?;
    let mut freed = Freed { litter: import::sweep(store)?, ..Freed::default() };
    freed.litter.extend(store.sweep_own_layers()?);
    fault::point("gc.begun");
    let mut needed = HashSet::new();
    for name in store.releases()? {
        let manifest = store.manifest(&name)?;
        manifest.verify()?;
        for index in 0..manifest.len() {
            if manifest.node(index)?.kind == Kind::File {
                needed.insert(manifest.digest(index)?);
            }
        }
    }
    let objects = Objects::of(store.root())?;
    let mut own = HashMap::new();
    objects.each_own(
        |digest, len| {
            own.insert(digest, len);
        },
        |stray| log::warn!("{} is no object; remove it if it is not yours", stray.display()),
    )?;
    objects.bad_packs().iter().for_each(|bad| log::warn!("{bad}"));
    let mut packed = HashMap::new();
    for pack in objects.packs() {
        pack.verify()?;
        pack.each(|digest, place| {
            packed.insert(digest, u64::from(place.len));
        })?;
    }
    let mut unneeded: HashMap<Digest, u64> =
        own.iter().chain(&packed).filter(|(digest, _)| !needed.contains(digest)).map(|(d, len)| (*d, *len)).collect();
    if !unneeded.is_empty() {
        let in_use = in_use()?;
        freed.in_use = unneeded.keys().filter(|digest| in_use.contains(digest)).count() as u64;
        unneeded.retain(|digest, _| !in_use.contains(digest));
    }
    let remove = |digest: &Digest| -> Result<()> {
        let path = objects.path(*digest);
        fs::remove_file(&path).context(|| format!("removing {}", path.display()))?;
        fault::point("gc.object-removed");
        Ok(())
    };
    let (double, single): (Vec<&Digest>, Vec<&Digest>) =
        own.keys().filter(|digest| unneeded.contains_key(digest)).partition(|digest| packed.contains_key(digest));
    single.into_iter().try_for_each(remove)?;
    let kept = repack(store, &objects, |digest| !unneeded.contains_key(&digest))?;
    // A file of its own may stand for what is damaged in a pack: as long as that one lies there it stays.
    double.into_iter().filter(|digest| !kept.contains(digest)).try_for_each(remove)?;
    unneeded.retain(|digest, _| !kept.contains(digest));
    freed.objects = unneeded.len() as u64;
    freed.bytes = unneeded.values().sum();
    if freed.objects > 0 {
        store.write_journal(&Line::done("gc", Asker::this_process()))?;
    }
    crate::store::durable::make_reserve(store.dir())?;
    Ok(freed)
}
