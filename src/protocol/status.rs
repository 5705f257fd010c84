//! What is served: `status`.

use super::{EncodedPath, Tidy, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The state of a store, mounted or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StoreStatus {
    /// The directory of the store.
    pub store: EncodedPath,
    /// Where it is mounted.
    pub mountpoint: Option<EncodedPath>,
    /// The active release.
    pub release: Option<String>,
    /// The release that was active before it.
    pub previous: Option<String>,
    /// When the last switch was.
    pub since: Option<Time>,
    /// The number of the last switch of this store; 0 if there was none.
    pub switch: u32,
    /// Switches of this mount.
    pub switches: u64,
    /// The process that holds the connection to the kernel over a worker's death.
    pub keeper_pid: Option<u32>,
    /// The process that answers the kernel.
    pub worker_pid: Option<u32>,
    /// Requests of the kernel since the mount, by operation.
    pub upcalls: BTreeMap<String, u64>,
    /// Objects that are kept open.
    pub descriptors: Option<Descriptors>,
    /// Scopes that have a limit.
    pub limits: Vec<Limit>,
    /// Writes that were refused since the mount.
    pub refused: Refused,
    /// Whether a stuck client keeps the kernel from forgetting old names.
    pub tidy: Tidy,
    /// What does not work as it should, a sentence each.
    pub degraded: Vec<String>,
    /// Faults of the disks since the mount.
    pub faults: Faults,
    /// The switch that is under way.
    pub switching: Option<Switching>,
}

/// Faults of disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Faults {
    /// How many.
    pub total: u64,
    /// The same by kind.
    pub kinds: Vec<FaultKind>,
}

/// Faults of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FaultKind {
    /// The request of the kernel that failed.
    pub operation: String,
    /// The name of the error number: EIO.
    pub error: String,
    /// How many.
    pub count: u64,
}

/// A switch that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Switching {
    /// The release before.
    pub from: Option<String>,
    /// The release that comes.
    pub to: String,
    /// How far it is.
    pub phase: String,
    /// When it began.
    pub since: Time,
}

/// The cache of open objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Descriptors {
    /// How many are open.
    pub open: u64,
    /// How many may be.
    pub limit: u64,
    /// Reads that found their object open.
    pub hits: u64,
    /// Reads that had to open it.
    pub misses: u64,
}

/// A scope that has a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Limit {
    /// The scope.
    pub path: EncodedPath,
    /// How much may be in it.
    pub limit_bytes: u64,
    /// How much is in it; not known until it was measured.
    pub used_bytes: Option<u64>,
}

/// Writes that were refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Refused {
    /// How many.
    pub total: u64,
    /// The most frequent ones.
    pub most: Vec<Refusal>,
}

/// Refused writes of one user to one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Refusal {
    /// The path in the docroot, or its beginning and end if it is long; `*` stands for what differs in several names.
    pub path: EncodedPath,
    /// User id.
    pub uid: u32,
    /// How many.
    pub count: u64,
    /// Why the last one was refused.
    pub why: String,
    /// When.
    pub last: Time,
}
