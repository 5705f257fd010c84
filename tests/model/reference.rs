//! What the writable layer should show, as plain data: an entry of the upper layer wins, what was deleted of a release
//! stays hidden over every switch, and an opened file keeps its content.

use super::{Answer, At, Behind, Errno, Made, Names, On, Operation, Path, RELEASES, Seen};
use std::collections::{BTreeMap, BTreeSet};
use verfs::tree::Kind;
use verfs::tree::union::Onto;

/// What a release has at a path.
#[derive(Clone)]
pub struct Item {
    /// The path: the same bytes elsewhere are another file.
    pub path: Path,
    /// File, directory or symlink.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Of a file its bytes, of a symlink its target.
    pub content: Vec<u8>,
    /// The value of its one extended attribute.
    pub xattr: Option<Vec<u8>>,
}

impl Item {
    /// Whether it is the same file, which has one number: extended attributes do not count.
    fn is(&self, other: &Item) -> bool {
        (&self.path, self.kind, self.mode, &self.content) == (&other.path, other.kind, other.mode, &other.content)
    }
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, kind, mode, content, xattr } = self;
        write!(f, "{} {kind:?} {mode:o}, {} bytes, {xattr:?}", path.escape_ascii(), content.len())
    }
}

/// What a release has in a scope.
pub type Tree = BTreeMap<Path, Item>;

/// A file or a symlink, whatever its names are.
#[derive(Clone, Debug)]
struct File {
    seen: Seen,
    home: Home,
}

#[derive(Clone, Debug)]
enum Home {
    /// The release; it was found as this item.
    Release(Item),
    /// The upper layer, under any number of names.
    Upper,
}

#[derive(Clone, Debug)]
enum Above {
    Dir(Seen),
    Leaf(usize),
}

/// One tree of the writable layer.
#[derive(Clone, Debug, Default)]
struct Layer {
    upper: BTreeMap<Path, Above>,
    hidden: BTreeSet<Path>,
    /// Files of a release that were looked up and have not lost their name since.
    known: BTreeMap<Path, usize>,
}

/// A place: which layer, and the path in it.
type Place = (usize, Path);

/// What the kernel holds.
#[derive(Clone, Debug)]
pub enum Handle {
    /// A file or a symlink, by its number here.
    Leaf(usize),
    /// A directory, by its path; `None`: something else has its name.
    Dir(Option<Place>),
    /// A directory that was removed, by its number here.
    Removed(usize),
}

/// What shows at a place.
#[derive(Clone, Debug)]
enum Shown {
    Dir(Seen),
    Leaf(usize),
}

/// All of it. Layer 0 is the shared one; each release has one more to itself.
#[derive(Debug)]
pub struct Reference {
    trees: [[Tree; 2]; RELEASES],
    active: usize,
    layers: Vec<Layer>,
    files: Vec<File>,
    /// Directories that were removed.
    removed: Vec<Seen>,
    /// What the kernel holds, as the other side holds it.
    pub held: Vec<Handle>,
}

fn parent(path: &[u8]) -> Path {
    path.iter().rposition(|b| *b == b'/').map_or(Vec::new(), |at| path[..at].to_vec())
}

fn below(path: &[u8], other: &[u8]) -> bool {
    path.strip_prefix(other).is_some_and(|rest| rest.starts_with(b"/"))
}

fn ups(path: &[u8]) -> impl Iterator<Item = Path> {
    (0..path.len()).filter(|at| path[*at] == b'/').map(|at| path[..at].to_vec())
}

fn join(dir: &[u8], name: &[u8]) -> Path {
    if dir.is_empty() { name.to_vec() } else { [dir, name].join(&b'/') }
}

fn dir(mode: u16) -> Seen {
    Seen { kind: Kind::Dir, mode, links: 0, content: Vec::new(), xattr: None }
}

impl Reference {
    /// With these releases, the first of them active.
    pub fn new(trees: [[Tree; 2]; RELEASES]) -> Self {
        Self {
            trees,
            active: 0,
            layers: vec![Layer::default(); 1 + RELEASES],
            files: Vec::new(),
            removed: Vec::new(),
            held: Vec::new(),
        }
    }

