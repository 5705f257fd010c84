//! The report: tables for people on stdout and in Markdown, figures for programs in JSON. Every figure and every judgement in it is computed
//! from what was measured; only the words around them are written.

use super::machine::Machine;
use super::measure::{Board, Spread, Unit, digits};
use super::peers;
use super::plots::Plot;
use super::stage::Outcome;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// What a figure should be.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

/// A figure beside what it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    pub what: String,
    pub limit: Limit,
    pub unit: Unit,
    /// None: it could not be measured.
    pub measured: Option<Spread>,
}

impl Target {
    pub fn new(what: impl Into<String>, limit: Limit, unit: Unit, measured: Option<Spread>) -> Target {
        Target { what: what.into(), limit, unit, measured }
    }

    /// verfs's ratio to the base of the board.
    pub fn ratio(board: &Board, measure: &str, limit: Limit) -> Target {
        let what = format!("{}: {measure}, against {}", board.title, board.base);
        Target::new(what, limit, Unit::Share, board.ratio(peers::VERFS, measure))
    }

    /// verfs's own figure.
    pub fn own(board: &Board, measure: &str, limit: Limit) -> Target {
        let what = format!("{}: {measure}", board.title);
        Target::new(what, limit, board.unit(measure), board.spread(peers::VERFS, measure))
    }

    /// verfs against the best of some others: 1 or more is ahead.
    pub fn ahead(board: &Board, measure: &str, others: &[&str]) -> Target {
        let best = board.best(others, measure);
        let named = best.map_or("any of them", |(name, _)| name);
        let what = format!("{}: {measure}, ahead of the best FUSE peer ({named})", board.title);
        let own = board.spread(peers::VERFS, measure);
        let lead = own.zip(best).map(|(own, (_, best))| {
            let lead = |figure: f64| if board.unit(measure).more_is_better() { figure / best } else { best / figure };
            let (a, b) = (lead(own.least), lead(own.most));
            Spread { median: lead(own.median), least: a.min(b), most: a.max(b), rounds: own.rounds }
        });
        Target::new(what, Limit::AtLeast(1.0), Unit::Share, lead)
    }

    pub fn is_met(&self) -> Option<bool> {
        let median = self.measured?.median;
        Some(match self.limit {
            Limit::AtLeast(least) => median >= least,
            Limit::AtMost(most) => median <= most,
        })
    }

    fn cells(&self) -> Vec<String> {
        let limit = match self.limit {
            Limit::AtLeast(least) => format!("at least {}", self.unit.show(least)),
            Limit::AtMost(most) => format!("at most {}", self.unit.show(most)),
        };
        let measured = self.measured.map_or("not measured".to_owned(), |spread| {
            let ends = format!("{} to {}", digits(spread.least), digits(spread.most));
            format!("{} ({ends}, n={})", self.unit.show(spread.median), spread.rounds)
        });
        let verdict = match self.is_met() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "not measured",
        };
        vec![self.what.clone(), limit, measured, verdict.to_owned()]
    }
}

/// What one row of the suite found.
#[derive(Debug, Serialize)]
pub struct Section {
    pub number: u8,
    pub name: &'static str,
    pub title: String,
    /// How it was measured, in sentences.
    pub how: String,
    pub boards: Vec<Board>,
    pub targets: Vec<Target>,
    /// Figures in sentences.
    pub remarks: Vec<String>,
    #[serde(skip)]
    pub plots: Vec<Plot>,
    /// Seconds that the row took.
    pub took: f64,
}

/// Everything.
#[derive(Serialize)]
pub struct Report {
    pub quick: bool,
    pub machine: Machine,
    pub versions: Vec<(String, String)>,
    pub sections: Vec<Section>,
    /// Peers that could not take part, and why.
    pub missing: BTreeMap<String, String>,
    /// Rows that could not be carried out, and why.
    pub failed: BTreeMap<String, String>,
}

