//! Where log lines go: standard error, a file, or the journal's socket.

use crate::error::{Context, Result};
use env_logger::{Builder, Target};
use log::{Level, LevelFilter};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

const SYSLOG: &str = "/dev/log";

/// To standard error. Under systemd each line says its level in a way that the journal knows (sd-daemon(3)).
pub(super) fn to_stderr(verbose: u8) {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let mut builder = builder(verbose);
    builder.format(move |out, record| match journal {
        true => writeln!(out, "<{}>{}", severity(record.level()), record.args()),
        false => writeln!(out, "verfs: {}: {}", record.level().as_str().to_lowercase(), record.args()),
    });
    // A second call (in tests) changes nothing.
    let _ = builder.try_init();
}

/// Into a file, each line with its time.
pub(super) fn to_file(path: &Path, verbose: u8) -> Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        // In a store, what its group may write is not believed.
        .mode(0o644)
        .open(path)
        .context(|| format!("opening the log {}", path.display()))?;
    let mut builder = builder(verbose.max(1));
    builder.target(Target::Pipe(Box::new(file))).format(|out, record| {
        let time = humantime::format_rfc3339_millis(std::time::SystemTime::now());
        writeln!(out, "{time} {} {}", record.level(), record.args())
    });
    let _ = builder.try_init();
    Ok(())
}

/// To the journal or syslog, if one listens; says whether one does.
pub(super) fn to_syslog(verbose: u8) -> bool {
    let Ok(socket) = UnixDatagram::unbound() else { return false };
    if socket.connect(SYSLOG).is_err() {
        return false;
    }
    let pid = std::process::id();
    let mut builder = builder(verbose.max(1));
    // Facility 3, daemon: rfc 3164.
    builder.target(Target::Pipe(Box::new(Lines(socket)))).format(move |out, record| {
        write!(out, "<{}>verfs[{pid}]: {}", 3 * 8 + severity(record.level()), record.args())
    });
    let _ = builder.try_init();
    true
}

/// A datagram a line.
struct Lines(UnixDatagram);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.send(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn builder(verbose: u8) -> Builder {
    let mut builder = Builder::new();
    let level = match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    };
    // fuser's own lines are for its developers; only its errors are kept.
    builder.filter_level(level).filter_module("fuser", if verbose > 2 { level } else { LevelFilter::Error });
    builder
}

fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}
