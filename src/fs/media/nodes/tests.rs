//! Steps and looks that overlap: what a look meets before a step is noted changes nothing that the step will say.

use super::super::node::Backing;
use super::super::scopes::{ScopeId, Scopes};
use super::{Nodes, StepOutcome};
use crate::fs::epoch::Release;
use crate::store::media::home::{FileId, Inode, Orphan};
use crate::store::media::scope::Scope;
use crate::store::release::manifest::{BuildNode, Builder, Manifest};
use crate::sys::Handle;
use crate::tree::union::{Onto, Step};
use crate::tree::{Kind, LayerPath, NodeId, Tree};
use std::path::Path;
use std::sync::Arc;

const DISK: u64 = 1;

fn nodes() -> (Nodes, ScopeId) {
    let scopes = Scopes::new(&[Scope::new("m", false, "")]);
    let scope = scopes.ids().next().expect("it was declared");
    (Nodes::new(Arc::default()), scope)
}

fn at(path: &str) -> LayerPath {
    LayerPath::shared(path)
}

fn id(number: u64) -> FileId {
    FileId::new(Inode::listed(DISK, number), Handle::default())
}

fn upper(number: u64) -> Backing {
    Backing::Upper(id(number))
}

fn lower() -> Backing {
    let mut builder = Builder::new(BuildNode::new(b"", Kind::Dir, 0o755));
    let index = builder.push(0, BuildNode::new(b"f", Kind::File, 0o644));
    let manifest = Manifest::from_bytes(builder.encode(0).expect("a manifest"), Path::new("r")).expect("a manifest");
    let node = manifest.node(index).expect("the file").nodeid;
    let release = Arc::new(Release { name: "1".parse().expect("a name"), manifest });
    Backing::Lower { release, index, node }
}

fn paths(nodes: &Nodes, node: NodeId) -> Vec<LayerPath> {
    nodes.held(node).expect("it is held").path.into_iter().collect()
}

/// Looks a path up, as a request whose reply is sent.
fn look(nodes: &mut Nodes, scope: ScopeId, path: &LayerPath, backing: Backing) -> NodeId {
    let number = NodeId(nodes.nodes.len() as u64 + 100).scoped();
    let (node, lookup) = nodes.settle(path, (scope, DISK), backing, Some(number)).expect("it has a number");
    lookup.sent();
    node
}

#[test]
fn a_copy_that_a_look_meets_before_it_is_noted_is_the_file_that_is_copied_up() {
    let (mut nodes, scope) = nodes();
    let path = at("m/f");
    let file = look(&mut nodes, scope, &path, lower());
    let step = Step::CopyUp(path.clone());
    let announced = nodes.begin_step(&step);
    // The copy has its name on the disk. One look meets it, and one that began before does not.
    assert_eq!(look(&mut nodes, scope, &path, upper(7)), file);
    nodes.copied_up(file, id(7), DISK);
    assert_eq!(look(&mut nodes, scope, &path, lower()), file);
    assert!(nodes.end_step(announced, StepOutcome::Done(None)).is_none());
    assert!(matches!(nodes.get(file).expect("held").backing, Backing::Upper(_)));
    assert_eq!(look(&mut nodes, scope, &path, upper(7)), file);
    assert_eq!(paths(&nodes, file), [path]);
}

#[test]
fn a_rename_that_a_look_meets_before_it_is_noted_takes_no_name_from_the_file() {
    let (mut nodes, scope) = nodes();
    let (from, to) = (at("m/a"), at("m/b"));
    let (moved, replaced) = (look(&mut nodes, scope, &from, upper(1)), look(&mut nodes, scope, &to, upper(2)));
    let step = Step::Rename(from.clone(), to.clone(), Onto::Replace);
    let announced = nodes.begin_step(&step);
    assert_eq!(look(&mut nodes, scope, &to, upper(1)), moved);
    assert_eq!((paths(&nodes, moved), paths(&nodes, replaced)), (vec![from], vec![to.clone()]));
    assert!(nodes.end_step(announced, StepOutcome::Done(Some(Orphan::Gone))).is_none(), "its opener keeps it");
    assert_eq!((paths(&nodes, moved), paths(&nodes, replaced)), (vec![to], vec![]));
    assert!(nodes.get(replaced).expect("held").orphan.is_some() && nodes.get(moved).expect("held").orphan.is_none());
}

#[test]
fn a_look_is_outrun_by_a_step_in_its_directory_and_by_a_move_of_one_above_it() {
    let (mut nodes, scope) = nodes();
    look(&mut nodes, scope, &at("m/d"), Backing::Dir);
    let seen = nodes.seen(at("m/d/e"));
    let mut take = |step: Step| {
        let announced = nodes.begin_step(&step);
        assert!(!nodes.outran(&seen), "a step under way leaves the state before it or after it");
        nodes.end_step(announced, StepOutcome::Done(None));
        nodes.outran(&seen)
    };
    assert!(!take(Step::Unlink(at("m/x"))));
    assert!(take(Step::Place(at("m/d/e/new"))));

    let seen = nodes.seen(at("m/d/e"));
    let step = Step::Rename(at("m/d"), at("m/other"), Onto::Nothing);
    let announced = nodes.begin_step(&step);
    assert!(nodes.is_moving(&at("m/d/e")) && !nodes.is_moving(&at("m/dd")));
    nodes.end_step(announced, StepOutcome::Done(None));
    assert!(!nodes.is_moving(&at("m/d/e")) && nodes.outran(&seen));
    assert!(nodes.at(&at("m/other")).is_some() && nodes.at(&at("m/d")).is_none());
}
