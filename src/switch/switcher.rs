//! Switches a store, one switch at a time: under its mount, or on disk alone where nobody serves it.

use super::commit::{Commit, End, Tidy};
use super::invalidate::Invalidations;
use super::invalidator::Invalidator;
use super::kernel::Kernel;
use super::let_go::{self, LettingGo, Next};
use super::moment::{Moment, SystemClock, outwait};
use super::plan::Plan;
use super::prepare::Stamped;
use super::publish::{Published, Showing, Snapshot, Stage};
use super::runners::{Disk, LiveRunner};
use super::shadowed::{Looked, MediaDisk};
use super::target::Target;
use super::{busy, journal, mounts};
use crate::error::{Error, Result};
use crate::fs::media::Scopes;
use crate::fs::{Epoch, Fs, Release};
use crate::store::Store;
use crate::store::active::Active;
use crate::store::active::stamps::Stamps;
use crate::store::journal::Asker;
use crate::store::lock::Lock;
use crate::store::release::manifest::{BuildNode, Builder, Manifest};
use crate::store::settings::{Settings, SwitchSettings};
use crate::tree::{Kind, ReleaseName};
use parking_lot::{Mutex, RwLock};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a switch did.
#[derive(Clone, Debug)]
pub struct Switched {
    /// The release before; `None` if this is the first.
    pub from: Option<String>,
    /// The release now.
    pub to: String,
    /// The number of the last switch.
    pub number: u32,
    /// Changed directory entries.
    pub changed: usize,
    /// How many of them the writable layer shadows; `None`: its disk did not say.
    pub shadowed: Option<usize>,
    /// Time of the call, without the wait for a second of its own.
    pub call: Duration,
    /// How long the write lock was held for the swap.
    pub swap: Duration,
    /// How long it waited for a second of its own.
    pub waited: Duration,
    /// The second of the last switch that changed content.
    pub second: i64,
    /// Whether the kernel was told everything, or a stuck client keeps the rest for later.
    pub tidy: Tidy,
    /// Whether the store is mounted; if not, the next mount serves the release.
    pub mounted: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

impl Switched {
    /// Whether there was nothing to do.
    pub fn is_nothing(&self) -> bool {
        self.from.as_ref() == Some(&self.to)
    }
}

/// A mount of the store.
#[derive(Debug)]
pub struct Mount {
    /// What is served.
    pub fs: Arc<Fs>,
    /// The kernel that it is served to.
    pub kernel: Arc<dyn Kernel>,
    /// Where.
    pub mountpoint: PathBuf,
}

/// The mount, with the thread that tells its kernel what to forget.
#[derive(Debug)]
pub(super) struct Mounting {
    pub(super) fs: Arc<Fs>,
    kernel: Arc<dyn Kernel>,
    pub(super) invalidator: Invalidator,
    mountpoint: PathBuf,
}

/// What one switch at a time holds.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) active: Option<Active>,
    /// What a stuck client kept the kernel from forgetting: the next switch begins with it.
    leftover: Invalidations,
    letting_go: LettingGo,
}

/// Switches a store.
#[derive(Debug)]
pub struct Switcher {
    store: Arc<Store>,
    settings: RwLock<Settings>,
    pub(super) served: Option<Mounting>,
    media_disk: MediaDisk,
    pub(super) turn: Mutex<Turn>,
    published: Published,
}

impl Switcher {
    /// For a mounted store whose active release is served.
    pub fn mounted(store: Store, mount: Mount, active: Active) -> Self {
        let Mount { fs, kernel, mountpoint } = mount;
        let invalidator = Invalidator::new(fs.clone(), kernel.clone(), mountpoint.clone());
        Self::new(Arc::new(store), Some(Mounting { fs, kernel, invalidator, mountpoint }), Some(active))
    }

    /// For a store that nobody serves; the lock keeps it so.
    pub fn unmounted(store: &Store, _lock: &Lock) -> Result<Self> {
        let store = Arc::new(Store::open(store.root())?);
        store.recover_active()?;
        store.mend_journal()?;
        let active = store.active()?;
        Ok(Self::new(store, None, active))
    }

