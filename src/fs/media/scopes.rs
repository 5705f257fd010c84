//! The scopes of a mount, and the rules that hold in each.

use crate::error::{Error, Result};
use crate::fs::attr::Ttl;
use crate::store::media::scope::{Believed, Deny, Scope as Declared};
use crate::tree::{LayerId, LayerPath, NodeId, ReleaseName, is_within, split};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

/// A scope, by its place in verfs.toml.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScopeId(usize);

/// What holds in a scope; may change while it is mounted.
#[derive(Debug)]
pub struct Rules {
    /// Names that cannot be made.
    pub deny: Deny,
    /// Bytes on disk.
    pub limit: Option<u64>,
    /// How long the kernel may believe an entry.
    pub ttl: Ttl,
}

#[derive(Debug)]
struct ScopePlace {
    path: Vec<u8>,
    per_release: bool,
}

/// All of them.
#[derive(Debug)]
pub struct Scopes {
    all: Vec<ScopePlace>,
    /// Tops of scopes, by directory and name.
    tops: HashMap<(NodeId, Vec<u8>), ScopeId>,
    rules: RwLock<Vec<Arc<Rules>>>,
}

impl Scopes {
    /// Those that verfs.toml declares.
    pub fn new(declared: &[Declared]) -> Self {
        let scope =
            |scope: &Declared| ScopePlace { path: scope.path.clone().into_bytes(), per_release: scope.per_release };
        let all: Vec<ScopePlace> = declared.iter().map(scope).collect();
        let top = |(number, scope): (usize, &ScopePlace)| {
            let (dir, name) = split(&scope.path);
            ((NodeId::of_dir(dir), name.to_vec()), ScopeId(number))
        };
        Self { tops: all.iter().enumerate().map(top).collect(), all, rules: RwLock::new(rules(declared)) }
    }

    /// Takes other rules for the same scopes.
    pub fn set_rules(&self, declared: &[Declared]) {
        *self.rules.write() = rules(declared);
    }

    /// The rules of a scope.
    pub fn rules(&self, scope: ScopeId) -> Arc<Rules> {
        self.rules.read()[scope.0].clone()
    }

    /// Every scope.
    pub fn ids(&self) -> impl Iterator<Item = ScopeId> {
        (0..self.all.len()).map(ScopeId)
    }

    /// The path of a scope in the docroot.
    pub fn path(&self, scope: ScopeId) -> &[u8] {
        &self.all[scope.0].path
    }

    /// Whether each release has its own.
    pub fn is_per_release(&self, scope: ScopeId) -> bool {
        self.all[scope.0].per_release
    }

    /// The scope that a path of the docroot lies in.
    pub fn of(&self, path: &[u8]) -> Result<ScopeId> {
        self.ids()
            .find(|scope| is_within(path, self.path(*scope)))
            .ok_or_else(|| Error::failed("a path of the writable layer lies in no scope"))
    }

    /// Whether a path of the docroot is the top of a scope.
    pub fn is_top(&self, path: &[u8]) -> bool {
        self.all.iter().any(|scope| scope.path == path)
    }

    /// The scope whose top this name is, if it is one.
    pub fn top(&self, dir: NodeId, name: &[u8]) -> Option<ScopeId> {
        if self.tops.is_empty() {
            return None;
        }
        self.tops.get(&(dir, name.to_vec())).copied()
    }

    /// Names of the scope tops in a directory of the release.
    pub fn tops_in(&self, dir: NodeId) -> Vec<&[u8]> {
        let mut names: Vec<&[u8]> = self.tops.keys().filter(|(of, _)| *of == dir).map(|(_, name)| &name[..]).collect();
        names.sort_unstable();
        names
    }

    /// The scopes whose tops are in a directory of the release.
    pub(crate) fn scopes_in(&self, dir: NodeId) -> impl Iterator<Item = ScopeId> {
        self.tops.iter().filter(move |((of, _), _)| *of == dir).map(|(_, scope)| *scope)
    }

    /// The layer that a scope has for this release.
    pub fn layer(&self, scope: ScopeId, release: &ReleaseName) -> LayerId {
        match self.is_per_release(scope) {
            true => LayerId::Own(release.clone()),
            false => LayerId::Shared,
        }
    }

    /// Where the top of a scope lies, for this release.
    pub fn top_path(&self, scope: ScopeId, release: &ReleaseName) -> LayerPath {
        LayerPath::new(self.layer(scope, release), self.path(scope))
    }
}

fn rules(declared: &[Declared]) -> Vec<Arc<Rules>> {
    let ttl = |believed| match believed {
        Believed::For(time) => Ttl::For(time),
        Believed::Forever => Ttl::Forever,
    };
    let rules = |scope: &Declared| {
        let limit = scope.limit.map(|limit| limit.as_u64());
        Arc::new(Rules { deny: scope.deny.clone(), limit, ttl: ttl(scope.ttl) })
    };
    declared.iter().map(rules).collect()
}
