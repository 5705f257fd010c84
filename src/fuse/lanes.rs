//! Lanes: the requests for scopes, by disk. A disk that stands still keeps only its own requests waiting.
//!
//! A request for a scope may wait for the disk of the writable layer, for seconds or for ever. Each disk has a lane for
//! looks and one for changes. A request runs at once in the thread that took it from the kernel, as long as fewer than
//! half of these threads are held so; else it waits in the queue of its lane, whose own threads work it off. A lane
//! whose first request does not get on gets more threads, up to [`MOST_THREADS`]. So threads that take requests from
//! the kernel are always left, and a lane waits only for its own disk.
//!
//! No request runs under a lock. A queue's lock is a leaf; the list of lanes and the watch take it for an instant.

use crate::sys::caught;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Threads of a lane that gets on.
const FEW_THREADS: usize = 2;
/// Threads of a lane at most.
const MOST_THREADS: usize = 128;
/// How long the first request of a queue waits before its lane gets more threads, and how many it gets at a time.
const STUCK: Duration = Duration::from_millis(5);
const MORE_THREADS: usize = 8;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(5);
/// Bytes of the writes that wait in queues, in all.
const MOST_BYTES: usize = 64 << 20;
/// How long a write beyond that waits for its EINTR.
const OVERFULL: Duration = Duration::from_millis(100);
/// A lane's thread needs little: nothing here is deep.
const STACK: usize = 512 << 10;

/// The two kinds of requests, each with a lane of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// A look: a frozen disk still answers it.
    Look,
    /// A change.
    Change,
}

/// A request that waits.
type Job = Box<dyn FnOnce() + Send>;

/// All lanes of a mount.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Mutex<HashMap<(u64, Class), Arc<Lane>>>,
    /// How many threads that take requests from the kernel may be held, and how many are.
    most_held: usize,
    held: AtomicUsize,
    bytes: Arc<AtomicUsize>,
    watch: Arc<Watch>,
}

/// Bytes of a write that waits, given back when it is done.
struct Waiting(Arc<AtomicUsize>, usize);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::AcqRel);
    }
}

/// A request that runs in the thread that took it, until this is dropped.
#[must_use]
pub(super) struct Held<'a>(&'a AtomicUsize);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Default)]
struct Lane {
    queue: Mutex<Queue>,
    came: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Instant, Job)>,
    threads: usize,
    idle: usize,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queue = self.queue.lock();
        write!(f, "Lane({} waiting, {} threads)", queue.jobs.len(), queue.threads)
    }
}

impl Lanes {
    /// For a session of so many threads.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            lanes: Mutex::default(),
            most_held: threads / 2,
            held: AtomicUsize::new(0),
            bytes: Arc::default(),
            watch: Arc::default(),
        }
    }

    /// A place in the thread that took the request, if one is free and nobody waits in the lane.
    pub(super) fn hold(&self, disk: u64, class: Class) -> Option<Held<'_>> {
        let take = |held: usize| (held < self.most_held).then_some(held + 1);
        self.held.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).ok()?;
        let held = Held(&self.held);
        let waits = self.lanes.lock().get(&(disk, class)).is_some_and(|lane| !lane.queue.lock().jobs.is_empty());
        (!waits).then_some(held)
    }

    /// Runs a request at once, or as soon as its lane gets to it.
    pub(super) fn run(&self, disk: u64, class: Class, job: impl FnOnce() + Send + 'static) {
        match self.hold(disk, class) {
            Some(_held) => job(),
            None => self.queue(disk, class, job),
        }
    }

    /// Runs something after a while.
    pub(super) fn later(&self, delay: Duration, job: impl FnOnce() + Send + 'static) {
        self.watch.later(Instant::now() + delay, Box::new(job));
    }

    /// Queues a request that holds so many bytes. If too many bytes wait already, `job` gets the reply back as an error
    /// after a while: the caller may try again.
    pub(super) fn queue_bytes<R: Send + 'static>(
        &self,
        (disk, class): (u64, Class),
        len: usize,
        reply: R,
        job: impl FnOnce(std::result::Result<R, R>) + Send + 'static,
    ) {
        let take = |bytes: usize| (bytes + len <= MOST_BYTES).then_some(bytes + len);
        if self.bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, take).is_err() {
            return self.later(OVERFULL, move || job(Err(reply)));
        }
        let waiting = Waiting(self.bytes.clone(), len);
        let counted = move || {
            job(Ok(reply));
            drop(waiting);
        };
        self.queue(disk, class, counted);
    }

    /// Runs a request in a thread of its lane.
    pub(super) fn queue(&self, disk: u64, class: Class, job: impl FnOnce() + Send + 'static) {
        let lane = self.lanes.lock().entry((disk, class)).or_default().clone();
        let more = {
            let mut queue = lane.queue.lock();
            queue.jobs.push_back((Instant::now(), Box::new(job)));
            lane.came.notify_one();
            let few = FEW_THREADS.saturating_sub(queue.threads).min(queue.jobs.len().saturating_sub(queue.idle));
            queue.threads += few;
            few
        };
        lane.start(more);
        self.watch.watch(lane);
    }
}

