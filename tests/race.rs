//! The race: many readers, many switches, and no reader sees anything wrong. And its counter-proof:
//! with each mend of the switch left out, somebody does.
#![allow(clippy::unwrap_used)]

#[path = "race/audit.rs"]
mod audit;
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
use std::thread;
use std::time::{Duration, Instant};
use stuck::Stuck;
use support::Rig;
use support::chance;
use tally::{Tally, Wrong};
use truth::Truth;
use world::World;

/// Mounted tests of this file run one at a time: they measure what happens under load.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs on a thread of its own, which may change its working directory and its processor.
fn apart<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    match thread::scope(|scope| scope.spawn(run).join()) {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A mounted rig that serves the first release of a world and has the others.
fn rig(world: &World, settings: &[(&str, &str)], fault: Option<&str>, limit: Duration) -> Rig {
    let mut rig = Rig::with_limit(limit + Duration::from_secs(60));
    rig.init();
    // Without the gate, unless a test asks for it: a swap that nothing waits for is the harder one.
    rig.setting("switch", "settle_ms", "0");
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
    assert!(outcome.calls.count >= switches, "out of time: {summary}");
}

// The race.

const CROWD: Crowd =
    Crowd { lookers: 2, listers: 1, watchers: 1, holders: 1, slow: 0, walkers: 1, drop_every_us: 40_000 };

/// A number from the environment, for longer or other races than those of every day.
fn wish(variable: &str) -> Option<usize> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn race(settings: &[(&str, &str)], switches: usize) {
    let _turn = turn();
    let seed = wish("VERFS_RACE_SEED").unwrap_or(1) as u64;
    let switches = wish("VERFS_RACE_SWITCHES").unwrap_or(switches);
    let limit = Duration::from_secs(300).max(Duration::from_millis(200) * switches as u32);
    let world = world::eight_releases(seed);
    let rig = rig(&world, settings, None, limit);
    let course = Course { seed, switches, burst: 100, limit, until_wrong: false, stamps: true, crowd: CROWD };
    let outcome = apart(|| driver::run(&rig, &world, &course));
    assert_clean(&outcome, switches);
    assert_eq!(outcome.calls.busy, 0, "nobody is slow here: {}", outcome.summary());
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
        race(&[("barrier", "\"rmdir\""), ("settle_ms", "40")], 300);
    }
}

#[test]
fn switches_that_are_refused_for_slow_clients_leave_the_old_release_whole() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    let limit = Duration::from_secs(120);
    let world = world::eight_releases(4);
    let rig = rig(&world, &[("limit_ms", "40")], None, limit);
    let crowd = Crowd { slow: 3, ..CROWD };
    let course = Course { seed: 4, switches: 150, burst: 10, limit, until_wrong: false, stamps: true, crowd };
    let outcome = apart(|| driver::run(&rig, &world, &course));
    assert_clean(&outcome, 150);
    let busy = outcome.calls.busy;
    assert!(busy > 0 && busy < 150, "some are refused, some are not: {}", outcome.summary());
}

/// A run of late readers on a world of its own.
struct Late {
    world: World,
    run: fn(&Rig, &World, &late::Course) -> Outcome,
}

fn late_about_what_is_not_held() -> Late {
    Late { world: scenes::quiet_parents(), run: late::about_what_is_not_held }
}

fn late_about_what_must_be_asked_again() -> Late {
    Late { world: scenes::changed_then_gone(), run: late::about_what_must_be_asked_again }
}

fn late_about_anything() -> Late {
    Late { world: world::eight_releases(5), run: late::about_anything }
}

impl Late {
    fn outcome(&self, fault: Option<&str>, switches: usize, limit: Duration) -> Outcome {
        let course = late::Course { seed: 1, switches, limit, until_wrong: fault.is_some() };
        apart(|| {
            late::stay_on(0); // the daemon, started from here, stays there too
            let rig = rig(&self.world, &[], fault, limit);
            (self.run)(&rig, &self.world, &course)
        })
    }
}

#[test]
fn readers_that_get_their_answers_late_see_nothing_wrong() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    for late in [late_about_what_is_not_held(), late_about_what_must_be_asked_again(), late_about_anything()] {
        assert_clean(&late.outcome(None, 100, Duration::from_secs(90)), 100);
    }
}

// With a mend left out.

/// How long a fault may take to show.
const PATIENCE: Duration = Duration::from_secs(60);
/// More switches than there is time for.
const MANY: usize = 20_000;

/// A race on a world of its own.
struct Scene {
    world: World,
    burst: usize,
    stamps: bool,
    crowd: Crowd,
}

fn everything() -> Scene {
    Scene { world: world::eight_releases(2), burst: 20, stamps: true, crowd: CROWD }
}

/// Stamps are not judged: what is below the top names must itself be seen to be old.
fn coming_and_going() -> Scene {
    let crowd = Crowd { lookers: 1, holders: 2, walkers: 0, drop_every_us: 0, ..CROWD };
    Scene { world: scenes::comers_and_goers(), burst: 5, stamps: false, crowd }
}

fn long_transition() -> Scene {
    let crowd = Crowd { lookers: 3, listers: 0, walkers: 0, drop_every_us: 0, ..CROWD };
    Scene { world: scenes::all_changed(1_500), burst: 20, stamps: true, crowd }
}

impl Scene {
    /// Races; with a fault, until somebody sees something wrong.
    fn outcome(&self, fault: Option<&str>, switches: usize) -> Outcome {
        let rig = rig(&self.world, &[], fault, PATIENCE);
        let course = Course {
            seed: 1,
            switches,
            burst: self.burst,
            limit: PATIENCE,
            until_wrong: fault.is_some(),
            stamps: self.stamps,
            crowd: self.crowd,
        };
        apart(|| driver::run(&rig, &self.world, &course))
    }
}

fn assert_shown(fault: &str, outcome: &Outcome) {
    let summary = outcome.summary();
    eprintln!("{fault}: {summary}\n{}", outcome.tally.notes());
    assert!(outcome.tally.served_wrong() > 0, "{fault}: nobody saw it: {summary}");
}

#[test]
fn with_every_mend_in_place_nobody_sees_anything_in_the_same_scenes() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    for scene in [coming_and_going(), long_transition()] {
        assert_clean(&scene.outcome(None, 60), 60);
    }
}

#[test]
fn without_dropping_what_the_kernel_holds_readers_see_it() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    assert_shown("skip-drop", &everything().outcome(Some("skip-drop"), MANY));
}

#[test]
fn with_only_the_top_names_of_directories_that_come_and_go_readers_see_it() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    assert_shown("shallow-change-set", &coming_and_going().outcome(Some("shallow-change-set"), MANY));
}

#[test]
fn with_names_kept_for_ever_in_the_transition_readers_see_it() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    assert_shown("no-ttl0", &long_transition().outcome(Some("no-ttl0"), MANY));
}

#[test]
fn without_the_barrier_a_late_reader_sees_it() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    let outcome = late_about_what_is_not_held().outcome(Some("skip-barrier"), MANY, PATIENCE);
    assert_shown("skip-barrier", &outcome);
}

#[test]
fn without_tidying_a_late_reader_sees_it() {
    if support::skip_mounted() {
        return;
    }
    let _turn = turn();
    let outcome = late_about_what_must_be_asked_again().outcome(Some("skip-tidy"), MANY, PATIENCE);
    assert_shown("skip-tidy", &outcome);
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
    let truth = Truth { world: &world, history: &history, stamps: true };
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
    let truth = Truth { world: &world, history: &history, stamps: true };
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
