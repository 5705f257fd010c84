//! Lets go of releases that were removed from the store: the mount serves what the kernel holds of them, and their
//! manifests stay mapped, until it holds nothing.
//!
//! A search asks the kernel for each node that a removed release answers for: no release that was active later has it.
//! Children come after their parents in a manifest and are asked before them. In the kernel a name holds the directory
//! that it stands in. So once a directory is found gone, all below it is gone, and nobody comes there again: what lies
//! above it is answered by another release, or asked later. The search stops at a node that is held. The name of one
//! that nobody uses may still be cached, from a listing or a lookup inside a directory that is gone; so it is dropped.

use super::kernel::{Kernel, Use};
use crate::error::Result;
use crate::fs::{Epoch, Fs, Release};
use crate::store::{Store, look};
use crate::tree::{LayerId, LayerPath, NodeId, ReleaseName, Tree};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How many manifests are searched for a node, or the kernel asked for one, in one turn: some milliseconds.
const MOST_AT_ONCE: usize = 10_000;
/// A search that met a node in use begins anew after so many times what it took, for each that is under way: so all
/// take a hundredth of a processor together.
const REST: u32 = 100;
/// One that failed begins anew after this time.
const LONG_REST: Duration = Duration::from_secs(60);

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The search goes on.
    Search,
    /// A name is to be dropped; then the search goes on.
    Drop(HeldName),
    /// Nothing for now.
    Rest,
}

/// A name whose node the kernel holds, and only a removed release has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HeldName {
    pub(super) dir: NodeId,
    pub(super) name: Vec<u8>,
    /// From the docroot.
    pub(super) path: Vec<u8>,
}

/// The searches that are under way.
#[derive(Debug, Default)]
pub(super) struct LettingGo {
    /// When the store's list of releases changed last, and the switch: as of the last look for removed ones.
    seen: Option<(SystemTime, u32)>,
    searches: Vec<Search>,
}

/// How far the search through a removed release has come.
#[derive(Debug)]
struct Search {
    release: Arc<Release>,
    /// The nodes from this one on are gone.
    from: u32,
    /// The node whose name was dropped last.
    dropped: Option<u32>,
    took: Duration,
    /// It rests until then.
    rests: Option<Instant>,
}

impl LettingGo {
    /// Forgets what was found of a release, which is about to become active.
    pub(super) fn forget(&mut self, name: &ReleaseName) {
        self.searches.retain(|search| search.release.name != *name);
        self.seen = None;
    }

    /// Searches a little, and lets go of a release of which the kernel holds nothing. The caller has the turn.
    pub(super) fn some(&mut self, fs: &Fs, kernel: &dyn Kernel, store: &Store) -> Result<Next> {
        let epoch = fs.epochs.load();
        self.find_removed(&epoch, store);
        let searches = u32::try_from(self.searches.len()).unwrap_or(u32::MAX);
        for search in &mut self.searches {
            if search.rests.is_some_and(|until| Instant::now() < until) || fs.epochs.is_listed(&search.release) {
                continue;
            }
            let release = search.release.clone();
            let asked = Asked { epoch: &epoch, release: &release, kernel };
            match search.go_on(&asked, searches)? {
                Next::Rest if search.from == 0 && !asked.holds_own_layer(store)? => {
                    log::info!("release {} was removed and nobody uses it any more: it is let go", release.name);
                    fs.epochs.let_go(&release);
                    return Ok(Next::Search);
                }
                Next::Rest => {}
                next => return Ok(next),
            }
        }
        Ok(Next::Rest)
    }

