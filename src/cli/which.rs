//! Which store is meant, and who serves it.

use crate::control::client::Client;
use crate::error::{Context, Error, Result};
use crate::store::Store;
use crate::worker::mounted;
use std::path::{Path, PathBuf};

/// The store's directory: `--store`, else $VERFS_STORE, else the only mounted one.
pub(super) fn path(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os("VERFS_STORE").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let mounts = mounted()?;
    match &mounts[..] {
        [only] => Ok(only.store.clone()),
        [] => Err(Error::request("which store? Say --store DIR, or set VERFS_STORE (none is mounted)")),
        many => {
            let names: Vec<String> = many.iter().map(|mount| mount.store.display().to_string()).collect();
            Err(Error::request(format!("which store? These are mounted: {}; say --store DIR", names.join(", "))))
        }
    }
}

/// The open store.
pub(super) fn store(given: Option<&Path>) -> Result<Store> {
    Store::open(&path(given)?)
}

/// The store that a positional argument names, which must not disagree with `--store`.
pub(super) fn agreed(positional: &Path, given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        let real = |path: &Path| match std::fs::canonicalize(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(path.to_owned()),
            real => real.context(|| format!("looking at {}", path.display())),
        };
        if real(given)? != real(positional)? {
            return Err(Error::request(format!(
                "--store says {} and the command names {}; say one of them",
                given.display(),
                positional.display()
            )));
        }
    }
    Ok(positional.to_owned())
}

/// The daemon that serves the store, if one does.
pub(super) fn daemon(store: &Store) -> Result<Option<Client>> {
    Client::connect(&store.socket_path())
}

/// The daemon that serves the store; an error if none does.
pub(super) fn running(store: &Store) -> Result<Client> {
    daemon(store)?.ok_or_else(|| {
        Error::failed(format!("the store {} is not mounted; mount it with `verfs mount`", store.root().display()))
    })
}
