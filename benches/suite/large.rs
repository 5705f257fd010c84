//! Row 4: one large file from its beginning to its end, and the memory that the page cache holds afterwards.

use super::measure::{Board, Unit, interleave};
use super::peers::{self, FUSE, NATIVE, Source};
use super::plots::Plot;
use super::report::{Limit, Section, Target};
use super::stage::{Outcome, Stage, drop_caches, timed};
use super::trees::Random;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

const COLD: &str = "cold";
const HOT: &str = "hot";
const HELD: &str = "page cache held, in sizes of the file";
const MEASURES: [(&str, Unit); 3] = [(COLD, Unit::MibPerSecond), (HOT, Unit::MibPerSecond), (HELD, Unit::Count)];

/// What a file system gives back after the reading, it has given back by then.
const SETTLE: Duration = Duration::from_secs(3);

pub fn run(stage: &Stage) -> Outcome<Section> {
    let (mib, rounds) = stage.size((64, 2), (1024, 7));
    stage.needs_disk((mib as u64) << 21)?;
    let source = Source::new(stage, |root| {
        let mut random = Random::new(4);
        let mut file = File::create(root.join("large.bin"))?;
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
            let file = mounted.root.join("large.bin");
            let before = cached_mib()?;
            let (cold, length) = timed(|| read(&file))?;
            if length != mib << 20 {
                return Err(format!("{name}: {length} bytes of {mib} MiB").into());
            }
            board.note(round, name, HELD, (settled(mib)? - before) / mib as f64);
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
             (cold) and once more (hot). The memory held is the growth of the page cache over the cold reading, {} s after it. {rounds} rounds.",
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
        remarks: Vec::new(),
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

/// The page cache as soon as it holds the file only once, or when the time to settle is over.
fn settled(mib: usize) -> Outcome<f64> {
    let (first, end) = (cached_mib()?, Instant::now() + SETTLE);
    loop {
        let now = cached_mib()?;
        if Instant::now() >= end || first - now > mib as f64 * 0.9 {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The page cache, in MiB.
fn cached_mib() -> Outcome<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Cached:")).ok_or("no Cached in /proc/meminfo")?;
    Ok(line.split_whitespace().next().unwrap_or("").parse::<f64>()? / 1024.0)
}
