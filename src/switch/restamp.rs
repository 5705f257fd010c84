//! Stamps without a switch: the release's files show again where the writable layer gives up what hid them.

use super::commit::{Effect, Outcome, Runner};
use super::moment::{Clock, SystemClock, is_upon, outwait, second_of_restore};
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
    /// switch that changes content takes a later second. `before` is what the same restore did last: until its second
    /// begins that does for more nodes.
    pub fn restamp(&self, nodes: &BTreeSet<NodeId>, before: Option<Restamped>) -> Result<Restamped> {
        let shares_second = self.settings().switch.share_second;
        let (mut turn, active, second) = loop {
            let turn = self.turn.lock();
            let active = turn.active.clone().ok_or_else(|| Error::failed("no release is active"))?;
            let now = SystemClock.now();
            let same = before.filter(|before| before.second == active.second && !before.is_late());
            let second = match same {
                _ if shares_second => Ok(active.second.max(now.as_secs() as i64)),
                Some(before) => Ok(before.second),
                None => second_of_restore(now, &active),
            };
            match second {
                Ok(second) => break (turn, active, second),
                // Another restore waits for its second without the turn, and so does this one.
                Err(left) => {
                    drop(turn);
                    SystemClock.sleep(left);
                }
            }
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
