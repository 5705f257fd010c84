//! The moment of a switch: its second, which is the mtime of what it changes, and its number.

use crate::error::{Error, Result};
use crate::store::active::Active;
use std::time::Duration;

/// How long a switch or a restore waits at most: for the second after one that was taken at most [`LEAD`] and a second
/// before it began, or until such a one is over.
const LONGEST_WAIT: Duration = Duration::from_millis(2_400);
/// How long after the moment that it is chosen a second begins at least: until then what it is for can be done.
const LEAD: Duration = Duration::from_millis(300);
/// How much of that must be left for the last step.
const MARGIN: Duration = Duration::from_millis(50);
/// How much later than the clock a file may be said to have changed: the kernel takes the time of its last tick.
const TICK: Duration = Duration::from_millis(20);

/// The time, and the wait for a later one.
pub trait Clock {
    /// Time since 1970.
    fn now(&self) -> Duration;
    /// Waits.
    fn sleep(&self, time: Duration);
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        crate::store::since_epoch()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Which second a switch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecondOf {
    /// The one that was taken last, once it has begun: this switch changes no content.
    Last,
    /// The last one while it lasts, and else a later one.
    LastOrLater,
    /// A later one: it is waited for.
    Own,
}

/// When a switch is, and the how manieth it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The second of the last switch that changed content, this one included, or of a restore since: no two share one.
    pub second: i64,
    /// The number of the switch.
    pub switch: u32,
    /// When it is, in seconds since 1970.
    pub since: i64,
}

impl Moment {
    /// The first switch of a store. Nobody saw another release before, but the files of this one may have mtimes of
    /// this very second: so it takes the second, and the next switch gets a later one.
    pub fn first(clock: &impl Clock) -> Self {
        let now = clock.now().as_secs() as i64;
        Self { second: now, switch: 1, since: now }
    }

    /// The switch after `active`.
    pub fn after(active: &Active, second: SecondOf, clock: &impl Clock) -> Result<Self> {
        let switch =
            active.switch.checked_add(1).filter(|n| *n < 1_000_000_000).ok_or_else(|| {
                Error::failed("this store has been switched a thousand million times; make a new one")
            })?;
        // A switch that was killed may have left it to come: what arrives next is later.
        active.arrival.into_iter().for_each(|arrival| wait_for(arrival, clock));
        let second = second.after(active.second, clock);
        Ok(Self { second, switch, since: clock.now().as_secs() as i64 })
    }
}

impl SecondOf {
    /// The second, where `last` was taken last: waits for it, and where the clock went back takes the next one.
    fn after(self, last: i64, clock: &impl Clock) -> i64 {
        let first = if self == Self::Own { last + 1 } else { last };
        wait_for(first, clock);
        let now = clock.now().as_secs() as i64;
        match self {
            Self::Last => last,
            Self::LastOrLater | Self::Own if now >= first => now,
            Self::LastOrLater | Self::Own => {
                log::warn!("the clock went back: the last second taken is {last}, now is {now}; taking {}", last + 1);
                last + 1
            }
        }
    }
}

/// How long it is until a second begins. Nothing if it has begun; nor if it is so far that the clock went back since it
/// was taken: then it is not waited for.
fn until(second: i64, now: Duration) -> Option<Duration> {
    let left = Duration::from_secs(second.max(0) as u64).saturating_sub(now);
    (!left.is_zero() && left <= LONGEST_WAIT).then_some(left)
}

/// Waits until a second begins.
fn wait_for(second: i64, clock: &impl Clock) {
    let mut patience = LONGEST_WAIT;
    while let Some(left) = until(second, clock.now()).filter(|left| *left <= patience) {
        clock.sleep(left);
        patience -= left;
    }
}

/// A second that has not begun, later than those that were taken like this before. What is shown until it begins has
/// earlier mtimes than what gets it. Where the clock went back it counts from the clock, as the mtimes on disk do.
pub(super) fn second_to_come(now: Duration, taken: impl Iterator<Item = i64>) -> i64 {
    let next = (now + LEAD).as_secs() as i64 + 1;
    let near = next..next + LONGEST_WAIT.as_secs() as i64;
    taken.filter(|second| near.contains(second)).max().map_or(next, |last| last + 1)
}

/// The second of a restore; or how long it waits until no other one is to come that was taken: with those of many
/// restores it would come ever later.
pub(super) fn second_of_restore(now: Duration, active: &Active) -> std::result::Result<i64, Duration> {
    match active.taken().filter_map(|second| until(second, now)).max() {
        Some(left) => Err(left),
        None => Ok(second_to_come(now, active.taken()).max(active.second + 1)),
    }
}

/// Whether a second has begun, or is about to.
pub(super) fn is_upon(second: i64, now: Duration) -> bool {
    (now + MARGIN).as_secs() as i64 >= second
}

