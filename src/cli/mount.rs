//! `mount`, `umount`, `reload`, and mount(8)'s helper.

use super::output::Output;
use super::{logging, which};
use crate::error::{Context, Error, Result};
use crate::protocol::{EncodedPath, Serving, Unmounted, request};
use crate::store::{Store, look};
use crate::worker::{self, Options, Ready, holders, mounted};
use clap::Parser;
use rustix::mount::{UnmountFlags, unmount};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Set for the process that goes to the background: it says on standard output when it is ready.
const BACKGROUND: &str = "VERFS_BACKGROUND";
const UMOUNT_WAIT: Duration = Duration::from_secs(15);

/// Serve the active release of a store
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs mount /srv/shop /var/www/html")]
pub(super) struct Mount {
    /// The store
    #[arg(value_name = "STORE")]
    path: PathBuf,
    /// An empty directory
    mountpoint: PathBuf,
    /// Options as in fstab: noexec, over; others that mount(8) knows are taken and change nothing
    #[arg(short, value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
    /// Stay in the foreground
    #[arg(long)]
    foreground: bool,
    /// Mount over a directory that is not empty
    #[arg(long)]
    over: bool,
    /// Write the log to this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

/// End a mount and its daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs umount /var/www/html")]
pub(super) struct Umount {
    /// The store or the mountpoint
    #[arg(value_name = "STORE|MOUNTPOINT")]
    what: Option<PathBuf>,
    /// Take it out of the tree now, and end it when nobody holds it any more
    #[arg(long)]
    lazy: bool,
}

/// Read verfs.toml again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: verfs reload")]
pub(super) struct Reload {}

/// Options of fstab(5) that need nothing from us, or that hold anyway.
const IGNORED: &[&str] = &[
    "defaults",
    "rw",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "nosuid",
    "nodev",
    "exec",
    "async",
    "atime",
    "noatime",
    "relatime",
    "allow_other",
    "default_permissions",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
];

fn parse_options(verb: &Mount, sloppy: bool) -> Result<Options> {
    let mut options = Options { mountpoint: verb.mountpoint.clone(), over: verb.over, noexec: false };
    for option in verb.options.iter().filter(|option| !option.is_empty()) {
        match option.as_str() {
            "over" => options.over = true,
            "noexec" => options.noexec = true,
            known if IGNORED.contains(&known) || known.starts_with("x-") || known.starts_with("comment=") => {}
            _ if sloppy => {}
            "ro" => {
                return Err(Error::request("releases are read-only always; leave out the option ro".to_owned()));
            }
            other => {
                return Err(Error::request(format!("verfs does not know the mount option {other:?}; leave it out")));
            }
        }
    }
    Ok(options)
}

pub(super) fn mount(verb: &Mount, store: Option<&Path>, verbose: u8, output: Output) -> Result<ExitCode> {
    let options = parse_options(verb, false)?;
    let path = which::agreed(&verb.path, store)?;
    let background = std::env::var_os(BACKGROUND).is_some();
    if verb.foreground || background {
        let store = Store::open(&path)?;
        set_up_log(verb, &store, verbose, background)?;
        worker::serve(store, &options, |ready| tell_ready(ready, background, output))?;
        return Ok(ExitCode::SUCCESS);
    }
    start_in_background()
}

fn set_up_log(verb: &Mount, store: &Store, verbose: u8, background: bool) -> Result<()> {
    match &verb.log {
        Some(file) => logging::to_file(file, verbose),
        None if !background => {
            logging::to_stderr(verbose);
            Ok(())
        }
        None if logging::to_syslog(verbose) => Ok(()),
        None => logging::to_file(&store.root().join("verfs.log"), verbose),
    }
}

/// Runs this program again under the same name, and waits until it is ready or failed.
fn start_in_background() -> Result<ExitCode> {
    let mut arguments = std::env::args_os();
    // By its own path, so that the process has its name in ps.
    let program = std::env::current_exe().context(|| "finding this program")?;
    let mut child = Command::new(program)
        .arg0(arguments.next().unwrap_or_else(|| "verfs".into()))
        .args(arguments)
        .env(BACKGROUND, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context(|| "starting the daemon")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).context(|| "waiting for the daemon")?;
    }
    if !line.is_empty() {
        let _ = std::io::stdout().write_all(line.as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    // It has said on standard error why it failed.
    let status = child.wait().context(|| "waiting for the daemon")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn tell_ready(ready: &Ready, background: bool, output: Output) {
    let value = Serving {
        release: ready.release.clone(),
        mountpoint: EncodedPath::from(ready.mountpoint.as_path()),
        pid: std::process::id(),
    };
    if background && let Err(error) = leave_terminal(&value, output, ready) {
        log::warn!("going to the background: {error}");
    }
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        log::warn!("telling systemd: {error}");
    }
}

/// Says that it is ready, then lets go of the caller's session and of its standard streams.
fn leave_terminal(value: &Serving, output: Output, ready: &Ready) -> std::io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // The only process of a new group, so this does not fail; and if it does, the terminal stays ours.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    output.result(value, || {
        format!("serving {} on {} (process {})\n", ready.release, ready.mountpoint.display(), value.pid)
    });
    std::io::stdout().flush()?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

pub(super) fn reload(_verb: &Reload, store: Option<&Path>, output: Output) -> Result<()> {
    let store = which::store(store)?;
    let value = which::running(&store)?.call(request::Reload {}, UMOUNT_WAIT)?;
    output.result(&value, || match &value.at_next_mount[..] {
        [] => "settings read again\n".to_owned(),
        later => format!("settings read again; these take effect at the next mount: {}\n", later.join(", ")),
    });
    Ok(())
}

