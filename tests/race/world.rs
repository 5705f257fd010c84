//! The releases that race against each other, and what each says of every path.
//!
//! A path is a number: its place in the sorted union of all releases' paths; 0 is the root.
//! A file's content tells its own number, so whoever reads it knows which releases have it there.

use crate::chance::Chance;
use crate::support::tree::{Entry, Tree};
use rustix::fs::FileType;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A path's number.
pub type PathId = usize;

/// The root's number.
pub const ROOT: PathId = 0;

/// What a release has at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file, and the number of its content.
    File(u32),
    /// A symlink, and the number of its target.
    Link(u32),
}

/// What a walk to a path meets in one release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is there.
    Here(Kind),
    /// ENOENT.
    Absent,
    /// ENOTDIR: a file stands where a directory would have to be.
    NotDir,
}

/// One name of a listing.
pub type Listed = (Vec<u8>, FileType);

/// See the head of this file.
pub struct World {
    paths: Vec<Vec<u8>>,
    parents: Vec<PathId>,
    children: Vec<Vec<PathId>>,
    releases: Vec<Vec<Option<Kind>>>,
    contents: Vec<Vec<u8>>,
    targets: Vec<Vec<u8>>,
    /// Paths through a symlink that is the same in every release, and where they lead.
    pub aliases: Vec<(Vec<u8>, PathId)>,
}

impl World {
    /// How many releases there are.
    pub fn releases(&self) -> usize {
        self.releases.len()
    }

    /// A release's name in the store.
    pub fn name(release: usize) -> String {
        format!("r{release}")
    }

    /// A release as it is laid down on disk.
    pub fn tree(&self, release: usize) -> Tree {
        let mut tree = Tree::new();
        for (id, kind) in self.releases[release].iter().enumerate() {
            let entry = match kind {
                _ if id == ROOT => continue,
                None => continue,
                Some(Kind::Dir) => Entry::Dir,
                Some(Kind::File(content)) => Entry::File(self.content(*content).to_vec()),
                Some(Kind::Link(target)) => Entry::Symlink(self.target(*target).to_vec()),
            };
            tree.insert(&self.paths[id], entry);
        }
        tree
    }

    /// All path numbers.
    pub fn ids(&self) -> std::ops::Range<PathId> {
        0..self.paths.len()
    }

    /// A path's number.
    pub fn id(&self, path: &str) -> PathId {
        let found = self.paths.binary_search_by(|known| known.as_slice().cmp(path.as_bytes()));
        found.unwrap_or_else(|_| panic!("no release has {path}"))
    }

    /// A path, relative to the root.
    pub fn path(&self, id: PathId) -> &[u8] {
        &self.paths[id]
    }

    /// A path, relative to a directory above it.
    pub fn below(&self, dir: PathId, id: PathId) -> &[u8] {
        match (dir, dir == id) {
            (_, true) => b".",
            (ROOT, _) => &self.paths[id],
            _ => &self.paths[id][self.paths[dir].len() + 1..],
        }
    }

    /// The directory that a path is in.
    pub fn parent(&self, id: PathId) -> PathId {
        self.parents[id]
    }

    /// Every path directly in a directory in any release.
    pub fn children(&self, dir: PathId) -> &[PathId] {
        &self.children[dir]
    }

    /// Every path below a directory in any release.
    pub fn descendants(&self, dir: PathId) -> Vec<PathId> {
        let mut all = self.children[dir].clone();
        let mut next = 0;
        while next < all.len() {
            all.extend_from_slice(&self.children[all[next]]);
            next += 1;
        }
        all
    }

    /// What a release has at a path.
    pub fn at(&self, release: usize, id: PathId) -> Option<Kind> {
        self.releases[release][id]
    }

    /// What a walk from `base`, which is a directory in this release, to `id` meets.
    pub fn walk(&self, release: usize, base: PathId, id: PathId) -> Found {
        if let Some(kind) = self.at(release, id) {
            return Found::Here(kind);
        }
        let mut above = id;
        while above != base {
            above = self.parents[above];
            match self.at(release, above) {
                Some(Kind::File(_)) => return Found::NotDir,
                // A symlink that is not the same in every release leads nowhere.
                Some(Kind::Dir | Kind::Link(_)) => return Found::Absent,
                None => {}
            }
        }
        Found::Absent
    }

