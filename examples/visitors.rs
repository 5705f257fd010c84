//! Visitors of a web site whose docroot is a verfs mount: a bounded load, and a check of every answer.
//!
//! It exports the releases of a store, keeps some connections busy, switches and rolls back meanwhile, and compares every body with what the
//! release that was active at that moment says. With `--uploads` others upload and delete in a scope all the while, and what they were told is
//! compared with what is there. It ends with a table, and with exit code 1 if any visitor noticed anything or an upload was lost.
//!
//!     visitors --url http://127.0.0.1:8080 --store /srv/shop --switch 01,02 --uploads media
//!     visitors --manifest DIRECTORY > DIRECTORY/manifest.txt

#[path = "../tests/support/chance.rs"]
mod chance;
#[path = "../tests/support/http.rs"]
#[allow(dead_code, reason = "some of it is for the tests")]
mod http;
#[path = "../tests/support/uploads.rs"]
#[allow(dead_code, reason = "some of it is for the tests")]
mod uploads;

use clap::Parser;
use http::{Client, Memory, Release, Site, Tally, Visitor};
use serde_json::{Value, json};
use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::{self, fs::MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use uploads::{Known, Uploads};

/// Each uploader rests for so long after each upload: the visitors are to be measured, not the machine.
const PAUSE: Duration = Duration::from_millis(5);

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Load a web site that verfs serves, switch releases meanwhile, and check every answer.
#[derive(Parser)]
struct Options {
    /// The site, e.g. http://127.0.0.1:8080
    #[arg(long, required_unless_present = "manifest")]
    url: Option<String>,
    /// The store behind it
    #[arg(long, required_unless_present = "manifest")]
    store: Option<PathBuf>,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=256))]
    connections: u64,
    /// How long, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Releases to go round through, every second time with a rollback; none: no switch, only the load
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    switch: Vec<String>,
    /// How many switches and rollbacks, spread over the time
    #[arg(long, default_value_t = 8)]
    switches: u64,
    /// Upload and delete in a new directory of this scope meanwhile, and compare at the end
    #[arg(long, value_name = "SCOPE")]
    uploads: Option<String>,
    /// The program to switch with; default: the verfs that was built with this one
    #[arg(long)]
    verfs: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Only print the manifest of a directory
    #[arg(long, value_name = "DIRECTORY")]
    manifest: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("visitors: {error}");
            ExitCode::FAILURE
        }
    }
}

/// True if no visitor noticed anything.
fn run(options: &Options) -> Outcome<bool> {
    if let Some(root) = &options.manifest {
        std::io::stdout().write_all(http::manifest_of(root)?.as_bytes())?;
        return Ok(true);
    }
    let (Some(url), Some(store)) = (&options.url, &options.store) else {
        return Err("--url and --store are needed".into());
    };
    let address = address_of(url)?;
    let verfs = Verfs {
        program: match &options.verfs {
            Some(program) => program.clone(),
            None => built_beside_us()?,
        },
        store: store.clone(),
    };

    let status = verfs.ask(&["status"])?;
    let active = status["release"].as_str().ok_or("the store has no active release")?.to_owned();
    let mut names = options.switch.clone();
    if !names.contains(&active) {
        names.push(active.clone());
    }
    let mut releases = Vec::new();
    for name in &names {
        releases.push(verfs.read(name)?);
    }
    let first = position(&names, &active)?;
    let site = Site::new(releases, first);

    let uploads = options.uploads.as_ref().map(|scope| Place::new(&status, scope)).transpose()?;

    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let (tally, calls, known) = thread::scope(|threads| {
        let crowd: Vec<_> = (0..options.connections)
            .map(|number| {
                let visitor = Visitor::new(&site, address, number + 1, Memory::Validators);
                threads.spawn(|| visitor.visit_until(&stop))
            })
            .collect();
        let uploading =
            uploads.as_ref().map(|place| threads.spawn(|| Uploads::new(&place.directory, PAUSE).work_until(&stop)));
        let calls = switch_now_and_then(&site, &verfs, &names, first, begun, options);
        stop.store(true, Ordering::SeqCst);
        let mut tally = Tally::default();
        for visitor in crowd {
            tally.merge(joined(visitor));
        }
        (tally, calls, uploading.map(joined))
    });
    let took = begun.elapsed();
    let calls = calls?;
    let uploads = uploads.zip(known).map(|(place, mut known)| {
        known.compare_with(&place.directory, "at the end");
        let mut client = Client::new(address);
        known.compare("over HTTP", |name| client.body(&format!("{}/{name}", place.url)));
        known
    });
    let report = Report { tally, switches: site.timeline.switches(), took, calls, uploads };
    if options.json {
        println!("{}", report.json());
    } else {
        report.print();
    }
    Ok(report.is_clean())
}

