//! The life of a mount: what it needs is prepared, then it runs, then it ends.

use super::service::Service;
use crate::control::client::Client;
use crate::control::listener::Listener;
use crate::control::server::{Limits, Server};
use crate::error::{Context, Error, Result};
use crate::fs::media::Rights;
use crate::fs::refused::Refused;
use crate::fs::{Epoch, Fs, Media, Release};
use crate::fuse::{Connection, MountOptions, Mountpoint, PageDropper};
use crate::protocol::request;
use crate::store::active::Active;
use crate::store::lock::Lock;
use crate::store::media::home::Home;
use crate::store::release::import;
use crate::store::release::objects::Objects;
use crate::store::{Store, look};
use crate::switch::{First, Kernel, Mount, Switcher, below, kind_on, mounted, set_read_ahead};
use crate::sys::{give_memory_back, log_panics, to_the_end};
use crate::tree::ReleaseName;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a daemon that was killed may take to let go of its store.
const DYING: Duration = Duration::from_secs(5);
/// How long a daemon that lives may take to say so.
const ANSWER: Duration = Duration::from_secs(2);

/// How far the kernel reads ahead, in KiB: as much as one READ may ask for. By itself it takes 128, an eighth.
const READ_AHEAD: u32 = 1024;

/// How a store is to be mounted.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Where.
    pub mountpoint: PathBuf,
    /// Mount over a directory that is not empty.
    pub over: bool,
    /// No execution of files.
    pub noexec: bool,
}

/// A mount that answers.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
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
pub(crate) fn serve(store: Store, options: &Options, ready: impl FnOnce(&Ready)) -> Result<()> {
    log_panics();
    give_memory_back();
    let prepared = prepare(store, options)?;
    let group = group_id(&prepared.store.settings().access.group)?;
    let listener = Listener::bind(&prepared.store.socket_path(), group)?;
    let connection = Connection::mount(prepared.fs.clone(), prepared.mountpoint.clone(), &prepared.how)?;
    let running = run(prepared, connection, listener)?;
    ready(&running.ready);
    wait_for_end(&running.coming, &running.service);
    end(running)
}

/// A store that can be served: locked, swept, its release and its writable layer open. Nothing can be seen of it yet.
struct Prepared {
    store: Store,
    fs: Arc<Fs>,
    name: ReleaseName,
    active: Active,
    /// If no release was ever active.
    first: Option<First>,
    mountpoint: Arc<Mountpoint>,
    how: MountOptions,
    locks: Locks,
}

/// What keeps others off the store and its writable layer.
struct Locks {
    _store: Lock,
    _media: Option<Lock>,
}

fn prepare(store: Store, options: &Options) -> Result<Prepared> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::failed("mounting needs root: it makes a mount that everybody can use; run it with sudo"));
    }
    let store_lock = take_lock(&store)?;
    let mountpoint = check_mountpoint(&store, options)?;
    let home = writable_layer(&store)?;
    let locks = Locks { _store: store_lock, _media: lock_media(&store, home.as_ref())? };
    if !look::is_there(Path::new("/dev/fuse"))? {
        return Err(Error::failed("there is no /dev/fuse; load it with `modprobe fuse`, or give it to the container"));
    }
    for path in import::sweep(&store)? {
        log::info!("removed {}, left by an interrupted command", path.display());
    }
    store.recover_active()?;
    store.mend_journal()?;
    crate::store::durable::make_reserve(store.dir())?;

    let first = First::prepare(&store)?;
    let active = match &first {
        Some(first) => first.active().clone(),
        None => store.active()?.ok_or_else(|| Error::failed("the active release went away"))?,
    };
    let epoch = Epoch::first(&store, &active)?;
    let name = epoch.release.name.clone();
    let refused = Arc::new(Refused::default());
    let media = home.map(|home| media(&store, home, &epoch.release, refused.clone())).transpose()?.flatten();
    let settings = &store.settings().serve;
    let objects = Objects::of(store.root())?;
    let descriptors = room_for_descriptors(settings.descriptors, objects.packs().len() as u64);
    let root = File::open(store.root()).context(|| format!("opening {}", store.root().display()))?;
    let how = MountOptions {
        source: store.root().display().to_string(),
        threads: settings.threads,
        noexec: options.noexec,
        acls: settings.acls && media.is_some(),
    };
    let fs = Arc::new(Fs::new(epoch, objects, root, descriptors, media, refused));
    Ok(Prepared { store, fs, name, active, first, mountpoint, how, locks })
}

