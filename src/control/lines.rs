//! A stream cut into lines, under a deadline.
//!
//! Owns the bytes that were read beyond a line's end. Invariants: it never holds more than [`MAX_LINE`] bytes and one
//! chunk; and a deadline bounds the whole line, so a peer that sends one byte now and then gains no time.

use crate::protocol::MAX_LINE;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes asked of the kernel at a time. Nearly every request is shorter.
const CHUNK: usize = 4096;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A whole line, without its newline.
    Whole(Vec<u8>),
    /// More than [`MAX_LINE`] bytes without a newline. What follows cannot be told apart: end the connection.
    TooLong,
    /// The peer ended inside a line.
    Cut,
    /// The peer ended between two lines.
    End,
    /// The deadline passed inside a line.
    Unfinished,
    /// The deadline passed, and no line had begun.
    Silent,
}

/// The lines of one stream.
#[derive(Debug)]
pub(super) struct Lines {
    stream: Arc<UnixStream>,
    /// Bytes after the last line that was given out.
    pending: Vec<u8>,
    /// How many of `pending` are known to hold no newline.
    searched: usize,
}

impl Lines {
    pub(super) fn new(stream: Arc<UnixStream>) -> Lines {
        Lines { stream, pending: Vec::new(), searched: 0 }
    }

    /// The stream below.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The next line, or why there is none by `deadline`.
    pub(super) fn next(&mut self, deadline: Instant) -> io::Result<Line> {
        loop {
            if let Some(found) = self.pending[self.searched..].iter().position(|&byte| byte == b'\n') {
                let end = self.searched + found;
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                self.searched = 0;
                line.truncate(end);
                return Ok(if line.len() > MAX_LINE { Line::TooLong } else { Line::Whole(line) });
            }
            self.searched = self.pending.len();
            if self.pending.len() > MAX_LINE {
                return Ok(Line::TooLong);
            }
            let begun = !self.pending.is_empty();
            let Some(left) = time_left(deadline) else {
                return Ok(if begun { Line::Unfinished } else { Line::Silent });
            };
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; CHUNK];
            match (&*self.stream).read(&mut chunk) {
                Ok(0) => return Ok(if begun { Line::Cut } else { Line::End }),
                Ok(count) => self.pending.extend_from_slice(&chunk[..count]),
                Err(error) if waits(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes all of `bytes`, or fails with `TimedOut` at `deadline`.
    pub(super) fn send(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = time_left(deadline).ok_or(ErrorKind::TimedOut)?;
            self.stream.set_write_timeout(Some(left))?;
            match (&*self.stream).write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if waits(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Errors after which the deadline decides.
fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The time until `deadline`, none when it has passed; at least a millisecond, as zero would mean "for ever" to the
/// kernel (SO_RCVTIMEO, socket(7)).
fn time_left(deadline: Instant) -> Option<Duration> {
    let left = deadline.checked_duration_since(Instant::now())?;
    Some(left.max(Duration::from_millis(1)))
}
