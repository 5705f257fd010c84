//! The race: many readers, many switches, and no reader sees anything wrong. And its counter-proof:
//! with each mend of the switch left out, somebody does.
#![allow(clippy::unwrap_used)]

#[path = "race/audit.rs"]
mod audit;
#[path = "race/chance.rs"]
mod chance;
#[path = "race/disturbers.rs"]
mod disturbers;
#[path = "race/driver.rs"]
mod driver;
#[path = "race/eye.rs"]
mod eye;
#[path = "race/history.rs"]
mod history;
#[path = "race/late.rs"]
mod late;
#[path = "race/pace.rs"]
mod pace;
#[path = "race/probe.rs"]
mod probe;
#[path = "race/readers.rs"]
mod readers;
#[path = "race/scenes.rs"]
mod scenes;
#[path = "race/stuck.rs"]
mod stuck;
mod support;
#[path = "race/tally.rs"]
mod tally;
#[path = "race/truth.rs"]
mod truth;
#[path = "race/world.rs"]
mod world;

use audit::Auditor;
use driver::{Course, Crowd, Driver, Outcome};
use eye::Eye;
use history::History;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stuck::Stuck;
use support::Rig;
use tally::{Tally, Wrong};
use truth::Truth;
use world::World;

/// Mounted tests of this file run one at a time: they measure what happens under load.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mounted rig that serves the first release of a world and has the others.
fn rig(world: &World, settings: &[(&str, &str)], fault: Option<&str>, limit: Duration) -> Rig {
    let mut rig = Rig::with_limit(limit + Duration::from_secs(60));
    rig.init();
    for (key, value) in settings {
        rig.setting("switch", key, value);
    }
    let fault = fault.map(|fault| ("VERFS_FAULT", fault));
    driver::prepare(&mut rig, world, fault.as_slice());
    rig
}

fn assert_clean(outcome: &Outcome, switches: usize) {
    let summary = outcome.summary();
    eprintln!("{summary}");
    assert_eq!(outcome.tally.total(), 0, "{summary}\n{}", outcome.tally.notes());
    assert_eq!(outcome.switches, switches, "out of time: {summary}");
}

// The race.

const CROWD: Crowd = Crowd {
    lookers: 2,
    listers: 1,
    watchers: 1,
    holders: 1,
    walkers: 1,
    drop_every_us: 40_000,
    hog_us: 0,
};

fn race(settings: &[(&str, &str)], switches: usize) {
    let _turn = turn();
    let limit = Duration::from_secs(300);
    let world = world::eight_releases(1);
    let rig = rig(&world, settings, None, limit);
    let course = Course {
        seed: 1,
        switches,
        burst: 100,
        limit,
        until_wrong: false,
        crowd: CROWD,
    };
    assert_clean(&driver::run(&rig, &world, &course), switches);
}

#[test]
fn two_thousand_switches_under_readers_show_nothing_stale_torn_mixed_or_gone_back() {
    if !support::skip_mounted() {
        race(&[], 2_000);
    }
}

#[test]
fn switches_with_the_rmdir_barrier_show_nothing_wrong_either() {
    if !support::skip_mounted() {
        race(&[("barrier", "\"rmdir\"")], 300);
    }
}

#[test]
fn a_reader_that_gets_its_answer_late_sees_nothing_wrong() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    assert_clean(&late_rounds(None, 150, Duration::from_secs(60)), 150);
}

fn late_rounds(fault: Option<&str>, rounds: usize, limit: Duration) -> Outcome {
    driver::stay_on(0); // the daemon, started from here, stays there too
    let world = scenes::quiet_parents();
    let rig = rig(&world, &[], fault, limit);
    let course = late::Course {
        seed: 1,
        rounds,
        limit,
        until_wrong: fault.is_some(),
    };
    late::run(&rig, &world, &course)
}

// With a mend left out.

/// How long a fault may take to show.
const PATIENCE: Duration = Duration::from_secs(60);

/// Races until somebody sees something wrong.
fn race_with_fault(fault: &str, world: &World, burst: usize, crowd: Crowd) -> Outcome {
    let rig = rig(world, &[], Some(fault), PATIENCE);
    let course = Course {
        seed: 1,
        switches: 20_000,
        burst,
        limit: PATIENCE,
        until_wrong: true,
        crowd,
    };
    driver::run(&rig, world, &course)
}

fn assert_shown(fault: &str, outcome: &Outcome) {
    let summary = outcome.summary();
    eprintln!("{fault}: {summary}\n{}", outcome.tally.notes());
    let served: usize = [Wrong::Stale, Wrong::Torn, Wrong::Back, Wrong::Mixed, Wrong::Audit]
        .iter()
        .map(|wrong| outcome.tally.count(*wrong))
        .sum();
    assert!(served > 0, "{fault}: nobody saw it: {summary}");
}

#[test]
fn without_dropping_what_the_kernel_holds_readers_see_it() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    let world = world::eight_releases(2);
    assert_shown("skip-drop", &race_with_fault("skip-drop", &world, 20, CROWD));
}

