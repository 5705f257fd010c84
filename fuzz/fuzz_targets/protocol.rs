//! The control protocol: any line is a request or an error; what was read can be written and read again; and every
//! reply fits into a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use verfs::control::protocol::{MAX_LINE, decode, decode_reply, encode, encode_reply};

fuzz_target!(|line: &[u8]| {
    match decode(line) {
        Ok(request) => {
            // Written out it may be longer than it was read, as defaults are spelt out: then it may be refused.
            if let Ok(written) = encode(&request) {
                assert_eq!(written.iter().position(|&byte| byte == b'\n'), Some(written.len() - 1));
                let again = decode(&written[..written.len() - 1]);
                assert_eq!(again.map_err(|error| error.to_string()), Ok(request));
            }
        }
        Err(error) => {
            assert_eq!(error.exit_code(), 2);
            one_line(&encode_reply(&Err(error)));
        }
    }
    let reply = decode_reply(line);
    let written = encode_reply(&reply);
    one_line(&written);
    let again = decode_reply(&written[..written.len() - 1]);
    match (reply, again) {
        // Not compared: a fraction of very many digits comes back rounded.
        (Ok(_), Ok(_)) => {}
        (Err(error), Err(again)) => assert_eq!(error.exit_code(), again.exit_code()),
        // The longest replies may grow over the limit when they are written again.
        (Ok(_), Err(again)) => assert!(again.to_string().contains("bytes a line"), "{again}"),
        (Err(error), Ok(_)) => panic!("an error became an answer: {error}"),
    }
});

fn one_line(reply: &[u8]) {
    assert!(reply.len() <= MAX_LINE + 1);
    assert_eq!(reply.iter().position(|&byte| byte == b'\n'), Some(reply.len() - 1));
    let value: Result<serde_json::Value, _> = serde_json::from_slice(reply);
    assert!(value.is_ok(), "not JSON: {reply:?}");
}
