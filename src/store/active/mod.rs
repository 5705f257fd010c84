//! What is active: one small file, replaced as a whole.

pub mod stamps;

use crate::error::{Context, Error, Result};
use crate::protocol::{EncodedPath, Faults, Refused, StoreStatus, Tidy, Time};
use crate::store::Store;
use crate::store::durable::with_reserve;
use crate::tree::ReleaseName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;

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
    /// The second of the last switch that changed content: no two such switches share one.
    pub second: i64,
    /// When the last switch was, in seconds since 1970.
    pub since: i64,
    /// How many bytes of `stamps` count; what lies behind them belongs to a switch that was not finished.
    pub stamps_len: u64,
}

impl Active {
    /// The active release.
    pub fn release(&self) -> Result<ReleaseName> {
        self.release
            .parse()
            .map_err(|_| Error::damaged(format!("the active release has an impossible name {:?}", self.release)))
    }
}

impl Store {
    /// What is active; `None` if no release ever was.
    pub fn active(&self) -> Result<Option<Active>> {
        let path = self.root().join("active");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(|| format!("reading {}", path.display())),
        };
        let active = serde_json::from_slice(&text).map_err(|error| {
            Error::damaged(format!(
                "{} is damaged ({error}); write the right release with `verfs switch` after moving the file away",
                path.display()
            ))
        })?;
        Ok(Some(active))
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
        let mut bytes = serde_json::to_vec_pretty(active).map_err(|error| Error::failed(error.to_string()))?;
        bytes.push(b'\n');
        with_reserve(self.dir(), || self.dir().replace("active", &bytes, 0o644))
    }
}
