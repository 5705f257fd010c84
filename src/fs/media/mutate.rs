//! Changes of names: each asks `tree::union` for a plan and carries it out, on disk and in the table of nodes.

use super::copies::{Copies, LargeCopies};
use super::limits::disk_bytes;
use super::lookup::Visible;
use super::namespace::{Claim, NamespaceGuard};
use super::nodes::{Nodes, StepOutcome};
use super::{Caller, Media, Rights, Task};
use crate::error::{Errno, Error, OnDisk, Result};
use crate::fault;
use crate::fs::attr::Entry;
use crate::store::media::home::{Inode, Leaf, Orphan, Upper, has_default_acl, upper_kind};
use crate::sys::AsCaller;
use crate::tree::union::{self, Onto, Plan, Step};
use crate::tree::{EntryName, Kind, LayerPath, NodeId};
use rustix::fs::{FileType, Mode, OFlags};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The longest path in the docroot that a new name may have, in bytes: as in a release (PATH_MAX, 4,096, with its NUL).
/// What lies in a directory that is moved may come to lie deeper.
pub(super) const LONGEST_PATH: usize = 4095;

/// What is to be made at a name.
#[derive(Clone, Copy, Debug)]
pub enum New<'a> {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symlink with this target.
    Symlink(&'a [u8]),
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
}

/// Makes the new entry, in its directory and by its name.
type Make<'a> = &'a dyn Fn(&OwnedFd, &[u8]) -> rustix::io::Result<()>;

/// What a plan needs beside the layers.
#[derive(Default)]
pub(super) struct Materials<'a> {
    make: Option<Make<'a>>,
    /// Copies of the release's files that go up, made beforehand.
    copies: Copies<'a>,
}

impl<'a> Materials<'a> {
    pub(super) fn of_copies(copies: Copies<'a>) -> Self {
        Self { make: None, copies }
    }
}

/// Permission bits as asked for, and the caller's umask.
#[derive(Clone, Copy, Debug)]
pub struct Permissions {
    /// Bits of the mode.
    pub mode: u32,
    /// Those that go, unless the directory hands down an access list (umask(2)).
    pub umask: u32,
}

/// The visible tree, with names claimed: whoever has this may change them.
pub(super) struct Changing<'a> {
    visible: Visible<'a>,
    pub(super) task: Task<'a>,
    _guard: NamespaceGuard<'a>,
}

impl<'a> Deref for Changing<'a> {
    type Target = Visible<'a>;

    fn deref(&self) -> &Visible<'a> {
        &self.visible
    }
}

/// The directory in which a path is a name.
fn names_beside(path: &LayerPath) -> Claim {
    Claim::Names(path.parent())
}

/// A path, and all below it.
fn tree(path: &LayerPath) -> Claim {
    Claim::Tree(path.clone())
}

