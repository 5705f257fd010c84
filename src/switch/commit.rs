//! The commit of a switch: the four steps of docs/SEMANTICS.md as a state machine of small effects.
//!
//! ```text
//!           nobody is served: ──────────────┐
//!                                           ▼
//!   begin ─Open─▶ opened ─Forget─▶ dropped ─Record─▶ recorded ─Settle─▶ ─Swap─▶ ─Leave─▶ swapped ─Forget─▶ tidied
//!                                     │        │                                       │ ▲
//!                                     │        │       the swap took a later arrival:  └─┘ Record
//!                                     │        │
//!                 too long, or failed └────────┴─Close─▶ ─Leave─▶ ─Restore─▶ taken back
//! ```
//!
//! It decides and does nothing: a [`Runner`] carries an effect out and says how it went. So a test runs the same commit
//! against a model of the kernel, and lets its readers go on between any two effects.

use super::invalidate::{Invalidations, Phase, ReleasePair};
use super::moment::{Clock, SystemClock};
use super::prepare::Stamped;
use crate::error::{Error, Result};
use crate::fault::{self, Skip};
use crate::fs::{Epoch, Transition};
use crate::store::active::Active;
use std::sync::Arc;
use std::time::Duration;

/// A step that somebody has to carry out.
#[derive(Debug)]
pub enum Effect {
    /// Step 1: this epoch, with the transition open, is what is served.
    Open(Epoch),
    /// Steps 2 and 4: the kernel forgets these things.
    Forget(Invalidations),
    /// Step 3, on disk: this is what is active.
    Record(Active),
    /// Step 3: the gate of the transition closes; threads in the middle of a file finish.
    Settle(Arc<Transition>),
    /// Step 3, in memory: this epoch is what is served.
    Swap(Epoch),
    /// The lookups that wait at the gate are answered.
    Leave(Arc<Transition>),
    /// There will be no switch: this epoch, as it was before, is what is served.
    Close(Epoch),
    /// This is what is active on disk, whatever a failed write left there.
    Restore(Active),
}

/// How an effect went.
#[derive(Debug)]
pub enum Outcome {
    /// It is done.
    Done,
    /// Nothing moved for as long as the limit.
    TimedOut,
    /// It failed.
    Failed(Error),
}

impl From<Result<()>> for Outcome {
    fn from(result: Result<()>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Done)
    }
}

/// Carries effects out.
pub trait Runner {
    /// Does it, and returns when it is done.
    fn perform(&mut self, effect: Effect) -> Outcome;

    /// Time since 1970.
    fn now(&self) -> Duration {
        SystemClock.now()
    }
}

/// Whether the kernel was told everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tidy {
    /// It was.
    Done,
    /// A stuck client keeps some of it for the next switch.
    Pending,
}

/// How a commit ended.
#[derive(Debug)]
pub enum End {
    /// The switch happened.
    Switched(Tidy),
    /// It did not, because a client held a directory's lock for too long.
    Busy,
    /// It did not, for this reason.
    Failed(Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Begin,
    Opening,
    Dropping,
    Recording,
    Settling,
    RecordingLater,
    Swapping,
    Leaving,
    Tidying,
    Closing,
    TakingBack,
    Over,
}

/// What is served while it switches.
#[derive(Debug)]
struct ServedSwitch {
    epoch: Arc<Epoch>,
    pair: Arc<ReleasePair>,
    transition: Arc<Transition>,
}

/// A switch on its way.
#[derive(Debug)]
pub struct Commit {
    stamped: Stamped,
    /// `None`: nobody is served.
    served: Option<ServedSwitch>,
    /// What a stuck client keeps the kernel from forgetting.
    leftover: Invalidations,
    /// Whether the swap came too late for the arrival that was recorded, and took a later one.
    late: bool,
    state: State,
    end: End,
}

impl Commit {
    /// On disk alone: nobody is served.
    pub(super) fn unserved(stamped: Stamped) -> Self {
        Self::new(stamped, None, Invalidations::default())
    }

    /// While `epoch` is served; `leftover` is what an earlier switch could not tell the kernel.
    pub(super) fn served(
        stamped: Stamped,
        epoch: Arc<Epoch>,
        pair: Arc<ReleasePair>,
        leftover: Invalidations,
    ) -> Result<Self> {
        let transition = Arc::new(Transition::new(&pair.changes, pair.keys()?));
        Ok(Self::new(stamped, Some(ServedSwitch { epoch, pair, transition }), leftover))
    }

