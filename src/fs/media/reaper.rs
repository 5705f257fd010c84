//! Lets go of files that were unlinked while open and that nobody can reach any more, and closes descriptors. A FORGET
//! is only noted; a thread of the worker's does the disk work, so that no thread that answers the kernel waits for it.

use super::Media;
use super::descriptors::Closing;
use super::limits::disk_bytes;
use super::nodes::LetGo;
use super::scopes::ScopeId;
use crate::store::media::home::Orphan;
use crate::tree::NodeId;
use parking_lot::{Condvar, Mutex};
use std::time::Duration;

/// How long the thread waits for more once something is to be let go of.
const TOGETHER: Duration = Duration::from_millis(2);

/// Whether there may be something to let go of. Its lock is a leaf.
#[derive(Debug, Default)]
pub(super) struct Litter {
    is_there: Mutex<bool>,
    came: Condvar,
}

impl Litter {
    fn note(&self) {
        *self.is_there.lock() = true;
        self.came.notify_one();
    }

    fn wait(&self, limit: Duration) {
        let mut is_there = self.is_there.lock();
        if !*is_there {
            self.came.wait_for(&mut is_there, limit);
        }
        if *is_there {
            // More comes mostly at once: it is let go of together, and not beside each of the requests that bring it.
            parking_lot::MutexGuard::unlocked(&mut is_there, || std::thread::sleep(TOGETHER));
        }
        *is_there = false;
    }
}

impl Media {
    /// The kernel forgot a node.
    pub fn forget(&self, node: NodeId, times: u64) {
        // Many at once, while others are answered, are left to the next time.
        if self.mount.forget(node, times) {
            self.litter.note();
        }
    }

    /// Waits until something may be let go of, for so long at most, and lets it go.
    pub fn reap_next(&self, limit: Duration) {
        self.litter.wait(limit);
        self.reap();
    }

    /// Lets go of what the kernel forgot.
    pub fn reap(&self) {
        let mut later = Vec::new();
        for node in self.mount.take_forgotten() {
            let mut what = self.let_go_of(node, false);
            if let LetGo::Drop(scope, orphan) = what {
                self.let_go(scope, &orphan);
                what = self.let_go_of(node, true);
            }
            if let LetGo::Later = what {
                later.push(node);
            }
        }
        later.into_iter().for_each(|node| self.mount.lost_names(node));
        self.home.remove_what_was_taken_out();
    }

    /// Takes the lock anew for each node, so that no request waits for all of them.
    fn let_go_of(&self, node: NodeId, dropped: bool) -> LetGo {
        let mut nodes = self.nodes.lock();
        let gone = nodes.let_go(node, dropped);
        let mut closing = Closing::default();
        if let LetGo::Gone = gone {
            // Before its number can be given to another file.
            closing = self.close(node);
            self.truncations.cancel(node);
        }
        drop(nodes);
        drop(closing);
        gone
    }

    /// Nobody can reach an unlinked file any more.
    pub(super) fn let_go(&self, scope: ScopeId, orphan: &Orphan) {
        if self.scopes.rules(scope).limit.is_some()
            && let Ok(stat) = self.home.stat_orphan(orphan)
            && stat.st_nlink == 0
        {
            self.usage.add(scope, -disk_bytes(&stat));
        }
        self.home.drop_orphan(orphan);
    }
}
