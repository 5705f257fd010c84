//! What is said on the control socket. No I/O here: bytes to requests and replies, and back.
//!
//! ```text
//! request   {"op":"status"}
//!           {"op":"switch","release":"03","message":"spring","uid":1000}     message, uid: may be missing or null
//!           {"op":"rollback","release":null,"message":null,"uid":null}       all may be missing
//!           {"op":"reload"}
//!           {"op":"umount","lazy":false}                                     lazy: false when missing
//!           {"op":"pinned","after":0}                                        after: 0 when missing
//!           {"op":"restore","path":"media/logo.png"}                         as `encode_path` writes it
//! reply     {"ok":VALUE}
//!           {"error":TEXT,"code":1}      1: it failed, 2: the request was wrong (the exit codes of the command line)
//! ```
//!
//! Requests are strict (an unknown op or field is refused, so that a typo never does half of what was meant); replies
//! are read leniently, so that a newer daemon may say more. Invariant: nothing encoded here is longer than
//! [`MAX_LINE`], and no bytes make a decoder panic.

use crate::error::{Error, Result};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

/// The longest line in bytes, in both directions, its newline not counted.
pub const MAX_LINE: usize = 64 * 1024;

/// What a client may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What is served, since when, and the counters.
    #[serde(deserialize_with = "no_fields")]
    Status,
    /// Serve another release.
    Switch {
        /// The release to serve; checked by the daemon, not here.
        release: String,
        /// A line for the journal.
        #[serde(default)]
        message: Option<String>,
        /// SUDO_UID as the caller tells it, for the journal only: rights come from the peer's credentials.
        #[serde(default)]
        uid: Option<u32>,
    },
    /// Serve the release that was active before the last switch, or the one that is named.
    Rollback {
        /// The release to go back to; none: the one before the last switch.
        #[serde(default)]
        release: Option<String>,
        /// A line for the journal.
        #[serde(default)]
        message: Option<String>,
        /// SUDO_UID as the caller tells it, for the journal only.
        #[serde(default)]
        uid: Option<u32>,
    },
    /// Read the settings again.
    #[serde(deserialize_with = "no_fields")]
    Reload,
    /// End the mount and the daemon.
    Umount {
        /// Detach now, and end when the last user has gone.
        #[serde(default)]
        lazy: bool,
    },
    /// Which objects are still in use though no release holds them; asked by `gc`.
    Pinned {
        /// Where the page begins: what the previous reply said, 0 for the first.
        #[serde(default)]
        after: u64,
    },
    /// Look again which packs there are; said by `gc`, which may have written them anew: as long as they are open their room
    /// is not free.
    #[serde(deserialize_with = "no_fields")]
    Repacked,
    /// Let what the writable layer hides at a path show again.
    Restore {
        /// Path in the docroot, as [`encode_path`] writes it.
        path: String,
    },
}

impl Request {
    /// The name of the operation, as it stands on the wire.
    pub fn op(&self) -> &'static str {
        match self {
            Request::Status => "status",
            Request::Switch { .. } => "switch",
            Request::Rollback { .. } => "rollback",
            Request::Reload => "reload",
            Request::Umount { .. } => "umount",
            Request::Pinned { .. } => "pinned",
            Request::Repacked => "repacked",
            Request::Restore { .. } => "restore",
        }
    }

    /// Whether only root and the daemon's own uid may ask it. `Pinned` changes nothing, but only `gc` needs it, and
    /// it tells what a release held.
    pub fn mutates(&self) -> bool {
        match self {
            Request::Status => false,
            Request::Switch { .. }
            | Request::Rollback { .. }
            | Request::Reload
            | Request::Umount { .. }
            | Request::Pinned { .. }
            | Request::Repacked
            | Request::Restore { .. } => true,
        }
    }
}

/// For variants without fields: serde lets these pass with any fields, whatever `deny_unknown_fields` says.
fn no_fields<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct NoFields {}
    NoFields::deserialize(deserializer).map(|NoFields {}| ())
}

