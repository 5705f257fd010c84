//! The switch against a model of the kernel's caches, single-threaded, from a seed: every step of every client, of the
//! server and of the switch is one that the seed picks, so a failure is replayed:
//!
//! ```text
//! VERFS_SIM_SEED=4711 cargo test --features faults --test sim whatever
//! VERFS_SIM_RUNS=1000000 cargo test --features faults --test sim whatever     # more runs than every day
//! ```
//!
//! Real are the stages and the commit (`verfs::switch`), the list of what the kernel forgets, the epochs, and what is
//! answered (`Fs::lookup`, `getattr`, `list`; `Fs::compute` and `Fs::send`). Modelled are the kernel (`kernel`), which
//! dentries it keeps, what it believes and which locks it takes, and the clients (`client`): a call is a walk, name by
//! name, then a stat, an open or a listing. Between any two of these steps others take theirs:
//!
//! ```text
//!   client   looks at the cache · gets a lock · asks          ·        ·             uses the reply, lets the lock go
//!   server                                        computes · sends
//!   switch   opens · tells the kernel one thing (may wait for a lock) · records · swaps · tells … · returns
//! ```
//!
//! What may be seen says `oracle`: the names of a call come from one view that was served during it, to the instant of the
//! swap; a listing is that of one view; attributes are those of a view that was not followed by a switch that returned.
//! With a rule left out (`verfs::fault::Skip`) somebody sees something else within 1,000 runs; with all of them nobody in
//! 10,000.
//!
//! Two orders of steps are known to show what is gone, and are let pass (docs/SEMANTICS.md, "What is not promised"). In
//! both the question whether a directory's name is still right, which takes no lock, was answered before a switch in which
//! the directory goes, and the answer is used after the kernel dropped the name (`late`):
//!
//! - somebody looked the name up in the transition, so it is attached again: then it is seen until step 4 drops it;
//! - a listing that began before the switch, or somebody inside a directory that is gone, attached it again after the swap
//!   (`attached_gone`): then it would be seen until a later switch drops it. The model does not believe such an answer.
//!
//! Left out: the writable layer, the gate (it makes lookups wait, no more), and that the kernel believes an answer an
//! instant before it has taken it over.
#![cfg(feature = "faults")]
#![allow(clippy::unwrap_used)]

#[path = "support/chance.rs"]
mod chance;
#[path = "sim/client.rs"]
mod client;
#[path = "sim/kernel.rs"]
mod kernel;
#[path = "sim/oracle.rs"]
mod oracle;
#[path = "sim/world.rs"]
mod world;

use chance::Chance;
use client::{Client, Purpose, Scene};
use kernel::Kernel;
use oracle::{Judged, Oracle};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use verfs::error::Error;
use verfs::fault::{self, Skip};
use verfs::fs::refused::Refused;
use verfs::fs::{Epoch, Fs};
use verfs::store::active::Active;
use verfs::store::active::stamps::{Stamp, Stamps};
use verfs::store::release::objects::Objects;
use verfs::switch::{Effect, End, Invalidations, Moment, Notice, Outcome, Plan, Runner};
use verfs::tree::NodeId;
use world::Tree;

/// Runs with every rule of the switch in place.
const RUNS: u64 = 10_000;
/// Runs within which a rule that is left out is seen.
const RUNS_WITH_FAULT: u64 = 1_000;
/// Steps of a waiting switch after which it is a deadlock.
const LONG: usize = 100_000;

/// Something was seen that must not be.
type Wrong = String;

/// A run.
struct Run {
    chance: Chance,
    fs: Fs,
    kernel: Kernel,
    oracle: Oracle,
    clients: Vec<Client>,
    wrong: Option<Wrong>,
    /// How many steps others take between two of the switch, at most.
    steps: usize,
    /// The path that most calls are about, in so many of a hundred cases: so several meet there.
    hot: &'static str,
    focus: usize,
    /// Clients that hardly ever get a processor, until somebody waits for them.
    late: Vec<usize>,
    /// Whether every step is written out: in a replay.
    trace: bool,
}

