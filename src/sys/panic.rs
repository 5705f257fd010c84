//! A panic ends what panicked, and nothing else: the request gets EIO, and the thread goes on.

use std::backtrace::Backtrace;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// How long a thread waits before it goes on after a panic: what fails at once would fill the log.
const PAUSE: Duration = Duration::from_secs(1);

/// Has each panic written to the log, with its place and the calls that led there: nobody reads the standard error of a
/// daemon.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let what = panic.to_string().replace('\n', " ");
        log::error!("a fault in verfs, please report it: the thread {name} {what}\n{}", Backtrace::force_capture());
    }));
}

/// Does something, and says whether it came to its end. What it holds is let go of; nothing that it may leave half done
/// stays locked.
pub(crate) fn caught(work: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(work)).is_ok()
}

/// Does something until it comes to its end: after a panic again.
pub(crate) fn to_the_end(mut work: impl FnMut()) {
    while !caught(&mut work) {
        std::thread::sleep(PAUSE);
    }
}
