//! `media restore`, with a daemon and without: the release's files that show again are stamped, and then what hides
//! them is given up. Whoever stops between the two leaves a later mtime than need be, and never an earlier one.

use crate::error::Result;
use crate::fs::media::{Caller, Restoration, Task, shown_at};
use crate::fs::{Contents, Epoch, Media};
use crate::protocol::request::Own;
use crate::switch::{Restamped, Switcher};
use crate::tree::NodeId;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What was restored, and what shows by it.
pub(super) struct Shown {
    pub(super) done: Restoration,
    pub(super) nodes: BTreeSet<NodeId>,
    stamped: Option<Restamped>,
}

impl Shown {
    /// Waits until nothing that is written can have the mtime of what shows again.
    pub(super) fn outwait(&self) {
        self.stamped.iter().for_each(|stamped| stamped.outwait());
    }
}

/// Lets what is hidden at a path of the docroot, and below it, show again. `own` is what becomes of what the release
/// lacks there.
pub(super) fn restore(
    (media, contents): (&Media, &Contents),
    switcher: &Switcher,
    served: impl Fn() -> Arc<Epoch>,
    (path, own): (&[u8], Own),
) -> Result<Shown> {
    let epoch = served();
    let planned = media.would_show(&epoch, path, own)?;
    let mut stamped = if planned.is_empty() { None } else { Some(switcher.restamp(&planned, None)?) };
    let mut done = media.restore(Task { epoch: &epoch, contents, caller: Caller::ROOT }, path, own)?;
    // By now another release may be served, and more have been hidden; or it took so long that what was hidden may have
    // been written to in the very second of the stamps.
    let nodes = shown_at(&served(), done.restored.iter().map(|restored| &restored.path[..]));
    let nodes = nodes.and_then(|nodes| {
        if !nodes.is_subset(&planned) || !nodes.is_empty() && stamped.is_none_or(Restamped::is_late) {
            stamped = Some(switcher.restamp(&nodes, stamped)?);
        }
        Ok(nodes)
    });
    let nodes = nodes.unwrap_or_else(|error| {
        done.fail(error);
        planned
    });
    Ok(Shown { done, nodes, stamped })
}
