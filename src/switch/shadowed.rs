//! Work on the disk of media before a switch: changed names that media shadows are counted, and the release's own layer
//! is made. It may be another disk than the store's; when it stands still, the switch goes on.

use super::aside::Aside;
use crate::error::{Error, Result};
use crate::fs::media::Rights;
use crate::fs::refused::Refused;
use crate::fs::{Fs, Media};
use crate::store::Store;
use crate::store::media::home::Home;
use crate::tree::ReleaseName;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long the disk may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The writable layer of a store that nobody serves.
pub fn media_of(store: &Store) -> Result<Media> {
    let scopes = &store.settings().scopes;
    let home = Home::open(store.media_home(), scopes)?;
    Ok(Media::new(scopes, home, Arc::new(Refused::default()), Rights::Modes))
}

/// The disk of the writable layer.
#[derive(Debug)]
pub(super) struct MediaDisk {
    store: Arc<Store>,
    aside: Aside,
    /// Releases whose own layers are still to be made.
    wanted: Arc<Mutex<BTreeSet<ReleaseName>>>,
}

/// What the disk said.
pub(super) struct Looked {
    /// How many names it shadows; `None`: it does not say.
    pub shadowed: Option<usize>,
    /// Why it does not.
    pub warning: Option<String>,
}

impl MediaDisk {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store, aside: Aside::default(), wanted: Arc::default() }
    }

    /// Makes the own layer of the release that comes, and counts which of these names the layer that `fs` serves
    /// shadows. Without either to do the disk is not asked: on a busy machine a thread costs some milliseconds.
    pub(super) fn before_switch(&self, fs: &Arc<Fs>, next: &ReleaseName, paths: Vec<Vec<u8>>) -> Result<Looked> {
        let own_layers = self.store.settings().scopes.iter().any(|scope| scope.per_release);
        if fs.media.is_none() || (paths.is_empty() && !own_layers) {
            return Ok(Looked { shadowed: Some(0), warning: None });
        }
        self.wanted.lock().insert(next.clone());
        let (fs, store, wanted) = (fs.clone(), self.store.clone(), self.wanted.clone());
        self.look(move || {
            let Some(media) = &fs.media else { return Ok(Ok(0)) };
            make_own_layers(media, &store, &wanted)?;
            let shadowed = count(media, &paths);
            // Another switch may have asked while the disk stood still.
            make_own_layers(media, &store, &wanted)?;
            Ok(shadowed)
        })
    }

    /// Counts which of these names the layer of a store that nobody serves shadows.
    pub(super) fn unserved(&self, paths: Vec<Vec<u8>>) -> Result<Looked> {
        if paths.is_empty() {
            return Ok(Looked { shadowed: Some(0), warning: None });
        }
        let store = self.store.clone();
        self.look(move || Ok(media_of(&store).and_then(|media| count(&media, &paths))))
    }

    fn look(&self, question: impl FnOnce() -> Result<Result<usize>> + Send + 'static) -> Result<Looked> {
        let home = self.store.media_home().display();
        let unknown =
            |why: String| Looked { shadowed: None, warning: Some(format!("what media shadows is not known: {why}")) };
        Ok(match self.aside.ask(PATIENCE, question)? {
            Some(Ok(shadowed)) => Looked { shadowed: Some(shadowed), warning: None },
            Some(Err(error)) => unknown(error.to_string()),
            None => unknown(format!(
                "the disk of {home} has not answered for {} s. Release files are served; what needs that disk waits \
                 for it",
                PATIENCE.as_secs()
            )),
        })
    }
}

fn count(media: &Media, paths: &[Vec<u8>]) -> Result<usize> {
    let mut shadowed = 0;
    for path in paths {
        shadowed += usize::from(media.shadows(path)?);
    }
    Ok(shadowed)
}

/// Makes all that are wanted. One that fails is no longer wanted: its release does not become active.
fn make_own_layers(media: &Media, store: &Store, wanted: &Mutex<BTreeSet<ReleaseName>>) -> Result<()> {
    loop {
        let Some(release) = wanted.lock().pop_first() else { return Ok(()) };
        media
            .make_own_layer(&release, &store.settings().scopes)
            .map_err(|error| Error::failed(format!("the own layer of {release} cannot be made: {error}")))?;
    }
}
