//! The race: a store with all releases, readers on its mount, and a driver that switches as fast
//! as the answers come, with an audit after each burst.

use crate::audit::Auditor;
use crate::chance::Chance;
use crate::disturbers;
use crate::eye::Eye;
use crate::history::History;
use crate::pace::{Member, Pace};
use crate::probe;
use crate::readers;
use crate::support::Rig;
use crate::support::control::Control;
use crate::support::sys;
use crate::tally::{Tally, Wrong};
use crate::truth::Truth;
use crate::world::World;
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use std::os::fd::OwnedFd;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

/// Who takes part.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Threads that look at random paths.
    pub lookers: usize,
    /// Threads that list directories.
    pub listers: usize,
    /// Threads that stat the root, directories and a few files.
    pub watchers: usize,
    /// Threads with descriptors and a working directory inside directories.
    pub holders: usize,
    /// Threads that list directories into buffers whose page faults are served late.
    pub slow: usize,
    /// Threads whose child processes walk, are stopped and killed.
    pub walkers: usize,
    /// Microseconds between two drops of the kernel's caches, at most; 0: none.
    pub drop_every_us: usize,
}

/// What the race is.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// The seed of every random choice.
    pub seed: u64,
    /// How many switches.
    pub switches: usize,
    /// An audit after so many.
    pub burst: usize,
    /// Takes the shortest way home after this time.
    pub limit: Duration,
    /// Ends when something that was served is wrong.
    pub until_wrong: bool,
    /// Whether stamps are judged, or only what is there.
    pub stamps: bool,
    /// Who takes part.
    pub crowd: Crowd,
}

/// How it went.
pub struct Outcome {
    /// What was seen.
    pub tally: Tally,
    /// Audits done.
    pub audits: usize,
    /// How long switches took, from request to answer.
    pub calls: Calls,
    /// All of it.
    pub took: Duration,
}

impl Outcome {
    /// One line for the log.
    pub fn summary(&self) -> String {
        let [mean, longest] = [self.calls.mean(), self.calls.longest].map(|time| time.as_secs_f64() * 1_000.0);
        format!(
            "{} switches (mean {mean:.1} ms, longest {longest:.1} ms, {} busy, {} left something for the next), \
             {} audits in {:.1} s; {}",
            self.calls.count,
            self.calls.busy,
            self.calls.untidy,
            self.audits,
            self.took.as_secs_f64(),
            self.tally
        )
    }
}

/// How long switches took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// How many, those refused included.
    pub count: usize,
    total: Duration,
    longest: Duration,
    /// So many were refused because the limit passed.
    pub busy: usize,
    /// Of so many the kernel could not be told all within the limit.
    pub untidy: usize,
}

impl Calls {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.total += took;
        self.longest = self.longest.max(took);
    }

    /// How long one took in the mean.
    pub fn mean(&self) -> Duration {
        self.total / u32::try_from(self.count.max(1)).unwrap()
    }
}

/// Adds the releases of `world`: the first before the mount, so that it is the one that is served.
pub fn prepare(rig: &mut Rig, world: &World, env: &[(&str, &str)]) {
    rig.add(&World::name(0), &world.tree(0));
    rig.mount_with_env(env);
    for release in 1..world.releases() {
        rig.add(&World::name(release), &world.tree(release));
    }
}

/// Runs the race on a prepared rig.
pub fn run(rig: &Rig, world: &World, course: &Course) -> Outcome {
    let begun = Instant::now();
    let history = History::new(world, 0, 4 * course.switches + 10);
    let tally = Tally::default();
    let pace = Pace::default();
    let truth = Truth { world, history: &history, stamps: course.stamps };
    let mut driver = Driver::new(truth, &tally, rig.control(), course.seed);
    driver.first_switch(rig);
    sys::own_working_directory().unwrap();
    let eye = |who: &str, number: u64| {
        let seed = course.seed.wrapping_mul(1_000).wrapping_add(number);
        Eye::new(truth, &tally, root_of(rig), &format!("{who} {number}"), seed)
    };
    let mut audits = 0;
    thread::scope(|scope| {
        // The readers go home however this closure ends.
        let _home = Home(&pace);
        let starter = Starter { scope, pace: &pace };
        start_readers(&starter, rig, &course.crowd, &eye);
        let mut auditor = Auditor::new(eye("auditor", 0), root_of(rig));
        let goes_on = |calls: &Calls| {
            calls.count < course.switches
                && begun.elapsed() < course.limit
                && !(course.until_wrong && tally.served_wrong() > 0)
        };
        while goes_on(&driver.calls) {
            let end = driver.calls.count + course.burst;
            while goes_on(&driver.calls) && driver.calls.count < end {
                driver.switch();
            }
            pace.close();
            auditor.audit();
            audits += 1;
            pace.open();
        }
    });
    let calls = driver.calls;
    Outcome { tally, audits, calls, took: begun.elapsed() }
}

/// The root of the mount, opened.
pub fn root_of(rig: &Rig) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&rig.mnt, flags, Mode::empty()).unwrap()
}