impl Media {
    /// Makes a new entry in the caller's name.
    pub fn make(&self, task: Task<'_>, dir: NodeId, name: &[u8], new: New<'_>, mode: Permissions) -> Result<Entry> {
        check_name(name)?;
        let (changing, [path]) =
            self.change(task, |nodes| Ok([nodes.below(dir, name)?]), |[path]| vec![names_beside(path)])?;
        changing.may_be_new(&path)?;
        self.may_make(&path, task.caller)?;
        let scope = self.scopes.of(path.in_docroot())?;
        let target = if let New::Symlink(target) = new { target.len() as u64 } else { 0 };
        let _room = self.may_take((scope, Some(&path)), task.caller, target)?;
        let plan = union::create(changing.name(&path)?)?;
        let make = |dir: &OwnedFd, name: &[u8]| {
            let inherits = self.rights == Rights::Acls && has_default_acl(dir)?;
            let mode = Mode::from_raw_mode(mode.mode & 0o7777 & !if inherits { 0 } else { mode.umask });
            let _caller = AsCaller::new(task.caller.uid, task.caller.gid)?;
            match new {
                New::File => {
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(dir, name, flags, mode).map(drop)
                }
                New::Dir => rustix::fs::mkdirat(dir, name, mode),
                New::Symlink(target) => rustix::fs::symlinkat(target, dir, name),
                New::Fifo => rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0),
                New::Socket => rustix::fs::mknodat(dir, name, FileType::Socket, mode, 0),
            }
        };
        changing.carry_out(plan, Materials { make: Some(&make), copies: Copies::default() })?;
        let made = self.home.find(&path)?;
        if let Upper::Leaf(Leaf { id, stat }) = made {
            self.usage.add(scope, disk_bytes(&stat));
            // The number of a file that was removed behind the mount may come back with a new one.
            let mut nodes = self.nodes.lock();
            if let Some((node, _)) = nodes.elsewhere(id, &path) {
                nodes.lose_file(node);
            }
        }
        let mut entry = changing.made(&path)?;
        // The number of its inode may be that of something removed which the kernel still holds.
        if let (Some(attr), Upper::Dir(stat) | Upper::Leaf(Leaf { stat, .. })) = (&entry.attr, made)
            && attr.node != self.home.number_of_inode(Inode::of(&stat), upper_kind(&stat))
        {
            self.home.mark(&path, attr.node);
            // That moved the ctime.
            entry = changing.made(&path)?;
        }
        self.hold_file(&entry);
        Ok(entry)
    }

    /// unlink(2).
    pub fn unlink(&self, task: Task<'_>, dir: NodeId, name: &[u8]) -> Result<()> {
        check_name(name)?;
        let (changing, [path]) =
            self.change(task, |nodes| Ok([nodes.below(dir, name)?]), |[path]| vec![names_beside(path)])?;
        changing.carry_out(union::unlink(changing.name(&path)?)?, Materials::default())
    }

    /// rmdir(2). The top of a scope stays.
    pub fn rmdir(&self, task: Task<'_>, dir: NodeId, name: &[u8]) -> Result<()> {
        check_name(name)?;
        let (changing, [path]) =
            self.change(task, |nodes| Ok([nodes.below(dir, name)?]), |[path]| vec![names_beside(path), tree(path)])?;
        let empty = changing.is_empty(&path)?;
        changing.carry_out(union::rmdir(changing.name(&path)?, empty)?, Materials::default())
    }

    /// Large files of the release that [`Self::rename`] would copy up.
    pub fn copies_to_rename(
        &self,
        task: Task<'_>,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        onto: Onto,
    ) -> LargeCopies {
        let paths = |nodes: &Nodes| Ok([nodes.below(from.0, from.1)?, nodes.below(to.0, to.1)?]);
        self.large_copies(task, &paths, |visible, task, [from, to]| visible.plan_rename(task, from, to, onto))
    }

    /// The same for [`Self::link`].
    pub fn copies_to_link(&self, task: Task<'_>, node: NodeId, dir: NodeId, name: &[u8]) -> LargeCopies {
        if self.may_change(node, Caller { notes: false, ..task.caller }).is_err() {
            return LargeCopies::default();
        }
        let paths = |nodes: &Nodes| {
            let from = nodes.path(node)?.ok_or(Error::answer(Errno::NOENT))?;
            Ok([from, nodes.below(dir, name)?])
        };
        self.large_copies(task, &paths, |visible, task, [from, to]| visible.plan_link(task, from, to))
    }

    /// rename(2).
    pub fn rename(&self, task: Task<'_>, from: (NodeId, &[u8]), to: (NodeId, &[u8]), onto: Onto) -> Result<()> {
        check_name(from.1)?;
        check_name(to.1)?;
        if onto == Onto::Exchange && !self.home.can_exchange() {
            return Err(Error::answer(Errno::INVAL));
        }
        let paths = |nodes: &Nodes| Ok([nodes.below(from.0, from.1)?, nodes.below(to.0, to.1)?]);
        // A copy may take long: it is made before anybody has to wait for this change.
        let copies =
            self.copies(task, &paths, |visible, task, [from, to]| visible.plan_rename(task, from, to, onto))?;
        let (changing, [from, to]) =
            self.change(task, paths, |[from, to]| vec![names_beside(from), names_beside(to), tree(from), tree(to)])?;
        let plan = changing.plan_rename(task, &from, &to, onto)?;
        changing.carry_out(plan, Materials::of_copies(copies))
    }

    /// link(2).
    pub fn link(&self, task: Task<'_>, node: NodeId, dir: NodeId, name: &[u8]) -> Result<Entry> {
        check_name(name)?;
        let paths = |nodes: &Nodes| {
            let from = nodes.path(node)?.ok_or(Error::answer(Errno::NOENT))?;
            Ok([from, nodes.below(dir, name)?])
        };
        // A second name would outlive what is known of the first, and through it the file could be changed.
        self.may_change(node, task.caller)?;
        let copies = self.copies(task, &paths, |visible, task, [from, to]| visible.plan_link(task, from, to))?;
        let (changing, [from, to]) =
            self.change(task, paths, |[from, to]| vec![names_beside(from), names_beside(to)])?;
        let plan = changing.plan_link(task, &from, &to)?;
        let _room = self.may_take((self.scopes.of(to.in_docroot())?, Some(&to)), task.caller, 0)?;
        changing.carry_out(plan, Materials::of_copies(copies))?;
        changing.made(&to)
    }

    /// Claims names for a change, and gives their paths: they may move on until the claim is granted.
    pub(super) fn change<'a, const N: usize>(
        &'a self,
        task: Task<'a>,
        paths: impl Fn(&Nodes) -> Result<[LayerPath; N]>,
        claims: impl Fn(&[LayerPath; N]) -> Vec<Claim>,
    ) -> Result<(Changing<'a>, [LayerPath; N])> {
        loop {
            let at = paths(&self.nodes.lock())?;
            let guard = self.namespace.claim(claims(&at));
            if paths(&self.nodes.lock())? == at {
                let visible = Visible { media: self, epoch: task.epoch };
                return Ok((Changing { visible, task, _guard: guard }, at));
            }
        }
    }

    /// Claims a name whose path is known.
    pub(super) fn change_at<'a>(&'a self, task: Task<'a>, path: &LayerPath) -> Result<Changing<'a>> {
        let (changing, _) = self.change(task, |_| Ok([path.clone()]), |[path]| vec![names_beside(path), tree(path)])?;
        Ok(changing)
    }

    /// Claims the name of a node, if it has one.
    pub(super) fn change_node<'a>(&'a self, task: Task<'a>, node: NodeId) -> Result<(Changing<'a>, Option<LayerPath>)> {
        loop {
            let path = self.nodes.lock().path(node)?;
            let guard = self.namespace.claim(path.iter().map(names_beside).collect());
            if self.nodes.lock().path(node)? == path {
                let visible = Visible { media: self, epoch: task.epoch };
                return Ok((Changing { visible, task, _guard: guard }, path));
            }
        }
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    match EntryName::new(name) {
        Some(_) => Ok(()),
        None => Err(Error::answer(Errno::NAMETOOLONG)),
    }
}

