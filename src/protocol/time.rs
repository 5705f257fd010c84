//! A time as JSON: RFC 3339, UTC, as in `2026-01-31T12:34:56Z`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

/// A second since 1970. What lies before that is shown as 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Time(pub i64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = Duration::from_secs(u64::try_from(self.0).unwrap_or(0));
        // Beyond the year 9999 there is no RFC 3339: such a time comes from a damaged file.
        let shown = since.min(Duration::from_secs(LAST));
        f.pad(&humantime::format_rfc3339_seconds(UNIX_EPOCH + shown).to_string())
    }
}

/// 9999-12-31T23:59:59Z.
const LAST: u64 = 253_402_300_799;

impl From<Time> for String {
    fn from(time: Time) -> Self {
        time.to_string()
    }
}

impl TryFrom<String> for Time {
    type Error = humantime::TimestampError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let time = humantime::parse_rfc3339(&text)?;
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self(i64::try_from(since.as_secs()).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339_in_utc() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (1_769_862_896, "2026-01-31T12:34:56Z"),
            (LAST as i64, "9999-12-31T23:59:59Z"),
        ];
        for (seconds, text) in table {
            assert_eq!(Time(seconds).to_string(), text);
            assert_eq!(Time::try_from(text.to_owned()), Ok(Time(seconds)));
        }
        assert_eq!(Time(-1).to_string(), Time(0).to_string());
        assert_eq!(Time(i64::MAX).to_string(), "9999-12-31T23:59:59Z");
        for wrong in ["", "yesterday", "2026-01-31", "2026-01-31T12:34:56+01:00"] {
            assert!(Time::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
