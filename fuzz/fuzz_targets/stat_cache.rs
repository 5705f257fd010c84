//! The stat cache: any bytes are notes, sorted or not, and only a note of just this look tells a content.
#![no_main]

use libfuzzer_sys::fuzz_target;
use verfs::store::release::import::noted_digest;

/// Bytes of a look, and of a record: a look and a hash.
const LOOK: usize = 56;
const RECORD: usize = LOOK + 32;

fuzz_target!(|input: &[u8]| {
    ask(input, [0; 7]);
    for record in input.chunks_exact(RECORD) {
        ask(input, look(record));
    }
    // The same records as `add` writes them.
    let mut records: Vec<&[u8]> = input.chunks_exact(RECORD).collect();
    records.sort_by_key(|record| key(record));
    records.dedup_by_key(|record| key(record));
    let sorted = records.concat();
    for record in records {
        assert_eq!(ask(&sorted, look(record)).as_deref(), Some(&record[LOOK..]));
    }
});

fn look(record: &[u8]) -> [u64; 7] {
    let mut numbers = record[..LOOK].chunks_exact(8);
    [0; 7].map(|_: u8| numbers.next().map_or(0, |number| u64::from_le_bytes(number.try_into().expect("8 bytes"))))
}

/// Device and inode.
fn key(record: &[u8]) -> (u64, u64) {
    let look = look(record);
    (look[0], look[1])
}

fn ask(records: &[u8], look: [u64; 7]) -> Option<Vec<u8>> {
    let digest = noted_digest(records, look)?.0;
    let bytes = look.map(u64::to_le_bytes).concat();
    let noted = |record: &[u8]| record[..LOOK] == bytes[..] && record[LOOK..] == digest;
    assert!(records.chunks_exact(RECORD).any(noted), "nobody noted that");
    Some(digest.to_vec())
}
