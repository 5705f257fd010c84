//! A request that is refused: what it must say, with which exit code, and what it must leave alone.

use super::listing::Listing;
use super::support::Rig;
use super::support::rig::Outcome;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Runs the program, which must refuse with this code; its message says all of `says`, and the
/// store is as before. With `--json` it says the same as one object on standard error.
pub fn refused<S: AsRef<OsStr>>(rig: &Rig, args: &[S], code: i32, says: &[&str]) {
    let words: Vec<OsString> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
    let before = Listing::of(&rig.store);
    let plain = rig.verfs(&words);
    let message = plain.stderr.clone();
    check(&words, &plain, code, &message, says);

    let mut json = words.clone();
    json.push("--json".into());
    let outcome = rig.verfs(&json);
    check(&json, &outcome, code, &error_of(&json, &outcome), says);
    before.assert_same_as(&Listing::of(&rig.store), &format!("verfs {words:?}"));
}

/// The message in what a run with `--json` left on standard error. Its code is the exit code.
pub fn error_of(args: &[OsString], outcome: &Outcome) -> String {
    let value: Value =
        serde_json::from_str(&outcome.stderr).unwrap_or_else(|error| panic!("verfs {args:?}: {error}: {outcome:?}"));
    assert_eq!(value["code"], outcome.code, "verfs {args:?}: {outcome:?}");
    value["error"].as_str().unwrap().to_owned()
}

fn check(args: &[OsString], outcome: &Outcome, code: i32, message: &str, says: &[&str]) {
    assert_eq!(outcome.code, code, "verfs {args:?}: {outcome:?}");
    assert_eq!(outcome.stdout, "", "verfs {args:?} printed a result");
    for word in says {
        assert!(message.contains(word), "verfs {args:?} does not say {word:?}: {message}");
    }
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}
