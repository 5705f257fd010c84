//! What docs/ARCHITECTURE.md and src/lib.rs say of the code is so: the paths, the layers, and the table of locks.
#![allow(clippy::unwrap_used)]

mod source;

use source::{Kind, LAYERS, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What makes a field or a static a lock.
const LOCKS: [&str; 9] =
    ["Mutex", "RwLock", "ReentrantMutex", "Condvar", "DashMap", "DashSet", "OnceLock", "LazyLock", "Once"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The paths from the root of the repository that a text names: `src/fs/mod.rs`, `docs/`.
fn paths(text: &str) -> BTreeSet<String> {
    let part = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
    let words = text.split(|letter| !part(letter)).map(|word| word.trim_end_matches('.'));
    let tops = ["src/", "tests/", "docs/", "scripts/", "benches/", "fuzz/", "examples/", "packaging/"];
    words.filter(|word| tops.iter().any(|top| word.starts_with(top))).map(str::to_owned).collect()
}

/// The directories of src/, with a slash at the end, and the files at its top.
fn places_in_src() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![PathBuf::from("src")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root().join(&dir)).unwrap() {
            let path = dir.join(entry.unwrap().file_name());
            if root().join(&path).is_dir() {
                found.insert(format!("{}/", path.display()));
                dirs.push(path);
            } else if dir == Path::new("src") {
                found.insert(path.display().to_string());
            }
        }
    }
    found
}

#[test]
fn every_path_in_the_architecture_exists_and_no_directory_of_src_is_left_out() {
    let named = paths(&read("docs/ARCHITECTURE.md"));
    assert!(named.len() > 60, "{} paths are named", named.len());
    let missing: Vec<_> = named.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "docs/ARCHITECTURE.md names what is not there: {missing:#?}");
    let left_out: Vec<_> = places_in_src().into_iter().filter(|place| !named.contains(place)).collect();
    assert!(left_out.is_empty(), "docs/ARCHITECTURE.md does not name these: {left_out:#?}");
}

#[test]
fn every_file_that_lib_rs_names_exists() {
    let text = read("src/lib.rs");
    let paths = text.split(['`', ' ', '\n', ',', ';', ':']).map(|word| word.trim_end_matches('.'));
    let files: Vec<_> = paths.filter(|word| word.ends_with(".rs") || word.ends_with(".md")).collect();
    assert!(files.len() > 50, "{} files are named", files.len());
    let there = |file: &&str| root().join("src").join(file).is_file() || root().join(file).is_file();
    let missing: Vec<_> = files.into_iter().filter(|file| !there(file)).collect();
    assert!(missing.is_empty(), "src/lib.rs names what is not there: {missing:#?}");
}

#[test]
fn the_layers_in_lib_rs_are_those_of_the_layering_test() {
    let text = read("src/lib.rs");
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("//! main > ")).collect();
    let is_there = |layer: &&&str| {
        let src = root().join("src");
        **layer != "lib" && (src.join(layer).is_dir() || src.join(format!("{layer}.rs")).is_file())
    };
    let places = LAYERS.iter().map(|place| place.iter().filter(is_there).copied().collect::<Vec<_>>().join(", "));
    let layers: Vec<_> = places.filter(|place| !place.is_empty()).collect();
    assert_eq!(lines, [format!("//! {}", layers.join(" > "))]);
}

/// A row of a table of locks.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    /// `Type.field`, or a static; several where a condition variable goes with its lock.
    names: Vec<String>,
    file: String,
    inside: Vec<String>,
}

/// The rows of the block of src/lib.rs whose head begins with this word.
fn rows(text: &str, head: &str) -> Vec<Row> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("//!"));
    let lines = lines.map(|line| line.strip_prefix(' ').unwrap_or(line));
    let block = lines.skip_while(|line| !line.starts_with(&format!("{head} "))).skip(1);
    let mut found: Vec<Row> = Vec::new();
    let mut what = "";
    for line in block.take_while(|line| !line.starts_with("```")).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().map(|word| word.trim_end_matches(',')).collect();
        if !line.starts_with(' ') {
            let at = words.iter().position(|word| word.ends_with(".rs")).unwrap_or_else(|| panic!("no file: {line}"));
            let names = words[..at].iter().map(|&name| name.to_owned()).collect();
            found.push(Row { names, file: words[at].to_owned(), inside: Vec::new() });
            what = "";
            continue;
        }
        let begins = !line.starts_with("   ");
        if begins {
            what = words[0];
            assert!(["inside", "waits"].contains(&what), "{line}");
        }
        if what == "inside" {
            let names = words[usize::from(begins)..].iter().map(|&name| name.to_owned());
            found.last_mut().unwrap().inside.extend(names);
        }
    }
    found
}

