//! The writable layer of a store, looked at and changed by a command while nobody serves it.

use crate::error::{Error, Result};
use crate::fs::media::{Caller, How, Rights, Task};
use crate::fs::refused::Refused;
use crate::fs::{Descriptors, Media, View};
use crate::store::Store;
use crate::store::media::home::Upper;
use crate::store::release::objects::Objects;
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

/// Lets what is hidden at a path of the docroot, and below it, show again; only while nobody serves the store.
pub fn restore(store: &Store, path: &[u8]) -> Result<Vec<Vec<u8>>> {
    store.make_layer()?;
    let (media, view) = opened(store)?;
    store.make_own_layer(&view.release.name)?;
    let contents = Descriptors::new(Objects::of(store.root())?, 16);
    let task = Task { view: &view, contents: &contents, caller: Caller::ROOT };
    Ok(media.restore(task, path)?.into_iter().map(|restored| restored.path).collect())
}
