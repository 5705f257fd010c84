//! A path as JSON. File names are bytes, JSON strings are not.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Beside these every byte that is no ASCII is encoded.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// A path or a name as JSON holds it: as it is, if it is UTF-8 and holds no `%` before two hexadecimal digits; else
/// percent-encoded. Percent-decoding gives the bytes back in both cases, so two paths never look the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct EncodedPath(String);

impl EncodedPath {
    /// The bytes of the path.
    pub fn decode(&self) -> Vec<u8> {
        percent_decode_str(&self.0).collect()
    }

    /// As it stands in JSON.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&[u8]> for EncodedPath {
    fn from(path: &[u8]) -> Self {
        match std::str::from_utf8(path) {
            Ok(text) if percent_decode_str(text).eq(path.iter().copied()) => Self(text.to_owned()),
            _ => Self(percent_encode(path, ENCODED).to_string()),
        }
    }
}

impl From<&Path> for EncodedPath {
    fn from(path: &Path) -> Self {
        Self::from(path.as_os_str().as_bytes())
    }
}

impl fmt::Display for EncodedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_back_as_they_were_and_plain_ones_stay_plain() {
        let table: [(&[u8], &str); 8] = [
            (b"", ""),
            ("ä/b%".as_bytes(), "ä/b%"),
            (b"a\nb", "a\nb"),
            (b"100% wool", "100% wool"),
            (b"lat%E9.txt", "lat%25E9.txt"),
            (b"lat\xe9.txt", "lat%E9.txt"),
            (b"a%/\xff\n", "a%25/%FF%0A"),
            (b"%25", "%2525"),
        ];
        for (path, text) in table {
            let encoded = EncodedPath::from(path);
            assert_eq!(encoded.as_str(), text);
            assert_eq!(encoded.decode(), path, "{text}");
        }
    }
}
