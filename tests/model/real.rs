//! The writable layer as it is served, on real directories, asked as the kernel asks.

use super::reference::{Item, Tree};
use super::{Answer, At, Behind, Errno, Made, Names, On, Operation, Path, RELEASES, Seen, TOPS};
use rustix::process::{getegid, geteuid};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use verfs::error::Error;
use verfs::fs::media::{Caller, Changes, New, Permissions, Reading, Rights, Writing};
use verfs::fs::refused::Refused;
use verfs::fs::{Attr, Epoch, Fs, ListRequest, Listing, LookupRef, Media, Position, Release, Type};
use verfs::store::media::home::Home;
use verfs::store::media::layout::LAYOUT;
use verfs::store::media::scope::Scope;
use verfs::store::release::manifest::{BuildNode, Builder, Manifest};
use verfs::store::release::objects::Objects;
use verfs::tree::union::Onto;
use verfs::tree::{ChangeSet, Digest, Kind, NodeId, Owner, ReleaseName};

const XATTR: &[u8] = b"user.a";

/// The objects of all releases of all cases: there are few contents.
static STORE: LazyLock<tempfile::TempDir> = LazyLock::new(scratch);

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("model-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory")
}

/// See the head of this file.
pub struct Real {
    home: tempfile::TempDir,
    releases: Vec<Arc<Release>>,
    active: usize,
    switches: u32,
    fs: Option<Fs>,
    /// Nodes that the kernel was told of in the operation under way.
    told: Vec<NodeId>,
    /// Nodes that it holds.
    pub held: Vec<NodeId>,
}

fn owner() -> Owner {
    Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() }
}

fn caller() -> Caller {
    let Owner { uid, gid } = owner();
    Caller { uid, gid, thread: rustix::thread::gettid().as_raw_nonzero().get() as u32, notes: true }
}

fn name(release: usize) -> ReleaseName {
    (release + 1).to_string().parse().expect("a name")
}

fn errno(error: Error) -> Errno {
    error.errno()
}

/// A release with these trees in its two scopes.
fn release(number: usize, trees: &[Tree; 2]) -> Arc<Release> {
    let node = |name: &[u8], kind, mode| BuildNode { owner: owner(), ..BuildNode::new(name, kind, mode) };
    let mut builder = Builder::new(node(b"", Kind::Dir, 0o755));
    for (top, tree) in TOPS.iter().zip(trees) {
        // A scope is there whatever a release has at its place.
        let kind = if tree.is_empty() { Kind::Symlink } else { Kind::Dir };
        let mut numbers = BTreeMap::from([(Vec::new(), builder.push(0, node(top, kind, 0o755)))]);
        for (path, Item { kind, mode, content, xattr, .. }) in tree {
            let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
                Some(at) => (path[..at].to_vec(), &path[at + 1..]),
                None => (Vec::new(), &path[..]),
            };
            let mut new = node(name, *kind, *mode);
            match kind {
                Kind::Dir => {}
                Kind::Symlink => new.target.clone_from(content),
                Kind::File => {
                    (new.size, new.digest) = (content.len() as u64, Digest::of(content));
                    new.xattrs = xattr.iter().map(|value| (XATTR.to_vec(), value.clone())).collect();
                    let object = Objects::of(STORE.path()).expect("objects").path(new.digest);
                    fs::create_dir_all(object.parent().expect("a directory")).expect("objects");
                    // Whole at once: other tests of this process may be reading it.
                    let new = tempfile::NamedTempFile::new_in(STORE.path()).expect("a file");
                    fs::write(new.path(), content).expect("an object");
                    new.persist(object).expect("an object");
                }
            }
            numbers.insert(path.clone(), builder.push(numbers[&dir], new));
        }
    }
    let bytes = builder.encode(0).expect("a manifest");
    let manifest = Manifest::from_bytes(bytes, std::path::Path::new("a release of the model")).expect("a manifest");
    Arc::new(Release { name: name(number), manifest })
}

impl Real {
    /// With these releases, the first of them active.
    pub fn new(trees: &[[Tree; 2]; RELEASES]) -> Self {
        let home = scratch();
        let mut dirs: Vec<String> = LAYOUT.iter().map(|(name, _)| (*name).to_owned()).collect();
        dirs.push("media/m".to_owned());
        for number in 1..=RELEASES {
            dirs.extend([format!("own/{number}/media/p"), format!("own/{number}/whiteouts")]);
        }
        let made = |dir| fs::DirBuilder::new().recursive(true).mode(0o755).create(home.path().join(dir));
        dirs.iter().for_each(|dir| made(dir).expect("a directory"));
        let releases = trees.iter().enumerate().map(|(number, trees)| release(number, trees)).collect();
        let mut real = Self { home, releases, active: 0, switches: 1, fs: None, told: Vec::new(), held: Vec::new() };
        real.open();
        real
    }