impl Report {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for section in &self.sections {
            let _ = writeln!(text, "\n== {}. {} ({:.0} s)", section.number, section.title, section.took);
            for (title, lines) in section.tables() {
                let _ = writeln!(text, "\n{title}\n{}", aligned(&lines));
            }
            for remark in &section.remarks {
                let _ = writeln!(text, "{remark}");
            }
        }
        for (name, why) in &self.missing {
            let _ = writeln!(text, "\n{name} could not take part: {why}");
        }
        for (name, why) in &self.failed {
            let _ = writeln!(text, "\nrow {name} could not be carried out: {why}");
        }
        text
    }

    /// For docs/. Plots are expected in `plots/` beside it.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# What verfs costs\n\n");
        if self.quick {
            text +=
                "**From a quick run with small sizes: it shows that the suite works, not how fast anything is.**\n\n";
        }
        text += "Written by `scripts/bench`, which anybody can run: nothing here was typed in. Every comparison is interleaved (A B A B), so that what \
                 slows the machine down slows all of them down; figures are medians, and a ratio is the median of the ratios of single rounds, with the \
                 least and the most in brackets. Read ratios between 0.85 and 1.2 with a wide spread as equal.\n\n";
        text += &self.machine.words();
        text += "\n\nVersions: ";
        text += &self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect::<Vec<_>>().join(", ");
        text += ".\n\n";
        if self.missing.is_empty() {
            text += "Every peer took part.\n";
        }
        for (name, why) in &self.missing {
            let _ = writeln!(text, "- **{name}** could not take part: {why}");
        }
        for (name, why) in &self.failed {
            let _ = writeln!(text, "- **Row {name} could not be carried out**: {why}");
        }
        text += "\n## The targets\n\n";
        let targets: Vec<&Target> = self.sections.iter().flat_map(|section| &section.targets).collect();
        let met = targets.iter().filter(|target| target.is_met() == Some(true)).count();
        let _ = writeln!(text, "{met} of {} are met. Each is judged by its median.\n", targets.len());
        let mut lines = vec![["row", "figure", "target", "measured", "met"].map(str::to_owned).to_vec()];
        for section in &self.sections {
            lines.extend(
                section.targets.iter().map(|target| [vec![section.number.to_string()], target.cells()].concat()),
            );
        }
        text += &piped(&lines);
        text += "\n## What is slower\n\n";
        text += &self.slower();
        for section in &self.sections {
            let _ = writeln!(text, "\n## {}. {}\n\n{}", section.number, section.title, section.how);
            for plot in &section.plots {
                let _ = writeln!(text, "\n![{}](plots/{}.svg)", plot.title(), plot.file());
            }
            for (title, lines) in section.tables() {
                if title != TARGETS {
                    let _ = writeln!(text, "\n**{title}**\n\n{}", piped(&lines));
                }
            }
            for remark in &section.remarks {
                let _ = writeln!(text, "\n{remark}");
            }
        }
        text
    }

    /// Where verfs loses, worst first: to the plain directory by more than the noise, and to each peer that is ahead of it.
    fn slower(&self) -> String {
        let mut lines: Vec<(f64, String)> = Vec::new();
        for (section, board) in
            self.sections.iter().flat_map(|section| section.boards.iter().map(move |b| (section, b)))
        {
            for measure in board.measures.iter().filter(|measure| measure.unit != Unit::Count) {
                let Some(own) = board.ratio(peers::VERFS, &measure.name) else { continue };
                let factor = |ratio: f64| if measure.unit.more_is_better() { 1.0 / ratio } else { ratio };
                let worse = factor(own.median);
                if worse <= 1.05 {
                    continue;
                }
                let ahead: Vec<&str> = board
                    .contenders
                    .iter()
                    .map(String::as_str)
                    .filter(|name| {
                        let ratio = board.ratio_between(peers::VERFS, name, &measure.name);
                        *name != peers::VERFS
                            && *name != board.base
                            && ratio.is_some_and(|ratio| factor(ratio.median) > 1.05)
                    })
                    .collect();
                let others =
                    if ahead.is_empty() { String::new() } else { format!("; also ahead of it: {}", ahead.join("; ")) };
                lines.push((
                    worse,
                    format!(
                        "- {}, {}: {} times as costly as {}{others} (row {})\n",
                        board.title,
                        measure.name,
                        digits(worse),
                        board.base,
                        section.number
                    ),
                ));
            }
        }
        if lines.is_empty() {
            return "Nothing that was measured is more than 5 % slower than what it is compared with.\n".to_owned();
        }
        lines.sort_by(|a, b| b.0.total_cmp(&a.0));
        let all: String = lines.into_iter().map(|(_, line)| line).collect();
        format!("By more than 5 %, worst first:\n\n{all}")
    }

    /// Writes the report to `out`, its plots beside it and the figures to `json`.
    pub fn write(&self, out: &Path, json: &Path) -> Outcome<()> {
        let beside = out.parent().ok_or("a report stands in a directory")?;
        let plots = beside.join("plots");
        fs::create_dir_all(&plots)?;
        for plot in self.sections.iter().flat_map(|section| &section.plots) {
            plot.draw(&plots.join(format!("{}.svg", plot.file())))?;
        }
        fs::write(out, self.markdown())?;
        fs::write(json, serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

const TARGETS: &str = "Targets";

impl Section {
    /// Title and lines of each table; the first line is its head.
    fn tables(&self) -> Vec<(String, Vec<Vec<String>>)> {
        let mut tables: Vec<_> = self.boards.iter().map(|board| (board.title.clone(), lines_of(board))).collect();
        if !self.targets.is_empty() {
            let mut lines = vec![["figure", "target", "measured", "met"].map(str::to_owned).to_vec()];
            lines.extend(self.targets.iter().map(Target::cells));
            tables.push((TARGETS.to_owned(), lines));
        }
        tables
    }
}

/// A line for each contender; beside each median its ratio to the base, with its ends.
fn lines_of(board: &Board) -> Vec<Vec<String>> {
    let mut head = vec![String::new()];
    head.extend(board.measures.iter().map(|measure| measure.name.clone()));
    let mut lines = vec![head];
    for contender in &board.contenders {
        let mut line = vec![contender.clone()];
        for measure in &board.measures {
            let cell = board.spread(contender, &measure.name).map_or("-".to_owned(), |spread| {
                let figure = measure.unit.show(spread.median);
                match board.ratio(contender, &measure.name) {
                    Some(ratio) if *contender != board.base && ratio.rounds == 1 => {
                        format!("{figure} = {}x", digits(ratio.median))
                    }
                    Some(ratio) if *contender != board.base => {
                        let ends = format!("{}-{}", digits(ratio.least), digits(ratio.most));
                        format!("{figure} = {}x ({ends})", digits(ratio.median))
                    }
                    _ if spread.rounds > 1 && spread.least != spread.most => {
                        format!("{figure} ({}-{})", digits(spread.least), digits(spread.most))
                    }
                    _ => figure,
                }
            });
            line.push(cell);
        }
        lines.push(line);
    }
    lines
}

fn aligned(lines: &[Vec<String>]) -> String {
    let joined: String = lines.iter().map(|line| line.join("\t") + "\n").collect();
    let mut writer = tabwriter::TabWriter::new(Vec::new()).padding(2);
    let written = std::io::Write::write_all(&mut writer, joined.as_bytes());
    match written.ok().and_then(|()| writer.into_inner().ok()) {
        Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        None => joined,
    }
}

fn piped(lines: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let _ = writeln!(text, "| {} |", line.join(" | "));
        if number == 0 {
            let _ = writeln!(text, "|{}", "---|".repeat(line.len()));
        }
    }
    text
}
