//! The releases of a run: families of small trees over a few names, so that two of them often have the same paths.

use crate::chance::Chance;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use verfs::fs::Release;
use verfs::store::release::manifest::{BuildNode, Builder, Manifest};
use verfs::tree::{Digest, Kind, NodeId, Tree as _};

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    Dir { mode: u16 },
    File { content: u8, mode: u16 },
}

impl Item {
    pub fn is_dir(self) -> bool {
        matches!(self, Self::Dir { .. })
    }

    pub fn mode(self) -> u16 {
        match self {
            Self::Dir { mode } => mode,
            // Served without write bits.
            Self::File { mode, .. } => mode & !0o222,
        }
    }
}

/// A release, and what it has at each path; the root's is "".
#[derive(Debug)]
pub struct Tree {
    pub items: BTreeMap<String, (Item, NodeId)>,
    pub release: Arc<Release>,
}

/// Families, and trees in each: a run switches between those of one.
const FAMILIES: usize = 64;
const MEMBERS: usize = 4;

/// Every path that a tree may have, parents first.
const PATHS: [&str; 11] = ["a", "p", "p/x", "p/y", "p/d", "p/d/x", "p/d/y", "p/d/s", "p/d/s/x", "q", "q/x"];

/// The family of a run.
pub fn family(chance: &mut Chance) -> &'static [Arc<Tree>] {
    static ALL: OnceLock<Vec<Vec<Arc<Tree>>>> = OnceLock::new();
    let all = ALL.get_or_init(|| (0..FAMILIES as u64).map(make_family).collect());
    &all[chance.below(all.len())]
}

/// A path to look at, by its names.
pub fn any_path(chance: &mut Chance) -> &'static str {
    PATHS[chance.below(PATHS.len())]
}

/// A path that a run's calls are mostly about: a directory that comes and goes more often than not.
pub fn hot_path(chance: &mut Chance) -> &'static str {
    match chance.below(3) {
        0 => any_path(chance),
        _ => ["p/d", "p/d/s", "q", "q", "q"][chance.below(5)],
    }
}

pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// A path below another one.
pub fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn make_family(number: u64) -> Vec<Arc<Tree>> {
    let mut chance = Chance::new(number);
    let mut items = BTreeMap::new();
    for path in PATHS {
        set(&mut items, path, any_item(&mut chance, path));
    }
    let mut members = Vec::new();
    for member in 0..MEMBERS {
        members.push(Arc::new(build(&format!("r{member}"), &items)));
        if !number.is_multiple_of(4) {
            come_or_go(&mut items, &mut chance);
        }
        for _ in 0..1 + chance.below(3) {
            let path = any_path(&mut chance);
            let item = any_item(&mut chance, path);
            set(&mut items, path, item);
        }
    }
    members
}

fn any_item(chance: &mut Chance, path: &str) -> Option<Item> {
    // Names that end in a letter for files are files more often than not.
    let file = matches!(path.rsplit('/').next(), Some("a" | "x" | "y"));
    let mode = if chance.percent(15) { 0o700 } else { 0o755 };
    match chance.below(10) {
        0..2 => None,
        2 if file => Some(Item::Dir { mode }),
        2 => Some(Item::File { content: 9, mode: 0o644 }),
        _ if file => {
            let mode = if chance.percent(15) { 0o600 } else { 0o644 };
            Some(Item::File { content: chance.below(3) as u8, mode })
        }
        _ => Some(Item::Dir { mode }),
    }
}

/// A directory that is there changes inside or goes; one that is not comes, with other things in it than last time.
fn come_or_go(items: &mut BTreeMap<String, Item>, chance: &mut Chance) {
    let dir = *chance.pick(&["p/d", "p/d/s", "q", "q"]);
    if items.contains_key(dir) && chance.percent(50) {
        return set(items, dir, None);
    }
    for path in PATHS.into_iter().filter(|path| *path == dir || path.starts_with(&format!("{dir}/"))) {
        let item = if path == dir { Some(Item::Dir { mode: 0o755 }) } else { any_item(chance, path) };
        set(items, path, item);
    }
}

/// Puts an item at a path whose parent is a directory; what stood below goes with what it replaces.
fn set(items: &mut BTreeMap<String, Item>, path: &str, item: Option<Item>) {
    let up = parent(path);
    if !up.is_empty() && !items.get(up).is_some_and(|item| item.is_dir()) {
        return;
    }
    let stays = item.is_some_and(Item::is_dir) && items.get(path).is_some_and(|item| item.is_dir());
    if !stays {
        let below = format!("{path}/");
        items.retain(|other, _| !other.starts_with(&below));
    }
    match item {
        Some(item) => items.insert(path.to_owned(), item),
        None => items.remove(path),
    };
}

fn build(name: &str, items: &BTreeMap<String, Item>) -> Tree {
    let mut builder = Builder::new(BuildNode::new(b"", Kind::Dir, 0o755));
    let mut numbers = BTreeMap::from([(String::new(), 0)]);
    for (path, item) in items {
        let own = path.rsplit('/').next().unwrap().as_bytes();
        let mut node = match item {
            Item::Dir { mode } => BuildNode::new(own, Kind::Dir, *mode),
            Item::File { mode, .. } => BuildNode::new(own, Kind::File, *mode),
        };
        if let Item::File { content, .. } = item {
            (node.size, node.digest) = (1, Digest::of(&[*content]));
        }
        let number = builder.push(numbers[parent(path)], node);
        numbers.insert(path.clone(), number);
    }
    let manifest = Manifest::from_bytes(builder.encode(0).unwrap(), Path::new(name)).unwrap();
    let mut known = BTreeMap::from([(String::new(), (Item::Dir { mode: 0o755 }, NodeId::ROOT))]);
    for (path, item) in items {
        let index = manifest.find_path(path.as_bytes()).unwrap().unwrap();
        known.insert(path.clone(), (*item, manifest.node(index).unwrap().nodeid));
    }
    Tree { items: known, release: Arc::new(Release { name: name.parse().unwrap(), manifest }) }
}

/// Every path, and the root.
pub fn all_paths() -> impl Iterator<Item = &'static str> {
    std::iter::once("").chain(PATHS)
}