    fn new(store: Arc<Store>, served: Option<Mounting>, active: Option<Active>) -> Self {
        Self {
            settings: RwLock::new(store.settings().clone()),
            served,
            media_disk: MediaDisk::new(store.clone()),
            published: Published::new(active.clone()),
            turn: Mutex::new(Turn { active, leftover: Invalidations::default(), letting_go: LettingGo::default() }),
            store,
        }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Takes other settings into use, from the next switch on.
    pub fn set_settings(&self, settings: Settings) {
        *self.settings.write() = settings;
    }

    /// The settings in use.
    pub fn settings(&self) -> Settings {
        self.settings.read().clone()
    }

    /// What is active, and the switch that is under way. Waits for nobody.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.load()
    }

    /// Switches, and notes it in the journal.
    pub fn switch(&self, target: &Target, message: Option<String>, asker: Asker) -> Result<Switched> {
        let mut turn = self.turn.lock();
        let before = turn.active.clone();
        let resolved = target.resolve(&self.store, before.as_ref());
        let mut result = resolved.and_then(|to| self.switch_to(&mut turn, &to, target.rollback));
        let line = journal::line(target, before.as_ref(), message, asker, &result);
        let warning = line.and_then(|line| journal::write(&self.store, &line));
        if let (Ok(switched), Some(warning)) = (&mut result, warning) {
            switched.warnings.push(warning);
        }
        // What is written after the answer has a later second than what the switch shows.
        let arrival = turn.active.as_ref().and_then(|active| active.arrival);
        if let (Ok(switched), Some(arrival), false) = (&mut result, arrival, self.settings().switch.share_second)
            && !switched.is_nothing()
        {
            let waiting = Instant::now();
            outwait(arrival, &SystemClock);
            switched.waited += waiting.elapsed();
        }
        result
    }

    fn switch_to(&self, turn: &mut Turn, name: &ReleaseName, rollback: bool) -> Result<Switched> {
        let begun = Instant::now();
        turn.letting_go.forget(name);
        if let Some(active) = turn.active.as_ref().filter(|active| active.release == name.as_str()) {
            return Ok(self.nothing_to_do(active, begun));
        }
        let from = turn.active.as_ref().map(|active| active.release.clone());
        let showing = self.published.begin(from.clone(), name.to_string(), crate::store::now());
        let settings = self.settings().switch;
        let (plan, shadowed) = self.plan(turn, name, rollback)?;
        let (changed, warnings) = (plan.changed(), plan.warnings.clone());
        let stamps = plan.before.as_ref().map(|before| before.epoch.stamps.clone());
        let prepared = plan.prepare(&self.store)?;
        showing.stage(Stage::Second);
        let waiting = Instant::now();
        let moment = prepared.own_moment(settings.share_second, &SystemClock)?;
        let waited = waiting.elapsed();
        let stamped = prepared.stamp(&self.store, moment)?.sharing(settings.share_second);
        let (swap, tidy) = self.commit(turn, stamped, &settings, &showing)?;
        let call = begun.elapsed().saturating_sub(waited);
        self.tidy_store(turn, stamps.as_deref());
        Ok(Switched {
            from,
            to: name.to_string(),
            number: moment.switch,
            changed,
            shadowed,
            call,
            swap,
            waited,
            second: moment.second,
            tidy,
            mounted: self.served.is_some(),
            warnings,
        })
    }

    /// The switch has happened, and no visitor waits for this.
    fn tidy_store(&self, turn: &Turn, stamps: Option<&Stamps>) {
        let served = |each: &mut dyn FnMut(Option<&Manifest>)| {
            let releases = self.served.as_ref().map_or(Vec::new(), |served| served.fs.releases());
            releases.iter().for_each(|release| each(Some(&release.manifest)));
        };
        if let (Some(active), Some(stamps)) = (&turn.active, stamps)
            && let Err(error) = self.store.tidy_active(active, stamps, served)
        {
            log::warn!("{error}; the next switch tries again");
        }
    }

