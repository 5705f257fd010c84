//! What a user of a scope may do to hurt others: each way is a turn that is repeated, and leaves a bounded lot behind.
//!
//! A turn says when it has come as far as makes it an attack; whatever is refused on the way is refused.

use crate::support::sys;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RawDir, RenameFlags, XattrFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// Whether to go on, which turns that take long look at, and how often a way worked.
#[derive(Clone, Copy)]
pub struct Clock<'a> {
    /// The attack is over.
    pub over: &'a AtomicBool,
    /// Turns that came as far as makes them an attack.
    pub worked: &'a AtomicU64,
}

impl Clock<'_> {
    /// False when the attack is over.
    pub fn goes_on(self) -> bool {
        !self.over.load(SeqCst)
    }

    fn worked(self) {
        self.worked.fetch_add(1, SeqCst);
    }
}

/// One turn of a way, done in the scope `media`. The number tells turns apart.
pub type Turn = fn(Clock<'_>, u64) -> io::Result<()>;

/// All ways, each with its name. Some are gone by twice, at the same time.
pub const WAYS: &[(&str, Turn)] = &[
    ("a chain of thousands of directories", |clock, _| chain(Path::new("."), 2, clock)),
    ("such a chain where there is a limit", |clock, _| chain(Path::new("../chained"), 2, clock)),
    ("1,600 directories with long names", long_names),
    ("a look at each of 100,000 names", every_name),
    ("a listing of 100,000 names", list),
    ("such a listing by another", list),
    ("20 listings that are kept open", kept_listings),
    ("2,000 links of a file", links),
    ("large files of a release moved", |clock, turn| copy_up(turn, false, clock)),
    ("large files of a release linked", |clock, turn| copy_up(turn, true, clock)),
    ("writes outside of scopes", refused),
    ("attributes", attributes),
    ("names made and removed", names),
    ("files without a name", nameless),
    ("a limit and holes", holes),
    ("symlinks, fifos, exchanges", strange),
    ("slow readers", slow),
];

/// Names in the directory `many`.
pub const MANY: usize = 100_000;

/// One of them.
pub fn many(number: usize) -> String {
    format!("{number:020}")
}

/// Large files of the release in `films`.
pub const FILMS: usize = 60;

/// Between two turns that keep a processor busy for long: the machine is not to stand still for others.
const BREATH: Duration = Duration::from_secs(1);
const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);
const MODE: Mode = Mode::from_raw_mode(0o755);

fn open_dir(dir: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, name, DIR, Mode::empty())
}

fn hold(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, DIR, Mode::empty())
}

/// Makes directories one in the other; the last of them.
fn dig(top: &OwnedFd, first: &str, name: &str, depth: usize) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(top, first, MODE)?;
    let mut at = open_dir(top, first)?;
    for _ in 1..depth {
        rustix::fs::mkdirat(&at, name, MODE)?;
        at = open_dir(&at, name)?;
    }
    Ok(at)
}

/// Chains of 1,200 directories, each renamed into the end of the next; looked through, and removed from the end.
fn chain(top: &Path, pieces: usize, clock: Clock<'_>) -> io::Result<()> {
    const PIECE: usize = 1200;
    let (top, name, next) = (hold(top)?, "chain", "next");
    // What is left of a turn that something ended.
    let _ = fell(&top, name, clock);
    let _ = fell(&top, next, clock);
    let end = dig(&top, name, "d", PIECE)?;
    for _ in 1..pieces {
        // No new name may lie too deep: what is there goes below what comes.
        let bottom = dig(&top, next, "d", PIECE)?;
        rustix::fs::renameat(&top, name, &bottom, "d")?;
        rustix::fs::renameat(&top, next, &top, name)?;
    }
    let made = rustix::fs::mkdirat(&end, "more", MODE);
    assert!(made.is_err(), "a new name whose path is longer than a path may be");
    clock.worked();
    let depth = fell(&top, name, clock)?;
    assert!(depth == pieces * PIECE || !clock.goes_on(), "{depth} directories");
    Ok(())
}

