//! Readers that get their answers late: between the daemon's reply and its use by the kernel a
//! whole switch may pass.
//!
//! The late readers and a hog share the second processor, daemon, driver and a reader in time have
//! the first. In each round the late readers look at something, the hog takes their processor away
//! somewhere within that, the driver switches meanwhile; then everything is audited.

use crate::audit::Auditor;
use crate::chance::Chance;
use crate::driver::{self, Calls, Driver, Outcome};
use crate::eye::{Base, Eye};
use crate::history::History;
use crate::probe::Manner;
use crate::readers::directories;
use crate::support::Rig;
use crate::support::sys::{self, Scheduling};
use crate::tally::Tally;
use crate::truth::Truth;
use crate::world::{PathId, World};
use rustix::thread::CpuSet;
use std::fs;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

/// So many late readers.
const LATE: usize = 4;
/// A switch is taken to last so long: what it takes in the mean, within these limits.
const SWITCH: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(8)];

/// How long it goes.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// The seed of every random choice.
    pub seed: u64,
    /// How many switches.
    pub switches: usize,
    /// Ends after this time.
    pub limit: Duration,
    /// Ends when something that was served is wrong.
    pub until_wrong: bool,
}

/// One thing to look at.
#[derive(Clone, Copy, Debug)]
enum Look {
    Stat(PathId),
    Read(PathId),
    List(PathId),
}

/// A reader that looks when it is told to.
struct Hand {
    orders: Sender<(Instant, Look)>,
    done: Receiver<()>,
}

impl Hand {
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, mut eye: Eye<'scope>, processor: usize) -> Hand {
        let (orders, inbox) = channel::<(Instant, Look)>();
        let (tell, done) = channel();
        scope.spawn(move || {
            stay_on(processor);
            for (when, look) in inbox {
                sleep_until(when);
                match look {
                    Look::Stat(id) => eye.stat(Base::Root, id),
                    Look::Read(id) => eye.read(Base::Root, id),
                    Look::List(id) => eye.list(Base::Root, id, Manner::Whole, false),
                };
                if tell.send(()).is_err() {
                    return;
                }
            }
        });
        Hand { orders, done }
    }

    fn look(&self, when: Instant, look: Look) {
        self.orders.send((when, look)).unwrap();
    }

    fn wait(&self) {
        self.done.recv().unwrap();
    }
}

/// Takes the second processor from its readers whenever it is told to, for as long as it is told.
fn hog(orders: &Receiver<(Instant, Duration)>) {
    stay_on(1);
    sys::schedule(Scheduling::First).unwrap();
    for (when, how_long) in orders {
        sleep_until(when);
        spin_until(Instant::now() + how_long);
    }
}

/// Keeps the calling thread, and what it starts from now on, on the first (0) or the second (1)
/// of the processors that this process may use.
pub fn stay_on(processor: usize) {
    // The main thread's: it is kept on none.
    let all = rustix::thread::sched_getaffinity(Some(rustix::process::getpid())).unwrap();
    let mut usable = (0..CpuSet::MAX_CPU).filter(|number| all.is_set(*number));
    let number = usable.nth(processor);
    let number = number.unwrap_or_else(|| panic!("late readers need two processors, here are {}", all.count()));
    let mut set = CpuSet::new();
    set.set(number);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

fn spin_until(moment: Instant) {
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
}

fn sleep_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// Everybody, and what a round is made of.
struct Stage<'a> {
    driver: Driver<'a>,
    auditor: Auditor<'a>,
    chance: Chance,
    late: Vec<Hand>,
    in_time: Hand,
    hog: Sender<(Instant, Duration)>,
    directories: Vec<PathId>,
}

