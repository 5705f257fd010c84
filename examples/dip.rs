//! Does throughput dip when a release is switched? Two readers open, read and close hot files at random, one switch falls in the middle, and the
//! work done is printed in steps of 50 ms. Then every file is read once: the number of LOOKUPs since the switch tells what the kernel had to forget.
//!
//! Needs root and /dev/fuse. `scripts/dip` builds and runs it.

use clap::Parser;
use serde_json::Value;
use std::error::Error;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// One line of the output stands for so much time.
const STEP: Duration = Duration::from_millis(50);

/// Print the throughput of two readers around a switch.
#[derive(Parser)]
struct Options {
    /// Files of a release
    #[arg(long, default_value_t = 50_000)]
    files: usize,
    /// Files that differ between the two releases
    #[arg(long, default_value_t = 100)]
    changed: usize,
    /// Files of a directory
    #[arg(long, default_value_t = 100)]
    fanout: usize,
    /// Bytes of a file
    #[arg(long, default_value_t = 2048)]
    size: usize,
    /// Reading threads
    #[arg(long, default_value_t = 2)]
    readers: u64,
    /// Steps of 50 ms before the switch, and as many after it
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// The program to measure; default: the verfs that was built with this one
    #[arg(long)]
    verfs: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dip: {error}");
            ExitCode::FAILURE
        }
    }
}

/// True if the number of LOOKUPs was within its limit.
fn run(options: &Options) -> Outcome<bool> {
    if options.fanout == 0 || options.files == 0 || options.changed > options.files {
        return Err("so many files cannot be".into());
    }
    let scratch = tempfile::Builder::new().prefix("verfs-dip.").tempdir()?;
    let verfs = Verfs {
        program: match &options.verfs {
            Some(program) => program.clone(),
            None => built_beside_us()?,
        },
        store: scratch.path().join("store"),
        docroot: scratch.path().join("docroot"),
    };
    let source = scratch.path().join("source");
    let paths: Vec<PathBuf> =
        (0..options.files).map(|i| PathBuf::from(format!("{}/{i}.html", i / options.fanout))).collect();

    eprintln!("{} files, {} of them changed", paths.len(), options.changed);
    for (i, path) in paths.iter().enumerate() {
        write(&source.join(path), i, 0, options.size)?;
    }
    verfs.run(&["init", &verfs.store.to_string_lossy()])?;
    verfs.run(&["add", "01", &source.to_string_lossy()])?;
    let mut changed_directories: Vec<usize> = (0..options.changed)
        .map(|k| k * options.files / options.changed)
        .map(|i| write(&source.join(&paths[i]), i, 1, options.size + 1).map(|()| i / options.fanout))
        .collect::<Outcome<_>>()?;
    changed_directories.dedup();
    verfs.run(&["switch", "01"])?;
    fs::create_dir(&verfs.docroot)?;
    verfs.run(&["mount", &verfs.store.to_string_lossy(), &verfs.docroot.to_string_lossy()])?;
    let mounted = Mounted(&verfs);
    verfs.run(&["add", "02", &source.to_string_lossy()])?;

    let paths: Vec<PathBuf> = paths.iter().map(|path| verfs.docroot.join(path)).collect();
    // Twice: after its first reading, a file's access time is asked for once more.
    for _ in 0..2 {
        read_all(&paths)?;
    }
    let before = verfs.lookups()?;
    let (counts, answer) = measure(options, &paths, &verfs)?;
    read_all(&paths)?;
    let lookups = verfs.lookups()? - before;
    drop(mounted);

    let switched = options.steps;
    for (step, count) in counts.iter().enumerate() {
        let at = (step as i64 - switched as i64) * STEP.as_millis() as i64;
        let rate = *count as f64 / STEP.as_secs_f64() / 1e3;
        let mark = if step == switched { "  <- switch" } else { "" };
        println!("{at:>6} ms {rate:>8.0} k reads/s{mark}");
    }
    let mut calm = counts[..switched].to_vec();
    calm.sort_unstable();
    let median = calm.get(calm.len() / 2).copied().unwrap_or(0).max(1);
    let lowest = counts[switched..].iter().min().copied().unwrap_or(0);
    println!("lowest step after the switch: {:.2} of the median before it", lowest as f64 / median as f64);
    println!("switch: {} entries changed, {} us", answer["changed"], answer["call_us"]);
    // What the design allows: the changed names, their directories, and a few for the walk to them.
    let limit = options.changed as u64 * 11 / 10 + changed_directories.len() as u64 + 50;
    println!("LOOKUPs since before the switch, every file read again: {lookups} (at most {limit})");
    Ok(lookups <= limit)
}

