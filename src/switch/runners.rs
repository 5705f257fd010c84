//! Who carries out the effects of a commit: on the disk alone, or under a mount too.

use super::commit::{Effect, Outcome, Runner};
use super::publish::{Showing, Stage};
use super::switcher::Mounting;
use crate::error::Result;
use crate::store::Store;
use crate::store::active::Active;
use crate::store::settings::SwitchSettings;
use std::time::{Duration, Instant};

/// Carries out what a commit does on disk.
pub(super) struct Disk<'a> {
    pub(super) store: &'a Store,
    /// What was recorded last.
    pub(super) recorded: Active,
}

impl Runner for Disk<'_> {
    fn perform(&mut self, effect: Effect) -> Outcome {
        match effect {
            Effect::Record(active) => {
                let outcome = record(self.store, &active).into();
                self.recorded = active;
                return outcome;
            }
            // After a failed write the disk may have taken it all the same, and must say what is served.
            Effect::Restore(active) if !matches!(self.store.active(), Ok(Some(there)) if there == active) => {
                if let Err(error) = self.store.set_active(&active) {
                    log::error!("{error}: the next mount may serve another release than {}", active.release);
                }
            }
            // Nobody is served.
            _ => {}
        }
        Outcome::Done
    }
}

/// Carries a commit out under a mount.
pub(super) struct LiveRunner<'a> {
    pub(super) disk: Disk<'a>,
    served: &'a Mounting,
    settings: &'a SwitchSettings,
    showing: &'a Showing<'a>,
    /// When the kernel had forgotten what it was told last.
    forgotten: Instant,
    /// How long the epoch lock was held for the swap.
    pub(super) swap: Duration,
}

impl<'a> LiveRunner<'a> {
    pub(super) fn new(
        disk: Disk<'a>,
        served: &'a Mounting,
        settings: &'a SwitchSettings,
        showing: &'a Showing<'a>,
    ) -> Self {
        Self { disk, served, settings, showing, forgotten: Instant::now(), swap: Duration::ZERO }
    }
}

impl Runner for LiveRunner<'_> {
    fn perform(&mut self, effect: Effect) -> Outcome {
        let epochs = &self.served.fs.epochs;
        match effect {
            Effect::Open(epoch) => {
                self.showing.stage(Stage::Drop);
                epochs.publish(epoch);
            }
            Effect::Forget(list) if list.is_empty() => {}
            Effect::Forget(list) => {
                let outcome = self.served.invalidator.run(list, self.settings.barrier, self.settings.limit());
                self.forgotten = Instant::now();
                return outcome;
            }
            Effect::Settle(transition) => {
                self.showing.stage(Stage::Swap);
                transition.gate.close(self.settings.settle(), self.forgotten);
            }
            Effect::Swap(epoch) => {
                self.swap = epochs.publish(epoch);
                self.showing.swapped(&self.disk.recorded);
                self.showing.stage(Stage::Tidy);
            }
            Effect::Leave(transition) => transition.gate.end(),
            Effect::Close(epoch) => {
                epochs.publish(epoch);
            }
            on_disk @ (Effect::Record(_) | Effect::Restore(_)) => return self.disk.perform(on_disk),
        }
        Outcome::Done
    }
}

/// Makes a release the active one on disk. The file of the stamps is made with the first: a later switch on a disk
/// without inodes has but the one of the reserve.
fn record(store: &Store, active: &Active) -> Result<()> {
    if active.stamps_len == 0 {
        store.append_stamps(0, &[])?;
    }
    store.set_active(active)
}
