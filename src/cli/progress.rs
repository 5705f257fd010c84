//! A progress bar, where a person watches.

use super::output::Output;
use crate::store::release::import::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts bytes.
#[derive(Debug)]
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar on a terminal, nothing elsewhere.
    pub(super) fn new(output: Output) -> Self {
        if !output.is_watched() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(0);
        // A literal that is known to be right; the default style would do as well.
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Moves on by this many bytes.
    pub(super) fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn total(&self, files: u64, bytes: u64) {
        self.0.reset();
        self.0.set_length(bytes);
        self.0.set_message(format!("{files} files"));
    }

    fn read(&self, bytes: u64) {
        self.advance(bytes);
    }
}