/// Waits until a second that was to come is over, for files too: what is written then has a later one.
pub(super) fn outwait(second: i64, clock: &impl Clock) {
    let over = Duration::from_secs(second.max(0) as u64 + 1) + TICK;
    let left = over.saturating_sub(clock.now());
    if !left.is_zero() {
        clock.sleep(left.min(LONGEST_WAIT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A clock that moves only while somebody waits.
    struct Still(Cell<Duration>);

    impl Still {
        fn at(millis: u64) -> Self {
            Self(Cell::new(Duration::from_millis(millis)))
        }
    }

    impl Clock for Still {
        fn now(&self) -> Duration {
            self.0.get()
        }

        fn sleep(&self, time: Duration) {
            self.0.set(self.0.get() + time);
        }
    }

    #[test]
    fn a_switch_gets_a_second_later_than_the_last_one() {
        let clock = Still::at(7_300);
        assert_eq!(SecondOf::Own.after(5, &clock), 7);
        assert_eq!(clock.now(), Duration::from_millis(7_300), "no wait");
        assert_eq!(SecondOf::Own.after(7, &clock), 8);
        assert_eq!(clock.now(), Duration::from_secs(8), "it waited for the next second, and no longer");
        assert_eq!(SecondOf::LastOrLater.after(8, &clock), 8, "shared");
        assert_eq!(clock.now(), Duration::from_secs(8));
    }

    #[test]
    fn a_second_to_come_is_later_than_the_clock_and_than_the_last_one() {
        let at = Duration::from_millis;
        let after = |now, taken: &[i64]| second_to_come(at(now), taken.iter().copied());
        assert_eq!(after(7_100, &[]), 8);
        assert_eq!(after(7_800, &[]), 9, "too little is left of this one");
        assert_eq!(after(7_100, &[7]), 8);
        assert_eq!(after(7_100, &[8]), 9);
        assert_eq!(after(7_100, &[1_000]), 8, "the clock went back");
        assert_eq!(after(7_100, &[1_000, 8, 3]), 9, "it went back, and one was taken since");
        assert!(!is_upon(8, at(7_900)) && is_upon(8, at(7_960)) && is_upon(8, at(8_100)));
        let clock = Still::at(7_300);
        outwait(8, &clock);
        assert_eq!(clock.now(), at(9_020));
        outwait(8, &clock);
        assert_eq!(clock.now(), at(9_020), "it is over");
    }

    #[test]
    fn a_second_that_was_taken_before_it_began_is_waited_for() {
        // A restore at 7.8 took second 9.
        for (second, taken) in [(SecondOf::Own, 10), (SecondOf::Last, 9), (SecondOf::LastOrLater, 9)] {
            let clock = Still::at(7_850);
            assert_eq!(second.after(9, &clock), taken, "{second:?}");
            assert_eq!(clock.now().as_secs() as i64, taken, "{second:?}: it has begun, and no more");
        }
    }

    fn active(second: i64, arrival: Option<i64>) -> Active {
        let (release, previous) = ("a".to_owned(), None);
        Active { release, previous, rolled_back: false, switch: 1, second, since: 0, stamps_len: 0, arrival }
    }

    #[test]
    fn a_restore_takes_no_second_while_one_is_to_come_that_was_taken() {
        let at = Duration::from_millis;
        assert_eq!(second_of_restore(at(7_100), &active(7, None)), Ok(8));
        assert_eq!(second_of_restore(at(7_100), &active(8, None)), Err(at(900)));
        assert_eq!(second_of_restore(at(8_000), &active(8, None)), Ok(9));
        assert_eq!(second_of_restore(at(7_800), &active(5, Some(9))), Err(at(1_200)));
        assert_eq!(second_of_restore(at(7_100), &active(1_000, None)), Ok(1_001), "the clock went back");
    }

    #[test]
    fn a_switch_waits_for_an_arrival_that_a_killed_one_left_to_come() {
        let clock = Still::at(7_800);
        let moment = Moment::after(&active(7, Some(9)), SecondOf::Last, &clock).expect("a moment");
        assert_eq!((moment.second, moment.since), (7, 9));
    }

    #[test]
    fn where_the_clock_went_back_it_takes_the_next_second_without_a_long_wait() {
        let clock = Still::at(7_300);
        assert_eq!(SecondOf::Own.after(1_007, &clock), 1_008);
        assert_eq!(clock.now(), Duration::from_millis(7_300));
        assert_eq!(SecondOf::Own.after(9, &clock), 10);
        assert!(clock.now() <= Duration::from_millis(9_700), "2.4 seconds at most");
        let clock = Still::at(7_300);
        assert_eq!(SecondOf::Last.after(1_007, &clock), 1_007);
        assert_eq!(clock.now(), Duration::from_millis(7_300));
        outwait(1_007, &clock);
        assert!(clock.now() <= Duration::from_millis(9_700), "2.4 seconds at most");
    }
}
