//! Row 8: the daemon's memory, and how long a mount takes.

use super::measure::{Board, Unit};
use super::peers::VERFS;
use super::report::{Limit, Section, Target};
use super::stage::{Outcome, Stage, drop_caches, sync};
use super::trees;
use super::verfs::Mount;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::io::Read;

const READY: &str = "verfs mount, to ready";
const READY_COLD: &str = "the same, caches dropped";

const MOUNTED: &str = "mounted";
const WALKED: &str = "after a full walk";
const READ: &str = "after reading files";
const AGAIN: &str = "after walking and reading again";
const STAGES: [&str; 4] = [MOUNTED, WALKED, READ, AGAIN];

pub fn run(stage: &Stage) -> Outcome<Section> {
    let pair = trees::largest(stage)?;
    let (rounds, read) = stage.size((2, 1000), (9, 100_000));
    let mut start = Board::new("Start", VERFS, &[(READY, Unit::Milliseconds), (READY_COLD, Unit::Milliseconds)]);
    sync(stage.root())?;
    for round in 0..rounds {
        stage.go_on()?;
        // The first mount of a pair finds nothing in the page cache, the second the manifest and the program.
        drop_caches()?;
        for measure in [READY_COLD, READY] {
            let mount = pair.store.mount(stage)?;
            start.note(round, VERFS, measure, mount.ready.as_secs_f64() * 1e3);
        }
    }

    let measures = STAGES.map(|name| (name, Unit::Mib));
    let mut own = Board::new("Memory of the daemon's own (RssAnon)", VERFS, &measures);
    let mut all = Board::new("All resident memory (VmRSS), pages of the manifest included", VERFS, &measures);
    let mount = pair.store.mount(stage)?;
    let mut note = |measure: &str, mount: &Mount| -> Outcome<()> {
        let (anonymous, resident) = mount.memory()?;
        own.note(0, VERFS, measure, anonymous);
        all.note(0, VERFS, measure, resident);
        Ok(())
    };
    note(MOUNTED, &mount)?;
    walk(stage, &mount, pair.files)?;
    note(WALKED, &mount)?;
    let step = (pair.files / read).max(1);
    read_files(stage, &mount, pair.files, step)?;
    note(READ, &mount)?;
    walk(stage, &mount, pair.files)?;
    read_files(stage, &mount, pair.files, step)?;
    note(AGAIN, &mount)?;
    drop(mount);

    let growth = own.spread(VERFS, READ).zip(own.spread(VERFS, AGAIN)).map(|(before, after)| {
        let by = after.median - before.median;
        super::measure::Spread { median: by, least: by, most: by, rounds: 1 }
    });
    let mut targets = vec![Target::own(&start, READY, Limit::AtMost(100.0))];
    targets.extend(STAGES.map(|measure| Target::own(&own, measure, Limit::AtMost(48.0))));
    // The allocator rounds up; what grows with use grows by more.
    targets.push(Target::new(
        "RssAnon: growth by walking and reading all again",
        Limit::AtMost(2.0),
        Unit::Mib,
        growth,
    ));
    Ok(Section {
        number: 8,
        name: "memory",
        title: "Memory and start".to_owned(),
        how: format!(
            "A release of {} files. `verfs mount` returns when it is ready; {rounds} rounds, each with dropped caches \
             first and then with what the first mount left in the page cache. Memory: after the mount, after listing everything and asking for all \
             attributes, after opening and reading {read} files, of which as many stay open meanwhile as the limit of open files allows, and \
             after both once more.",
            pair.files
        ),
        plots: Vec::new(),
        targets,
        boards: vec![start, own, all],
        remarks: Vec::new(),
        took: 0.0,
    })
}

fn walk(stage: &Stage, mount: &Mount, files: usize) -> Outcome<()> {
    match trees::walk(stage, mount.root())? {
        found if found == files => Ok(()),
        found => Err(format!("{found} files of {files}").into()),
    }
}

/// Opens every `step`th file and reads it; as many stay open at once as may.
fn read_files(stage: &Stage, mount: &Mount, files: usize, step: usize) -> Outcome<()> {
    let wanted: Vec<usize> = (0..files).step_by(step).collect();
    let limit = OpenFiles::allow(wanted.len())?;
    let mut bytes = Vec::new();
    for portion in wanted.chunks(limit.count) {
        let mut open = Vec::with_capacity(portion.len());
        for i in portion {
            stage.go_on()?;
            let mut file = File::open(mount.root().join(trees::path_of(*i)))?;
            bytes.clear();
            file.read_to_end(&mut bytes)?;
            open.push(file);
        }
    }
    Ok(())
}

/// More open files than usual for this process; as before when dropped, so that what it starts later does not inherit it.
struct OpenFiles {
    /// How many may be open beside what this process has open anyway.
    count: usize,
    before: Rlimit,
}

impl OpenFiles {
    const OTHERS: u64 = 1000;

    /// Room for so many, or for as many as this process is allowed.
    fn allow(wanted: usize) -> Outcome<OpenFiles> {
        let before = getrlimit(Resource::Nofile);
        let wanted = wanted as u64 + Self::OTHERS;
        let allowed = before.maximum.map_or(wanted, |maximum| wanted.min(maximum));
        setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: before.maximum })?;
        Ok(OpenFiles { count: allowed.saturating_sub(Self::OTHERS).max(1) as usize, before })
    }
}

impl Drop for OpenFiles {
    fn drop(&mut self) {
        let _ = setrlimit(Resource::Nofile, self.before);
    }
}
