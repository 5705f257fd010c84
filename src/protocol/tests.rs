//! Requests and replies as lines.

#![allow(clippy::unwrap_used)]
use super::request::{
    Own, Pinned as PinnedCall, Reload, Repacked, Restore, Rollback, Status as StatusCall, Switch, Umount,
};
use super::*;
use crate::error::{Error, ErrorKind};
use crate::tree::Digest;
use serde_json::{Value, json};

fn switch(release: &str, message: Option<&str>, uid: Option<u32>) -> Request {
    Switch { release: release.parse().unwrap(), message: message.map(Into::into), uid }.into()
}

fn rollback(release: Option<&str>) -> Request {
    Rollback { release: release.map(|name| name.parse().unwrap()), ..Rollback::default() }.into()
}

fn restore(own: Own) -> Request {
    Restore { path: EncodedPath::from(&b"a b"[..]), after: 0, own }.into()
}

fn every_request() -> Vec<Request> {
    vec![
        StatusCall {}.into(),
        switch("03", None, None),
        switch("03", Some("two\nlines, \"quoted\", \u{2603}"), Some(u32::MAX)),
        rollback(None),
        rollback(Some("02")),
        Reload {}.into(),
        Umount { lazy: true }.into(),
        PinnedCall { after: u64::MAX }.into(),
        Repacked {}.into(),
        Restore { path: EncodedPath::from(&b"a%/\xff\n"[..]), after: 7, own: Own::Keep }.into(),
        Restore { path: EncodedPath::from(&b"a"[..]), after: 0, own: Own::GiveUp }.into(),
    ]
}

/// A line without its newline, which must be its only one.
fn line_of(bytes: &[u8]) -> &[u8] {
    assert_eq!(bytes.iter().position(|&byte| byte == b'\n'), Some(bytes.len() - 1));
    &bytes[..bytes.len() - 1]
}

/// Reads a reply's value, whatever its type.
fn decode_any(line: &[u8]) -> crate::error::Result<Value> {
    decode_reply(line)
}

