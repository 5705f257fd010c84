//! What was measured: a board holds a figure for each round, contender and measure, and gives medians, spreads and ratios.
//!
//! A ratio is taken within a round, between two contenders that ran one after the other, and its median is over the rounds: what slows
//! the whole machine down for a while falls out.

use super::stage::{Outcome, Stage};
use serde::Serialize;
use std::collections::BTreeMap;

/// A row whose time is over goes on until it has so many rounds.
const FEWEST_ROUNDS: usize = 3;

/// What a figure counts; also says which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    PerSecond,
    MibPerSecond,
    Nanoseconds,
    Microseconds,
    Milliseconds,
    Seconds,
    Mib,
    /// Neither more nor less is better.
    Count,
    Share,
}

impl Unit {
    pub fn more_is_better(self) -> bool {
        matches!(self, Unit::PerSecond | Unit::MibPerSecond | Unit::Share)
    }

    /// A figure with its unit, to three digits.
    pub fn show(self, value: f64) -> String {
        let number = digits(value);
        match self {
            Unit::PerSecond => format!("{number}/s"),
            Unit::MibPerSecond => format!("{number} MiB/s"),
            Unit::Nanoseconds => format!("{number} ns"),
            Unit::Microseconds => format!("{number} us"),
            Unit::Milliseconds => format!("{number} ms"),
            Unit::Seconds => format!("{number} s"),
            Unit::Mib => format!("{number} MiB"),
            Unit::Count | Unit::Share => number,
        }
    }
}

/// Three digits, or all that stand before the point.
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The middle and the ends of some figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
    pub rounds: usize,
}

impl Spread {
    pub fn of(mut figures: Vec<f64>) -> Option<Spread> {
        figures.sort_by(f64::total_cmp);
        let rounds = figures.len();
        let (least, most) = (*figures.first()?, *figures.last()?);
        let median = (figures[(rounds - 1) / 2] + figures[rounds / 2]) / 2.0;
        Some(Spread { median, least, most, rounds })
    }
}

/// One column of a board.
#[derive(Clone, Debug, Serialize)]
pub struct Measure {
    pub name: String,
    pub unit: Unit,
}

/// See the head of this file.
#[derive(Clone, Debug, Serialize)]
pub struct Board {
    pub title: String,
    /// The contender that ratios are to.
    pub base: String,
    pub measures: Vec<Measure>,
    pub contenders: Vec<String>,
    /// By contender, then measure, then round.
    figures: BTreeMap<String, BTreeMap<String, BTreeMap<usize, f64>>>,
}

impl Board {
    pub fn new(title: impl Into<String>, base: &str, measures: &[(&str, Unit)]) -> Board {
        let measures = measures.iter().map(|(name, unit)| Measure { name: (*name).to_owned(), unit: *unit });
        Board {
            title: title.into(),
            base: base.to_owned(),
            measures: measures.collect(),
            contenders: Vec::new(),
            figures: BTreeMap::new(),
        }
    }

    pub fn note(&mut self, round: usize, contender: &str, measure: &str, figure: f64) {
        debug_assert!(self.measures.iter().any(|known| known.name == measure), "{measure} is a column");
        if !self.contenders.iter().any(|known| known == contender) {
            self.contenders.push(contender.to_owned());
        }
        let of_contender = self.figures.entry(contender.to_owned()).or_default();
        of_contender.entry(measure.to_owned()).or_default().insert(round, figure);
    }

    fn rounds(&self, contender: &str, measure: &str) -> Option<&BTreeMap<usize, f64>> {
        self.figures.get(contender)?.get(measure)
    }

    pub fn unit(&self, measure: &str) -> Unit {
        self.measures.iter().find(|known| known.name == measure).map_or(Unit::Count, |known| known.unit)
    }

    pub fn spread(&self, contender: &str, measure: &str) -> Option<Spread> {
        Spread::of(self.rounds(contender, measure)?.values().copied().collect())
    }

    /// The ratio to the base, taken in each round that both have.
    pub fn ratio(&self, contender: &str, measure: &str) -> Option<Spread> {
        self.ratio_between(contender, &self.base, measure)
    }

    /// The ratio of one contender to another, taken in each round that both have.
    pub fn ratio_between(&self, contender: &str, base: &str, measure: &str) -> Option<Spread> {
        let base = self.rounds(base, measure)?;
        let own = self.rounds(contender, measure)?;
        let pairs = own.iter().filter_map(|(round, figure)| base.get(round).map(|base| (figure, base)));
        Spread::of(pairs.filter(|(_, base)| **base > 0.0).map(|(figure, base)| figure / base).collect())
    }

    /// Of the named contenders, the one with the best median.
    pub fn best<'a>(&self, among: &[&'a str], measure: &str) -> Option<(&'a str, f64)> {
        let better = |a: f64, b: f64| if self.unit(measure).more_is_better() { a > b } else { a < b };
        let medians = among.iter().filter_map(|name| Some((*name, self.spread(name, measure)?.median)));
        medians.reduce(|best, next| if better(next.1, best.1) { next } else { best })
    }
}

/// A, B, A, B: in every round all have their turn, and each round begins with another one. `every` says in which rounds one takes part: in
/// each (1), or in each third (3).
pub fn interleave<T>(
    stage: &Stage,
    rounds: usize,
    contenders: &[T],
    every: impl Fn(&T) -> usize,
    mut turn: impl FnMut(usize, &T) -> Outcome<()>,
) -> Outcome<()> {
    for round in 0..rounds {
        if round >= FEWEST_ROUNDS && stage.row_is_over() {
            stage.say(&format!("the time of this row is over: {round} rounds instead of {rounds}"));
            break;
        }
        for at in 0..contenders.len() {
            stage.go_on()?;
            let contender = &contenders[(at + round) % contenders.len()];
            if round % every(contender) == 0 {
                turn(round, contender)?;
            }
        }
    }
    Ok(())
}
