//! Where the nodes of scopes lie: the tree of their names.
//!
//! A place is a name in another place, never a path: so a directory moves in one step with all that lies below it,
//! whatever that is, and the memory that a name takes does not grow with its depth. A place is kept as long as a node
//! has it or another place lies in it.

use crate::error::{Errno, Error, Result};
use crate::tree::{LayerId, LayerPath, NodeId};
use hashbrown::HashTable;
use slab::Slab;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// The longest path that is put together, in bytes: what lies deeper, by renames of the directories above it, can be
/// reached behind the mount only. So no request holds the lock of the nodes for longer than that takes.
const LONGEST_PATH: usize = 64 << 10;

/// One place; it may be given out anew once it was let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs::media) struct PlaceId(usize);

/// What a place lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Above {
    /// It is the root of this layer.
    Root(LayerId),
    /// Another place.
    In(PlaceId),
    /// Nothing any more: its directory was replaced.
    Nowhere,
}

#[derive(Debug)]
struct Place {
    above: Above,
    name: Box<[u8]>,
    /// How many places lie in it.
    inside: usize,
    /// The node that is known here, and which of the node's names this is.
    node: Option<(NodeId, usize)>,
}

/// All places.
#[derive(Debug, Default)]
pub(super) struct Places {
    places: Slab<Place>,
    roots: HashMap<LayerId, PlaceId>,
    /// Every place that lies in another, by that and its name.
    inside: HashTable<PlaceId>,
    hasher: RandomState,
}

impl Places {
    fn hash(&self, dir: PlaceId, name: &[u8]) -> u64 {
        self.hasher.hash_one((dir.0, name))
    }

    /// The place of a path, if it is kept.
    pub(super) fn find(&self, path: &LayerPath) -> Option<PlaceId> {
        let root = *self.roots.get(path.layer())?;
        path.names().try_fold(root, |dir, name| self.find_in(dir, name))
    }

    /// The place of a name in a directory, if it is kept.
    pub(super) fn find_in(&self, dir: PlaceId, name: &[u8]) -> Option<PlaceId> {
        let is_it = |at: &PlaceId| {
            self.places.get(at.0).is_some_and(|place| place.above == Above::In(dir) && *place.name == *name)
        };
        self.inside.find(self.hash(dir, name), is_it).copied()
    }

    /// The place of a path, kept from now on: [`Places::tidy`] lets it go again.
    pub(super) fn make(&mut self, path: &LayerPath) -> PlaceId {
        let root = match self.roots.get(path.layer()) {
            Some(root) => *root,
            None => {
                let root = self.insert(Above::Root(path.layer().clone()), b"");
                self.roots.insert(path.layer().clone(), root);
                root
            }
        };
        path.names().fold(root, |dir, name| match self.find_in(dir, name) {
            Some(known) => known,
            None => {
                let place = self.insert(Above::Nowhere, b"");
                self.hang(place, dir, name);
                place
            }
        })
    }

    fn insert(&mut self, above: Above, name: &[u8]) -> PlaceId {
        PlaceId(self.places.insert(Place { above, name: name.into(), inside: 0, node: None }))
    }

    /// Gives a place that lies nowhere its place in a directory.
    fn hang(&mut self, place: PlaceId, dir: PlaceId, name: &[u8]) {
        if let Some(held) = self.places.get_mut(place.0) {
            held.above = Above::In(dir);
            held.name = name.into();
        }
        if let Some(dir) = self.places.get_mut(dir.0) {
            dir.inside += 1;
        }
        let (places, hasher) = (&self.places, &self.hasher);
        let hash_of = |at: &PlaceId| match places.get(at.0) {
            Some(Place { above: Above::In(dir), name, .. }) => hasher.hash_one((dir.0, &**name)),
            _ => 0,
        };
        self.inside.insert_unique(hasher.hash_one((dir.0, name)), place, hash_of);
    }

    /// Takes a place out of its directory, with all that lies in it. Gives the directory.
    fn unhang(&mut self, place: PlaceId) -> Option<PlaceId> {
        let held = self.places.get_mut(place.0)?;
        let Above::In(dir) = held.above else { return None };
        held.above = Above::Nowhere;
        let hash = self.hasher.hash_one((dir.0, &*held.name));
        if let Ok(entry) = self.inside.find_entry(hash, |at| *at == place) {
            entry.remove();
        }
        if let Some(dir) = self.places.get_mut(dir.0) {
            dir.inside -= 1;
        }
        Some(dir)
    }

