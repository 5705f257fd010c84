//! Random operations, switches and new lives of the writable layer, on real directories and without a mount, against
//! a plain reference in memory.
#![allow(clippy::unwrap_used)]

#[path = "model/real.rs"]
mod real;
#[path = "model/reference.rs"]
mod reference;

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use real::Real;
use reference::{Item, Reference, Tree};
use std::collections::BTreeMap;
use std::sync::Once;
use verfs::tree::Kind;
use verfs::tree::union::Onto;

/// The error numbers of the system calls.
pub type Errno = verfs::error::Errno;
/// A path in a scope.
pub type Path = Vec<u8>;
/// What a directory lists.
pub type Names = BTreeMap<Vec<u8>, Kind>;

/// How many releases there are.
pub const RELEASES: usize = 3;
/// The tops of the scopes: the shared one, and the one that each release has to itself.
pub const TOPS: [&[u8]; 2] = [b"m", b"p"];

/// A path in a scope.
#[derive(Clone, PartialEq, Eq)]
pub struct At {
    /// In the scope that each release has to itself.
    pub own: bool,
    /// Below its top.
    pub path: Path,
}

impl std::fmt::Debug for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", TOPS[usize::from(self.own)].escape_ascii(), self.path.escape_ascii())
    }
}

/// What an operation is done to.
#[derive(Clone, Debug)]
pub enum On {
    /// What is found at a path.
    Path(At),
    /// What is held: an open file, the directory that a process is in.
    Held(usize),
}

/// What is made.
#[derive(Clone, Debug)]
pub enum Made {
    /// A file.
    File,
    /// A directory.
    Dir,
    /// A symlink with this target.
    Symlink(Vec<u8>),
}

/// What others do to the writable layer where it lies: whatever is not possible there fails with ENOENT.
#[derive(Clone, Debug)]
pub enum Behind {
    /// A file, directory or symlink of mode 0644 or 0755.
    Make(At, Made),
    /// A file or symlink, or an empty directory.
    Remove(At),
    /// A file or symlink goes, and at once something of its name, size and mtime is there: maybe with its number too.
    Replace(At),
    /// Another name of a file or symlink.
    Link(At, At),
    /// Over a file, or an empty directory, if something is there.
    Rename(At, At),
    /// Appended to a file.
    Append(At, Vec<u8>),
}

/// What is done.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Behind the mount.
    Behind(Behind),
    /// creat, mkdir, symlink; with a mode.
    Make(At, Made, u16),
    /// The same in a directory that is held.
    MakeIn(usize, Vec<u8>, Made),
    /// At an offset, or at the end.
    Write(On, Option<usize>, Vec<u8>),
    /// To this length.
    Truncate(On, usize),
    /// Of a file or directory.
    Chmod(On, u16),
    /// Set, or removed.
    SetXattr(On, Option<Vec<u8>>),
    /// Attributes and content.
    Read(On),
    /// With attributes, or without.
    List(On, bool),
    /// unlink(2).
    Unlink(At),
    /// rmdir(2).
    Rmdir(At),
    /// link(2).
    Link(At, At),
    /// renameat2(2).
    Rename(At, At, Onto),
    /// From here on the kernel holds it.
    Hold(At),
    /// No more.
    Forget(usize),
    /// To another release.
    Switch(usize),
    /// A new life on the same directories.
    Reopen,
}

/// How a file, symlink or directory looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Names of a file.
    pub links: u32,
    /// Bytes, or target.
    pub content: Vec<u8>,
    /// The value of its one extended attribute.
    pub xattr: Option<Vec<u8>>,
}

/// What a caller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// That it was done.
    Done,
    /// How something looks.
    Seen(Seen),
    /// What is in a directory.
    Names(Names),
}

fn path() -> impl Strategy<Value = Path> {
    proptest::collection::vec(0u8..3, 1..4)
        .prop_map(|names| names.iter().map(|name| vec![b'a' + name]).collect::<Vec<_>>().join(&b'/'))
}