impl Visible<'_> {
    /// Whether a new name may have this path. What it is to be made in must be there: a directory that only another
    /// release has does not come back because somebody is still in it.
    fn may_be_new(&self, path: &LayerPath) -> Result<()> {
        if path.in_docroot().len() > LONGEST_PATH {
            return Err(Error::answer(Errno::NAMETOOLONG));
        }
        let above = self.look(&path.parent())?.layers.shown();
        if above.is_dir() { Ok(()) } else { Err(Error::answer(Errno::NOENT)) }
    }

    fn plan_rename(&self, task: Task<'_>, from: &LayerPath, to: &LayerPath, onto: Onto) -> Result<Plan> {
        self.may_be_new(to)?;
        self.same_scope(from, to)?;
        self.media.may_make(to, task.caller)?;
        if onto == Onto::Exchange {
            self.may_be_new(from)?;
            self.media.may_make(from, task.caller)?;
        }
        let (source, target) = (self.look(from)?, self.look(to)?);
        let same_file = match (&source.stat, &target.stat) {
            (Some(a), Some(b)) => Inode::of(a) == Inode::of(b),
            _ => false,
        };
        // Two names of one file: rename(2) does nothing.
        if same_file && onto == Onto::Replace {
            return Ok(Plan::new());
        }
        let empty = self.is_empty(to)?;
        union::rename(source.name(from), target.name(to), onto, empty)
    }

    fn plan_link(&self, task: Task<'_>, from: &LayerPath, to: &LayerPath) -> Result<Plan> {
        self.may_be_new(to)?;
        self.same_scope(from, to)?;
        self.media.may_make(to, task.caller)?;
        self.media.may_make(from, task.caller)?;
        union::link(self.name(from)?, self.name(to)?)
    }

    /// What was made at a path.
    fn made(&self, path: &LayerPath) -> Result<Entry> {
        let entry = self.entry(path)?;
        if entry.attr.is_some() { Ok(entry) } else { Err(Error::answer(Errno::NOENT)) }
    }

    /// Scopes are to each other as file systems are: each has its own rules, and may be another release's.
    fn same_scope(&self, from: &LayerPath, to: &LayerPath) -> Result<()> {
        let scopes = &self.media.scopes;
        match scopes.of(from.in_docroot())? == scopes.of(to.in_docroot())? && from.layer() == to.layer() {
            true => Ok(()),
            false => Err(Error::answer(Errno::XDEV)),
        }
    }

    /// Whether a directory shows no entry; anything else counts as empty.
    fn is_empty(&self, path: &LayerPath) -> Result<bool> {
        match self.look(path)?.layers.shown().is_dir() {
            true => Ok(!self.has_names(path)?),
            false => Ok(true),
        }
    }
}

