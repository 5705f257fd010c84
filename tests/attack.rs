//! Attack: a user of the scopes does all at once what is known to hurt, and the visitors of the site notice nothing.
#![allow(clippy::unwrap_used)]

#[path = "support/apache.rs"]
#[allow(dead_code, reason = "it is started in one way only")]
mod apache;
#[path = "support/http.rs"]
#[allow(dead_code, reason = "only its client is used")]
mod http;
mod support;
#[path = "attack/ways.rs"]
mod ways;

use apache::{AllowOverride, Apache, Sending};
use http::Client;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use support::disk::SmallDisk;
use support::tree::Tree;
use support::user::WWW_DATA;
use support::{Rig, chance, long, skip_mounted};
use ways::{Clock, FILMS, MANY, WAYS};

/// What the daemon may take for all of it, in KiB.
const MOST_MEMORY: u64 = 256 << 10;
/// The attack goes on until each way has worked; not longer than this.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long the attack lasts, if each way has worked by then.
fn duration() -> Duration {
    Duration::from_secs(if long() { 300 } else { 30 })
}

/// Files that each visitor asks for again and again.
const HOT: usize = 50;
/// Files that are asked for once, as long as there are some left.
const COLD: usize = 12_000;

fn hot(number: usize) -> (String, Vec<u8>) {
    (format!("hot/{number}.txt"), format!("hot {number}").repeat(500).into_bytes())
}

fn cold(number: usize) -> (String, Vec<u8>) {
    // Some of them lie in files of their own, most in packs.
    let times = if number.is_multiple_of(100) { 10_000 } else { 20 };
    (format!("cold/{}/{number}.txt", number % 97), format!("cold {number}").repeat(times).into_bytes())
}

fn film() -> Vec<u8> {
    (0..4 << 20).map(|at: u32| (at % 251) as u8).collect()
}

/// The site, mounted where Apache reaches it, with its scopes on a disk of their own.
struct Site {
    rig: Rig,
    _directory: tempfile::TempDir,
    // Goes last: its disk is in use until then.
    _disk: SmallDisk,
}

impl Site {
    fn new() -> Site {
        let mut rig = Rig::with_limit(Duration::from_secs(900));
        let disk = SmallDisk::with_inodes(&rig, 2 * MANY);
        let home = disk.path().join("home");
        fs::create_dir(&home).unwrap();
        let (store, media) = (rig.store.to_str().unwrap(), home.to_str().unwrap());
        rig.ok(&["init", store, "--writable", "media", "--owner", "www-data:www-data", "--media", media]);
        let toml = rig.store.join("verfs.toml");
        let text = fs::read_to_string(&toml).unwrap();
        let limited = |scope: &str| {
            format!("\n[[scope]]\npath = \"{scope}\"\nowner = \"www-data:www-data\"\nlimit = \"32 MiB\"\n")
        };
        fs::write(&toml, text + &limited("limited") + &limited("chained")).unwrap();
        let mut tree =
            Tree::new().file("index.html", "the site").file("film", film()).dir("code").dir("limited").dir("chained");
        for (path, content) in (0..HOT).map(hot).chain((0..COLD).map(cold)) {
            tree = tree.file(path, content);
        }
        for number in 0..FILMS {
            tree = tree.file(format!("media/films/{number}"), film());
        }
        let source = rig.src.join("01");
        tree.write(&source);
        // All is the user's: what is refused to him is refused by verfs.
        assert!(Command::new("chown").arg("-R").arg("www-data:www-data").arg(&source).status().unwrap().success());
        rig.ok(&["add", "01", source.to_str().unwrap()]);
        let prefix = "verfs-docroot.";
        let open = fs::Permissions::from_mode(0o755);
        let directory = tempfile::Builder::new().prefix(prefix).permissions(open).tempdir().unwrap();
        rig.mnt = directory.path().canonicalize().unwrap().join("docroot");
        fs::create_dir(&rig.mnt).unwrap();
        rig.mount();
        let many = home.join("media/media/many");
        fs::create_dir(&many).unwrap();
        for number in 0..MANY {
            File::create(many.join(ways::many(number))).unwrap();
        }
        chown(&many, Some(33), Some(33)).unwrap();
        Site { rig, _directory: directory, _disk: disk }
    }

    fn apache(&self) -> Apache {
        Apache::start(&self.rig.mnt, AllowOverride::None, Sending::Sendfile)
    }
}

/// What the visitors met.
#[derive(Default)]
struct Met {
    hot: AtomicU64,
    cold: AtomicU64,
    slowest: Mutex<Duration>,
    complaints: Mutex<Vec<String>>,
}

impl Met {
    fn ask(&self, client: &mut Client, (path, content): &(String, Vec<u8>)) {
        let complaint = match client.body(&format!("/{path}")) {
            Ok(Some(body)) if body == *content => return,
            Ok(Some(body)) => format!("{path}: {} bytes that are not its content", body.len()),
            Ok(None) => format!("{path}: not found"),
            Err(error) => format!("{path}: {error}"),
        };
        self.complaints.lock().unwrap().push(complaint);
    }