#[test]
fn with_only_the_top_names_of_directories_that_come_and_go_readers_see_it() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    let world = scenes::comers_and_goers();
    let crowd = Crowd {
        lookers: 1,
        holders: 2,
        walkers: 0,
        drop_every_us: 0,
        ..CROWD
    };
    let outcome = race_with_fault("shallow-change-set", &world, 5, crowd);
    assert_shown("shallow-change-set", &outcome);
}

#[test]
fn with_names_kept_for_ever_in_the_transition_readers_see_it() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    let world = scenes::all_changed(1_500);
    let crowd = Crowd {
        lookers: 3,
        listers: 0,
        walkers: 0,
        drop_every_us: 0,
        ..CROWD
    };
    assert_shown("no-ttl0", &race_with_fault("no-ttl0", &world, 50, crowd));
}

#[test]
fn without_the_barrier_a_late_reader_sees_it() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    assert_shown("skip-barrier", &late_rounds(Some("skip-barrier"), 20_000, PATIENCE));
}

#[test]
fn without_tidying_a_late_reader_sees_it() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    assert_shown("skip-tidy", &late_rounds(Some("skip-tidy"), 20_000, PATIENCE));
}

// A client that holds a directory's lock for ever.

#[test]
fn a_client_that_holds_a_directory_makes_the_switch_busy_and_the_next_one_is_right() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    let world = world::eight_releases(3);
    let rig = rig(&world, &[("limit_ms", "1000")], None, Duration::from_secs(120));
    let history = History::new(&world, 0, 10);
    let tally = Tally::default();
    let truth = Truth {
        world: &world,
        history: &history,
    };
    support::sys::own_working_directory().unwrap();
    let eye = Eye::new(truth, &tally, driver::root_of(&rig), "auditor", 1);
    let mut auditor = Auditor::new(eye, driver::root_of(&rig));
    let stuck = Stuck::start(&rig.mnt.join("wide"));
    for _ in 0..2 {
        let begun = Instant::now();
        let refused = rig.verfs(&["switch", "r1"]);
        let took = begun.elapsed();
        assert_eq!(refused.code, 1, "{refused:?}");
        for word in ["busy", &stuck.pid().to_string(), &stuck.name()] {
            assert!(refused.stderr.contains(word), "no {word:?} in {refused:?}");
        }
        assert!(took < Duration::from_secs(3), "a limit of 1 s, answered after {took:?}");
        assert_eq!(rig.json(&["status"])["release"], "r0");
    }
    // The old release is served, with the old stamps, by all that the client does not hold.
    auditor.audit_except(Some(world.id("wide")));
    assert_eq!(tally.total(), 0, "while a client is stuck:\n{}", tally.notes());
    drop(stuck);
    let mut driver = Driver::new(truth, &tally, rig.control(), 1);
    driver.first_switch(&rig);
    auditor.audit();
    for _ in 0..5 {
        driver.switch();
        auditor.audit();
    }
    assert_eq!(tally.total(), 0, "after it was killed:\n{}", tally.notes());
}

#[test]
#[ignore = "the client of the test above, a process of its own"]
fn stays_inside_getdents_until_killed() {
    stuck::stay();
}

// The judge.

/// A history of three releases that all differ in one file, at the second switch of which nobody has an answer yet.
fn three_views() -> (World, History) {
    let mut to = world::Builder::new();
    for release in 0..3 {
        to.release();
        to.file("file", release);
    }
    let world = to.build();
    let history = History::new(&world, 0, 2);
    let first = history.start(&world, 1);
    history.finish(first, 0);
    history.start(&world, 2);
    (world, history)
}

/// What a reader that saw these releases in this order is told.
fn judged(seen: &[usize]) -> Vec<Wrong> {
    let (world, history) = three_views();
    let truth = Truth {
        world: &world,
        history: &history,
    };
    let tally = Tally::default();
    let root = fs::File::open("/").unwrap().into();
    let mut eye = Eye::new(truth, &tally, root, "reader", 1);
    let mut told = Vec::new();
    let kinds = [Wrong::Stale, Wrong::Torn, Wrong::Back];
    for release in seen {
        let span = (history.finished(), history.started());
        let before = kinds.map(|kind| tally.count(kind));
        let explains = |view: usize| history.view(view).release == *release;
        eye.judge(span, Wrong::Torn, explains, || "release".to_owned());
        let found = kinds.iter().zip(before).filter(|(kind, count)| tally.count(**kind) > *count);
        told.extend(found.map(|(kind, _)| *kind));
    }
    told
}

#[test]
fn the_judge_lets_old_then_new_pass() {
    assert_eq!(judged(&[1, 1, 2, 2]), []);
}

#[test]
fn the_judge_tells_stale_back_and_torn_apart() {
    assert_eq!(judged(&[0]), [Wrong::Stale]);
    assert_eq!(judged(&[1, 2, 1]), [Wrong::Back]);
    assert_eq!(judged(&[7]), [Wrong::Torn]);
}
