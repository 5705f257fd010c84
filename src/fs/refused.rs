//! Writes that were refused: which path, which user, how often. They show an operator the plugin that wants to write
//! into the code.

use parking_lot::Mutex;
use std::collections::HashMap;

/// How many different ones are told apart; the rest is only counted.
const MOST: usize = 1000;

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
    /// Path in the docroot.
    pub path: Vec<u8>,
    /// User id.
    pub uid: u32,
    /// Why the last one was.
    pub why: Why,
    /// How many there were.
    pub count: u64,
    /// When the last one was, in seconds since 1970.
    pub last: i64,
}

/// All of them since the mount.
#[derive(Debug, Default)]
pub struct Refused(Mutex<Tally>);

#[derive(Debug, Default)]
struct Tally {
    total: u64,
    known: HashMap<(Vec<u8>, u32), Refusal>,
}

impl Refused {
    /// One more. The first of a user and path is logged.
    pub fn note(&self, path: &[u8], uid: u32, why: Why) {
        let last = crate::store::now();
        let mut seen = self.0.lock();
        seen.total += 1;
        let room = seen.known.len() < MOST;
        let key = (path.to_vec(), uid);
        if let Some(known) = seen.known.get_mut(&key) {
            known.count += 1;
            (known.why, known.last) = (why, last);
        } else if room {
            seen.known.insert(key, Refusal { path: path.to_vec(), uid, why, count: 1, last });
            drop(seen);
            log::warn!("refused a write of user {uid} to {}: {}", path.escape_ascii(), why.text());
        }
    }

    /// How many there were, and the most frequent ones.
    pub fn most(&self, how_many: usize) -> (u64, Vec<Refusal>) {
        let seen = self.0.lock();
        let mut all: Vec<Refusal> = seen.known.values().cloned().collect();
        all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.path.cmp(&b.path)));
        all.truncate(how_many);
        (seen.total, all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_path_and_user_and_those_beyond_the_most_only_in_all() {
        let refused = Refused::default();
        for _ in 0..3 {
            refused.note(b"index.php", 33, Why::Outside);
        }
        refused.note(b"index.php", 0, Why::Outside);
        for number in 0..MOST {
            refused.note(format!("x{number}").as_bytes(), 33, Why::Denied);
        }
        let (total, most) = refused.most(2);
        assert_eq!(total, 4 + MOST as u64);
        assert_eq!((most.len(), &most[0].path[..], most[0].uid, most[0].count), (2, &b"index.php"[..], 33, 3));
        assert_eq!(refused.most(usize::MAX).1.len(), MOST);
    }
}