impl Run {
    fn new(seed: u64, judged: Judged, objects: &Objects) -> (Self, &'static [Arc<Tree>]) {
        let mut chance = Chance::new(seed);
        let family = world::family(&mut chance);
        let first = chance.pick(family).clone();
        let epoch = Epoch::new(1, first.release.clone(), Arc::new(Stamps::default()));
        let (root, _) = epoch.attributes(NodeId::ROOT).unwrap();
        let store = File::open("/dev/null").unwrap();
        let clients = (0..2 + chance.below(3)).map(|_| Client::default()).collect();
        let run = Self {
            fs: Fs::new(epoch, objects.clone(), store, 16, None, Arc::new(Refused::default())),
            kernel: Kernel::new(root),
            oracle: Oracle::new(first, judged),
            clients,
            wrong: None,
            steps: 2 + chance.below(8),
            hot: world::hot_path(&mut chance),
            focus: *chance.pick(&[40, 70, 100]),
            late: Vec::new(),
            trace: replayed().is_some(),
            chance,
        };
        (run, family)
    }

    /// Up to `most` steps of anybody but the switch.
    fn others(&mut self, most: usize) {
        for _ in 0..self.chance.below(most + 1) {
            let number = self.chance.below(self.clients.len());
            if !self.late.contains(&number) || self.chance.below(400) == 0 {
                self.step(number);
            }
        }
    }

    /// What comes before a switch: caches may be dropped; somebody lists the directory that most are about; some go late
    /// from here on, each with an answer under way.
    fn choose_late(&mut self) {
        match self.chance.below(4) {
            0 => (0..self.kernel.dentries()).rev().for_each(|number| self.kernel.press(number)),
            1 | 2 => self.begin_and_go_on(0, Purpose::List { most: 64 }, world::parent(self.hot), Client::is_idle),
            _ => {}
        }
        for number in 0..self.clients.len() {
            if self.chance.percent(60) {
                continue;
            }
            let purpose = *self.chance.pick(&[Purpose::Open, Purpose::Stat, Purpose::Stat, Purpose::List { most: 64 }]);
            self.begin_and_go_on(number, purpose, self.hot, Client::is_answered);
            if self.clients[number].is_answered() {
                self.late.push(number);
            }
        }
    }

    /// A call of one client, if it is idle, as far as it goes by itself in some steps.
    fn begin_and_go_on(&mut self, number: usize, purpose: Purpose, path: &'static str, far: fn(&Client) -> bool) {
        if self.clients[number].is_idle() {
            let Self { fs, kernel, oracle, clients, .. } = self;
            clients[number].begin(purpose, false, path, &mut Scene { fs, kernel, oracle });
        }
        for _ in 0..40 {
            if far(&self.clients[number]) {
                return;
            }
            self.go_on(number);
        }
    }

    fn step(&mut self, number: usize) {
        if self.wrong.is_some() {
            return;
        }
        let Self { chance, fs, kernel, oracle, clients, hot, focus, trace, .. } = self;
        if chance.percent(4) {
            kernel.press(chance.below(kernel.dentries()));
        }
        let client = &mut clients[number];
        let mut scene = Scene { fs, kernel, oracle };
        if !client.is_idle() {
            if *trace {
                eprintln!("client {number}: {client:?}");
            }
            if let Err(wrong) = client.step(&mut scene) {
                self.wrong = Some(format!("client {number}: {wrong}"));
            }
            return;
        }
        let path = if chance.percent(*focus) { hot } else { world::any_path(chance) };
        let from_held = chance.percent(30);
        let below = *chance.pick(&["", "x", "y", "s", "d", "d/x"]);
        match chance.below(12) {
            0 if chance.percent(50) => client.close(scene.kernel),
            1..3 => client.begin(Purpose::Open, false, path, &mut scene),
            3..6 => {
                let most = *chance.pick(&[2, 64]);
                let dir = if from_held { "" } else { world::parent(path) };
                client.begin(Purpose::List { most }, from_held, dir, &mut scene);
            }
            _ => client.begin(Purpose::Stat, from_held, if from_held { below } else { path }, &mut scene),
        }
    }