    /// Lets go of removed releases that the kernel holds nothing of. It has the turn for some milliseconds at a time,
    /// and waits for a directory's lock without it: so only from a thread of its own.
    pub fn let_go(&self) -> Result<()> {
        let Some(Mounting { fs, kernel, mountpoint, .. }) = &self.served else { return Ok(()) };
        let mut mounted = None;
        loop {
            let next = self.turn.lock().letting_go.some(fs, &**kernel, &self.store)?;
            match next {
                Next::Rest => return Ok(()),
                Next::Search => {}
                Next::Drop(held) => {
                    // What is mounted there would be unmounted.
                    let shown = mountpoint.join(OsStr::from_bytes(&held.path));
                    let mounted = match &mounted {
                        Some(mounted) => mounted,
                        None => mounted.insert(mounts::below(mountpoint)?),
                    };
                    if !mounted.iter().any(|mounted| mounted.starts_with(&shown)) {
                        kernel.drop_entry(held.dir, &held.name)?;
                    }
                }
            }
        }
    }

    /// Whether the store still has a release as it is mounted.
    pub fn is_there(&self, release: &Release) -> Result<bool> {
        let_go::is_there(&self.store, release)
    }

    fn nothing_to_do(&self, active: &Active, begun: Instant) -> Switched {
        Switched {
            from: Some(active.release.clone()),
            to: active.release.clone(),
            number: active.switch,
            changed: 0,
            shadowed: Some(0),
            call: begun.elapsed(),
            swap: Duration::ZERO,
            waited: Duration::ZERO,
            second: active.second,
            tidy: Tidy::Done,
            mounted: self.served.is_some(),
            warnings: Vec::new(),
        }
    }

    /// The plan, and how many of its names media shadows.
    fn plan(&self, turn: &Turn, name: &ReleaseName, rollback: bool) -> Result<(Plan, Option<usize>)> {
        let manifest = self.store.manifest(name)?;
        let Some(active) = &turn.active else {
            return Ok((Plan::first(Arc::new(Release { name: name.clone(), manifest })), Some(0)));
        };
        let (mut plan, looked) = match &self.served {
            Some(Mounting { fs, mountpoint, .. }) => {
                let epoch = fs.epochs.load();
                let to = mapped(&epoch, name, manifest);
                let scopes = fs.media.as_ref().map(|media| &media.scopes);
                let mut plan = Plan::new(active.clone(), epoch, to, rollback, scopes)?;
                fs.descriptors.objects().refresh()?;
                plan.warn_of_mounts(mountpoint, &mounts::below(mountpoint)?)?;
                for warning in fs.media.as_ref().map_or(Ok(Vec::new()), |media| media.unreachable(&plan.to))? {
                    plan.warn(warning);
                }
                let looked = self.media_disk.before_switch(fs, name, plan.scoped_paths()?)?;
                (plan, looked)
            }
            None => {
                let epoch = Arc::new(epoch_on_disk(&self.store, active)?);
                let to = Arc::new(Release { name: name.clone(), manifest });
                let scopes = Scopes::new(&self.store.settings().scopes);
                let plan = Plan::new(active.clone(), epoch, to, rollback, Some(&scopes))?;
                let looked = self.media_disk.unserved(plan.scoped_paths()?)?;
                (plan, looked)
            }
        };
        let Looked { shadowed, warning } = looked;
        warning.into_iter().for_each(|warning| plan.warn(warning));
        Ok((plan, shadowed))
    }

