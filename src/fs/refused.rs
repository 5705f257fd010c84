//! Writes that were refused: which path, which user, how often. They show an operator the plugin that wants to write
//! into the code.
//!
//! Whoever is refused chooses the paths, so what is kept is bounded: the most frequent ones are (Metwally and others,
//! "Efficient computation of frequent and top-k elements in data streams", 2005: space saving). A new path takes the
//! place of the least frequent one, and goes on from its count; what it took over is known, and is not shown. So who
//! was refused more often than one time in `MOST` of all is there, whatever else came before and between.
//!
//! Names that differ only in what looks like chance count as one: some programs try at each request whether they can
//! write, by another name each time.

use parking_lot::Mutex;
use std::collections::HashMap;

/// How many different ones are told apart.
const MOST: usize = 1000;
/// The most that is kept of a path, in bytes; of a longer one the beginning and the end. So all of them take 1 MiB at
/// most.
const LONGEST: usize = 240;
/// Lines in the log a day.
const LINES: usize = 1000;
/// Seconds.
const DAY: i64 = 24 * 60 * 60;

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was not in a scope.
    Outside,
    /// The scope denies the name.
    Denied,
    /// The scope is full.
    Limit,
}

impl Why {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Outside => "not in a scope",
            Self::Denied => "a denied name",
            Self::Limit => "over the scope's limit",
        }
    }
}

/// Refused writes of one user to one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Path in the docroot; with `*` in place of what differs in the names of several that count as one.
    pub path: Vec<u8>,
    /// User id.
    pub uid: u32,
    /// Why the last one was.
    pub why: Why,
    /// How many there were at least: since this path has been told apart.
    pub count: u64,
    /// When the last one was, in seconds since 1970.
    pub last: i64,
}

/// The most frequent ones since the mount.
#[derive(Debug, Default)]
pub struct Refused(Mutex<Tally>);

#[derive(Debug, Default)]
struct Tally {
    total: u64,
    /// By the path with `*` in it, and the user.
    known: HashMap<(Vec<u8>, u32), Known>,
    /// The day of the last line in the log, in days since 1970, and how many lines that day had.
    logged: (i64, usize),
}

#[derive(Debug)]
struct Known {
    refusal: Refusal,
    /// The count of what had this place before.
    taken_over: u64,
}

impl Known {
    fn rank(&self) -> (u64, i64) {
        (self.taken_over + self.refusal.count, self.refusal.last)
    }
}

impl Refused {
    /// One more. The first of a user and path is logged.
    pub fn note(&self, path: &[u8], uid: u32, why: Why) {
        if self.count(path, uid, why, crate::store::now()) {
            log::warn!("refused a write of user {uid} to {}: {}", clipped(path).escape_ascii(), why.text());
        }
    }

    /// Counts one; says whether it is to be logged.
    fn count(&self, path: &[u8], uid: u32, why: Why, now: i64) -> bool {
        let (path, shape) = (clipped(path), clipped(&without_chance(path)));
        let mut seen = self.0.lock();
        seen.total += 1;
        let key = (shape, uid);
        if let Some(Known { refusal, .. }) = seen.known.get_mut(&key) {
            refusal.count += 1;
            (refusal.why, refusal.last) = (why, now);
            if refusal.path != path {
                refusal.path.clone_from(&key.0);
            }
            return false;
        }
        let taken_over = seen.make_room();
        seen.known.insert(key, Known { refusal: Refusal { path, uid, why, count: 1, last: now }, taken_over });
        seen.may_log(now)
    }

    /// How many there were, and the most frequent ones.
    pub fn most(&self, how_many: usize) -> (u64, Vec<Refusal>) {
        let seen = self.0.lock();
        let total = seen.total;
        let mut all: Vec<Refusal> = seen.known.values().map(|known| known.refusal.clone()).collect();
        drop(seen);
        all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.path.cmp(&b.path)));
        all.truncate(how_many);
        (total, all)
    }
}

impl Tally {
    /// Takes out the least frequent one if there is no room, and gives its count.
    fn make_room(&mut self) -> u64 {
        if self.known.len() < MOST {
            return 0;
        }
        let least = self.known.iter().min_by_key(|(_, known)| known.rank()).map(|(key, _)| key.clone());
        least.and_then(|key| self.known.remove(&key)).map_or(0, |known| known.rank().0)
    }

    fn may_log(&mut self, now: i64) -> bool {
        let day = now / DAY;
        if self.logged.0 != day {
            self.logged = (day, 0);
        }
        self.logged.1 += 1;
        self.logged.1 <= LINES
    }
}