    /// Everything is looked at while nothing else happens, but for what others have begun.
    fn audit(&mut self) {
        let paths: Vec<&'static str> = world::all_paths().collect();
        let auditor = self.clients.len();
        self.clients.push(Client::default());
        for path in paths {
            for purpose in [Purpose::Stat, Purpose::List { most: 64 }] {
                let Self { fs, kernel, oracle, clients, .. } = self;
                clients[auditor].begin(purpose, false, path, &mut Scene { fs, kernel, oracle });
                while !self.clients[auditor].is_idle() && self.wrong.is_none() {
                    let Self { fs, kernel, oracle, clients, .. } = self;
                    match clients[auditor].step(&mut Scene { fs, kernel, oracle }) {
                        Ok(true) => {}
                        // Who looks the same name up has to have the reply first.
                        Ok(false) => {
                            self.late.clear();
                            (0..auditor).for_each(|other| self.go_on(other));
                        }
                        Err(wrong) => self.wrong = Some(format!("the audit: {wrong}")),
                    }
                }
            }
        }
        self.clients.pop();
    }

    /// A step of somebody who is in a call.
    fn go_on(&mut self, number: usize) {
        if !self.clients[number].is_idle() {
            self.step(number);
        }
    }

    /// One switch, with everybody else going on.
    fn switch(&mut self, active: &Active, leftover: Invalidations, to: &Arc<Tree>) -> (Active, Invalidations) {
        let switch = active.switch + 1;
        let moment = Moment { second: 1_000 + i64::from(switch), switch, since: 0 };
        let epoch = self.fs.epochs.load();
        let plan = Plan::new(active.clone(), epoch, to.release.clone(), false, None).unwrap();
        self.oracle.begin(to.clone(), Stamp { second: moment.second, nanos: switch });
        let stamped = plan.rehearse(moment).unwrap();
        let next = stamped.active().clone();
        let refusal = match self.chance.below(12) {
            0 => Refusal::Stuck(self.chance.below(6)),
            1 => Refusal::Disk,
            _ => Refusal::None,
        };
        let (end, leftover) = stamped.commit_served(leftover).unwrap().run(&mut Beside { run: self, refusal });
        self.oracle.end();
        match end {
            End::Switched(_) => (next, leftover),
            End::Busy | End::Failed(_) => (active.clone(), leftover),
        }
    }
}

/// What goes wrong in a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    None,
    /// The kernel cannot be told more than so many things: a client is stuck.
    Stuck(usize),
    /// The disk does not take the record.
    Disk,
}

/// Carries a commit out step by step, beside everybody else.
struct Beside<'a> {
    run: &'a mut Run,
    refusal: Refusal,
}

impl Runner for Beside<'_> {
    fn perform(&mut self, effect: Effect) -> Outcome {
        let steps = self.run.steps;
        self.run.others(steps);
        let epochs = &self.run.fs.epochs;
        if self.run.trace {
            eprintln!("switch: {effect:?}");
        }
        match effect {
            Effect::Open(epoch) | Effect::Close(epoch) => {
                epochs.publish(epoch);
                self.run.oracle.turn();
            }
            Effect::Swap(epoch) => {
                epochs.publish(epoch);
                self.run.oracle.swap();
            }
            Effect::Forget(list) => return self.forget(&list),
            Effect::Record(_) if self.refusal == Refusal::Disk => {
                return Outcome::Failed(Error::failed("the disk is full"));
            }
            Effect::Leave(transition) => transition.gate.end(),
            Effect::Record(_) | Effect::Settle(_) | Effect::Restore(_) => {}
        }
        self.run.others(steps);
        Outcome::Done
    }
}

impl Beside<'_> {
    fn forget(&mut self, list: &Invalidations) -> Outcome {
        for notice in list.notices(&|_| unreachable!("no scopes")) {
            if let Refusal::Stuck(more) = &mut self.refusal {
                if *more == 0 {
                    return Outcome::TimedOut;
                }
                *more -= 1;
            }
            if self.run.trace {
                eprintln!("switch: {notice:?}");
            }
            match notice.unwrap() {
                Notice::PassLock { dir, .. } => self.wait_for_lock(dir),
                Notice::DropEntry { dir, name } => {
                    self.wait_for_lock(dir);
                    self.run.kernel.drop_entry(dir, std::str::from_utf8(name).unwrap());
                }
                Notice::DropAttributes(node) => self.run.kernel.drop_attributes(node),
            }
            self.run.others(self.run.steps);
        }
        Outcome::Done
    }

    /// Waits until a directory's lock is free.
    fn wait_for_lock(&mut self, dir: NodeId) {
        for round in 0..LONG {
            if self.run.kernel.want_lock(dir) || self.run.wrong.is_some() {
                return self.run.kernel.give_up_lock(dir);
            }
            if round == 10 {
                self.run.late.clear();
            }
            self.run.others(4);
        }
        panic!("a deadlock: the lock of {dir:?} is never free; {:?}", self.run.clients);
    }
}