    /// A release's listing of a directory, sorted.
    pub fn listing(&self, release: usize, dir: PathId) -> Vec<Listed> {
        let kinds = &self.releases[release];
        let listed = |id: &PathId| {
            let kind = match kinds[*id]? {
                Kind::Dir => FileType::Directory,
                Kind::File(_) => FileType::RegularFile,
                Kind::Link(_) => FileType::Symlink,
            };
            Some((self.below(dir, *id).to_vec(), kind))
        };
        self.children[dir].iter().filter_map(listed).collect()
    }

    /// A content by its number.
    pub fn content(&self, number: u32) -> &[u8] {
        &self.contents[number as usize]
    }

    /// A symlink's target by its number.
    pub fn target(&self, number: u32) -> &[u8] {
        &self.targets[number as usize]
    }

    /// The number of what was read, if it is one whole content.
    pub fn number_of(&self, content: &[u8]) -> Option<u32> {
        let digits = std::str::from_utf8(content.get(1..7)?).ok()?;
        let number: u32 = digits.parse().ok()?;
        (self.contents.get(number as usize)? == content).then_some(number)
    }

    /// The number of a symlink's target.
    pub fn target_number(&self, target: &[u8]) -> Option<u32> {
        let place = self.targets.iter().position(|known| known == target)?;
        u32::try_from(place).ok()
    }

    /// How many (directory, name) entries differ between two releases.
    pub fn changes(&self, from: usize, to: usize) -> usize {
        let pairs = self.releases[from].iter().zip(&self.releases[to]);
        pairs.filter(|(old, new)| old != new).count()
    }
}

/// Builds a world release by release.
#[derive(Default)]
pub struct Builder {
    releases: Vec<BTreeMap<Vec<u8>, Kind>>,
    contents: Vec<Vec<u8>>,
    targets: Vec<Vec<u8>>,
    pools: HashMap<(Vec<u8>, usize), u32>,
    aliases: Vec<(String, String)>,
}

impl Builder {
    /// No releases yet.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Begins the next release; what follows goes into it.
    pub fn release(&mut self) {
        let root = (Vec::new(), Kind::Dir);
        self.releases.push(BTreeMap::from([root]));
    }

    /// A directory, and those above it.
    pub fn dir(&mut self, path: &str) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.dir(above);
        }
        self.put(path, Kind::Dir);
    }

    /// A file with the content number `variant` of this path.
    pub fn file(&mut self, path: &str, variant: usize) {
        self.above(path);
        let key = (path.as_bytes().to_vec(), variant);
        let number = match self.pools.get(&key) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.contents.len()).unwrap();
                self.contents.push(content(number));
                self.pools.insert(key, number);
                number
            }
        };
        self.put(path, Kind::File(number));
    }

    /// A symlink.
    pub fn link(&mut self, path: &str, target: &str) {
        self.above(path);
        let target = target.as_bytes();
        let place = self.targets.iter().position(|known| known == target);
        let place = place.unwrap_or_else(|| {
            self.targets.push(target.to_vec());
            self.targets.len() - 1
        });
        self.put(path, Kind::Link(u32::try_from(place).unwrap()));
    }

    /// `path` leads, through a symlink that every release has, to `target`.
    pub fn alias(&mut self, path: &str, target: &str) {
        self.aliases.push((path.to_owned(), target.to_owned()));
    }

    fn above(&mut self, path: &str) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.dir(above);
        }
    }

    fn put(&mut self, path: &str, kind: Kind) {
        let release = self.releases.last_mut().unwrap();
        let old = release.insert(path.as_bytes().to_vec(), kind);
        assert!(old.is_none_or(|old| old == kind), "{path} twice in one release");
    }

    /// The world of these releases.
    pub fn build(self) -> World {
        let union: BTreeSet<&Vec<u8>> = self.releases.iter().flat_map(BTreeMap::keys).collect();
        let paths: Vec<Vec<u8>> = union.into_iter().cloned().collect();
        let numbered = paths.iter().enumerate();
        let ids: HashMap<Vec<u8>, PathId> = numbered.map(|(id, path)| (path.clone(), id)).collect();
        let mut parents = vec![ROOT; paths.len()];
        let mut children = vec![Vec::new(); paths.len()];
        for (id, path) in paths.iter().enumerate().skip(1) {
            let slash = path.iter().rposition(|byte| *byte == b'/');
            parents[id] = ids[&path[..slash.unwrap_or(0)]];
            children[parents[id]].push(id);
        }
        let kinds = |release: &BTreeMap<Vec<u8>, Kind>| paths.iter().map(|path| release.get(path).copied()).collect();
        World {
            releases: self.releases.iter().map(kinds).collect(),
            aliases: self
                .aliases
                .iter()
                .map(|(path, target)| (path.clone().into_bytes(), ids[target.as_bytes()]))
                .collect(),
            paths,
            parents,
            children,
            contents: self.contents,
            targets: self.targets,
        }
    }
}

