//! Which release is meant.

use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::active::Active;
use crate::tree::ReleaseName;

/// What is to become active, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// The release, or for a rollback without a name `None`: the one before.
    pub to: Option<ReleaseName>,
    /// Whether it was asked for as a rollback.
    pub rollback: bool,
}

impl Target {
    /// The release that is meant; an error if it cannot be told.
    pub fn resolve(&self, store: &Store, active: Option<&Active>) -> Result<ReleaseName> {
        if let Some(name) = &self.to {
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

    /// The word for it in the journal.
    pub fn action(&self) -> &'static str {
        if self.rollback { "rollback" } else { "switch" }
    }
}
