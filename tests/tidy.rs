//! The style that can be counted: lengths of lines, functions and files, names that say nothing or are taken already.
#![allow(clippy::unwrap_used)]

mod source;

use source::Source;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const FILE_LINES: usize = 500;
/// From `fn` to the bracket that closes the body.
const FUNCTION_LINES: usize = 70;
const COLUMNS: usize = 120;
/// They name no noun.
const EMPTY_WORDS: [&str; 5] = ["util", "utils", "helpers", "common", "misc"];
/// The verb is missing.
const EMPTY_PREFIXES: [&str; 2] = ["do_", "handle_"];

/// What is known to break a rule. A line that is not needed any more fails the test too: take it out.
const EXCEPTIONS: &[&str] = &[];

/// What breaks the rules in a file: a text that stays as it is while the file is edited.
fn offences(file: &Source) -> Vec<String> {
    let path = &file.path;
    let mut found = Vec::new();
    if file.text.lines().count() > FILE_LINES {
        found.push(format!("{path}: more than {FILE_LINES} lines"));
    }
    if file.text.lines().any(|line| line.chars().count() > COLUMNS) {
        found.push(format!("{path}: lines of more than {COLUMNS} columns"));
    }
    for part in path.trim_end_matches(".rs").split('/').filter(|part| says_nothing(part)) {
        found.push(format!("{path}: {part} says nothing"));
    }
    for (at, word) in file.words() {
        let Some(name) = file.word(at + 1) else { continue };
        let function = word == "fn";
        if function && lines(file, at) > FUNCTION_LINES {
            found.push(format!("{path}: fn {name}: more than {FUNCTION_LINES} lines"));
        }
        if function && EMPTY_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            found.push(format!("{path}: fn {name}: say what it does"));
        }
        let named = ["fn", "mod", "struct", "enum", "union", "trait", "type", "const", "static", "let"].contains(&word);
        if named && says_nothing(name) {
            found.push(format!("{path}: {word} {name} says nothing"));
        }
    }
    found
}

/// How many lines the function takes whose `fn` stands there; one without a body takes none.
fn lines(file: &Source, at: usize) -> usize {
    let depth = file[at].depth;
    let end = file.tokens().skip(at).find(|(_, token)| {
        // Lower is the end of what it stands in: then it has no body.
        token.depth < depth || (token.depth == depth && ["{", ";"].contains(&token.text.as_str()))
    });
    match end {
        Some((open, token)) if token.text == "{" => file[file.closing(open)].line - file[at].line + 1,
        _ => 0,
    }
}

/// `path_utils`, `PathUtils`.
fn says_nothing(name: &str) -> bool {
    let mut words = vec![String::new()];
    for letter in name.chars() {
        if letter == '_' || letter.is_uppercase() {
            words.push(String::new());
        }
        words.last_mut().unwrap().extend(letter.to_lowercase().filter(|&letter| letter != '_'));
    }
    words.iter().any(|word| EMPTY_WORDS.contains(&word.as_str()))
}

/// Names that mean two types in one layer. What stands in a function, an impl or a trait is its own.
fn doubles(files: &[Source]) -> Vec<String> {
    let mut types: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for file in files {
        for (at, word) in file.words() {
            let outside = file[at].depth == file[at].modules;
            if let (true, true, Some(name)) =
                (outside, ["struct", "enum", "union", "trait", "type"].contains(&word), file.word(at + 1))
            {
                types.entry((file.layer(), name)).or_default().push(&file.path);
            }
        }
    }
    let twice = types.into_iter().filter(|(_, paths)| paths.len() > 1);
    twice.map(|((layer, name), paths)| format!("{layer}: {name} is a type in {}", paths.join(", "))).collect()
}

