//! The writable layer on disk: carries out the plans of `tree::union`.
//!
//! `store::media::layout` draws where its directories lie. A whiteout is an empty file that hides the release's entry
//! of its name and all below it; a directory in the tree of whiteouts only leads deeper.
//!
//! Nothing outside these directories is ever opened or changed: every path is resolved below its directory without
//! following a symlink (openat2(2), RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS), and the last name
//! of it by a call that does not follow one.

mod below;
mod copy;
mod identity;
mod number;
mod orphans;
mod parts;
mod reserve;
mod times;
mod upper;
mod usage;
mod whiteouts;
mod xattrs;

pub(super) use below::remove_all;
pub use copy::{COPYING, Copy};
pub use identity::{FileId, Inode, Leaf};
pub use number::Mark;
pub use orphans::Orphan;
pub use times::LowerChanged;
pub use upper::{Upper, UpperName, upper_kind};
pub use whiteouts::Whiteout;
pub(in crate::store) use xattrs::proc_link;
pub use xattrs::{has_default_acl, is_acl, set_xattr, xattr, xattrs};

use crate::error::{Context, Errno, Error, OnDisk, Result, Shown};
use crate::fault;
use crate::store::media::scope::Scope;
use crate::store::release::manifest::Xattrs;
use crate::store::trust::BENEATH;
use crate::tree::union::{Onto, Step, UpperKind};
use crate::tree::{LayerId, LayerPath, Node, NodeId};
use copy::dress;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, StatVfs};
use std::borrow::Cow;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use times::Leaving;

/// The longest path that is given to one call: below PATH_MAX (4,096) with its NUL.
const LONGEST_PATH: usize = 4000;

/// File systems of other machines, by the number that statfs(2) gives: NFS, SMB 1 and 2, Ceph, 9P, and whatever FUSE
/// serves.
const REMOTE: [u32; 6] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x0102_1997, 0x6573_5546];

/// The directories of the writable layer.
#[derive(Debug)]
pub struct Home {
    /// Where it lies, for messages alone: nothing is opened by it.
    path: PathBuf,
    media: OwnedFd,
    whiteouts: OwnedFd,
    own: OwnedFd,
    tmp: OwnedFd,
    orphans: OwnedFd,
    serial: AtomicU64,
    /// Whiteouts of directories that were taken out as a whole: their places in `tmp/`. They may be many, and no change
    /// waits for their removal; what a stopped process leaves goes with the next sweep.
    removed: Mutex<Vec<Vec<u8>>>,
    leaving: Leaving,
    /// Whether the reserve is not as it should be.
    reserve_lacks: AtomicBool,
    device: u64,
    remote: bool,
}

/// One of the two trees of a layer.
#[derive(Clone, Copy)]
enum In {
    Media,
    Whiteouts,
}

impl In {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Media => b"media",
            Self::Whiteouts => b"whiteouts",
        }
    }
}