impl Changing<'_> {
    /// Carries a plan out.
    pub(super) fn carry_out(&self, plan: Plan, mut materials: Materials<'_>) -> Result<()> {
        for step in &plan {
            fault::point("media.step");
            match step {
                Step::MakeDirs(path) => self.make_dirs(path)?,
                Step::CopyUp(path) => self.copy_up(path, &mut materials.copies)?,
                Step::Place(path) => {
                    let make = materials.make.ok_or(Error::answer(Errno::INVAL))?;
                    self.take_step(step, || {
                        let (dir, name) = self.media.home.parent_of(path)?;
                        make(&dir, &name).on_disk("making", || self.media.home.show(path))?;
                        Ok(None)
                    })?;
                }
                Step::Whiteout(path) => {
                    self.make_whiteouts_dirs(&path.parent())?;
                    self.take_step(step, || self.media.home.apply(step))?;
                }
                step => {
                    self.keep_mtimes(step)?;
                    self.take_step(step, || self.media.home.apply(step))?;
                }
            }
        }
        fault::point("media.done");
        Ok(())
    }

    /// One step, announced before and noted afterwards. A leaf that lost its last name stays reachable for those who
    /// have it open; one that nobody knows goes.
    fn take_step(&self, step: &Step, work: impl FnOnce() -> Result<Option<Orphan>>) -> Result<()> {
        let name_goes = match step {
            Step::Whiteout(path) => self.media.home.stat(path)?.is_none(),
            _ => false,
        };
        let replaces = match step {
            Step::Rename(_, path, Onto::Replace) => self.media.home.stat(path)?.is_some(),
            _ => false,
        };
        let leaves = match step {
            Step::Rmdir(path) => Some(path),
            Step::Whiteout(path) if name_goes => Some(path),
            Step::Rename(_, path, Onto::Replace) if replaces => Some(path),
            _ => None,
        };
        let removed = leaves.and_then(|path| self.dir_to_remove(path));
        let times = self.times_of(step);
        let announced = self.media.nodes.lock().begin_step(step);
        // What was announced ends, whatever comes: else nobody could change those names any more.
        let (result, outcome) = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(_)) if name_goes => (Ok(Ok(())), StepOutcome::NameGone),
            Ok(Ok(kept)) => (Ok(Ok(())), StepOutcome::Done(kept)),
            Ok(Err(error)) => (Ok(Err(error)), StepOutcome::Failed),
            Err(panic) => (Err(panic), StepOutcome::Failed),
        };
        drop(times);
        match step {
            _ if result.is_err() => {}
            Step::Place(path) | Step::CopyUp(path) | Step::Whiteout(path) | Step::Link(_, path) => {
                self.count_names(path, 1);
            }
            Step::Unlink(path) | Step::Rmdir(path) | Step::Unhide(path) => self.count_names(path, -1),
            Step::Rename(_, path, _) if replaces => self.count_names(path, -1),
            Step::Rename(..) | Step::MakeDirs(_) => {}
        }
        let mut nodes = self.media.nodes.lock();
        if let Some(held) = removed.as_ref().and_then(|removed| nodes.get_mut(removed.node)) {
            held.removed = removed;
        }
        let gone = nodes.end_step(announced, outcome);
        drop(nodes);
        self.media.noted.notify_all();
        if let (Some(orphan), Step::Unlink(path) | Step::Rename(_, path, _)) = (gone, step) {
            self.media.let_go(self.media.scopes.of(path.in_docroot())?, &orphan);
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Names of the writable layer were made, or removed; those above a scope are nobody's.
    pub(super) fn count_names(&self, path: &LayerPath, names: i64) {
        if let Ok(scope) = self.media.scopes.of(path.in_docroot()) {
            self.media.usage.add_names(scope, names);
        }
    }

    /// Gives what is at a path of the release its place in the upper layer. Its node stays.
    fn copy_up(&self, path: &LayerPath, copies: &mut Copies<'_>) -> Result<()> {
        let lower = self.look(path)?.lower.ok_or(Error::answer(Errno::NOENT))?;
        let step = Step::CopyUp(path.clone());
        let copy = match copies.take(path, lower.node.nodeid) {
            // What shows there is another file than was copied: now this one is.
            None if lower.node.kind == Kind::File => {
                let scope = self.media.scopes.of(path.in_docroot())?;
                Some(self.media.copy(self.task, (scope, Some(path)), &lower.release, lower.index, None)?)
            }
            copy => copy,
        };
        self.take_step(&step, || {
            match copy {
                Some(made) => made.copy.place(path)?,
                None if lower.node.kind == Kind::Symlink => {
                    let mut node = lower.node;
                    let scope = self.media.scopes.of(path.in_docroot())?;
                    node.mtime = self.media.mtime_in(scope, self.epoch, &node).as_nanos();
                    let target = lower.release.manifest.target(lower.index)?;
                    let known_as = self.media.known_as(Some(path), node.nodeid);
                    self.media.home.copy_up_symlink(path, (&node, known_as), target)?;
                }
                None => return Err(Error::answer(Errno::ISDIR)),
            }
            self.note_copy(path)?;
            Ok(None)
        })?;
        let node = self.media.nodes.lock().at(path).filter(|_| lower.node.kind == Kind::File);
        // It may have been open as the release's.
        node.into_iter().for_each(|node| self.media.hold(node));
        Ok(())
    }

    fn note_copy(&self, path: &LayerPath) -> Result<()> {
        let Leaf { id, stat } = self.media.home.leaf(path)?.ok_or(Error::answer(Errno::NOENT))?;
        self.media.usage.add(self.media.scopes.of(path.in_docroot())?, disk_bytes(&stat));
        let mut nodes = self.media.nodes.lock();
        let closed = nodes.at(path).map(|node| {
            nodes.copied_up(node, id, stat.st_dev);
            self.media.close(node)
        });
        drop(nodes);
        drop(closed);
        Ok(())
    }
}
