//! Random operations and switches on world in memory, against the same operations on one plain map; and after
//! every prefix of every plan each name shows the old or the new state.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Dir,
    Leaf(u32),
}

type Map = BTreeMap<LayerPath, Entry>;

#[derive(Clone, Debug, Default)]
struct World {
    upper: Map,
    whiteouts: BTreeSet<LayerPath>,
    lower: Map,
}

fn above(path: &LayerPath) -> Vec<LayerPath> {
    path.from_the_top().filter(|up| up != path).collect()
}

fn below(path: &LayerPath, other: &LayerPath) -> bool {
    path != other && path.is_within(other)
}

impl World {
    fn layers(&self, path: &LayerPath) -> Layers {
        let hidden = above(path)
            .iter()
            .any(|up| self.whiteouts.contains(up) || matches!(self.upper.get(up), Some(Entry::Leaf(_))));
        Layers {
            upper: self.upper.get(path).map(|item| if *item == Entry::Dir { UpperKind::Dir } else { UpperKind::Leaf }),
            whiteout: self.whiteouts.contains(path),
            lower: self
                .lower
                .get(path)
                .filter(|_| !hidden)
                .map(|item| if *item == Entry::Dir { Kind::Dir } else { Kind::File }),
        }
    }

    fn visible(&self) -> Map {
        let mut shown = Map::new();
        for path in self.upper.keys().chain(self.lower.keys()) {
            let item = match self.layers(path).shown() {
                Shown::Nothing => continue,
                Shown::Upper(_) | Shown::Merged => self.upper[path],
                Shown::Lower(_) => self.lower[path],
            };
            shown.insert(path.clone(), item);
        }
        shown
    }

    fn step(&mut self, step: &Step, new: Entry) {
        match step {
            Step::MakeDirs(path) => {
                for dir in above(path).into_iter().chain([path.clone()]).filter(|dir| !dir.is_root()) {
                    assert_ne!(*self.upper.entry(dir).or_insert(Entry::Dir), Entry::Leaf(0), "content 0 is never used");
                }
            }
            Step::CopyUp(path) => assert!(self.upper.insert(path.clone(), self.lower[path]).is_none()),
            Step::Whiteout(path) => {
                self.whiteouts.retain(|other| !below(other, path));
                self.whiteouts.insert(path.clone());
            }
            Step::Unhide(path) => assert!(self.whiteouts.remove(path)),
            Step::Place(path) => assert!(self.upper.insert(path.clone(), new).is_none(), "nothing is placed over"),
            Step::Rename(from, to, Onto::Exchange) => {
                let (a, b) = (self.take(from, to), self.take(to, from));
                self.upper.extend(a.into_iter().chain(b));
            }
            Step::Rename(from, to, _) => {
                assert!(!self.upper.keys().any(|path| below(path, to)), "what is replaced is empty");
                let moved = self.take(from, to);
                self.upper.remove(to);
                self.upper.extend(moved);
            }
            Step::Link(from, to) => assert!(self.upper.insert(to.clone(), self.upper[from]).is_none()),
            Step::Unlink(path) => assert!(matches!(self.upper.remove(path), Some(Entry::Leaf(_)))),
            Step::Rmdir(path) => {
                assert!(!self.upper.keys().any(|other| below(other, path)));
                assert_eq!(self.upper.remove(path), Some(Entry::Dir));
            }
        }
    }

