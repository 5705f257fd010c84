//! What the allocator keeps of freed memory.
#![allow(unsafe_code)]

/// Places from which threads take memory (arenas): each keeps some of what it got back.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 4;
/// Freed bytes that an arena keeps. As the allocator sets it by itself, it follows the largest block that was ever
/// freed: listings of large directories would leave some MiB with each thread.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 1 << 20;
/// From this size on a block is given back at once: above what one request reads or writes (1 MiB), which is wanted
/// again in a moment.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 4 << 20;

/// Has the allocator give memory back that is not used (mallopt(3)). Other C libraries than glibc do so by themselves.
pub(crate) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, ARENAS), (libc::M_TRIM_THRESHOLD, KEPT), (libc::M_MMAP_THRESHOLD, LARGE)]
    {
        // SAFETY: mallopt takes two numbers and no memory of ours; it may be called at any time (MT-Safe but for the
        // first call, before which there is no other thread here).
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            log::debug!("mallopt({parameter}, {value}) is refused");
        }
    }
}