/// Reads per step, the switch being at the middle, and the answer of the switch.
fn measure(options: &Options, paths: &[PathBuf], verfs: &Verfs) -> Outcome<(Vec<u64>, Value)> {
    let reads = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 0..options.readers {
            let (reads, stop) = (&reads, &stop);
            scope.spawn(move || read_at_random(paths, seed, reads, stop));
        }
        let mut counts = Vec::new();
        let mut answer = None;
        let mut switching = None;
        let begun = Instant::now();
        let mut seen = 0;
        for step in 0..2 * options.steps {
            if step == options.steps {
                // On a thread of its own: the steps go on while it works.
                switching = Some(scope.spawn(|| {
                    let answer = verfs.run(&["switch", "02", "--json"]);
                    answer.map_err(|error| error.to_string())
                }));
            }
            let due = STEP * (step as u32 + 1);
            thread::sleep(due.saturating_sub(begun.elapsed()));
            let now = reads.load(Relaxed);
            counts.push(now - seen);
            seen = now;
        }
        stop.store(true, Relaxed);
        if let Some(switching) = switching {
            let output = switching.join().map_err(|_| "the switching thread died")??;
            answer = Some(serde_json::from_slice(&output)?);
        }
        Ok((counts, answer.ok_or("no switch")?))
    })
}

fn read_at_random(paths: &[PathBuf], seed: u64, reads: &AtomicU64, stop: &AtomicBool) {
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let path = &paths[(random >> 16) as usize % paths.len()];
        match read(path, &mut buffer) {
            Ok(()) => reads.fetch_add(1, Relaxed),
            Err(error) => {
                eprintln!("dip: {}: {error}", path.display());
                std::process::exit(1);
            }
        };
    }
}

fn read_all(paths: &[PathBuf]) -> Outcome<()> {
    let mut buffer = vec![0; 1 << 16];
    for path in paths {
        read(path, &mut buffer).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Opens, reads to the end, closes.
fn read(path: &Path, buffer: &mut [u8]) -> std::io::Result<()> {
    let mut file = fs::File::open(path)?;
    while file.read(buffer)? > 0 {}
    Ok(())
}

fn write(path: &Path, number: usize, edition: usize, size: usize) -> Outcome<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let line = format!("file {number}, edition {edition}\n");
    let text: Vec<u8> = line.bytes().cycle().take(size).collect();
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(())
}

/// The command line program, with its store and mountpoint.
struct Verfs {
    program: PathBuf,
    store: PathBuf,
    docroot: PathBuf,
}

impl Verfs {
    fn run(&self, arguments: &[&str]) -> Outcome<Vec<u8>> {
        let output = Command::new(&self.program)
            .args(arguments)
            .env("VERFS_STORE", &self.store)
            .output()
            .map_err(|error| format!("{}: {error}", self.program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("verfs {}: {}", arguments.join(" "), said.trim()).into());
        }
        Ok(output.stdout)
    }

    fn lookups(&self) -> Outcome<u64> {
        let status: Value = serde_json::from_slice(&self.run(&["status", "--json"])?)?;
        let count = status["upcalls"]["lookup"].as_u64();
        count.ok_or_else(|| format!("no count of lookups: {status}").into())
    }
}

/// Unmounts at the end, however that comes about.
struct Mounted<'a>(&'a Verfs);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.run(&["umount", &self.0.store.to_string_lossy()]) {
            eprintln!("dip: {error}");
        }
    }
}

/// `target/release/examples/dip` stands beside `target/release/verfs`.
fn built_beside_us() -> Outcome<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|directory| directory.join("verfs")).find(|path| path.is_file());
    found.ok_or_else(|| "no verfs beside this program: give --verfs".into())
}