    /// The path of a place; `None` if it lies nowhere any more.
    pub(super) fn path(&self, place: PlaceId) -> Result<Option<LayerPath>> {
        let (mut names, mut len, mut at) = (Vec::new(), 0, place);
        loop {
            let Some(held) = self.places.get(at.0) else { return Ok(None) };
            match &held.above {
                Above::Nowhere => return Ok(None),
                Above::Root(layer) => {
                    names.reverse();
                    return Ok(Some(LayerPath::new(layer.clone(), names.join(&b'/'))));
                }
                Above::In(dir) => {
                    len += held.name.len() + 1;
                    if len > LONGEST_PATH {
                        return Err(Error::answer(Errno::NAMETOOLONG));
                    }
                    names.push(&*held.name);
                    at = *dir;
                }
            }
        }
    }

    /// The node at a place, and which of its names the place is.
    pub(super) fn node(&self, place: PlaceId) -> Option<(NodeId, usize)> {
        self.places.get(place.0)?.node
    }

    /// The node of the directory that a place lies in, and its name there.
    pub(super) fn name_in(&self, place: PlaceId) -> Option<(NodeId, &[u8])> {
        let held = self.places.get(place.0)?;
        match held.above {
            Above::In(dir) => Some((self.node(dir)?.0, &held.name)),
            Above::Root(_) | Above::Nowhere => None,
        }
    }

    /// Its last name.
    pub(super) fn name(&self, place: PlaceId) -> Option<&[u8]> {
        Some(&self.places.get(place.0)?.name)
    }

    /// Whether no other place lies in it.
    pub(super) fn is_last(&self, place: PlaceId) -> bool {
        self.places.get(place.0).is_some_and(|place| place.inside == 0)
    }

    /// Notes the node at a place.
    pub(super) fn set_node(&mut self, place: PlaceId, node: Option<(NodeId, usize)>) {
        if let Some(held) = self.places.get_mut(place.0) {
            held.node = node;
        }
    }

    /// Lets a place go if nothing needs it, and those above it that nothing needs then.
    pub(super) fn tidy(&mut self, mut place: PlaceId) {
        while let Some(held) = self.places.get(place.0)
            && held.inside == 0
            && held.node.is_none()
        {
            if let Above::Root(layer) = &held.above {
                self.roots.remove(layer);
            }
            let dir = self.unhang(place);
            self.places.remove(place.0);
            match dir {
                Some(dir) => place = dir,
                None => return,
            }
        }
    }

    /// What lies at one path goes to another, with all below it. What lay there lies nowhere from then on.
    pub(super) fn rename(&mut self, from: &LayerPath, to: &LayerPath) {
        if to.is_within(from) {
            return;
        }
        let replaced = self.find(to).inspect(|replaced| {
            self.unhang(*replaced);
        });
        if let Some(moved) = self.find(from) {
            // Kept while it is empty: the place to come is in it.
            let dir = self.make(&to.parent());
            let left = self.unhang(moved);
            self.hang(moved, dir, to.name());
            left.into_iter().for_each(|left| self.tidy(left));
        }
        if let Some(replaced) = replaced {
            self.tidy_replaced(replaced, to);
        }
    }

    /// What lies at two paths changes places, with all below each.
    pub(super) fn exchange(&mut self, one: &LayerPath, other: &LayerPath) {
        if one.is_within(other) || other.is_within(one) {
            return;
        }
        let (here, there) = (self.find(one), self.find(other));
        let (above_one, above_other) = (self.make(&one.parent()), self.make(&other.parent()));
        for place in here.iter().chain(&there) {
            self.unhang(*place);
        }
        if let Some(here) = here {
            self.hang(here, above_other, other.name());
        }
        if let Some(there) = there {
            self.hang(there, above_one, one.name());
        }
        self.tidy(above_one);
        self.tidy(above_other);
    }

    /// A place that was replaced goes if nothing needs it; else with the last that lies in it. The directory that it
    /// lay in may have had nothing else.
    fn tidy_replaced(&mut self, replaced: PlaceId, at: &LayerPath) {
        self.tidy(replaced);
        if let Some(dir) = self.find(&at.parent()) {
            self.tidy(dir);
        }
    }

