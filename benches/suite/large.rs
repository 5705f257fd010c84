//! Row 4: one large file from its beginning to its end, and the memory that the page cache holds afterwards.

use super::chance::Chance;
use super::measure::{Board, Unit, interleave};
use super::peers::{self, FUSE, Mounted, NATIVE, OVERLAY, Source, VERFS};
use super::plots::Plot;
use super::report::{Limit, Section, Target};
use super::stage::{self, Outcome, Stage, drop_caches, timed};
use super::trees;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const FILE: &str = "large.bin";

const COLD: &str = "cold";
const HOT: &str = "hot";
const HELD: &str = "page cache held, in sizes of the file";
const MEASURES: [(&str, Unit); 3] = [(COLD, Unit::MibPerSecond), (HOT, Unit::MibPerSecond), (HELD, Unit::Count)];

/// What a file system gives back after the reading, it has given back by then.
const SETTLE: Duration = Duration::from_secs(1);

pub fn run(stage: &Stage) -> Outcome<Section> {
    let (mib, rounds) = stage.size((64, 2), (1024, 7));
    stage.needs_disk((mib as u64) << 21)?;
    let source = Source::new(stage, |root| {
        let mut random = Chance::new(4);
        let mut file = File::create(root.join(FILE))?;
        let mut piece = vec![0; 1 << 20];
        for _ in 0..mib {
            random.fill(&mut piece);
            file.write_all(&piece)?;
        }
        Ok(())
    })?;
    let mut board = Board::new(format!("{mib} MiB, sequential"), NATIVE, &MEASURES);
    interleave(
        stage,
        rounds,
        &peers::all(),
        |_| 1,
        |round, name| {
            drop_caches()?;
            let Some(mounted) = peers::mount(stage, name, &source)? else { return Ok(()) };
            let file = mounted.root.join(FILE);
            let (cold, length) = timed(|| read(&file))?;
            if length != mib << 20 {
                return Err(format!("{name}: {length} bytes of {mib} MiB").into());
            }
            board.note(round, name, HELD, settled(&source, name, &mounted, mib)?);
            let (hot, _) = timed(|| read(&file))?;
            board.note(round, name, COLD, mib as f64 / cold);
            board.note(round, name, HOT, mib as f64 / hot);
            Ok(())
        },
    )?;
    drop_caches()?;
    Ok(Section {
        number: 4,
        name: "large",
        title: "A large file".to_owned(),
        how: format!(
            "A file of {mib} MiB that does not pack, read from its beginning to its end in pieces of 1 MiB, after drop_caches and a fresh mount \
             (cold) and once more (hot). The memory held is what the page cache has of the file after the cold reading, at the mount and on the disk behind it, \
             {} s after it at most. {rounds} rounds.",
            SETTLE.as_secs()
        ),
        plots: vec![Plot::ratios("large-cold", &board, COLD), Plot::ratios("large-hot", &board, HOT)],
        targets: vec![
            Target::ratio(&board, COLD, Limit::AtLeast(0.95)),
            Target::ratio(&board, HOT, Limit::AtLeast(0.95)),
            // About once the file's size, not twice.
            Target::own(&board, HELD, Limit::AtMost(1.2)),
            Target::ahead(&board, COLD, &FUSE),
        ],
        boards: vec![board],
        remarks: vec![
            "Hot: the kernel keeps the pages of a FUSE file one by one, and those of ext4 in large folios, so a read of 1 MiB takes 256 pages \
             together instead of a few: alike for every FUSE file system that lets the kernel keep pages."
                .to_owned(),
        ],
        took: 0.0,
    })
}

fn read(path: &Path) -> Outcome<usize> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(length),
            count => length += count,
        }
    }
}

/// The page cache as soon as it holds the file only once, or when the time to settle is over; in sizes of the file.
fn settled(source: &Source, name: &str, mounted: &Mounted, mib: usize) -> Outcome<f64> {
    let end = Instant::now() + SETTLE;
    loop {
        let held = held(source, name, mounted)? as f64 / (mib << 20) as f64;
        if held <= 1.05 || Instant::now() >= end {
            return Ok(held);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes of the file that are in memory: those that the mount has, and those of what lies on disk behind it.
fn held(source: &Source, name: &str, mounted: &Mounted) -> Outcome<u64> {
    let served = mounted.root.join(FILE);
    match name {
        // Its pages are those of the plain file.
        NATIVE | OVERLAY => resident(&[source.tree.join(FILE)]),
        VERFS => Ok(resident(&[served])? + resident(&trees::files_below(&source.store.path)?)?),
        _ => Ok(resident(&[served])? + resident(&[source.tree.join(FILE)])?),
    }
}

/// Bytes of some files that the page cache holds. Files that are not mapped, as with direct I/O, have none there.
fn resident(files: &[PathBuf]) -> Outcome<u64> {
    let text = stage::run(Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).args(files))?;
    Ok(String::from_utf8(text)?.split_whitespace().filter_map(|number| number.parse::<u64>().ok()).sum())
}