impl Stage<'_> {
    /// A moment up to so many microseconds after another.
    fn after(&mut self, moment: Instant, most_us: u128) -> Instant {
        moment + Duration::from_micros(self.chance.below(most_us as usize) as u64)
    }

    /// One switch while the late readers look at `looks`, and the one in time, at some moment of
    /// the switch, at `meanwhile`.
    fn switch_late(&mut self, to: usize, looks: &[Look], meanwhile: &[Look]) {
        let lasts = self.driver.calls.mean().clamp(SWITCH[0], SWITCH[1]);
        let start = Instant::now() + Duration::from_micros(300);
        for (hand, look) in looks.iter().enumerate() {
            let when = start + Duration::from_micros(60 * hand as u64);
            self.late[hand].look(when, *look);
        }
        let away = self.after(start, 500);
        self.hog.send((away, lasts * 2 + Duration::from_millis(3))).unwrap();
        let switch = self.after(start, 1_000);
        let moment = self.after(switch, lasts.as_micros());
        for look in meanwhile {
            self.in_time.look(moment, *look);
        }
        sleep_until(switch);
        self.driver.switch_to(to);
        for hand in &self.late[..looks.len()] {
            hand.wait();
        }
        for _ in meanwhile {
            self.in_time.wait();
        }
    }

    fn any_look(&mut self, world: &World) -> Look {
        let dir = *self.chance.pick(&self.directories);
        let any = self.chance.below(world.ids().end);
        match self.chance.below(10) {
            0..5 => Look::Stat(dir),
            5 => Look::Stat(any),
            6 => Look::Read(any),
            _ => Look::List(dir),
        }
    }
}

/// Runs rounds on a prepared rig, whose daemon must stay on processor 0, until the course is over.
fn run(rig: &Rig, world: &World, course: &Course, round: impl Fn(&mut Stage<'_>)) -> Outcome {
    let begun = Instant::now();
    let history = History::new(world, 0, 2 * course.switches + 20);
    let truth = Truth { world, history: &history, stamps: true };
    let tally = Tally::default();
    sys::own_working_directory().unwrap();
    stay_on(0);
    let eye = |who: &str, number: u64| {
        let seed = course.seed * 100 + number;
        Eye::new(truth, &tally, driver::root_of(rig), &format!("{who} {number}"), seed)
    };
    let mut calls = Calls::default();
    let mut audits = 0;
    thread::scope(|scope| {
        let (hog_at, hog_orders) = channel();
        scope.spawn(move || hog(&hog_orders));
        let auditor = eye("auditor", 0);
        let mut stage = Stage {
            directories: directories(&auditor),
            auditor: Auditor::new(auditor, driver::root_of(rig)),
            driver: Driver::new(truth, &tally, rig.control(), course.seed),
            chance: Chance::new(course.seed),
            late: (1..=LATE as u64).map(|number| Hand::start(scope, eye("late reader", number), 1)).collect(),
            in_time: Hand::start(scope, eye("reader in time", 9), 0),
            hog: hog_at,
        };
        stage.driver.first_switch(rig);
        while stage.driver.calls.count < course.switches
            && begun.elapsed() < course.limit
            && !(course.until_wrong && tally.served_wrong() > 0)
        {
            round(&mut stage);
            stage.auditor.audit();
            audits += 1;
        }
        calls = stage.driver.calls;
    });
    Outcome { tally, audits, calls, took: begun.elapsed() }
}

/// What is late is the first answer about something that the kernel does not hold.
pub fn about_what_is_not_held(rig: &Rig, world: &World, course: &Course) -> Outcome {
    run(rig, world, course, |stage| {
        // Twice: the first time takes only what was not used lately.
        for _ in 0..2 {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
        let look = stage.any_look(world);
        let to = stage.driver.next();
        stage.switch_late(to, &[look], &[]);
    })
}

/// Several late answers at once, about anything, while others are asked in time.
pub fn about_anything(rig: &Rig, world: &World, course: &Course) -> Outcome {
    run(rig, world, course, |stage| {
        if stage.chance.percent(50) {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
        let late = [(); LATE].map(|()| stage.any_look(world));
        let in_time = [(); 3].map(|()| stage.any_look(world));
        let to = stage.driver.next();
        stage.switch_late(to, &late, &in_time);
    })
}

/// What is late is the answer that an entry without time to live is still right: such a question
/// is asked without any lock, so no barrier waits for it.
///
/// The releases are those of `scenes::changed_then_gone`: directories that change inside, while a
/// listing of their parent leaves them without time to live, then go, then come back.
pub fn about_what_must_be_asked_again(rig: &Rig, world: &World, course: &Course) -> Outcome {
    let parent = world.id("p");
    run(rig, world, course, |stage| {
        stage.driver.switch_to(0);
        stage.auditor.audit();
        stage.switch_late(1, &[], &[Look::List(parent)]);
        let gone: Vec<Look> = world.children(parent).iter().map(|dir| Look::Stat(*dir)).collect();
        stage.switch_late(2, &gone[..LATE], &gone);
    })
}
