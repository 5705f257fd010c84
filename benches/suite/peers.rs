//! What verfs is compared with, and how each is mounted over the same directory. A guard takes each away again.
//!
//! Every peer runs in the foreground as a child of ours, so that it can be ended by its pid and ends when we do.

use super::stage::{self, Outcome, Stage};
use super::verfs::{self, Store};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A mount that is not there by then has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub const NATIVE: &str = "native";
pub const VERFS: &str = "verfs";
pub const OVERLAY: &str = "overlayfs (kernel)";

/// The FUSE file systems among the peers.
pub const FUSE: [&str; 7] = [
    "fuse-overlayfs",
    "mergerfs",
    "mergerfs, caching",
    "bindfs",
    "bindfs, caching",
    "unionfs-fuse",
    "unionfs-fuse, caching",
];

/// Everything that a directory can be served by.
pub fn all() -> Vec<&'static str> {
    let mut all = vec![NATIVE, VERFS, OVERLAY];
    all.extend(FUSE);
    all
}

/// Those among which files can be written, in layers as verfs's media.
pub const WRITABLE: [&str; 4] = [NATIVE, VERFS, OVERLAY, "fuse-overlayfs"];

/// The same files as a plain directory and as the active release of a store.
pub struct Source {
    pub tree: PathBuf,
    pub store: Store,
    _directory: Option<TempDir>,
}

impl Source {
    /// Adds to a new store what `write` lays down.
    pub fn new(stage: &Stage, write: impl FnOnce(&Path) -> Outcome<()>) -> Outcome<Source> {
        let directory = stage.directory()?;
        let tree = directory.path().join("tree");
        fs::create_dir(&tree)?;
        write(&tree)?;
        let store = Store::init(stage, directory.path().join("store"))?;
        store.add("01", &tree)?;
        Ok(Source { tree, store, _directory: Some(directory) })
    }
}

/// A directory in which the files can be seen, until it is dropped.
pub struct Mounted {
    pub root: PathBuf,
    pub verfs: Option<verfs::Mount>,
    held: Held,
    _directories: Vec<TempDir>,
}

enum Held {
    /// Nothing of ours has to go.
    Nothing,
    Kernel,
    Daemon(Child),
}

impl Mounted {
    /// What the kernel has asked verfs so far; none for the others.
    pub fn upcalls(&self) -> Outcome<Option<u64>> {
        self.verfs.as_ref().map(verfs::Mount::all_upcalls).transpose()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !matches!(self.held, Held::Nothing) && unmount(&self.root).is_err() {
            eprintln!("{} does not unmount: detached", self.root.display());
            let _ = rustix::mount::unmount(&self.root, rustix::mount::UnmountFlags::DETACH);
        }
        if let Held::Daemon(child) = &mut self.held {
            stage::end_unasked(child);
        }
    }
}

/// Unmounts; a last answer may still be on its way, so it has a second.
fn unmount(root: &Path) -> rustix::io::Result<()> {
    let end = Instant::now() + Duration::from_secs(1);
    loop {
        match rustix::mount::unmount(root, rustix::mount::UnmountFlags::empty()) {
            Err(rustix::io::Errno::BUSY) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            done => return done,
        }
    }
}

/// Mounts those of these that can be mounted over the source.
pub fn mount_all(stage: &Stage, names: &[&'static str], source: &Source) -> Outcome<Vec<(&'static str, Mounted)>> {
    let mut mounts = Vec::new();
    for name in names {
        mounts.extend(mount(stage, name, source)?.map(|mounted| (*name, mounted)));
    }
    Ok(mounts)
}

/// Mounts one of [`all`] over the source. A peer that cannot is noted as missing, and gives none; verfs that cannot is an error.
pub fn mount(stage: &Stage, name: &str, source: &Source) -> Outcome<Option<Mounted>> {
    if stage.missing().contains_key(name) {
        return Ok(None);
    }
    let nothing =
        |root: &Path, verfs| Mounted { root: root.to_owned(), verfs, held: Held::Nothing, _directories: Vec::new() };
    let mounted = match name {
        NATIVE => return Ok(Some(nothing(&source.tree, None))),
        VERFS => {
            let mount = source.store.mount(stage)?;
            let root = mount.root().to_owned();
            return Ok(Some(nothing(&root, Some(mount))));
        }
        OVERLAY => overlay(stage, source),
        name => daemon(stage, name, source),
    };
    match mounted {
        Ok(mounted) => Ok(Some(mounted)),
        Err(why) => {
            stage.miss(name, &why.to_string());
            Ok(None)
        }
    }
}

fn overlay(stage: &Stage, source: &Source) -> Outcome<Mounted> {
    let (layers, mountpoint) = (stage.directory()?, stage.directory()?);
    let [upper, work] = upper_and_work(&layers)?;
    let options = format!("lowerdir={},upperdir={},workdir={}", source.tree.display(), upper.display(), work.display());
    stage::run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(mountpoint.path()))?;
    let root = mountpoint.path().to_owned();
    Ok(Mounted { root, verfs: None, held: Held::Kernel, _directories: vec![mountpoint, layers] })
}