    fn visit_hot(&self, address: SocketAddr, over: &AtomicBool) {
        let files: Vec<_> = (0..HOT).map(hot).collect();
        let mut client = Client::new(address);
        for file in files.iter().cycle() {
            if over.load(SeqCst) {
                return;
            }
            self.ask(&mut client, file);
            self.hot.fetch_add(1, SeqCst);
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn visit_cold(&self, address: SocketAddr, over: &AtomicBool) {
        let mut client = Client::new(address);
        for number in 0..COLD {
            if over.load(SeqCst) {
                return;
            }
            let begun = Instant::now();
            self.ask(&mut client, &cold(number));
            let mut slowest = self.slowest.lock().unwrap();
            *slowest = slowest.max(begun.elapsed());
            self.cold.fetch_add(1, SeqCst);
            drop(slowest);
            thread::sleep(duration() / COLD as u32);
        }
    }
}

/// How often each way worked, and what ended its last turn that did not come to its end.
#[derive(Default)]
struct Way {
    worked: AtomicU64,
    refused: Mutex<Option<std::io::Error>>,
}

/// Goes one way until the attack is over.
fn attack(scope: &Path, way: usize, ways: &[Way], over: &AtomicBool) {
    WWW_DATA.work_in(scope, || {
        let clock = Clock { over, worked: &ways[way].worked };
        for turn in 0.. {
            if !clock.goes_on() {
                return;
            }
            if let Err(error) = WAYS[way].1(clock, turn) {
                *ways[way].refused.lock().unwrap() = Some(error);
            }
        }
    });
}

struct OverOnDrop<'a>(&'a AtomicBool);

impl Drop for OverOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// The most memory that the daemon took, in KiB, and how many files were answered in the second with the fewest.
struct Watched {
    memory: u64,
    fewest: u64,
}

/// Looks on until the attack is over, and gives the release's large files back to who takes them.
fn watch(rig: &Rig, met: &Met, ways: &[Way]) -> Watched {
    let mut watched = Watched { memory: 0, fewest: u64::MAX };
    let begun = Instant::now();
    let all_worked = || ways.iter().all(|way| way.worked.load(SeqCst) > 0);
    while begun.elapsed() < duration() || !all_worked() {
        let missing: Vec<_> = WAYS.iter().zip(ways).filter(|(_, way)| way.worked.load(SeqCst) == 0).collect();
        let shown = |((name, _), way): &(&(&str, _), &Way)| format!("{name}: {:?}", way.refused.lock().unwrap());
        let missing = || missing.iter().map(shown).collect::<Vec<_>>();
        assert!(begun.elapsed() < PATIENCE, "never worked: {:#?}", missing());
        let before = met.hot.load(SeqCst);
        let second = Instant::now();
        while second.elapsed() < Duration::from_secs(1) {
            watched.memory = watched.memory.max(rig.rss_anon());
            thread::sleep(Duration::from_millis(50));
        }
        watched.fewest = watched.fewest.min(met.hot.load(SeqCst) - before);
        // It may meet a change that is under way, and then changes nothing.
        rig.verfs(&["media", "restore", "media/films"]);
    }
    watched
}

#[test]
fn whatever_a_user_does_in_scopes_at_once_visitors_are_served_every_file_of_the_release() {
    if skip_mounted() {
        return;
    }
    let mut site = Site::new();
    let scope = site.rig.mnt.join("media");
    let (met, over) = (Met::default(), AtomicBool::new(false));
    let ways: Vec<Way> = WAYS.iter().map(|_| Way::default()).collect();
    let apache = site.apache();
    let address = apache.address();
    let watched = thread::scope(|threads| {
        // If anything here panics, the others must still be told to go home.
        let stopper = OverOnDrop(&over);
        for _ in 0..3 {
            threads.spawn(|| met.visit_hot(address, &over));
        }
        threads.spawn(|| met.visit_cold(address, &over));
        for way in 0..WAYS.len() {
            let (scope, ways, over) = (&scope, &ways, &over);
            threads.spawn(move || attack(scope, way, ways, over));
        }
        let watched = watch(&site.rig, &met, &ways);
        drop(stopper);
        watched
    });
    let (hot, cold, slowest) = (met.hot.load(SeqCst), met.cold.load(SeqCst), *met.slowest.lock().unwrap());
    let Watched { memory, fewest } = watched;
    println!("{hot} requests for hot files, {fewest} in the second with the fewest; {cold} for cold ones");
    println!("the slowest cold file took {slowest:?}; the daemon took {memory} KiB at most");
    for ((name, _), way) in WAYS.iter().zip(&ways) {
        println!("{}: {}, last refused: {:?}", name, way.worked.load(SeqCst), way.refused.lock().unwrap());
    }
    let complaints = std::mem::take(&mut *met.complaints.lock().unwrap());
    assert!(
        complaints.is_empty(),
        "{} requests failed: {:#?}",
        complaints.len(),
        &complaints[..complaints.len().min(20)]
    );
    assert!(fewest > 0, "no file of the release was answered for a second");
    assert!(cold > 0);
    assert!(memory < MOST_MEMORY, "the daemon took {memory} KiB");
    is_fine(&site.rig);
    drop(apache);
    // The next mount has all of it before it, and serves.
    site.rig.umount();
    site.rig.mount();
    is_fine(&site.rig);
    assert_eq!(fs::read_dir(scope.join("many")).unwrap().count(), MANY);
    let apache = site.apache();
    let mut client = Client::new(apache.address());
    (0..HOT).map(self::hot).chain((0..COLD).step_by(100).map(self::cold)).for_each(|file| met.ask(&mut client, &file));
    let complaints = met.complaints.lock().unwrap();
    assert!(complaints.is_empty(), "after the next mount: {complaints:#?}");
    drop(apache);
    site.rig.umount();
}

/// The daemon says that nothing is wrong, and met no fault of its own.
fn is_fine(rig: &Rig) {
    let status = rig.json(&["status"]);
    assert_eq!(status["degraded"].as_array().map(Vec::len), Some(0), "{status}");
    let log = fs::read_to_string(&rig.log).unwrap();
    let faults: Vec<&str> = log.lines().filter(|line| line.contains("a fault in verfs")).collect();
    assert!(faults.is_empty(), "{faults:#?}");
}
