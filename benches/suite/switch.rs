//! Row 5: what a switch takes, and what readers notice of it.
//!
//! Two threads read hot files at random. In the middle of a window comes the switch; the half before it shows the same readers without one.

use super::chance::Chance;
use super::measure::{Board, Spread, Unit, interleave};
use super::peers::VERFS;
use super::plots::Plot;
use super::report::{Limit, Section, Target};
use super::stage::{self, Outcome, Stage, drop_caches, sync, timed};
use super::trees::{self, Pair, Sizes};
use super::verfs::{Mount, Store};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SYMLINK: &str = "symlink";
const MOVE: &str = "mv and mv";
/// verfs with all but the objects of its store in memory, where an fsync costs nothing, and without the gate
/// (`switch.settle_ms = 0`), which lets those who are in the middle of a file finish before the swap.
const BARE: &str = "verfs, fsyncs free, no gate";

const STEP: Duration = Duration::from_millis(50);
/// Steps before the switch, and as many from it on.
const STEPS: usize = 20;
const READERS: u64 = 2;

const CALL: &str = "call, nobody reading";
const CALL_LOADED: &str = "call, under the readers";
const SWAP: &str = "write lock held";
const LOWEST: &str = "lowest step, of the median before";
const LOWEST_CALM: &str = "lowest step before the switch";
const SLOWEST: &str = "slowest operation";
const SLOWEST_CALM: &str = "slowest operation before the switch, in ms";
const CHANGED: &str = "changed entries";
const LOOKUPS: &str = "LOOKUPs after it";
const MEASURES: [(&str, Unit); 9] = [
    (CALL, Unit::Milliseconds),
    (CALL_LOADED, Unit::Milliseconds),
    (SWAP, Unit::Microseconds),
    (LOWEST, Unit::Share),
    // Nothing is judged by these two: they show how calm the machine is.
    (LOWEST_CALM, Unit::Count),
    (SLOWEST, Unit::Milliseconds),
    (SLOWEST_CALM, Unit::Count),
    (CHANGED, Unit::Count),
    (LOOKUPS, Unit::Count),
];

pub fn run(stage: &Stage) -> Outcome<Section> {
    let rounds = stage.size(2, 9);
    let hot = stage.size(5_000, 50_000);
    let mut boards = Vec::new();
    let mut targets = Vec::new();
    let mut plots = Vec::new();

    for &changed in stage.size(&[10, 1000][..], &[100, 1000, 10_000][..]) {
        let pair = Pair::new(stage, hot, changed, Sizes::Bytes(2048))?;
        let plain = Symlinked::new(stage, hot, changed)?;
        let title = format!("{changed} changed of {hot} hot files");
        let (board, lines) = compare(stage, &title, &pair, Some(&plain), hot, rounds)?;
        if boards.is_empty() {
            targets.extend(targets_of(&board, 10.0));
            let (file, axis) = ("switch-throughput".to_owned(), "reads a second, in thousands".to_owned());
            plots.push(Plot::Lines { file, title: format!("{title}, median of {rounds} switches"), axis, lines });
        }
        boards.push(board);
    }
    for &files in stage.size(&[1000][..], &[10_000, 100_000][..]) {
        let pair = Pair::new(stage, files, 100, Sizes::Bytes(256))?;
        let title = format!("100 changed in a tree of {files}");
        boards.push(compare(stage, &title, &pair, None, hot.min(files), rounds)?.0);
    }
    let pair = trees::largest(stage)?;
    let title = format!("100 changed in a tree of {}", pair.files);
    let (board, _) = compare(stage, &title, pair, None, hot, rounds)?;
    targets.extend(targets_of(&board, 15.0));
    boards.push(board);

    let renamed = moves(stage, stage.size(20, 200))?;
    plots.push(calls(&boards));
    boards.push(renamed);
    let [first, second] = pair.added;
    Ok(Section {
        number: 5,
        name: "switch",
        title: "The switch".to_owned(),
        how: format!(
            "With nobody reading there is a switch to the other release. Then {READERS} threads open, read and close hot files at random, as fast as \
             they can, and in the middle of {} steps of {} ms comes the switch back; {rounds} rounds. \
             The call is what `verfs switch --json` says of it, without the wait for a second of its own. To see it without its \
             fsyncs and without the gate (`switch.settle_ms`: who is in the middle of a file finishes before the swap, newcomers for changed \
             names wait), the same store is served a second time with all but its objects on a file system in memory and the gate off. The write lock is what verfs \
             says of the swap. The lowest step is judged by the median of the steps before the switch, and the half before it, in which nothing \
             is switched, is shown beside it. Then every hot file is read again: the LOOKUPs since before the window are what the kernel had to \
             forget. The symlink is renamed over the old one, without an fsync.",
            2 * STEPS,
            STEP.as_millis()
        ),
        plots,
        targets,
        boards,
        remarks: vec![
            format!(
                "The two `verfs add` of the tree of {} files took {first:.1} s and, with 100 of them changed, {second:.1} s.",
                pair.files
            ),
            "These readers never pause, so the more names change the more of them wait before the swap: the gate's price, which `switch.settle_ms` \
             sets. What it buys is whole files: without it a server that looks a file up for its length and then opens it meets the swap between \
             the two more often (`cargo test --features faults --test apache visitors -- --nocapture` counts it as crossed)."
                .to_owned(),
        ],
        took: 0.0,
    })
}

