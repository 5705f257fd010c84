//! Work done as a plain user.

use super::sys;
use rustix::fs::{Gid, Uid};
use std::path::Path;
use std::thread;

/// Who does something.
#[derive(Clone, Copy, Debug)]
pub struct User<'a> {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'a [u32],
}

/// The web server's user on Debian.
pub const WWW_DATA: User<'static> = User { uid: 33, gid: 33, groups: &[] };

impl User<'_> {
    /// Does `work` as this user, in `dir`, as a process of its own, with umask 022.
    ///
    /// The way to `dir` need not be open to the user.
    pub fn work_in<T: Send>(self, dir: &Path, work: impl FnOnce() -> T + Send) -> T {
        another_process(|| {
            std::env::set_current_dir(dir).unwrap();
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
            // The groups first, while root may.
            let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            rustix::thread::set_thread_groups(&groups).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            let done = work();
            // A thread may be joined before the kernel lets go its directory, which would keep the mount busy.
            std::env::set_current_dir("/").unwrap();
            done
        })
    }
}

/// Does `work` in what is to the kernel another process: a thread with its own working directory, umask, credentials
/// and table of descriptors, which is what it knows the owner of a fcntl(2) lock by.
///
/// What is open inside is closed at the end: `work` gives no descriptor away, and uses none from outside.
pub fn another_process<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        sys::stop_sharing().unwrap();
        work()
    };
    thread::scope(|threads| match threads.spawn(inside).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