    /// An entry with what is below it, by where it lies at another path.
    fn take(&mut self, from: &LayerPath, to: &LayerPath) -> Map {
        let (moved, stays): (Map, Map) =
            std::mem::take(&mut self.upper).into_iter().partition(|(path, _)| path.is_within(from));
        self.upper = stays;
        moved.into_iter().filter_map(|(path, item)| Some((path.moved(from, to)?, item))).collect()
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Create(LayerPath),
    Mkdir(LayerPath),
    Write(LayerPath),
    Unlink(LayerPath),
    Rmdir(LayerPath),
    Link(LayerPath, LayerPath),
    Rename(LayerPath, LayerPath, Onto),
    Restore(LayerPath),
    Switch(Map),
}

/// The same on a plain map, with the rules of the system calls; `None` where they fail.
fn plainly(map: &Map, operation: &Operation, content: u32) -> Option<Map> {
    let mut map = map.clone();
    let parent_is_dir =
        |map: &Map, path: &LayerPath| path.parent().is_root() || map.get(&path.parent()) == Some(&Entry::Dir);
    let empty = |map: &Map, path: &LayerPath| !map.keys().any(|other| below(other, path));
    match operation {
        Operation::Create(path) | Operation::Mkdir(path) => {
            if map.contains_key(path) || !parent_is_dir(&map, path) {
                return None;
            }
            let item = if matches!(operation, Operation::Mkdir(_)) { Entry::Dir } else { Entry::Leaf(content) };
            map.insert(path.clone(), item);
        }
        Operation::Write(path) => match map.get_mut(path)? {
            Entry::Dir => return None,
            leaf => *leaf = Entry::Leaf(content),
        },
        Operation::Unlink(path) => match map.get(path)? {
            Entry::Dir => return None,
            Entry::Leaf(_) => {
                map.remove(path);
            }
        },
        Operation::Rmdir(path) => {
            if *map.get(path)? != Entry::Dir || !empty(&map, path) {
                return None;
            }
            map.remove(path);
        }
        Operation::Link(from, to) => {
            let item = *map.get(from)?;
            if item == Entry::Dir || map.contains_key(to) || !parent_is_dir(&map, to) {
                return None;
            }
            map.insert(to.clone(), item);
        }
        Operation::Rename(from, to, onto) => {
            let source = *map.get(from)?;
            if !parent_is_dir(&map, to) || below(to, from) {
                return None;
            }
            if from == to {
                return Some(map);
            }
            let target = map.get(to).copied();
            match onto {
                Onto::Nothing if target.is_some() => return None,
                Onto::Exchange if target.is_none() || below(from, to) => return None,
                Onto::Replace => match (source, target) {
                    (_, None) | (Entry::Leaf(_), Some(Entry::Leaf(_))) => {}
                    (Entry::Dir, Some(Entry::Dir)) if empty(&map, to) => {}
                    _ => return None,
                },
                _ => {}
            }
            let mut world = World { upper: map, ..World::default() };
            world.step(&Step::Rename(from.clone(), to.clone(), *onto), Entry::Dir);
            map = world.upper;
        }
        Operation::Restore(_) | Operation::Switch(_) => return None,
    }
    Some(map)
}

fn plan(world: &World, operation: &Operation) -> Result<Plan> {
    let shown = world.visible();
    fn at<'a>(world: &World, path: &'a LayerPath) -> Name<'a> {
        Name { path, layers: world.layers(path) }
    }
    let empty = |path: &LayerPath| !shown.keys().any(|other| below(other, path));
    match operation {
        Operation::Create(path) | Operation::Mkdir(path) => create(at(world, path)),
        Operation::Write(path) => bring_up(at(world, path)),
        Operation::Unlink(path) => unlink(at(world, path)),
        Operation::Rmdir(path) => rmdir(at(world, path), empty(path)),
        Operation::Link(from, to) => link(at(world, from), at(world, to)),
        Operation::Rename(from, to, onto) => rename(at(world, from), at(world, to), *onto, empty(to)),
        Operation::Restore(path) => restore(at(world, path), empty_above(world, path)),
        Operation::Switch(_) => Ok(Vec::new()),
    }
}

fn empty_above(world: &World, path: &LayerPath) -> bool {
    !world.upper.keys().any(|other| below(other, path))
}

/// What shows when nothing of the upper layer hides the release's entry at a path any more.
fn restored(world: &World, path: &LayerPath) -> Option<Map> {
    let mut world = world.clone();
    let lower = world.layers(path).lower?;
    world.whiteouts.remove(path);
    match world.upper.get(path) {
        Some(Entry::Dir) if lower == Kind::Dir => {}
        Some(Entry::Dir) if !empty_above(&world, path) => return None,
        _ => {
            world.upper.remove(path);
        }
    }
    Some(world.visible())
}

