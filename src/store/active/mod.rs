//! What is active: one small file, replaced as a whole. It is a line with a checksum (see sealed.rs).
//!
//! A store of format 1 has one without, until its first switch by this verfs: that writes the checksum, and then the
//! format. From then on `active` counts only with its checksum.

pub mod stamps;
mod stamps_file;

use crate::error::{Error, Result};
use crate::protocol::{EncodedPath, Faults, Refused, StoreStatus, Tidy, Time};
use crate::store::Store;
use crate::store::durable::with_reserve;
use crate::store::release::manifest::Manifest;
use crate::store::sealed;
use crate::store::settings;
use crate::tree::ReleaseName;
use serde::{Deserialize, Serialize};
use stamps::Stamps;
use std::collections::BTreeMap;

/// What verfs 0.1 wrote into `active`.
const KEYS_OF_0_1: &[&str] = &["release", "previous", "rolled_back", "switch", "second", "since", "stamps_len"];

/// The content of the file `active`, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Active {
    /// The active release.
    pub release: String,
    /// The one before it, if there was one.
    pub previous: Option<String>,
    /// Whether the last switch was a rollback.
    pub rolled_back: bool,
    /// The number of the last switch, from 1.
    pub switch: u32,
    /// The second of the last switch that changed content, or of a restore since: no two of them share one. That of a
    /// restore was taken before it began.
    pub second: i64,
    /// When the last switch was, in seconds since 1970.
    pub since: i64,
    /// How many bytes of stamps were ever written and count: a position in `stamps` (see stamps_file.rs). What lies
    /// behind it belongs to a switch that was not finished.
    pub stamps_len: u64,
    /// The second after the one in which the active release was shown: no file of its own layer that was there before
    /// shows an earlier mtime. None until a switch shows a release that has a layer of its own; a later switch without
    /// such layers leaves it as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrival: Option<i64>,
}

impl Active {
    /// The active release.
    pub fn release(&self) -> Result<ReleaseName> {
        self.release
            .parse()
            .map_err(|_| Error::damaged(format!("the active release has an impossible name {:?}", self.release)))
    }

    /// The seconds that were taken last, in no order. They may be to come.
    pub fn taken(&self) -> impl Iterator<Item = i64> {
        [Some(self.second), self.arrival].into_iter().flatten()
    }
}

impl Store {
    /// What is active; `None` if no release ever was.
    pub fn active(&self) -> Result<Option<Active>> {
        let path = self.root().join("active");
        let Some(text) = self.dir().read("active")? else { return Ok(None) };
        let damaged = |why: &str| {
            Error::damaged(format!(
                "{} is damaged ({why}); move the file away: then `verfs mount` or `verfs switch` writes it anew, from \
                 the journal and the stamps",
                path.display()
            ))
        };
        if self.settings().format() >= settings::SEALED && !sealed::is_sealed(&text) {
            return Err(damaged("its checksum is missing"));
        }
        sealed::open(&text, KEYS_OF_0_1).map(Some).map_err(|flaw| damaged(&flaw.to_string()))
    }

    /// Writes `active` anew if it is lost: the journal has the last switch, and all stamps count. Nobody switches
    /// meanwhile. A store that never switched has none.
    pub fn recover_active(&self) -> Result<()> {
        if self.active()?.is_some() {
            return Ok(());
        }
        let lines = self.journal()?.lines;
        let Some((switch, line)) = lines.iter().rev().find_map(|line| Some((line.switch.filter(|_| line.ok)?, line)))
        else {
            return Ok(());
        };
        let (stamps_len, latest) = self.all_stamps()?;
        let active = Active {
            release: line.to.clone().unwrap_or_default(),
            previous: line.from.clone(),
            rolled_back: line.action == "rollback",
            switch,
            second: latest.unwrap_or(line.time.0),
            since: line.time.0,
            stamps_len,
            // The line was written when the release was shown: not earlier than what was chosen then.
            arrival: self.settings().scopes.iter().any(|scope| scope.per_release).then_some(line.time.0 + 2),
        };
        active.release()?;
        self.set_active(&active)?;
        log::warn!(
            "{} was lost and is written anew: as the journal says, {} is active since {}",
            self.root().join("active").display(),
            active.release,
            line.time
        );
        Ok(())
    }

    /// The status of the store with this release active, as long as it is not mounted; a mount adds what it knows.
    pub fn status(&self, active: Option<&Active>) -> StoreStatus {
        StoreStatus {
            store: EncodedPath::from(self.root()),
            mountpoint: None,
            release: active.map(|active| active.release.clone()),
            previous: active.and_then(|active| active.previous.clone()),
            since: active.map(|active| Time(active.since)),
            switch: active.map_or(0, |active| active.switch),
            switches: 0,
            keeper_pid: None,
            worker_pid: None,
            upcalls: BTreeMap::new(),
            descriptors: None,
            limits: Vec::new(),
            refused: Refused::default(),
            tidy: Tidy::Done,
            degraded: Vec::new(),
            faults: Faults::default(),
            switching: None,
        }
    }

    /// Makes a release the active one, durably. This is the instant of a switch on disk.
    pub fn set_active(&self, active: &Active) -> Result<()> {
        let bytes = sealed::seal(active)?;
        with_reserve(self.dir(), || self.dir().replace("active", &bytes, 0o644))
    }

    /// Keeps older versions away before anything is written that they would read wrongly. That it fails is no reason to
    /// refuse a switch, which tries again in the end and says so.
    pub(super) fn keep_older_away(&self) {
        if self.settings().format() < settings::SEALED
            && let Ok(Some(active)) = self.active()
            && self.set_active(&active).is_ok()
        {
            let _ = self.raise_format();
        }
    }

    /// What a switch leaves for when it has happened and nobody waits: the format of an older store, and the room of
    /// stamps that nobody needs. `stamps` are those of `active`, `served` gives the manifests that a mount serves,
    /// `None` for one that cannot be read. Whoever calls keeps other switches out.
    pub fn tidy_active(
        &self,
        active: &Active,
        stamps: &Stamps,
        served: impl FnOnce(&mut dyn FnMut(Option<&Manifest>)),
    ) -> Result<()> {
        self.raise_format()?;
        self.compact_stamps(active.stamps_len, stamps, served)
    }
}