/// Looks through a chain of directories, and removes it from its end; how many there were.
fn fell(top: &OwnedFd, name: &str, clock: Clock<'_>) -> rustix::io::Result<usize> {
    let (mut at, mut depth) = (open_dir(top, name)?, 1);
    while let Ok(next) = open_dir(&at, "d") {
        rustix::fs::statat(&at, "d", AtFlags::SYMLINK_NOFOLLOW)?;
        (at, depth) = (next, depth + 1);
    }
    for _ in 1..depth {
        if !clock.goes_on() {
            return Ok(depth);
        }
        at = open_dir(&at, "..")?;
        rustix::fs::unlinkat(&at, "d", AtFlags::REMOVEDIR)?;
    }
    rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR)?;
    Ok(depth)
}

/// Directories with names of 255 bytes, one in the other: as deep as a look gets, and deeper.
fn long_names(clock: Clock<'_>, turn: u64) -> io::Result<()> {
    const PIECE: usize = 14;
    let name = "n".repeat(255);
    let top = format!("long-{}", turn % 2);
    fs::create_dir(&top)?;
    let top = hold(Path::new(&top))?;
    for piece in 0..1600 / PIECE {
        let bottom = dig(&top, &format!("p{piece}"), &name, PIECE)?;
        if let Some(before) = piece.checked_sub(1) {
            rustix::fs::renameat(&top, format!("p{before}"), &bottom, name.as_str())?;
        }
    }
    let last = format!("p{}", 1600 / PIECE - 1);
    let mut at = open_dir(&top, &last)?;
    while clock.goes_on()
        && let Ok(next) = open_dir(&at, &name)
    {
        let _ = rustix::fs::statat(&next, "none", AtFlags::SYMLINK_NOFOLLOW);
        at = next;
    }
    drop(at);
    clock.worked();
    // From above: what lies deepest is out of reach where it is.
    for piece in (0..1600 / PIECE).rev() {
        let mut dirs = vec![open_dir(&top, &format!("p{piece}"))?];
        for _ in 1..PIECE {
            dirs.push(open_dir(&dirs[dirs.len() - 1], &name)?);
        }
        if let Some(below) = piece.checked_sub(1) {
            rustix::fs::renameat(&dirs[PIECE - 1], name.as_str(), &top, format!("p{below}"))?;
        }
        for dir in dirs[..PIECE - 1].iter().rev() {
            rustix::fs::unlinkat(dir, name.as_str(), AtFlags::REMOVEDIR)?;
        }
        rustix::fs::unlinkat(&top, format!("p{piece}"), AtFlags::REMOVEDIR)?;
    }
    fs::remove_dir(format!("long-{}", turn % 2))
}

/// Each of the many names, by and by.
fn every_name(clock: Clock<'_>, turn: u64) -> io::Result<()> {
    const TURN: usize = 2000;
    for number in 0..TURN {
        Path::new("many").join(many((turn as usize * TURN + number) % MANY)).symlink_metadata()?;
        if !clock.goes_on() {
            break;
        }
    }
    clock.worked();
    Ok(())
}

/// `ls -l` of some of the many names.
fn list(clock: Clock<'_>, _: u64) -> io::Result<()> {
    for entry in fs::read_dir("many")?.take(500) {
        entry?.path().symlink_metadata()?;
        if !clock.goes_on() {
            break;
        }
    }
    clock.worked();
    std::thread::sleep(BREATH);
    Ok(())
}

/// Listings that are kept open; each goes on by some names, one after another: no window serves two of them.
fn kept_listings(clock: Clock<'_>, _: u64) -> io::Result<()> {
    let mut listings = Vec::new();
    for _ in 0..20 {
        listings.push(hold(Path::new("many"))?);
    }
    for listing in listings.iter().chain(&listings).take_while(|_| clock.goes_on()) {
        let mut some = [MaybeUninit::uninit(); 4096];
        RawDir::new(listing, &mut some).next().transpose()?;
    }
    clock.worked();
    std::thread::sleep(BREATH);
    Ok(())
}