    fn new(stamped: Stamped, served: Option<ServedSwitch>, leftover: Invalidations) -> Self {
        Self { stamped, served, leftover, late: false, state: State::Begin, end: End::Switched(Tidy::Done) }
    }

    /// Runs it to its end; gives what is left for the next switch.
    pub fn run(mut self, runner: &mut impl Runner) -> (End, Invalidations) {
        let mut outcome = Outcome::Done;
        while let Some(effect) = self.next(outcome, runner.now()) {
            outcome = runner.perform(effect);
        }
        (self.end, self.leftover)
    }

    /// What is to be done next, after the effect before it had this outcome.
    fn next(&mut self, outcome: Outcome, now: Duration) -> Option<Effect> {
        match self.state {
            State::Begin => self.begin(now),
            State::Opening => {
                fault::point("switch.opened");
                self.drop_entries()
            }
            State::Dropping => {
                fault::point("switch.dropped");
                match outcome {
                    Outcome::Done => {
                        self.leftover = Invalidations::default();
                        self.record(now)
                    }
                    refused => self.take_back(refused),
                }
            }
            State::Recording => match outcome {
                Outcome::Done => {
                    fault::point("switch.recorded");
                    self.stamped.keep();
                    self.settle()
                }
                refused => self.take_back(refused),
            },
            State::Settling => self.swap(now),
            // Before any disk and the tidying: a lookup that waits keeps its directory's lock.
            State::Swapping => self.leave(State::Leaving),
            State::Leaving => {
                fault::point("switch.swapped");
                if self.late { self.record_later() } else { self.tidy() }
            }
            State::RecordingLater => {
                if let Outcome::Failed(error) = outcome {
                    log::error!("{error}: the next mount shows files of the release's own layers a second earlier");
                }
                self.tidy()
            }
            State::Tidying => {
                self.note_tidy(outcome);
                fault::point("switch.tidied");
                self.over()
            }
            State::Closing => self.leave(State::TakingBack),
            State::TakingBack => self.restore(),
            State::Over => None,
        }
    }

    fn begin(&mut self, now: Duration) -> Option<Effect> {
        let Some(served) = &self.served else { return self.record(now) };
        self.state = State::Opening;
        Some(Effect::Open(served.epoch.with_transition(Some(served.transition.clone()))))
    }

    fn drop_entries(&mut self) -> Option<Effect> {
        self.state = State::Dropping;
        let mut list = self.leftover.clone();
        list.pairs.extend(self.served.iter().map(|served| (served.pair.clone(), Phase::BeforeSwap)));
        Some(Effect::Forget(if fault::skips(Skip::Drop) { Invalidations::default() } else { list }))
    }

    fn record(&mut self, now: Duration) -> Option<Effect> {
        self.state = State::Recording;
        self.stamped.arrive(now);
        Some(Effect::Record(self.stamped.active().clone()))
    }

    fn settle(&mut self) -> Option<Effect> {
        let Some(served) = &self.served else { return self.over() };
        self.state = State::Settling;
        Some(Effect::Settle(served.transition.clone()))
    }

    fn record_later(&mut self) -> Option<Effect> {
        self.state = State::RecordingLater;
        Some(Effect::Record(self.stamped.active().clone()))
    }

    fn swap(&mut self, now: Duration) -> Option<Effect> {
        self.state = State::Swapping;
        self.late = self.stamped.is_late(now);
        if self.late {
            self.stamped.arrive(now);
        }
        let ServedSwitch { epoch, pair, .. } = self.served.as_ref()?;
        let active = self.stamped.active();
        let epoch = epoch.after(active.switch, pair.new.clone(), &pair.changes);
        Some(Effect::Swap(epoch.arriving(active.arrival)))
    }

    fn leave(&mut self, state: State) -> Option<Effect> {
        self.state = state;
        self.served.as_ref().map(|served| Effect::Leave(served.transition.clone()))
    }

    /// What was said in the transition, and what the kernel may have taken over of it.
    fn said(&self) -> Invalidations {
        let Some(ServedSwitch { pair, transition, .. }) = &self.served else { return Invalidations::default() };
        Invalidations { pairs: vec![(pair.clone(), Phase::AfterSwap)], entries: transition.noted() }
    }

    fn tidy(&mut self) -> Option<Effect> {
        self.state = State::Tidying;
        Some(Effect::Forget(if fault::skips(Skip::Tidy) { Invalidations::default() } else { self.said() }))
    }