    fn place(&self, at: &At) -> Place {
        (if at.own { 1 + self.active } else { 0 }, at.path.clone())
    }

    /// The release's entry at a place, unless something above hides it.
    fn lower(&self, (layer, path): &Place) -> Option<&Item> {
        let hidden = &self.layers[*layer].hidden;
        let tree = match layer {
            0 => &self.trees[self.active][0],
            own => &self.trees[own - 1][1],
        };
        tree.get(path).filter(|_| !hidden.contains(path) && ups(path).all(|up| !hidden.contains(&up)))
    }

    fn is_dir(&self, place: &Place) -> bool {
        let (layer, path) = place;
        if path.is_empty() {
            return true;
        }
        self.is_dir(&(*layer, parent(path)))
            && match self.layers[*layer].upper.get(path) {
                Some(above) => matches!(above, Above::Dir(_)),
                None => self.lower(place).is_some_and(|item| item.kind == Kind::Dir),
            }
    }

    /// A lookup: what shows. A file of a release that something else is seen at the name of has lost its name, and a
    /// directory that a file is seen at the name of is gone.
    fn look_up(&mut self, place: &Place) -> Option<Shown> {
        let (layer, path) = place;
        if path.is_empty() {
            return Some(Shown::Dir(dir(0o755)));
        }
        if !self.is_dir(&(*layer, parent(path))) {
            return None;
        }
        let shown = match self.layers[*layer].upper.get(path) {
            Some(Above::Dir(seen)) => Shown::Dir(seen.clone()),
            Some(Above::Leaf(file)) => Shown::Leaf(*file),
            None => {
                let item = self.lower(place)?.clone();
                match (item.kind, self.layers[*layer].known.get(path)) {
                    (Kind::Dir, _) => Shown::Dir(dir(item.mode)),
                    (_, Some(known)) if matches!(&self.files[*known].home, Home::Release(was) if was.is(&item)) => {
                        let known = *known;
                        self.files[known].seen.xattr.clone_from(&item.xattr);
                        Shown::Leaf(known)
                    }
                    _ => Shown::Leaf(self.found(item)),
                }
            }
        };
        let layer = &mut self.layers[*layer];
        match shown {
            Shown::Leaf(file) if matches!(self.files[file].home, Home::Release(_)) => {
                layer.known.insert(path.clone(), file);
            }
            _ => {
                layer.known.remove(path);
            }
        }
        if matches!(shown, Shown::Leaf(_)) {
            self.gone(place);
        }
        Some(shown)
    }

    fn found(&mut self, item: Item) -> usize {
        let seen = Seen {
            kind: item.kind,
            mode: item.mode,
            links: 1,
            content: item.content.clone(),
            xattr: item.xattr.clone(),
        };
        self.files.push(File { seen, home: Home::Release(item) });
        self.files.len() - 1
    }

    /// The directory at a place is no more.
    fn gone(&mut self, place: &Place) {
        for handle in &mut self.held {
            if matches!(handle, Handle::Dir(Some(at)) if at == place) {
                *handle = Handle::Dir(None);
            }
        }
    }

    /// The directory at a place is removed.
    fn remove_dir(&mut self, place: &Place) {
        let Some(seen) = self.shown_dir(place) else { return };
        for handle in &mut self.held {
            if matches!(handle, Handle::Dir(Some(at)) if at == place) {
                *handle = Handle::Removed(self.removed.len());
            }
        }
        self.removed.push(Seen { xattr: None, ..seen });
    }

