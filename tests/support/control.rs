//! The control socket, spoken to directly: a switch without the cost of a process.

use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One client of a store's daemon.
pub struct Control {
    run: PathBuf,
    line: Option<BufReader<UnixStream>>,
}

impl Control {
    /// A client of the daemon that serves `store`. Connects at the first request.
    pub fn new(store: &Path) -> Control {
        Control { run: store.join("run"), line: None }
    }

    /// Sends one request and waits for its answer. `Err` is the text of the daemon's refusal, or
    /// of a broken connection.
    pub fn ask(&mut self, request: &Value) -> Result<Value, String> {
        let reused = self.line.is_some();
        let answer = match self.exchange(request) {
            // The daemon may close a connection that it has answered.
            Err(_) if reused => {
                self.line = None;
                self.exchange(request)
            }
            answer => answer,
        };
        let answer = answer.map_err(|error| {
            self.line = None;
            format!("control socket: {error}")
        })?;
        match answer.get("ok") {
            Some(value) => Ok(value.clone()),
            None => Err(answer["error"].as_str().unwrap_or("no error text").to_owned()),
        }
    }

    /// Switches to a release.
    pub fn switch(&mut self, release: &str) -> Result<Value, String> {
        self.ask(&json!({"op": "switch", "release": release, "message": ""}))
    }

    /// The daemon's state.
    pub fn status(&mut self) -> Result<Value, String> {
        self.ask(&json!({"op": "status"}))
    }

    fn exchange(&mut self, request: &Value) -> io::Result<Value> {
        let line = match &mut self.line {
            Some(line) => line,
            none => none.insert(BufReader::new(connect(&self.run)?)),
        };
        let mut text = request.to_string();
        text.push('\n');
        line.get_mut().write_all(text.as_bytes())?;
        let mut answer = String::new();
        if line.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&answer).map_err(io::Error::other)
    }
}

/// A socket's address holds 107 bytes of path, a scratch directory may be longer: go through the
/// directory's descriptor.
fn connect(run: &Path) -> io::Result<UnixStream> {
    let dir = File::open(run)?;
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/control.sock", dir.as_raw_fd()))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}
