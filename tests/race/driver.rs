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
use rustix::thread::CpuSet;
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
    /// Threads whose child processes walk, are stopped and killed.
    pub walkers: usize,
    /// Microseconds between two drops of the kernel's caches, at most; 0: none.
    pub drop_every_us: usize,
    /// Keep readers and daemon on processors of their own, and take the readers' one away for so
    /// many microseconds at a time; 0: no.
    pub hog_us: usize,
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
    /// Ends at the first finding.
    pub until_wrong: bool,
    /// Who takes part.
    pub crowd: Crowd,
}

/// How it went.
pub struct Outcome {
    /// What was seen.
    pub tally: Tally,
    /// Switches done.
    pub switches: usize,
    /// Audits done.
    pub audits: usize,
    /// The longest switch, from request to answer.
    pub longest: Duration,
    /// All of it.
    pub took: Duration,
}

impl Outcome {
    /// One line for the log.
    pub fn summary(&self) -> String {
        format!(
            "{} switches (longest {:.1} ms), {} audits in {:.1} s; {}",
            self.switches,
            self.longest.as_secs_f64() * 1_000.0,
            self.audits,
            self.took.as_secs_f64(),
            self.tally
        )
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
    let history = History::new(world, 0, course.switches + 1);
    let tally = Tally::default();
    let pace = Pace::default();
    let truth = Truth {
        world,
        history: &history,
    };
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
        let starter = Starter {
            scope,
            pace: &pace,
            hogged: course.crowd.hog_us > 0,
        };
        start_readers(&starter, rig, &course.crowd, &eye);
        let mut auditor = Auditor::new(eye("auditor", 0), root_of(rig));
        let goes_on = || {
            history.finished() < course.switches
                && begun.elapsed() < course.limit
                && !(course.until_wrong && tally.total() > 0)
        };
        while goes_on() {
            let end = history.finished() + course.burst;
            while goes_on() && history.finished() < end {
                driver.switch();
            }
            pace.close();
            auditor.audit();
            audits += 1;
            pace.open();
        }
    });
    let (longest, switches) = (driver.longest, history.finished());
    Outcome {
        tally,
        switches,
        audits,
        longest,
        took: begun.elapsed(),
    }
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
    hogged: bool,
}

impl<'scope, 'env> Starter<'scope, 'env> {
    fn start(&self, run: impl FnOnce(&Member<'_>) + Send + 'scope) {
        let member = self.pace.join();
        let hogged = self.hogged;
        self.scope.spawn(move || {
            if hogged {
                stay_on(1);
            }
            run(&member);
        });
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
    for _ in 0..crowd.walkers {
        let seed = next();
        to.start(move |member| disturbers::walkers(&rig.mnt, member, seed));
    }
    let (drop_every_us, hog_us) = (crowd.drop_every_us, crowd.hog_us);
    if drop_every_us > 0 {
        let seed = next();
        to.start(move |member| disturbers::dropper(member, drop_every_us, seed));
    }
    if hog_us > 0 {
        let seed = next();
        to.start(move |member| disturbers::hog(member, hog_us, seed));
    }
}

/// Keeps the calling thread, and what it starts from now on, on one processor.
pub fn stay_on(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

/// Asks for the switches and checks the answers.
pub struct Driver<'a> {
    truth: Truth<'a>,
    tally: &'a Tally,
    control: Control,
    chance: Chance,
    /// The longest switch so far, from request to answer.
    pub longest: Duration,
}

impl<'a> Driver<'a> {
    /// A driver that has not switched yet.
    pub fn new(truth: Truth<'a>, tally: &'a Tally, control: Control, seed: u64) -> Driver<'a> {
        Driver {
            truth,
            tally,
            control,
            chance: Chance::new(seed),
            longest: Duration::ZERO,
        }
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

    /// One switch: back to where it was in a third of the cases, else to any other release.
    pub fn switch(&mut self) {
        let Truth { world, history } = self.truth;
        let here = history.finished();
        let active = history.view(here).release;
        let before = history.view(here - 1).release;
        let to = if self.chance.percent(33) && before != active {
            before
        } else {
            (active + 1 + self.chance.below(world.releases() - 1)) % world.releases()
        };
        let index = history.start(world, to);
        let begun = Instant::now();
        let answer = self.control.switch(&World::name(to));
        self.longest = self.longest.max(begun.elapsed());
        match answer {
            Ok(answer) => {
                let changed = world.changes(active, to) as u64;
                if answer["changed"].as_u64() != Some(changed) {
                    self.tally.wrong(Wrong::Switch, || {
                        format!("r{active} to r{to} changes {changed} entries: {answer}")
                    });
                }
                history.finish(index, second_of(&answer));
            }
            Err(error) => {
                self.tally.wrong(Wrong::Switch, || format!("r{active} to r{to}: {error}"));
                // What is served now is known by asking.
                let status = self.control.status().unwrap();
                assert_eq!(status["release"], World::name(to), "a failed switch: {error}");
                history.finish(index, 0);
            }
        }
    }
}

fn second_of(answer: &Value) -> u64 {
    answer["second"].as_u64().unwrap_or(0)
}
