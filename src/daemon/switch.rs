//! The switch of a mounted store, in the four steps of docs/SEMANTICS.md:
//! open the transition, drop what the kernel holds, swap, tidy.

use super::drops::{Change, Dropper, Drops, Names, Outcome};
use super::{holders, mounts};
use crate::error::{Error, Result};
use crate::fault::{self, Skip};
use crate::fs::{Fs, Release, Transition, View};
use crate::store::Store;
use crate::store::activate::{self, Activation, Request};
use crate::store::active::Active;
use crate::store::journal::{Asker, Line};
use crate::store::lock::Hold;
use crate::store::settings::Settings;
use crate::tree::{NodeId, ReleaseName, name_key};
use parking_lot::{Mutex, RwLock};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a switch did.
#[derive(Clone, Debug)]
pub struct Switched {
    /// The release before.
    pub from: String,
    /// The release now.
    pub to: String,
    /// Changed directory entries.
    pub changed: usize,
    /// How many of them the writable layer hides.
    pub hidden: usize,
    /// Time of the call, without the wait for a second of its own.
    pub call: Duration,
    /// How long the write lock was held for the swap.
    pub swap: Duration,
    /// How long it waited for a second of its own.
    pub waited: Duration,
    /// The second of the last switch that changed content.
    pub second: i64,
    /// Whether the kernel was told everything, or a stuck client keeps the rest for later.
    pub tidy: Outcome,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Switches the mounted store, one switch at a time.
pub struct Switcher {
    store: Store,
    settings: RwLock<Settings>,
    fs: Arc<Fs>,
    dropper: Dropper,
    mountpoint: PathBuf,
    /// Lock order: this one first, then the view lock.
    state: Mutex<State>,
}

struct State {
    active: Active,
    switches: u64,
    /// What a stuck client kept the kernel from forgetting: the next switch begins with it.
    leftover: Drops,
}

/// What of the switcher's state is shown.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What is active.
    pub active: Active,
    /// Switches of this mount.
    pub switches: u64,
    /// Whether a stuck client keeps the kernel from forgetting something.
    pub tidy_pending: bool,
}

impl Switcher {
    /// For a mounted store whose active release is served by `fs`.
    pub fn new(store: Store, fs: Arc<Fs>, dropper: Dropper, mountpoint: PathBuf, active: Active) -> Self {
        let settings = RwLock::new(store.settings().clone());
        let state = Mutex::new(State { active, switches: 0, leftover: Drops::default() });
        Self { store, settings, fs, dropper, mountpoint, state }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &PathBuf {
        &self.mountpoint
    }

    /// Takes other settings into use, from the next switch on.
    pub fn set_settings(&self, settings: Settings) {
        *self.settings.write() = settings;
    }

    /// The settings in use.
    pub fn settings(&self) -> Settings {
        self.settings.read().clone()
    }

    /// What is active. Waits for a switch that is under way.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();
        Snapshot {
            active: state.active.clone(),
            switches: state.switches,
            tidy_pending: !state.leftover.changes.is_empty(),
        }
    }

    /// Switches, and notes it in the journal.
    pub fn switch(&self, request: &Request, message: Option<String>, asker: Asker) -> Result<Switched> {
        let mut state = self.state.lock();
        let from = state.active.release.clone();
        let done = activate::target(&self.store, Some(&state.active), request)
            .and_then(|to| self.switch_to(&mut state, &to, request.rollback));
        let mut line = Line::done(if request.rollback { "rollback" } else { "switch" }, asker);
        line.from = Some(from.clone());
        line.message = message;
        match &done {
            Ok(switched) if switched.from == switched.to => return done,
            Ok(switched) => {
                line.to = Some(switched.to.clone());
                line.switch = Some(state.active.switch);
            }
            // A wrong request changes nothing and is nobody's business later.
            Err(error) if error.is_request() => return done,
            Err(error) => {
                line.to = request.to.as_ref().map(ToString::to_string);
                line.ok = false;
                line.note = Some(error.to_string());
            }
        }
        if let Err(error) = self.store.write_journal(&line) {
            log::error!("{error}");
        }
        done
    }