fn links(clock: Clock<'_>, turn: u64) -> io::Result<()> {
    const LINKS: usize = 2000;
    let dir = format!("links-{}", turn % 2);
    let dir = Path::new(&dir);
    let _ = fs::remove_dir_all(dir);
    fs::create_dir(dir)?;
    fs::write(dir.join("0"), "linked")?;
    for number in 1..LINKS {
        fs::hard_link(dir.join("0"), dir.join(number.to_string()))?;
    }
    for entry in fs::read_dir(dir)? {
        assert_eq!(entry?.path().symlink_metadata()?.nlink(), LINKS as u64);
        if !clock.goes_on() {
            break;
        }
    }
    clock.worked();
    for number in 0..LINKS {
        fs::remove_file(dir.join(number.to_string()))?;
        if !clock.goes_on() {
            return Ok(());
        }
    }
    fs::remove_dir(dir)
}

/// A large file of a release gets a copy, and another name; then both go. Somebody gives the release's up again.
fn copy_up(turn: u64, link: bool, clock: Clock<'_>) -> io::Result<()> {
    // Each of the two has its own half.
    let number = turn as usize % (FILMS / 2) + if link { FILMS / 2 } else { 0 };
    let (film, other) = (format!("films/{number}"), format!("films/other-{number}"));
    let done = if link { fs::hard_link(&film, &other) } else { fs::rename(&film, &other) };
    let _ = fs::remove_file(&film);
    let _ = fs::remove_file(&other);
    match done {
        Ok(()) => clock.worked(),
        Err(_) => std::thread::sleep(Duration::from_millis(20)),
    }
    done
}

/// Names all over the release, none of which may be made.
fn refused(clock: Clock<'_>, turn: u64) -> io::Result<()> {
    for number in 0..500 {
        let name = format!("../code/{number:0100}{turn:0155}");
        let errors = [
            fs::write(&name, "mine"),
            fs::create_dir(&name),
            symlink("target", &name),
            fs::rename("here", &name),
            fs::hard_link("here", &name),
            fs::remove_file("../index.html"),
            fs::write("../index.html", "mine"),
        ];
        for error in errors.map(|done| done.expect_err("it was not in a scope")) {
            let known = [libc::EROFS, libc::EACCES, libc::EXDEV, libc::ENOENT];
            assert!(error.raw_os_error().is_some_and(|number| known.contains(&number)), "{error}");
        }
    }
    clock.worked();
    Ok(())
}

fn attributes(clock: Clock<'_>, turn: u64) -> io::Result<()> {
    const ATTRIBUTES: usize = 40;
    let name = |number: usize| format!("user.{number}-{}", "a".repeat(30));
    let path = Path::new("attributes");
    match turn % 2 {
        0 => fs::write(path, "attributes")?,
        _ => fs::create_dir(path)?,
    }
    for number in 0..ATTRIBUTES {
        rustix::fs::lsetxattr(path, name(number), &[b'v'; 40], XattrFlags::empty())?;
    }
    // More than there is room for.
    let _ = rustix::fs::lsetxattr(path, "user.large", &[b'v'; 60_000], XattrFlags::empty());
    for number in 0..ATTRIBUTES {
        let mut value = [0; 64];
        assert_eq!(rustix::fs::lgetxattr(path, name(number), &mut value[..])?, 40);
        let mut list = vec![0; 8192];
        assert!(rustix::fs::llistxattr(path, &mut list[..])? > 0);
        rustix::fs::lremovexattr(path, name(number))?;
        let _ = rustix::fs::lgetxattr("../index.html", name(number), &mut value[..]);
    }
    clock.worked();
    match turn % 2 {
        0 => fs::remove_file(path),
        _ => fs::remove_dir(path),
    }
}

/// The same names made and removed; no number is ever taken for another's.
fn names(clock: Clock<'_>, turn: u64) -> io::Result<()> {
    let dir = Path::new("names");
    let _ = fs::create_dir(dir);
    for number in 0..50 {
        let (path, text) = (dir.join(number.to_string()), format!("{turn}-{number}"));
        let _ = fs::remove_file(&path);
        fs::write(&path, &text)?;
        assert_eq!(fs::read_to_string(&path)?, text);
        let name = number.to_string();
        let _ = rustix::fs::renameat_with(CWD, &path, CWD, dir.join(name + "x"), RenameFlags::NOREPLACE);
    }
    for number in 0..50 {
        let _ = fs::remove_file(dir.join(format!("{number}x")));
    }
    clock.worked();
    Ok(())
}