/// A mount that answers, the kernel and the control socket.
struct Running {
    service: Arc<Service>,
    server: Server,
    /// Waits for the end of the mount.
    session: JoinHandle<Result<()>>,
    coming: Receiver<Event>,
    ready: Ready,
    locks: Locks,
}

/// Serves what was prepared: to the kernel on this connection, to commands at this socket.
fn run(prepared: Prepared, connection: Connection, listener: Listener) -> Result<Running> {
    let Prepared { store, fs, name, active, first, mountpoint, locks, .. } = prepared;
    let (kernel, pages) = (connection.kernel(), connection.pages());
    let serving = connection.serve()?;
    if let Err(error) = mountpoint.device().and_then(|device| set_read_ahead(device, READ_AHEAD)) {
        log::debug!("large files are read in smaller pieces: {error}");
    }
    if let Some(first) = first {
        // Only now: a mount that fails changes nothing.
        first.commit(&store)?;
    }
    tend(&fs, pages)?;
    drop_unused(&fs, &kernel, mountpoint.path())?;
    let mount = Mount { fs: fs.clone(), kernel: kernel.clone(), mountpoint: mountpoint.path().to_owned() };
    let switcher = Switcher::mounted(store, mount, active);
    let service = Arc::new(Service::new(switcher, fs.clone(), kernel, mountpoint.clone()));
    let letting_go = Arc::downgrade(&service);
    let let_go = move |_: &Fs| letting_go.upgrade().map_or(Ok(()), |service| service.let_go());
    now_and_then("verfs-releases", Arc::downgrade(&fs), let_go)?;
    let server = Server::start(listener, Limits::default(), service.clone())?;

    let (events, coming) = channel();
    watch_signals(events.clone())?;
    let session = std::thread::Builder::new()
        .name("verfs-session".into())
        .spawn(move || {
            let end = serving.join();
            let _ = events.send(Event::Ended);
            end
        })
        .context(|| "starting a thread")?;
    log::info!("serving {name} on {}", mountpoint.path().display());
    let ready = Ready { release: name.to_string(), mountpoint: mountpoint.path().to_owned() };
    Ok(Running { service, server, session, coming, ready, locks })
}

/// Answers what was asked, and lets go of the store.
fn end(running: Running) -> Result<()> {
    let Running { mut server, session, ready, locks, .. } = running;
    server.shutdown();
    let end = match session.is_finished() {
        true => session.join().unwrap_or_else(|_| Err(Error::failed("the session died"))),
        // Detached and still held by somebody: the process ends all the same.
        false => Ok(()),
    };
    drop(locks);
    log::info!("{} is unmounted", ready.mountpoint.display());
    end
}

/// The directories of the writable layer, if the store has scopes or names a place for it.
fn writable_layer(store: &Store) -> Result<Option<Home>> {
    if store.settings().scopes.is_empty() && store.settings().media.is_none() {
        return Ok(None);
    }
    // Modes come from the kernel with the caller's umask taken off.
    rustix::process::umask(rustix::fs::Mode::empty());
    store.make_layer().map(Some)
}