    fn switch_to(&self, state: &mut State, name: &ReleaseName, rollback: bool) -> Result<Switched> {
        let begun = Instant::now();
        let settings = self.settings();
        let view = self.fs.board.view();
        if view.release.name == *name {
            return Ok(nothing_to_do(state, begun));
        }
        // Until it is active, it must not be removed.
        let _releases = self.store.lock_releases(Hold::Shared)?;
        let new = self.open(&view, name)?;
        self.fs.descriptors.objects().refresh();
        self.store.make_own_layer(name)?;
        let old = view.release.clone();
        let mut prepared = activate::prepare(
            &settings.switch,
            (&state.active, &old.manifest),
            (name, &new.manifest),
            rollback,
            &view.stamps,
        )
        .map_err(|error| way_out(error, &old, name))?;
        prepared.write_stamps(&self.store)?;
        let Activation { active, changes, stamps, waited } = prepared;
        let scopes = self.fs.media.as_ref().map(|media| &media.scopes);
        let change = Arc::new(Change::new(old, new, changes, scopes)?);
        let hidden = self.hidden(&change)?;
        view.stamps.put(&stamps, active.switch);
        let mut warnings = self.warn_of_mounts(&change)?;
        warnings.extend(self.warn_of_scopes(&change.new)?);

        let swapped = self.steps(state, &view, &change, &active, &settings);
        if swapped.is_err() {
            view.stamps.take_back(&stamps, active.switch);
        }
        let (swap, tidy) = swapped?;
        let from = std::mem::replace(&mut state.active, active).release;
        state.switches += 1;
        Ok(Switched {
            from,
            to: name.to_string(),
            changed: change.changes.entries.len(),
            hidden,
            call: begun.elapsed().saturating_sub(waited),
            swap,
            waited,
            second: state.active.second,
            tidy,
            warnings,
        })
    }

    /// The four steps. An error means that the old release is still served.
    fn steps(
        &self,
        state: &mut State,
        view: &View,
        change: &Arc<Change>,
        active: &Active,
        settings: &Settings,
    ) -> Result<(Duration, Outcome)> {
        let barrier = settings.switch.barrier;
        let limit = settings.switch.limit();

        // 1. Open the transition.
        let transition = Arc::new(Transition::new(&change.changes, change.keys()?));
        self.fs.board.hang(view.with_transition(Some(transition.clone())));
        fault::point("switch.opened");

        // 2. Drop what the kernel holds.
        let mut drops = state.leftover.clone();
        drops.changes.push((change.clone(), Names::Changed));
        let dropped = match fault::skips(Skip::Drop) {
            true => Ok(Outcome::Done),
            false => self.dropper.work_off(drops, barrier, limit),
        };
        let forgotten = Instant::now();
        fault::point("switch.dropped");
        let recorded = match dropped {
            Ok(Outcome::Done) => {
                state.leftover = Drops::default();
                // 3. Swap: on disk, then in memory.
                self.store.set_active(active)
            }
            Ok(Outcome::TimedOut) => Err(self.busy(limit)),
            Err(error) => Err(error),
        };
        if let Err(error) = recorded {
            self.fs.board.hang(view.with_transition(None));
            transition.gate.end();
            self.restore_active(&state.active);
            // Names that were told in the transition are forgotten later; until then they hold for no time.
            if !state.leftover.changes.iter().any(|(other, _)| other.is_like(change)) {
                state.leftover.changes.push((change.clone(), Names::Noted));
            }
            state.leftover.entries.extend(noted(change, &transition));
            return Err(error);
        }
        fault::point("switch.recorded");
        let next = view.after(active.switch, change.new.clone(), &change.changes);
        transition.gate.close(settings.switch.settle(), forgotten);
        let swap = self.fs.board.hang(next);
        // Before the tidying: a lookup that waits keeps its directory's lock.
        transition.gate.end();
        fault::point("switch.swapped");

        // 4. Tidy.
        let tidy = Drops { changes: vec![(change.clone(), Names::Noted)], entries: noted(change, &transition) };
        let outcome = match fault::skips(Skip::Tidy) {
            true => Outcome::Done,
            false => self.dropper.work_off(tidy.clone(), barrier, limit).unwrap_or_else(|error| {
                log::error!("after the switch to {}: {error}", active.release);
                Outcome::TimedOut
            }),
        };
        if outcome == Outcome::TimedOut {
            log::warn!(
                "a client keeps the kernel from forgetting names of {}: the next switch does it",
                change.old.name
            );
            state.leftover = tidy;
        }
        fault::point("switch.tidied");
        Ok((swap, outcome))
    }