#[test]
fn every_source_is_tidy() {
    let files = Source::all();
    let found: BTreeSet<String> = files.iter().flat_map(offences).chain(doubles(&files)).collect();
    let known: BTreeSet<String> = EXCEPTIONS.iter().map(|&text| text.to_owned()).collect();
    let new: Vec<_> = found.difference(&known).collect();
    let mended: Vec<_> = known.difference(&found).collect();
    assert!(new.is_empty() && mended.is_empty(), "mend these: {new:#?}\ntake out of EXCEPTIONS: {mended:#?}");
    assert!(EXCEPTIONS.is_sorted(), "EXCEPTIONS is sorted");
    for text in EXCEPTIONS {
        let path = text.split(':').next().unwrap();
        assert!(!path.contains('/') || Path::new(env!("CARGO_MANIFEST_DIR")).join(path).is_file(), "{path}");
    }
}

#[track_caller]
fn refused(path: &str, text: &str, why: &str) {
    assert_eq!(offences(&Source::new(path, text)), [format!("{path}: {why}")], "{text}");
}

#[track_caller]
fn accepted(path: &str, text: &str) {
    assert_eq!(offences(&Source::new(path, text)), [""; 0], "{text}");
}

#[test]
fn what_is_too_long_is_seen() {
    let path = "src/store/mod.rs";
    accepted(path, &"\n".repeat(FILE_LINES));
    refused(path, &"\n".repeat(FILE_LINES + 1), "more than 500 lines");

    for wide in ["// ", "/// ", "//! ", "const A: &str = \"\"; //"] {
        let line = |columns: usize| format!("{wide}{}\nstruct A;", "ü".repeat(columns - wide.len()));
        accepted(path, &line(COLUMNS));
        refused(path, &line(COLUMNS + 1), "lines of more than 120 columns");
    }

    let body = |lines: usize| format!("where\n    u8: Copy,\n{{\n{}}}\n", "    g();\n".repeat(lines - 4));
    for head in ["fn long()", "impl A { pub async fn long(&self, b: [u8; 3], c: impl Fn(u8) -> u8) -> u8"] {
        let end = if head.starts_with("impl") { "}" } else { "" };
        accepted(path, &format!("{head} {}{end}", body(FUNCTION_LINES)));
        refused(path, &format!("{head} {}{end}", body(FUNCTION_LINES + 1)), "fn long: more than 70 lines");
    }
    let declared = format!("trait T {{ fn short(&self);\n{}\nfn long() {{}} }}", "\n".repeat(FUNCTION_LINES));
    accepted(path, &declared);
}

#[test]
fn a_name_that_says_nothing_is_seen() {
    refused("src/store/utils.rs", "", "utils says nothing");
    refused("src/common/mod.rs", "", "common says nothing");
    refused("src/store/path_helpers.rs", "", "path_helpers says nothing");
    let path = "src/store/mod.rs";
    refused(path, "mod misc;", "mod misc says nothing");
    refused(path, "struct PathUtils;", "struct PathUtils says nothing");
    refused(path, "fn r#common_path() {}", "fn common_path says nothing");
    refused(path, "fn do_switch() {}", "fn do_switch: say what it does");
    refused(path, "mod a { impl B { fn handle_switch(&self) {} } }", "fn handle_switch: say what it does");
    accepted(path, "/// The mount helper, utils\nfn done() { undo_all(); handles(\"common\"); let handle = misc(); }");
}

#[test]
fn a_type_that_is_there_twice_is_seen() {
    let doubles = |files: &[(&str, &str)]| {
        doubles(&files.iter().map(|(path, text)| Source::new(path, *text)).collect::<Vec<_>>())
    };
    for text in ["enum A {}", "trait A {}", "type A = u8;", "pub(crate) struct A<T>(T);", "mod b { struct A; }"] {
        let found = doubles(&[("src/fs/one.rs", "struct A; struct B;"), ("src/fs/media/two.rs", text)]);
        assert_eq!(found, ["fs: A is a type in src/fs/one.rs, src/fs/media/two.rs"], "{text}");
    }
    let apart = [
        ("src/fs/one.rs", "struct A; impl Iterator for A { type Item = u8; }"),
        ("src/fs/two.rs", "struct B; impl Iterator for B { type Item = u8; } fn f() { struct A; }"),
        ("src/store/two.rs", "struct A;"),
    ];
    assert_eq!(doubles(&apart), [""; 0]);
}
