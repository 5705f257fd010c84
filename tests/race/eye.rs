//! A reader's eye: looks at one thing through the mount and judges it by the history.
//!
//! An operation may show any view from `finished` before it to `started` after it. What a reader
//! has seen sets its floor: the first view that explains all it saw so far, in order. Only views
//! from the floor on may explain what it sees next.

use crate::chance::Chance;
use crate::probe::{self, Manner, Seen};
use crate::tally::{Tally, Wrong};
use crate::truth::Truth;
use crate::world::{Listed, PathId, ROOT};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// How far back an explanation is looked for to call an answer stale and not torn.
const LOOK_BACK: usize = 400;

/// The first and the last view that an operation may show.
pub type Span = (usize, usize);

/// Where a relative path begins.
#[derive(Clone, Copy)]
pub enum Base<'a> {
    /// The root of the mount.
    Root,
    /// A directory held open.
    Held(&'a OwnedFd, PathId),
    /// The working directory, which is this one.
    Working(PathId),
}

impl Base<'_> {
    /// The directory's path.
    pub fn dir(&self) -> PathId {
        match self {
            Base::Root => ROOT,
            Base::Held(_, dir) | Base::Working(dir) => *dir,
        }
    }
}

/// See the head of this file.
pub struct Eye<'a> {
    /// What it judges by.
    pub truth: Truth<'a>,
    /// What it looks at next.
    pub chance: Chance,
    tally: &'a Tally,
    who: String,
    root: OwnedFd,
    floor: usize,
    audits: bool,
}

