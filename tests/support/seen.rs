//! What there is to see below a directory, so that two directories can be compared, or two moments of one.

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One entry, without its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Type and permission bits.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names of the file; 0 for a directory, where file systems count differently.
    pub links: u64,
    /// What it is.
    pub what: What,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Dir,
    /// A file and its content.
    File(Vec<u8>),
    /// A symlink and its target.
    Link(PathBuf),
    /// A fifo, a socket or a device.
    Special,
}

impl std::fmt::Debug for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            What::Dir => f.write_str("directory"),
            What::File(bytes) => {
                write!(f, "{} bytes {:?}", bytes.len(), String::from_utf8_lossy(&bytes[..bytes.len().min(60)]))
            }
            What::Link(target) => write!(f, "-> {}", target.display()),
            What::Special => f.write_str("special"),
        }
    }
}

/// Everything below a directory, by its path in it; "" is the directory itself. A name that is listed twice is an error.
pub fn tree(top: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::from([(PathBuf::new(), seen(top))]);
    let mut dirs = vec![top.to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(&at).unwrap_or_else(|error| panic!("{}: {error}", at.display())) {
            let path = entry.unwrap().path();
            let item = seen(&path);
            if item.what == What::Dir {
                dirs.push(path.clone());
            }
            let name = path.strip_prefix(top).unwrap().to_owned();
            assert!(found.insert(name, item).is_none(), "{} is listed twice", path.display());
        }
    }
    found
}

/// One entry.
pub fn seen(path: &Path) -> Seen {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        What::Dir
    } else if kind.is_symlink() {
        What::Link(fs::read_link(path).unwrap())
    } else if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
        What::Special
    } else {
        What::File(fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    };
    let links = if what == What::Dir { 0 } else { meta.nlink() };
    Seen { mode: meta.mode(), uid: meta.uid(), gid: meta.gid(), links, what }
}

/// A directory that belongs to nobody here: nothing in it may be opened or changed.
///
/// It holds `secret`, `inner/`, and the same once more in `dir/`.
pub struct Outside {
    /// Where it is.
    pub dir: PathBuf,
    was: State,
    watch: OwnedFd,
}

type State = BTreeMap<PathBuf, (Seen, [i64; 4])>;

impl Outside {
    /// Makes it and watches it.
    pub fn make(dir: PathBuf) -> Outside {
        for at in [dir.clone(), dir.join("dir")] {
            fs::create_dir_all(at.join("inner")).unwrap();
            fs::write(at.join("secret"), "secret").unwrap();
        }
        Outside::watch(dir)
    }

    /// Watches what is there now.
    pub fn watch(dir: PathBuf) -> Outside {
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        // Not that files are closed: that can be told late, of files that were opened before.
        let whatever = WatchFlags::ALL_EVENTS - WatchFlags::CLOSE;
        for (path, item) in tree(&dir) {
            // A symlink cannot be opened; its directory tells of its changes.
            if !matches!(item.what, What::Link(_)) {
                inotify::add_watch(&watch, dir.join(path), whatever).unwrap();
            }
        }
        let outside = Outside { was: state(&dir), dir, watch };
        outside.events();
        outside
    }

    /// Fails if anything was opened or changed since it was watched.
    pub fn is_untouched(&self, after: &str) {
        let events = self.events();
        assert!(events.is_empty(), "{after}: outside the store there were {events:?}");
        let now = state(&self.dir);
        assert_eq!(now, self.was, "{after}: something outside the store has changed");
        self.events();
    }

    /// Does something that opens files here by right: the test itself follows a symlink.
    pub fn by_right<T>(&self, work: impl FnOnce() -> T) -> T {
        assert!(self.events().is_empty(), "outside the store something was opened");
        let done = work();
        self.events();
        done
    }

    fn events(&self) -> Vec<(String, inotify::ReadFlags)> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.watch, &mut buffer);
        let mut events = Vec::new();
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
            events.push((name.unwrap_or_default(), event.events()));
        }
        events
    }
}

/// With mtime and ctime: whatever is done to an inode moves its ctime.
fn state(dir: &Path) -> State {
    let times = |path: &Path| {
        let meta = fs::symlink_metadata(dir.join(path)).unwrap();
        [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()]
    };
    tree(dir).into_iter().map(|(path, seen)| (path.clone(), (seen, times(&path)))).collect()
}
