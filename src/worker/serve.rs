//! The life of a mount: checks, lock, mount, socket, signals, end.

use super::invalidate::Invalidator;
use super::mounts;
use super::service::Service;
use super::switch::Switcher;
use crate::control::client::Client;
use crate::control::protocol::Request;
use crate::control::server::Server;
use crate::error::{Context, Error, Result};
use crate::fs::media::Rights;
use crate::fs::refused::Refused;
use crate::fs::{Epoch, Fs, Media, Release};
use crate::fuse::{self, Kernel, MountOptions};
use crate::store::active::activate;
use crate::store::active::activate::Activation;
use crate::store::journal::{Asker, Line};
use crate::store::lock::{Hold, Lock};
use crate::store::media::home::Home;
use crate::store::release::import;
use crate::store::release::objects::Objects;
use crate::store::{Store, look};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a daemon that was killed may take to let go of its store.
const DYING: Duration = Duration::from_secs(5);
/// How long a daemon that lives may take to say so.
const ANSWER: Duration = Duration::from_secs(2);

/// How far the kernel reads ahead, in KiB: as much as one READ may ask for. By itself it takes 128, an eighth.
const READ_AHEAD: u32 = 1024;

/// How a store is to be mounted.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub mountpoint: PathBuf,
    /// Mount over a directory that is not empty.
    pub over: bool,
    /// No execution of files.
    pub noexec: bool,
}

/// A mount that answers.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The release that is served.
    pub release: String,
    /// Where, without symlinks.
    pub mountpoint: PathBuf,
}

enum Event {
    Ended,
    Signal(i32),
}

/// Mounts a store and serves it until it is unmounted. `ready` is called once it answers.
pub fn serve(store: Store, options: &Options, ready: impl FnOnce(&Ready)) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::failed("mounting needs root: it makes a mount that everybody can use; run it with sudo"));
    }
    let lock = take_lock(&store)?;
    let mountpoint = check_mountpoint(&store, options)?;
    let _media_lock = lock_media(&store)?;
    if !look::is_there(Path::new("/dev/fuse"))? {
        return Err(Error::failed("there is no /dev/fuse; load it with `modprobe fuse`, or give it to the container"));
    }
    for path in import::sweep(&store)? {
        log::info!("removed {}, left by an interrupted command", path.display());
    }
    store.mend_journal()?;
    crate::store::durable::make_reserve(store.dir())?;

    let first = first_release(&store)?;
    let active = match &first {
        Some(first) => first.active.clone(),
        None => store.active()?.ok_or_else(|| Error::failed("the active release went away"))?,
    };
    let epoch = Epoch::first(&store, &active)?;
    let name = epoch.release.name.clone();
    let refused = Arc::new(Refused::default());
    let media = media(&store, &epoch.release, refused.clone())?;
    let settings = store.settings().clone();
    let objects = Objects::of(store.root())?;
    let descriptors = room_for_descriptors(settings.serve.descriptors, objects.packs().len() as u64);
    let root = File::open(store.root()).context(|| format!("opening {}", store.root().display()))?;
    let fs = Arc::new(Fs::new(epoch, objects, root, descriptors, media, refused));
    let how = MountOptions {
        source: store.root().display().to_string(),
        threads: settings.serve.threads,
        noexec: options.noexec,
        acls: settings.serve.acls && fs.media.is_some(),
    };
    let group = group_id(&settings.access.group)?;
    let socket = store.socket_path();
    let mut server = Server::bind(&socket, group)?;
    let session = fuse::mount(fs.clone(), &mountpoint, &how)?;
    if let Err(error) = mounts::set_read_ahead(&mountpoint, READ_AHEAD) {
        log::debug!("large files are read in smaller pieces: {error}");
    }
    if let Some(first) = &first {
        // Only now: a mount that fails changes nothing.
        note_first(&store, first)?;
    }
    tend(&fs, session.kernel.clone())?;
    let invalidator = Invalidator::new(session.kernel.clone(), mountpoint.clone());
    let switcher = Switcher::new(store, fs.clone(), invalidator, mountpoint.clone(), active);
    let service = Arc::new(Service::new(switcher, fs, session.kernel.clone()));
    server.serve(service.clone())?;

    let (events, coming) = channel();
    watch_signals(events.clone())?;
    let waiter = std::thread::Builder::new()
        .name("verfs-session".into())
        .spawn(move || {
            let end = session.join();
            let _ = events.send(Event::Ended);
            end
        })
        .context(|| "starting a thread")?;
    log::info!("serving {name} on {}", mountpoint.display());
    ready(&Ready { release: name.to_string(), mountpoint: mountpoint.clone() });
    wait_for_end(&coming, &service);

    server.shutdown();
    let end = match waiter.is_finished() {
        true => waiter.join().unwrap_or_else(|_| Err(Error::failed("the session died"))),
        // Detached and still held by somebody: the process ends all the same.
        false => Ok(()),
    };
    drop(lock);
    log::info!("{} is unmounted", mountpoint.display());
    end
}

