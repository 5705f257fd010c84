//! The system calls of the tests that no crate carries with safe types.
#![allow(unsafe_code)]

use rustix::event::{PollFd, PollFlags};
use rustix::time::Timespec;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Gives the calling thread a working directory of its own.
pub fn own_working_directory() -> io::Result<()> {
    // SAFETY: no memory is touched; only this thread stops sharing its working directory.
    check(unsafe { libc::unshare(libc::CLONE_FS) }.into()).map(drop)
}

/// Gives the calling thread a working directory, a umask and a table of descriptors of its own, like a process. Of the
/// descriptors only standard input and output come along: a copy of another test's would keep its mount busy.
pub fn stop_sharing() -> io::Result<()> {
    // SAFETY: no memory is touched, and the other threads keep their descriptors. To this thread those mean nothing
    // from here on, and what it opens means nothing to the others, so none must be handed over.
    unsafe {
        check(libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE))?;
        check(libc::unshare(libc::CLONE_FS).into()).map(drop)
    }
}

/// How the calling thread is scheduled.
#[derive(Clone, Copy, Debug)]
pub enum Scheduling {
    /// Runs when nothing else wants the processor.
    Idle,
    /// Runs before every ordinary thread of its processor.
    First,
}

/// Sets the calling thread's scheduling.
pub fn schedule(scheduling: Scheduling) -> io::Result<()> {
    let (policy, priority) = match scheduling {
        Scheduling::Idle => (libc::SCHED_IDLE, 0),
        Scheduling::First => (libc::SCHED_FIFO, 10),
    };
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` lives over the call, which only reads it; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, policy, &param) }.into()).map(drop)
}

/// FIFREEZE and FITHAW of linux/fs.h.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

/// Freezes the file system that this is open on, or lets it go on, without a process: one that is started while
/// a disk stands still may wait for that disk before it runs its program.
pub fn set_frozen(file: &std::fs::File, frozen: bool) -> io::Result<()> {
    let request = if frozen { FIFREEZE } else { FITHAW };
    // SAFETY: neither reads nor writes what its argument, 0, would point to.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, 0) }.into()).map(drop)
}

/// `struct uffdio_api` of linux/userfaultfd.h.
#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register` of linux/userfaultfd.h.
#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_zeropage` of linux/userfaultfd.h; `range` is its start and its length.
#[repr(C)]
struct UffdioZeropage {
    range: [u64; 2],
    mode: u64,
    zeroed: i64,
}

const UFFD_API: u64 = 0xAA;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const BUFFER: usize = 64 * 1024;

/// Reads a directory into a buffer whose first page fault nobody ever serves: the caller stays
/// inside getdents64, holding the directory's lock, until it is killed.
///
/// Calls `inside` when it is there. Comes back only if the kernel refuses something.
pub fn stay_inside_getdents(dir: BorrowedFd<'_>, inside: impl FnOnce() + Send) -> io::Error {
    let (uffd, buffer) = match faulting_buffer() {
        Ok(made) => made,
        Err(error) => return error,
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A fault that waits to be served makes the descriptor readable.
            let mut wait = [PollFd::new(&uffd, PollFlags::IN)];
            if rustix::event::poll(&mut wait, None).is_ok() {
                inside();
            }
        });
        // SAFETY: the kernel writes at most BUFFER bytes into the mapping, which is never unmapped
        // and which nothing else refers to.
        let read = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer, BUFFER) };
        check(read).map_or_else(|error| error, |read| io::Error::other(format!("getdents64 came back with {read}")))
    })
}

/// Reads a directory, from where it stands, into a buffer whose first page fault is served only
/// after a while; until then the caller is inside getdents64 and holds the directory's lock.
pub fn list_slowly(dir: BorrowedFd<'_>, hold: Duration) -> io::Result<()> {
    // SAFETY: the kernel writes at most BUFFER bytes into the buffer.
    with_slow_buffer(hold, |buffer| unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer, BUFFER) })
}

/// Writes 64 KiB of zeros to where a file stands, from a buffer whose first page fault is served only after a while:
/// until then the caller is inside write(2), and the times of the file are set already.
pub fn write_slowly(file: &std::fs::File, hold: Duration) -> io::Result<()> {
    // SAFETY: the kernel reads at most BUFFER bytes of the buffer.
    with_slow_buffer(hold, |buffer| unsafe { libc::write(file.as_raw_fd(), buffer, BUFFER) as i64 })
}

/// Does a system call with a buffer whose first page fault is served, with zeros, only after a while.
fn with_slow_buffer(hold: Duration, call: impl FnOnce(*mut libc::c_void) -> i64) -> io::Result<()> {
    let (uffd, buffer) = faulting_buffer()?;
    let range = [buffer as u64, BUFFER as u64];
    let called = std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut wait = [PollFd::new(&uffd, PollFlags::IN)];
            // No fault comes if the call was refused: then there is nothing to serve.
            let patience = Timespec { tv_sec: 1, tv_nsec: 0 };
            rustix::event::poll(&mut wait, Some(&patience))?;
            std::thread::sleep(hold);
            let mut zeropage = UffdioZeropage { range, mode: 0, zeroed: 0 };
            // SAFETY: the struct has the kernel's layout and outlives the call, which fills the
            // mapping with zero pages.
            check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_ZEROPAGE, &mut zeropage) }.into())
        });
        let result = check(call(buffer));
        let served = server.join().map_err(|_| io::Error::other("the thread that serves faults died"))?;
        served.and(result)
    });
    // SAFETY: the mapping is this function's own, and nobody uses it any more.
    check(unsafe { libc::munmap(buffer, BUFFER) }.into())?;
    called.map(drop)
}

/// A mapping of BUFFER bytes whose page faults wait at the descriptor to be served.
fn faulting_buffer() -> io::Result<(OwnedFd, *mut libc::c_void)> {
    let mut api = UffdioApi { api: UFFD_API, features: 0, ioctls: 0 };
    // SAFETY: the mapping is fresh and private; both structs have the kernel's layout and outlive
    // the calls; the descriptor is new and owned by nobody else.
    unsafe {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let uffd = check(libc::syscall(libc::SYS_userfaultfd, flags))?;
        let uffd = OwnedFd::from_raw_fd(uffd as i32);
        check(libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &mut api).into())?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let buffer = libc::mmap(std::ptr::null_mut(), BUFFER, protection, kind, -1, 0);
        if buffer == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut register =
            UffdioRegister { start: buffer as u64, len: BUFFER as u64, mode: UFFDIO_REGISTER_MODE_MISSING, ioctls: 0 };
        check(libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, &mut register).into())?;
        Ok((uffd, buffer))
    }
}

/// A shared mapping of the whole file.
pub fn mapping(file: &std::fs::File) -> io::Result<memmap2::MmapMut> {
    // SAFETY: nobody else changes the length of the file, which is the test's own.
    unsafe { memmap2::MmapMut::map_mut(file) }
}

/// Stores bytes through a shared mapping of the whole file, and has them written back (msync(2)).
pub fn store_through_a_mapping(file: &std::fs::File, byte: u8) -> io::Result<()> {
    let mut mapping = mapping(file)?;
    mapping.fill(byte);
    mapping.flush()
}
