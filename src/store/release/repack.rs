//! Packs written anew: without what nobody needs, and many small ones as one.

use crate::error::{Context, Error, Result};
use crate::fault;
use crate::store::Store;
use crate::store::durable::{Dir, free_bytes};
use crate::store::release::import::Staging;
use crate::store::release::objects::{Content, Extent, Objects, PACKS, Pack};
use crate::tree::Digest;
use std::collections::HashSet;
use std::fs;
use std::sync::Arc;

/// Up to so many needed bytes are copied, however little is freed.
const CHEAP: u64 = 64 << 20;
/// More than so many packs make finding a content slow: those of which little is needed become one.
const MANY: usize = 16;
/// Bytes that are read before they are written.
const BATCH: u64 = 4 << 20;

struct PackPlan {
    pack: Arc<Pack>,
    keep: Vec<(Digest, Extent)>,
    drop: Vec<Digest>,
}

impl PackPlan {
    fn kept_bytes(&self) -> u64 {
        self.keep.iter().map(|(_, extent)| u64::from(extent.len)).sum()
    }

    /// Whether what is freed is worth what is copied.
    fn is_worth_it(&self) -> bool {
        let kept = self.kept_bytes();
        let all = self.pack.content_bytes();
        !self.drop.is_empty() && (kept <= CHEAP || all.saturating_sub(kept) * 4 >= all)
    }
}

/// Takes the contents that are not kept out of the packs, where that is worth it; gives those that stay all the same.
/// Stopped anywhere, each content that is kept lies in a pack.
pub(super) fn repack(store: &Store, objects: &Objects, keep: impl Fn(Digest) -> bool) -> Result<HashSet<Digest>> {
    let mut plans = Vec::new();
    for pack in objects.packs() {
        let mut plan = PackPlan { pack: pack.clone(), keep: Vec::new(), drop: Vec::new() };
        pack.each(|digest, extent| match keep(digest) {
            true => plan.keep.push((digest, extent)),
            false => plan.drop.push(digest),
        })?;
        plans.push(plan);
    }
    // One alone would only be copied.
    let is_small = |plan: &PackPlan| plan.kept_bytes() <= CHEAP / 4;
    let merge = plans.len() > MANY && plans.iter().filter(|plan| is_small(plan)).count() > 1;
    let (chosen, left): (Vec<_>, Vec<_>) =
        plans.into_iter().partition(|plan| plan.is_worth_it() || merge && is_small(plan));
    let mut stays: HashSet<Digest> = left.into_iter().flat_map(|plan| plan.drop).collect();
    if chosen.is_empty() {
        return Ok(stays);
    }

    let (mut chosen, empty): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|plan| !plan.keep.is_empty());
    remove(objects, &empty)?;
    let need = chosen.iter().map(PackPlan::kept_bytes).sum();
    if free_bytes(store.root())? < need {
        log::warn!(
            "the disk of {} has no room for {need} bytes, so {} packs stay as they are; free some space and run gc \
             again",
            store.root().display(),
            chosen.len()
        );
        stays.extend(chosen.drain(..).flat_map(|plan| plan.drop));
    }
    if !chosen.is_empty() {
        let staging = Staging::begin(store)?;
        let mut copied = Vec::new();
        for mut plan in chosen {
            match copy(objects, &mut plan, &staging) {
                Ok(()) => copied.push(plan),
                Err(error @ Error::Damaged(_)) => {
                    log::warn!("{error}");
                    stays.extend(plan.drop);
                }
                Err(error) => return Err(error),
            }
        }
        staging.place()?;
        fault::point("gc.repacked");
        remove(objects, &copied)?;
    }
    Ok(stays)
}

/// Copies what is kept of a pack, in its order. What is damaged must not get a new place under its old hash: it is left
/// out if a file of its own is used instead.
fn copy(objects: &Objects, plan: &mut PackPlan, staging: &Staging) -> Result<()> {
    let path = plan.pack.path().display().to_string();
    plan.keep.sort_unstable_by_key(|(_, extent)| extent.offset);
    let (mut batch, mut size) = (Vec::new(), 0);
    for (digest, extent) in &plan.keep {
        let content = Content::of_pack(*digest, &plan.pack, *extent);
        let bytes = content.read(0, extent.len as usize).context(|| format!("reading the pack {path}"))?;
        if Digest::of(&bytes) != *digest {
            if objects.has_own(*digest, extent.len.into())? {
                continue;
            }
            return Err(Error::damaged(format!(
                "the content {} in the pack {path} is not what was stored, so the pack stays as it is; `verfs verify` \
                 says what needs it",
                digest.to_hex()
            )));
        }
        size += bytes.len() as u64;
        batch.push((*digest, bytes));
        if size >= BATCH {
            staging.take(std::mem::take(&mut batch))?;
            size = 0;
        }
    }
    staging.take(batch)
}

fn remove(objects: &Objects, plans: &[PackPlan]) -> Result<()> {
    for PackPlan { pack, .. } in plans {
        let what = || format!("removing {}", pack.path().display());
        // A pack of the same contents in the same order has the same name: what is there now may be a new one.
        if !pack.is_still_there()? {
            continue;
        }
        fs::remove_file(pack.path()).context(what)?;
        fault::point("gc.pack-removed");
    }
    match plans.is_empty() {
        true => Ok(()),
        false => Dir::open(&objects.root().join(PACKS))?.sync(),
    }
}
