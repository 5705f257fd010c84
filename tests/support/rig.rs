//! A store, a source directory and a mountpoint in a scratch directory on disk, the program to
//! work on them, and a guard that leaves nothing mounted.

use super::control::Control;
use super::deadline::{self, Deadline, Watched};
use super::tree::Tree;
use super::user::User;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long any one command may take before it is killed.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// What a run of the program left.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; 128 + signal if a signal ended it, 124 if it was killed for taking too long.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// See the head of this file.
pub struct Rig {
    /// The store.
    pub store: PathBuf,
    /// The mountpoint.
    pub mnt: PathBuf,
    /// Holds one source directory per release.
    pub src: PathBuf,
    /// The daemon's log.
    pub log: PathBuf,
    limit: Duration,
    runs: AtomicUsize,
    pids: Vec<u32>,
    deadline: Option<Deadline>,
    scratch: Option<tempfile::TempDir>,
}

impl Default for Rig {
    fn default() -> Rig {
        Rig::new()
    }
}

impl Rig {
    /// The directories, with nothing in them. A mount must be over after two minutes.
    pub fn new() -> Rig {
        Rig::with_limit(Duration::from_secs(120))
    }

    /// The directories; the test ends with an error if a mount lives longer than `limit`.
    pub fn with_limit(limit: Duration) -> Rig {
        let scratch = tempfile::Builder::new().prefix("rig-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let root = scratch.path().canonicalize().unwrap();
        let rig = Rig {
            store: root.join("store"),
            mnt: root.join("mnt"),
            src: root.join("src"),
            log: root.join("daemon.log"),
            limit,
            runs: AtomicUsize::new(0),
            pids: Vec::new(),
            deadline: None,
            scratch: Some(scratch),
        };
        fs::create_dir(&rig.mnt).unwrap();
        fs::create_dir(&rig.src).unwrap();
        rig
    }

    /// The scratch directory that holds the rest.
    pub fn root(&self) -> &Path {
        self.store.parent().unwrap()
    }

    /// Runs the program. The store is known to it from the environment.
    pub fn verfs<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        self.run(args, &[])
    }