    /// Finds earlier releases that were removed, if any may have been since the last look.
    fn find_removed(&mut self, epoch: &Epoch, store: &Store) {
        let earlier = |release: &Arc<Release>| epoch.earlier.iter().any(|other| Arc::ptr_eq(other, release));
        self.searches.retain(|search| earlier(&search.release));
        // Where it cannot be looked at, nothing counts as removed.
        let names = look::metadata(&store.root().join("releases")).ok().flatten();
        let Some(changed) = names.and_then(|meta| meta.modified().ok()) else { return };
        if self.seen == Some((changed, epoch.switch)) {
            return;
        }
        for release in &epoch.earlier {
            let known = self.searches.iter().position(|search| Arc::ptr_eq(&search.release, release));
            // One whose manifest cannot be read is there.
            match (known, is_there(store, release).unwrap_or(true)) {
                (Some(at), true) => drop(self.searches.swap_remove(at)),
                (None, false) => self.searches.push(Search::new(release)),
                _ => {}
            }
        }
        // The clock of the disk is coarse: what changed a moment ago may change again and look the same.
        self.seen = changed.elapsed().is_ok_and(|age| age > Duration::from_secs(1)).then_some((changed, epoch.switch));
    }
}

impl Search {
    fn new(release: &Arc<Release>) -> Self {
        let from = release.manifest.len();
        Self { release: release.clone(), from, dropped: None, took: Duration::ZERO, rests: None }
    }

    /// Rests with all nodes found gone, or because one is in use or the search failed: then it begins anew.
    fn go_on(&mut self, asked: &Asked<'_>, searches: u32) -> Result<Next> {
        let begun = Instant::now();
        let next = self.look(asked);
        self.took += begun.elapsed();
        let rest = match &next {
            Ok(Next::Rest) if self.from > 0 => self.took.saturating_mul(REST).saturating_mul(searches),
            Err(_) => LONG_REST,
            Ok(_) => return next,
        };
        *self = Self { rests: Instant::now().checked_add(rest), ..Self::new(&self.release) };
        next
    }

    fn look(&mut self, asked: &Asked<'_>) -> Result<Next> {
        let mut left = MOST_AT_ONCE;
        while let Some(node) = self.from.checked_sub(1)
            && !self.release.manifest.is_bad()
        {
            if left == 0 {
                return Ok(Next::Search);
            }
            if asked.is_held(node, &mut left)? {
                let next = if self.dropped == Some(node) { Next::Rest } else { Next::Drop(self.name(node)?) };
                self.dropped = Some(node);
                return Ok(next);
            }
            self.from = node;
        }
        self.from = 0;
        Ok(Next::Rest)
    }

    fn name(&self, node: u32) -> Result<HeldName> {
        let manifest = &self.release.manifest;
        let dir = manifest.node(manifest.node(node)?.parent)?.nodeid;
        Ok(HeldName { dir, name: manifest.name(node)?.to_vec(), path: manifest.path_of(node)? })
    }
}

/// Who is asked about a removed release among the earlier ones.
struct Asked<'a> {
    epoch: &'a Epoch,
    release: &'a Arc<Release>,
    kernel: &'a dyn Kernel,
}

impl Asked<'_> {
    /// Whether the release answers for this node of it, and the kernel holds it.
    fn is_held(&self, index: u32, left: &mut usize) -> Result<bool> {
        let node = self.release.manifest.node(index)?.nodeid;
        let later = self.epoch.earlier.iter().take_while(|other| !Arc::ptr_eq(other, self.release));
        for other in std::iter::once(&self.epoch.release).chain(later).filter(|other| !other.manifest.is_bad()) {
            *left = left.saturating_sub(1);
            if other.manifest.find_node(node)?.is_some() {
                return Ok(false);
            }
        }
        *left = left.saturating_sub(1);
        self.holds(node)
    }

    /// Whether the kernel holds the top of a scope in the release's own layer, as it does while it holds any of it.
    fn holds_own_layer(&self, store: &Store) -> Result<bool> {
        for scope in store.settings().scopes.iter().filter(|scope| scope.per_release) {
            let top = LayerPath::new(LayerId::Own(self.release.name.clone()), scope.path.as_bytes());
            if self.holds(top.dir_node())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn holds(&self, node: NodeId) -> Result<bool> {
        Ok(self.kernel.holds(node)? == Use::Held)
    }
}

/// Whether the store still has a release as it is mounted.
pub(super) fn is_there(store: &Store, release: &Release) -> Result<bool> {
    let there = look::is_there(&store.manifest_path(&release.name))?;
    Ok(there && store.manifest(&release.name)?.identity() == release.manifest.identity())
}
