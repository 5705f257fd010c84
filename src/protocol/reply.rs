//! What a daemon answers, as a line.

use super::{Done, Failure, Head, MAX_LINE, PROTOCOL, PinnedPage, Reloaded, Restored, StoreStatus, Switched};
use crate::error::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// An answer of any kind; [`super::Call::Reply`] says which one belongs to which request.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "each is said where its type stands")]
pub enum Reply {
    Status(Box<StoreStatus>),
    Switched(Switched),
    Reloaded(Reloaded),
    Pinned(PinnedPage),
    Restored(Restored),
    Done(Done),
}

impl Reply {
    /// The oldest protocol in which it means what it means now.
    fn protocol(&self) -> u32 {
        match self {
            Self::Done(_) => 0,
            _ => PROTOCOL,
        }
    }
}

#[derive(Serialize)]
struct OkLine<'a> {
    #[serde(skip_serializing_if = "super::is_zero")]
    protocol: u32,
    ok: &'a Reply,
}

/// A line as it is read: the fields of an [`OkLine`] or of a [`Failure`], and more that we do not know.
#[derive(Deserialize)]
struct ReplyLine<T> {
    ok: Option<T>,
    error: Option<String>,
    code: Option<u64>,
    kind: Option<ErrorKind>,
}

/// One reply as a line, newline included. A reply over [`MAX_LINE`] is replaced by an error that says so: the peer
/// gets an answer in any case.
pub fn encode_reply(answer: &Result<Reply>) -> Vec<u8> {
    let failure = answer.as_ref().err().map(Failure::from);
    let written = match (answer, &failure) {
        (Ok(ok), _) => serde_json::to_vec(&OkLine { protocol: ok.protocol(), ok }),
        (Err(_), failure) => serde_json::to_vec(failure),
    };
    let why = match written {
        Ok(mut line) if line.len() <= MAX_LINE => {
            line.push(b'\n');
            return line;
        }
        Ok(line) => format!("the reply would be {} bytes long: at most {MAX_LINE} bytes a line", line.len()),
        Err(error) => format!("the reply cannot be written as JSON: {error}"),
    };
    let (code, kind) = failure.map_or((1, ErrorKind::Failed), |failure| (failure.code, failure.kind));
    // Three fields of plain types: that can always be written.
    let mut line = serde_json::to_vec(&Failure { error: why, code, kind }).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Reads one reply from a line without its newline; an error reply becomes the error that the daemon had.
///
/// # Errors
/// Besides the daemon's own: a line that is no reply of this type, or one of a newer protocol, exit code 1.
pub fn decode_reply<T: DeserializeOwned>(line: &[u8]) -> Result<T> {
    let strange = |why: String| Error::failed(format!("the daemon's reply is not understood: {why}"));
    if line.len() > MAX_LINE {
        return Err(strange(format!("more than {MAX_LINE} bytes")));
    }
    // Else serde would take an array of the fields' values, too.
    if !line.trim_ascii_start().starts_with(b"{") {
        return Err(strange("it is no JSON object".to_owned()));
    }
    let Head { protocol } = serde_json::from_slice(line).map_err(|error| strange(error.to_string()))?;
    if protocol > PROTOCOL {
        return Err(Error::failed(format!(
            "the daemon's reply is of protocol {protocol}, and this command understands {PROTOCOL}: it is older than \
             the daemon. Use the newer verfs, with which the store was mounted"
        )));
    }
    let reply: ReplyLine<T> = serde_json::from_slice(line).map_err(|error| {
        let hint = if protocol < PROTOCOL { OLDER } else { "" };
        strange(format!("{error}{hint}"))
    })?;
    match (reply.ok, reply.error) {
        (Some(value), None) => Ok(value),
        (None, Some(mut error)) => {
            let code = if reply.code == Some(2) { 2 } else { 1 };
            let kind = reply.kind.unwrap_or_else(|| {
                error.push_str(OLDER);
                if code == 2 { ErrorKind::Request } else { ErrorKind::Failed }
            });
            Err(Failure { error, code, kind }.into())
        }
        _ => Err(strange("neither \"ok\" nor \"error\"".to_owned())),
    }
}

/// Said of a daemon from before the protocol had a number, whose errors have no kind.
const OLDER: &str = " (the daemon is older than this command; restart it: `verfs umount`, then `verfs mount`)";