/// What the upper layer holds stays, whatever the release is.
fn check_switched(world: &World) -> std::result::Result<(), TestCaseError> {
    let shown = world.visible();
    for (path, item) in world.upper.iter().filter(|(path, _)| above(path).iter().all(|up| world.upper.contains_key(up)))
    {
        prop_assert_eq!(shown.get(path), Some(item));
    }
    Ok(())
}

/// The kernel walks to the parent before it asks.
fn reachable(old: &Map, operation: &Operation) -> bool {
    let parents_ok = |path: &LayerPath| path.parent().is_root() || old.get(&path.parent()) == Some(&Entry::Dir);
    match operation {
        Operation::Link(a, b) | Operation::Rename(a, b, _) => parents_ok(a) && parents_ok(b),
        Operation::Create(a)
        | Operation::Mkdir(a)
        | Operation::Write(a)
        | Operation::Unlink(a)
        | Operation::Restore(a)
        | Operation::Rmdir(a) => parents_ok(a),
        Operation::Switch(_) => true,
    }
}

fn check(start: Map, operations: &[Operation]) -> std::result::Result<(), TestCaseError> {
    let mut world = World { lower: start, ..World::default() };
    for (number, operation) in operations.iter().enumerate() {
        let content = 1000 + number as u32;
        if let Operation::Switch(lower) = operation {
            world.lower = lower.clone();
            check_switched(&world)?;
            continue;
        }
        let old = world.visible();
        let expected = match operation {
            Operation::Restore(path) => restored(&world, path),
            other => plainly(&old, other, content),
        };
        if !reachable(&old, operation) {
            continue;
        }
        let planned = plan(&world, operation);
        let Some(mut new) = expected else {
            if !matches!(operation, Operation::Write(path) if old.get(path) == Some(&Entry::Dir)) {
                prop_assert!(planned.is_err(), "{:?} should fail: {:?}", operation, planned);
            }
            continue;
        };
        let planned = match planned {
            Ok(planned) => planned,
            Err(error) => {
                // Renaming a release's directory is the one thing that a plain directory can and we cannot.
                prop_assert_eq!(error.errno(), Errno::XDEV, "{:?}", operation);
                continue;
            }
        };
        let made = if matches!(operation, Operation::Mkdir(_)) { Entry::Dir } else { Entry::Leaf(content) };
        let write = match operation {
            Operation::Write(path) => {
                new = old.clone();
                Some(path)
            }
            _ => None,
        };
        for (done, step) in planned.iter().enumerate() {
            world.step(step, made);
            let now = world.visible();
            for path in old.keys().chain(new.keys()).chain(now.keys()) {
                let (was, is, will) = (old.get(path), now.get(path), new.get(path));
                prop_assert!(
                    is == was || is == will,
                    "{:?} shows {:?} at {:?} after {} steps of {:?}",
                    operation,
                    is,
                    path,
                    done + 1,
                    planned
                );
            }
        }
        prop_assert_eq!(&world.visible(), &new, "{:?}: {:?}", operation, planned);
        if let Some(path) = write {
            // Links of one leaf are separate items here: only this one is written to.
            world.upper.insert(path.clone(), Entry::Leaf(content));
        }
    }
    Ok(())
}

fn path() -> impl Strategy<Value = LayerPath> {
    proptest::collection::vec(0u8..3, 1..4)
        .prop_map(|names| names.iter().fold(LayerPath::shared(""), |dir, name| dir.join(&[b'a' + name])))
}