fn upper_and_work(layers: &TempDir) -> Outcome<[PathBuf; 2]> {
    let both = ["upper", "work"].map(|name| layers.path().join(name));
    both.iter().try_for_each(fs::create_dir)?;
    Ok(both)
}

fn daemon(stage: &Stage, name: &str, source: &Source) -> Outcome<Mounted> {
    let (layers, mountpoint) = (stage.directory()?, stage.directory()?);
    let [upper, work] = upper_and_work(&layers)?;
    let root = mountpoint.path().to_owned();
    let (lower, upper, work, at) = (shown(&source.tree), shown(&upper), shown(&work), shown(&root));
    let (plain, caching) = match name.strip_suffix(", caching") {
        Some(plain) => (plain, true),
        None => (name, false),
    };
    let mut command = match plain {
        "fuse-overlayfs" => {
            let mut command = stage::tied("fuse-overlayfs");
            command.args(["-f", "-o", &format!("allow_other,lowerdir={lower},upperdir={upper},workdir={work}"), &at]);
            command
        }
        "mergerfs" => {
            let mut command = stage::tied("mergerfs");
            let cache = "cache.files=full,cache.entry=3600,cache.attr=3600,cache.negative_entry=3600,cache.symlinks=true,cache.readdir=true";
            let options = if caching { format!("allow_other,{cache}") } else { "allow_other".to_owned() };
            command.args(["-f", "-o", &options, &lower, &at]);
            command
        }
        "bindfs" => {
            let mut command = stage::tied("bindfs");
            let cache = "allow_other,kernel_cache,entry_timeout=3600,attr_timeout=3600,negative_timeout=3600";
            command.args(["-f", "--multithreaded", "-o", if caching { cache } else { "allow_other" }, &lower, &at]);
            command
        }
        "unionfs-fuse" => {
            let mut command = stage::tied("unionfs-fuse");
            let cache = "allow_other,kernel_cache,entry_timeout=3600,attr_timeout=3600,negative_timeout=3600";
            let branches = format!("{upper}=RW:{lower}=RO");
            command.args(["-f", "-o", "cow", "-o", if caching { cache } else { "allow_other" }, &branches, &at]);
            command
        }
        other => return Err(format!("no such peer: {other}").into()),
    };
    let mut said = tempfile::tempfile()?;
    let before = device(&root)?;
    let child = command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said.try_clone()?).spawn()?;
    // From here on dropping it ends the child.
    let mut mounted = Mounted { root, verfs: None, held: Held::Daemon(child), _directories: vec![mountpoint, layers] };
    match wait_for_mount(&mut mounted, before, &mut said) {
        Ok(()) => Ok(mounted),
        Err(why) => {
            // There is nothing to unmount, so nothing would end it.
            if let Held::Daemon(child) = &mut mounted.held {
                stage::end(child);
            }
            Err(why)
        }
    }
}

fn wait_for_mount(mounted: &mut Mounted, before: u64, said: &mut File) -> Outcome<()> {
    let end = Instant::now() + PATIENCE;
    let Held::Daemon(child) = &mut mounted.held else { return Ok(()) };
    while device(&mounted.root)? == before {
        if let Some(status) = child.try_wait()? {
            return Err(format!("{status}: {}", stage::text(said)?.trim()).into());
        }
        if Instant::now() > end {
            return Err(format!("not mounted after {} s: {}", PATIENCE.as_secs(), stage::text(said)?.trim()).into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The file system that a directory is on.
fn device(root: &Path) -> Outcome<u64> {
    Ok(fs::metadata(root)?.dev())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Which version of each peer this is, as its package says.
pub fn versions() -> Vec<(String, String)> {
    let packages =
        ["apache2-bin", "wrk", "fuse-overlayfs", "mergerfs", "bindfs", "unionfs-fuse", "ostree", "rsync", "git"];
    let version = |package: &str| -> Outcome<String> {
        let mut command = Command::new("dpkg-query");
        Ok(String::from_utf8(stage::run(command.args(["-W", "-f", "${Version}", package]))?)?)
    };
    packages.map(|name| (name.to_owned(), version(name).unwrap_or_else(|_| "not installed".to_owned()))).into()
}
