//! What a switch does on disk, the same with a daemon and without: change set, second, stamps, `active`.

use super::Store;
use super::active::Active;
use super::manifest::Manifest;
use super::settings::Switch;
use super::stamps::{Stamp, Stamps};
use crate::error::{Error, Result};
use crate::fault;
use crate::tree::{ChangeSet, NodeId, ReleaseName, Tree, change_set};
use std::time::{Duration, Instant};

/// How long a switch waits at most for a second of its own.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What is to become active, and how.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The release, or for a rollback without a name `None`: the one before.
    pub to: Option<ReleaseName>,
    /// Whether it was asked for as a rollback.
    pub rollback: bool,
}

/// A switch that is prepared and not done.
#[derive(Debug)]
pub(crate) struct Activation {
    /// What `active` will hold. `stamps_len` is that of the time before; [`Activation::write_stamps`] moves it.
    pub active: Active,
    /// In what the two releases differ.
    pub changes: ChangeSet,
    /// The mtimes that change.
    pub stamps: Vec<(NodeId, Stamp)>,
    /// How long it waited for a second of its own.
    pub waited: Duration,
}

/// Decides which release is meant; an error if it cannot be.
pub(crate) fn target(store: &Store, active: Option<&Active>, request: &Request) -> Result<ReleaseName> {
    if let Some(name) = &request.to {
        return Ok(name.clone());
    }
    let Some(active) = active else {
        return Err(Error::request(
            "no release was ever active, so there is none to go back to; use `verfs switch NAME`",
        ));
    };
    match &active.previous {
        Some(previous) if !active.rolled_back => previous.parse(),
        Some(previous) => Err(Error::request(format!(
            "the last switch was a rollback, from {previous} to {}: name the release, as in `verfs rollback NAME` \
             (there are: {})",
            active.release,
            store.releases()?.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ))),
        None => Err(Error::request(format!(
            "{} is the first release that was active; there is none to go back to. Use `verfs switch NAME`",
            active.release
        ))),
    }
}

/// What the first release of a store becomes active with: nobody saw another before, so nothing is stamped. Its
/// files may have mtimes of this very second, so it takes the second as a switch would: the next one gets a later.
pub(crate) fn first(name: &ReleaseName) -> Activation {
    let now = super::now();
    Activation {
        active: Active {
            release: name.to_string(),
            previous: None,
            rolled_back: false,
            switch: 1,
            second: now,
            since: now,
            stamps_len: 0,
        },
        changes: ChangeSet::default(),
        stamps: Vec::new(),
        waited: Duration::ZERO,
    }
}

/// Computes the change set and the stamps, waiting for a second of its own where the content changes.
pub(crate) fn prepare(
    settings: &Switch,
    from: (&Active, &Manifest),
    to: (&ReleaseName, &Manifest),
    rollback: bool,
    stamps: &Stamps,
) -> Result<Activation> {
    let (active, old) = from;
    let (name, new) = to;
    let changes = change_set(old, new)?;
    if old.is_bad() || new.is_bad() {
        let bad = if old.is_bad() { old } else { new };
        return Err(bad.damaged("a page of it cannot be read"));
    }
    let switch = active
        .switch
        .checked_add(1)
        .filter(|n| *n < 1_000_000_000)
        .ok_or_else(|| Error::failed("this store has been switched a thousand million times; make a new one"))?;
    let started = Instant::now();
    let second =
        if changes.changes_content() { own_second(active.second, settings.share_second) } else { active.second };
    let stamp = Stamp { second, nanos: switch };
    let mut batch: Vec<(NodeId, Stamp)> = changes.stamped.iter().map(|node| (*node, stamp)).collect();
    for (was, is, index) in &changes.carried {
        // Only the mode or the owner changed: the mtime goes with the content.
        let own = Stamp::from_nanos(new.node(*index)?.mtime);
        let served = match stamps.get(*was, active.switch) {
            Some(stamp) => stamp,
            None => Stamp::from_nanos(old.find_node(*was)?.map_or(Ok(0), |at| old.node(at).map(|node| node.mtime))?),
        };
        if served != stamps.get(*is, active.switch).unwrap_or(own) {
            batch.push((*is, served));
        }
    }
    Ok(Activation {
        active: Active {
            release: name.to_string(),
            previous: Some(active.release.clone()),
            rolled_back: rollback,
            switch,
            second,
            since: super::now(),
            stamps_len: active.stamps_len,
        },
        changes,
        stamps: batch,
        waited: started.elapsed(),
    })
}

impl Activation {
    /// Writes the stamps, durably. They count for nothing until `active` is replaced.
    pub(crate) fn write_stamps(&mut self, store: &Store) -> Result<()> {
        fault::point("activate.before-stamps");
        self.active.stamps_len = store.append_stamps(self.active.stamps_len, &self.stamps)?;
        fault::point("activate.stamped");
        Ok(())
    }

    /// Replaces `active`, durably: the switch on disk.
    pub(crate) fn record(&self, store: &Store) -> Result<()> {
        store.set_active(&self.active)?;
        fault::point("activate.done");
        Ok(())
    }
}

/// A second later than `last`: waits for it, and where the clock went back takes the next one.
fn own_second(last: i64, share: bool) -> i64 {
    let begun = Instant::now();
    loop {
        let now = super::now();
        if now > last || (share && now == last) {
            return now;
        }
        let until_next = Duration::from_nanos(1_000_000_000 - u64::from(super::since_epoch().subsec_nanos()));
        if last - now > LONGEST_WAIT.as_secs() as i64 || begun.elapsed() + until_next > LONGEST_WAIT {
            log::warn!("the clock went back: the last switch was at {last}, now is {now}; taking {}", last + 1);
            return last + 1;
        }
        std::thread::sleep(until_next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_gets_a_second_later_than_the_last_one() {
        let now = crate::store::now();
        assert!(own_second(now - 5, false) >= now);
        let later = own_second(now, false);
        assert!(later > now, "waits for the next second");
        assert!(crate::store::now() >= later, "and not for one in the future");
        assert!(own_second(crate::store::now(), true) <= crate::store::now());
        assert_eq!(own_second(now + 1000, false), now + 1001, "the clock went back");
    }
}