fn at() -> impl Strategy<Value = At> {
    (prop::bool::weighted(0.25), path()).prop_map(|(own, path)| At { own, path })
}

fn two() -> impl Strategy<Value = (At, At)> {
    (at(), at(), prop::bool::weighted(0.9)).prop_map(|(from, to, same)| {
        let own = if same { from.own } else { to.own };
        (from, At { own, ..to })
    })
}

fn on() -> impl Strategy<Value = On> {
    prop_oneof![3 => at().prop_map(On::Path), 2 => (0usize..8).prop_map(On::Held)]
}

fn mode() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0o644), Just(0o755), Just(0o700)]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(Vec::new()), Just(b"one".to_vec()), Just(b"two two".to_vec()), Just(vec![b'x'; 9000])]
}

fn tree() -> impl Strategy<Value = Tree> {
    let kind = prop_oneof![2 => Just(Kind::Dir), 4 => Just(Kind::File), 1 => Just(Kind::Symlink)];
    let item = (path(), kind, mode(), content(), prop::option::weighted(0.2, Just(b"given".to_vec())));
    proptest::collection::vec(item, 0..8).prop_map(|items| {
        let mut tree = Tree::new();
        for (path, kind, mode, content, xattr) in items {
            let ups: Vec<Path> = (0..path.len()).filter(|at| path[*at] == b'/').map(|at| path[..at].to_vec()).collect();
            let free = ups.iter().all(|up| tree.get(up).is_none_or(|item| item.kind == Kind::Dir));
            if !free || tree.contains_key(&path) {
                continue;
            }
            let dir = |path: Path, mode| Item { path, kind: Kind::Dir, mode, content: Vec::new(), xattr: None };
            for up in ups {
                tree.entry(up.clone()).or_insert_with(|| dir(up, 0o755));
            }
            let item = match kind {
                Kind::Dir => dir(path.clone(), mode),
                Kind::File => Item { path: path.clone(), kind, mode, content, xattr },
                Kind::Symlink => {
                    Item { path: path.clone(), kind, mode: 0o777, content: b"a/target".to_vec(), xattr: None }
                }
            };
            tree.insert(path, item);
        }
        tree
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let made = || prop_oneof![3 => Just(Made::File), 2 => Just(Made::Dir), 1 => Just(Made::Symlink(b"to".to_vec()))];
    let onto = prop_oneof![4 => Just(Onto::Replace), 1 => Just(Onto::Nothing), 2 => Just(Onto::Exchange)];
    let bytes = prop_oneof![Just(b"W".to_vec()), Just(b"written".to_vec())];
    let offset = prop_oneof![Just(None), Just(Some(0)), Just(Some(5))];
    let name = (0u8..3).prop_map(|name| vec![b'a' + name]);
    prop_oneof![
        6 => (at(), made(), mode()).prop_map(|(at, made, mode)| Operation::Make(at, made, mode)),
        1 => (0usize..8, name, made()).prop_map(|(held, name, made)| Operation::MakeIn(held, name, made)),
        4 => (on(), offset, bytes).prop_map(|(on, offset, bytes)| Operation::Write(on, offset, bytes)),
        2 => (on(), prop_oneof![Just(0), Just(2), Just(6000)]).prop_map(|(on, len)| Operation::Truncate(on, len)),
        2 => (on(), mode()).prop_map(|(on, mode)| Operation::Chmod(on, mode)),
        2 => (on(), prop::option::of(Just(b"set".to_vec()))).prop_map(|(on, value)| Operation::SetXattr(on, value)),
        4 => on().prop_map(Operation::Read),
        2 => (on(), any::<bool>()).prop_map(|(on, plus)| Operation::List(on, plus)),
        4 => at().prop_map(Operation::Unlink),
        3 => at().prop_map(Operation::Rmdir),
        3 => two().prop_map(|(from, to)| Operation::Link(from, to)),
        7 => (two(), onto).prop_map(|((from, to), onto)| Operation::Rename(from, to, onto)),
        7 => at().prop_map(Operation::Hold),
        2 => (0usize..8).prop_map(Operation::Forget),
        4 => (0..RELEASES).prop_map(Operation::Switch),
        1 => Just(Operation::Reopen),
    ]
}

fn behind() -> impl Strategy<Value = Operation> {
    let made = prop_oneof![3 => Just(Made::File), 2 => Just(Made::Dir), 1 => Just(Made::Symlink(b"to".to_vec()))];
    let step = prop_oneof![
        2 => (at(), made).prop_map(|(at, made)| Behind::Make(at, made)),
        3 => at().prop_map(Behind::Remove),
        4 => at().prop_map(Behind::Replace),
        3 => two().prop_map(|(from, to)| Behind::Link(from, to)),
        5 => two().prop_map(|(from, to)| Behind::Rename(from, to)),
        1 => at().prop_map(|at| Behind::Append(at, b"behind".to_vec())),
    ];
    step.prop_map(Operation::Behind)
}

/// The operation with the number of something that is held; `None` if it needs that and nothing is.
fn with_held(mut operation: Operation, held: usize) -> Option<Operation> {
    use Operation::{Chmod, Forget, List, MakeIn, Read, SetXattr, Truncate, Write};
    let number = match &mut operation {
        Write(On::Held(number), ..) | Truncate(On::Held(number), _) | Chmod(On::Held(number), _) => number,
        SetXattr(On::Held(number), _) | Read(On::Held(number)) | List(On::Held(number), _) => number,
        MakeIn(number, ..) | Forget(number) => number,
        _ => return Some(operation),
    };
    *number = number.checked_rem(held)?;
    Some(operation)
}

/// Both show the same, and what has one number there is one file here.
fn compare_trees(real: &mut Real, reference: &mut Reference, plus: bool) -> Result<(), TestCaseError> {
    for own in [false, true] {
        let (here, there) = (real.tree(own, plus), reference.tree(own));
        let looks = |(path, (seen, _)): (&Path, &(Seen, _))| (path.escape_ascii().to_string(), seen.clone());
        let here_looks: BTreeMap<String, Seen> = here.iter().map(looks).collect();
        let looks = |(path, (seen, _)): (&Path, &(Seen, _))| (path.escape_ascii().to_string(), seen.clone());
        let there_looks: BTreeMap<String, Seen> = there.iter().map(looks).collect();
        prop_assert_eq!(here_looks, there_looks, "the tree of {:?}", TOPS[usize::from(own)]);
        let (mut nodes, mut files) = (BTreeMap::new(), BTreeMap::new());
        for (path, (_, node)) in &here {
            let Some(file) = there[path].1 else { continue };
            prop_assert_eq!(*nodes.entry(node.0).or_insert(file), file, "one number for two files");
            prop_assert_eq!(*files.entry(file).or_insert(node.0), node.0, "two numbers for one file");
        }
        for (node, held) in real.held.iter().zip(&reference.held) {
            let reference::Handle::Leaf(file) = held else { continue };
            let number = files.get(file);
            prop_assert!(number.is_none_or(|number| *number == node.0), "an open file has another number at its name");
        }
    }
    Ok(())
}

fn check(trees: [[Tree; 2]; RELEASES], operations: Vec<Operation>) -> Result<(), TestCaseError> {
    static UMASK: Once = Once::new();
    UMASK.call_once(|| {
        rustix::process::umask(rustix::fs::Mode::empty());
    });
    let mut real = Real::new(&trees);
    let mut reference = Reference::new(trees);
    let mut done = Vec::new();
    for (number, operation) in operations.into_iter().enumerate() {
        let Some(operation) = with_held(operation, real.held.len()) else { continue };
        let backwards = number % 2 == 0;
        let here = real.perform(&operation, backwards);
        let there = reference.perform(&operation);
        done.push(format!("{operation:?} -> {there:?}"));
        prop_assert_eq!(here, there, "{:?}, after {:#?}", operation, done);
        // A symlink is not kept open: one that has no name any more behind the mount may be gone.
        let nameless = matches!(operation, Operation::Behind(_)).then(|| reference.nameless_symlinks());
        for number in nameless.into_iter().flatten() {
            let forget = Operation::Forget(number);
            prop_assert_eq!(real.perform(&forget, false), reference.perform(&forget));
        }
        prop_assert_eq!(real.held.len(), reference.held.len());
        if number % 5 == 4 {
            compare_trees(&mut real, &mut reference, backwards)?;
        }
    }
    compare_trees(&mut real, &mut reference, true)?;
    // Whatever is still open keeps its content; then the kernel lets go, and nothing is left.
    for number in (0..real.held.len()).rev() {
        let read = Operation::Read(On::Held(number));
        prop_assert_eq!(real.perform(&read, false), reference.perform(&read), "{:?}, after {:#?}", read, done);
        let forget = Operation::Forget(number);
        prop_assert_eq!(real.perform(&forget, false), reference.perform(&forget));
    }
    prop_assert_eq!(real.leftovers(), 0, "files stay in the work space after {:#?}", done);
    for layer in 0..=RELEASES {
        prop_assert_eq!(real.upper(layer), reference.upper(layer), "what layer {} has on disk", layer);
    }
    compare_trees(&mut real, &mut reference, false)
}

/// A release's file is open, another name of another file takes its place under a release that lacks it, and goes.
#[test]
fn an_open_file_of_a_release_keeps_its_content_when_its_name_was_taken_meanwhile() {
    let at = |path: &str| At { own: false, path: path.into() };
    let file = Item { path: b"c".into(), kind: Kind::File, mode: 0o644, content: b"one".to_vec(), xattr: None };
    let trees = || [[Tree::from([(b"c".to_vec(), file.clone())]), Tree::new()], Default::default(), Default::default()];
    let taken = [
        Operation::Link(at("a"), at("c")),
        Operation::Rename(at("a"), at("c"), Onto::Replace),
        Operation::Make(at("c"), Made::Symlink(b"to".to_vec()), 0o777),
    ];
    for taken in taken {
        let operations = vec![
            Operation::Hold(at("c")),
            Operation::Switch(1),
            Operation::Make(at("a"), Made::File, 0o644),
            taken,
            Operation::Unlink(at("c")),
            Operation::Switch(0),
            Operation::Write(On::Held(0), None, b"more".to_vec()),
            Operation::Read(On::Held(0)),
            Operation::Read(On::Path(at("c"))),
        ];
        check(trees(), operations).unwrap();
    }
}

fn releases() -> impl Strategy<Value = [[Tree; 2]; RELEASES]> {
    let trees = || [tree(), tree()];
    [trees(), trees(), trees()]
}

/// As many cases as asked for, or ten times as many where the long variant is.
fn config(cases: u32) -> ProptestConfig {
    let long = std::env::var_os("VERFS_LONG").is_some_and(|value| value == "1");
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = asked.unwrap_or(if long { 10 * cases } else { cases });
    let kept = FileFailurePersistence::Direct("tests/model/regressions.txt");
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(kept)),
        max_shrink_iters: 3000,
        ..ProptestConfig::default()
    }
}

#[test]
fn random_operations_switches_and_new_lives_show_what_the_reference_shows() {
    let cases = (releases(), proptest::collection::vec(operation(), 1..60));
    let run = TestRunner::new(config(800)).run(&cases, |(trees, operations)| check(trees, operations));
    run.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn what_others_change_behind_the_mount_shows_as_in_the_reference() {
    let steps = prop_oneof![2 => operation(), 1 => behind()];
    let cases = (releases(), proptest::collection::vec(steps, 1..60));
    let run = TestRunner::new(config(300)).run(&cases, |(trees, operations)| check(trees, operations));
    run.unwrap_or_else(|failure| panic!("{failure}"));
}