/// A new directory in a scope, for the uploads of this run. It stays.
struct Place {
    directory: PathBuf,
    /// Its path on the site.
    url: String,
}

impl Place {
    fn new(status: &Value, scope: &str) -> Outcome<Self> {
        let docroot = status["mountpoint"].as_str().ok_or("the store is not mounted")?;
        let scope = scope.trim_matches('/');
        let name = format!("visitors-{}", std::process::id());
        let above = Path::new(docroot).join(scope);
        let directory = above.join(&name);
        let failed = |error| format!("{}: {error}", directory.display());
        fs::create_dir(&directory).map_err(failed)?;
        let owner = fs::metadata(&above)?;
        unix::fs::chown(&directory, Some(owner.uid()), Some(owner.gid())).map_err(failed)?;
        Ok(Place { directory, url: format!("/{scope}/{name}") })
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Switches at even distances until the time is over. Gives how long each call was, in microseconds, without the wait for a second of its own.
fn switch_now_and_then(
    site: &Site,
    verfs: &Verfs,
    names: &[String],
    first: usize,
    begun: Instant,
    options: &Options,
) -> Outcome<Vec<u64>> {
    let total = Duration::from_secs(options.seconds);
    let planned = if names.len() < 2 { 0 } else { options.switches };
    let mut calls = Vec::new();
    let (mut active, mut previous) = (first, first);
    for step in 0..planned {
        // The first after one share of the time, the last one share before the end.
        let due = total.mul_f64((step + 1) as f64 / (planned + 1) as f64);
        thread::sleep(due.saturating_sub(begun.elapsed()));
        if begun.elapsed() >= total {
            break;
        }
        let (next, answer) = if step % 2 == 0 {
            let next = (active + 1) % names.len();
            site.timeline.begin(next);
            (next, verfs.ask(&["switch", &names[next]])?)
        } else {
            site.timeline.begin(previous);
            (previous, verfs.ask(&["rollback"])?)
        };
        site.timeline.finish();
        if answer["to"].as_str() != Some(&names[next]) {
            return Err(format!("asked for {}, got {answer}", names[next]).into());
        }
        calls.extend(answer["call_us"].as_u64());
        (previous, active) = (active, next);
    }
    thread::sleep(total.saturating_sub(begun.elapsed()));
    Ok(calls)
}

/// The command line program, with the store it is used on.
struct Verfs {
    program: PathBuf,
    store: PathBuf,
}

impl Verfs {
    fn run(&self, arguments: &[&str]) -> Outcome<Vec<u8>> {
        let output = Command::new(&self.program)
            .args(arguments)
            .arg("--store")
            .arg(&self.store)
            .output()
            .map_err(|error| format!("{}: {error}", self.program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("verfs {}: {}", arguments.join(" "), said.trim()).into());
        }
        Ok(output.stdout)
    }

    fn ask(&self, arguments: &[&str]) -> Outcome<Value> {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        Ok(serde_json::from_slice(&self.run(&arguments)?)?)
    }

    /// Exports a release, reads it, and checks it against its own manifest.txt, if it has one.
    fn read(&self, name: &str) -> Outcome<Release> {
        let scratch = tempfile::tempdir()?;
        let directory = scratch.path().join("release");
        self.run(&["export", name, &directory.to_string_lossy()])?;
        let release = Release::read(name, &directory)?;
        if let Some(manifest) = release.pages.get("/manifest.txt") {
            let own = std::str::from_utf8(manifest)?;
            if own != http::manifest_text(&release.pages) {
                return Err(format!("release {name} is not what its manifest.txt says").into());
            }
        }
        Ok(release)
    }
}

fn position(names: &[String], name: &str) -> Outcome<usize> {
    let found = names.iter().position(|other| other == name);
    found.ok_or_else(|| format!("no release {name}").into())
}

fn address_of(url: &str) -> Outcome<SocketAddr> {
    let host = url
        .strip_prefix("http://")
        .map(|rest| rest.trim_end_matches('/'))
        .filter(|host| !host.contains('/'))
        .ok_or_else(|| format!("not http://HOST:PORT: {url}"))?;
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let first = host.to_socket_addrs()?.next();
    first.ok_or_else(|| format!("no address: {host}").into())
}

/// `target/release/examples/visitors` stands beside `target/release/verfs`.
fn built_beside_us() -> Outcome<PathBuf> {
    let own = std::env::current_exe()?;
    let found =
        own.ancestors().skip(1).take(2).map(|directory: &Path| directory.join("verfs")).find(|path| path.is_file());
    found.ok_or_else(|| "no verfs beside this program: give --verfs".into())
}

/// What is printed at the end.
struct Report {
    tally: Tally,
    switches: usize,
    took: Duration,
    calls: Vec<u64>,
    uploads: Option<Known>,
}

impl Report {
    fn is_clean(&self) -> bool {
        // With no request and no upload there was nothing to notice.
        let nothing_lost = self.uploads.as_ref().is_none_or(|known| known.lost == 0 && known.uploads > 0);
        self.tally.is_clean() && self.tally.requests > 0 && nothing_lost
    }

    fn json(&self) -> Value {
        let tally = &self.tally;
        json!({
            "requests": tally.requests,
            "failed": tally.failed,
            "torn": tally.torn,
            "crossed": tally.crossed,
            "stale": tally.stale,
            "slowest_us": tally.slowest.as_micros() as u64,
            "switches": self.switches,
            "switch_us": self.calls,
            "not_modified": tally.not_modified,
            "not_found": tally.not_found,
            "pages": tally.pages,
            "manifests": tally.manifests,
            "bytes": tally.bytes,
            "seconds": self.took.as_secs_f64(),
            "complaints": tally.complaints,
            "uploads": self.uploads.as_ref().map(|known| json!({
                "uploads": known.uploads,
                "deletions": known.deletions,
                "lost": known.lost,
                "complaints": known.complaints,
            })),
        })
    }

    fn print(&self) {
        let tally = &self.tally;
        let slowest = format!("{:.1} ms", tally.slowest.as_secs_f64() * 1e3);
        print!("{:>10} {:>8} {:>6} {:>7} {:>10} {:>9}", "requests", "failed", "torn", "stale", "slowest", "switches");
        if self.uploads.is_some() {
            print!(" {:>9} {:>10} {:>6}", "uploads", "deletions", "lost");
        }
        println!();
        print!(
            "{:>10} {:>8} {:>6} {:>7} {:>10} {:>9}",
            tally.requests, tally.failed, tally.torn, tally.stale, slowest, self.switches
        );
        if let Some(known) = &self.uploads {
            print!(" {:>9} {:>10} {:>6}", known.uploads, known.deletions, known.lost);
        }
        println!();
        println!();
        println!(
            "{:.0} requests a second; {} answers were 304 and {} were 404, all of them right; {} pages with all they refer to and {} manifests checked.",
            tally.requests as f64 / self.took.as_secs_f64(),
            tally.not_modified,
            tally.not_found,
            tally.pages,
            tally.manifests,
        );
        if tally.crossed > 0 {
            println!(
                "{} answers had the length of one release and the body of the next: Apache looked the file up before the switch and opened it after.",
                tally.crossed
            );
        }
        if let Some(known) = &self.uploads {
            let (there, gone) = known.count();
            println!(
                "At the end {there} files were compared byte for byte, in the mount and over HTTP, and {gone} deleted names looked for."
            );
        }
        let mut calls = self.calls.clone();
        calls.sort_unstable();
        if let (Some(median), Some(longest)) = (calls.get(calls.len() / 2), calls.last()) {
            println!("A switch took {median} us (median), {longest} us at most.");
        }
        let lost = self.uploads.iter().flat_map(|known| &known.complaints);
        for complaint in tally.complaints.iter().chain(lost) {
            println!("  {complaint}");
        }
    }
}