    /// Runs the program with more in its environment.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S], env: &[(&str, &str)]) -> Outcome {
        self.run_by(args, env, None)
    }

    /// Runs the program as a user without rights to the store, who can reach it.
    pub fn verfs_as<S: AsRef<OsStr>>(&self, user: User<'_>, args: &[S]) -> Outcome {
        fs::set_permissions(self.root(), fs::Permissions::from_mode(0o755)).unwrap();
        self.run_by(args, &[], Some(user))
    }

    fn run_by<S: AsRef<OsStr>>(&self, args: &[S], env: &[(&str, &str)], user: Option<User<'_>>) -> Outcome {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        // Files, not pipes: a daemon that kept a pipe would keep the test waiting.
        let out = self.root().join(format!("out.{number}"));
        let err = self.root().join(format!("err.{number}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_verfs"));
        if let Some(User { uid, gid, .. }) = user {
            // No other groups: without them root's are dropped (std::os::unix::process::CommandExt::uid).
            command.uid(uid).gid(gid);
        }
        let mut child = command
            .args(args)
            .env("VERFS_STORE", &self.store)
            .env_remove("VERFS_FAULT")
            .envs(env.iter().copied())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .spawn()
            .unwrap();
        let end = Instant::now() + COMMAND_LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() > end {
                deadline::print_threads(child.id());
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let text = |path: &Path| {
            let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
            fs::remove_file(path).unwrap();
            text
        };
        Outcome { code: status.map_or(124, exit_code), stdout: text(&out), stderr: text(&err) }
    }

    /// Runs the program, which must succeed; its standard output.
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        let outcome = self.verfs(args);
        assert_eq!(outcome.code, 0, "verfs {}: {outcome:?}", shown(args));
        outcome.stdout
    }

    /// Runs the program with `--json`, which must succeed; what it printed.
    pub fn json<S: AsRef<OsStr>>(&self, args: &[S]) -> Value {
        let mut args: Vec<OsString> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
        args.push("--json".into());
        let text = self.ok(&args);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("verfs {}: {error} in {text:?}", shown(&args)))
    }

    /// Makes the store, with the wait for a new second lifted.
    pub fn init(&self) {
        self.ok(&[OsStr::new("init"), self.store.as_os_str()]);
        self.setting("switch", "share_second", "true");
    }

    /// Sets a key of a section of the store's settings; `value` is written as it is.
    pub fn setting(&self, section: &str, key: &str, value: &str) {
        let path = self.store.join("verfs.toml");
        let text = fs::read_to_string(&path).unwrap();
        let header = format!("[{section}]");
        let mut lines: Vec<String> = Vec::new();
        let (mut inside, mut set) = (false, false);
        for line in text.lines() {
            if line.trim_start().starts_with('[') {
                inside = line.trim() == header;
            }
            let name = line.split('=').next().unwrap_or("").trim();
            if inside && name == key && line.contains('=') {
                lines.push(format!("{key} = {value}"));
                set = true;
            } else {
                lines.push(line.to_owned());
            }
        }
        if !set {
            match lines.iter().position(|line| line.trim() == header) {
                Some(at) => lines.insert(at + 1, format!("{key} = {value}")),
                None => lines.push(format!("{header}\n{key} = {value}")),
            }
        }
        fs::write(&path, lines.join("\n") + "\n").unwrap();
    }

    /// Writes a release's source directory and adds it; what `add --json` printed.
    pub fn add(&self, name: &str, tree: &Tree) -> Value {
        let source = self.src.join(name);
        tree.write(&source);
        self.json(&[OsStr::new("add"), OsStr::new(name), source.as_os_str()])
    }

    /// Mounts the store; the watch over the mount begins.
    pub fn mount(&mut self) {
        self.mount_with_env(&[]);
    }

    /// Mounts the store with more in the daemon's environment, such as a fault.
    pub fn mount_with_env(&mut self, env: &[(&str, &str)]) {
        // By that call scripts/test knows what mounts.
        assert!(!super::skip_mounted(), "a test that mounts returns early if skip_mounted() says so");
        let args = [
            OsStr::new("mount"),
            self.store.as_os_str(),
            self.mnt.as_os_str(),
            OsStr::new("--log"),
            self.log.as_os_str(),
        ];
        let outcome = self.run(&args, env);
        assert_eq!(outcome.code, 0, "verfs {}: {outcome:?}", shown(&args));
        let connection = deadline::connection_of(&self.mnt)
            .unwrap_or_else(|| panic!("nothing is mounted at {}", self.mnt.display()));
        let status = self.json(&["status"]);
        self.pids = ["worker_pid", "keeper_pid"]
            .iter()
            .filter_map(|key| status[key].as_u64())
            .filter_map(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid != 0)
            .collect();
        self.pids.dedup();
        self.deadline = Some(Deadline::start(
            self.limit,
            Watched { mountpoint: self.mnt.clone(), connection, pids: self.pids.clone() },
        ));
    }

    /// The memory of the daemon that is its own, in KiB.
    pub fn rss_anon(&self) -> u64 {
        let of = |pid: &u32| -> u64 {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
            line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
        };
        self.pids.iter().map(of).max().unwrap()
    }

    /// The daemon's processes, as `status` named them after the mount.
    pub fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// A client of the daemon.
    pub fn control(&self) -> Control {
        Control::new(&self.store)
    }

    /// Unmounts, which must succeed, and waits until the daemon is gone.
    pub fn umount(&mut self) {
        let args = [OsStr::new("umount"), self.store.as_os_str()];
        // A child that another test starts has a copy of every descriptor, for a moment, until it runs its program.
        let patience = Instant::now() + Duration::from_secs(5);
        while self.verfs(&args).code != 0 {
            if Instant::now() > patience {
                self.ok(&args);
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.clear();
    }

    /// Takes away whatever is left of the mount and its daemon.
    fn clear(&mut self) {
        while deadline::connection_of(&self.mnt).is_some() {
            if rustix::mount::unmount(&self.mnt, rustix::mount::UnmountFlags::DETACH).is_err() {
                break;
            }
        }
        let patience = Instant::now() + Duration::from_secs(5);
        let end = patience + Duration::from_secs(5);
        for pid in std::mem::take(&mut self.pids) {
            while deadline::alive(pid) && Instant::now() < end {
                if Instant::now() > patience {
                    eprintln!("process {pid} lives on after the unmount: killed");
                    deadline::kill(pid);
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        self.deadline = None;
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            for line in tail.iter().rev() {
                eprintln!("daemon: {line}");
            }
        }
        if deadline::connection_of(&self.mnt).is_some() {
            let store = self.store.clone();
            let args = [OsStr::new("umount"), OsStr::new("--lazy"), store.as_os_str()];
            let outcome = self.verfs(&args);
            if outcome.code != 0 {
                eprintln!("verfs {}: {outcome:?}", shown(&args));
            }
        }
        self.clear();
        if std::env::var_os("VERFS_KEEP_SCRATCH").is_some()
            && let Some(scratch) = self.scratch.take()
        {
            eprintln!("kept: {}", scratch.keep().display());
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn shown<S: AsRef<OsStr>>(args: &[S]) -> String {
    let words: Vec<String> = args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect();
    words.join(" ")
}
