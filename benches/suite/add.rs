//! Row 6: how long it takes to freeze a tree, against the usual ways to copy or commit one.

use super::measure::{Board, Unit, interleave};
use super::peers::VERFS;
use super::plots::Plot;
use super::report::{Limit, Section, Target};
use super::stage::{self, Outcome, Stage, sync, timed};
use super::trees::{self, Sizes};
use super::verfs::Store;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

const COPY: &str = "cp -a, sync";
const RSYNC: &str = "rsync -a, sync";
const OSTREE: &str = "ostree commit";
const GIT: &str = "git add, commit, sync";

const FIRST: &str = "first";
const AGAIN: &str = "again, unchanged";
const CHANGED: &str = "again, 1 % changed";

pub fn run(stage: &Stage) -> Outcome<Section> {
    let (files, rounds) = stage.size((2000, 2), (100_000, 4));
    // The source, and one copy: each way's goes before the next one's turn.
    stage.needs_disk(files as u64 * 2 * 10_000)?;
    let directory = stage.directory()?;
    let source = directory.path().join("source");
    trees::write(stage, &source, files, Sizes::Php)?;
    let lengths: Result<Vec<u64>, _> =
        trees::files_below(&source)?.iter().map(|file| Ok::<_, std::io::Error>(file.metadata()?.len())).collect();
    let bytes: u64 = lengths?.iter().sum();
    let measures = [FIRST, AGAIN, CHANGED].map(|name| (name, Unit::Seconds));
    let mut board = Board::new(format!("{files} files, {} MiB", bytes >> 20), COPY, &measures);
    let mut edition = 0;
    // git and ostree are slow: a part of the rounds shows it.
    let every = |name: &&str| if [OSTREE, GIT].contains(name) { 2 } else { 1 };
    interleave(stage, rounds, &[COPY, VERFS, RSYNC, OSTREE, GIT], every, |round, name| {
        if stage.missing().contains_key(*name) {
            return Ok(());
        }
        stage.say(&format!("round {}, {name}", round + 1));
        match turn(stage, name, &source, files, &mut edition) {
            Ok(times) => {
                times.into_iter().for_each(|(measure, seconds)| board.note(round, name, measure, seconds));
                Ok(())
            }
            Err(why) if [VERFS, COPY].contains(name) => Err(why),
            Err(why) => {
                stage.miss(name, &why.to_string());
                Ok(())
            }
        }
    })?;

    let share = |measure: &str, limit: f64| {
        let what = format!("{}: {measure}, against its own first time", board.title);
        let of_first = board.spread(VERFS, measure).zip(board.spread(VERFS, FIRST)).map(|(own, first)| {
            let by = |figure: f64| figure / first.median;
            super::measure::Spread { median: by(own.median), least: by(own.least), most: by(own.most), ..own }
        });
        Target::new(what, Limit::AtMost(limit), Unit::Share, of_first)
    };
    let ostree = board.ratio_between(VERFS, OSTREE, FIRST);
    let targets = vec![
        Target::ratio(&board, FIRST, Limit::AtMost(1.5)),
        share(AGAIN, 0.1),
        share(CHANGED, 0.2),
        Target::new(format!("{}: {FIRST}, against {OSTREE}", board.title), Limit::AtMost(0.5), Unit::Share, ostree),
    ];
    Ok(Section {
        number: 6,
        name: "add",
        title: "add".to_owned(),
        how: format!(
            "A tree of {files} files with sizes as in a PHP tree, just written and so in the page cache, as after a build. Each way gets it three \
             times: into an empty place, again unchanged, and again with 1 % of the files changed (cp -a copies to an empty place each time; ostree commit takes as long each time, so only its first is shown). \
             Everything counts until it is on disk: {VERFS} and ostree see to that themselves, after the others the file system is synced. {rounds} \
             rounds."
        ),
        plots: vec![Plot::ratios("add-first", &board, FIRST)],
        targets,
        boards: vec![board],
        remarks: vec![format!(
            "Only {VERFS}, ostree and git compute hashes of what they take. As rsync and git do, {VERFS} does not read a file again \
             that looks as before; most of what is left is looking at each file twice, so that a source that changes meanwhile is noticed."
        )],
        took: 0.0,
    })
}

fn turn(
    stage: &Stage,
    name: &str,
    source: &Path,
    files: usize,
    edition: &mut usize,
) -> Outcome<Vec<(&'static str, f64)>> {
    let way = Way::new(stage, name, source)?;
    let mut times = Vec::new();
    for (number, measure) in [FIRST, AGAIN, CHANGED].into_iter().enumerate() {
        if name == OSTREE && measure != FIRST {
            // It reads and hashes all of it each time.
            continue;
        }
        if measure == CHANGED {
            *edition += 1;
            // 62 editions have content of their own.
            trees::change(source, files, files / 100, *edition % 62, *edition, Sizes::Php)?;
        }
        sync(source)?;
        let (seconds, ()) = timed(|| way.take(number + 1))?;
        times.push((measure, seconds));
    }
    Ok(times)
}

/// One way to keep a tree, with the place it keeps it in.
struct Way<'a> {
    name: &'a str,
    source: &'a Path,
    place: PathBuf,
    store: Option<Store>,
    _directory: tempfile::TempDir,
}

impl<'a> Way<'a> {
    fn new(stage: &Stage, name: &'a str, source: &'a Path) -> Outcome<Way<'a>> {
        let directory = stage.directory()?;
        let place = directory.path().join("place");
        let at = place.as_os_str();
        let store = match name {
            VERFS => Some(Store::init(stage, place.clone())?),
            OSTREE => {
                stage::run(Command::new("ostree").args(["init", "--mode=bare", "--repo"]).arg(at))?;
                None
            }
            GIT => {
                stage::run(Command::new("git").args(["init", "--quiet"]).arg(at))?;
                None
            }
            _ => None,
        };
        Ok(Way { name, source, place, store, _directory: directory })
    }

    /// Takes the tree, for the `number`th time.
    fn take(&self, number: usize) -> Outcome<()> {
        let at = self.place.as_os_str();
        match self.name {
            VERFS => {
                let store = self.store.as_ref().ok_or("no store")?;
                store.add(&format!("{number:02}"), self.source)?;
                return Ok(());
            }
            COPY => {
                let to = self.place.with_extension(number.to_string());
                stage::run(Command::new("cp").arg("-a").arg(self.source).arg(to))?;
            }
            RSYNC => {
                let mut from = self.source.as_os_str().to_owned();
                from.push("/");
                stage::run(Command::new("rsync").arg("-a").arg(from).arg(at))?;
            }
            OSTREE => {
                let mut tree = OsStr::new("--tree=dir=").to_owned();
                tree.push(self.source);
                let mut command = Command::new("ostree");
                command.args(["commit", "--branch=site", "--subject=release", "--repo"]).arg(at).arg(tree);
                stage::run(&mut command)?;
                return Ok(());
            }
            GIT => {
                let git = |arguments: &[&str]| {
                    let mut command = Command::new("git");
                    command.arg("--git-dir").arg(self.place.join(".git")).arg("--work-tree").arg(self.source);
                    command.args(["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"]);
                    stage::run(command.args(arguments))
                };
                git(&["add", "--all"])?;
                git(&["commit", "--quiet", "--allow-empty", "--message", "release"])?;
            }
            other => return Err(format!("no such way: {other}").into()),
        }
        sync(self.place.parent().unwrap_or(&self.place))
    }
}
