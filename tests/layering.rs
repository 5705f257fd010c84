//! The layers point one way: a file uses only what stands to its right, `fuser` is for fuse/ alone, `unsafe` for sys.
#![allow(clippy::unwrap_used)]

mod source;

use source::{LAYERS, Source, Token};

fn place(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|place| place.contains(&layer))
}

/// What breaks the rules in a file.
fn offences(file: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let mut offence = |at: usize, what: &str| found.push(format!("{}:{}: {what}", file.path, file[at].line));
    let layer = file.layer();
    let Some(own) = place(layer) else { return vec![format!("{} is in no layer", file.path)] };
    for (at, name) in uses(file) {
        match (place(&name), name.as_str()) {
            (Some(used), _) if used >= own => {}
            (Some(_), _) => offence(at, &format!("{layer} uses {name}")),
            (None, "*") => offence(at, "uses everything: name the layer"),
            (None, "as") => offence(at, "gives the crate another name"),
            (None, _) => offence(at, &format!("uses {name}, which is no layer")),
        }
    }
    for (at, word) in file.words() {
        match word {
            "fuser" if layer != "fuse" => offence(at, "fuser outside fuse/"),
            _ if word.starts_with("unsafe") && layer != "sys" => offence(at, &format!("{word} outside sys")),
            "extern" if file.word(at + 1) == Some("crate") => offence(at, "gives a crate another name"),
            "include" if file.signs(at + 1, "!") => offence(at, "includes a file that is not read here"),
            "path" if file.signs(at + 1, "=") && file.signs(at.wrapping_sub(2), "#[") => offence(at, "moves a module"),
            _ => {}
        }
    }
    if layer == "lib" {
        // Else `crate::x` would hide what it comes from. Attributes of the whole, `#![..]`, may stand there.
        let listed = |(at, token): &(usize, &Token)| {
            let attribute = token.depth > 0 || ["#", "[", "]", "(", ")"].contains(&token.text.as_str());
            let module = ["pub", "mod", ";"].contains(&token.text.as_str());
            attribute || module || file.word(at.wrapping_sub(1)) == Some("mod")
        };
        if let Some((at, _)) = file.tokens().find(|token| !listed(token)) {
            offence(at, "lib.rs is more than a list of modules");
        }
    }
    found
}

/// What the paths of a file name of the root of the crate, each with a token near it.
fn uses(file: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, word) in file.words() {
        if ["crate", "verfs", "self", "super"].contains(&word) {
            follow(file, at, file.modules() + file[at].modules, &mut found);
        }
    }
    found.dedup();
    found
}

/// Follows a path, or the tree of a `use`, that begins `below` modules below the root.
fn follow(file: &Source, at: usize, below: usize, found: &mut Vec<(usize, String)>) {
    let below = match file.word(at) {
        Some("crate" | "verfs") => 0,
        Some("super") => below.saturating_sub(1),
        Some("self") => below,
        Some(name) if below == 0 => return found.push((at, name.to_owned())),
        Some(_) => return,
        None if file.signs(at, "{") => return branches(file, at).for_each(|at| follow(file, at, below, found)),
        None if file.signs(at, "*") && below == 0 => return found.push((at, "*".to_owned())),
        None => return,
    };
    if file.signs(at + 1, "::") {
        follow(file, at + 3, below, found);
    } else if below == 0 && file.word(at + 1) == Some("as") {
        found.push((at, "as".to_owned()));
    }
}

/// Where the parts of `{a, b}` begin.
fn branches(file: &Source, open: usize) -> impl Iterator<Item = usize> {
    let depth = file[open].depth + 1;
    let starts = move |at: usize| at == open || (file[at].depth == depth && file.signs(at, ","));
    (open..file.closing(open)).filter(move |&at| starts(at)).map(|at| at + 1)
}