    fn open(&mut self) {
        self.fs = None;
        let refused = Arc::new(Refused::default());
        let scopes = [Scope::new("m", false, ""), Scope::new("p", true, "")];
        let upper = Home::open(self.home.path(), &scopes).expect("the writable layer");
        upper.sweep().expect("a clean work space");
        let media = Media::new(&scopes, upper, refused.clone(), Rights::Modes);
        let epoch = Epoch::new(self.switches, self.releases[self.active].clone(), Arc::default());
        let store = fs::File::open(STORE.path()).expect("the store");
        self.fs = Some(Fs::new(epoch, Objects::of(STORE.path()).expect("objects"), store, 16, Some(media), refused));
    }

    fn fs(&self) -> &Fs {
        self.fs.as_ref().expect("open")
    }

    /// A lookup that the kernel is told the answer of.
    fn look_up(&mut self, dir: NodeId, name: &[u8]) -> Result<Option<Attr>, Errno> {
        let fs = self.fs();
        let entry = fs.lookup(&fs.epochs.load(), dir, name).map_err(errno)?;
        if let Some(attr) = entry.attr {
            entry.lookup.into_iter().for_each(LookupRef::sent);
            self.told.push(attr.node);
        }
        Ok(entry.attr)
    }

    /// The directory that a path's last name is in, and that name.
    fn walk<'p>(&mut self, at: &'p At) -> Result<(NodeId, &'p [u8]), Errno> {
        let mut dir = self.look_up(NodeId::ROOT, TOPS[usize::from(at.own)])?.expect("the top of a scope").node;
        let mut names: Vec<&[u8]> = at.path.split(|b| *b == b'/').collect();
        let last = names.pop().expect("a name");
        for name in names {
            match self.look_up(dir, name)?.ok_or(Errno::NOENT)? {
                Attr { kind: Type::Dir, node, .. } => dir = node,
                _ => return Err(Errno::NOTDIR),
            }
        }
        Ok((dir, last))
    }

    fn find(&mut self, at: &At) -> Result<Attr, Errno> {
        let (dir, name) = self.walk(at)?;
        self.look_up(dir, name)?.ok_or(Errno::NOENT)
    }

    fn target(&mut self, on: &On) -> Result<Attr, Errno> {
        match on {
            On::Path(at) => self.find(at),
            On::Held(number) => self.attributes(self.held[*number]),
        }
    }

    fn attributes(&self, node: NodeId) -> Result<Attr, Errno> {
        let fs = self.fs();
        match fs.getattr(&fs.epochs.load(), node).map_err(errno) {
            Ok((attr, _)) => Ok(attr),
            // What a directory that is gone answers is not told apart: somebody may be in it, and is in nothing.
            Err(Errno::STALE) => Err(Errno::NOENT),
            Err(other) => Err(other),
        }
    }

    fn file(&mut self, on: &On) -> Result<NodeId, Errno> {
        match self.target(on)? {
            Attr { kind: Type::File, node, .. } => Ok(node),
            Attr { kind: Type::Dir, .. } => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    fn seen(&self, attr: Attr) -> Result<Seen, Errno> {
        let fs = self.fs();
        let epoch = fs.epochs.load();
        let kind = match attr.kind {
            Type::Dir => Kind::Dir,
            Type::File => Kind::File,
            Type::Symlink => Kind::Symlink,
            other => panic!("{other:?} was never made"),
        };
        let content = match kind {
            Kind::Dir => Vec::new(),
            Kind::Symlink => fs.readlink(attr.node).map_err(errno)?,
            Kind::File => {
                let how = Reading { thread: caller().thread, direct: false };
                let bytes = fs.read(attr.node, 0, 1 << 16, how).map_err(errno)?;
                assert_eq!(bytes.len() as u64, attr.size, "the length of {:?}", attr.node);
                bytes.to_vec()
            }
        };
        let links = if kind == Kind::Dir { 0 } else { attr.links };
        let xattr = match fs.getxattr(&epoch, attr.node, XATTR).map_err(errno) {
            Ok(value) => Some(value),
            Err(Errno::NODATA) => None,
            Err(other) => return Err(other),
        };
        Ok(Seen { kind, mode: attr.mode, links, content, xattr })
    }

    fn list(&mut self, dir: NodeId, plus: bool) -> Result<(Names, BTreeMap<Path, NodeId>), Errno> {
        let (mut names, mut numbers) = (Names::new(), BTreeMap::new());
        let fs = self.fs();
        let handle = fs.begin_listing(&fs.epochs.load(), dir).map_err(errno)?;
        let mut told = Vec::new();
        let mut cookie = 0;
        loop {
            let listing = if plus { Listing::Plus } else { Listing::Names };
            let request = ListRequest { dir, from: Position { handle, cookie }, most: 2, listing };
            let listed = match fs.list(&fs.epochs.load(), request).map_err(errno) {
                Ok(listed) => listed,
                Err(Errno::STALE) => return Err(Errno::NOENT),
                Err(other) => return Err(other),
            };
            let Some(last) = listed.last() else { break };
            cookie = last.cookie;
            for entry in listed.into_iter().filter(|entry| !matches!(&entry.name[..], b"." | b"..")) {
                if plus {
                    entry.lookup.into_iter().for_each(LookupRef::sent);
                    told.push(entry.attr.node);
                }
                let kind = match entry.attr.kind {
                    Type::Dir => Kind::Dir,
                    Type::Symlink => Kind::Symlink,
                    _ => Kind::File,
                };
                numbers.insert(entry.name.clone(), entry.attr.node);
                let again = names.insert(entry.name, kind);
                assert!(again.is_none(), "a name is listed twice");
            }
        }
        fs.end_listing(dir, handle);
        self.told.extend(told);
        Ok((names, numbers))
    }

    /// Does it, and lets the kernel forget what it was told of, in this order or the other.
    pub fn perform(&mut self, operation: &Operation, backwards: bool) -> Result<Answer, Errno> {
        let done = self.ask(operation);
        self.forget_told(backwards);
        done
    }

    fn forget_told(&mut self, backwards: bool) {
        let mut told = std::mem::take(&mut self.told);
        if backwards {
            told.reverse();
        }
        told.iter().for_each(|node| self.fs().forget(*node, 1));
        self.reap();
    }

    /// As the worker does, from a thread of its own.
    fn reap(&self) {
        self.fs().media.iter().for_each(Media::reap);
    }

    fn make(&mut self, dir: NodeId, name: &[u8], made: &Made, mode: u16) -> Result<Answer, Errno> {
        // As the kernel does, which asks for nothing that it knows to be there.
        if self.look_up(dir, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let new = match made {
            Made::Dir => New::Dir,
            Made::File => New::File,
            Made::Symlink(target) => New::Symlink(target),
        };
        let entry =
            self.fs().make(caller(), dir, name, new, Permissions { mode: mode.into(), umask: 0 }).map_err(errno)?;
        let node = entry.attr.expect("what was made").node;
        entry.lookup.into_iter().for_each(LookupRef::sent);
        self.told.push(node);
        Ok(Answer::Done)
    }

    fn ask(&mut self, operation: &Operation) -> Result<Answer, Errno> {
        let who = caller();
        match operation {
            Operation::Behind(behind) => match self.change_behind(behind) {
                Ok(()) => Ok(Answer::Done),
                Err(_) => Err(Errno::NOENT),
            },
            Operation::Make(at, made, mode) => {
                let (dir, name) = self.walk(at)?;
                self.make(dir, name, made, *mode)
            }
            Operation::MakeIn(held, name, made) => {
                let dir = self.held[*held];
                match self.attributes(dir) {
                    Ok(Attr { kind: Type::Dir, .. }) => {}
                    Ok(_) => return Err(Errno::NOTDIR),
                    // The kernel may not know it yet, and asks.
                    Err(_) => {}
                }
                let gone = |error| if error == Errno::STALE { Errno::NOENT } else { error };
                self.make(dir, name, made, 0o700).map_err(gone)
            }
            Operation::Write(on, offset, bytes) => {
                let node = self.file(on)?;
                let how = Writing { append: offset.is_none(), ..Writing::default() };
                let (len, _) = self.fs().write(who, node, offset.unwrap_or(0) as u64, bytes, how).map_err(errno)?;
                assert_eq!(len as usize, bytes.len());
                Ok(Answer::Done)
            }
            Operation::Truncate(on, len) => {
                let node = self.file(on)?;
                let changes = Changes { size: Some(*len as u64), ..Changes::default() };
                let (attr, _) = self.fs().setattr(who, node, changes).map_err(errno)?;
                assert_eq!((attr.node, attr.size), (node, *len as u64));
                Ok(Answer::Done)
            }
            Operation::Chmod(on, mode) => {
                let node = self.changeable(on)?;
                let changes = Changes { mode: Some((*mode).into()), ..Changes::default() };
                let (attr, _) = self.fs().setattr(who, node, changes).map_err(errno)?;
                assert_eq!((attr.node, attr.mode), (node, *mode));
                Ok(Answer::Done)
            }
            Operation::SetXattr(on, value) => {
                let node = self.changeable(on)?;
                let value = value.as_ref().map(|value| (&value[..], 0));
                self.fs().setxattr(who, node, XATTR, value).map_err(errno)?;
                Ok(Answer::Done)
            }
            Operation::Read(on) => {
                let attr = self.target(on)?;
                self.seen(attr).map(Answer::Seen)
            }
            Operation::List(on, plus) => match self.target(on)? {
                Attr { kind: Type::Dir, node, .. } => self.list(node, *plus).map(|(names, _)| Answer::Names(names)),
                _ => Err(Errno::NOTDIR),
            },
            Operation::Unlink(at) => {
                let (dir, name) = self.walk(at)?;
                self.look_up(dir, name)?;
                self.fs().unlink(who, dir, name).map_err(errno)?;
                Ok(Answer::Done)
            }
            Operation::Rmdir(at) => {
                let (dir, name) = self.walk(at)?;
                self.look_up(dir, name)?;
                self.fs().rmdir(who, dir, name).map_err(errno)?;
                Ok(Answer::Done)
            }
            Operation::Link(from, to) => {
                let node = self.find(from)?.node;
                let (dir, name) = self.walk(to)?;
                self.look_up(dir, name)?;
                let entry = self.fs().link(who, node, dir, name).map_err(errno)?;
                let attr = entry.attr.expect("what was linked");
                entry.lookup.into_iter().for_each(LookupRef::sent);
                self.told.push(attr.node);
                assert_eq!(attr.node, node, "both names are one file's");
                Ok(Answer::Done)
            }
            Operation::Rename(from, to, onto) => self.rename(from, to, *onto),
            Operation::Hold(at) => {
                let node = self.find(at)?.node;
                let taken = self.told.pop();
                assert_eq!(taken, Some(node));
                self.held.push(node);
                Ok(Answer::Done)
            }
            Operation::Forget(number) => {
                let node = self.held.remove(*number);
                self.fs().forget(node, 1);
                self.reap();
                Ok(Answer::Done)
            }
            Operation::Switch(to) => {
                if *to != self.active {
                    self.active = *to;
                    self.switches += 1;
                    let epochs = &self.fs().epochs;
                    epochs.publish(epochs.load().after(
                        self.switches,
                        self.releases[*to].clone(),
                        &ChangeSet::default(),
                    ));
                }
                Ok(Answer::Done)
            }
            Operation::Reopen => {
                self.held.clear();
                self.open();
                assert_eq!(self.leftovers(), 0, "what an ended life left is swept");
                Ok(Answer::Done)
            }
        }
    }

    fn rename(&mut self, from: &At, to: &At, onto: Onto) -> Result<Answer, Errno> {
        let (from_dir, from_name) = self.walk(from)?;
        let source = self.look_up(from_dir, from_name)?.ok_or(Errno::NOENT)?;
        let (to_dir, to_name) = self.walk(to)?;
        let target = self.look_up(to_dir, to_name)?;
        if from.own == to.own {
            let below = |path: &[u8], other: &[u8]| path.strip_prefix(other).is_some_and(|rest| rest.starts_with(b"/"));
            if from == to || below(&from.path, &to.path) || below(&to.path, &from.path) {
                return Err(Errno::INVAL);
            }
            if onto == Onto::Exchange && target.is_some_and(|target| target.node == source.node) {
                return Ok(Answer::Done);
            }
        }
        self.fs().rename(caller(), (from_dir, from_name), (to_dir, to_name), onto).map_err(errno)?;
        Ok(Answer::Done)
    }

    /// Where a name lies on the disk.
    fn on_disk(&self, at: &At) -> PathBuf {
        self.top_of(if at.own { 1 + self.active } else { 0 }).join(OsStr::from_bytes(&at.path))
    }

    fn top_of(&self, layer: usize) -> PathBuf {
        match layer {
            0 => self.home.path().join("media/m"),
            own => self.home.path().join(format!("own/{own}/media/p")),
        }
    }

    fn change_behind(&self, behind: &Behind) -> std::io::Result<()> {
        match behind {
            Behind::Make(at, Made::Dir) => fs::DirBuilder::new().mode(0o755).create(self.on_disk(at)),
            Behind::Make(at, Made::File) => {
                let how = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(self.on_disk(at));
                how.map(drop)
            }
            Behind::Make(at, Made::Symlink(target)) => symlink(OsStr::from_bytes(target), self.on_disk(at)),
            Behind::Remove(at) => {
                let path = self.on_disk(at);
                match path.symlink_metadata()?.is_dir() {
                    true => fs::remove_dir(path),
                    false => fs::remove_file(path),
                }
            }
            Behind::Replace(at) => {
                let path = self.on_disk(at);
                let was = path.symlink_metadata()?;
                if was.is_dir() {
                    return Err(std::io::ErrorKind::IsADirectory.into());
                }
                fs::remove_file(&path)?;
                if was.is_symlink() {
                    return symlink(OsStr::from_bytes(&vec![b's'; was.len() as usize]), path);
                }
                let how = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
                let mut file = how?;
                file.write_all(&vec![b'n'; was.len() as usize])?;
                file.set_modified(was.modified()?)
            }
            Behind::Link(from, to) => fs::hard_link(self.on_disk(from), self.on_disk(to)),
            Behind::Rename(from, to) => fs::rename(self.on_disk(from), self.on_disk(to)),
            Behind::Append(at, bytes) => {
                let path = self.on_disk(at);
                if !path.symlink_metadata()?.is_file() {
                    return Err(std::io::ErrorKind::InvalidInput.into());
                }
                fs::OpenOptions::new().append(true).open(path)?.write_all(bytes)
            }
        }
    }

    fn changeable(&mut self, on: &On) -> Result<NodeId, Errno> {
        match self.target(on)? {
            Attr { kind: Type::Dir | Type::File, node, .. } => Ok(node),
            _ => Err(Errno::INVAL),
        }
    }

    /// The visible tree of a scope: how each entry looks, and its node.
    pub fn tree(&mut self, own: bool, plus: bool) -> BTreeMap<Path, (Seen, NodeId)> {
        let top = self.look_up(NodeId::ROOT, TOPS[usize::from(own)]).expect("the top").expect("a scope").node;
        let (mut tree, mut dirs) = (BTreeMap::new(), vec![(Vec::new(), top)]);
        while let Some((path, dir)) = dirs.pop() {
            let (names, _) = self.list(dir, plus).expect("a directory");
            let mut nodes = BTreeMap::new();
            for (name, kind) in names {
                let attr = self.look_up(dir, &name).expect("a lookup").expect("what is listed is there");
                nodes.insert(name.clone(), attr.node);
                let at = if path.is_empty() { name } else { [&path[..], &name].join(&b'/') };
                assert_eq!(self.attributes(attr.node), Ok(attr), "{}", at.escape_ascii());
                let seen = self.seen(attr).unwrap_or_else(|error| panic!("{}: {error}", at.escape_ascii()));
                assert_eq!(seen.kind, kind, "the kind of {}", at.escape_ascii());
                if kind == Kind::Dir {
                    dirs.push((at.clone(), attr.node));
                }
                tree.insert(at, (seen, attr.node));
            }
            // All of them are held now, so a listing knows their numbers.
            assert_eq!(self.list(dir, false).expect("a directory").1, nodes, "in {}", path.escape_ascii());
        }
        self.forget_told(plus);
        tree
    }

    /// How many files there are in the work space.
    pub fn leftovers(&self) -> usize {
        let count = |dir: &str| fs::read_dir(self.home.path().join(dir)).expect("a directory").count();
        count("orphans") + count("tmp")
    }

    /// The names that a layer has on disk.
    pub fn upper(&self, layer: usize) -> BTreeSet<Path> {
        let top = self.top_of(layer);
        let (mut found, mut dirs) = (BTreeSet::new(), vec![top.clone()]);
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).expect("a directory").flatten() {
                let path = entry.path();
                found.insert(path.strip_prefix(&top).expect("below").as_os_str().as_bytes().to_vec());
                if entry.file_type().expect("a type").is_dir() {
                    dirs.push(path);
                }
            }
        }
        found
    }
}
