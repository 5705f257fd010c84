//! A line of JSON that says itself whether it is whole: `active`, and each line of the journal.
//!
//! ```text
//! {"release":"03", … ,"checksum":"89abcdef01234567"}\n
//! ^ body ^^^^^^^^^^^^^                the first 8 bytes of the body's BLAKE3, in hex
//! ```
//!
//! verfs 0.1 wrote the same objects without a checksum, and with the keys of 0.1 only.

use crate::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt;

const BEFORE: &[u8] = b",\"checksum\":\"";
const AFTER: &[u8] = b"\"}";
const DIGITS: usize = 16;

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It is the beginning of a line: whoever wrote it was stopped, and never answered.
    CutOff,
    /// It is not what was written.
    Damaged,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CutOff => "it is cut off",
            Self::Damaged => "its checksum does not fit its content",
        })
    }
}

/// The line of a value that is an object in JSON, with the newline.
pub(crate) fn seal(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(|error| Error::failed(error.to_string()))?;
    line.pop();
    let checksum = checksum(&line);
    line.extend([BEFORE, &checksum, AFTER, b"\n"].concat());
    Ok(line)
}

/// The value of a line, with its newline or without.
pub(crate) fn open<T: DeserializeOwned>(line: &[u8], keys_of_0_1: &[&str]) -> std::result::Result<T, Flaw> {
    let line = line.trim_ascii_end();
    if let Some((body, checksum)) = split(line) {
        return match self::checksum(body) == checksum {
            true => serde_json::from_slice(line).map_err(|_| Flaw::Damaged),
            false => Err(Flaw::Damaged),
        };
    }
    // A checksum that is no longer recognised is a key that 0.1 did not know.
    match serde_json::from_slice::<Map<String, Value>>(line) {
        Ok(object) if object.keys().all(|key| keys_of_0_1.contains(&key.as_str())) => {
            serde_json::from_value(Value::Object(object)).map_err(|_| Flaw::Damaged)
        }
        Err(_) if is_cut_off(line) => Err(Flaw::CutOff),
        _ => Err(Flaw::Damaged),
    }
}

/// Whether a line has a checksum, fitting or not.
pub(crate) fn is_sealed(line: &[u8]) -> bool {
    split(line.trim_ascii_end()).is_some()
}

fn split(line: &[u8]) -> Option<(&[u8], [u8; DIGITS])> {
    let (rest, checksum) = line.strip_suffix(AFTER)?.split_last_chunk()?;
    Some((rest.strip_suffix(BEFORE)?, *checksum))
}

/// The beginning of a line lacks its end; a whole one that was damaged has the checksum, or the end.
fn is_cut_off(line: &[u8]) -> bool {
    let has_checksum = line.windows(BEFORE.len()).rposition(|window| window == BEFORE);
    let has_all = has_checksum.is_some_and(|at| line.len() >= at + BEFORE.len() + DIGITS + AFTER.len());
    !has_all && !line.ends_with(b"}")
}

fn checksum(body: &[u8]) -> [u8; DIGITS] {
    let mut digits = [0; DIGITS];
    digits.copy_from_slice(&blake3::hash(body).to_hex().as_bytes()[..DIGITS]);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        text: String,
        number: u32,
    }

    const KEYS: &[&str] = &["text", "number"];

    fn note(text: &str) -> Note {
        Note { text: text.to_owned(), number: 7 }
    }

    #[test]
    fn a_line_survives_and_every_flipped_bit_is_seen() {
        let whole = note("a \",\"checksum\":\"0123456789abcdef\"} in it");
        let line = seal(&whole).expect("seal");
        assert_eq!(open(&line, KEYS), Ok(whole));
        for bit in 0..(line.len() - 1) * 8 {
            let mut bad = line.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open::<Note>(&bad, KEYS), Err(Flaw::Damaged), "bit {bit}: {}", bad.escape_ascii());
        }
    }

    #[test]
    fn a_beginning_is_told_from_damage() {
        let line = seal(&note("long enough")).expect("seal");
        for cut in 0..line.len() - 2 {
            assert_eq!(open::<Note>(&line[..cut], KEYS), Err(Flaw::CutOff), "cut at {cut}");
        }
        assert!(open::<Note>(&line[..line.len() - 1], KEYS).is_ok(), "the newline alone is missing");
    }

    #[test]
    fn a_line_of_0_1_is_read_and_none_with_other_keys() {
        let old = br#"{"text":"old","number":7}"#;
        assert_eq!(open(old, KEYS), Ok(note("old")));
        assert!(!is_sealed(old) && is_sealed(&seal(&note("new")).expect("seal")));
        assert_eq!(open::<Note>(br#"{"text":"old","number":7,"other":1}"#, KEYS), Err(Flaw::Damaged));
    }

    #[test]
    fn what_a_newer_verfs_adds_to_a_line_is_passed_over() {
        #[derive(Serialize)]
        struct Newer<'a> {
            text: &'a str,
            number: u32,
            colour: &'a str,
        }
        let line = seal(&Newer { text: "new", number: 7, colour: "red" }).expect("seal");
        assert_eq!(open(&line, KEYS), Ok(note("new")));
    }
}
