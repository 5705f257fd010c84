//! Row 3: the first walk and the first reading of a tree, with nothing in any cache, and with the backing store in the page cache.

use super::chance::Chance;
use super::measure::{Board, Unit, interleave};
use super::peers::{self, FUSE, NATIVE, Source, VERFS};
use super::plots::Plot;
use super::report::{Limit, Section, Target};
use super::stage::{Outcome, Stage, drop_caches, sync, timed};
use super::trees::{self, Sizes};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

const WALK: &str = "walk";
const READ: &str = "open+read of all";

#[derive(Clone, Copy, PartialEq)]
enum Caches {
    /// Dropped before the mount: everything comes from the disk.
    Dropped,
    /// What lies on disk is in the page cache; the mount is new.
    Backing,
    /// The same, and no processor halts while it waits.
    BackingAwake,
}

/// Asks that a processor wakes up in no time (Documentation/power/pm_qos_interface.rst); the kernel keeps to it as long as
/// what this gives is open.
fn keep_awake() -> Outcome<File> {
    let mut latency = File::options().write(true).open("/dev/cpu_dma_latency")?;
    latency.write_all(&0i32.to_ne_bytes())?;
    Ok(latency)
}

pub fn run(stage: &Stage) -> Outcome<Section> {
    let (files, rounds) = stage.size((1000, 2), (10_000, 7));
    let source = Source::new(stage, |root| trees::write(stage, root, files, Sizes::Php))?;
    let measures = [(WALK, Unit::Milliseconds), (READ, Unit::Milliseconds)];
    let mut cold = Board::new(format!("{files} files, caches dropped, fresh mount"), NATIVE, &measures);
    let mut backing = Board::new(format!("{files} files, backing store cached, fresh mount"), NATIVE, &measures);
    let mut awake =
        Board::new(format!("{files} files, backing store cached, processors kept awake"), NATIVE, &measures);
    let mut upcalls = Board::new("Upcalls, all of it", NATIVE, &[(WALK, Unit::Count), (READ, Unit::Count)]);
    sync(stage.root())?;

    // The peers are slow: every second round shows it.
    let every = |name: &&str| if [NATIVE, VERFS].contains(name) { 1 } else { 2 };
    let (all, ours) = (peers::all(), vec![NATIVE, VERFS]);
    let mut kinds = vec![(Caches::Dropped, &mut cold, &all), (Caches::Backing, &mut backing, &all)];
    let can_be_kept_awake = keep_awake().is_ok();
    if can_be_kept_awake {
        kinds.push((Caches::BackingAwake, &mut awake, &ours));
    }
    for (caches, board, contenders) in kinds {
        interleave(stage, rounds, contenders, every, |round, name| {
            for measure in [WALK, READ] {
                match caches {
                    Caches::Dropped => drop_caches()?,
                    Caches::Backing | Caches::BackingAwake => warm(&source, name)?,
                }
                let _awake = if caches == Caches::BackingAwake { Some(keep_awake()?) } else { None };
                let Some(mounted) = peers::mount(stage, name, &source)? else { return Ok(()) };
                let before = mounted.upcalls()?;
                let (seconds, found) = timed(|| match measure {
                    WALK => trees::walk(stage, &mounted.root),
                    _ => read_all(&mounted.root, files),
                })?;
                if found != files {
                    return Err(format!("{name}: {measure}: {found} files of {files}").into());
                }
                board.note(round, name, measure, seconds * 1e3);
                if let (Some(before), Some(after), Caches::Dropped) = (before, mounted.upcalls()?, caches) {
                    upcalls.note(round, name, measure, (after - before) as f64);
                }
            }
            Ok(())
        })?;
    }
    Ok(Section {
        number: 3,
        name: "cold",
        title: "Cold".to_owned(),
        how: format!(
            "{files} files with sizes as in a PHP tree (half under 3 KiB), {} in a directory. The walk lists every directory and asks for the \
             attributes of every file; the other opens and reads every file in a fixed random order. Before each, a fresh mount: after /proc/sys/vm/drop_caches, or \
             after everything on disk was read. The native directory with its backing store cached is simply hot. {rounds} rounds, and half as many for the peers.",
            trees::FANOUT
        ),
        plots: vec![Plot::ratios("cold-read", &cold, READ), Plot::ratios("cold-walk", &cold, WALK)],
        targets: vec![
            Target::ratio(&cold, WALK, Limit::AtMost(1.0)),
            Target::ratio(&backing, WALK, Limit::AtMost(2.0)),
            Target::ratio(&cold, READ, Limit::AtMost(2.0)),
            Target::ahead(&cold, READ, &FUSE),
            Target::ratio(&backing, READ, Limit::AtMost(6.0)),
        ],
        boards: [Some(cold), Some(backing), can_be_kept_awake.then_some(awake), Some(upcalls)].into_iter().flatten().collect(),
        remarks: vec![
            "With the backing store cached what is left is the upcalls: for each file a LOOKUP and a READ, for each directory an OPENDIR and two \
             READDIRs, and each wakes a thread on another processor and then the one that waits. In a virtual machine whose idle processors halt \
             at once (guest_halt_poll_ns of the haltpoll governor is 0) the waking is a large part of it: where there is a table with the processors \
             kept awake (0 in /dev/cpu_dma_latency, held open), it shows how much."
                .to_owned(),
        ],
        took: 0.0,
    })
}

/// Brings what lies on disk for one contender into the page cache.
fn warm(source: &Source, name: &str) -> Outcome<()> {
    let behind = if name == VERFS { &source.store.path } else { &source.tree };
    for file in trees::files_below(behind)? {
        fs::read(file)?;
    }
    Ok(())
}

fn read_all(root: &Path, files: usize) -> Outcome<usize> {
    let mut order: Vec<usize> = (0..files).collect();
    let mut random = Chance::new(3);
    (1..files).rev().for_each(|at| order.swap(at, random.below(at + 1)));
    let mut buffer = vec![0; 1 << 16];
    for i in &order {
        let mut file = File::open(root.join(trees::path_of(*i)))?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(order.len())
}
