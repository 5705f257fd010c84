//! A reader that gets its answer late: between the daemon's reply and its use by the kernel a
//! whole switch may pass.
//!
//! Reader and hog share the second processor, the daemon and the driver have the first. In each
//! round the reader looks at one thing, the hog takes its processor away somewhere within that,
//! the driver switches meanwhile; then everything is audited.

use crate::audit::Auditor;
use crate::chance::Chance;
use crate::driver::{self, Driver, Outcome};
use crate::eye::{Base, Eye};
use crate::history::History;
use crate::probe::Manner;
use crate::readers::directories;
use crate::support::Rig;
use crate::support::sys::{self, Scheduling};
use crate::tally::Tally;
use crate::truth::Truth;
use crate::world::World;
use std::fs;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long it goes.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// The seed of every random choice.
    pub seed: u64,
    /// How many rounds, of one switch each.
    pub rounds: usize,
    /// Ends after this time.
    pub limit: Duration,
    /// Ends at the first finding.
    pub until_wrong: bool,
}

/// When a round begins for one of its parties.
type Start = Instant;

/// Runs the rounds on a prepared rig whose daemon stays on processor 0.
pub fn run(rig: &Rig, world: &World, course: &Course) -> Outcome {
    let processors = thread::available_parallelism().unwrap().get();
    assert!(processors >= 2, "needs two processors, here is {processors}");
    let begun = Instant::now();
    let history = History::new(world, 0, course.rounds + 1);
    let truth = Truth {
        world,
        history: &history,
    };
    let tally = Tally::default();
    let mut chance = Chance::new(course.seed);
    let mut driver = Driver::new(truth, &tally, rig.control(), course.seed);
    driver.first_switch(rig);
    sys::own_working_directory().unwrap();
    driver::stay_on(0);
    let eye = |who: &str, seed| Eye::new(truth, &tally, driver::root_of(rig), who, seed);
    let mut auditor = Auditor::new(eye("auditor", course.seed + 1), driver::root_of(rig));
    let mut audits = 0;
    thread::scope(|scope| {
        let (to_reader, reader_starts) = channel::<Start>();
        let (to_hog, hog_starts) = channel::<Start>();
        let (done, is_done) = channel::<()>();
        let reading = eye("late reader", course.seed + 2);
        scope.spawn(move || reader(reading, &reader_starts, &done));
        scope.spawn(move || hog(&hog_starts));
        while history.finished() < course.rounds
            && begun.elapsed() < course.limit
            && !(course.until_wrong && tally.total() > 0)
        {
            // Twice: the first time takes what was used lately only out of the way.
            for _ in 0..2 {
                fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            }
            let start = Instant::now() + Duration::from_micros(300);
            let after = |chance: &mut Chance, most| {
                start + Duration::from_micros(chance.below(most) as u64)
            };
            send(&to_reader, start);
            send(&to_hog, after(&mut chance, 800));
            let switch_at = after(&mut chance, 1_500);
            spin_until(switch_at);
            driver.switch();
            is_done.recv().unwrap();
            auditor.audit();
            audits += 1;
        }
    });
    let (longest, switches) = (driver.longest, history.finished());
    drop(auditor);
    Outcome {
        tally,
        switches,
        audits,
        longest,
        took: begun.elapsed(),
    }
}

fn send(to: &Sender<Start>, start: Start) {
    to.send(start).unwrap();
}

fn spin_until(moment: Instant) {
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
}

fn sleep_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// One look a round.
fn reader(mut eye: Eye<'_>, starts: &Receiver<Start>, done: &Sender<()>) {
    driver::stay_on(1);
    let directories = directories(&eye);
    while let Ok(start) = starts.recv() {
        spin_until(start);
        let dir = *eye.chance.pick(&directories);
        let any = eye.chance.below(eye.truth.world.ids().end);
        match eye.chance.below(10) {
            0..5 => eye.stat(Base::Root, dir),
            5 => eye.stat(Base::Root, any),
            6 => eye.read(Base::Root, any),
            _ => eye.list(Base::Root, dir, Manner::Whole, false),
        };
        done.send(()).unwrap();
    }
}

/// Takes the reader's processor away for some milliseconds each round: longer than a switch takes.
fn hog(starts: &Receiver<Start>) {
    driver::stay_on(1);
    sys::schedule(Scheduling::First).unwrap();
    while let Ok(start) = starts.recv() {
        sleep_until(start);
        spin_until(Instant::now() + Duration::from_millis(12));
    }
}