fn lower() -> impl Strategy<Value = Map> {
    proptest::collection::vec((path(), any::<bool>(), 1u32..5), 0..10).prop_map(|items| {
        let mut map = Map::new();
        for (path, dir, content) in items {
            let free = above(&path).iter().all(|up| !matches!(map.get(up), Some(Entry::Leaf(_))));
            if !free || map.contains_key(&path) {
                continue;
            }
            for up in above(&path) {
                map.insert(up, Entry::Dir);
            }
            map.insert(path, if dir { Entry::Dir } else { Entry::Leaf(content) });
        }
        map
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let onto = prop_oneof![4 => Just(Onto::Replace), 1 => Just(Onto::Nothing), 2 => Just(Onto::Exchange)];
    prop_oneof![
        3 => path().prop_map(Operation::Create),
        3 => path().prop_map(Operation::Mkdir),
        2 => path().prop_map(Operation::Write),
        3 => path().prop_map(Operation::Unlink),
        3 => path().prop_map(Operation::Rmdir),
        1 => (path(), path()).prop_map(|(from, to)| Operation::Link(from, to)),
        4 => (path(), path(), onto).prop_map(|(from, to, onto)| Operation::Rename(from, to, onto)),
        1 => path().prop_map(Operation::Restore),
        1 => lower().prop_map(Operation::Switch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn every_prefix_of_every_plan_shows_the_old_or_the_new_state(
        start in lower(),
        operations in proptest::collection::vec(operation(), 1..30),
    ) {
        check(start, &operations)?;
    }
}

#[test]
fn a_directory_exchanged_with_a_leaf_over_a_release_directory_shows_nothing_of_that() {
    let path = |text: &str| LayerPath::shared(text);
    let lower = Map::from([(path("b"), Entry::Dir), (path("b/a"), Entry::Leaf(1))]);
    let operations = [
        Operation::Mkdir(path("c")),
        Operation::Create(path("b")),
        Operation::Switch(lower),
        Operation::Rename(path("c"), path("b"), Onto::Exchange),
    ];
    check(Map::new(), &operations).expect("old or new");
}

#[test]
fn whiteout_comes_before_the_upper_entry_goes() {
    let layers = Layers { upper: Some(UpperKind::Leaf), whiteout: false, lower: Some(Kind::File) };
    let path = LayerPath::shared("a/b");
    let plan = unlink(Name { path: &path, layers }).expect("there");
    assert_eq!(plan, [Step::Whiteout(path.clone()), Step::Unlink(path)]);
}

#[test]
fn unlink_of_release_file_leaves_whiteout() {
    let layers = Layers { lower: Some(Kind::File), ..Layers::default() };
    let path = LayerPath::shared("a");
    assert_eq!(unlink(Name { path: &path, layers }).expect("there"), [Step::Whiteout(path)]);
}

#[test]
fn renaming_a_release_directory_crosses_a_device() {
    let (a, b) = (LayerPath::shared("a"), LayerPath::shared("b"));
    let from = Name { path: &a, layers: Layers { lower: Some(Kind::Dir), ..Layers::default() } };
    let to = Name { path: &b, layers: Layers::default() };
    assert_eq!(rename(from, to, Onto::Replace, true).expect_err("a release's directory").errno(), Errno::XDEV);
}

#[test]
fn a_directory_renamed_over_an_emptied_one_shows_the_same_in_later_releases_as_after_rmdir() {
    let path = |text: &str| LayerPath::shared(text);
    let lower = Map::from([(path("b"), Entry::Dir), (path("b/a"), Entry::Leaf(1))]);
    let later = Map::from([(path("b"), Entry::Dir), (path("b/c"), Entry::Leaf(2))]);
    let shown = |operations: &[Operation]| {
        let mut world = World { lower: lower.clone(), ..World::default() };
        for operation in operations {
            let planned = plan(&world, operation).expect("allowed");
            planned.iter().for_each(|step| world.step(step, Entry::Dir));
        }
        world.lower = later.clone();
        world.visible()
    };
    let emptied = [Operation::Mkdir(path("c")), Operation::Unlink(path("b/a"))];
    let over = Operation::Rename(path("c"), path("b"), Onto::Replace);
    let removed = [&emptied[..], &[Operation::Rmdir(path("b")), over.clone()]].concat();
    assert_eq!(shown(&[&emptied[..], &[over]].concat()), shown(&removed));
    assert_eq!(shown(&removed), Map::from([(path("b"), Entry::Dir)]));
}
