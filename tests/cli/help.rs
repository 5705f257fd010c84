//! What the program says of itself.

use super::support::Rig;

/// Every verb of the contract.
pub const VERBS: [&str; 15] = [
    "init", "add", "mount", "switch", "rollback", "status", "list", "log", "diff", "export", "remove", "gc", "verify",
    "reload", "umount",
];

#[test]
fn every_verb_has_help_with_an_example() {
    let rig = Rig::new();
    for verb in VERBS {
        for help in ["--help", "-h"] {
            let outcome = rig.verfs(&[verb, help]);
            assert_eq!(outcome.code, 0, "verfs {verb} {help}: {outcome:?}");
            let example = format!("verfs {verb}");
            let examples = outcome.stdout.split("Example").nth(1).unwrap_or_default();
            assert!(examples.contains(&example), "verfs {verb} {help}: {}", outcome.stdout);
            for option in ["--store", "--json"] {
                assert!(outcome.stdout.contains(option), "{verb} {help} does not name {option}");
            }
            assert_eq!(outcome.stderr, "");
        }
    }
}

#[test]
fn every_example_of_the_help_is_a_call_that_is_understood() {
    let rig = Rig::new();
    for verb in VERBS {
        let help = rig.ok(&[verb, "--help"]);
        let examples = help.split("Example").nth(1).unwrap();
        let line = examples.lines().find(|line| line.contains(&format!("verfs {verb}"))).unwrap();
        let call = line.split(&format!("verfs {verb}")).nth(1).unwrap();
        // Words as the shell takes them, up to what another command begins.
        let words = call.split("&&").next().unwrap().split('\'').enumerate();
        let mut args = vec![verb.to_owned()];
        for (number, part) in words {
            match number % 2 {
                0 => args.extend(part.split_whitespace().map(str::to_owned)),
                _ => args.push(part.to_owned()),
            }
        }
        // With help asked for in the end, the words before it are only parsed.
        args.push("--help".to_owned());
        let outcome = rig.verfs(&args);
        assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}");
    }
}

#[test]
fn the_program_names_all_its_verbs_and_shows_a_tour() {
    let rig = Rig::new();
    let help = rig.ok(&["--help"]);
    for verb in VERBS {
        let listed = help.lines().any(|line| line.trim_start().starts_with(&format!("{verb} ")));
        assert!(listed, "{verb} is not listed: {help}");
    }
    for line in ["verfs init", "verfs add", "verfs mount", "verfs switch", "verfs rollback"] {
        assert!(help.contains(line), "the tour lacks {line}: {help}");
    }
    assert!(!help.contains("debug-faults"), "a verb for tests is shown");
    let nothing: [&str; 0] = [];
    let outcome = rig.verfs(&nothing);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("verfs init"), "{outcome:?}");
    let version = rig.ok(&["--version"]);
    assert_eq!(version.trim(), format!("verfs {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_fault_point_is_listed_for_the_tests() {
    let rig = Rig::new();
    let points = rig.ok(&["debug-faults"]);
    for verb in ["add", "switch", "rollback", "remove", "gc"] {
        let line = format!("{verb} ");
        assert!(points.lines().any(|point| point.starts_with(&line)), "{verb}: {points}");
    }
}
