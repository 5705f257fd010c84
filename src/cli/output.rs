//! Text for people, JSON for scripts.

use crate::error::Error;
use crate::protocol::Failure;
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    /// As JSON.
    pub json: bool,
}

impl Output {
    /// Prints a result: the value as JSON, or the text.
    pub(super) fn result(self, value: &impl Serialize, text: impl FnOnce() -> String) {
        let text = if self.json { json_line(value) } else { text() };
        // A reader that went away (`verfs list | head`) is no fault of ours.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }

    /// Prints an error on standard error.
    pub(super) fn error(self, error: &Error) {
        let mut text = error.to_string();
        if error.is_denied() && !rustix::process::geteuid().is_root() {
            text += "; run it as root, or as a user who may";
        }
        if self.json {
            let failure = Failure { error: text, ..Failure::from(error) };
            eprint!("{}", json_line(&failure));
        } else {
            eprintln!("verfs: {text}");
        }
    }

    /// Prints what the operator should know, on standard error; JSON carries it in the result.
    pub(super) fn warnings(self, warnings: &[String]) {
        if !self.json {
            for warning in warnings {
                eprintln!("verfs: warning: {warning}");
            }
        }
    }

    /// Whether a person watches.
    pub(super) fn is_watched(self) -> bool {
        !self.json && std::io::stderr().is_terminal()
    }
}

/// A value as one line of JSON.
fn json_line(value: &impl Serialize) -> String {
    // The types of the protocol can always be written: their keys are strings, and none of them fails.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

/// Lines of cells, in columns.
pub(super) fn table(lines: &[Vec<String>]) -> String {
    let mut writer = tabwriter::TabWriter::new(Vec::new()).padding(2);
    for line in lines {
        // Writing into memory does not fail.
        let _ = writeln!(writer, "{}", line.join("\t"));
    }
    let bytes = writer.into_inner().unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A path for people.
pub(super) fn show_path(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("\"{}\"", path.escape_ascii()),
    }
}

/// A number of bytes for people.
pub(super) fn show_bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_for_people_hold_no_control_characters() {
        assert_eq!(show_path(b"a\nb"), "\"a\\nb\"");
    }

    #[test]
    fn tables_are_aligned() {
        let cell = |text: &str| text.to_owned();
        let lines = [vec![cell("a"), cell("b")], vec![cell("long"), cell("c")]];
        assert_eq!(table(&lines), "a     b\nlong  c\n");
    }
}
