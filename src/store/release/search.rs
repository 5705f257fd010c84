//! Search among sorted hashes.

use crate::error::Result;
use std::cmp::Ordering;

/// The number of the hash that is looked for among `count` sorted ones; `order` compares the hash of a number with it.
/// Hashes are evenly spread, so `share` (of 2^64, the part of all hashes that is smaller) leads near it, off by about
/// the square root of the count: from there it widens.
pub(super) fn among_hashes(
    count: usize,
    share: u64,
    mut order: impl FnMut(usize) -> Result<Ordering>,
) -> Result<Option<usize>> {
    let (mut low, mut high) = (0, count);
    let (mut too_low, mut too_high) = (false, false);
    let mut at = ((u128::from(share) * count as u128) >> 64) as usize;
    let mut step = 64;
    while low < high {
        match order(at)? {
            Ordering::Equal => return Ok(Some(at)),
            Ordering::Less => (low, too_low) = (at + 1, true),
            Ordering::Greater => (high, too_high) = (at, true),
        }
        at = match (too_low, too_high) {
            (true, false) => at.saturating_add(step).min(high - 1),
            (false, true) => at.saturating_sub(step),
            _ => low + (high - low) / 2,
        };
        step = step.saturating_mul(4);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_hash_is_found_at_its_place_and_no_other_is_found(
            hashes in prop::collection::btree_set(prop_oneof![any::<u64>(), 0..40u64], 0..2000),
            others in prop::collection::vec(prop_oneof![any::<u64>(), 0..40u64], 20),
        ) {
            let sorted: Vec<u64> = hashes.iter().copied().collect();
            let find = |hash: u64| among_hashes(sorted.len(), hash, |at| Ok(sorted[at].cmp(&hash))).expect("no error");
            for (number, hash) in sorted.iter().enumerate() {
                prop_assert_eq!(find(*hash), Some(number));
            }
            for other in others {
                prop_assert_eq!(find(other), sorted.binary_search(&other).ok());
            }
        }
    }
}
