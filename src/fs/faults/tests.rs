//! What the registry keeps, logs and ends.

use super::*;
use crate::error::OnDisk;

fn error(operation: &'static str, path: &str, errno: Errno) -> Error {
    Err::<(), _>(errno).on_disk(operation, || path).expect_err("it failed")
}

fn write(node: u64) -> Asked<'static> {
    Asked::of(Operation::Write, NodeId(node))
}

/// Notes an error of a write, and gives the line that is logged.
fn note(faults: &Faults, node: u64, error: &Error, now: Instant) -> Option<String> {
    let mut seen = faults.seen.lock();
    let line = seen.note(&write(node), Disk::Media, Described::of(error), now, 1000);
    faults.failing.store(seen.failing(), Ordering::Relaxed);
    line
}

fn ends(faults: &Faults) -> bool {
    faults.report().degraded.is_empty() && faults.failing.load(Ordering::Relaxed) == 0
}

#[test]
fn a_fault_is_logged_once_a_minute_and_tells_operation_path_error_and_how_often() {
    let (faults, now) = (Faults::default(), Instant::now());
    let io = error("writing", "/up/a", Errno::IO);
    let line = note(&faults, 7, &io, now).expect("the first");
    assert!(line.contains("writing /up/a: Input/output error"), "{line}");
    for tenth in 1..10 {
        assert_eq!(note(&faults, 7, &io, now + Duration::from_millis(tenth * 100)), None);
    }
    assert!(note(&faults, 8, &error("writing", "/up/b", Errno::IO), now).is_some(), "another path");
    let line = note(&faults, 7, &io, now + MINUTE).expect("a minute later");
    assert!(line.contains("11 times since 1970-01-01T00:16:40Z"), "{line}");
    let report = faults.report();
    assert_eq!(report.total, 12);
    assert_eq!(report.kinds, [("writing", "EIO".to_owned(), 12)]);
    assert_eq!(report.degraded.len(), 2);
}

#[test]
fn answers_are_no_faults() {
    let faults = Faults::default();
    for error in [Error::answer(Errno::IO), Error::Refused, error("writing", "/up/a", Errno::NOSPC)] {
        faults.note(&write(7), Disk::Media, &error);
    }
    assert_eq!(faults.report(), Report::default());
}

#[test]
fn a_fault_of_a_path_is_over_when_the_same_request_works() {
    let (faults, now) = (Faults::default(), Instant::now());
    note(&faults, 7, &error("writing", "/up/a", Errno::IO), now);
    faults.worked(&write(8), Disk::Media);
    faults.worked(&Asked::of(Operation::Fsync, NodeId(7)), Disk::Media);
    assert!(!ends(&faults), "another file, another operation");
    faults.worked(&write(7), Disk::Media);
    assert!(ends(&faults));
}

#[test]
fn a_fault_of_a_read_is_over_when_the_same_bytes_are_read() {
    let faults = Faults::default();
    let read = |offset| Asked::range(NodeId(7), offset, 4096);
    faults.note(&read(8192), Disk::Media, &error("reading", "/up/a", Errno::IO));
    faults.worked(&read(0), Disk::Media);
    assert!(!ends(&faults), "what lies before is no proof");
    faults.worked(&read(8192), Disk::Media);
    assert!(ends(&faults));
}

#[test]
fn a_fault_of_the_whole_disk_is_one_and_over_when_the_same_operation_works_anywhere_on_it() {
    let (faults, now) = (Faults::default(), Instant::now());
    assert!(note(&faults, 7, &error("making", "/up/a", Errno::ROFS), now).is_some());
    assert!(note(&faults, 8, &error("making", "/up/b", Errno::ROFS), now).is_none());
    let report = faults.report();
    assert_eq!(report.degraded.len(), 1);
    assert!(report.degraded[0].contains("/up/b") && report.degraded[0].contains("2 times"), "{report:?}");
    faults.worked(&write(9), Disk::Store);
    assert!(!ends(&faults), "another disk");
    faults.worked(&write(9), Disk::Media);
    assert!(ends(&faults));
}

#[test]
fn what_fails_again_at_once_was_never_over_and_is_no_line_more() {
    let (faults, now) = (Faults::default(), Instant::now());
    let io = error("writing", "/up/a", Errno::IO);
    let mut lines = 0;
    for _ in 0..100 {
        lines += usize::from(note(&faults, 7, &io, now).is_some());
        faults.worked(&write(7), Disk::Media);
    }
    note(&faults, 7, &io, now);
    assert_eq!(lines, 1);
    assert!(!faults.seen.lock().faults[0].is_open_in_log, "one line that it is over, too");
    assert!(faults.report().degraded[0].contains("101 times"), "{:?}", faults.report());
}

#[test]
fn whoever_meets_faults_on_ever_more_paths_fills_neither_memory_nor_log() {
    let (faults, now) = (Faults::default(), Instant::now());
    let long = "x".repeat(4000);
    let mut bytes = 0;
    for number in 0..10_000 {
        let line = note(&faults, number, &error("writing", &format!("{number}/{long}"), Errno::IO), now);
        bytes += line.map_or(0, |line| line.len());
        // Half of them work again.
        if number % 2 == 0 {
            faults.worked(&write(number), Disk::Media);
        }
    }
    let kept = faults.seen.lock().faults.len();
    assert!(kept <= MOST && bytes < LINES as usize * (LONGEST + 100), "{kept} faults, {bytes} bytes");
    let report = faults.report();
    assert_eq!((report.total, report.degraded.len()), (10_000, SHOWN + 1));
    assert!(report.degraded[SHOWN].contains("more"), "{report:?}");
}

#[test]
fn what_is_probed_and_works_is_over_and_the_probes_come_ever_more_seldom() {
    let (faults, now) = (Faults::default(), Instant::now());
    note(&faults, 7, &error("writing", "/up/a", Errno::IO), now);
    let probed = |after: u64, works: bool| {
        let count = std::cell::Cell::new(0);
        faults.probe_at(
            |failed| {
                assert_eq!((failed.operation, failed.node), (Operation::Write, NodeId(7)));
                count.set(count.get() + 1);
                works
            },
            now + Duration::from_millis(after),
        );
        count.get()
    };
    assert_eq!(probed(900, false), 0, "too early");
    assert_eq!(probed(1000, false), 1);
    assert_eq!(probed(2900, false), 0);
    assert_eq!(probed(3000, false), 1);
    assert_eq!(probed(6900, false), 0);
    assert!(!ends(&faults));
    assert_eq!(probed(7000, true), 1);
    assert!(ends(&faults));
    assert_eq!(probed(1_000_000, true), 0, "nothing to probe");
}
