//! Row 7: writing in the media layer.

use super::chance::Chance;
use super::measure::{Board, Unit, interleave};
use super::peers::{self, NATIVE, Source, VERFS, WRITABLE};
use super::plots::Plot;
use super::report::{Limit, Section, Target};
use super::stage::{Outcome, Stage, drop_caches, sync, timed};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

const SEQUENTIAL: &str = "sequential write";
const SYNCED: &str = "sequential write, fsync at the end";
const CREATE: &str = "create, write 4 KiB, close";
const UNLINK: &str = "unlink";
const APPEND: &str = "append 100 bytes";
const FSYNC: &str = "append 100 bytes, fsync each";
const MEASURES: [(&str, Unit); 6] = [
    (SEQUENTIAL, Unit::MibPerSecond),
    (SYNCED, Unit::MibPerSecond),
    (CREATE, Unit::Microseconds),
    (UNLINK, Unit::Microseconds),
    (APPEND, Unit::Microseconds),
    (FSYNC, Unit::Microseconds),
];

struct Sizes {
    mib: usize,
    files: usize,
    appends: usize,
    fsyncs: usize,
}

pub fn run(stage: &Stage) -> Outcome<Section> {
    let sizes = stage.size(
        Sizes { mib: 32, files: 500, appends: 1000, fsyncs: 20 },
        Sizes { mib: 1024, files: 10_000, appends: 10_000, fsyncs: 200 },
    );
    let rounds = stage.size(2, 7);
    stage.needs_disk((sizes.mib as u64) << 22)?;
    let source = Source::new(stage, |root| {
        fs::create_dir(root.join("media"))?;
        fs::write(root.join("index.html"), "hello")?;
        Ok(())
    })?;
    let mut board = Board::new("Writing in media", NATIVE, &MEASURES);
    let contenders = peers::mount_all(stage, &WRITABLE, &source)?;
    interleave(
        stage,
        rounds,
        &contenders,
        |_| 1,
        |round, (name, mounted)| {
            // What others left to be written to disk is not to be paid for here.
            sync(stage.root())?;
            turn(&mut board, round, name, &mounted.root.join("media"), &sizes)
        },
    )?;
    drop(contenders);
    drop_caches()?;

    let peer = ["fuse-overlayfs"];
    let mut targets = vec![
        Target::ratio(&board, SEQUENTIAL, Limit::AtLeast(0.7)),
        Target::ratio(&board, SYNCED, Limit::AtLeast(0.7)),
        Target::ratio(&board, CREATE, Limit::AtMost(4.0)),
    ];
    targets.extend(MEASURES.map(|(measure, _)| Target::ahead(&board, measure, &peer)));
    Ok(Section {
        number: 7,
        name: "media",
        title: "Media: writing".to_owned(),
        how: format!(
            "{} MiB written to a new file in pieces of 1 MiB (to the close, and to the end of one fsync after it); {} times create, write 4 KiB, \
             close, in one directory, and then unlink of each; {} appends of 100 bytes to one open file, and {} with an fsync after each. In a \
             scope of {VERFS}, in a plain directory, and in the upper layer of the overlays. {rounds} rounds.",
            sizes.mib, sizes.files, sizes.appends, sizes.fsyncs
        ),
        plots: vec![Plot::ratios("media-create", &board, CREATE), Plot::ratios("media-sequential", &board, SEQUENTIAL)],
        targets,
        boards: vec![board],
        remarks: vec![
            "Each write(2) is an upcall, and is answered when the file system below has it: so a full disk or a quota is told at the write, which a \
             kernel that writes back later could tell only at close, if at all."
                .to_owned(),
            format!(
                "A large file goes to disk while {VERFS} is still being written to, so that the fsync waits for little, and the memory of what is on \
                 disk is used for what comes next. The others take new memory for all of it, which the host of a virtual machine may have to \
                 give first: then that costs more than the upcalls."
            ),
        ],
        took: 0.0,
    })
}

fn turn(board: &mut Board, round: usize, name: &str, media: &Path, sizes: &Sizes) -> Outcome<()> {
    let mut piece = vec![0; 1 << 20];
    Chance::new(7).fill(&mut piece);

    let large = media.join("large.bin");
    let (written, ()) = timed(|| {
        let mut file = File::create(&large)?;
        (0..sizes.mib).try_for_each(|_| file.write_all(&piece))?;
        Ok(())
    })?;
    let (synced, ()) = timed(|| Ok(File::open(&large)?.sync_all()?))?;
    board.note(round, name, SEQUENTIAL, sizes.mib as f64 / written);
    board.note(round, name, SYNCED, sizes.mib as f64 / (written + synced));
    if fs::metadata(&large)?.len() != (sizes.mib << 20) as u64 {
        return Err(format!("{name}: a written file has another length").into());
    }
    fs::remove_file(&large)?;

    let each = |seconds: f64, count: usize| seconds * 1e6 / count as f64;
    let many = media.join("many");
    fs::create_dir(&many)?;
    let names: Vec<_> = (0..sizes.files).map(|number| many.join(format!("upload-{number}.jpg"))).collect();
    let (took, ()) =
        timed(|| Ok(names.iter().try_for_each(|name| File::create_new(name)?.write_all(&piece[..4096]))?))?;
    board.note(round, name, CREATE, each(took, sizes.files));
    let (took, ()) = timed(|| Ok(names.iter().try_for_each(fs::remove_file)?))?;
    board.note(round, name, UNLINK, each(took, sizes.files));
    fs::remove_dir(&many)?;

    let log = media.join("log.txt");
    let mut file = OpenOptions::new().append(true).create_new(true).open(&log)?;
    let (took, ()) = timed(|| Ok((0..sizes.appends).try_for_each(|_| file.write_all(&piece[..100]))?))?;
    board.note(round, name, APPEND, each(took, sizes.appends));
    let (took, ()) = timed(|| {
        for _ in 0..sizes.fsyncs {
            file.write_all(&piece[..100])?;
            file.sync_all()?;
        }
        Ok(())
    })?;
    board.note(round, name, FSYNC, each(took, sizes.fsyncs));
    drop(file);
    fs::remove_file(&log)?;
    Ok(())
}