    /// The commit; gives how long the swap took.
    fn commit(
        &self,
        turn: &mut Turn,
        stamped: Stamped,
        settings: &SwitchSettings,
        showing: &Showing<'_>,
    ) -> Result<(Duration, Tidy)> {
        let mut disk = Disk { store: &self.store, recorded: stamped.active().clone() };
        let (end, swap, recorded) = match &self.served {
            None => (stamped.commit().run(&mut disk).0, Duration::ZERO, disk.recorded),
            Some(served) => {
                let commit: Commit = stamped.commit_served(turn.leftover.clone())?;
                let mut live = LiveRunner::new(disk, served, settings, showing);
                let (end, leftover) = commit.run(&mut live);
                showing.tidy_pending(!leftover.is_empty());
                turn.leftover = leftover;
                (end, live.swap, live.disk.recorded)
            }
        };
        match end {
            End::Switched(tidy) => {
                turn.active = Some(recorded);
                Ok((swap, tidy))
            }
            End::Busy => Err(self.busy(settings.limit())),
            End::Failed(error) => Err(error),
        }
    }

    fn busy(&self, limit: Duration) -> Error {
        let holders = self.served.as_ref().map_or(Vec::new(), |served| busy::lock_holders(&served.mountpoint));
        let names: Vec<String> = holders.iter().map(ToString::to_string).collect();
        let who = match names.len() {
            0 => "a process that could not be found holds a directory's lock".to_owned(),
            _ => format!("{} holds its lock", names.join(", ")),
        };
        Error::busy(format!(
            "busy: the kernel could not drop what changes, and nothing moved for {} ms, because {who}; the old \
             release stays. End that process, or let it go on, and switch again",
            limit.as_millis()
        ))
    }
}

/// The release of this manifest: one that is mapped already, if it is still the same.
fn mapped(epoch: &Epoch, name: &ReleaseName, manifest: Manifest) -> Arc<Release> {
    let known = epoch.earlier.iter().find(|release| {
        release.name == *name && !release.manifest.is_bad() && release.manifest.identity() == manifest.identity()
    });
    known.cloned().unwrap_or_else(|| Arc::new(Release { name: name.clone(), manifest }))
}

/// What would be served of a store. If the manifest of its release cannot be read any more, everything counts as
/// changed.
fn epoch_on_disk(store: &Store, active: &Active) -> Result<Epoch> {
    let name = active.release()?;
    let path = store.manifest_path(&name);
    let manifest = match Manifest::open(&path).and_then(|manifest| manifest.verify().map(|()| manifest)) {
        Ok(manifest) => manifest,
        Err(error) => {
            log::warn!("{error}");
            let root = BuildNode::new(b"", Kind::Dir, 0o755);
            Manifest::from_bytes(Builder::new(root).encode(0)?, &path)?
        }
    };
    let stamps = Arc::new(store.read_stamps(active.stamps_len)?);
    Ok(Epoch::new(active.switch, Arc::new(Release { name, manifest }), stamps))
}

/// The first release of a store, which becomes active when it is mounted.
#[derive(Debug)]
pub struct First(Stamped);

impl First {
    /// The newest release of a store; `None` if one is active already.
    pub fn prepare(store: &Store) -> Result<Option<Self>> {
        if store.active()?.is_some() {
            return Ok(None);
        }
        let name = store.newest()?.ok_or_else(|| {
            Error::request(format!(
                "the store {} has no release yet; add one with `verfs add NAME SOURCE`",
                store.root().display()
            ))
        })?;
        let manifest = store.manifest(&name)?;
        let plan = Plan::first(Arc::new(Release { name, manifest }));
        plan.prepare(store)?.stamp(store, Moment::first(&SystemClock)).map(|stamped| Some(Self(stamped)))
    }

    /// What will be active.
    pub fn active(&self) -> &Active {
        self.0.active()
    }

    /// Makes it so, and notes it.
    pub fn commit(self, store: &Store) -> Result<()> {
        let line = journal::first_line(self.active());
        let mut disk = Disk { store, recorded: self.active().clone() };
        match self.0.commit().run(&mut disk).0 {
            End::Failed(error) => Err(error),
            End::Switched(_) | End::Busy => store.write_journal(&line),
        }
    }
}
