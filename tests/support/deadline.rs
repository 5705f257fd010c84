//! A watchdog for a mounted test: whatever hangs, the test run ends and says where.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// As eprintln!, but not into the output that the test harness keeps for a test that ends: this one does not.
macro_rules! say {
    ($($text:tt)*) => {
        let _ = writeln!(std::io::stderr(), $($text)*);
    };
}

const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Ends the process if it is not dropped in time: prints what every thread waits for, aborts the
/// FUSE connection so that stuck threads come free, takes the mount away.
pub struct Deadline {
    done: Arc<(Mutex<bool>, Condvar)>,
}

/// What to look at and take away when time is up.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The mountpoint.
    pub mountpoint: std::path::PathBuf,
    /// The minor device number of the mount: the name of its FUSE connection.
    pub connection: u32,
    /// The daemon's processes.
    pub pids: Vec<u32>,
}

impl Deadline {
    /// Starts the watch.
    pub fn start(limit: Duration, watched: Watched) -> Deadline {
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        let seen = Arc::clone(&done);
        let end = Instant::now() + limit;
        thread::spawn(move || {
            let (flag, bell) = &*seen;
            let mut over = flag.lock().unwrap();
            while !*over {
                let now = Instant::now();
                if now >= end {
                    give_up(limit, &watched);
                }
                over = bell.wait_timeout(over, end - now).unwrap().0;
            }
        });
        Deadline { done }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        *self.done.0.lock().unwrap() = true;
        self.done.1.notify_all();
    }
}

fn give_up(limit: Duration, watched: &Watched) -> ! {
    say!("a mounted test has not ended after {limit:?}; what is waiting:");
    say!("requests waiting: {}", waiting(watched.connection));
    print_threads(std::process::id());
    for pid in &watched.pids {
        print_threads(*pid);
    }
    abort(watched.connection);
    let _ = rustix::mount::unmount(&watched.mountpoint, rustix::mount::UnmountFlags::DETACH);
    for pid in &watched.pids {
        kill(*pid);
    }
    std::process::exit(101);
}

/// How many requests of a FUSE connection have no answer yet, as the kernel tells.
pub fn waiting(connection: u32) -> String {
    show_connections();
    let path = format!("{CONNECTIONS}/{connection}/waiting");
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) => format!("{path}: {error}"),
    }
}

/// Breaks a FUSE connection: whoever waits for it gets an error.
pub fn abort(connection: u32) {
    show_connections();
    let path = format!("{CONNECTIONS}/{connection}/abort");
    if let Err(error) = fs::write(&path, "1") {
        say!("{path}: {error}");
    }
}

/// Mounts fusectl where it belongs, if it is not there.
fn show_connections() {
    let shown = fs::read_dir(CONNECTIONS).is_ok_and(|mut dir| dir.next().is_some());
    if !shown {
        let flags = rustix::mount::MountFlags::empty();
        if let Err(error) = rustix::mount::mount("fusectl", CONNECTIONS, "fusectl", flags, None) {
            say!("{CONNECTIONS}: {error}");
        }
    }
}

/// Prints name, state, wait channel and kernel stack of each thread of a process.
pub fn print_threads(pid: u32) {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        say!("process {pid} is gone");
        return;
    };
    for task in tasks.flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let state = read("stat");
        let state = state.rsplit(") ").next().and_then(|rest| rest.chars().next());
        say!("{pid}/{} {} {} {}", task.file_name().display(), read("comm").trim(), state.unwrap_or('?'), read("wchan"));
        for line in read("stack").lines() {
            say!("    {line}");
        }
    }
}

/// Kills a process of this test by its number.
pub fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// True if the process runs (a zombie does not).
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("").starts_with('Z'))
}

/// The minor device number of what is mounted at exactly this path, from the mount table: no
/// request to the file system.
pub fn connection_of(mountpoint: &Path) -> Option<u32> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let found = table
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(4) == Some(&mountpoint.to_string_lossy().replace(' ', "\\040")))?;
    found.split(' ').nth(2)?.split(':').nth(1)?.parse().ok()
}
