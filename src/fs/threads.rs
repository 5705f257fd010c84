//! What other programs' threads are doing, by the numbers that come with their requests.

use std::time::{Duration, Instant};

/// Whether a thread runs, or would if the scheduler let it, or waits for a disk (proc_pid_stat(5), state R or D): then
/// it is still on its way. One that sleeps has ended its work and waits for more.
pub(super) fn is_running(thread: u32) -> bool {
    state(thread).is_some_and(|state| matches!(state, 'R' | 'D'))
}

/// Waits until each of these threads has run, or sleeps, so that it has used what it was answered; at most for `limit`.
pub(super) fn wait_until_they_ran(threads: impl IntoIterator<Item = u32>, limit: Duration) {
    let begun = Instant::now();
    let ready = |thread: &u32| state(*thread) == Some('R');
    let mut waiting: Vec<(u32, String)> =
        threads.into_iter().filter(ready).map(|thread| (thread, run_time(thread))).collect();
    while !waiting.is_empty() && begun.elapsed() < limit {
        std::thread::sleep(Duration::from_micros(100));
        waiting.retain(|(thread, ran)| ready(thread) && run_time(*thread) == *ran);
    }
}

fn state(thread: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{thread}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// How long it ran, how long it waited for a processor, and how often it got one
/// (Documentation/scheduler/sched-stats.rst). The second grows while it waits, so it is left out.
fn run_time(thread: u32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap_or_default();
    let mut words = text.split_ascii_whitespace();
    format!("{:?} {:?}", words.next(), words.nth(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A thread that runs until the flag is set, and its number.
    fn busy(stop: &Arc<AtomicU32>) -> (std::thread::JoinHandle<()>, u32) {
        let (tell, told) = std::sync::mpsc::channel();
        let stop = stop.clone();
        let busy = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).expect("somebody listens");
            while stop.load(Ordering::Relaxed) == 0 {
                std::hint::spin_loop();
            }
        });
        (busy, told.recv().expect("its number"))
    }

    #[test]
    fn a_thread_that_runs_is_told_from_one_that_is_gone() {
        let stop = Arc::new(AtomicU32::new(0));
        let (handle, thread) = busy(&stop);
        assert!(is_running(thread));
        stop.store(1, Ordering::Relaxed);
        handle.join().expect("it ends");
        assert!(!is_running(thread));
    }

    #[test]
    fn a_thread_that_is_ready_to_run_is_waited_for_until_it_did() {
        let stop = Arc::new(AtomicU32::new(0));
        let (handle, thread) = busy(&stop);
        let before = run_time(thread);
        wait_until_they_ran([thread], Duration::from_secs(60));
        assert_ne!(run_time(thread), before);
        stop.store(1, Ordering::Relaxed);
        handle.join().expect("it ends");
        // One that is gone is nobody to wait for.
        wait_until_they_ran([thread], Duration::from_secs(600));
    }
}
