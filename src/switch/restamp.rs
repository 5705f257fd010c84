//! Stamps without a switch: the release's files show again where the writable layer gives up what hid them.

use super::commit::{Effect, Outcome, Runner};
use super::moment::{Clock, SystemClock, is_upon, outwait, second_to_come};
use super::runners::Disk;
use super::switcher::Switcher;
use crate::error::{Error, Result};
use crate::store::active::Active;
use crate::store::active::stamps::Stamp;
use crate::tree::NodeId;
use std::collections::BTreeSet;

/// The second that nodes were stamped with. It is chosen before it begins: what they replace shows until then.
#[derive(Clone, Copy, Debug)]
pub struct Restamped {
    second: i64,
    shares_second: bool,
}

impl Restamped {
    /// Whether its second has begun: what is shown from now on may share it with what it replaces.
    pub fn is_late(self) -> bool {
        !self.shares_second && is_upon(self.second, SystemClock.now())
    }

    /// Waits until its second is over: what is written then has a later one.
    pub fn outwait(self) {
        if !self.shares_second {
            outwait(self.second, &SystemClock);
        }
    }
}

impl Switcher {
    /// Gives nodes of releases an mtime that is later than any that their paths showed until now, durably. The next
    /// switch that changes content takes a later second.
    pub fn restamp(&self, nodes: &BTreeSet<NodeId>) -> Result<Restamped> {
        let mut turn = self.turn.lock();
        let active = turn.active.clone().ok_or_else(|| Error::failed("no release is active"))?;
        let (now, shares_second) = (SystemClock.now(), self.settings().switch.share_second);
        let second = match shares_second {
            true => active.second.max(now.as_secs() as i64),
            false => second_to_come(now, active.arrival).max(active.second + 1),
        };
        let stamp = Stamp { second, nanos: active.switch };
        let batch: Vec<(NodeId, Stamp)> = nodes.iter().map(|node| (*node, stamp)).collect();
        let stamps_len = self.store().append_stamps(active.stamps_len, &batch)?;
        let mut disk = Disk { store: self.store(), recorded: active.clone() };
        if let Outcome::Failed(error) = disk.perform(Effect::Record(Active { second, stamps_len, ..active.clone() })) {
            disk.perform(Effect::Restore(active));
            return Err(error);
        }
        if let Some(served) = &self.served {
            served.fs.epochs.load().stamps.put(&batch, active.switch);
        }
        turn.active = Some(disk.recorded);
        Ok(Restamped { second, shares_second })
    }
}