/// Many files that are open and have no name, each with some of its content.
fn nameless(clock: Clock<'_>, turn: u64) -> io::Result<()> {
    let mut open = Vec::new();
    for number in 0..100 {
        let name = format!("nameless-{number}");
        let _ = fs::remove_file(&name);
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&name)?;
        file.write_all(format!("{turn}-{number}").repeat(100).as_bytes())?;
        fs::remove_file(&name)?;
        open.push(file);
        if let Ok(file) = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(".") {
            open.push(file);
        }
    }
    for (number, file) in open.iter().enumerate().rev() {
        let mut some = [0; 8];
        if file.metadata()?.len() > 0 {
            file.read_exact_at(&mut some, 0)?;
            assert!(some.starts_with(format!("{turn}-").as_bytes()), "file {number}");
        }
    }
    clock.worked();
    Ok(())
}

/// The limit is met by every way of taking room.
fn holes(clock: Clock<'_>, _: u64) -> io::Result<()> {
    let top = Path::new("../limited");
    let open = |name: &str| OpenOptions::new().read(true).write(true).create(true).truncate(true).open(top.join(name));
    let sparse = open("sparse")?;
    sparse.set_len(1 << 30)?;
    for at in 0..64 {
        let _ = sparse.write_all_at(&[1; 4096], at << 24);
    }
    let _ = rustix::fs::fallocate(&sparse, FallocateFlags::KEEP_SIZE, 0, 1 << 30);
    let mapped = open("mapped")?;
    mapped.set_len(256 << 10)?;
    let _ = sys::store_through_a_mapping(&mapped, 7);
    let written = open("written")?;
    for at in 0..40 {
        if written.write_all_at(&[2; 1 << 20], at << 20).is_err() {
            break;
        }
    }
    let _ = rustix::fs::copy_file_range(&written, Some(&mut 0), &sparse, Some(&mut (1 << 29)), 1 << 20);
    let punched = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&written, punched, 0, 40 << 20)?;
    for name in ["sparse", "mapped", "written"] {
        fs::remove_file(top.join(name))?;
    }
    clock.worked();
    Ok(())
}

fn strange(clock: Clock<'_>, turn: u64) -> io::Result<()> {
    let dir = format!("strange-{}", turn % 2);
    let dir = Path::new(&dir);
    let _ = fs::create_dir(dir);
    for number in 0..50 {
        let at = |what: &str| dir.join(format!("{what}-{number}"));
        let _ = symlink(at("link"), at("link"));
        symlink("../../../../../../etc/passwd", at("out"))?;
        assert!(File::open(at("link")).is_err(), "it leads to itself");
        assert_eq!(fs::read_link(at("out"))?, Path::new("../../../../../../etc/passwd"));
        rustix::fs::mknodat(CWD, at("fifo"), rustix::fs::FileType::Fifo, MODE, 0)?;
        let _ = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(at("fifo"))?;
        fs::create_dir(at("dir"))?;
        rustix::fs::renameat_with(CWD, at("dir"), CWD, at("fifo"), RenameFlags::EXCHANGE)?;
        fs::remove_file(at("link"))?;
        fs::remove_file(at("out"))?;
        fs::remove_file(at("dir"))?;
        fs::remove_dir(at("fifo"))?;
    }
    clock.worked();
    fs::remove_dir(dir)
}

/// A film of the release and one of the user's, by few bytes at a time, with the names beside them.
fn slow(clock: Clock<'_>, _: u64) -> io::Result<()> {
    fs::write("slow", vec![b's'; 1 << 20])?;
    let mut files = Vec::new();
    for _ in 0..20 {
        files.push(File::open("slow")?);
        files.push(File::open("../film")?);
    }
    let listing = hold(Path::new("many"))?;
    for step in 0..20 {
        for file in &mut files {
            let mut few = [0; 3];
            file.read_exact(&mut few)?;
            file.read_exact_at(&mut few, step << 15)?;
        }
        let mut some = [MaybeUninit::uninit(); 512];
        RawDir::new(&listing, &mut some).next().transpose()?;
        if !clock.goes_on() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    clock.worked();
    Ok(())
}
