//! Lets go of releases that were removed from the store: the mount serves what the kernel holds of them, and their
//! manifests stay mapped, until it holds nothing.
//!
//! A search asks the kernel for each node that a removed release answers for: no release that was active later has it.
//! Children come after their parents in a manifest and are asked before them. In the kernel a name holds the directory
//! that it stands in. So once a directory is found gone, all below it is gone, and nobody comes there again: what lies
//! above it is answered by another release, or asked later. The search stops at a node that is held. The name of one
//! that nobody uses may still be cached, so it is dropped first.
//!
//! In a directory that only the removed release answers for, a lookup or a listing can bring a name back: each search
//! drops it. In one that a later release answers for, nothing brings it back before the next switch, and the name may
//! stand for what that release has there: it is dropped once a switch.

use super::kernel::{Kernel, Use};
use crate::error::Result;
use crate::fs::{Epoch, Fs, Release};
use crate::store::{Store, look};
use crate::tree::{LayerId, LayerPath, NodeId, ReleaseName, Tree};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How many manifests are searched for a node, or the kernel asked for one, in one turn: some milliseconds.
const MOST_AT_ONCE: usize = 10_000;
/// How many names a search drops before it rests.
const MOST_DROPS: u32 = 1000;
/// A search that met a node in use begins anew after so many times the processor time that it took, for each that is
/// under way, and one that dropped many names goes on then: so all take a hundredth of a processor together.
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