#[test]
fn requests_are_read() {
    let table = [
        (r#"{"op":"status"}"#, StatusCall {}.into()),
        (" {\t\"op\" : \"status\" } \r", StatusCall {}.into()),
        (r#"{"protocol":1,"op":"status"}"#, StatusCall {}.into()),
        (r#"{"op":"status","protocol":0}"#, StatusCall {}.into()),
        (r#"{"op":"switch","release":"03"}"#, switch("03", None, None)),
        (r#"{"release":"03","op":"switch"}"#, switch("03", None, None)),
        (r#"{"op":"switch","release":"03","message":"a\nb","uid":7}"#, switch("03", Some("a\nb"), Some(7))),
        (r#"{"op":"switch","release":"03","message":null,"uid":null}"#, switch("03", None, None)),
        (r#"{"op":"rollback"}"#, rollback(None)),
        (r#"{"op":"rollback","release":null}"#, rollback(None)),
        (r#"{"op":"rollback","release":"02"}"#, rollback(Some("02"))),
        (r#"{"op":"reload"}"#, Reload {}.into()),
        (r#"{"op":"repacked"}"#, Repacked {}.into()),
        (r#"{"op":"umount"}"#, Umount { lazy: false }.into()),
        (r#"{"op":"umount","lazy":true}"#, Umount { lazy: true }.into()),
        (r#"{"op":"restore","path":"a b"}"#, restore(Own::Keep)),
        (r#"{"op":"restore","path":"a b","own":"give_up"}"#, restore(Own::GiveUp)),
        (r#"{"op":"pinned"}"#, PinnedCall { after: 0 }.into()),
        (r#"{"op":"pinned","after":18446744073709551615}"#, PinnedCall { after: u64::MAX }.into()),
    ];
    for (line, request) in table {
        assert_eq!(decode_request(line.as_bytes()).map_err(|error| error.to_string()), Ok(request), "{line}");
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
        (b"{\"op\":\"switch\",\"release\":\"a/b\"}", "cannot name a release"),
        (b"{\"op\":\"switch\",\"release\":\"3\",\"uid\":-1}", "invalid value"),
        (b"{\"op\":\"switch\",\"release\":\"3\",\"uid\":4294967296}", "invalid value"),
        (b"{\"op\":\"umount\",\"lazy\":1}", "invalid type"),
        (b"{\"op\":\"status\",\"protocol\":\"1\"}", "invalid type"),
        (b"{\"op\":\"status\",\"protocol\":1,\"protocol\":1}", "duplicate field `protocol`"),
    ];
    for (line, reason) in table {
        let error = decode_request(line).expect_err(&String::from_utf8_lossy(line));
        assert_eq!((error.exit_code(), error.kind()), (2, ErrorKind::Request), "{error}");
        assert!(error.to_string().contains(reason), "{}: {error}", String::from_utf8_lossy(line));
    }
}

#[test]
fn a_request_of_a_newer_protocol_is_refused_whatever_it_says() {
    for line in [r#"{"protocol":2,"op":"status"}"#, r#"{"op":{"new":"form"},"fleet":true,"protocol":4294967295}"#] {
        let error = decode_request(line.as_bytes()).unwrap_err();
        assert_eq!((error.exit_code(), error.kind()), (2, ErrorKind::Request));
        let text = error.to_string();
        assert!(text.contains("the daemon speaks 1") && text.contains("Restart it"), "{text}");
    }
}

#[test]
fn a_reply_of_a_newer_protocol_is_refused_whatever_it_says() {
    for line in [r#"{"protocol":2,"ok":{}}"#, r#"{"ok":["new"],"protocol":4294967295,"code":{}}"#] {
        let error = decode_reply::<Done>(line.as_bytes()).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        assert!(text.contains("this command understands 1") && text.contains("Use the newer verfs"), "{text}");
    }
}

#[test]
fn every_request_but_umount_says_its_protocol() {
    for request in every_request() {
        let text = String::from_utf8(encode_request(&request).unwrap()).unwrap();
        let numbered = text.starts_with(&format!("{{\"protocol\":{PROTOCOL},"));
        assert_eq!(numbered, !matches!(request, Request::Umount(_)), "{text}");
    }
    // What a daemon from before the numbers answers to `umount`, and to anything else.
    assert_eq!(decode_reply::<Done>(br#"{"ok":{"unmounted":true}}"#).unwrap(), Done {});
    let error = decode_any(br#"{"error":"the request is not understood: unknown field `protocol`","code":2}"#);
    let error = error.unwrap_err();
    assert!(error.to_string().contains("the daemon is older than this command; restart it"), "{error}");
    assert_eq!((error.exit_code(), error.kind()), (2, ErrorKind::Request));
    let error = decode_reply::<Switched>(br#"{"ok":{"from":"01","to":"02"}}"#).unwrap_err();
    assert!(error.to_string().contains("restart it"), "{error}");
}

#[test]
fn deep_nesting_is_refused_not_followed() {
    let deep = format!("{{\"op\":{}", "[".repeat(MAX_LINE / 2));
    assert_eq!(decode_request(deep.as_bytes()).unwrap_err().exit_code(), 2);
    assert_eq!(decode_any(deep.as_bytes()).unwrap_err().exit_code(), 1);
}

#[test]
fn a_line_may_have_64_kib_and_no_more() {
    let mut line = b"{\"op\":\"status\"}".to_vec();
    line.resize(MAX_LINE, b' ');
    assert_eq!(decode_request(&line).unwrap(), StatusCall {}.into());
    line.push(b' ');
    assert!(decode_request(&line).unwrap_err().to_string().contains("too long"));
}

#[test]
fn requests_survive_the_wire() {
    for request in every_request() {
        let bytes = encode_request(&request).unwrap();
        let line = line_of(&bytes);
        assert!(String::from_utf8_lossy(line).contains(&format!("\"op\":\"{}\"", request.op())), "{request:?}");
        assert_eq!(decode_request(line).unwrap(), request);
    }
}

#[test]
fn a_request_over_the_limit_is_not_encoded() {
    let error = encode_request(&switch("03", Some(&"m".repeat(MAX_LINE)), None)).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn only_status_is_for_everybody() {
    for request in every_request() {
        assert_eq!(request.mutates(), !matches!(request, Request::Status(_)), "{}", request.op());
    }
}

#[test]
fn replies_survive_the_wire() {
    let pinned = PinnedPage { objects: vec![Digest::of(b"a"), Digest::of(b"b")], next: Some(2) };
    let bytes = encode_reply(&Ok(Reply::Pinned(pinned.clone())));
    assert_eq!(decode_reply::<PinnedPage>(line_of(&bytes)).unwrap(), pinned);
    let restored = Restored { restored: vec![EncodedPath::from(&b"a\nb\xff"[..])], count: 60, given_up: 3, next: None };
    let bytes = encode_reply(&Ok(Reply::Restored(restored.clone())));
    assert_eq!(decode_reply::<Restored>(line_of(&bytes)).unwrap(), restored);
    // Of a daemon that knows only to keep what the user has.
    let older = br#"{"protocol":1,"ok":{"restored":[],"count":1,"next":null}}"#;
    assert_eq!(decode_reply::<Restored>(older).unwrap(), Restored { count: 1, ..Restored::default() });
    assert_eq!(encode_reply(&Ok(Reply::Done(Done {}))), b"{\"ok\":{}}\n");
}

#[test]
fn an_error_keeps_its_text_code_and_kind_on_the_wire() {
    for error in [
        Error::request("no such thing"),
        Error::failed("slow\nvery"),
        Error::damaged("bits"),
        Error::not_found("no release 03"),
        Error::refused("03 is active"),
        Error::busy("a client holds it"),
        Error::io("writing x", std::io::Error::from_raw_os_error(libc::ENOSPC)),
        Error::io("opening x", std::io::Error::from_raw_os_error(libc::EACCES)),
    ] {
        let said = (error.to_string(), error.exit_code(), error.kind());
        let bytes = encode_reply(&Err(error));
        let back = decode_any(line_of(&bytes)).unwrap_err();
        assert_eq!((back.to_string(), back.exit_code(), back.kind()), said);
    }
    let bytes = encode_reply(&Err(Error::busy("b")));
    assert_eq!(bytes, b"{\"error\":\"b\",\"code\":1,\"kind\":\"busy\"}\n");
}

#[test]
fn a_reply_over_the_limit_becomes_an_error_that_says_so() {
    let reply = |count: usize| PinnedPage { objects: vec![Digest::of(b"x"); count], next: None };
    let fits = fitting(&reply(2000).objects, MAX_LINE - 100);
    let line = encode_reply(&Ok(Reply::Pinned(reply(fits))));
    assert_eq!(decode_reply::<PinnedPage>(line_of(&line)).unwrap().objects.len(), fits);
    for (answer, code, kind) in [
        (Ok(Reply::Pinned(reply(fits + 2))), 1, ErrorKind::Failed),
        (Err(Error::failed("x".repeat(MAX_LINE))), 1, ErrorKind::Failed),
        (Err(Error::not_found("x".repeat(MAX_LINE))), 2, ErrorKind::NotFound),
    ] {
        let line = encode_reply(&answer);
        assert!(line.len() < 200);
        let error = decode_any(line_of(&line)).unwrap_err();
        assert_eq!((error.exit_code(), error.kind()), (code, kind));
        assert!(error.to_string().contains("at most 65536 bytes"), "{error}");
    }
}

#[test]
fn as_many_items_fit_as_their_json_allows() {
    let items = ["a", "\n", "ccc"];
    // Quotes and comma: 4, 5 and 6 bytes.
    for (bytes, count) in [(0, 0), (3, 0), (4, 1), (8, 1), (9, 2), (14, 2), (15, 3), (99, 3)] {
        assert_eq!(fitting(&items, bytes), count, "{bytes}");
    }
}

#[test]
fn strange_replies_are_failures() {
    let table: &[&[u8]] = &[
        b"",
        b"\0",
        b"[]",
        b"[1,null,null,null]",
        b"{}",
        b"{\"code\":2}",
        b"{\"error\":7,\"code\":2}",
        b"{\"ok\":1,\"error\":\"x\"}",
        b"{\"ok\":1",
        b"\xff",
    ];
    for line in table {
        let error = decode_any(line).expect_err(&String::from_utf8_lossy(line));
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("not understood"), "{error}");
    }
    // A hash that cannot be read must not pass for none: `gc` would free the object.
    let line = br#"{"protocol":1,"ok":{"objects":["00"],"next":null}}"#;
    assert!(decode_reply::<PinnedPage>(line).unwrap_err().to_string().contains("hexadecimal"));
}

#[test]
fn a_newer_daemon_may_say_more() {
    let reply: Done = decode_reply(br#"{"protocol":1,"ok":{"more":[1]},"epoch":9}"#).unwrap();
    assert_eq!(reply, Done {});
    let error = decode_any(br#"{"error":"x","code":77,"kind":"haunted"}"#).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.exit_code(), error.kind()), ("x", 1, ErrorKind::Failed));
}

#[test]
fn a_value_of_every_kind_of_error_is_one_word() {
    let words = [
        (ErrorKind::Request, "request"),
        (ErrorKind::NotFound, "not-found"),
        (ErrorKind::Refused, "refused"),
        (ErrorKind::PermissionDenied, "permission-denied"),
        (ErrorKind::Busy, "busy"),
        (ErrorKind::NoSpace, "no-space"),
        (ErrorKind::Damaged, "damaged"),
        (ErrorKind::Failed, "failed"),
    ];
    for (kind, word) in words {
        assert_eq!(serde_json::to_value(kind).unwrap(), json!(word));
        assert_eq!(serde_json::from_value::<ErrorKind>(json!(word)).unwrap(), kind);
    }
}
