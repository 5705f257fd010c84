//! A switch that is prepared: the release is held, then its stamps are written. Dropping a stage takes it back.

use super::commit::Commit;
use super::invalidate::{Invalidations, ReleasePair};
use super::moment::{Clock, Moment, SecondOf, is_upon, second_to_come};
use super::plan::Plan;
use crate::error::{Error, Result};
use crate::fault;
use crate::store::Store;
use crate::store::active::Active;
use crate::store::active::stamps::{Stamp, Stamps};
use crate::store::lock::{Hold, Lock};
use crate::tree::{NodeId, Tree};
use std::sync::Arc;
use std::time::Duration;

/// A plan whose release is held against `remove`. Nothing is written yet.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    held: Lock,
}

impl Plan {
    /// Holds the release, and checks that it is still the one that was planned with.
    pub fn prepare(self, store: &Store) -> Result<Prepared> {
        let held = store.lock_releases(Hold::Shared)?;
        if store.manifest(&self.to.name)?.identity() != self.to.manifest.identity() {
            return Err(Error::failed(format!(
                "{} was removed and added anew while the switch was planned; switch again",
                self.to.name
            )));
        }
        Ok(Prepared { plan: self, held })
    }
}

impl Prepared {
    /// The moment that this switch takes by itself, waiting for it.
    pub fn own_moment(&self, share_second: bool, clock: &impl Clock) -> Result<Moment> {
        match &self.plan.before {
            None => Ok(Moment::first(clock)),
            Some(before) => {
                let second = match (self.plan.changes_content(), share_second) {
                    (false, _) => SecondOf::Last,
                    (true, true) => SecondOf::LastOrLater,
                    (true, false) => SecondOf::Own,
                };
                Moment::after(&before.active, second, clock)
            }
        }
    }

    /// Writes the stamps, durably; they count for nothing until `active` is replaced. From here on the moment is fixed.
    pub fn stamp(self, store: &Store, moment: Moment) -> Result<Stamped> {
        let Self { plan, held } = self;
        let batch = plan.stamps(moment)?;
        fault::point("switch.prepared");
        let len = match &plan.before {
            // Without any, what lies behind the end belongs to nobody and the next switch cuts it off.
            Some(before) if batch.is_empty() => before.active.stamps_len,
            Some(before) => store.append_stamps(before.active.stamps_len, &batch)?,
            None => 0,
        };
        fault::point("switch.stamped");
        Ok(Stamped::new(plan, moment, batch, len, Some(held)))
    }
}

impl Plan {
    /// The same with no store beneath it, where nothing can be removed and nothing is kept: a simulation.
    pub fn rehearse(self, moment: Moment) -> Result<Stamped> {
        let batch = self.stamps(moment)?;
        Ok(Stamped::new(self, moment, batch, 0, None))
    }
}

/// A switch whose stamps are written: all that is left is to commit it.
#[derive(Debug)]
pub struct Stamped {
    plan: Plan,
    active: Active,
    /// Whether it may share its seconds with other switches.
    shares_second: bool,
    in_memory: StampsInMemory,
    _held: Option<Lock>,
}

impl Stamped {
    fn new(plan: Plan, moment: Moment, batch: Vec<(NodeId, Stamp)>, stamps_len: u64, held: Option<Lock>) -> Self {
        let before = plan.before.as_ref();
        let active = Active {
            release: plan.to.name.to_string(),
            previous: before.map(|before| before.active.release.clone()),
            rolled_back: plan.rollback && before.is_some(),
            switch: moment.switch,
            second: moment.second,
            since: moment.since,
            stamps_len,
            arrival: before.and_then(|before| before.active.arrival),
        };
        let stamps = before.map(|before| before.epoch.stamps.clone()).unwrap_or_default();
        let in_memory = StampsInMemory::put(stamps, batch, moment.switch);
        Self { plan, active, shares_second: false, in_memory, _held: held }
    }

    /// The same, sharing its seconds with other switches if that is set.
    pub fn sharing(self, shares_second: bool) -> Self {
        Self { shares_second, ..self }
    }

    /// The release is about to be shown: from when on do files of its own layer count as changed? Until then others may
    /// write to that of the release before.
    pub(super) fn arrive(&mut self, now: Duration) {
        if self.has_own_layers() {
            self.active.arrival = Some(match self.shares_second {
                true => now.as_secs() as i64,
                false => second_to_come(now, self.active.taken()),
            });
        }
    }

    /// Whether it took so long that the release would be shown too late for its arrival.
    pub(super) fn is_late(&self, now: Duration) -> bool {
        let late = self.active.arrival.is_some_and(|arrival| is_upon(arrival, now));
        late && self.has_own_layers() && !self.shares_second
    }

    fn has_own_layers(&self) -> bool {
        self.plan.pair().is_some_and(ReleasePair::has_own_layers)
    }

    /// What `active` will hold.
    pub fn active(&self) -> &Active {
        &self.active
    }

    /// What it holds until then.
    pub fn before(&self) -> Option<&Active> {
        self.plan.before.as_ref().map(|before| &before.active)
    }

    /// The commit on disk alone, where nobody is served.
    pub fn commit(self) -> Commit {
        Commit::unserved(self)
    }

    /// The commit under a mount; `leftover` is what an earlier switch could not tell the kernel.
    pub fn commit_served(self, leftover: Invalidations) -> Result<Commit> {
        let Some(before) = &self.plan.before else { return Ok(self.commit()) };
        let (epoch, pair) = (before.epoch.clone(), before.pair.clone());
        Commit::served(self, epoch, pair, leftover)
    }

    /// It is on disk: the stamps stay.
    pub(super) fn keep(&mut self) {
        self.in_memory.kept = true;
    }
}

/// Stamps of a switch in the making, which epochs of earlier switches do not see; taken back when dropped.
#[derive(Debug)]
struct StampsInMemory {
    stamps: Arc<Stamps>,
    batch: Vec<(NodeId, Stamp)>,
    switch: u32,
    kept: bool,
}

impl StampsInMemory {
    fn put(stamps: Arc<Stamps>, batch: Vec<(NodeId, Stamp)>, switch: u32) -> Self {
        stamps.put(&batch, switch);
        Self { stamps, batch, switch, kept: false }
    }
}

impl Drop for StampsInMemory {
    fn drop(&mut self) {
        if !self.kept {
            self.stamps.take_back(&self.batch, self.switch);
        }
    }
}

impl Plan {
    /// The mtimes that change. Nobody saw another release before the first one, so it stamps nothing.
    fn stamps(&self, moment: Moment) -> Result<Vec<(NodeId, Stamp)>> {
        let Some(before) = &self.before else { return Ok(Vec::new()) };
        let ReleasePair { old, new, changes, .. } = &*before.pair;
        let (stamps, last) = (&before.epoch.stamps, before.active.switch);
        let stamp = Stamp { second: moment.second, nanos: moment.switch };
        let mut batch: Vec<(NodeId, Stamp)> = changes.stamped.iter().map(|node| (*node, stamp)).collect();
        for file in &changes.carried {
            // Only the mode or the owner changed: the mtime goes with the content.
            let own = Stamp::from_nanos(new.manifest.node(file.index)?.mtime);
            let old = &old.manifest;
            let served = match stamps.get(file.old, last) {
                Some(stamp) => stamp,
                None => {
                    Stamp::from_nanos(old.find_node(file.old)?.map_or(Ok(0), |at| old.node(at).map(|node| node.mtime))?)
                }
            };
            if served != stamps.get(file.new, last).unwrap_or(own) {
                batch.push((file.new, served));
            }
        }
        Ok(batch)
    }
}