/// The name that a removed release has for a node that the kernel holds and only this release answers for.
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
    /// As of this switch, the names of the nodes from this one on are dropped where a later release answers for the
    /// directory.
    once: (u32, u32),
    /// How many names were dropped since it rested.
    drops: u32,
    /// The processor time since it rested.
    took: Duration,
    /// The thread's processor time when a name was given out to be dropped.
    dropping: Option<Duration>,
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
        Self {
            release: release.clone(),
            from,
            dropped: None,
            once: (0, from),
            drops: 0,
            took: Duration::ZERO,
            dropping: None,
            rests: None,
        }
    }

    /// Rests with all nodes found gone; or because it dropped many names; or because a node is in use or the search
    /// failed: then it begins anew.
    fn go_on(&mut self, asked: &Asked<'_>, searches: u32) -> Result<Next> {
        let begun = self.dropping.take().unwrap_or_else(processor_time);
        let next = self.look(asked);
        let now = processor_time();
        self.took += now.saturating_sub(begun);
        let rest = self.took.saturating_mul(REST).saturating_mul(searches);
        match &next {
            Ok(Next::Rest) if self.from > 0 && self.drops >= MOST_DROPS => self.rest(rest),
            Ok(Next::Rest) if self.from > 0 => self.begin_anew(rest),
            Err(_) => self.begin_anew(LONG_REST),
            Ok(Next::Drop(_)) => (self.drops, self.dropping) = (self.drops + 1, Some(now)),
            Ok(_) => {}
        }
        next
    }

    fn begin_anew(&mut self, after: Duration) {
        (self.from, self.dropped) = (self.release.manifest.len(), None);
        self.rest(after);
    }

    fn rest(&mut self, rest: Duration) {
        (self.drops, self.took, self.rests) = (0, Duration::ZERO, Instant::now().checked_add(rest));
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
                return self.held(node, asked, &mut left);
            }
            self.from = node;
        }
        self.from = 0;
        Ok(Next::Rest)
    }

    /// What is done about a node that is held: its name is dropped, if that may help and was not done.
    fn held(&mut self, node: u32, asked: &Asked<'_>, left: &mut usize) -> Result<Next> {
        if self.dropped == Some(node) || self.drops >= MOST_DROPS {
            return Ok(Next::Rest);
        }
        let name = self.name(node)?;
        if asked.has_later(name.dir, left)? {
            let switch = asked.epoch.switch;
            if self.once.0 == switch && self.once.1 <= node {
                return Ok(Next::Rest);
            }
            self.once = (switch, node);
        }
        self.dropped = Some(node);
        Ok(Next::Drop(name))
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
        if self.has_later(node, left)? {
            return Ok(false);
        }
        *left = left.saturating_sub(1);
        self.holds(node)
    }

    /// Whether a release that was active later has a node: then that answers for it.
    fn has_later(&self, node: NodeId, left: &mut usize) -> Result<bool> {
        let later = self.epoch.earlier.iter().take_while(|other| !Arc::ptr_eq(other, self.release));
        for other in std::iter::once(&self.epoch.release).chain(later).filter(|other| !other.manifest.is_bad()) {
            *left = left.saturating_sub(1);
            if other.manifest.find_node(node)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
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

/// What the thread took of a processor, without the time in which it waited.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

/// Whether the store still has a release as it is mounted.
pub(super) fn is_there(store: &Store, release: &Release) -> Result<bool> {
    let there = look::is_there(&store.manifest_path(&release.name))?;
    Ok(there && store.manifest(&release.name)?.identity() == release.manifest.identity())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::release::manifest::{BuildNode, Builder, Manifest};
    use crate::tree::{ChangeSet, Digest, Kind};
    use parking_lot::Mutex;
    use std::collections::BTreeSet;
    use std::path::Path;

    /// Holds these nodes; nothing is dropped but by the test.
    #[derive(Debug, Default)]
    struct Holding {
        nodes: Mutex<BTreeSet<NodeId>>,
        asked: Mutex<usize>,
    }

    impl Kernel for Holding {
        fn drop_entry(&self, _: NodeId, _: &[u8]) -> Result<()> {
            Ok(())
        }

        fn drop_attributes(&self, _: NodeId) -> Result<()> {
            Ok(())
        }

        fn pass_lock(&self, _: NodeId) -> Result<()> {
            Ok(())
        }

        fn holds(&self, node: NodeId) -> Result<Use> {
            *self.asked.lock() += 1;
            Ok(if self.nodes.lock().contains(&node) { Use::Held } else { Use::Gone })
        }
    }

    /// A release with a page of its own, and so many files in a directory that is there if there are any.
    fn release(name: &str, files: usize) -> Arc<Release> {
        let file = |name: &str, content: &[u8]| BuildNode {
            digest: Digest::of(content),
            ..BuildNode::new(name.as_bytes(), Kind::File, 0o644)
        };
        let mut builder = Builder::new(BuildNode::new(b"", Kind::Dir, 0o755));
        builder.push(0, file("page", name.as_bytes()));
        if files > 0 {
            let dir = builder.push(0, BuildNode::new(b"dir", Kind::Dir, 0o755));
            (0..files).for_each(|n| {
                builder.push(dir, file(&format!("{n:05}"), b""));
            });
        }
        let manifest = Manifest::from_bytes(builder.encode(0).expect("a manifest"), Path::new(name)).expect("whole");
        Arc::new(Release { name: name.parse().expect("a name"), manifest })
    }

    fn node(release: &Release, path: &str) -> NodeId {
        let index = release.manifest.find_path(path.as_bytes()).expect("it is whole").expect("it is there");
        release.manifest.node(index).expect("it is whole").nodeid
    }

    #[test]
    fn a_search_that_drops_many_names_rests_and_goes_on_where_it_was() {
        const FILES: usize = 2500;
        let removed = release("1", FILES);
        let epoch = Epoch::new(1, removed.clone(), Arc::default()).after(2, release("2", 0), &ChangeSet::default());
        let nodes = (0..removed.manifest.len()).map(|index| removed.manifest.node(index).expect("whole").nodeid);
        let kernel = Holding { nodes: Mutex::new(nodes.collect()), asked: Mutex::new(0) };
        let asked = Asked { epoch: &epoch, release: &removed, kernel: &kernel };
        let mut search = Search::new(&removed);
        let mut dropped = vec![0];
        while search.from > 0 {
            match search.go_on(&asked, 1).expect("all can be asked") {
                Next::Search => {}
                Next::Drop(name) => {
                    let path = String::from_utf8(name.path).expect("text");
                    assert!(kernel.nodes.lock().remove(&node(&removed, &path)), "{path} was dropped before");
                    *dropped.last_mut().expect("one") += 1;
                }
                Next::Rest if search.from == 0 => {}
                Next::Rest => {
                    assert!(search.rests.is_some_and(|until| until > Instant::now()), "it goes on at once");
                    dropped.push(0);
                }
            }
        }
        // The page and the directory too.
        assert_eq!(dropped, [1000, 1000, FILES - 2000 + 2]);
        let most = 2 * removed.manifest.len() as usize + dropped.len();
        assert!(*kernel.asked.lock() <= most, "the kernel was asked {} times", kernel.asked.lock());
    }

    #[test]
    fn a_name_that_a_later_release_may_have_is_dropped_once_a_switch_and_one_that_it_cannot_have_at_each_search() {
        let removed = release("1", 1);
        let after =
            |epoch: &Epoch, switch: u32| epoch.after(switch, release(&switch.to_string(), 0), &ChangeSet::default());
        let epochs = [after(&Epoch::new(1, removed.clone(), Arc::default()), 2)];
        let epochs = [after(&epochs[0], 3), after(&after(&epochs[0], 3), 4)];
        let kernel = Holding::default();
        let mut search = Search::new(&removed);
        let mut drops = |epoch: &Epoch| {
            let asked = Asked { epoch, release: &removed, kernel: &kernel };
            let mut drops = Vec::new();
            while let Next::Drop(name) = search.go_on(&asked, 1).expect("all can be asked") {
                drops.push(String::from_utf8(name.path).expect("text"));
            }
            drops
        };
        kernel.nodes.lock().extend([node(&removed, "page"), node(&removed, "dir/00000")]);
        for _ in 0..3 {
            assert_eq!(drops(&epochs[0]), ["dir/00000"], "a listing may have brought it back");
        }
        kernel.nodes.lock().remove(&node(&removed, "dir/00000"));
        assert_eq!(drops(&epochs[0]), ["page"]);
        assert_eq!((drops(&epochs[0]), drops(&epochs[0])), (vec![], vec![]));
        assert_eq!(drops(&epochs[1]), ["page"], "after a switch");
        assert_eq!(drops(&epochs[1]), [""; 0]);
    }
}