/// Names of locks that are taken inside one that stands above them, or that are in no table.
fn out_of_order(rows: &[Row], others: &[Row]) -> Vec<String> {
    let mut found = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        for name in &row.inside {
            let below = rows[at + 1..].iter().chain(others).any(|other| other.names.contains(name));
            if !below {
                found.push(format!("{name} is inside {} and does not stand below it", row.names[0]));
            }
        }
    }
    found
}

/// The locks in a ring of "inside", if there is one.
fn ring(rows: &[&Row]) -> Option<Vec<String>> {
    let mut inside: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for row in rows {
        for name in &row.names {
            inside.entry(name).or_default().extend(row.inside.iter().map(String::as_str));
        }
    }
    // What has nothing inside is taken off, again and again: what is left lies in a ring, or above one.
    loop {
        let ends: BTreeSet<&str> = inside.iter().filter(|(_, names)| names.is_empty()).map(|(name, _)| *name).collect();
        if ends.is_empty() {
            break;
        }
        inside.retain(|name, _| !ends.contains(name));
        inside.values_mut().for_each(|names| names.retain(|name| !ends.contains(name)));
    }
    (!inside.is_empty()).then(|| inside.into_keys().map(str::to_owned).collect())
}

/// The tokens of a file that are compiled for tests alone.
fn in_tests(file: &Source) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    for (at, _) in file.tokens().filter(|(at, _)| file.signs(*at, "#[") && file.word(at + 2) == Some("cfg")) {
        if file.word(at + 4) != Some("test") || !file.signs(at + 5, ")") {
            continue;
        }
        let end = file
            .tokens()
            .skip(at + 7)
            .find(|(_, token)| token.depth == file[at].depth && ["{", ";"].contains(&token.text.as_str()));
        let (open, token) = end.unwrap();
        found.extend(at..=if token.text == "{" { file.closing(open) } else { open });
    }
    found
}

/// The fields and statics of a file that are locks, as the table names them.
fn locks(file: &Source) -> Vec<String> {
    if file.path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let tests = in_tests(file);
    let mut found = Vec::new();
    for (at, word) in file.words().filter(|(at, _)| !tests.contains(at)) {
        let Some(name) = file.word(at + 1) else { continue };
        match word {
            "struct" | "enum" | "union" => {
                let names = body(file, at).map_or(Vec::new(), |open| fields(file, open));
                found.extend(names.into_iter().map(|field| format!("{name}.{field}")));
            }
            // Not the lifetime.
            "static" if !file.signs(at.wrapping_sub(1), "'") => {
                let name = if name == "mut" { file.word(at + 2).unwrap() } else { name };
                let mut kind = file.tokens().skip(at).take_while(|(_, token)| token.text != "=");
                if kind.any(|(_, token)| LOCKS.contains(&token.text.as_str())) {
                    found.push(name.to_owned());
                }
            }
            _ => {}
        }
    }
    found
}

/// Where the fields of the type begin whose `struct` or `enum` stands there.
fn body(file: &Source, at: usize) -> Option<usize> {
    let mut angles = 0;
    for (next, token) in file.tokens().skip(at).filter(|(_, token)| token.depth == file[at].depth) {
        match token.text.as_str() {
            "<" => angles += 1,
            ">" if !file.signs(next - 1, "->") => angles -= 1,
            "{" | "(" if angles == 0 => return Some(next),
            ";" => return None,
            _ => {}
        }
    }
    None
}

/// The fields in these brackets that are locks: their names, or their places.
fn fields(file: &Source, open: usize) -> Vec<String> {
    let (mut found, mut place, mut angles, mut name, mut is_lock) = (Vec::new(), 0, 0, None, false);
    let depth = file[open].depth + 1;
    for at in open + 1..=file.closing(open) {
        let token = &file[at];
        let end = at == file.closing(open) || token.depth == depth && angles == 0 && token.text == ",";
        if end {
            if is_lock {
                found.push(name.take().unwrap_or_else(|| format!("{place}")));
            }
            (place, name, is_lock) = (place + 1, None, false);
            continue;
        }
        match token.text.as_str() {
            "<" => angles += 1,
            ">" if !file.signs(at - 1, "->") => angles -= 1,
            _ if token.kind == Kind::Word && token.depth == depth && file.signs(at + 1, ":") && name.is_none() => {
                name = Some(token.text.clone());
            }
            text => is_lock |= LOCKS.contains(&text),
        }
    }
    found
}