fn or_here(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

impl Home {
    /// Opens the writable layer in this directory.
    ///
    /// # Errors
    /// One of its directories is missing, a symlink, or somebody else's; or the home can be replaced by somebody else.
    pub fn open(home: &Path, scopes: &[Scope]) -> Result<Self> {
        let dir = parts::open_home(home)?;
        let open = |name| parts::open_part(&dir, home, name);
        let media = parts::open_media(&dir, home, scopes)?;
        let kind = rustix::fs::fstatfs(&media).context(|| format!("looking at {}", home.display()))?.f_type;
        Ok(Self {
            device: rustix::fs::fstat(&media).context(|| format!("looking at {}", home.display()))?.st_dev,
            path: home.to_owned(),
            remote: REMOTE.contains(&(kind as u32)),
            media,
            whiteouts: open("whiteouts")?,
            own: open("own")?,
            tmp: open("tmp")?,
            orphans: open("orphans")?,
            serial: AtomicU64::new(0),
            removed: Mutex::default(),
            leaving: Leaving::default(),
            reserve_lacks: AtomicBool::new(true),
        })
    }

    /// The device that shared scopes lie on.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// Whether the disk is another machine's, and says only at close(2) or fsync(2) that a write failed.
    pub fn tells_late(&self) -> bool {
        self.remote
    }

    /// Whether two names can change places (RENAME_EXCHANGE).
    pub fn can_exchange(&self) -> bool {
        !self.remote
    }

    /// Where a path of the docroot lies in a layer: a directory that is open, and the path below it.
    fn at<'p>(&self, tree: In, layer: &LayerId, path: &'p [u8]) -> (&OwnedFd, Cow<'p, [u8]>) {
        match (layer, tree) {
            (LayerId::Shared, In::Media) => (&self.media, Cow::Borrowed(or_here(path))),
            (LayerId::Shared, In::Whiteouts) => (&self.whiteouts, Cow::Borrowed(or_here(path))),
            (LayerId::Own(release), tree) => {
                (&self.own, Cow::Owned([release.as_str().as_bytes(), tree.name(), or_here(path)].join(&b'/')))
            }
        }
    }

    /// A path as a message names it.
    pub fn show(&self, path: &LayerPath) -> Vec<u8> {
        self.show_in(In::Media, path)
    }

    fn show_in(&self, tree: In, path: &LayerPath) -> Vec<u8> {
        let home = self.path.as_os_str().as_bytes();
        match path.layer() {
            LayerId::Shared => [home, tree.name(), path.in_docroot()].join(&b'/'),
            LayerId::Own(release) => {
                [home, b"own", release.as_str().as_bytes(), tree.name(), path.in_docroot()].join(&b'/')
            }
        }
    }

    /// A name in one of the directories beside the two trees, as a message names it.
    fn show_beside(&self, dir: &str, name: &[u8]) -> Vec<u8> {
        [self.path.as_os_str().as_bytes(), dir.as_bytes(), name].join(&b'/')
    }

    /// Opens what is at a path, never through a symlink.
    fn open_at(&self, tree: In, path: &LayerPath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let (root, below) = self.at(tree, path.layer(), path.in_docroot());
        open_below(root, &below, flags)
    }

    fn dir(&self, tree: In, path: &LayerPath) -> rustix::io::Result<OwnedFd> {
        self.open_at(tree, path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Opens the directory in which a path is a name.
    fn dir_above(&self, tree: In, path: &LayerPath) -> rustix::io::Result<OwnedFd> {
        let (root, below) = self.at(tree, path.layer(), path.parent_in_docroot());
        open_below(root, &below, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Makes a file in the work space, durably, and removes it: whether the disk takes changes.
    pub fn try_change(&self) -> Result<()> {
        let name = self.temporary();
        let shown = || self.show_beside("tmp", &name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(&self.tmp, &name[..], flags, Mode::from_raw_mode(0o600)).on_disk("making", shown)?;
        let written = rustix::io::write(&file, b"x")
            .on_disk("writing", shown)
            .and_then(|_| rustix::fs::fsync(&file).on_disk("syncing", shown));
        rustix::fs::unlinkat(&self.tmp, &name[..], AtFlags::empty()).on_disk("removing", shown)?;
        written
    }

    /// Removes what a stopped daemon left in the work space. Only the process that serves the store may.
    pub fn sweep(&self) -> Result<()> {
        for name in names(&self.tmp).on_disk("listing", || self.show_beside("tmp", b""))? {
            if name.starts_with(b"up-") {
                remove_all(&self.tmp, &name).on_disk("removing", || self.show_beside("tmp", &name))?;
            }
        }
        self.sweep_orphans()
    }

    /// Removes what was taken out as a whole.
    pub fn remove_what_was_taken_out(&self) {
        let removed = std::mem::take(&mut *self.removed.lock());
        for name in removed {
            if let Err(error) = remove_all(&self.tmp, &name) {
                let shown = self.show_beside("tmp", &name);
                log::warn!("removing {}: {error}; the next mount does it", Shown(&shown));
            }
        }
    }

    /// Opens a file of the upper layer; it must still be the one that it was.
    pub fn open_file(&self, path: &LayerPath, id: FileId, flags: OFlags) -> Result<File> {
        let opened = self.open_at(In::Media, path, flags | OFlags::NONBLOCK | OFlags::NOCTTY);
        let operation = if flags.contains(OFlags::RDWR) { "opening for writing" } else { "opening" };
        self.same(path, opened.on_disk(operation, || self.show(path))?, id)
    }

    /// An entry of the upper layer, to change its attributes: never what a symlink points to.
    pub fn open_path(&self, path: &LayerPath, id: FileId) -> Result<OwnedFd> {
        let (dir, name) = self.parent_of(path)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&dir, &name[..], flags, Mode::empty());
        self.same(path, opened.on_disk("opening", || self.show(path))?, id).map(OwnedFd::from)
    }

    /// Whatever the upper layer has at a path, a symlink itself, as a path alone (O_PATH).
    pub fn open_any_path(&self, path: &LayerPath) -> Result<Option<OwnedFd>> {
        absent(self.open_at(In::Media, path, OFlags::PATH)).on_disk("opening", || self.show(path))
    }

    /// A directory of the upper layer, to change its attributes.
    pub fn open_dir_path(&self, path: &LayerPath) -> Result<OwnedFd> {
        self.dir(In::Media, path).on_disk("opening", || self.show(path))
    }

    fn same(&self, path: &LayerPath, file: OwnedFd, id: FileId) -> Result<File> {
        match Leaf::of(&file).on_disk("looking at", || self.show(path))?.id == id {
            true => Ok(File::from(file)),
            // Somebody put another file there behind the mount: what was opened is gone.
            false => Err(Error::answer(Errno::STALE)),
        }
    }

    /// Makes the names in a directory durable, the hidden ones too, and the directories that lead there: a change may
    /// have just made them. Whiteouts come first: what a name shows is then the old or the new state.
    pub fn sync_dir(&self, path: &LayerPath) -> Result<()> {
        for tree in [In::Whiteouts, In::Media] {
            let shown = || self.show_in(tree, path);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let opened = absent(self.open_at(tree, path, flags)).on_disk("opening", shown)?;
            let Some(mut dir) = opened else { continue };
            for _ in 0..self.levels(path) {
                rustix::fs::fsync(&dir).on_disk("syncing", shown)?;
                // Moved meanwhile, it leads elsewhere: whoever moves it syncs that. Removed, it leads nowhere.
                let above = absent(rustix::fs::openat(&dir, "..", flags | OFlags::CLOEXEC, Mode::empty()));
                let Some(above) = above.on_disk("opening", shown)? else { break };
                dir = above;
            }
            rustix::fs::fsync(&dir).on_disk("syncing", shown)?;
        }
        Ok(())
    }

    /// How many directories a path lies below the directory of its layer that is always there.
    fn levels(&self, path: &LayerPath) -> usize {
        let own = if *path.layer() == LayerId::Shared { 0 } else { 2 };
        let names = path.in_docroot().split(|b| *b == b'/').filter(|name| !name.is_empty());
        own + names.count()
    }

    /// Room on the disk.
    pub fn room(&self) -> Result<StatVfs> {
        rustix::fs::fstatvfs(&self.media).on_disk("asking for the room of", || self.path.as_os_str().as_bytes())
    }

    /// The directory of a new entry, for the call that makes it.
    pub fn parent_of(&self, path: &LayerPath) -> Result<(OwnedFd, Vec<u8>)> {
        let dir = self.dir_above(In::Media, path).on_disk("opening", || self.show(&path.parent()))?;
        Ok((dir, path.name().to_vec()))
    }

    /// Carries out a step other than [`Step::Place`], [`Step::MakeDirs`] and [`Step::CopyUp`]. What it takes out of
    /// the tree and may be open is kept, and named.
    pub fn apply(&self, step: &Step) -> Result<Option<Orphan>> {
        match step {
            Step::Whiteout(path) => self.put_whiteout(path).map(|()| None),
            Step::Unhide(path) => self.remove_whiteout(path).map(|()| None),
            Step::Unlink(path) => self.orphan(path).map(Some),
            Step::Rmdir(path) => {
                let (dir, name) = self.parent_of(path)?;
                rustix::fs::unlinkat(&dir, &name[..], AtFlags::REMOVEDIR).on_disk("removing", || self.show(path))?;
                Ok(None)
            }
            Step::Link(from, to) => {
                let ((from_dir, from_name), (to_dir, to_name)) = (self.parent_of(from)?, self.parent_of(to)?);
                rustix::fs::linkat(&from_dir, &from_name[..], &to_dir, &to_name[..], AtFlags::empty())
                    .on_disk("linking", || self.show(to))?;
                Ok(None)
            }
            Step::Rename(from, to, onto) => self.rename(from, to, *onto),
            Step::Place(_) | Step::MakeDirs(_) | Step::CopyUp(_) => {
                Err(Error::failed("a step of the writable layer was asked of the wrong place"))
            }
        }
    }

    fn rename(&self, from: &LayerPath, to: &LayerPath, onto: Onto) -> Result<Option<Orphan>> {
        let ((from_dir, from_name), (to_dir, to_name)) = (self.parent_of(from)?, self.parent_of(to)?);
        let mut kept = None;
        let flags = match onto {
            Onto::Nothing => RenameFlags::empty(),
            Onto::Exchange => RenameFlags::EXCHANGE,
            Onto::Replace => {
                let target = absent(rustix::fs::statat(&to_dir, &to_name[..], AtFlags::SYMLINK_NOFOLLOW))
                    .on_disk("looking at", || self.show(to))?;
                if target.is_some_and(|stat| !FileType::from_raw_mode(stat.st_mode).is_dir()) {
                    // A second name, so that the rename can replace the first at once.
                    kept = Some(self.keep(&to_dir, to)?);
                }
                RenameFlags::empty()
            }
        };
        fault::point("upper.kept");
        let renamed = match onto {
            Onto::Nothing => rename_to_free(&from_dir, &from_name, &to_dir, &to_name),
            _ => rustix::fs::renameat_with(&from_dir, &from_name[..], &to_dir, &to_name[..], flags),
        };
        if let (Err(_), Some(orphan)) = (renamed, &kept) {
            self.drop_orphan(orphan);
        }
        renamed.on_disk("renaming", || self.show(from))?;
        Ok(kept)
    }

    fn temporary(&self) -> Vec<u8> {
        format!("up-{}", self.serial.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Makes one upper directory as the release's that shows there, with its attributes and the number that it is
    /// `known_as`. One that is there already is left as it is.
    pub fn make_dir(&self, path: &LayerPath, like: Option<&(Node, Xattrs)>, known_as: NodeId) -> Result<()> {
        if self.stat(path)?.is_some() {
            return Ok(());
        }
        let temporary = self.temporary();
        rustix::fs::mkdirat(&self.tmp, &temporary[..], Mode::from_raw_mode(0o755))
            .on_disk("making", || self.show(path))?;
        let dressed = like.map_or(Ok(()), |(node, xattrs)| {
            let dir = rustix::fs::openat(&self.tmp, &temporary[..], OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            xattrs.iter().try_for_each(|(name, value)| set_xattr(&dir, name, Some((value, 0))))?;
            dress(&self.tmp, &temporary, node)
        });
        match (&dressed, like) {
            (Err(_), _) => drop(remove_all(&self.tmp, &temporary)),
            (Ok(()), Some(_)) => number::mark(&self.tmp, &temporary, known_as),
            (Ok(()), None) => {}
        }
        dressed.on_disk(copy::DRESSING, || self.show(path))?;
        let is_dir = |stat: Stat| upper_kind(&stat) == UpperKind::Dir;
        match self.take_place(&temporary, path) {
            // A change in another directory needed it too, and came first.
            Err(error) if error.errno() == Errno::EXIST && self.stat(path)?.is_some_and(is_dir) => Ok(()),
            placed => placed,
        }
    }

    /// What holds no more than the release has gets its name: the directory that it comes into keeps its mtime.
    fn take_place(&self, temporary: &[u8], path: &LayerPath) -> Result<()> {
        fault::point("upper.copied");
        let placed = self.parent_of(path).and_then(|(dir, name)| {
            let placed = self.leaving.mtime(&dir, || rename_to_free(&self.tmp, temporary, &dir, &name));
            placed.on_disk("making", || self.show(path))
        });
        if placed.is_err() {
            let _ = remove_all(&self.tmp, temporary);
        }
        placed
    }
}

/// Opens what is at a path below a directory, never through a symlink.
fn open_below(root: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |dir: BorrowedFd<'_>, path: &[u8], flags| rustix::fs::openat2(dir, path, flags, Mode::empty(), BENEATH);
    let (mut dir, mut rest) = (None::<OwnedFd>, path);
    // A path too long for one call is taken in steps.
    while rest.len() > LONGEST_PATH {
        let end = rest[..LONGEST_PATH].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let from = dir.as_ref().unwrap_or(root).as_fd();
        let next = open(from, &rest[..end], OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
        (dir, rest) = (Some(next), &rest[end + 1..]);
    }
    open(dir.as_ref().unwrap_or(root).as_fd(), rest, flags)
}

/// `None` for what is not there, or is behind something that is no directory of ours.
fn absent<T>(found: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// RENAME_NOREPLACE, also where the file system does not know it (NFS): there somebody behind the mount could put
/// something in between.
fn rename_to_free(from: &OwnedFd, name: &[u8], to: &OwnedFd, new: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL) => {}
        renamed => return renamed,
    }
    match rustix::fs::statat(to, new, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => rustix::fs::renameat(from, name, to, new),
        Ok(_) => Err(Errno::EXIST),
        Err(error) => Err(error),
    }
}

fn names(dir: impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            found.push(name.to_vec());
        }
    }
    Ok(found)
}
