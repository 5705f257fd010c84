//! The writable layer of a store, looked at and changed by a command while nobody serves it.

use crate::error::{Error, Result};
use crate::fs::media::{Caller, How, Rights, Task};
use crate::fs::refused::Refused;
use crate::fs::{Descriptors, Media, Release, View};
use crate::store::Store;
use crate::store::active::Active;
use crate::store::objects::Objects;
use crate::store::upper::Upper;
use std::sync::Arc;

/// The view of what is active: what a mount begins with.
pub fn first_view(store: &Store, active: &Active) -> Result<View> {
    let name = active.release()?;
    let manifest = store.manifest(&name)?;
    Ok(View {
        switch: active.switch,
        release: Arc::new(Release { name, manifest }),
        earlier: Vec::new(),
        stamps: Arc::new(store.read_stamps(active.stamps_len)?),
        transition: None,
    })
}

fn opened(store: &Store) -> Result<(Media, View)> {
    let active = store.active()?.ok_or_else(|| Error::request("no release is active, so there is nothing to hide"))?;
    let view = first_view(store, &active)?;
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
    let contents = Descriptors::new(Objects::of(store.root()), 16);
    let task = Task { view: &view, contents: &contents, caller: Caller { uid: 0, gid: 0, thread: 0 } };
    Ok(media.restore(task, path)?.into_iter().map(|restored| restored.path).collect())
}