#[test]
fn the_table_of_locks_is_the_locks_that_there_are() {
    let text = read("src/lib.rs");
    let files = Source::all();
    let row = |row: Row| row.names.into_iter().map(move |name| format!("{} of src/{}", name, row.file));
    let listed: BTreeSet<String> = rows(&text, "lock").into_iter().flat_map(row).collect();
    let of = |file: &Source| locks(file).into_iter().map(|name| format!("{name} of {}", file.path)).collect::<Vec<_>>();
    let there: BTreeSet<String> = files.iter().flat_map(of).collect();
    let new: Vec<_> = there.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&there).collect();
    assert!(there.len() > 30, "{} locks", there.len());
    assert!(new.is_empty() && gone.is_empty(), "put into the table of src/lib.rs: {new:#?}\ntake out: {gone:#?}");
}

#[test]
fn locks_are_taken_in_one_order() {
    let text = read("src/lib.rs");
    let (threads, others) = (rows(&text, "lock"), rows(&text, "held"));
    assert!(threads.len() > 30 && others.len() > 5, "{} and {} rows", threads.len(), others.len());
    assert_eq!(out_of_order(&threads, &[]), [""; 0]);
    let all: Vec<&Row> = threads.iter().chain(&others).collect();
    let known: BTreeSet<&String> = all.iter().flat_map(|row| &row.names).collect();
    let unknown: Vec<_> = all.iter().flat_map(|row| &row.inside).filter(|name| !known.contains(name)).collect();
    assert!(unknown.is_empty(), "in no row: {unknown:?}");
    assert_eq!(ring(&all), None, "these locks are taken inside each other");
}

#[test]
fn locks_are_found_wherever_they_stand() {
    let found = |text: &str| locks(&Source::new("src/fs/mod.rs", text));
    assert_eq!(found("struct A { a: u8, pub(super) b: Arc<Mutex<HashMap<u8, Vec<u8>>>>, c: Condvar }"), ["A.b", "A.c"]);
    assert_eq!(found("struct A<T: Fn() -> u8>(T, RwLock<u8>);"), ["A.1"]);
    assert_eq!(found("struct A { a: HashMap<u8, Mutex<u8>>, b: fn(u8) -> u8, c: DashSet<u8>, }"), ["A.a", "A.c"]);
    assert_eq!(found("fn f() { static ONE: parking_lot::Once = Once::new(); }"), ["ONE"]);
    assert_eq!(found("enum A { B(Mutex<u8>), C { d: u8 } }"), ["A.0"]);
    assert_eq!(found("use parking_lot::Mutex; struct A; fn f(a: &Mutex<u8>) { let b = Mutex::new(1); }"), [""; 0]);
    assert_eq!(found("#[cfg(test)] mod tests { struct A(Mutex<u8>); } #[cfg(test)] struct B(Mutex<u8>);"), [""; 0]);
    assert_eq!(found("#[cfg(test)] mod tests; struct A(Mutex<u8>);"), ["A.0"]);
}

#[test]
fn an_order_that_is_none_is_seen() {
    let table =
        |text: &str| rows(&format!("//! lock\n//!\n{text}\n//! ```\n").replace("lock\n", "lock file\n"), "lock");
    let good = table(
        "//! A.a, A.b   a.rs   says\n//!   inside   B.b,\n//!            C.c\n//!   waits    for D.d\n//! B.b b.rs\n//! C.c c.rs",
    );
    assert_eq!((good.len(), &good[0].names[..]), (3, &["A.a".to_owned(), "A.b".to_owned()][..]));
    assert_eq!(good[0].inside, ["B.b", "C.c"]);
    assert_eq!((out_of_order(&good, &[]), ring(&good.iter().collect::<Vec<_>>())), (vec![], None));
    let bad = table("//! A.a a.rs\n//!   inside B.b\n//! B.b b.rs\n//!   inside A.a\n//! C.c c.rs");
    assert_eq!(out_of_order(&bad, &[]).len(), 1);
    assert_eq!(ring(&bad.iter().collect::<Vec<_>>()), Some(vec!["A.a".to_owned(), "B.b".to_owned()]));
}