/// The writable layer, if the store has scopes.
fn media(store: &Store, release: &Release, refused: Arc<Refused>) -> Result<Option<Media>> {
    let scopes = &store.settings().scopes;
    if scopes.is_empty() {
        return Ok(None);
    }
    // With it the disk's reserve for root would be everybody's who writes through us (setfsuid(2) leaves it in place).
    drop_capability(CapabilitySet::SYS_RESOURCE)?;
    // Modes come from the kernel with the caller's umask taken off.
    rustix::process::umask(rustix::fs::Mode::empty());
    store.make_layer()?;
    store.make_own_layer(&release.name)?;
    let home = Home::open(store.media_home())?;
    home.sweep()?;
    let rights = if store.settings().serve.acls { Rights::Acls } else { Rights::Modes };
    let media = Media::new(scopes, home, refused, rights);
    media.unreachable(release)?.iter().for_each(|warning| log::warn!("{warning}"));
    Ok(Some(media))
}

/// Gives up a capability, before any other thread is there: threads have their own.
fn drop_capability(which: CapabilitySet) -> Result<()> {
    let what = || "giving up a capability";
    let mut sets = capabilities(None).context(what)?;
    sets.effective.remove(which);
    sets.permitted.remove(which);
    set_capabilities(None, sets).context(what)
}

/// What is needed beside requests: faults are tried again; and of the writable layer, pages dropped that somebody
/// changed behind the mount, idle descriptors closed, and its scopes measured.
fn tend(fs: &Arc<Fs>, kernel: Arc<OnceLock<Kernel>>) -> Result<()> {
    now_and_then("verfs-faults", fs, Fs::probe_faults)?;
    let Some(media) = &fs.media else { return Ok(()) };
    media.on_change_behind(move |node| {
        if let Some(kernel) = kernel.get() {
            kernel.drop_pages_later(node);
        }
    });
    now_and_then("verfs-idle", fs, |fs| fs.media.iter().for_each(Media::close_idle))?;
    now_and_then("verfs-usage", fs, |fs| fs.media.iter().for_each(Media::measure))
}

/// Does something twice a second, as long as the mount is there, in a thread of its own: a disk may keep it waiting.
fn now_and_then(thread: &str, fs: &Arc<Fs>, work: fn(&Fs)) -> Result<()> {
    let fs = Arc::downgrade(fs);
    std::thread::Builder::new()
        .name(thread.into())
        .spawn(move || {
            while let Some(fs) = fs.upgrade() {
                work(&fs);
                drop(fs);
                std::thread::sleep(Duration::from_millis(500));
            }
        })
        .context(|| "starting a thread")?;
    Ok(())
}

/// How many objects can be kept open under the limit of open files, beside the packs.
fn room_for_descriptors(wanted: usize, packs: u64) -> usize {
    /// What is open beside objects: clients of the socket, manifests being opened, the log.
    const OTHERS: u64 = 300;
    let room =
        getrlimit(Resource::Nofile).current.map_or(usize::MAX, |most| most.saturating_sub(OTHERS + packs) as usize);
    if room < wanted {
        log::warn!("serve.descriptors = {wanted} is more than the limit of open files allows: {room} are kept open");
    }
    room.min(wanted)
}

fn wait_for_end(coming: &Receiver<Event>, service: &Service) {
    while let Ok(event) = coming.recv() {
        match event {
            Event::Ended => return,
            Event::Signal(SIGHUP) => {
                if let Err(error) = service.reload() {
                    log::error!("{error}");
                }
            }
            Event::Signal(_) => {
                let Err(busy) = service.unmount(false) else { continue };
                log::warn!("{busy}; ending all the same");
                if let Err(error) = service.unmount(true) {
                    log::error!("{error}");
                }
                // Whoever still holds a file gets a moment to let go.
                let _ = coming.recv_timeout(Duration::from_secs(2));
                return;
            }
        }
    }
}