    /// The visible names of a directory.
    fn names(&self, (layer, path): &Place) -> Names {
        let within = |other: &Path| parent(other) == *path && !other.is_empty();
        let tree = match *layer {
            0 => &self.trees[self.active][0],
            own => &self.trees[own - 1][1],
        };
        let last = |path: &Path| path[path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1)..].to_vec();
        let lower = tree.keys().filter(|other| within(other)).filter_map(|other| {
            let item = self.lower(&(*layer, other.clone()))?;
            Some((last(other), item.kind))
        });
        // Release entries below a name of the upper layer that is no directory are not reached: the walk stops there.
        let mut names: Names = lower.collect();
        for (other, above) in self.layers[*layer].upper.iter().filter(|(other, _)| within(other)) {
            let kind = match above {
                Above::Dir(_) => Kind::Dir,
                Above::Leaf(file) => self.files[*file].seen.kind,
            };
            names.insert(last(other), kind);
        }
        names
    }

    fn make_dirs(&mut self, layer: usize, path: &[u8]) {
        for up in ups(path).chain([path.to_vec()]).filter(|up| !up.is_empty()) {
            let like = self.lower(&(layer, up.clone())).map_or(0o755, |item| item.mode);
            self.layers[layer].upper.entry(up).or_insert(Above::Dir(dir(like)));
        }
    }

    /// What a walk to a place gives: the place if all above is a directory.
    fn walk(&mut self, at: &At) -> Result<Place, Errno> {
        let (layer, path) = self.place(at);
        for up in ups(&path) {
            match self.look_up(&(layer, up)) {
                None => return Err(Errno::NOENT),
                Some(Shown::Leaf(_)) => return Err(Errno::NOTDIR),
                Some(Shown::Dir(_)) => {}
            }
        }
        Ok((layer, path))
    }

    fn target(&mut self, on: &On) -> Result<Handle, Errno> {
        match on {
            On::Held(number) => match self.held[*number].clone() {
                Handle::Dir(Some(place)) if !self.is_dir(&place) => Err(Errno::NOENT),
                Handle::Dir(None) => Err(Errno::NOENT),
                there => Ok(there),
            },
            On::Path(at) => {
                let place = self.walk(at)?;
                match self.look_up(&place).ok_or(Errno::NOENT)? {
                    Shown::Leaf(file) => Ok(Handle::Leaf(file)),
                    Shown::Dir(_) => Ok(Handle::Dir(Some(place))),
                }
            }
        }
    }

    /// Hides the release's entry at a place, if it has one.
    fn hide(&mut self, place: &Place) {
        if self.lower(place).is_some() {
            self.layers[place.0].hidden.insert(place.1.clone());
        }
    }

    /// Brings what shows at a place into the upper layer.
    fn bring_up(&mut self, (layer, path): &Place) {
        if self.layers[*layer].upper.contains_key(path) {
            return;
        }
        match self.look_up(&(*layer, path.clone())) {
            Some(Shown::Leaf(file)) => {
                self.make_dirs(*layer, &parent(path));
                self.files[file].home = Home::Upper;
                let layer = &mut self.layers[*layer];
                layer.known.remove(path);
                layer.upper.insert(path.clone(), Above::Leaf(file));
            }
            Some(Shown::Dir(_)) => self.make_dirs(*layer, path),
            None => unreachable!("what is not there is not brought up"),
        }
    }

    /// A file that is about to be changed: in its place if it still shows there, else apart.
    fn change(&mut self, file: usize) -> &mut Seen {
        if let Home::Release(_) = self.files[file].home {
            let mut found = None;
            for (number, layer) in self.layers.iter().enumerate() {
                found =
                    found.or(layer.known.iter().find(|(_, known)| **known == file).map(|(p, _)| (number, p.clone())));
            }
            let shows = |place: &Place| {
                let item = self.lower(place);
                self.is_dir(&(place.0, parent(&place.1)))
                    && !self.layers[place.0].upper.contains_key(&place.1)
                    && matches!((item, &self.files[file].home), (Some(item), Home::Release(was)) if item.is(was))
            };
            match found.filter(shows) {
                Some(place) => self.bring_up(&place),
                None => self.files[file].home = Home::Upper,
            }
        }
        &mut self.files[file].seen
    }

    /// How a file or directory looks.
    fn seen(&mut self, handle: &Handle) -> Result<Seen, Errno> {
        match handle {
            Handle::Leaf(file) => {
                let mut seen = self.files[*file].seen.clone();
                let mut layers = self.layers.iter();
                seen.links = match self.files[*file].home {
                    Home::Upper => {
                        let all = layers.flat_map(|layer| layer.upper.values());
                        all.filter(|above| matches!(above, Above::Leaf(other) if other == file)).count() as u32
                    }
                    Home::Release(_) => layers.any(|layer| layer.known.values().any(|known| known == file)).into(),
                };
                Ok(seen)
            }
            Handle::Removed(number) => Ok(self.removed[*number].clone()),
            Handle::Dir(place) => match place.as_ref().map(|place| self.shown_dir(place)) {
                Some(Some(seen)) => Ok(seen),
                _ => Err(Errno::NOENT),
            },
        }
    }

    /// A directory, if one shows there; nothing is looked up.
    fn shown_dir(&self, place: &Place) -> Option<Seen> {
        let (layer, path) = place;
        self.is_dir(place).then(|| match self.layers[*layer].upper.get(path) {
            Some(Above::Dir(seen)) => seen.clone(),
            _ => dir(self.lower(place).map_or(0o755, |item| item.mode)),
        })
    }

    fn make(&mut self, place: &Place, made: &Made, mode: u16) -> Result<Answer, Errno> {
        if self.look_up(place).is_some() {
            return Err(Errno::EXIST);
        }
        let (layer, path) = place;
        self.make_dirs(*layer, &parent(path));
        let mut new = |kind, mode, content: &[u8]| {
            let seen = Seen { kind, mode, links: 1, content: content.to_vec(), xattr: None };
            self.files.push(File { seen, home: Home::Upper });
            Above::Leaf(self.files.len() - 1)
        };
        let above = match made {
            Made::Dir => Above::Dir(dir(mode)),
            Made::File => new(Kind::File, mode, b""),
            Made::Symlink(target) => new(Kind::Symlink, 0o777, target),
        };
        self.layers[*layer].upper.insert(path.clone(), above);
        self.look_up(place);
        Ok(Answer::Done)
    }

    /// Does it; what a caller is told.
    pub fn perform(&mut self, operation: &Operation) -> Result<Answer, Errno> {
        match operation {
            Operation::Behind(behind) => self.change_behind(behind).map(|()| Answer::Done).ok_or(Errno::NOENT),
            Operation::Make(at, made, mode) => {
                let place = self.walk(at)?;
                self.make(&place, made, *mode)
            }
            Operation::MakeIn(held, name, made) => match self.held[*held].clone() {
                Handle::Leaf(_) => Err(Errno::NOTDIR),
                Handle::Dir(Some((layer, path))) if self.is_dir(&(layer, path.clone())) => {
                    self.make(&(layer, join(&path, name)), made, 0o700)
                }
                Handle::Dir(_) | Handle::Removed(_) => Err(Errno::NOENT),
            },
            Operation::Write(on, offset, bytes) => {
                let file = self.file(on)?;
                let content = &mut self.change(file).content;
                let offset = offset.unwrap_or(content.len());
                content.resize(content.len().max(offset + bytes.len()), 0);
                content[offset..offset + bytes.len()].copy_from_slice(bytes);
                Ok(Answer::Done)
            }
            Operation::Truncate(on, len) => {
                let file = self.file(on)?;
                self.change(file).content.resize(*len, 0);
                Ok(Answer::Done)
            }
            Operation::Chmod(on, mode) => {
                match self.target(on)? {
                    Handle::Removed(number) => self.removed[number].mode = *mode,
                    _ => self.attributes(on)?.mode = *mode,
                }
                Ok(Answer::Done)
            }
            Operation::SetXattr(on, value) => {
                let old = &mut self.attributes(on)?.xattr;
                if value.is_none() && old.is_none() {
                    return Err(Errno::NODATA);
                }
                old.clone_from(value);
                Ok(Answer::Done)
            }
            Operation::Read(on) => {
                let target = self.target(on)?;
                self.seen(&target).map(Answer::Seen)
            }
            Operation::List(on, plus) => match self.target(on)? {
                Handle::Dir(Some(place)) if self.is_dir(&place) => {
                    let names = self.names(&place);
                    for name in names.keys().filter(|_| *plus) {
                        self.look_up(&(place.0, join(&place.1, name)));
                    }
                    Ok(Answer::Names(names))
                }
                Handle::Dir(_) | Handle::Removed(_) => Err(Errno::NOENT),
                Handle::Leaf(_) => Err(Errno::NOTDIR),
            },
            Operation::Unlink(at) => {
                let place = self.walk(at)?;
                match self.look_up(&place).ok_or(Errno::NOENT)? {
                    Shown::Dir(_) => return Err(Errno::ISDIR),
                    Shown::Leaf(_) => self.hide(&place),
                }
                let layer = &mut self.layers[place.0];
                layer.upper.remove(&place.1);
                layer.known.remove(&place.1);
                Ok(Answer::Done)
            }
            Operation::Rmdir(at) => {
                let place = self.walk(at)?;
                match self.look_up(&place).ok_or(Errno::NOENT)? {
                    Shown::Leaf(_) => return Err(Errno::NOTDIR),
                    Shown::Dir(_) if !self.names(&place).is_empty() => return Err(Errno::NOTEMPTY),
                    Shown::Dir(_) => self.remove_dir(&place),
                }
                self.hide(&place);
                self.layers[place.0].upper.remove(&place.1);
                Ok(Answer::Done)
            }
            Operation::Link(from, to) => self.link(from, to),
            Operation::Rename(from, to, onto) => self.rename(from, to, *onto),
            Operation::Hold(at) => {
                let target = self.target(&On::Path(at.clone()))?;
                self.held.push(target);
                Ok(Answer::Done)
            }
            Operation::Forget(number) => {
                self.held.remove(*number);
                Ok(Answer::Done)
            }
            Operation::Switch(to) => {
                self.active = *to;
                Ok(Answer::Done)
            }
            Operation::Reopen => {
                self.held.clear();
                self.layers.iter_mut().for_each(|layer| layer.known.clear());
                Ok(Answer::Done)
            }
        }
    }

    fn file(&mut self, on: &On) -> Result<usize, Errno> {
        match self.target(on)? {
            Handle::Leaf(file) if self.files[file].seen.kind == Kind::File => Ok(file),
            Handle::Leaf(_) => Err(Errno::INVAL),
            Handle::Dir(_) | Handle::Removed(_) => Err(Errno::ISDIR),
        }
    }

    /// The attributes of something that is about to be changed.
    fn attributes(&mut self, on: &On) -> Result<&mut Seen, Errno> {
        match self.target(on)? {
            Handle::Leaf(file) if self.files[file].seen.kind == Kind::File => Ok(self.change(file)),
            Handle::Leaf(_) => Err(Errno::INVAL),
            Handle::Dir(Some(place)) if self.is_dir(&place) => {
                self.make_dirs(place.0, &place.1);
                match self.layers[place.0].upper.get_mut(&place.1) {
                    Some(Above::Dir(seen)) => Ok(seen),
                    _ => unreachable!("it was just made"),
                }
            }
            Handle::Dir(_) | Handle::Removed(_) => Err(Errno::NOENT),
        }
    }

    fn link(&mut self, from: &At, to: &At) -> Result<Answer, Errno> {
        let from = self.walk(from)?;
        let shown = self.look_up(&from).ok_or(Errno::NOENT)?;
        let to = self.walk(to)?;
        let target = self.look_up(&to);
        if from.0 != to.0 {
            return Err(Errno::XDEV);
        }
        let Shown::Leaf(file) = shown else { return Err(Errno::PERM) };
        if target.is_some() {
            return Err(Errno::EXIST);
        }
        self.bring_up(&from);
        self.make_dirs(to.0, &parent(&to.1));
        let layer = &mut self.layers[to.0];
        layer.known.remove(&to.1);
        layer.upper.insert(to.1.clone(), Above::Leaf(file));
        self.look_up(&to);
        Ok(Answer::Done)
    }

    fn rename(&mut self, from: &At, to: &At, onto: Onto) -> Result<Answer, Errno> {
        let from = self.walk(from)?;
        let source = self.look_up(&from).ok_or(Errno::NOENT)?;
        let to = self.walk(to)?;
        let target = self.look_up(&to);
        if from.0 != to.0 {
            return Err(Errno::XDEV);
        }
        // What the kernel sees to by itself.
        if from == to || below(&from.1, &to.1) || below(&to.1, &from.1) {
            return Err(Errno::INVAL);
        }
        let dir = |shown: &Shown| matches!(shown, Shown::Dir(_));
        match (&target, onto) {
            (Some(_), Onto::Nothing) => return Err(Errno::EXIST),
            (None, Onto::Exchange) => return Err(Errno::NOENT),
            (Some(target), _) if matches!((&source, target), (Shown::Leaf(a), Shown::Leaf(b)) if a == b) => {
                return Ok(Answer::Done);
            }
            (Some(target), Onto::Replace) => match (dir(&source), dir(target)) {
                (false, true) => return Err(Errno::ISDIR),
                (true, false) => return Err(Errno::NOTDIR),
                (true, true) if !self.names(&to).is_empty() => return Err(Errno::NOTEMPTY),
                _ => {}
            },
            _ => {}
        }
        // A directory that a release has a part in stays where it is.
        let fixed = |model: &Self, place: &Place| model.lower(place).is_some_and(|item| item.kind == Kind::Dir);
        let exchanged = target.as_ref().filter(|_| onto == Onto::Exchange);
        if (dir(&source) && fixed(self, &from)) || (exchanged.is_some_and(dir) && fixed(self, &to)) {
            return Err(Errno::XDEV);
        }
        self.bring_up(&from);
        self.make_dirs(to.0, &parent(&to.1));
        if exchanged.is_some() {
            self.bring_up(&to);
        } else {
            self.remove_dir(&to);
        }
        if dir(&source) {
            // What a release has here must not show through the directory that comes.
            self.hide(&to);
        }
        self.hide(&from);
        if exchanged.is_none() {
            self.layers[to.0].upper.remove(&to.1);
            self.layers[to.0].known.remove(&to.1);
            self.gone(&to);
            self.moved(from.0, &from.1, &to.1);
        } else {
            self.moved(from.0, &from.1, b"\0");
            self.moved(from.0, &to.1, &from.1);
            self.moved(from.0, b"\0", &to.1);
        }
        Ok(Answer::Done)
    }

    /// What is done to the upper layer alone; none if it is not possible there.
    fn change_behind(&mut self, behind: &Behind) -> Option<()> {
        let upper = |model: &Self, place: &Place| model.layers[place.0].upper.get(&place.1).cloned();
        let has_dir = |model: &Self, place: &Place| {
            let dir = parent(&place.1);
            dir.is_empty() || matches!(model.layers[place.0].upper.get(&dir), Some(Above::Dir(_)))
        };
        let is_empty = |model: &Self, place: &Place| !model.layers[place.0].upper.keys().any(|p| below(p, &place.1));
        let new = |model: &mut Self, kind, mode, content: Vec<u8>| {
            model.files.push(File { seen: Seen { kind, mode, links: 1, content, xattr: None }, home: Home::Upper });
            Above::Leaf(model.files.len() - 1)
        };
        match behind {
            Behind::Make(at, made) => {
                let place = self.place(at);
                if !has_dir(self, &place) || upper(self, &place).is_some() {
                    return None;
                }
                let above = match made {
                    Made::Dir => Above::Dir(dir(0o755)),
                    Made::File => new(self, Kind::File, 0o644, Vec::new()),
                    Made::Symlink(target) => new(self, Kind::Symlink, 0o777, target.clone()),
                };
                self.layers[place.0].upper.insert(place.1, above);
            }
            Behind::Remove(at) => {
                let place = self.place(at);
                if matches!(upper(self, &place)?, Above::Dir(_)) && !is_empty(self, &place) {
                    return None;
                }
                self.layers[place.0].upper.remove(&place.1);
            }
            Behind::Replace(at) => {
                let place = self.place(at);
                let Above::Leaf(was) = upper(self, &place)? else { return None };
                let Seen { kind, content, .. } = self.files[was].seen.clone();
                let above = match kind {
                    Kind::Symlink => new(self, kind, 0o777, vec![b's'; content.len()]),
                    _ => new(self, kind, 0o644, vec![b'n'; content.len()]),
                };
                self.layers[place.0].upper.insert(place.1, above);
            }
            Behind::Link(from, to) => {
                let (from, to) = (self.place(from), self.place(to));
                let source = upper(self, &from)?;
                if matches!(source, Above::Dir(_)) || !has_dir(self, &to) || upper(self, &to).is_some() {
                    return None;
                }
                self.layers[to.0].upper.insert(to.1, source);
            }
            Behind::Rename(from, to) => {
                let (from, to) = (self.place(from), self.place(to));
                let source = upper(self, &from)?;
                let is_dir = |above: &Above| matches!(above, Above::Dir(_));
                let fits = match upper(self, &to) {
                    None => true,
                    Some(target) if from == to || !is_dir(&target) => from == to || !is_dir(&source),
                    Some(_) => is_dir(&source) && is_empty(self, &to),
                };
                if !fits || !has_dir(self, &to) || (from.0 == to.0 && below(&to.1, &from.1)) {
                    return None;
                }
                // Two names of one file stay.
                let same = |target| matches!((&source, target), (Above::Leaf(a), Some(Above::Leaf(b))) if *a == b);
                if from == to || same(upper(self, &to)) {
                    return Some(());
                }
                let moving = |path: &&Path| **path == from.1 || below(path, &from.1);
                let paths: Vec<Path> = self.layers[from.0].upper.keys().filter(moving).cloned().collect();
                for path in paths {
                    let above = self.layers[from.0].upper.remove(&path)?;
                    let path = [&to.1, &path[from.1.len()..]].concat();
                    self.layers[to.0].upper.insert(path, above);
                }
            }
            Behind::Append(at, bytes) => {
                let place = self.place(at);
                match upper(self, &place)? {
                    Above::Leaf(file) if self.files[file].seen.kind == Kind::File => {
                        self.files[file].seen.content.extend(bytes);
                    }
                    _ => return None,
                }
            }
        }
        Some(())
    }

    /// Which of what is held are symlinks without a name, the last first.
    pub fn nameless_symlinks(&mut self) -> Vec<usize> {
        let held = self.held.clone();
        let nameless =
            |handle: &Handle| self.seen(handle).is_ok_and(|seen| seen.kind == Kind::Symlink && seen.links == 0);
        let mut found: Vec<usize> =
            held.iter().map(nameless).enumerate().filter(|(_, is)| *is).map(|(at, _)| at).collect();
        found.reverse();
        found
    }

    fn moved(&mut self, layer: usize, from: &[u8], to: &[u8]) {
        let new = |path: &Path| (path == from || below(path, from)).then(|| [to, &path[from.len()..]].concat());
        let Layer { upper, known, .. } = &mut self.layers[layer];
        let keys: Vec<Path> = upper.keys().cloned().collect();
        for (path, to) in keys.iter().filter_map(|path| Some((path, new(path)?))) {
            let above = upper.remove(path).expect("listed");
            known.remove(&to);
            upper.insert(to, above);
        }
        let keys: Vec<Path> = known.keys().cloned().collect();
        for (path, to) in keys.iter().filter_map(|path| Some((path, new(path)?))) {
            let file = known.remove(path).expect("listed");
            known.insert(to, file);
        }
        for handle in &mut self.held {
            if let Handle::Dir(Some((of, path))) = handle
                && *of == layer
                && let Some(to) = new(path)
            {
                *path = to;
            }
        }
    }

    /// The visible tree of a scope, with a number for each file that is the same for each of its names.
    pub fn tree(&mut self, own: bool) -> BTreeMap<Path, (Seen, Option<usize>)> {
        let layer = if own { 1 + self.active } else { 0 };
        let (mut tree, mut dirs) = (BTreeMap::new(), vec![Vec::new()]);
        while let Some(path) = dirs.pop() {
            for name in self.names(&(layer, path.clone())).keys() {
                let at = join(&path, name);
                let shown = match self.look_up(&(layer, at.clone())) {
                    Some(Shown::Leaf(file)) => (self.seen(&Handle::Leaf(file)).expect("a file"), Some(file)),
                    Some(Shown::Dir(seen)) => {
                        dirs.push(at.clone());
                        (seen, None)
                    }
                    None => unreachable!("listed"),
                };
                tree.insert(at, shown);
            }
        }
        tree
    }

    /// The names that a layer should have on disk.
    pub fn upper(&self, layer: usize) -> BTreeSet<Path> {
        self.layers[layer].upper.keys().cloned().collect()
    }
}