    /// How many places are kept.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn at(path: &str) -> LayerPath {
        LayerPath::shared(path)
    }

    fn path_of(places: &Places, place: PlaceId) -> Option<LayerPath> {
        places.path(place).expect("a path")
    }

    /// Puts a node at a path.
    fn put(places: &mut Places, path: &LayerPath, node: u64) -> PlaceId {
        let place = places.make(path);
        places.set_node(place, Some((NodeId(node), 0)));
        place
    }

    #[test]
    fn what_lies_below_moves_with_its_directory_and_nothing_is_kept_in_the_end() {
        let mut places = Places::default();
        let file = put(&mut places, &at("m/a/b/f"), 1);
        places.rename(&at("m/a"), &at("m/x/y"));
        assert_eq!(path_of(&places, file), Some(at("m/x/y/b/f")));
        assert_eq!((places.find(&at("m/x/y/b/f")), places.find(&at("m/a"))), (Some(file), None));
        places.set_node(file, None);
        places.tidy(file);
        assert_eq!(places.len(), 0);
    }

    #[test]
    fn what_is_replaced_lies_nowhere_and_goes_with_the_last_that_lies_in_it() {
        let mut places = Places::default();
        let (old, new) = (put(&mut places, &at("m/old/f"), 1), put(&mut places, &at("m/new"), 2));
        places.rename(&at("m/new"), &at("m/old"));
        assert_eq!((path_of(&places, old), path_of(&places, new)), (None, Some(at("m/old"))));
        for place in [old, new] {
            places.set_node(place, None);
            places.tidy(place);
        }
        assert_eq!(places.len(), 0);
    }

    #[test]
    fn a_path_past_the_bound_is_refused_and_not_put_together() {
        let mut places = Places::default();
        let long = "n".repeat(200);
        let half = vec![&long[..]; LONGEST_PATH / 402 + 1].join("/");
        let file = put(&mut places, &at(&format!("a/{half}/f")), 1);
        put(&mut places, &at(&format!("b/{half}/d")), 2);
        places.rename(&at("a"), &at(&format!("b/{half}/d")));
        assert_eq!(places.path(file).map_err(|error| error.errno()), Err(Errno::NAMETOOLONG));
        places.rename(&at("b"), &at("c"));
        assert!(places.find(&at("b")).is_none() && places.find(&at("c")).is_some());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(LayerPath),
        Take(LayerPath),
        Rename(LayerPath, LayerPath),
        Exchange(LayerPath, LayerPath),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let path = prop::collection::vec("[ab]", 1..4).prop_map(|names| at(&names.join("/")));
        let pair = (path.clone(), path.clone());
        prop::collection::vec(
            prop_oneof![
                path.clone().prop_map(Step::Put),
                path.prop_map(Step::Take),
                pair.clone().prop_map(|(from, to)| Step::Rename(from, to)),
                pair.prop_map(|(one, other)| Step::Exchange(one, other)),
            ],
            1..40,
        )
    }

    proptest! {
        /// A map of whole paths is the reference.
        #[test]
        fn places_are_where_whole_paths_would_be(steps in steps()) {
            let (mut places, mut plain) = (Places::default(), BTreeMap::<LayerPath, PlaceId>::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Put(path) => {
                        let place = put(&mut places, &path, number as u64);
                        plain.insert(path, place);
                    }
                    Step::Take(path) => if let Some(place) = plain.remove(&path) {
                        places.set_node(place, None);
                        places.tidy(place);
                    },
                    Step::Rename(from, to) if !to.is_within(&from) && !from.is_within(&to) => {
                        places.rename(&from, &to);
                        let keep = |path: &LayerPath| if path.is_within(&to) { None } else {
                            Some(path.moved(&from, &to).unwrap_or_else(|| path.clone()))
                        };
                        plain = plain.into_iter().filter_map(|(path, place)| match keep(&path) {
                            Some(path) => Some((path, place)),
                            None => { places.set_node(place, None); places.tidy(place); None }
                        }).collect();
                    }
                    Step::Exchange(one, other) if !one.is_within(&other) && !other.is_within(&one) => {
                        places.exchange(&one, &other);
                        let moved = |path: LayerPath| {
                            path.moved(&one, &other).or_else(|| path.moved(&other, &one)).unwrap_or(path)
                        };
                        plain = plain.into_iter().map(|(path, place)| (moved(path), place)).collect();
                    }
                    Step::Rename(..) | Step::Exchange(..) => {}
                }
                for (path, place) in &plain {
                    prop_assert_eq!(places.find(path), Some(*place));
                    prop_assert_eq!(path_of(&places, *place), Some(path.clone()));
                }
            }
            for place in plain.into_values() {
                places.set_node(place, None);
                places.tidy(place);
            }
            prop_assert_eq!(places.len(), 0);
        }
    }
}
