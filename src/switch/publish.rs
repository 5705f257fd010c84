//! The state of a switch for everybody to see. The switch publishes it, and no reader waits for a switch.

use crate::store::active::Active;
use parking_lot::RwLock;
use std::sync::Arc;

/// How far a switch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The releases are compared, and what media shadows is counted.
    Plan,
    /// It waits for a second of its own.
    Second,
    /// The kernel drops what changes; the old release is served.
    Drop,
    /// Threads in the middle of a file finish; the old release is served.
    Swap,
    /// The new release is served; the kernel drops what was said meanwhile.
    Tidy,
}

impl Stage {
    /// As `status` shows it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Second => "second",
            Self::Drop => "drop",
            Self::Swap => "swap",
            Self::Tidy => "tidy",
        }
    }
}

/// A switch that is under way.
#[derive(Clone, Debug)]
pub struct UnderWay {
    /// The release before.
    pub from: Option<String>,
    /// The release that comes.
    pub to: String,
    /// How far it is.
    pub stage: Stage,
    /// When it began, in seconds since 1970.
    pub since: i64,
}

/// What is shown.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What is active; `None` if no release ever was.
    pub active: Option<Active>,
    /// Switches of this mount.
    pub switches: u64,
    /// Whether a stuck client keeps the kernel from forgetting something.
    pub tidy_pending: bool,
    /// The switch that is under way.
    pub under_way: Option<UnderWay>,
}

/// The cell that it lies in. Its lock is a leaf and is held for an instant.
#[derive(Debug)]
pub struct Published(RwLock<Arc<Snapshot>>);

impl Published {
    /// With nothing under way.
    pub fn new(active: Option<Active>) -> Self {
        Self(RwLock::new(Arc::new(Snapshot { active, switches: 0, tidy_pending: false, under_way: None })))
    }

    /// What is shown now.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.read().clone()
    }

    /// A switch begins; it is shown until the guard is dropped.
    pub(super) fn begin(&self, from: Option<String>, to: String, since: i64) -> Showing<'_> {
        self.change(|now| now.under_way = Some(UnderWay { from, to, stage: Stage::Plan, since }));
        Showing(self)
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        change(Arc::make_mut(&mut self.0.write()));
    }
}

/// Shows a switch that is under way.
pub(super) struct Showing<'a>(&'a Published);

impl Showing<'_> {
    pub(super) fn stage(&self, stage: Stage) {
        self.0.change(|now| now.under_way.iter_mut().for_each(|under_way| under_way.stage = stage));
    }

    /// The new release is served.
    pub(super) fn swapped(&self, active: &Active) {
        self.0.change(|now| {
            now.active = Some(active.clone());
            now.switches += 1;
        });
    }

    /// What a stuck client keeps is known.
    pub(super) fn tidy_pending(&self, pending: bool) {
        self.0.change(|now| now.tidy_pending = pending);
    }
}

impl Drop for Showing<'_> {
    fn drop(&mut self) {
        self.0.change(|now| now.under_way = None);
    }
}
