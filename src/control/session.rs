//! One connection: its requests, each answered before the next is read.

use super::connections::Slot;
use super::lines::{Line, Lines};
use super::server::{Answer, Limits, Peer, Rights};
use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{MAX_LINE, Reply, decode_request, encode_reply, too_long};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// What the thread of one connection works with.
pub(super) struct Session {
    pub(super) lines: Lines,
    pub(super) peer: Peer,
    pub(super) own_uid: u32,
    pub(super) limits: Limits,
    pub(super) answer: Arc<dyn Answer>,
    /// The last field: when the slot is free, all else is gone.
    pub(super) slot: Slot,
}

impl Session {
    /// Answers line by line until one of the two has enough.
    pub(super) fn run(mut self) {
        loop {
            let (reply, go_on) = match self.lines.next(Instant::now() + self.limits.idle) {
                Ok(Line::Whole(_)) if self.slot.stopping() => (Err(Error::failed("the daemon is stopping")), false),
                Ok(Line::Whole(line)) => (self.reply(&line), true),
                Ok(Line::TooLong) => (Err(too_long()), false),
                Ok(Line::Cut) => (Err(Error::request("the request is cut: there is no newline at its end")), false),
                Ok(Line::Unfinished) => {
                    let seconds = self.limits.idle.as_secs_f64();
                    (Err(Error::request(format!("the request is not complete after {seconds:.1} seconds"))), false)
                }
                Ok(Line::Silent | Line::End) => return,
                Err(error) => return log::debug!("control: cannot read from process {}: {error}", self.peer.pid),
            };
            if let Err(error) = self.lines.send(&encode_reply(&reply), Instant::now() + self.limits.write) {
                return log::debug!("control: cannot answer process {}: {error}", self.peer.pid);
            }
            if !go_on {
                return;
            }
        }
    }

    fn reply(&self, line: &[u8]) -> Result<Reply> {
        debug_assert!(line.len() <= MAX_LINE);
        let request = decode_request(line)?;
        let op = request.op();
        if request.mutates() && Rights::of(self.peer, self.own_uid) != Rights::Change {
            log::warn!("control: {op} refused to uid {} (process {})", self.peer.uid, self.peer.pid);
            let who = if self.own_uid == 0 { "root".into() } else { format!("root and uid {}", self.own_uid) };
            let text = format!("{op} is for {who} only; you are uid {}", self.peer.uid);
            return Err(Error::reported(ErrorKind::PermissionDenied, 2, text));
        }
        // What the daemon guards with locks does not poison; a request that panics half-way is its own to repair.
        catch_unwind(AssertUnwindSafe(|| self.answer.answer(request, self.peer))).unwrap_or_else(|panic| {
            let why = panic_text(&*panic);
            log::error!("control: {op} panicked: {why}");
            Err(Error::failed(format!("the daemon failed inside while it answered {op}: {why}")))
        })
    }
}

/// What a panic said, if it said something.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no reason given")
}