fn targets_of(board: &Board, call: f64) -> Vec<Target> {
    let own = |contender: &str, measure: &str| board.spread(contender, measure);
    let title = &board.title;
    let beside = board.spread(VERFS, SLOWEST).zip(board.spread(VERFS, SLOWEST_CALM)).map(|(with, without)| {
        let by = |figure: f64| figure / without.median;
        Spread { median: by(with.median), least: by(with.least), most: by(with.most), ..with }
    });
    vec![
        Target::new(
            format!("{title}: call, nobody reading, without its fsyncs"),
            Limit::AtMost(call),
            Unit::Milliseconds,
            own(BARE, CALL),
        ),
        Target::own(board, SWAP, Limit::AtMost(50.0)),
        Target::own(board, LOWEST, Limit::AtLeast(0.8)),
        Target::new(
            format!("{title}: slowest operation, against without a switch"),
            Limit::AtMost(1.2),
            Unit::Count,
            beside,
        ),
    ]
}

/// The calls of all boards beside each other.
fn calls(boards: &[Board]) -> Plot {
    let call = |board: &Board| Some((board.title.clone(), board.spread(BARE, CALL)?));
    Plot::Bars {
        file: "switch-calls".to_owned(),
        title: "The call of a switch with nobody reading, without its fsyncs".to_owned(),
        axis: "milliseconds".to_owned(),
        bars: boards.iter().filter_map(call).collect(),
    }
}

/// Something that can be switched between two releases, and read.
enum Site<'a> {
    Verfs(Mount),
    Plain(&'a Symlinked),
}

impl Site<'_> {
    fn root(&self) -> PathBuf {
        match self {
            Site::Verfs(mount) => mount.root().to_owned(),
            Site::Plain(plain) => plain.current(),
        }
    }

    /// Time of the call in milliseconds and, of verfs, its answer.
    fn switch(&self, to: &str) -> Outcome<(f64, Option<Value>)> {
        match self {
            Site::Verfs(mount) => {
                let answer = mount.store.ask(&["switch", to])?;
                if answer["changed"].as_u64().unwrap_or(0) == 0 {
                    return Err(format!("a switch that changes nothing: {answer}").into());
                }
                let call = answer["call_us"].as_f64().ok_or("switch does not say call_us")?;
                Ok((call / 1e3, Some(answer)))
            }
            Site::Plain(plain) => Ok((plain.switch(to)? * 1e3, None)),
        }
    }
}

/// Throughput by contender: milliseconds from the switch, and thousands of reads a second.
type Lines = Vec<(String, Vec<(f64, f64)>)>;

