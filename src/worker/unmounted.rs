//! The writable layer of a store, looked at and changed by a command while nobody serves it.

use super::restore;
use crate::error::{Error, Result};
use crate::fs::media::{How, Restoration};
use crate::fs::{Contents, Epoch, Media, Release};
use crate::protocol::request::Own;
use crate::store::Store;
use crate::store::lock::Lock;
use crate::store::release::objects::Objects;
use crate::switch::{ReleasePair, Switcher, media_of};
use crate::tree::ReleaseName;
use std::sync::Arc;

fn opened(store: &Store) -> Result<(Media, Epoch)> {
    let active = store.active()?.ok_or_else(|| Error::request("no release is active, so there is nothing to hide"))?;
    let epoch = Epoch::first(store, &active)?;
    Ok((media_of(store)?, epoch))
}

/// What the writable layer hides of the active release. Changes nothing, and may be asked beside a daemon.
pub(crate) fn shadowed(store: &Store) -> Result<Vec<(Vec<u8>, How)>> {
    let (media, epoch) = opened(store)?;
    media.shadowed(&epoch)
}

/// How many names that a switch to this release would change the writable layer hides: what the switch itself counts.
/// Changes nothing, and may be asked beside a daemon.
pub(crate) fn hidden_in_switch(store: &Store, to: &ReleaseName) -> Result<usize> {
    if store.settings().scopes.is_empty() {
        return Ok(0);
    }
    let (media, epoch) = opened(store)?;
    let new = Arc::new(Release { name: to.clone(), manifest: store.manifest(to)? });
    let pair = ReleasePair::new(epoch.release.clone(), new, Some(&media.scopes))?;
    let mut hidden = 0;
    for path in pair.scoped_paths()? {
        hidden += usize::from(media.shadows(&path)?);
    }
    Ok(hidden)
}

/// Lets what is hidden at a path of the docroot, and below it, show again. Nobody serves the store: the lock keeps it
/// so.
pub(crate) fn restore(store: &Store, lock: &Lock, path: &[u8], own: Own) -> Result<Restoration> {
    store.make_layer()?;
    let (media, epoch) = opened(store)?;
    media.make_own_layer(&epoch.release.name, &store.settings().scopes)?;
    let contents = Contents::new(Objects::of(store.root())?, 16);
    let (switcher, epoch) = (Switcher::unmounted(store, lock)?, Arc::new(epoch));
    let shown = restore::restore((&media, &contents), &switcher, || epoch.clone(), (path, own))?;
    shown.outwait();
    shown.done.whole()
}