/// The writable layer, if the store has scopes.
fn media(store: &Store, home: Home, release: &Release, refused: Arc<Refused>) -> Result<Option<Media>> {
    let scopes = &store.settings().scopes;
    if scopes.is_empty() {
        return Ok(None);
    }
    // With it every writer through the mount would get the disk's reserve for root (setfsuid(2) leaves it in place).
    drop_capability(CapabilitySet::SYS_RESOURCE)?;
    home.make_own_layer(&release.name, scopes)?;
    home.sweep()?;
    home.keep_reserve();
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

/// Work beside requests: faults are tried again. In the writable layer pages are dropped that somebody changed behind
/// the mount, nodes that the kernel forgot let go of, idle descriptors closed, scopes measured.
fn tend(fs: &Arc<Fs>, pages: PageDropper) -> Result<()> {
    let each = |thread: &str, work: fn(&Fs)| {
        now_and_then(thread, Arc::downgrade(fs), move |fs| {
            work(fs);
            Ok(())
        })
    };
    each("verfs-faults", Fs::probe_faults)?;
    let Some(media) = &fs.media else { return Ok(()) };
    media.on_change_behind(move |node| pages.drop_pages(node));
    reap(fs)?;
    each("verfs-idle", |fs| fs.media.iter().for_each(Media::close_idle))?;
    each("verfs-usage", |fs| fs.media.iter().for_each(Media::measure))?;
    each("verfs-reserve", |fs| fs.media.iter().for_each(Media::keep_reserve))
}

/// Keeps the names bounded that the kernel knows in scopes. A directory in which something is mounted stays: dropping
/// it would unmount that.
fn drop_unused(fs: &Arc<Fs>, kernel: &Arc<dyn Kernel>, mountpoint: &Path) -> Result<()> {
    let (fs, kernel, mountpoint) = (Arc::downgrade(fs), kernel.clone(), mountpoint.to_owned());
    let work = move |fs: &Fs| {
        let Some(media) = &fs.media else { return Ok(()) };
        media.drop_unused(|unused| {
            let mounted = below(&mountpoint)?;
            let leads_to_a_mount = |dir: &Vec<u8>| {
                let dir = mountpoint.join(OsStr::from_bytes(dir));
                mounted.iter().any(|mounted| mounted.starts_with(&dir))
            };
            unused.retain(|name| {
                !name.dir_at.as_ref().is_some_and(leads_to_a_mount) && kernel.drop_entry(name.dir, &name.name).is_ok()
            });
            Ok(())
        })
    };
    now_and_then("verfs-unused", fs, work)
}

/// Lets go of what the kernel forgot, as long as the writable layer is there.
fn reap(fs: &Arc<Fs>) -> Result<()> {
    let fs = Arc::downgrade(fs);
    std::thread::Builder::new()
        .name("verfs-reaper".into())
        .spawn(move || {
            to_the_end(|| {
                while let Some(fs) = fs.upgrade() {
                    fs.media.iter().for_each(|media| media.reap_next(Duration::from_millis(500)));
                }
            });
        })
        .context(|| "starting a thread")?;
    Ok(())
}

/// Does something twice a second, as long as the mount is there. Each in a thread of its own: a disk may keep it
/// waiting.
fn now_and_then(thread: &str, fs: Weak<Fs>, work: impl Fn(&Fs) -> Result<()> + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(thread.into())
        .spawn(move || {
            to_the_end(|| {
                while let Some(fs) = fs.upgrade() {
                    if let Err(error) = work(&fs) {
                        log::error!("{error}");
                    }
                    drop(fs);
                    std::thread::sleep(Duration::from_millis(500));
                }
            });
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
        // A daemon that answers keeps the store; one that was killed lets go of it in a moment. Until then the kernel
        // still queues connections for it.
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
    Err(Error::busy(format!(
        "the store {} is in use by {who}; it can be mounted once: see `verfs status --store {0}`",
        store.root().display()
    )))
}

/// The process that serves the store and answers.
fn server_pid(store: &Store) -> Result<Option<i32>> {
    let Some(mut client) = Client::connect(&store.socket_path())? else { return Ok(None) };
    client.call(request::Status {}, ANSWER)?;
    client.server_pid().map(Some)
}

/// One daemon per writable layer: two stores may name the same directory for theirs.
fn lock_media(store: &Store, home: Option<&Home>) -> Result<Option<Lock>> {
    let Some(home) = home.filter(|_| store.media_home() != store.root()) else { return Ok(None) };
    match home.lock()? {
        Some(lock) => Ok(Some(lock)),
        None => Err(Error::busy(format!(
            "{} is in use as the writable layer of another store; name another directory in verfs.toml (media)",
            store.media_home().display()
        ))),
    }
}

fn check_mountpoint(store: &Store, options: &Options) -> Result<Arc<Mountpoint>> {
    let given = &options.mountpoint;
    clear_stale(store, given)?;
    let mountpoint = std::fs::canonicalize(given).and_then(Mountpoint::open).map_err(|error| match error.kind() {
        ErrorKind::NotADirectory => Error::request(format!("the mountpoint {} is not a directory", given.display())),
        _ => {
            Error::request(format!("the mountpoint {} cannot be used: {error}; make it with mkdir -p", given.display()))
        }
    })?;
    let real = mountpoint.path();
    if kind_on(real)?.as_deref() == Some("fuse.verfs") {
        return Err(Error::request(format!("{} has a verfs mount already; `verfs umount {0}` first", real.display())));
    }
    if store.root().starts_with(real) || real.starts_with(store.root()) {
        return Err(Error::request(format!(
            "the store {} and the mountpoint {} lie one inside the other; use two separate directories",
            store.root().display(),
            real.display()
        )));
    }
    if !options.over && !mountpoint.is_empty()? {
        return Err(Error::request(format!(
            "the mountpoint {} is not empty; say --over to hide what is in it, or use an empty directory",
            real.display()
        )));
    }
    Ok(Arc::new(mountpoint))
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
    for mount in mounted()?.iter().rev().filter(|mount| mount.store == store.root()) {
        clear(&mount.mountpoint)?;
    }
    while let Err(rustix::io::Errno::NOTCONN) = rustix::fs::stat(mountpoint) {
        clear(mountpoint)?;
    }
    Ok(())
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