pub(super) fn umount(verb: &Umount, store: Option<&Path>, output: Output) -> Result<()> {
    let found = find_mount(verb.what.as_deref(), store)?;
    let done = || {
        output.result(&Unmounted { unmounted: EncodedPath::from(found.mountpoint.as_path()) }, || {
            format!("unmounted {}\n", found.mountpoint.display())
        });
        Ok(())
    };
    // A daemon that died, or a store that is gone, still leaves a mount that can be taken away.
    let (daemon, dead) = match Store::open(&found.store) {
        Ok(store) => match which::daemon(&store)? {
            // Nobody has the lock that a daemon holds for its life.
            None => (None, store.lock_active()?.is_some()),
            daemon => (daemon, false),
        },
        Err(_) => (None, false),
    };
    let Some(mut daemon) = daemon else {
        take_away(&found.mountpoint, verb.lazy || dead)?;
        return done();
    };
    let pid = daemon.server_pid()?;
    daemon.call(request::Umount { lazy: verb.lazy }, UMOUNT_WAIT)?;
    let begun = Instant::now();
    while !verb.lazy && look::is_process(pid.unsigned_abs())? && begun.elapsed() < UMOUNT_WAIT {
        if is_zombie(pid) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    done()
}

fn is_zombie(pid: i32) -> bool {
    procfs::process::Process::new(pid).and_then(|process| process.stat()).is_ok_and(|stat| stat.state == 'Z')
}

fn find_mount(what: Option<&Path>, store: Option<&Path>) -> Result<worker::Mounted> {
    let mounts = mounted()?;
    let target = match (what, store) {
        (Some(what), _) => what.to_owned(),
        (None, given) => which::path(given)?,
    };
    let real = match std::fs::canonicalize(&target) {
        Ok(real) => real,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(error).context(|| format!("looking at {}", target.display()));
        }
        // A stale mountpoint cannot be resolved, nor a store that is gone; then the path counts as it was typed.
        Err(_) => std::path::absolute(&target).context(|| format!("looking at {}", target.display()))?,
    };
    let hit = |mount: &&worker::Mounted| mount.mountpoint == real || mount.store == real;
    let found = mounts.iter().rev().find(hit).cloned().ok_or_else(|| {
        let known: Vec<String> = mounts.iter().map(|mount| mount.mountpoint.display().to_string()).collect();
        let hint = if known.is_empty() {
            "nothing of verfs is mounted".to_owned()
        } else {
            format!("mounted are: {}", known.join(", "))
        };
        Error::request(format!("{} is not mounted; {hint}", target.display()))
    })?;
    if let (Some(_), Some(given)) = (what, store) {
        which::agreed(&found.store, Some(given))?;
    }
    Ok(found)
}

fn take_away(mountpoint: &Path, lazy: bool) -> Result<()> {
    let stale = matches!(rustix::fs::stat(mountpoint), Err(rustix::io::Errno::NOTCONN));
    let flags = if lazy || stale { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    unmount(mountpoint, flags | UnmountFlags::NOFOLLOW).map_err(|error| {
        let names: Vec<String> = holders(mountpoint).iter().map(ToString::to_string).collect();
        match names.len() {
            0 => Error::io(format!("unmounting {}", mountpoint.display()), error),
            _ => Error::busy(format!("{} is busy: {}", mountpoint.display(), names.join("; "))),
        }
    })
}

/// What mount(8) runs for a file system of type verfs.
#[derive(Debug, Parser)]
#[command(name = "mount.verfs", disable_help_flag = true)]
struct Helper {
    store: PathBuf,
    mountpoint: PathBuf,
    #[arg(short, value_delimiter = ',')]
    options: Vec<String>,
    /// Unknown options are no error
    #[arg(short)]
    sloppy: bool,
    /// Do all but the mount
    #[arg(short)]
    fake: bool,
    #[arg(short)]
    no_mtab: bool,
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    #[arg(short = 't')]
    kind: Option<String>,
    #[arg(short = 'N')]
    namespace: Option<String>,
}

/// Whether the program was called as mount(8)'s helper.
pub(super) fn is_helper(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|name| Path::new(name).file_name().is_some_and(|name| name == "mount.verfs"))
}

/// Mounts as mount(8) asks, with its exit codes: 1 wrong call, 32 the mount failed (mount(8), EXIT STATUS).
pub(super) fn helper(arguments: &[OsString]) -> ExitCode {
    let helper = match Helper::try_parse_from(arguments) {
        Ok(helper) => helper,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(1);
        }
    };
    match run_helper(helper) {
        Ok(code) => code,
        Err(error) => {
            Output { json: false }.error(&error);
            ExitCode::from(if error.exit_code() == 2 { 1 } else { 32 })
        }
    }
}

fn run_helper(helper: Helper) -> Result<ExitCode> {
    let verb = Mount {
        path: helper.store,
        mountpoint: helper.mountpoint,
        options: helper.options,
        foreground: false,
        over: false,
        log: None,
    };
    let options = parse_options(&verb, helper.sloppy)?;
    let store = Store::open(&verb.path)?;
    if helper.fake {
        return Ok(ExitCode::SUCCESS);
    }
    if std::env::var_os(BACKGROUND).is_none() {
        return start_in_background();
    }
    set_up_log(&verb, &store, helper.verbose, true)?;
    worker::serve(store, &options, |ready| tell_ready(ready, true, Output { json: false }))?;
    Ok(ExitCode::SUCCESS)
}
