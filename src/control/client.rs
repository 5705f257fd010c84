//! The command line's end of the control socket.
//!
//! Owns one connection. Invariant: a reply belongs to the request that was sent before it; a connection that has
//! failed once (a time limit, a cut line) is not used again, as a late reply would be taken for the next one's.

use super::address::{self, Address};
use super::lines::{Line, Lines};
use crate::error::{self, Error, Result};
use crate::protocol::{Call, Request, decode_reply, encode_request};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a daemon whose queue of connections is full may take to make room.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    lines: Lines,
    path: PathBuf,
    in_step: bool,
}

impl Client {
    /// Connects to the socket at `path`, of any length; `None` if there is no daemon: no socket, or one that nobody
    /// listens on. The daemon ends a connection that stays idle for ten seconds, so connect when there is a request.
    ///
    /// # Errors
    /// No permission, or a daemon that accepts nobody: exit code 1.
    pub fn connect(path: &Path) -> Result<Option<Client>> {
        match Address::open(path).and_then(|address| address.connect(CONNECT_WAIT)) {
            Ok(stream) => {
                Ok(Some(Client { lines: Lines::new(Arc::new(stream)), path: path.to_owned(), in_step: true }))
            }
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => Ok(None),
                ErrorKind::PermissionDenied => {
                    let text = format!(
                        "{}: you may not talk to this daemon: ask as root, or as a member of the group that \
                         verfs.toml names under [access]",
                        path.display()
                    );
                    Err(Error::reported(error::ErrorKind::PermissionDenied, 1, text))
                }
                ErrorKind::WouldBlock => Err(Error::busy(format!(
                    "{}: the daemon has accepted no connection for {} seconds",
                    path.display(),
                    CONNECT_WAIT.as_secs()
                ))),
                _ => Err(Error::io(format!("cannot connect to {}", path.display()), error)),
            },
        }
    }

    /// Asks, and waits at most `timeout` for the answer. The request may take effect even if no answer came.
    ///
    /// # Errors
    /// What the daemon answered, with its exit code; or no answer, exit code 1.
    pub fn call<C: Call>(&mut self, call: C, timeout: Duration) -> Result<C::Reply> {
        let request: Request = call.into();
        let line = encode_request(&request)?;
        if !std::mem::replace(&mut self.in_step, false) {
            return Err(self.failed("the connection failed before"));
        }
        let deadline = Instant::now() + timeout;
        match self.lines.send(&line, deadline) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::TimedOut => return Err(self.late(&request, timeout)),
            // The daemon closed: what it said before that (that it is busy) may be there to read.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(error) => return Err(Error::io(format!("cannot write to {}", self.path.display()), error)),
        }
        match self.lines.next(deadline) {
            Ok(Line::Whole(reply)) => {
                self.in_step = true;
                decode_reply(&reply)
            }
            Ok(Line::TooLong) => Err(self.failed("the daemon's reply is longer than a line may be")),
            Ok(Line::Cut | Line::End) => Err(self.gone(&request)),
            Ok(Line::Unfinished | Line::Silent) => Err(self.late(&request, timeout)),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(self.gone(&request)),
            Err(error) => Err(Error::io(format!("cannot read from {}", self.path.display()), error)),
        }
    }

    /// The process that listens: the one that bound the socket.
    ///
    /// # Errors
    /// The kernel does not tell: exit code 1.
    pub fn server_pid(&self) -> Result<i32> {
        address::peer(self.lines.stream())
            .map(|peer| peer.pid)
            .map_err(|error| Error::io(format!("cannot tell who listens on {}", self.path.display()), error))
    }

    fn failed(&self, what: &str) -> Error {
        Error::failed(format!("{}: {what}", self.path.display()))
    }

    fn gone(&self, request: &Request) -> Error {
        self.failed(&format!(
            "the daemon ended the connection without an answer to {}; see what `verfs status` says",
            request.op()
        ))
    }

    fn late(&self, request: &Request, timeout: Duration) -> Error {
        self.failed(&format!(
            "the daemon has not answered {} within {:.1} seconds, and may still do it; see what `verfs status` says",
            request.op(),
            timeout.as_secs_f64()
        ))
    }
}
