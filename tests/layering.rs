//! The layers point one way: main > cli > daemon > control > fuse > fs > store > protocol > tree > error, sys, fault.
//! A file uses only what stands to its right; `fuser` appears only in fuse/ and daemon/, `unsafe` only in sys.rs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

const LAYERS: [&str; 12] =
    ["main", "cli", "daemon", "control", "fuse", "fs", "store", "protocol", "tree", "error", "sys", "fault"];
/// error, sys and fault stand side by side: all may use them.
const GROUND: usize = 9;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

fn layer_of(path: &Path, src: &Path) -> Option<usize> {
    let first = path.strip_prefix(src).unwrap().components().next()?.as_os_str().to_str()?.trim_end_matches(".rs");
    LAYERS.iter().position(|layer| *layer == first)
}

/// The modules of this crate that a line names: `crate::x`, and every name in `use crate::{x, y}`.
fn named(line: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for root in ["crate::", "verfs::"] {
        for (at, _) in line.match_indices(root) {
            let rest = &line[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(list) => names.extend(list.split(',').map(|item| word(item.trim()))),
                None => names.push(word(rest)),
            }
        }
    }
    names
}

/// What breaks the rules in a file of a layer.
fn offences(layer: usize, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        for name in named(line) {
            if let Some(used) = LAYERS.iter().position(|layer| *layer == name)
                && used < layer.min(GROUND)
            {
                found.push(format!("line {}: {} uses {name}", number + 1, LAYERS[layer]));
            }
        }
        if line.contains("fuser::") && !["fuse", "daemon"].contains(&LAYERS[layer]) {
            found.push(format!("line {}: fuser outside fuse/ and daemon/", number + 1));
        }
        if (line.contains("unsafe {") || line.contains("unsafe fn")) && LAYERS[layer] != "sys" {
            found.push(format!("line {}: unsafe outside sys.rs", number + 1));
        }
    }
    found
}

#[test]
fn every_file_uses_only_layers_to_its_right() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut checked = 0;
    for file in files.iter().filter(|file| !file.ends_with("src/lib.rs")) {
        let layer = layer_of(file, &src).unwrap_or_else(|| panic!("{} is in no layer", file.display()));
        let found = offences(layer, &fs::read_to_string(file).unwrap());
        assert!(found.is_empty(), "{}: {found:?}", file.display());
        checked += 1;
    }
    assert!(checked > 40, "the sources were found: {checked}");
}

#[test]
fn an_offence_is_seen() {
    let at = |name: &str| LAYERS.iter().position(|layer| *layer == name).unwrap();
    assert!(offences(at("store"), "use crate::{error::Result, fs::View};").len() == 1);
    assert!(offences(at("tree"), "    let x = crate::store::now();").len() == 1);
    assert!(offences(at("fs"), "use fuser::Notifier;").len() == 1);
    assert!(offences(at("cli"), "unsafe { x() }").len() == 1);
    assert!(offences(at("cli"), "use crate::daemon::serve; // crate::main").is_empty());
    assert!(offences(at("error"), "use crate::sys::x;").is_empty());
}