    /// After a failed write of `active`: the disk may have taken it all the same, and must say what is served.
    fn restore_active(&self, active: &Active) {
        let there = self.store.active();
        if matches!(&there, Ok(Some(there)) if there == active) {
            return;
        }
        if let Err(error) = self.store.set_active(active) {
            log::error!("{error}: the next mount may serve another release than {}", active.release);
        }
    }

    /// The release of this name: one that is mapped already, if it is still the same.
    fn open(&self, view: &View, name: &ReleaseName) -> Result<Arc<Release>> {
        let manifest = self.store.manifest(name)?;
        let known = view.earlier.iter().find(|release| {
            release.name == *name && !release.manifest.is_bad() && release.manifest.identity() == manifest.identity()
        });
        Ok(known.cloned().unwrap_or_else(|| Arc::new(Release { name: name.clone(), manifest })))
    }

    fn busy(&self, limit: Duration) -> Error {
        let holders = holders::lock_holders(&self.mountpoint);
        let names: Vec<String> = holders.iter().map(ToString::to_string).collect();
        let who = match names.len() {
            0 => "a process that could not be found holds a directory's lock".to_owned(),
            _ => format!("{} holds its lock", names.join(", ")),
        };
        Error::busy(format!(
            "busy: the kernel could not drop what changes, and nothing moved for {} ms, because {who}; the old release stays. End that \
             process, or let it go on, and switch again",
            limit.as_millis()
        ))
    }

    /// How many changed names in scopes the writable layer hides.
    fn hidden(&self, change: &Change) -> Result<usize> {
        self.fs.media.as_ref().map_or(Ok(0), |media| change.hidden_by(media))
    }

    /// A scope needs the directory that it lies in.
    fn warn_of_scopes(&self, release: &Release) -> Result<Vec<String>> {
        let warnings = self.fs.media.as_ref().map_or(Ok(Vec::new()), |media| media.unreachable(release))?;
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        Ok(warnings)
    }

    /// A file system mounted on a changed name is unmounted by the kernel when the name goes.
    fn warn_of_mounts(&self, change: &Change) -> Result<Vec<String>> {
        let below = mounts::below(&self.mountpoint)?;
        if below.is_empty() {
            return Ok(Vec::new());
        }
        let changed = change.keys()?;
        let hit = |mountpoint: &&PathBuf| {
            let Ok(path) = mountpoint.strip_prefix(&self.mountpoint) else { return false };
            let path = path.as_os_str().as_encoded_bytes();
            (0..path.len()).chain([path.len()]).filter(|end| *end == path.len() || path[*end] == b'/').any(|end| {
                let start = path[..end].iter().rposition(|b| *b == b'/');
                let dir = NodeId::of_dir(&path[..start.unwrap_or(0)]);
                let name = &path[start.map_or(0, |at| at + 1)..end];
                changed.contains(&name_key(dir, name))
            })
        };
        let warnings: Vec<String> = below
            .iter()
            .filter(hit)
            .map(|path| format!("{} is a mountpoint on a path that changes: the kernel unmounts it", path.display()))
            .collect();
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        Ok(warnings)
    }
}

/// The names that were told in the transition, as the kernel knows their directories.
fn noted(change: &Change, transition: &Transition) -> Vec<(NodeId, Vec<u8>)> {
    transition.noted().into_iter().map(|(dir, name)| (change.known_as(dir), name)).collect()
}

/// What to do when the release that is served cannot be compared with the next one any more.
fn way_out(error: Error, served: &Release, next: &ReleaseName) -> Error {
    match &error {
        Error::Damaged(text) if served.manifest.verify().is_err() => Error::damaged(format!(
            "{text}. It is the release that is served, so it can be left only without a mount: `verfs umount`, `verfs switch \
             {next}`, `verfs mount`"
        )),
        _ => error,
    }
}

fn nothing_to_do(state: &State, begun: Instant) -> Switched {
    Switched {
        from: state.active.release.clone(),
        to: state.active.release.clone(),
        changed: 0,
        hidden: 0,
        call: begun.elapsed(),
        swap: Duration::ZERO,
        waited: Duration::ZERO,
        second: state.active.second,
        tidy: Outcome::Done,
        warnings: Vec::new(),
    }
}