/// Reads one request from a line without its newline.
///
/// # Errors
/// A line that is too long, not UTF-8, not JSON, or says something we do not know: exit code 2, and the text says which.
pub fn decode(line: &[u8]) -> Result<Request> {
    if line.len() > MAX_LINE {
        return Err(too_long());
    }
    let text = std::str::from_utf8(line)
        .map_err(|error| Error::request(format!("the request is not UTF-8: byte {} is wrong", error.valid_up_to())))?;
    // Asked here, as serde would take an array of the fields' values, too.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(Error::request("the request is no JSON object; a request is one line, as {\"op\":\"status\"}"));
    }
    serde_json::from_str(text).map_err(|error| {
        Error::request(match error.classify() {
            serde_json::error::Category::Data => format!("the request is not understood: {error}"),
            _ => format!("the request is not JSON: {error}"),
        })
    })
}

/// The error for a request line over [`MAX_LINE`].
pub fn too_long() -> Error {
    Error::request(format!("the request is too long: at most {MAX_LINE} bytes a line"))
}

/// One request as a line, newline included.
///
/// # Errors
/// Longer than [`MAX_LINE`] (a very long message): exit code 2.
pub fn encode(request: &Request) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(request)
        .map_err(|error| Error::failed(format!("the request cannot be written as JSON: {error}")))?;
    if line.len() > MAX_LINE {
        return Err(too_long());
    }
    line.push(b'\n');
    Ok(line)
}

/// One reply as a line, newline included. A reply over [`MAX_LINE`] is replaced by an error that says so: the peer
/// gets an answer in any case.
pub fn encode_reply(answer: &Result<Value>) -> Vec<u8> {
    let code = |error: &Error| if error.exit_code() == 2 { 2 } else { 1 };
    let (reply, code) = match answer {
        Ok(value) => (json!({ "ok": value }), 1),
        Err(error) => (json!({ "error": error.to_string(), "code": code(error) }), code(error)),
    };
    let mut line = reply.to_string().into_bytes();
    if line.len() > MAX_LINE {
        let text = format!("the reply would be {} bytes long: at most {MAX_LINE} bytes a line", line.len());
        line = json!({ "error": text, "code": code }).to_string().into_bytes();
    }
    line.push(b'\n');
    line
}

/// Reads one reply from a line without its newline; an error reply becomes the error that the daemon had.
///
/// # Errors
/// Besides the daemon's own: a line that is no reply, exit code 1.
pub fn decode_reply(line: &[u8]) -> Result<Value> {
    let strange = |why: String| Error::failed(format!("the daemon's reply is not understood: {why}"));
    if line.len() > MAX_LINE {
        return Err(strange(format!("more than {MAX_LINE} bytes")));
    }
    let mut reply: Map<String, Value> = serde_json::from_slice(line).map_err(|error| strange(error.to_string()))?;
    match (reply.remove("ok"), reply.remove("error")) {
        (Some(value), None) => Ok(value),
        (None, Some(Value::String(text))) => Err(match reply.get("code").and_then(Value::as_u64) {
            Some(2) => Error::request(text),
            _ => Error::failed(text),
        }),
        _ => Err(strange("neither \"ok\" nor \"error\"".to_owned())),
    }
}

const BYTES: &AsciiSet = &CONTROLS.add(b'%');

/// A path for JSON that people and scripts read: as it is if it is UTF-8, else percent-encoded.
pub fn json_path(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) => text.to_owned(),
        Err(_) => encode_path(path),
    }
}

/// A path for a request: percent-encoded always, so that it can be read back.
pub fn encode_path(path: &[u8]) -> String {
    percent_encode(path, BYTES).to_string()
}