/// A path, or its beginning and its end.
fn clipped(path: &[u8]) -> Vec<u8> {
    match path.len() <= LONGEST {
        true => path.to_vec(),
        false => [&path[..LONGEST / 2], b"...", &path[path.len() - LONGEST / 2..]].concat(),
    }
}

/// A path with `*` in its last name for what looks like chance: digits, and whole words of letters and digits that are
/// hexadecimal or have a letter behind a digit, from six on (`uniqid`, `tempnam`, a hash, a number).
fn without_chance(path: &[u8]) -> Vec<u8> {
    let name = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let mut shape = path[..name].to_vec();
    let same_kind = |a: &u8, b: &u8| a.is_ascii_alphanumeric() == b.is_ascii_alphanumeric();
    for word in path[name..].chunk_by(same_kind) {
        if is_chance(word) {
            shape.push(b'*');
            continue;
        }
        for part in word.chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit()) {
            match part.iter().all(u8::is_ascii_digit) {
                true => shape.push(b'*'),
                false => shape.extend_from_slice(part),
            }
        }
    }
    shape
}

fn is_chance(word: &[u8]) -> bool {
    let digit = word.iter().position(u8::is_ascii_digit);
    let letter_behind = |at| word[at..].iter().any(u8::is_ascii_alphabetic);
    word.len() >= 6 && digit.is_some_and(|at| letter_behind(at) || word.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name without a digit in it, for each number.
    fn word(number: usize) -> String {
        number.to_string().bytes().map(|digit| char::from(b'g' + digit - b'0')).collect()
    }

    #[test]
    fn refusals_are_counted_by_path_and_user() {
        let refused = Refused::default();
        for _ in 0..3 {
            refused.note(b"index.php", 33, Why::Outside);
        }
        refused.note(b"index.php", 0, Why::Denied);
        let (total, most) = refused.most(2);
        let seen: Vec<_> = most.iter().map(|refusal| (&refusal.path[..], refusal.uid, refusal.count)).collect();
        assert_eq!((total, seen), (4, vec![(&b"index.php"[..], 33, 3), (&b"index.php"[..], 0, 1)]));
    }

    #[test]
    fn who_comes_often_is_first_whatever_came_before_and_comes_between() {
        let refused = Refused::default();
        for number in 0..3 * MOST {
            refused.note(word(number).as_bytes(), 33, Why::Denied);
        }
        for number in 0..300 {
            refused.note(b"upgrade", 33, Why::Outside);
            refused.note(word(3 * MOST + number).as_bytes(), 33, Why::Denied);
        }
        let (total, most) = refused.most(usize::MAX);
        assert_eq!((total, most.len()), (3 * MOST as u64 + 600, MOST));
        assert_eq!((&most[0].path[..], most[0].count), (&b"upgrade"[..], 300));
        assert_eq!(most[1].count, 1, "none is said to have come more often than it did");
    }

    #[test]
    fn names_that_differ_by_chance_count_as_one() {
        let shapes = [
            ("wp/temp-write-test-1712", "wp/temp-write-test-*"),
            ("wp/temp-write-test-65f1c2a3b4d5e6-12345678", "wp/temp-write-test-*-*"),
            ("a1b2c3/upgrade", "a1b2c3/upgrade"),
            ("phpXa9Kq2", "*"),
            ("cache/deadbeef01.tmp", "cache/*.tmp"),
            ("module2.php", "module*.php"),
            ("index.php", "index.php"),
            (".htaccess", ".htaccess"),
            ("facade", "facade"),
            ("", ""),
        ];
        for (path, shape) in shapes {
            assert_eq!(without_chance(path.as_bytes()), shape.as_bytes(), "{path}");
        }
        let refused = Refused::default();
        refused.note(b"wp/test-1", 33, Why::Outside);
        assert_eq!(refused.most(1).1[0].path, b"wp/test-1", "one alone has its name");
        refused.note(b"wp/test-2", 33, Why::Outside);
        assert_eq!((&refused.most(1).1[0].path[..], refused.most(2).1.len()), (&b"wp/test-*"[..], 1));
    }

    #[test]
    fn long_paths_and_many_lines_take_no_more_than_a_bound() {
        let refused = Refused::default();
        refused.note(&[b'x'; 4000], 33, Why::Outside);
        assert!(refused.most(1).1[0].path.len() <= LONGEST + 3);
        let logged = |number, day| refused.count(word(number).as_bytes(), 1, Why::Denied, day);
        let lines = |day: i64| (0..2 * MOST).filter(|number| logged(*number, day)).count();
        assert_eq!((lines(3 * DAY), lines(3 * DAY), lines(4 * DAY)), (LINES, 0, LINES));
    }
}
