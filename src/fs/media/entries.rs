//! The visible names of a directory in a scope.

use super::lookup::Visible;
use crate::error::Result;
use crate::fs::attr::Type;
use crate::store::media::home::{UpperName, Whiteout};
use crate::tree::{Kind, LayerPath, Node, NodeId, Tree};
use rustix::fs::FileType;
use std::collections::BTreeMap;

/// A visible name in a directory.
#[derive(Debug)]
pub(super) struct VisibleName {
    /// The number for d_ino.
    pub(super) number: NodeId,
    pub(super) kind: Type,
    pub(super) name: Vec<u8>,
}

impl Visible<'_> {
    /// The visible names of a directory. Names that come or go meanwhile may be in it or
    /// not; of all others none is missing: the layers are read in the order in which no step moves a name past the
    /// reader.
    pub(super) fn entries(&self, path: &LayerPath) -> Result<Vec<VisibleName>> {
        let home = &self.media.home;
        let mut found = BTreeMap::new();
        self.lower_entries(path, &mut found)?;
        let listed = home.list(path)?;
        let nodes = self.media.nodes.lock();
        let place = nodes.place(path);
        for UpperName { name, id, kind } in listed {
            let (number, kind) = match kind {
                FileType::Directory => (path.join(&name).dir_node(), Type::Dir),
                FileType::Symlink => (nodes.number_of_file(id), Type::Symlink),
                FileType::Fifo => (nodes.number_of_file(id), Type::Fifo),
                FileType::Socket => (nodes.number_of_file(id), Type::Socket),
                FileType::RegularFile => (nodes.number_of_file(id), Type::File),
                _ => (nodes.number_of_file(id), Type::Device),
            };
            let number = nodes.in_place(place, &name).unwrap_or(number);
            found.insert(name, (number, kind));
        }
        Ok(found.into_iter().map(|(name, (number, kind))| VisibleName { number, kind, name }).collect())
    }

    /// Those of the release that nothing hides.
    fn lower_entries(&self, path: &LayerPath, found: &mut BTreeMap<Vec<u8>, (NodeId, Type)>) -> Result<()> {
        let Some(release) = self.release_of(path) else { return Ok(()) };
        let manifest = &release.manifest;
        let Some(index) = manifest.find_path(path.in_docroot())? else { return Ok(()) };
        let home = &self.media.home;
        if manifest.node(index)?.kind != Kind::Dir || home.whiteout(path)? != Whiteout::None {
            return Ok(());
        }
        let whited = home.whiteouts_in(path)?;
        for child in manifest.children(index)? {
            let (name, node) = (manifest.name(child)?, manifest.node(child)?);
            if !whited.contains(name) {
                let number = self.number_of_lower(path, name, &node);
                found.insert(name.to_vec(), (number, Type::from(node.kind)));
            }
        }
        Ok(())
    }

    /// The number under which a release's entry is listed: its node's where it has one.
    fn number_of_lower(&self, dir: &LayerPath, name: &[u8], lower: &Node) -> NodeId {
        let nodes = self.media.nodes.lock();
        let known = nodes.in_place(nodes.place(dir), name);
        match (known, lower.kind) {
            (Some(node), Kind::Dir) => node,
            (Some(node), _) if nodes.is_lower(node, lower) => node,
            (None, Kind::Dir) => dir.join(name).dir_node(),
            _ => lower.nodeid.scoped(),
        }
    }
}
