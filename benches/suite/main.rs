//! The benchmark suite: verfs against the plain directory and against everything that people would use instead. `scripts/bench` installs the
//! peers, builds it and runs it.
//!
//! One file for each row; none of them decides how anything is counted (measure.rs), mounted (peers.rs) or said (report.rs). No figure decides
//! whether a run succeeds: it fails if a row could not be carried out for verfs itself.

mod add;
mod apache;
mod calls;
#[path = "../../tests/support/chance.rs"]
mod chance;
mod cold;
mod large;
mod machine;
mod measure;
mod media;
mod memory;
mod peers;
mod plots;
mod report;
mod stage;
mod switch;
mod trees;
mod verfs;

use clap::Parser;
use machine::Machine;
use report::{Report, Section};
use stage::{Outcome, Stage};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Measures one row.
type Row = fn(&Stage) -> Outcome<Section>;

/// The rows, in the order in which they run; the name is what stands on the command line.
///
/// With the minutes that it may take: together less than an hour, on two processors and a disk that is not the fastest.
const ROWS: [(&str, Row, u64); 8] = [
    ("apache", apache::run, 11),
    ("calls", calls::run, 1),
    ("cold", cold::run, 6),
    ("large", large::run, 4),
    ("switch", switch::run, 14),
    ("add", add::run, 12),
    ("media", media::run, 5),
    ("memory", memory::run, 5),
];

/// Measure verfs against the plain directory and its peers
#[derive(Parser)]
struct Options {
    /// Rows to run, by name or number: apache, calls, cold, large, switch, add, media, memory; default: all
    rows: Vec<String>,
    /// Small sizes and few rounds: shows that the suite works, in under 5 minutes
    #[arg(long)]
    quick: bool,
    /// Where the report goes; default: docs/BENCHMARKS.md for a full run of all rows, else target/bench/BENCHMARKS.md
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A directory on the disk to measure; everything is made in a new directory there, which goes at the end
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/tmp")]
    dir: PathBuf,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// True if every row could be carried out.
fn run(options: &Options) -> Outcome<bool> {
    if !rustix::process::geteuid().is_root() {
        return Err("it mounts file systems and drops caches, so it needs root".into());
    }
    let chosen = chosen(&options.rows)?;
    let verfs = PathBuf::from(env!("CARGO_BIN_EXE_verfs"));
    let stage = Stage::new(&options.dir.canonicalize()?, options.quick, verfs)?;
    let mut report = Report {
        quick: options.quick,
        machine: Machine::look(stage.root())?,
        versions: peers::versions(),
        sections: Vec::new(),
        missing: BTreeMap::new(),
        failed: BTreeMap::new(),
    };
    for number in &chosen {
        let (name, row, minutes) = ROWS[*number];
        stage.begin_row(Duration::from_secs(60 * minutes));
        stage.say(&format!("row {}, {name}", number + 1));
        let (begun, drops) = (Instant::now(), stage::foreign_drops());
        match row(&stage) {
            Ok(mut section) => {
                section.took = begun.elapsed().as_secs_f64();
                let drops = stage::foreign_drops() - drops;
                if drops > 0 {
                    let warning =
                        "while this row ran somebody else dropped the kernel's caches, so what is called hot was not";
                    section.remarks.push(format!("**Not to be trusted**: {drops} times {warning}."));
                }
                report.sections.push(section);
            }
            Err(why) => {
                stage.go_on()?;
                stage.say(&format!("row {name} could not be carried out: {why}"));
                report.failed.insert(name.to_owned(), why.to_string());
            }
        }
    }
    report.missing = stage.missing();
    println!("{}\n{}", report.machine.words(), report.text());

    let beside = beside_the_build()?;
    let whole = !options.quick && chosen.len() == ROWS.len() && report.failed.is_empty();
    let out = match &options.out {
        Some(out) => std::path::absolute(out)?,
        None if whole => Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/BENCHMARKS.md"),
        None => beside.join("BENCHMARKS.md"),
    };
    let json = beside.join("last.json");
    report.write(&out, &json)?;
    stage.say(&format!("written: {} and {}", out.display(), json.display()));
    Ok(report.failed.is_empty())
}

/// The numbers, from 0, of the rows that were named; all if none was.
fn chosen(named: &[String]) -> Outcome<Vec<usize>> {
    if named.is_empty() {
        return Ok((0..ROWS.len()).collect());
    }
    let find = |name: &String| {
        let by_number =
            name.parse().ok().filter(|number| (1..=ROWS.len()).contains(number)).map(|number: usize| number - 1);
        let found = by_number.or_else(|| ROWS.iter().position(|(row, ..)| row == name));
        found.ok_or_else(|| format!("no row {name}: there are {}", ROWS.map(|(row, ..)| row).join(", ")).into())
    };
    named.iter().map(find).collect()
}

/// `target/bench`, made: this program is `target/release/deps/suite-…`.
fn beside_the_build() -> Outcome<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).ok_or("this program is not where cargo builds it")?;
    let directory = target.join("bench");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}