/// What [`encode_path`] wrote.
pub fn decode_path(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn switch(release: &str, message: Option<&str>, uid: Option<u32>) -> Request {
        Request::Switch { release: release.into(), message: message.map(Into::into), uid }
    }

    fn rollback(release: Option<&str>) -> Request {
        Request::Rollback { release: release.map(Into::into), message: None, uid: None }
    }

    #[test]
    fn names_that_are_not_utf8_are_percent_encoded() {
        assert_eq!(json_path("ä/b%".as_bytes()), "ä/b%");
        assert_eq!(json_path(b"a%/\xff\n"), "a%25/%FF%0A");
        for path in ["ä/b%41".as_bytes(), b"a%/\xff\n"] {
            assert_eq!(decode_path(&encode_path(path)), path);
        }
    }

    #[test]
    fn requests_are_read() {
        let table = [
            (r#"{"op":"status"}"#, Request::Status),
            (" {\t\"op\" : \"status\" } \r", Request::Status),
            (r#"{"op":"switch","release":"03"}"#, switch("03", None, None)),
            (r#"{"release":"03","op":"switch"}"#, switch("03", None, None)),
            (r#"{"op":"switch","release":"03","message":"a\nb","uid":7}"#, switch("03", Some("a\nb"), Some(7))),
            (r#"{"op":"switch","release":"03","message":null,"uid":null}"#, switch("03", None, None)),
            (r#"{"op":"rollback"}"#, rollback(None)),
            (r#"{"op":"rollback","release":null}"#, rollback(None)),
            (r#"{"op":"rollback","release":"02"}"#, rollback(Some("02"))),
            (r#"{"op":"reload"}"#, Request::Reload),
            (r#"{"op":"umount"}"#, Request::Umount { lazy: false }),
            (r#"{"op":"umount","lazy":true}"#, Request::Umount { lazy: true }),
            (r#"{"op":"restore","path":"a b"}"#, Request::Restore { path: "a b".into() }),
            (r#"{"op":"pinned"}"#, Request::Pinned { after: 0 }),
            (r#"{"op":"pinned","after":18446744073709551615}"#, Request::Pinned { after: u64::MAX }),
        ];
        for (line, request) in table {
            assert_eq!(decode(line.as_bytes()).map_err(|error| error.to_string()), Ok(request), "{line}");
        }
    }

    #[test]
    fn wrong_requests_are_refused_with_the_reason() {
        let table: &[(&[u8], &str)] = &[
            (b"", "is no JSON object"),
            (b" \t\r", "is no JSON object"),
            (b"\0\0\0\0", "is no JSON object"),
            (b"hello", "is no JSON object"),
            (b"[\"status\"]", "is no JSON object"),
            (b"[\"switch\",\"03\",null,null]", "is no JSON object"),
            (b"{status}", "is not JSON"),
            (b"{\"op\":\"status\"", "is not JSON"),
            (b"{\"op\":\"status\"} x", "is not JSON"),
            (b"{\"op\":\"status\"}{\"op\":\"status\"}", "is not JSON"),
            (b"{\"op\":\"\xff\"}", "is not UTF-8: byte 7"),
            (b"null", "is no JSON object"),
            (b"{}", "missing field `op`"),
            (b"{\"op\":1}", "is not understood"),
            (b"{\"op\":\"launch\"}", "unknown variant `launch`"),
            (b"{\"op\":\"Status\"}", "unknown variant `Status`"),
            (b"{\"op\":\"status\",\"x\":1}", "unknown field `x`"),
            (b"{\"op\":\"reload\",\"x\":1}", "unknown field `x`"),
            (b"{\"op\":\"umount\",\"lasy\":true}", "unknown field `lasy`"),
            (b"{\"op\":\"rollback\",\"to\":\"02\"}", "unknown field `to`"),
            (b"{\"op\":\"status\",\"op\":\"umount\"}", "duplicate field `op`"),
            (b"{\"op\":\"switch\",\"release\":\"1\",\"release\":\"2\"}", "duplicate field `release`"),
            (b"{\"op\":\"switch\"}", "missing field `release`"),
            (b"{\"op\":\"switch\",\"release\":3}", "invalid type"),
            (b"{\"op\":\"switch\",\"release\":\"3\",\"uid\":-1}", "invalid value"),
            (b"{\"op\":\"switch\",\"release\":\"3\",\"uid\":4294967296}", "invalid value"),
            (b"{\"op\":\"umount\",\"lazy\":1}", "invalid type"),
        ];
        for (line, reason) in table {
            let error = decode(line).expect_err(&String::from_utf8_lossy(line));
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains(reason), "{}: {error}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let deep = format!("{{\"op\":{}", "[".repeat(MAX_LINE / 2));
        assert_eq!(decode(deep.as_bytes()).unwrap_err().exit_code(), 2);
        assert_eq!(decode_reply(deep.as_bytes()).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn a_line_may_have_64_kib_and_no_more() {
        let mut line = b"{\"op\":\"status\"}".to_vec();
        line.resize(MAX_LINE, b' ');
        assert_eq!(decode(&line).unwrap(), Request::Status);
        line.push(b' ');
        assert!(decode(&line).unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn requests_survive_the_wire() {
        for request in [
            Request::Status,
            switch("03", None, None),
            switch("03", Some("two\nlines, \"quoted\", \u{2603}"), Some(u32::MAX)),
            rollback(None),
            rollback(Some("02")),
            Request::Reload,
            Request::Umount { lazy: true },
            Request::Pinned { after: u64::MAX },
        ] {
            let line = encode(&request).unwrap();
            let (newline, line) = line.split_last().unwrap();
            assert_eq!(*newline, b'\n');
            assert!(!line.contains(&b'\n'), "a newline inside: {request:?}");
            assert!(String::from_utf8_lossy(line).contains(&format!("\"op\":\"{}\"", request.op())), "{request:?}");
            assert_eq!(decode(line).unwrap(), request);
        }
    }

    #[test]
    fn a_request_over_the_limit_is_not_encoded() {
        let long = switch("03", Some(&"m".repeat(MAX_LINE)), None);
        let error = encode(&long).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("too long"), "{error}");
    }

    #[test]
    fn only_status_is_for_everybody() {
        assert!(!Request::Status.mutates());
        for request in [
            switch("03", None, None),
            rollback(None),
            Request::Reload,
            Request::Umount { lazy: false },
            Request::Pinned { after: 0 },
        ] {
            assert!(request.mutates(), "{}", request.op());
        }
    }

    #[test]
    fn replies_survive_the_wire() {
        for value in [json!(null), json!({ "a": [1, 2] }), json!("text\n"), json!(u64::MAX)] {
            let line = encode_reply(&Ok(value.clone()));
            assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(line.len() - 1));
            assert_eq!(decode_reply(&line[..line.len() - 1]).unwrap(), value);
        }
        for (error, code) in [(Error::request("no such release"), 2), (Error::failed("busy\nvery"), 1)] {
            let text = error.to_string();
            let line = encode_reply(&Err(error));
            assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(line.len() - 1));
            let back = decode_reply(&line[..line.len() - 1]).unwrap_err();
            assert_eq!((back.to_string(), back.exit_code()), (text, code));
        }
    }

    #[test]
    fn a_reply_over_the_limit_becomes_an_error_that_says_so() {
        let fits = "x".repeat(MAX_LINE - r#"{"ok":""}"#.len());
        assert_eq!(decode_reply(encode_reply(&Ok(json!(fits))).trim_ascii_end()).unwrap(), json!(fits));
        for (answer, code) in [
            (Ok(json!(format!("{fits}x"))), 1),
            (Err(Error::failed("x".repeat(MAX_LINE))), 1),
            (Err(Error::request("x".repeat(MAX_LINE))), 2),
        ] {
            let line = encode_reply(&answer);
            assert!(line.len() < 200);
            let error = decode_reply(line.trim_ascii_end()).unwrap_err();
            assert_eq!(error.exit_code(), code);
            assert!(error.to_string().contains("at most 65536 bytes"), "{error}");
        }
    }

    #[test]
    fn strange_replies_are_failures() {
        let table: &[&[u8]] = &[
            b"",
            b"\0",
            b"[]",
            b"{}",
            b"{\"code\":2}",
            b"{\"error\":7,\"code\":2}",
            b"{\"ok\":1,\"error\":\"x\"}",
            b"{\"ok\":1",
            b"\xff",
        ];
        for line in table {
            let error = decode_reply(line).expect_err(&String::from_utf8_lossy(line));
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains("not understood"), "{error}");
        }
    }

    #[test]
    fn a_newer_daemon_may_say_more() {
        assert_eq!(decode_reply(br#"{"ok":1,"version":9}"#).unwrap(), json!(1));
        assert_eq!(decode_reply(br#"{"error":"x","code":77}"#).unwrap_err().exit_code(), 1);
        assert_eq!(decode_reply(br#"{"error":"x"}"#).unwrap_err().exit_code(), 1);
    }
}
