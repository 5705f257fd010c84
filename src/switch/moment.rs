//! The moment of a switch: its second, which is the mtime of what it changes, and its number.

use crate::error::{Error, Result};
use crate::store::active::Active;
use std::time::Duration;

/// How long a switch waits at most for a second of its own.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
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
    /// That of the last switch: this one changes no content.
    Last,
    /// The last one's while it lasts, and else a later one.
    LastOrLater,
    /// A later one: it is waited for.
    Own,
}

/// When a switch is, and the how manieth it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The second of the last switch that changed content, this one included: no two such switches share one.
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
        let second = second.after(active.second, clock);
        Ok(Self { second, switch, since: clock.now().as_secs() as i64 })
    }
}

impl SecondOf {
    /// The second, where the last switch took `last`: waits for it, and where the clock went back takes the next one.
    fn after(self, last: i64, clock: &impl Clock) -> i64 {
        if self == Self::Last {
            return last;
        }
        let begun = clock.now();
        loop {
            let time = clock.now();
            let now = time.as_secs() as i64;
            if now > last || (self == Self::LastOrLater && now == last) {
                return now;
            }
            let until_next = Duration::from_nanos(1_000_000_000 - u64::from(time.subsec_nanos()));
            if last - now > LONGEST_WAIT.as_secs() as i64 || time.saturating_sub(begun) + until_next > LONGEST_WAIT {
                log::warn!("the clock went back: the last switch was at {last}, now is {now}; taking {}", last + 1);
                return last + 1;
            }
            clock.sleep(until_next);
        }
    }
}

/// A second that has not begun, later than `last`, which was chosen like this before. What is shown until it begins has
/// earlier mtimes than what gets it. Where the clock went back it counts from the clock, as the mtimes on disk do.
pub(super) fn second_to_come(now: Duration, last: Option<i64>) -> i64 {
    let next = (now + LEAD).as_secs() as i64 + 1;
    match last {
        Some(last) if (next..next + LONGEST_WAIT.as_secs() as i64).contains(&last) => last + 1,
        _ => next,
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
        clock.sleep(left.min(LONGEST_WAIT * 2));
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
        assert_eq!(second_to_come(at(7_100), None), 8);
        assert_eq!(second_to_come(at(7_800), None), 9, "too little is left of this one");
        assert_eq!(second_to_come(at(7_100), Some(7)), 8);
        assert_eq!(second_to_come(at(7_100), Some(8)), 9);
        assert_eq!(second_to_come(at(7_100), Some(1_000)), 8, "the clock went back");
        assert!(!is_upon(8, at(7_900)) && is_upon(8, at(7_960)) && is_upon(8, at(8_100)));
        let clock = Still::at(7_300);
        outwait(8, &clock);
        assert_eq!(clock.now(), at(9_020));
        outwait(8, &clock);
        assert_eq!(clock.now(), at(9_020), "it is over");
    }

    #[test]
    fn where_the_clock_went_back_it_takes_the_next_second_without_a_long_wait() {
        let clock = Still::at(7_300);
        assert_eq!(SecondOf::Own.after(1_007, &clock), 1_008);
        assert_eq!(clock.now(), Duration::from_millis(7_300));
        assert_eq!(SecondOf::Own.after(9, &clock), 10);
        assert!(clock.now() <= Duration::from_millis(9_300), "two seconds at most");
    }
}
