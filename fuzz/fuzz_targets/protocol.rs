//! The control protocol: any line is a request or an error; what was read can be written and read again; and every
//! reply fits into a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use verfs::protocol::{
    Done, MAX_LINE, PinnedPage, Reloaded, Reply, Restored, StoreStatus, Switched, decode_reply, decode_request, encode_reply,
    encode_request,
};

fuzz_target!(|line: &[u8]| {
    match decode_request(line) {
        Ok(request) => {
            // Written out it may be longer than it was read, as defaults are spelt out: then it may be refused.
            if let Ok(written) = encode_request(&request) {
                assert_eq!(written.iter().position(|&byte| byte == b'\n'), Some(written.len() - 1));
                let again = decode_request(&written[..written.len() - 1]);
                assert_eq!(again.map_err(|error| error.to_string()), Ok(request));
            }
        }
        Err(error) => {
            assert_eq!(error.exit_code(), 2);
            one_line(&encode_reply(&Err(error)));
        }
    }
    reply::<StoreStatus>(line, |status| Reply::Status(Box::new(status)));
    reply::<Switched>(line, Reply::Switched);
    reply::<Reloaded>(line, Reply::Reloaded);
    reply::<PinnedPage>(line, Reply::Pinned);
    reply::<Restored>(line, Reply::Restored);
    reply::<Done>(line, Reply::Done);
});

/// Reads the line as a reply of one type, writes that, and reads it again.
fn reply<T: DeserializeOwned + Serialize>(line: &[u8], wrap: fn(T) -> Reply) {
    let reply = decode_reply::<T>(line);
    let was_error = reply.as_ref().err().map(|error| (error.exit_code(), error.kind()));
    let written = encode_reply(&reply.map(wrap));
    one_line(&written);
    let again = decode_reply::<T>(&written[..written.len() - 1]);
    match (was_error, again) {
        // Not compared: a fraction of very many digits comes back rounded.
        (None, Ok(_)) => {}
        (Some(was), Err(again)) => assert_eq!(was, (again.exit_code(), again.kind())),
        // The longest replies may grow over the limit when they are written again.
        (None, Err(again)) => assert!(again.to_string().contains("bytes a line"), "{again}"),
        (Some(_), Ok(_)) => panic!("an error became an answer"),
    }
}

fn one_line(reply: &[u8]) {
    assert!(reply.len() <= MAX_LINE + 1);
    assert_eq!(reply.iter().position(|&byte| byte == b'\n'), Some(reply.len() - 1));
    let value: Result<serde_json::Value, _> = serde_json::from_slice(reply);
    assert!(value.is_ok(), "not JSON: {reply:?}");
}
