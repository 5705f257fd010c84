//! Claims of names: changes in different directories run beside each other, those in one directory one by one.
//!
//! A change claims the directories in which it changes names, and the trees that it moves or takes away whole. Claims
//! are held over disk work, so only changes wait for them, never looks, and never with another lock held. A claim waits
//! for those before it that it conflicts with, so no two wait for each other: inside a claim only one of times is made,
//! and inside that none.

use crate::tree::LayerPath;
use parking_lot::{Condvar, Mutex};

/// What a change keeps others from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Changes of names in this directory.
    Names(LayerPath),
    /// Changes of names in this directory and anywhere below it.
    Tree(LayerPath),
    /// Changes of the times of this directory, for one small step on the disk.
    Times(LayerPath),
}

impl Claim {
    fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Names(a), Self::Names(b)) => a == b,
            (Self::Tree(tree), Self::Names(dir)) | (Self::Names(dir), Self::Tree(tree)) => dir.is_within(tree),
            (Self::Tree(a), Self::Tree(b)) => a.is_within(b) || b.is_within(a),
            (Self::Times(a), Self::Times(b)) => a == b,
            (Self::Times(_), _) | (_, Self::Times(_)) => false,
        }
    }
}

/// The claims of all changes, the oldest first, those that wait too. There are no more than requests under way.
#[derive(Debug, Default)]
pub(super) struct Namespace {
    claims: Mutex<Claimed>,
    given_up: Condvar,
}

#[derive(Debug, Default)]
struct Claimed {
    next: u64,
    all: Vec<(u64, Vec<Claim>)>,
}

/// Claims that are held until this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct NamespaceGuard<'a> {
    namespace: &'a Namespace,
    number: u64,
}

impl Namespace {
    /// Waits until nobody has a claim that conflicts with these.
    pub(super) fn claim(&self, claims: Vec<Claim>) -> NamespaceGuard<'_> {
        let mut claimed = self.claims.lock();
        let number = claimed.next;
        claimed.next += 1;
        claimed.all.push((number, claims));
        while claimed.must_wait(number) {
            self.given_up.wait(&mut claimed);
        }
        NamespaceGuard { namespace: self, number }
    }
}

impl Claimed {
    fn must_wait(&self, number: u64) -> bool {
        let Some(at) = self.all.iter().position(|(other, _)| *other == number) else { return false };
        let (before, own) = (&self.all[..at], &self.all[at].1);
        before.iter().flat_map(|(_, claims)| claims).any(|other| own.iter().any(|claim| claim.conflicts(other)))
    }
}

impl Drop for NamespaceGuard<'_> {
    fn drop(&mut self) {
        self.namespace.claims.lock().all.retain(|(number, _)| *number != self.number);
        self.namespace.given_up.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    fn names(dir: &str) -> Claim {
        Claim::Names(LayerPath::shared(dir))
    }

    fn tree(dir: &str) -> Claim {
        Claim::Tree(LayerPath::shared(dir))
    }

    fn times(dir: &str) -> Claim {
        Claim::Times(LayerPath::shared(dir))
    }

    #[test]
    fn claims_conflict_in_one_directory_and_below_a_tree() {
        let table = [
            (names("a"), names("a"), true),
            (names("a"), names("ab"), false),
            (names("a"), names("a/b"), false),
            (tree("a"), names("a/b/c"), true),
            (tree("a"), names("a"), true),
            (tree("a/b"), names("a"), false),
            (tree("a/b"), tree("a"), true),
            (tree("a/b"), tree("a/c"), false),
            (times("a"), times("a"), true),
            (times("a"), times("a/b"), false),
            (times("a"), names("a"), false),
            (times("a"), tree("a"), false),
        ];
        for (one, other, conflict) in table {
            assert_eq!(one.conflicts(&other), conflict, "{one:?} {other:?}");
            assert_eq!(other.conflicts(&one), conflict, "{other:?} {one:?}");
        }
    }

    #[test]
    fn a_claim_waits_for_those_before_it_that_conflict_and_for_no_other() {
        let namespace = Namespace::default();
        let first = namespace.claim(vec![names("a"), names("b")]);
        let (done, ended) = channel();
        std::thread::scope(|scope| {
            let whole = done.clone();
            let namespace = &namespace;
            scope.spawn(move || {
                let _claim = namespace.claim(vec![tree("a")]);
                whole.send("whole").expect("somebody listens");
            });
            while namespace.claims.lock().all.len() < 2 {
                std::thread::yield_now();
            }
            // Of another directory: at once. Below the tree that somebody waits for: after him.
            drop(namespace.claim(vec![names("c")]));
            let below = done.clone();
            scope.spawn(move || {
                let _claim = namespace.claim(vec![names("a/x")]);
                below.send("below").expect("somebody listens");
            });
            while namespace.claims.lock().all.len() < 3 {
                std::thread::yield_now();
            }
            assert!(ended.try_recv().is_err());
            drop(first);
            let order: Vec<_> =
                (0..2).map(|_| ended.recv_timeout(Duration::from_secs(60)).expect("both end")).collect();
            assert_eq!(order, ["whole", "below"]);
        });
    }
}