fn compare(
    stage: &Stage,
    title: &str,
    pair: &Pair,
    plain: Option<&Symlinked>,
    hot: usize,
    rounds: usize,
) -> Outcome<(Board, Lines)> {
    stage.say(title);
    let twin = Twin::new(stage, pair)?;
    let mut sites: Vec<(&str, Site)> =
        vec![(VERFS, Site::Verfs(pair.store.mount(stage)?)), (BARE, Site::Verfs(twin.store.mount(stage)?))];
    sites.extend(plain.map(|plain| (SYMLINK, Site::Plain(plain))));
    let step = pair.files / hot;
    let mut board = Board::new(title, if plain.is_some() { SYMLINK } else { VERFS }, &MEASURES);
    let mut steps: Vec<(&str, Vec<Vec<f64>>)> = Vec::new();
    for (name, site) in &sites {
        steps.push((name, vec![Vec::new(); 2 * STEPS]));
        // Twice: after its first reading, a file's access time is asked for once more.
        let paths = paths_of(site, hot, step);
        (0..2).try_for_each(|_| read_all(&paths))?;
    }
    interleave(
        stage,
        rounds,
        &sites,
        |_| 1,
        |round, (name, site)| {
            sync(stage.root())?;
            let paths = paths_of(site, hot, step);
            // There with nobody reading, and back under the readers: so each round begins alike.
            board.note(round, name, CALL, site.switch("02")?.0);
            read_all(&paths)?;
            let lookups = || match site {
                Site::Verfs(mount) => Ok(mount.upcalls()?.get("lookup").copied()),
                Site::Plain(_) => Outcome::Ok(None),
            };
            let before = lookups()?;
            let window = watch(&paths, || site.switch("01"))?;
            read_all(&paths)?;
            let mut note = |measure: &str, figure: f64| board.note(round, name, measure, figure);
            note(CALL_LOADED, window.call);
            if let Some(answer) = &window.answer {
                note(SWAP, answer["swap_us"].as_f64().ok_or("switch does not say swap_us")?);
                note(CHANGED, answer["changed"].as_f64().ok_or("switch does not say changed")?);
            }
            if let (Some(before), Some(after)) = (before, lookups()?) {
                note(LOOKUPS, (after - before) as f64);
            }
            let (calm, after) = window.rates.split_at(STEPS);
            let median = Spread::of(calm.to_vec()).map_or(f64::NAN, |spread| spread.median);
            let lowest = |rates: &[f64]| rates.iter().copied().fold(f64::MAX, f64::min) / median;
            note(LOWEST, lowest(after));
            note(LOWEST_CALM, lowest(calm));
            note(SLOWEST, window.slowest[1]);
            note(SLOWEST_CALM, window.slowest[0]);
            if let Some((_, all)) = steps.iter_mut().find(|(known, _)| known == name) {
                all.iter_mut().zip(&window.rates).for_each(|(all, rate)| all.push(*rate));
            }
            Ok(())
        },
    )?;
    let lines = steps.into_iter().filter(|(name, _)| *name != BARE).map(|(name, all)| {
        let point = |(at, rates): (usize, Vec<f64>)| {
            let middle = (at as f64 - STEPS as f64 + 0.5) * STEP.as_millis() as f64;
            Some((middle, Spread::of(rates)?.median / 1e3))
        };
        (name.to_owned(), all.into_iter().enumerate().filter_map(point).collect())
    });
    Ok((board, lines.collect()))
}

fn paths_of(site: &Site, hot: usize, step: usize) -> Vec<PathBuf> {
    let root = site.root();
    (0..hot).map(|i| root.join(trees::path_of(i * step))).collect()
}

fn read_all(paths: &[PathBuf]) -> Outcome<()> {
    let mut buffer = vec![0; 1 << 16];
    paths
        .iter()
        .try_for_each(|path| read(path, &mut buffer).map_err(|error| format!("{}: {error}", path.display()).into()))
}

/// Opens, reads to the end, closes.
fn read(path: &Path, buffer: &mut [u8]) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    while file.read(buffer)? > 0 {}
    Ok(())
}

/// What the readers did around a switch.
struct Window {
    /// Reads a second, by step.
    rates: Vec<f64>,
    /// The slowest operation before the switch began and from then on, in milliseconds.
    slowest: [f64; 2],
    /// Milliseconds.
    call: f64,
    answer: Option<Value>,
}