fn watch_signals(events: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context(|| "watching for signals")?;
    std::thread::Builder::new()
        .name("verfs-signals".into())
        .spawn(move || {
            for signal in &mut signals {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })
        .context(|| "starting a thread")?;
    Ok(())
}

/// One daemon per store, and no switch without it meanwhile.
fn take_lock(store: &Store) -> Result<Lock> {
    let begun = Instant::now();
    let pid = loop {
        if let Some(lock) = store.lock_active()? {
            return Ok(lock);
        }
        // Who answers keeps the store; one that was killed lets go of it in a moment. Until then the kernel still takes
        // connections for it.
        let pid = server_pid(store).unwrap_or_else(|error| {
            log::debug!("{error}");
            None
        });
        if pid.is_some() || begun.elapsed() > DYING {
            break pid;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let who = pid.map_or_else(|| "another verfs".to_owned(), |pid| format!("process {pid}"));
    Err(Error::failed(format!(
        "the store {} is in use by {who}; it can be mounted once: see `verfs status --store {0}`",
        store.root().display()
    )))
}

/// The process that serves the store and answers.
fn server_pid(store: &Store) -> Result<Option<i32>> {
    let Some(mut client) = Client::connect(&store.socket_path())? else { return Ok(None) };
    client.call(&Request::Status, ANSWER)?;
    client.server_pid().map(Some)
}

/// One daemon per writable layer: two stores may name the same directory for theirs.
fn lock_media(store: &Store) -> Result<Option<Lock>> {
    let home = store.media_home();
    if home == store.root() {
        return Ok(None);
    }
    store.make_layer()?;
    match Lock::try_take(&home.join("orphans"), Hold::Exclusive)? {
        Some(lock) => Ok(Some(lock)),
        None => Err(Error::failed(format!(
            "{} is in use as the writable layer of another store; name another directory in verfs.toml (media)",
            home.display()
        ))),
    }
}

fn check_mountpoint(store: &Store, options: &Options) -> Result<PathBuf> {
    let given = &options.mountpoint;
    clear_stale(store, given)?;
    let real = std::fs::canonicalize(given).map_err(|error| {
        Error::request(format!("the mountpoint {} cannot be used: {error}; make it with mkdir -p", given.display()))
    })?;
    if !look::is_dir(&real)? {
        return Err(Error::request(format!("the mountpoint {} is not a directory", given.display())));
    }
    if mounts::kind_on(&real)?.as_deref() == Some("fuse.verfs") {
        return Err(Error::request(format!("{} has a verfs mount already; `verfs umount {0}` first", real.display())));
    }
    if store.root().starts_with(&real) || real.starts_with(store.root()) {
        return Err(Error::request(format!(
            "the store {} and the mountpoint {} lie one inside the other; use two separate directories",
            store.root().display(),
            real.display()
        )));
    }
    let inside = look::entries(&real)?.unwrap_or_default();
    if !inside.is_empty() && !options.over {
        return Err(Error::request(format!(
            "the mountpoint {} is not empty; say --over to hide what is in it, or use an empty directory",
            real.display()
        )));
    }
    Ok(real)
}

/// Takes stale mounts away: those of our own store, whose lock we hold, so that nobody serves them; and whatever of
/// verfs on the mountpoint answers ENOTCONN, because its daemon died.
fn clear_stale(store: &Store, mountpoint: &Path) -> Result<()> {
    let clear = |mountpoint: &Path| -> Result<()> {
        let what = || format!("clearing the stale mount on {}", mountpoint.display());
        unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).context(what)?;
        log::warn!("cleared the stale mount on {}", mountpoint.display());
        Ok(())
    };
    for mount in mounts::mounted()?.iter().rev().filter(|mount| mount.store == store.root()) {
        clear(&mount.mountpoint)?;
    }
    while let Err(rustix::io::Errno::NOTCONN) = rustix::fs::stat(mountpoint) {
        clear(mountpoint)?;
    }
    Ok(())
}

/// If no release was ever active, the newest becomes it.
fn first_release(store: &Store) -> Result<Option<Activation>> {
    if store.active()?.is_some() {
        return Ok(None);
    }
    let newest = store.newest()?.ok_or_else(|| {
        Error::request(format!(
            "the store {} has no release yet; add one with `verfs add NAME SOURCE`",
            store.root().display()
        ))
    })?;
    Ok(Some(activate::first(&newest)))
}

fn note_first(store: &Store, first: &Activation) -> Result<()> {
    first.record(store)?;
    let mut line = Line::done("switch", Asker::this_process());
    line.to = Some(first.active.release.clone());
    line.switch = Some(first.active.switch);
    line.note = Some("first release to be mounted".to_owned());
    store.write_journal(&line)
}

fn group_id(name: &str) -> Result<Option<u32>> {
    if name.is_empty() {
        return Ok(None);
    }
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
        Err(error) => Err(Error::io(format!("looking for the group {name:?}"), error)),
        Ok(None) => Err(Error::request(format!("there is no group {name:?} (access.group in verfs.toml)"))),
    }
}
