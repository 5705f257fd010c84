//! That no number stands for two nodes of the store.
//!
//! The kernel knows a node by its number alone, a hash of 62 bits of what everybody may know. Whoever tries 2^31 files
//! finds two with the same number, and the kernel would show one of them for the other. Within a release the builder of
//! the manifest sees it; here a new release is compared with one that is there.

use super::show;
use crate::error::{Error, Result};
use crate::store::release::manifest::Manifest;
use crate::tree::{Kind, Tree};

/// Refuses a release that has the number of a node of `there` for another one. What is the same in both is passed by,
/// directories whole, so the cost grows with what differs.
pub(super) fn check(made: &Manifest, there: &Manifest) -> Result<()> {
    // The directories still to be compared, at one path each.
    let mut pairs = vec![(0, Some(0))];
    while let Some((dir, theirs)) = pairs.pop() {
        if let Some(theirs) = theirs
            && made.digest(dir)? == there.digest(theirs)?
        {
            continue;
        }
        for index in made.children(dir)? {
            let node = made.node(index)?;
            let at_name = match theirs {
                Some(theirs) => there.find_child(theirs, made.name(index)?)?,
                None => None,
            };
            let same = at_name.map_or(Ok(false), |at| is_same(made, index, there, at))?;
            if node.kind == Kind::Dir {
                pairs.push((index, at_name.filter(|_| same)));
            }
            if !same && let Some(other) = there.find_node(node.nodeid)? {
                return Err(Error::refused(format!(
                    "{} and, in release {}, {} have the same number, and the kernel would take one for the other; \
                     rename or change one of them, and add again",
                    show(&made.path_of(index)?),
                    there.path().file_name().unwrap_or_default().display(),
                    show(&there.path_of(other)?)
                )));
            }
        }
    }
    Ok(())
}

/// Whether two nodes of one path are one.
fn is_same(made: &Manifest, index: u32, there: &Manifest, at: u32) -> Result<bool> {
    let (ours, theirs) = (made.node(index)?, there.node(at)?);
    Ok(match (ours.kind, theirs.kind) {
        (Kind::Dir, Kind::Dir) => true,
        (a, b) => {
            a == b
                && ours.mode == theirs.mode
                && ours.owner == theirs.owner
                && made.digest(index)? == there.digest(at)?
        }
    })
}
