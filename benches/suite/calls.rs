//! Row 2: system calls on what is hot.

use super::chance::Chance;
use super::measure::{Board, Unit, interleave};
use super::peers::{self, FUSE, NATIVE, Source, VERFS};
use super::plots::Plot;
use super::report::{Limit, Section, Target};
use super::stage::{Outcome, Stage};
use rustix::fs::{Access, Mode, OFlags, RawDir};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Six directories deep, as everything that is measured here.
const DEEP: &str = "a/b/c/d/e/f";
/// Names in the directory that is listed.
const NAMES: usize = 1000;

const STAT: &str = "stat";
const READ: &str = "open+fstat+read 4 KiB+close";
const ENOENT: &str = "stat, ENOENT";
const ACCESS: &str = "access";
const READLINK: &str = "readlink";
const READDIR: &str = "readdir of 1,000";
const CALLS: [&str; 6] = [STAT, READ, ENOENT, ACCESS, READLINK, READDIR];

pub fn run(stage: &Stage) -> Outcome<Section> {
    let (rounds, share) = stage.size((3, Duration::from_millis(10)), (11, Duration::from_millis(60)));
    let source = Source::new(stage, lay_down)?;
    let times = CALLS.map(|call| (call, Unit::Nanoseconds));
    let mut board = Board::new("Hot system calls", NATIVE, &times);
    let asked = CALLS.map(|call| (call, Unit::Count));
    let mut upcalls = Board::new("Upcalls for each hot call", NATIVE, &asked);

    let contenders = peers::mount_all(stage, &peers::all(), &source)?;
    // Twice: what the first call brings into the cache may make the second ask for something else.
    for ((_, mounted), call) in contenders.iter().flat_map(|mount| CALLS.map(|call| (mount, call))) {
        repeat(call, &mounted.root, Duration::from_millis(2))?;
    }
    interleave(
        stage,
        rounds,
        &contenders,
        |_| 1,
        |round, (name, mounted)| {
            for call in CALLS {
                let before = mounted.upcalls()?;
                let (count, took) = repeat(call, &mounted.root, share)?;
                board.note(round, name, call, took.as_nanos() as f64 / count as f64);
                if let (Some(before), Some(after)) = (before, mounted.upcalls()?) {
                    upcalls.note(round, name, call, (after - before) as f64 / count as f64);
                }
            }
            Ok(())
        },
    )?;
    drop(contenders);

    let most = |call: &str, limit| Target::ratio(&board, call, Limit::AtMost(limit));
    let none = |call: &str| Target::own(&upcalls, call, Limit::AtMost(0.0));
    let mut targets =
        vec![most(READ, 1.45), most(STAT, 1.5), most(READDIR, 2.0), none(ACCESS), none(READLINK), none(ENOENT)];
    targets.push(Target::ahead(&board, READ, &FUSE));
    Ok(Section {
        number: 2,
        name: "calls",
        title: "Hot system calls".to_owned(),
        how: format!(
            "One thread repeats each call for {} ms on a path {} directories deep that it has used before, {rounds} rounds. The directory \
             that is listed is opened, read to its end and closed each time.",
            share.as_millis(),
            DEEP.split('/').count()
        ),
        plots: vec![Plot::ratios("calls-read", &board, READ), Plot::ratios("calls-stat", &board, STAT)],
        targets,
        boards: vec![board, upcalls],
        remarks: vec![format!(
            "{VERFS} answers a listing itself each time: the kernel's cache of listings loses names, so it is not used."
        )],
        took: 0.0,
    })
}

fn lay_down(root: &Path) -> Outcome<()> {
    let deep = root.join(DEEP);
    fs::create_dir_all(deep.join("many"))?;
    let mut bytes = vec![0; 4096];
    Chance::new(2).fill(&mut bytes);
    fs::write(deep.join("file.html"), bytes)?;
    symlink("file.html", deep.join("link"))?;
    for name in 0..NAMES {
        fs::write(deep.join("many").join(format!("name-{name}.php")), "")?;
    }
    Ok(())
}

/// Repeats a call until the time is over; how often, and how long it took.
fn repeat(call: &str, root: &Path, share: Duration) -> Outcome<(u64, Duration)> {
    let deep = root.join(DEEP);
    let (file, missing, link, many) =
        (deep.join("file.html"), deep.join("missing"), deep.join("link"), deep.join("many"));
    let mut buffer = vec![0; 4096];
    let mut names = vec![MaybeUninit::uninit(); 1 << 15];
    let mut once: Box<dyn FnMut() -> io::Result<bool>> = match call {
        STAT => Box::new(|| Ok(rustix::fs::stat(&file)?.st_size == 4096)),
        READ => Box::new(|| {
            let file = rustix::fs::open(&file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let size = rustix::fs::fstat(&file)?.st_size;
            Ok(rustix::io::read(&file, &mut buffer[..])? as i64 == size)
        }),
        ENOENT => Box::new(|| Ok(rustix::fs::stat(&missing).err() == Some(rustix::io::Errno::NOENT))),
        ACCESS => Box::new(|| Ok(rustix::fs::access(&file, Access::READ_OK).is_ok())),
        READLINK => Box::new(|| Ok(rustix::fs::readlink(&link, Vec::new())?.as_bytes() == b"file.html")),
        READDIR => Box::new(|| list(&many, &mut names)),
        other => return Err(format!("no such call: {other}").into()),
    };
    let mut count = 0;
    let begun = Instant::now();
    loop {
        // The clock is read once for some calls, so that it is not what is measured.
        for _ in 0..if call == READDIR { 1 } else { 64 } {
            if !once().map_err(|error| format!("{call} in {}: {error}", root.display()))? {
                return Err(format!("{call} in {} gives what nobody wrote", root.display()).into());
            }
            count += 1;
        }
        let took = begun.elapsed();
        if took >= share {
            return Ok((count, took));
        }
    }
}

/// Whether a directory has all its names.
fn list(directory: &PathBuf, buffer: &mut [MaybeUninit<u8>]) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let mut entries = RawDir::new(directory, buffer);
    let mut count = 0;
    while let Some(entry) = entries.next() {
        entry?;
        count += 1;
    }
    // "." and ".." are not everybody's.
    Ok((NAMES..=NAMES + 2).contains(&count))
}
