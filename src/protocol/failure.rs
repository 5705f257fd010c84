//! An error as JSON: on the socket, and on standard error with `--json`.

use crate::error::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// What went wrong. Its fields never change their meaning, whatever the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Failure {
    /// What happened, to what, and what to do: for people.
    pub error: String,
    /// The exit code of the command: 1, it failed; 2, the request was wrong and nothing was tried.
    pub code: u8,
    /// The kind of failure: for scripts.
    pub kind: ErrorKind,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let code = if error.is_request() { 2 } else { 1 };
        Self { error: error.to_string(), code, kind: error.kind() }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::reported(failure.kind, failure.code, failure.error)
    }
}