impl Lane {
    /// Starts threads that are counted already.
    fn start(self: &Arc<Self>, threads: usize) {
        for _ in 0..threads {
            let lane = self.clone();
            let thread = std::thread::Builder::new().name("verfs-lane".into()).stack_size(STACK);
            if let Err(error) = thread.spawn(move || lane.work()) {
                log::error!("starting a thread for the writable layer: {error}");
                self.queue.lock().threads -= 1;
            }
        }
    }

    fn work(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some((_, job)) = queue.jobs.pop_front() {
                // A request that panics is dropped, which answers it with EIO; its lane goes on.
                parking_lot::MutexGuard::unlocked(&mut queue, || caught(job));
                continue;
            }
            queue.idle += 1;
            let waited = self.came.wait_for(&mut queue, IDLE);
            queue.idle -= 1;
            if waited.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }

    /// Whether requests wait; if the first of them has for too long, more threads.
    fn hurry(self: &Arc<Self>) -> bool {
        let mut queue = self.queue.lock();
        let Some((since, _)) = queue.jobs.front() else { return false };
        // A lane without a thread, because none could be started, would wait for ever.
        let more = match since.elapsed() >= STUCK || queue.threads == 0 {
            true => MORE_THREADS.min(queue.jobs.len()).min(MOST_THREADS.saturating_sub(queue.threads)),
            false => 0,
        };
        queue.threads += more;
        drop(queue);
        self.start(more);
        true
    }
}

/// Gives lanes more threads when their first request does not get on. Its own thread is there as long as requests wait.
#[derive(Debug, Default)]
struct Watch(Mutex<Watched>);

#[derive(Default)]
struct Watched {
    runs: bool,
    lanes: Vec<Arc<Lane>>,
    later: VecDeque<(Instant, Job)>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watched({} lanes)", self.lanes.len())
    }
}

impl Watch {
    fn watch(self: &Arc<Self>, lane: Arc<Lane>) {
        let mut watched = self.0.lock();
        if !watched.lanes.iter().any(|other| Arc::ptr_eq(other, &lane)) {
            watched.lanes.push(lane);
        }
        self.begin(&mut watched);
    }

    fn later(self: &Arc<Self>, at: Instant, job: Job) {
        let mut watched = self.0.lock();
        let place = watched.later.partition_point(|(other, _)| *other <= at);
        watched.later.insert(place, (at, job));
        self.begin(&mut watched);
    }

    fn begin(self: &Arc<Self>, watched: &mut Watched) {
        if watched.runs {
            return;
        }
        let watch = self.clone();
        let thread = std::thread::Builder::new().name("verfs-watch".into()).stack_size(STACK);
        match thread.spawn(move || watch.run()) {
            Ok(_) => watched.runs = true,
            Err(error) => log::error!("starting a thread for the writable layer: {error}"),
        }
    }

