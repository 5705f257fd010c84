//! What was active when: the truth that readers are judged by.
//!
//! Index 0 is what was mounted, index i what the i-th switch made active. The driver publishes a
//! view and counts `started` up before it asks for the switch, and `finished` when it has the
//! answer: whoever looks between two moments may see the views from `finished` at the first to
//! `started` at the second, and nothing else.

use crate::world::{Kind, PathId, World};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

/// What is served after one switch.
pub struct View {
    /// The release.
    pub release: usize,
    /// Which switch made it, counted as the store counts: those that were refused are not.
    number: usize,
    /// For each path the number of the switch that last changed it; 0: none did.
    pub stamps: Vec<usize>,
    /// For each path the last view, this one included, in which it was a directory.
    last_dir: Vec<Option<usize>>,
    /// The switch was refused: this was never served.
    refused: AtomicBool,
}

impl View {
    /// False if the switch to it was refused.
    pub fn served(&self) -> bool {
        !self.refused.load(SeqCst)
    }
}

/// See the head of this file.
pub struct History {
    views: Vec<OnceLock<View>>,
    seconds: Vec<AtomicU64>,
    started: AtomicUsize,
    finished: AtomicUsize,
    /// The switch number that the store gave to index 0.
    base: AtomicU64,
}

impl History {
    /// A history with room for `switches`, that begins with `release`.
    pub fn new(world: &World, release: usize, switches: usize) -> History {
        let history = History {
            views: (0..=switches).map(|_| OnceLock::new()).collect(),
            seconds: (0..=switches).map(|_| AtomicU64::new(0)).collect(),
            started: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            base: AtomicU64::new(0),
        };
        let is_dir = |id| world.at(release, id) == Some(Kind::Dir);
        history.publish(
            0,
            View {
                release,
                number: 0,
                stamps: vec![0; world.ids().len()],
                last_dir: world.ids().map(|id| is_dir(id).then_some(0)).collect(),
                refused: AtomicBool::new(false),
            },
        );
        history
    }

    fn publish(&self, index: usize, view: View) {
        assert!(self.views[index].set(view).is_ok(), "view {index} twice");
    }

    /// A published view.
    pub fn view(&self, index: usize) -> &View {
        self.views[index].get().unwrap()
    }

    /// Says that a switch to `release` is about to be asked for; its index.
    pub fn start(&self, world: &World, release: usize) -> usize {
        let index = self.started() + 1;
        let old = self.view(index - 1);
        let number = old.number + 1;
        let at = |id| (world.at(old.release, id), world.at(release, id));
        let mut stamps = old.stamps.clone();
        let mut last_dir = old.last_dir.clone();
        for id in world.ids() {
            match at(id) {
                (was, is) if was != is => {
                    stamps[id] = number;
                    // An entry of its directory, if that is one before and after.
                    stamps[world.parent(id)] = number;
                }
                _ => {}
            }
            if world.at(release, id) == Some(Kind::Dir) {
                last_dir[id] = Some(index);
            }
        }
        self.publish(index, View { release, number, stamps, last_dir, refused: AtomicBool::new(false) });
        self.started.store(index, SeqCst);
        index
    }

    /// Says that the switch has been answered. `second`: the one it stamped with, 0 if unknown.
    pub fn finish(&self, index: usize, second: u64) {
        self.seconds[self.view(index).number].store(second, SeqCst);
        self.finished.store(index, SeqCst);
    }

    /// Says that the switch has been refused: what was served before is served on, as a view of
    /// its own, because time has passed.
    pub fn refuse(&self, index: usize) {
        let old = self.view(index - 1);
        let view = View {
            release: old.release,
            number: old.number,
            stamps: old.stamps.clone(),
            last_dir: old.last_dir.clone(),
            refused: AtomicBool::new(false),
        };
        self.publish(index + 1, view);
        self.view(index).refused.store(true, SeqCst);
        self.started.store(index + 1, SeqCst);
        self.finished.store(index + 1, SeqCst);
    }

    /// The last switch that was asked for.
    pub fn started(&self) -> usize {
        self.started.load(SeqCst)
    }

    /// The last switch that was answered.
    pub fn finished(&self) -> usize {
        self.finished.load(SeqCst)
    }

    /// Tells which number the store gave to index 0.
    pub fn set_base(&self, base: u64) {
        self.base.store(base, SeqCst);
    }

    /// True if a served mtime is the stamp of the switch with this number (0: the source's own).
    pub fn is_stamp(&self, number: usize, second: i64, nanosecond: u64) -> bool {
        if number == 0 {
            return second == crate::support::tree::SOURCE_SECOND && nanosecond == 0;
        }
        let known = self.seconds[number].load(SeqCst);
        nanosecond == self.base.load(SeqCst) + number as u64 && (known == 0 || i64::try_from(known) == Ok(second))
    }

    /// The release by which names below the directory `base` are answered in view `index`: the
    /// active one, or the last active one that had the directory. None if none ever had it.
    pub fn release_for(&self, index: usize, base: PathId) -> Option<usize> {
        let last = self.view(index).last_dir[base]?;
        Some(self.view(last).release)
    }
}