/// A content that tells its number everywhere. Lengths go from a few bytes over whole pages to
/// many pages.
fn content(number: u32) -> Vec<u8> {
    let mut chance = Chance::new(number.into());
    let length = match chance.below(100) {
        0..60 => 8 + chance.below(400),
        60..75 => 4_094 + chance.below(5),
        75..90 => 5_000 + chance.below(9_000),
        90..98 => 8_192 * (1 + chance.below(4)),
        _ => 150_000 + chance.below(20_000),
    };
    let mut text = Vec::with_capacity(length + 20);
    while text.len() < length {
        text.extend_from_slice(format!("c{number:06} {:08}\n", text.len()).as_bytes());
    }
    text.truncate(length);
    text
}

/// The releases of the race test: every way in which a name can change, at every depth.
pub fn eight_releases(seed: u64) -> World {
    let mut chance = Chance::new(seed);
    let mut to = Builder::new();
    for release in 0..8 {
        to.release();
        to.file("index.html", release);
        to.link("door", "mixed");
        for turn in 0..6 {
            turning(&mut to, &format!("turn-{turn}"), (release + turn) % 6);
        }
        for depth in ["steady", "steady/n1", "steady/n1/n2", "steady/n1/n2/n3"] {
            for name in 0..4 {
                to.file(&format!("{depth}/s{name}"), 0);
            }
        }
        to.file("few/one", release % 3);
        for name in 0..5 {
            to.file(&format!("few/same-{name}"), 0);
        }
        to.dir("mixed");
        for name in 0..50 {
            let path = format!("mixed/m{name}");
            match chance.below(100) {
                0..25 => {}
                25..75 => to.file(&path, chance.below(3)),
                75..85 => {
                    let target = if chance.percent(50) { "nowhere/a" } else { "nowhere/bb" };
                    to.link(&path, target);
                }
                _ => {
                    to.dir(&path);
                    for child in 0..3 {
                        if chance.percent(60) {
                            to.file(&format!("{path}/k{child}"), chance.below(2));
                        }
                    }
                }
            }
        }
        let mut nest = "nest".to_owned();
        for depth in 0..5 {
            to.dir(&nest);
            for name in 0..5 {
                if chance.percent(70) {
                    to.file(&format!("{nest}/f{name}"), chance.below(3));
                }
            }
            nest = format!("{nest}/d{depth}");
        }
        to.dir("comes");
        for name in 0..8 {
            coming(&mut to, &mut chance, &format!("comes/c{name}"));
        }
        to.dir("wide");
        for name in 0..400 {
            if chance.percent(85) {
                let variant = if chance.percent(85) { 0 } else { 1 };
                to.file(&format!("wide/a-name-of-some-length-{name:03}"), variant);
            }
        }
    }
    // Only what lies behind the link: the link itself is looked at as what it is.
    for name in 0..50 {
        to.alias(&format!("door/m{name}"), &format!("mixed/m{name}"));
    }
    to.build()
}

/// From file to directory to symlink to nothing and back.
fn turning(to: &mut Builder, path: &str, step: usize) {
    match step {
        0 => to.file(path, 0),
        1 | 4 => {
            for child in 0..3 {
                to.file(&format!("{path}/t{child}"), step);
                to.file(&format!("{path}/in/u{child}"), 0);
            }
        }
        2 => to.link(path, "nowhere/turned"),
        3 => {}
        _ => to.file(path, 1),
    }
}

/// A directory that is there in about half of the releases, with directories in it.
fn coming(to: &mut Builder, chance: &mut Chance, path: &str) {
    match chance.below(10) {
        0..4 => {}
        4 => to.file(path, chance.below(2)),
        _ => {
            to.dir(path);
            for name in 0..6 {
                if chance.percent(65) {
                    to.file(&format!("{path}/f{name}"), chance.below(2));
                }
            }
            for inner in ["sub", "sub/deep"] {
                if chance.percent(70) {
                    to.dir(&format!("{path}/{inner}"));
                    for name in 0..4 {
                        if chance.percent(65) {
                            to.file(&format!("{path}/{inner}/g{name}"), chance.below(2));
                        }
                    }
                }
            }
        }
    }
}