impl<'a> Eye<'a> {
    /// An eye on the mount whose root is open as `root`.
    pub fn new(truth: Truth<'a>, tally: &'a Tally, root: OwnedFd, who: &str, seed: u64) -> Eye<'a> {
        Eye { truth, chance: Chance::new(seed), tally, who: who.to_owned(), root, floor: 0, audits: false }
    }

    /// The same eye; its findings all count as findings of an audit.
    pub fn auditing(mut self) -> Eye<'a> {
        self.audits = true;
        self
    }

    /// Runs an operation; what it saw and which views it may show.
    fn look<T>(&self, base: Base<'_>, call: impl FnOnce(BorrowedFd<'_>) -> T) -> (T, Span) {
        let from = self.truth.history.finished();
        let begun = Instant::now();
        let got = match base {
            Base::Root => call(self.root.as_fd()),
            Base::Held(dir, _) => call(dir.as_fd()),
            Base::Working(_) => call(rustix::fs::CWD),
        };
        self.tally.operation(begun.elapsed());
        (got, (from, self.truth.history.started()))
    }

    fn report(&self, wrong: Wrong, note: impl FnOnce() -> String) {
        let wrong = if self.audits { Wrong::Audit } else { wrong };
        self.tally.wrong(wrong, || format!("{}: {}", self.who, note()));
    }

    /// Reports a finding that is no matter of views.
    pub fn complain(&self, note: impl FnOnce() -> String) {
        self.report(Wrong::Torn, note);
    }

    /// Judges one observation: `explains` tells whether a view would look like this,
    /// `otherwise` is what it is if no view ever did.
    pub fn judge(
        &mut self,
        (from, to): Span,
        otherwise: Wrong,
        explains: impl Fn(usize) -> bool,
        note: impl Fn() -> String,
    ) -> bool {
        let history = self.truth.history;
        let explains = |view: usize| history.view(view).served() && explains(view);
        let floor = self.floor.max(from);
        if let Some(view) = (floor..=to).find(|view| explains(*view)) {
            self.floor = view;
            return true;
        }
        let older = from.saturating_sub(LOOK_BACK)..from;
        let wrong = if (from..floor).any(&explains) {
            Wrong::Back
        } else if older.into_iter().any(&explains) {
            Wrong::Stale
        } else {
            otherwise
        };
        self.report(wrong, || {
            let release = |view| self.truth.history.view(view).release;
            let releases: Vec<usize> = (from.min(floor)..=to).map(release).collect();
            let floor = self.floor;
            format!("{}; views {from}..={to}, floor {floor}, releases {releases:?}", note())
        });
        false
    }

    fn name(&self, base: Base<'_>, id: PathId) -> String {
        let world = self.truth.world;
        let path = String::from_utf8_lossy(world.path(id));
        let dir = String::from_utf8_lossy(world.path(base.dir()));
        match base {
            Base::Root => format!("/{path}"),
            Base::Held(..) => format!("/{path} from /{dir} held open"),
            Base::Working(_) => format!("/{path} from /{dir} as working directory"),
        }
    }

    /// What the last view of a span has at a path, for a finding.
    fn expected(&self, span: Span, id: PathId) -> String {
        let view = self.truth.history.view(span.1);
        let kind = self.truth.world.at(view.release, id);
        format!("last view has {kind:?} of switch {}", view.stamps[id])
    }

    /// lstat of a path.
    pub fn stat(&mut self, base: Base<'_>, id: PathId) -> bool {
        let path = self.truth.world.below(base.dir(), id).to_vec();
        let (got, span) = self.look(base, |dir| probe::stat(dir, &path));
        self.judge_stat(base, id, span, &got, "stat")
    }

    /// lstat of a path's other name, through a symlink that never changes.
    pub fn stat_alias(&mut self, id: PathId, alias: &[u8]) -> bool {
        let (got, span) = self.look(Base::Root, |dir| probe::stat(dir, alias));
        self.judge_stat(Base::Root, id, span, &got, "stat through a symlink")
    }

    fn judge_stat(&mut self, base: Base<'_>, id: PathId, span: Span, got: &Result<Seen, Errno>, what: &str) -> bool {
        let truth = self.truth;
        let note = format!("{what} {}: {got:?}, {}", self.name(base, id), self.expected(span, id));
        self.judge(span, otherwise(got), |view| truth.stat(view, base.dir(), id, got), || note.clone())
    }

    /// fstat of a directory held open.
    pub fn stat_held(&mut self, held: &OwnedFd, dir: PathId) -> bool {
        let truth = self.truth;
        let (got, span) = self.look(Base::Root, |_| probe::fstat(held));
        let note = format!("fstat {}: {got:?}", self.name(Base::Root, dir));
        self.judge(
            span,
            otherwise(&got),
            |view| truth.held(view, dir, &got),
            || format!("{note}, {:?}", truth.history.view(span.1).stamps[dir]),
        )
    }

    /// A name that no release has.
    pub fn stat_never(&mut self, base: Base<'_>, dir: PathId, name: &str) -> bool {
        let truth = self.truth;
        let mut path = truth.world.below(base.dir(), dir).to_vec();
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
        if dir == ROOT {
            path = name.as_bytes().to_vec();
        }
        let (got, span) = self.look(base, |from| probe::stat(from, &path));
        let note = format!("{name} in {}: {got:?}", self.name(base, dir));
        self.judge(
            span,
            otherwise(&got),
            |view| match (truth.opendir(view, base.dir(), dir, Ok(())), &got) {
                (true, Err(error)) => *error == Errno::NOENT,
                (false, Err(error)) => *error == Errno::NOENT || *error == Errno::NOTDIR,
                (_, Ok(_)) => false,
            },
            || note.clone(),
        )
    }

    /// The target of a symlink.
    pub fn readlink(&mut self, base: Base<'_>, id: PathId) -> bool {
        let truth = self.truth;
        let path = truth.world.below(base.dir(), id).to_vec();
        let (read, span) = self.look(base, |dir| probe::readlink(dir, &path));
        let got = read.map(|target| truth.world.target_number(&target));
        let note = format!("readlink {}: {got:?}, {}", self.name(base, id), self.expected(span, id));
        self.judge(span, otherwise(&got), |view| truth.readlink(view, base.dir(), id, &got), || note.clone())
    }

    /// Opens a path, and if it is a file reads it to its end; between open and close the content is one, and the
    /// mtime beside it is one that belonged to it.
    pub fn read(&mut self, base: Base<'_>, id: PathId) -> bool {
        let truth = self.truth;
        let path = truth.world.below(base.dir(), id).to_vec();
        let (opened, span) = self.look(base, |dir| probe::open(dir, &path));
        let step = *self.chance.pick(&[200_000, 16_384, 4_096, 1_000]);
        let read = opened.and_then(|file| {
            let before = probe::fstat(&file)?;
            if before.kind == FileType::Directory {
                return Ok(None);
            }
            let content = probe::read(&file, step)?;
            Ok(Some((before, content, probe::fstat(&file)?)))
        });
        let after = truth.history.started();
        let name = self.name(base, id);
        let got = match read {
            Err(error) => Err(error),
            Ok(None) => Ok(None),
            Ok(Some((before, content, again))) => {
                let Some(number) = truth.world.number_of(&content) else {
                    let head = String::from_utf8_lossy(&content[..content.len().min(40)]);
                    self.report(Wrong::Torn, || {
                        format!("read {name}: {} bytes that no release has: {head:?}", content.len())
                    });
                    return false;
                };
                for seen in [before, again] {
                    let mut while_open = span.0..=after;
                    let fair = base.dir() == ROOT || while_open.all(|view| truth.lives(view, base.dir()));
                    let mut while_open = span.0..=after;
                    if fair && !while_open.any(|view| truth.pair(view, id, number, &seen)) {
                        self.report(Wrong::Torn, || format!("fstat {name}: content {number} never had {seen:?}"));
                        return false;
                    }
                }
                Ok(Some(number))
            }
        };
        let note = format!("read {name}: {got:?}, {}", self.expected(span, id));
        self.judge(span, otherwise(&got), |view| truth.open(view, base.dir(), id, &got), || note.clone())
    }

    /// A whole listing, in whatever manner; it must be that of one view from when it was opened,
    /// and the same when it is read again.
    pub fn list(&mut self, base: Base<'_>, id: PathId, manner: Manner, again: bool) -> bool {
        let truth = self.truth;
        let path = truth.world.below(base.dir(), id).to_vec();
        let path = if path.is_empty() { b".".to_vec() } else { path };
        let (opened, span) = self.look(base, |dir| probe::open_dir(dir, &path));
        let name = self.name(base, id);
        let result = opened.as_ref().map(drop).map_err(|error| *error);
        if !self.judge(
            span,
            otherwise(&result),
            |view| truth.opendir(view, base.dir(), id, result),
            || format!("opendir {name}: {result:?}"),
        ) {
            return false;
        }
        let Ok(dir) = opened else { return true };
        let names = match self.names(&dir, manner, &name) {
            Some(names) => names,
            None => return false,
        };
        let count = names.len();
        // Opening may have raised the floor; the listing is that of the same moment.
        if !self.judge(
            span,
            Wrong::Mixed,
            |view| truth.listing(view, base.dir(), id, &names),
            || format!("list {name} {manner:?}: {count} names{}", unlike(&truth, span.1, id, &names)),
        ) {
            return false;
        }
        if !again {
            return true;
        }
        if rustix::fs::seek(&dir, rustix::fs::SeekFrom::Start(0)).is_err() {
            self.report(Wrong::Error, || format!("rewind {name}"));
            return false;
        }
        match self.names(&dir, Manner::Whole, &name) {
            Some(second) if second == names => true,
            Some(second) => {
                self.report(Wrong::Mixed, || format!("list {name} again: {} names, were {count}", second.len()));
                false
            }
            None => false,
        }
    }

    /// The sorted names from an open directory; `None`, and a finding, if it fails or doubles one.
    fn names(&mut self, dir: &OwnedFd, manner: Manner, name: &str) -> Option<Vec<Listed>> {
        let begun = Instant::now();
        let got = probe::list(dir, manner, &mut self.chance);
        if matches!(manner, Manner::Whole) {
            self.tally.operation(begun.elapsed());
        }
        let mut names: Vec<Listed> = match got {
            Ok(names) => names.into_iter().map(|(listed, _)| listed).collect(),
            Err(error) => {
                self.report(Wrong::Error, || format!("list {name}: {error:?}"));
                return None;
            }
        };
        names.sort_by(|one, other| one.0.cmp(&other.0));
        if let Some(pair) = names.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let double = String::from_utf8_lossy(&pair[0].0).into_owned();
            self.report(Wrong::Mixed, || format!("list {name}: {double} twice"));
            return None;
        }
        Some(names)
    }
}

/// An answer that no view explains is torn, an error that no view explains is one.
fn otherwise<T>(got: &Result<T, Errno>) -> Wrong {
    match got {
        Err(error) if *error != Errno::NOENT && *error != Errno::NOTDIR => Wrong::Error,
        _ => Wrong::Torn,
    }
}

/// The first names in which a listing differs from that of a view, for a finding.
fn unlike(truth: &Truth<'_>, view: usize, dir: PathId, names: &[Listed]) -> String {
    let release = truth.history.view(view).release;
    let right = truth.world.listing(release, dir);
    let only = |these: &[Listed], those: &[Listed]| {
        let differ = these.iter().filter(|name| !those.contains(name)).take(3);
        let shown = differ.map(|name| String::from_utf8_lossy(&name.0).into_owned());
        shown.collect::<Vec<String>>().join(" ")
    };
    format!(", not in the last view: {}, missing: {}", only(names, &right), only(&right, names))
}