    fn run(&self) {
        let mut last_used = Instant::now();
        loop {
            std::thread::sleep(STUCK);
            let mut watched = self.0.lock();
            watched.lanes.retain(Lane::hurry);
            let due = watched.later.iter().take_while(|(at, _)| *at <= Instant::now()).count();
            let due: Vec<_> = watched.later.drain(..due).collect();
            if !watched.lanes.is_empty() || !watched.later.is_empty() || !due.is_empty() {
                last_used = Instant::now();
            } else if last_used.elapsed() > IDLE {
                watched.runs = false;
                return;
            }
            drop(watched);
            for (_, job) in due {
                caught(job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    const LIMIT: Duration = Duration::from_secs(60);

    /// A job that waits until the sender is dropped.
    fn stuck(until: Receiver<()>) -> impl FnOnce() + Send {
        move || {
            let _ = until.recv();
        }
    }

    #[test]
    fn a_lane_that_stands_still_holds_half_of_the_threads_and_no_other_lane() {
        let lanes = Lanes::new(4);
        let done = channel();
        // Two would be held in the threads that took them; the test has but one, and takes the places by hand.
        let held = [lanes.hold(1, Class::Change), lanes.hold(1, Class::Change)];
        assert!(held.iter().all(Option::is_some) && lanes.hold(2, Class::Look).is_none());
        let mut ends = Vec::new();
        for _ in 0..MOST_THREADS + 10 {
            let (end, until) = channel();
            ends.push(end);
            lanes.run(1, Class::Change, stuck(until));
        }
        for (disk, class) in [(1, Class::Look), (2, Class::Change), (2, Class::Look)] {
            let sent = done.0.clone();
            lanes.run(disk, class, move || sent.send((disk, class)).expect("somebody listens"));
            assert_eq!(done_within(&done.1), (disk, class));
        }
        let lane = lanes.lanes.lock()[&(1, Class::Change)].clone();
        let end = Instant::now() + LIMIT;
        while lane.queue.lock().threads < MOST_THREADS {
            assert!(Instant::now() < end, "{lane:?}");
            std::thread::yield_now();
        }
        assert!(lane.queue.lock().jobs.len() >= 10, "no more threads than that");
        // Let go, all of them end, and the places are free again.
        ends.clear();
        let all = done.0.clone();
        lanes.run(1, Class::Change, move || all.send((1, Class::Change)).expect("somebody listens"));
        done_within(&done.1);
        drop(held);
        assert!(lanes.hold(2, Class::Look).is_some());
    }

    fn done_within<T>(done: &Receiver<T>) -> T {
        done.recv_timeout(LIMIT).expect("it is not stuck")
    }

    fn given_back(lanes: &Lanes) {
        let end = Instant::now() + LIMIT;
        while lanes.bytes.load(Ordering::Acquire) > 0 {
            assert!(Instant::now() < end, "bytes are given back");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_request_that_panics_ends_no_thread_and_takes_no_place() {
        let lanes = Lanes::new(2);
        let (told, said) = channel();
        // A reply that is dropped says so.
        struct Reply(std::sync::mpsc::Sender<u32>);
        impl Drop for Reply {
            fn drop(&mut self) {
                let _ = self.0.send(0);
            }
        }
        for _ in 0..20 {
            let reply = Reply(told.clone());
            lanes.queue_bytes((1, Class::Change), 1, reply, |reply| {
                let _reply = reply;
                panic!("a fault of the test");
            });
            assert_eq!(done_within(&said), 0);
        }
        lanes.queue(1, Class::Change, move || told.send(1).expect("somebody listens"));
        assert_eq!(done_within(&said), 1);
        let lane = lanes.lanes.lock()[&(1, Class::Change)].clone();
        assert!(lane.queue.lock().threads <= FEW_THREADS, "{lane:?}");
        given_back(&lanes);
    }

    #[test]
    fn writes_that_wait_take_so_many_bytes_and_no_more() {
        let lanes = Lanes::new(1);
        let (end, until) = channel::<()>();
        let until = Arc::new(Mutex::new(until));
        let (told, said) = channel();
        for number in 0..5 {
            let (until, told) = (until.clone(), told.clone());
            lanes.queue_bytes((1, Class::Change), MOST_BYTES / 4, number, move |reply| match reply {
                Ok(_) => {
                    let _ = until.lock().recv();
                }
                Err(full) => told.send(full).expect("somebody listens"),
            });
        }
        assert_eq!(done_within(&said), 4, "the fifth is answered though nothing moves");
        drop(end);
        given_back(&lanes);
    }
}
