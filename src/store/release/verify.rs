//! `verify`: hashes everything and names what is damaged.

use crate::error::{Context, Result};
use crate::store::Store;
use crate::store::lock::Hold;
use crate::store::release::manifest::Manifest;
use crate::store::release::objects::Objects;
use crate::tree::{Digest, Kind, ReleaseName, Tree};
use rayon::prelude::*;
use std::collections::HashMap;

/// How often `active` and `stamps` are read while switches go on: a switch takes longer than that.
const READS: usize = 3;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Releases checked.
    pub releases: usize,
    /// Objects hashed.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What is damaged, a sentence each.
    pub damaged: Vec<String>,
}

/// Checks one release, or all of them and every object.
pub(crate) fn verify(store: &Store, only: Option<&ReleaseName>, progress: &(dyn Fn(u64) + Sync)) -> Result<Report> {
    let _objects = store.lock_objects(Hold::Shared, "verify")?;
    let mut report = Report::default();
    if only.is_none() {
        report.damaged.extend(verify_state(store));
    }
    let names = match only {
        Some(name) => vec![name.clone()],
        None => store.releases()?,
    };
    // Content by hash: its length, and a path that needs it, for the message.
    let mut contents: HashMap<Digest, (u64, String)> = HashMap::new();
    for name in &names {
        report.releases += 1;
        let checked = store.manifest(name).and_then(|manifest| {
            manifest.verify()?;
            needs(&manifest, name, &mut contents)
        });
        match checked {
            Ok(()) => {}
            Err(error) if error.is_request() => return Err(error),
            Err(error) => report.damaged.push(error.to_string()),
        }
    }
    let objects = Objects::of(store.root())?;
    if only.is_none() {
        let mut also = |digest, len| {
            contents.entry(digest).or_insert((len, "no release".to_owned()));
        };
        objects.each_own(&mut also, |_| {})?;
        for pack in objects.packs() {
            let checked = pack.verify().and_then(|()| pack.each(|digest, place| also(digest, place.len.into())));
            report.damaged.extend(checked.err().map(|error| error.to_string()));
        }
        report.damaged.extend(objects.bad_packs());
    }
    report.objects = contents.len();
    report.bytes = contents.values().map(|(len, _)| len).sum();
    let mut damaged: Vec<String> = contents
        .par_iter()
        .filter_map(|(digest, (len, needed_by))| {
            progress(*len);
            match hash_object(&objects, *digest, *len) {
                Ok(found) if found == *digest => None,
                Ok(_) => Some(format!(
                    "the content of the object {} is not what was stored; restore it from a backup (needed by \
                     {needed_by})",
                    objects.show(*digest)
                )),
                Err(error) => Some(format!("{error} (needed by {needed_by})")),
            }
        })
        .collect();
    damaged.sort();
    report.damaged.extend(damaged);
    Ok(report)
}

/// Checks what says what is served, and what was done. A switch may go on meanwhile: what was read of its two files
/// counts if they belong together.
fn verify_state(store: &Store) -> Vec<String> {
    let mut damaged = store.journal().map_or_else(|error| vec![error.to_string()], |journal| journal.damaged);
    for _ in 0..READS {
        let state = store.active().and_then(|active| {
            let stamps = active.as_ref().map_or(Ok(()), |active| store.read_stamps(active.stamps_len).map(drop));
            Ok((stamps, store.active()? == active))
        });
        match state {
            Ok((stamps, true)) => {
                damaged.extend(stamps.err().map(|error| error.to_string()));
                break;
            }
            Ok((_, false)) => {}
            Err(error) => {
                damaged.push(error.to_string());
                break;
            }
        }
    }
    damaged
}

fn needs(manifest: &Manifest, name: &ReleaseName, contents: &mut HashMap<Digest, (u64, String)>) -> Result<()> {
    for index in 0..manifest.len() {
        let node = manifest.node(index)?;
        match node.kind {
            Kind::File => {
                let digest = manifest.digest(index)?;
                if let std::collections::hash_map::Entry::Vacant(entry) = contents.entry(digest) {
                    let path = manifest.path_of(index)?;
                    entry.insert((node.size, format!("{name}: {}", String::from_utf8_lossy(&path))));
                }
            }
            Kind::Dir => {
                manifest.children(index)?;
            }
            Kind::Symlink => {
                manifest.target(index)?;
            }
        }
    }
    Ok(())
}

fn hash_object(objects: &Objects, digest: Digest, len: u64) -> Result<Digest> {
    let object = objects.open(digest, len)?;
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < len {
        let bytes = object.read(at, 1 << 20).context(|| format!("reading the object {}", objects.show(digest)))?;
        hasher.update(&bytes);
        at += bytes.len() as u64;
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}