/// Sends everybody home.
struct Home<'a>(&'a Pace);

impl Drop for Home<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Starts members of the race.
struct Starter<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    pace: &'env Pace,
}

impl<'scope, 'env> Starter<'scope, 'env> {
    fn start(&self, run: impl FnOnce(&Member<'_>) + Send + 'scope) {
        let member = self.pace.join();
        self.scope.spawn(move || run(&member));
    }
}

fn start_readers<'scope, 'env: 'scope>(
    to: &Starter<'scope, 'env>,
    rig: &'env Rig,
    crowd: &Crowd,
    eye: &dyn Fn(&str, u64) -> Eye<'env>,
) {
    let mut number = 0;
    let mut next = || {
        number += 1;
        number
    };
    for _ in 0..crowd.lookers {
        let eye = eye("looker", next());
        to.start(move |member| readers::looker(eye, member));
    }
    for _ in 0..crowd.listers {
        let eye = eye("lister", next());
        to.start(move |member| readers::lister(eye, member, 2_000));
    }
    for _ in 0..crowd.watchers {
        let (eye, root) = (eye("watcher", next()), root_of(rig));
        to.start(move |member| readers::watcher(eye, member, &root));
    }
    for _ in 0..crowd.holders {
        let (eye, root) = (eye("holder", next()), root_of(rig));
        to.start(move |member| readers::holder(eye, member, &root));
    }
    for _ in 0..crowd.slow {
        let (eye, root) = (eye("slow lister", next()), root_of(rig));
        to.start(move |member| readers::slow_lister(eye, member, &root));
    }
    for _ in 0..crowd.walkers {
        let seed = next();
        to.start(move |member| disturbers::walkers(&rig.mnt, member, seed));
    }
    let every_us = crowd.drop_every_us;
    if every_us > 0 {
        let seed = next();
        to.start(move |member| disturbers::dropper(member, every_us, seed));
    }
}

/// Asks for the switches and checks the answers.
pub struct Driver<'a> {
    truth: Truth<'a>,
    tally: &'a Tally,
    control: Control,
    chance: Chance,
    /// How long its switches took.
    pub calls: Calls,
}

impl<'a> Driver<'a> {
    /// A driver that has not switched yet.
    pub fn new(truth: Truth<'a>, tally: &'a Tally, control: Control, seed: u64) -> Driver<'a> {
        Driver { truth, tally, control, chance: Chance::new(seed), calls: Calls::default() }
    }

    /// The switch that tells the store's number of index 0; every release must differ from the
    /// first in the root.
    pub fn first_switch(&mut self, rig: &Rig) {
        let before = self.truth.history.started();
        let answer = self.control.switch(&World::name(1)).unwrap();
        let index = self.truth.history.start(self.truth.world, 1);
        let root = probe::fstat(root_of(rig)).unwrap();
        let base = root.nanosecond.checked_sub(1);
        let base = base.unwrap_or_else(|| panic!("after a switch the root has {root:?}"));
        self.truth.history.set_base(base);
        self.truth.history.finish(index, second_of(&answer));
        assert_eq!((before, index), (0, 1), "the first switch comes first");
    }

    /// The release to switch to next: in a third of the cases the one before, else any other.
    pub fn next(&mut self) -> usize {
        let Truth { world, history, .. } = self.truth;
        let here = history.finished();
        let active = history.view(here).release;
        let before = history.view(here - 1).release;
        if self.chance.percent(33) && before != active {
            before
        } else {
            (active + 1 + self.chance.below(world.releases() - 1)) % world.releases()
        }
    }

    /// One switch to any other release.
    pub fn switch(&mut self) {
        let to = self.next();
        self.switch_to(to);
    }

    /// One switch.
    pub fn switch_to(&mut self, to: usize) {
        let Truth { world, history, .. } = self.truth;
        let active = history.view(history.finished()).release;
        let index = history.start(world, to);
        let begun = Instant::now();
        let answer = self.control.switch(&World::name(to));
        self.calls.add(begun.elapsed());
        match answer {
            Ok(answer) => {
                if answer["tidy"] != "done" {
                    self.calls.untidy += 1;
                }
                let changed = world.changes(active, to) as u64;
                if answer["changed"].as_u64() != Some(changed) {
                    self.tally
                        .wrong(Wrong::Switch, || format!("r{active} to r{to} changes {changed} entries: {answer}"));
                }
                history.finish(index, second_of(&answer));
            }
            Err(error) => {
                if error.contains("busy") {
                    self.calls.busy += 1;
                } else {
                    self.tally.wrong(Wrong::Switch, || format!("r{active} to r{to}: {error}"));
                }
                let status = self.control.status().unwrap();
                assert_eq!(status["release"], World::name(active), "after a refused switch: {error}");
                history.refuse(index);
            }
        }
    }
}

fn second_of(answer: &Value) -> u64 {
    let second = answer["second"].as_str().unwrap_or_else(|| panic!("no second: {answer}"));
    let time = humantime::parse_rfc3339(second).unwrap_or_else(|error| panic!("{error}: {answer}"));
    time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}