#[test]
fn every_file_uses_only_layers_to_its_right() {
    let found: Vec<String> = Source::all().iter().flat_map(offences).collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[track_caller]
fn refused(path: &str, text: &str, why: &str) {
    let found = offences(&Source::new(path, text));
    assert!(found.len() == 1 && found[0].ends_with(why), "{text}: {found:?}");
}

#[track_caller]
fn accepted(path: &str, text: &str) {
    assert_eq!(offences(&Source::new(path, text)), [""; 0], "{text}");
}

#[test]
fn a_use_of_a_layer_to_the_left_is_seen_however_it_is_written() {
    for text in [
        "use crate::fs::View;",
        "use crate::{error::Result, fs::View};",
        "use crate::{\n    error::Result,\n    fs::{View, attr},\n};",
        "use crate::{error::{Context, Result}, tree::{self, union::{self, shown}}, fs};",
        "use crate::{{{fs::View}}};",
        "use {crate::fs, std::io};",
        "use crate\n    ::\n    fs::View;",
        "use crate::/* a layer */fs::View;",
        "use crate::r#fs::View;",
        "use super::super::fs::View;",
        "use self::super::super::fs::View;",
        "use super::{gc::collect, super::fs::View};",
        "fn new() -> crate::fs::View { todo!() }",
        "fn new() -> <crate::fs::View as Iterator>::Item { todo!() }",
        "macro_rules! view { () => { $crate::fs::View } }",
        "fn f() { log::info!(\"{}\", crate::fs::now()) }",
        "#[serde(with = \"crate::fs::as_text\")] struct A;",
        "#[cfg(test)] mod tests { use super::super::super::fs::View; }",
        "fn f() { mod inner { use super::super::super::fs::View; } }",
    ] {
        refused("src/store/search.rs", text, "store uses fs");
    }
    refused("src/fs/media/mod.rs", "use super::super::fuse::Adapter;", "fs uses fuse");
    refused("src/error.rs", "use super::tree;", "error uses tree");
    refused("src/switch/mod.rs", "use crate::fuse;", "switch uses fuse");
    refused("src/worker/tend.rs", "use crate::keeper;", "worker uses keeper");
    refused("src/protocol/mod.rs", "use crate::store;", "protocol uses store");
    refused("src/cli/mod.rs", "use verfs::main;", "cli uses main");
    refused("src/cli/mod.rs", "use ::verfs::main;", "cli uses main");
}

#[test]
fn a_use_that_hides_its_layer_is_seen() {
    refused("src/store/mod.rs", "use crate::*;", "name the layer");
    refused("src/store/mod.rs", "use super::*;", "name the layer");
    refused("src/store/mod.rs", "use crate::{error, *};", "name the layer");
    refused("src/store/mod.rs", "use crate as verfs_;", "gives the crate another name");
    refused("src/store/mod.rs", "use super as root;", "gives the crate another name");
    refused("src/store/mod.rs", "use crate::{self as root};", "gives the crate another name");
    refused("src/store/mod.rs", "extern crate self as root;", "gives a crate another name");
    refused("src/store/mod.rs", "use crate::View;", "View, which is no layer");
    refused("src/store/mod.rs", "#[path = \"../fs/view.rs\"] mod view;", "moves a module");
    refused("src/store/mod.rs", "include!(\"../fs/view.rs\");", "not read here");
    refused("src/lib.rs", "pub mod fs; use fs;", "more than a list of modules");
    refused("src/other/mod.rs", "", "is in no layer");
}

#[test]
fn fuser_outside_its_layer_is_seen() {
    for path in ["src/fs/mod.rs", "src/worker/serve.rs", "src/control/mod.rs", "src/main.rs"] {
        refused(path, "use fuser::Notifier;", "fuser outside fuse/");
        refused(path, "use {std::io, fuser as f};", "fuser outside fuse/");
        refused(path, "type N = ::fuser :: Notifier;", "fuser outside fuse/");
    }
    accepted("src/fuse/adapter.rs", "use fuser::Notifier;");
}

#[test]
fn unsafe_outside_its_layer_is_seen() {
    for text in [
        "fn f() { unsafe { g() } }",
        "fn f() { unsafe\n{\n g() } }",
        "unsafe fn f() {}",
        "unsafe impl Send for A {}",
        "unsafe trait T {}",
        "unsafe extern \"C\" { fn f(); }",
        "type F = unsafe fn();",
        "#[unsafe(no_mangle)] fn f() {}",
        "macro_rules! m { () => { unsafe { g() } } }",
    ] {
        refused("src/cli/mod.rs", text, "unsafe outside sys");
    }
    refused("src/cli/mod.rs", "#![allow(unsafe_code)]", "unsafe_code outside sys");
    refused("src/cli/mod.rs", "#[expect(clippy::x, unsafe_code)] fn f() {}", "unsafe_code outside sys");
    for path in ["src/sys.rs", "src/sys/fds.rs"] {
        accepted(path, "#![allow(unsafe_code)] fn f() { unsafe { g() } }");
    }
}

#[test]
fn what_is_allowed_is_accepted() {
    accepted("src/main.rs", "fn main() { verfs::cli::main() }");
    accepted("src/cli/mod.rs", "use crate::worker::serve; // crate::main, unsafe, fuser::X");
    accepted(
        "src/cli/mod.rs",
        "/// [`crate::main`] is unsafe\n#[doc = \"fuser::X\"] fn f() { g(\"crate::main unsafe\") }",
    );
    accepted("src/error.rs", "use crate::sys::x; use super::fault;");
    accepted(
        "src/store/upper/mod.rs",
        "use super::super::error; use self::path::fs; use super::fs; pub(crate) fn f() {}",
    );
    accepted("src/store/mod.rs", "fn f(&self) { self.fs(); Self::fs(); fs::read(a::crate_::fs) } pub(super) fn g() {}");
    accepted("src/store/mod.rs", "#[cfg(test)] mod tests { use super::*; }");
    accepted("src/lib.rs", "//! The words.\n#![warn(missing_docs)]\npub mod fs;\nmod tree;");
}