    fn note_tidy(&mut self, outcome: Outcome) {
        if let Outcome::Failed(error) = &outcome {
            log::error!("after the switch to {}: {error}", self.stamped.active().release);
        }
        if let Outcome::Done = outcome {
            return;
        }
        if let Some(left) = self.stamped.active().previous.as_ref() {
            log::warn!("a client keeps the kernel from forgetting names of {left}: the next switch does it");
        }
        self.leftover = self.said();
        self.end = End::Switched(Tidy::Pending);
    }

    fn take_back(&mut self, refused: Outcome) -> Option<Effect> {
        self.end = match refused {
            Outcome::Failed(error) => End::Failed(error),
            Outcome::TimedOut | Outcome::Done => End::Busy,
        };
        let Some(served) = &self.served else { return self.restore() };
        self.state = State::Closing;
        Some(Effect::Close(served.epoch.with_transition(None)))
    }

    fn restore(&mut self) -> Option<Effect> {
        // Names that were said in the transition are forgotten later; until then they hold for no time.
        let Invalidations { pairs, entries } = self.said();
        for (pair, phase) in pairs {
            if !self.leftover.pairs.iter().any(|(other, _)| other.is_like(&pair)) {
                self.leftover.pairs.push((pair, phase));
            }
        }
        self.leftover.entries.extend(entries);
        self.state = State::Over;
        self.stamped.before().cloned().map(Effect::Restore)
    }

    fn over(&mut self) -> Option<Effect> {
        self.state = State::Over;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Moment, Plan};
    use super::*;
    use crate::fs::Release;
    use crate::fs::media::Scopes;
    use crate::store::media::scope::Scope;
    use crate::store::release::manifest::{BuildNode, Builder, Manifest};
    use crate::tree::Kind;
    use std::path::Path;

    /// Settles for as long as a test says, by a clock that stands still else, and notes each effect with its arrival.
    struct Settling {
        now: Duration,
        settle: Duration,
        seen: Vec<(&'static str, Option<i64>)>,
    }

    impl Runner for Settling {
        fn perform(&mut self, effect: Effect) -> Outcome {
            self.seen.push(match effect {
                Effect::Record(active) => ("record", active.arrival),
                Effect::Swap(epoch) => ("swap", epoch.arrival.map(|arrival| arrival.second)),
                Effect::Leave(_) => ("leave", None),
                Effect::Forget(_) => ("forget", None),
                Effect::Settle(_) => {
                    self.now += self.settle;
                    ("settle", None)
                }
                _ => return Outcome::Done,
            });
            Outcome::Done
        }

        fn now(&self) -> Duration {
            self.now
        }
    }

    fn release(name: &str) -> Arc<Release> {
        let bytes = Builder::new(BuildNode::new(b"", Kind::Dir, 0o755)).encode(0).expect("a manifest");
        let manifest = Manifest::from_bytes(bytes, Path::new(name)).expect("whole");
        Arc::new(Release { name: name.parse().expect("a name"), manifest })
    }

    /// What a switch at second 100 between two releases with own layers does, if it settles for so long.
    fn switch(settle: Duration) -> Vec<(&'static str, Option<i64>)> {
        let epoch = Arc::new(Epoch::new(1, release("a"), Arc::default()));
        let active = Active {
            release: "a".to_owned(),
            previous: None,
            rolled_back: false,
            switch: 1,
            second: 90,
            since: 90,
            stamps_len: 0,
            arrival: None,
        };
        let scopes = Scopes::new(&[Scope::new("cache", true, "")]);
        let plan = Plan::new(active, epoch, release("b"), false, Some(&scopes)).expect("a plan");
        let stamped = plan.rehearse(Moment { second: 90, switch: 2, since: 100 }).expect("its stamps");
        let mut runner = Settling { now: Duration::from_secs(100), settle, seen: Vec::new() };
        let commit = stamped.commit_served(Invalidations::default()).expect("a commit");
        assert!(matches!(commit.run(&mut runner).0, End::Switched(Tidy::Done)));
        runner.seen
    }

    #[test]
    fn whoever_waits_at_the_gate_waits_for_no_disk_and_an_arrival_is_never_late() {
        let (forget, settle, leave) = (("forget", None), ("settle", None), ("leave", None));
        let (record, swap) = (|second| ("record", Some(second)), |second| ("swap", Some(second)));
        let in_time = [forget, record(101), settle, swap(101), leave, forget];
        assert_eq!(switch(Duration::from_millis(40)), in_time);
        let late = [forget, record(101), settle, swap(103), leave, record(103), forget];
        assert_eq!(switch(Duration::from_millis(2_100)), late);
    }
}