fn watch(paths: &[PathBuf], switch: impl FnOnce() -> Outcome<(f64, Option<Value>)> + Send) -> Outcome<Window> {
    let reads = AtomicU64::new(0);
    // Nanoseconds; before and after the switch has begun.
    let slowest = [AtomicU64::new(0), AtomicU64::new(0)];
    let (begun, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|seed| {
                let (reads, slowest, begun, stop) = (&reads, &slowest, &begun, &stop);
                scope.spawn(move || -> Result<(), String> {
                    let mut random = Chance::new(seed);
                    let mut buffer = vec![0; 1 << 16];
                    while !stop.load(Relaxed) {
                        let path = &paths[random.below(paths.len())];
                        let from = Instant::now();
                        read(path, &mut buffer).map_err(|error| format!("{}: {error}", path.display()))?;
                        let took = from.elapsed().as_nanos() as u64;
                        slowest[usize::from(begun.load(Relaxed))].fetch_max(took, Relaxed);
                        reads.fetch_add(1, Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let mut rates = Vec::new();
        let (mut switching, mut switch) = (None, Some(switch));
        let (mut at, mut seen) = (Instant::now(), 0);
        for step in 0..2 * STEPS {
            if step == STEPS {
                begun.store(true, Relaxed);
                // On a thread of its own: the steps go on while it works.
                switching = switch.take().map(|switch| scope.spawn(|| switch().map_err(|error| error.to_string())));
            }
            thread::sleep(STEP.saturating_sub(at.elapsed()));
            let (now, count) = (Instant::now(), reads.load(Relaxed));
            rates.push((count - seen) as f64 / (now - at).as_secs_f64());
            (at, seen) = (now, count);
        }
        stop.store(true, Relaxed);
        for reader in readers {
            reader.join().map_err(|_| "a reader died")??;
        }
        let (call, answer) = switching.ok_or("no switch")?.join().map_err(|_| "the switching thread died")??;
        let slowest = slowest.each_ref().map(|nanoseconds| nanoseconds.load(Relaxed) as f64 / 1e6);
        Ok(Window { rates, slowest, call, answer })
    })
}

/// Two plain trees and a symlink to one of them.
struct Symlinked {
    directory: TempDir,
}

impl Symlinked {
    fn new(stage: &Stage, files: usize, changed: usize) -> Outcome<Symlinked> {
        let plain = Symlinked { directory: stage.directory()? };
        let sizes = Sizes::Bytes(2048);
        for release in ["01", "02"] {
            trees::write(stage, &plain.release(release), files, sizes)?;
        }
        trees::change(&plain.release("02"), files, changed, 1, 0, sizes)?;
        plain.switch("01")?;
        Ok(plain)
    }

    fn release(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn current(&self) -> PathBuf {
        self.directory.path().join("current")
    }

    /// Seconds that it took.
    fn switch(&self, to: &str) -> Outcome<f64> {
        let next = self.directory.path().join("next");
        let (seconds, ()) = timed(|| {
            symlink(to, &next)?;
            Ok(fs::rename(&next, self.current())?)
        })?;
        Ok(seconds)
    }
}

/// The store of a pair once more, all but its objects on a tmpfs: what `verfs switch` makes durable there costs no disk. Its
/// gate is off.
struct Twin {
    store: Store,
    mounts: Vec<PathBuf>,
    _directory: TempDir,
}

impl Twin {
    fn new(stage: &Stage, pair: &Pair) -> Outcome<Twin> {
        let directory = stage.directory()?;
        let root = directory.path().to_owned();
        let mut twin = Twin { store: Store::at(stage, root.join("store")), mounts: Vec::new(), _directory: directory };
        stage::run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=0755", "tmpfs"]).arg(&root))?;
        twin.mounts.push(root);
        fs::create_dir(&twin.store.path)?;
        for entry in fs::read_dir(&pair.store.path)? {
            let entry = entry?;
            if entry.file_name() != OsStr::new("objects") {
                stage::run(Command::new("cp").arg("-a").arg(entry.path()).arg(&twin.store.path))?;
            }
        }
        let settings = twin.store.path.join("verfs.toml");
        let text = fs::read_to_string(&settings)?;
        let open = text.replace("settle_ms = 40", "settle_ms = 0");
        if open == text {
            return Err(format!("{} has no settle_ms = 40", settings.display()).into());
        }
        fs::write(&settings, open)?;
        let objects = twin.store.path.join("objects");
        fs::create_dir(&objects)?;
        stage::run(Command::new("mount").arg("--bind").arg(pair.store.path.join("objects")).arg(&objects))?;
        twin.mounts.push(objects);
        Ok(twin)
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        for mountpoint in self.mounts.iter().rev() {
            if let Err(error) = rustix::mount::unmount(mountpoint, rustix::mount::UnmountFlags::DETACH) {
                eprintln!("{}: {error}", mountpoint.display());
            }
        }
    }
}

/// The calls of the usual ways alone: nobody reads meanwhile.
fn moves(stage: &Stage, rounds: usize) -> Outcome<Board> {
    const ALONE: &str = "rename";
    const SYNCED: &str = "rename, then fsync of the directory";
    let measures = [(ALONE, Unit::Microseconds), (SYNCED, Unit::Microseconds)];
    let mut board = Board::new("The calls of the usual ways, with nobody reading", SYMLINK, &measures);
    let directory = stage.directory()?;
    let root = directory.path();
    let name = |name: &str| root.join(name);
    ["01", "02"].iter().try_for_each(|release| fs::create_dir(name(release)))?;
    symlink("01", name("current"))?;
    drop_caches()?;
    interleave(
        stage,
        rounds,
        &[SYMLINK, MOVE],
        |_| 1,
        |round, way| {
            for measure in [ALONE, SYNCED] {
                let (seconds, ()) = timed(|| {
                    if *way == SYMLINK {
                        symlink("02", name("next"))?;
                        fs::rename(name("next"), name("current"))?;
                    } else {
                        fs::rename(name("01"), name("old"))?;
                        fs::rename(name("02"), name("01"))?;
                    }
                    if measure == SYNCED {
                        File::open(root)?.sync_all()?;
                    }
                    Ok(())
                })?;
                board.note(round, way, measure, seconds * 1e6);
                if *way == MOVE {
                    fs::rename(name("old"), name("02"))?;
                }
            }
            Ok(())
        },
    )?;
    Ok(board)
}
