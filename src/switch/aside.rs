//! Questions to a disk that may stand still: asked in a thread of their own, one at a time, and waited for only so
//! long.

use crate::error::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// Asks one question at a time.
#[derive(Debug, Default)]
pub(super) struct Aside {
    asking: Arc<AtomicBool>,
}

impl Aside {
    /// The answer; `None` if it takes longer than `limit`, or an earlier question has no answer yet. A question that
    /// took too long goes on by itself; until it ends no other is asked, so they do not pile up.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        question: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Option<T>> {
        if self.asking.swap(true, Ordering::AcqRel) {
            return Ok(None);
        }
        let asking = Asking(self.asking.clone());
        let (tell, answer) = sync_channel(1);
        let ask = move || {
            let answer = question();
            // Before the answer: its receiver may ask the next question at once.
            drop(asking);
            let _ = tell.send(answer);
        };
        std::thread::Builder::new().name("verfs-aside".into()).spawn(ask).context(|| "starting a thread")?;
        answer.recv_timeout(limit).ok().transpose()
    }
}

/// A question that is being asked.
struct Asking(Arc<AtomicBool>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn an_answer_in_time_is_given_and_an_error_too() {
        let aside = Aside::default();
        assert_eq!(aside.ask(LONG, || Ok(7)).expect("asked"), Some(7));
        assert!(aside.ask(LONG, || Err::<(), _>(Error::failed("no"))).is_err());
        assert_eq!(aside.ask(LONG, || Ok(8)).expect("asked"), Some(8), "the next one is asked");
    }

    #[test]
    fn while_one_question_has_no_answer_no_other_is_asked() {
        let aside = Aside::default();
        let (go_on, stuck) = channel::<()>();
        let (tell, ended) = channel();
        let question = move || {
            let _ = stuck.recv();
            tell.send(()).expect("somebody listens");
            Ok(1)
        };
        assert_eq!(aside.ask(Duration::from_millis(1), question).expect("asked"), None);
        let forbidden = || -> Result<u32> { panic!("it was asked") };
        assert_eq!(aside.ask(LONG, forbidden).expect("not asked"), None);
        drop(go_on);
        ended.recv().expect("the first ends");
        while aside.ask(LONG, || Ok(2)).expect("asked").is_none() {
            std::thread::yield_now();
        }
    }
}
