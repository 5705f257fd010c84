//! The writable layer of a store, looked at and changed by a command while nobody serves it.

use super::drops::Change;
use crate::error::{Error, Result};
use crate::fs::media::{Caller, How, Rights, Task};
use crate::fs::refused::Refused;
use crate::fs::{Descriptors, Media, Release, View};
use crate::store::Store;
use crate::store::objects::Objects;
use crate::store::upper::Upper;
use crate::tree::{ReleaseName, change_set};
use std::sync::Arc;

fn opened(store: &Store) -> Result<(Media, View)> {
    let active = store.active()?.ok_or_else(|| Error::request("no release is active, so there is nothing to hide"))?;
    let view = View::first(store, &active)?;
    let media = Media::new(
        &store.settings().scopes,
        Upper::open(store.media_home())?,
        Arc::new(Refused::default()),
        Rights::Modes,
    );
    Ok((media, view))
}

/// What the writable layer hides of the active release. Changes nothing, and may be asked beside a daemon.
pub fn shadowed(store: &Store) -> Result<Vec<(Vec<u8>, How)>> {
    let (media, view) = opened(store)?;
    media.shadowed(&view)
}

/// How many names that a switch to this release would change the writable layer hides: what the switch itself counts.
/// Changes nothing, and may be asked beside a daemon.
pub fn hidden_in_switch(store: &Store, to: &ReleaseName) -> Result<usize> {
    if store.settings().scopes.is_empty() {
        return Ok(0);
    }
    let (media, view) = opened(store)?;
    let new = Arc::new(Release { name: to.clone(), manifest: store.manifest(to)? });
    let changes = change_set(&view.release.manifest, &new.manifest)?;
    Change::new(view.release, new, changes, Some(&media.scopes))?.hidden_by(&media)
}

/// Lets what is hidden at a path of the docroot, and below it, show again; only while nobody serves the store.
pub fn restore(store: &Store, path: &[u8]) -> Result<Vec<Vec<u8>>> {
    store.make_layer()?;
    let (media, view) = opened(store)?;
    store.make_own_layer(&view.release.name)?;
    let contents = Descriptors::new(Objects::of(store.root())?, 16);
    let task = Task { view: &view, contents: &contents, caller: Caller::ROOT };
    Ok(media.restore(task, path)?.into_iter().map(|restored| restored.path).collect())
}