/// Some switches from one seed; what was seen that must not be.
fn run(seed: u64, judged: Judged, objects: &Objects) -> Option<Wrong> {
    let (mut run, family) = Run::new(seed, judged, objects);
    let mut active = Active {
        release: run.oracle.tree().release.name.to_string(),
        previous: None,
        rolled_back: false,
        switch: 1,
        second: 1_000,
        since: 0,
        stamps_len: 0,
        arrival: None,
    };
    let mut leftover = Invalidations::default();
    let mut wanted = None;
    for _ in 0..4 + run.chance.below(8) {
        let between = *run.chance.pick(&[0, 0, 4, 40]);
        run.others(between);
        // Whoever was refused tries again.
        let again = wanted.take().filter(|_| run.chance.percent(80));
        let to: Arc<Tree> = again.unwrap_or_else(|| run.chance.pick(family).clone());
        if to.release.name.as_str() == active.release {
            continue;
        }
        run.choose_late();
        (active, leftover) = run.switch(&active, leftover, &to);
        wanted = Some(to).filter(|to| to.release.name.as_str() != active.release);
        if run.chance.percent(70) {
            run.late.clear();
        }
        if run.wrong.is_some() {
            break;
        }
        if run.chance.percent(30) {
            run.audit();
        }
    }
    run.late.clear();
    for _ in 0..200 {
        (0..run.clients.len()).for_each(|number| run.go_on(number));
    }
    run.audit();
    run.wrong
}

/// An empty directory of objects: no content is read here.
fn no_objects() -> Objects {
    let store = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(store.path().join("objects/packs")).unwrap();
    Objects::of(store.path()).unwrap()
}

/// The seeds up to `runs`, on all processors; the first that shows something, with what it shows.
fn first_wrong(skip: Option<Skip>, judged: Judged, runs: u64) -> Option<(u64, Wrong)> {
    let objects = no_objects();
    let next = AtomicU64::new(0);
    let worker = || {
        fault::with(skip, || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= runs {
                    return None;
                }
                if let Some(wrong) = run(seed, judged, &objects) {
                    // The others end with the seeds that they have.
                    next.store(runs, Ordering::Relaxed);
                    return Some((seed, wrong));
                }
            }
        })
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().filter_map(|worker| worker.join().unwrap()).min_by_key(|(seed, _)| *seed)
    })
}

/// A number from the environment.
fn wish(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// The seed that is to be replayed, step by step.
fn replayed() -> Option<u64> {
    wish("VERFS_SIM_SEED")
}

#[test]
fn whatever_the_order_of_steps_nobody_sees_anything_wrong() {
    if let Some(seed) = replayed() {
        let wrong = fault::with(None, || run(seed, Judged::All, &no_objects()));
        assert_eq!(wrong, None, "seed {seed}");
    } else if let Some((seed, wrong)) = first_wrong(None, Judged::All, wish("VERFS_SIM_RUNS").unwrap_or(RUNS)) {
        panic!("{wrong}\nreplay it: VERFS_SIM_SEED={seed} cargo test --features faults --test sim whatever");
    }
}

fn assert_found(skip: Skip, judged: Judged) {
    let found = first_wrong(Some(skip), judged, RUNS_WITH_FAULT);
    let (seed, wrong) = found.unwrap_or_else(|| panic!("{skip:?} left out shows nothing in {RUNS_WITH_FAULT} runs"));
    eprintln!("{skip:?}: seed {seed}: {wrong}");
}

#[test]
fn without_dropping_what_the_kernel_holds_it_is_seen() {
    assert_found(Skip::Drop, Judged::All);
}

#[test]
fn without_tidying_it_is_seen() {
    assert_found(Skip::Tidy, Judged::All);
}

#[test]
fn without_the_barrier_it_is_seen() {
    assert_found(Skip::Barrier, Judged::All);
}

/// Stamps are not judged: what is below the top names must itself be seen to be old.
#[test]
fn with_only_the_top_names_of_directories_that_come_and_go_it_is_seen() {
    assert_found(Skip::DeepChangeSet, Judged::Names);
}

#[test]
fn with_names_kept_for_ever_in_the_transition_it_is_seen() {
    assert_found(Skip::Ttl0, Judged::All);
}
