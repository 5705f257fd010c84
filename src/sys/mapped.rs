//! Mapped files that survive going bad under us.
//!
//! Manifests and packs are mapped, and the page of a mapped file that the disk cannot deliver, or that somebody cut
//! off, raises SIGBUS. The handler here puts a page of zeros in its place and marks the mapping as bad, so
//! that the reader gets an error for that file instead of the daemon getting a signal (mmap(2), SIGBUS).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::Mmap;

/// Mappings that the handler knows. Past this many, further ones are refused: a mount that keeps so many
/// releases would also come near vm.max_map_count.
const MAX_MAPPINGS: usize = 16_384;

struct Slot {
    start: AtomicUsize,
    len: AtomicUsize,
    bad: AtomicBool,
}

static SLOTS: [Slot; MAX_MAPPINGS] =
    [const { Slot { start: AtomicUsize::new(0), len: AtomicUsize::new(0), bad: AtomicBool::new(false) } };
        MAX_MAPPINGS];

/// How many slots were ever in use: the handler looks no further.
static USED: AtomicUsize = AtomicUsize::new(0);

/// A file mapped for reading.
pub struct Mapped {
    map: Mmap,
    slot: &'static Slot,
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapped({} bytes)", self.map.len())
    }
}

impl Mapped {
    /// Maps a whole file, which must not be empty.
    pub fn open(file: &File) -> io::Result<Self> {
        install_handler();
        // SAFETY: the bytes may change only if somebody writes into the store behind our back. Such files are
        // read through bounds checks, never trusted, and no reference to them outlives an operation.
        let map = unsafe { Mmap::map(file)? };
        let claim = |slot: &Slot| slot.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let index =
            SLOTS.iter().position(claim).ok_or_else(|| io::Error::other("too many mapped manifests and packs"))?;
        let slot = &SLOTS[index];
        slot.bad.store(false, Ordering::Relaxed);
        slot.len.store(map.len(), Ordering::Relaxed);
        slot.start.store(map.as_ptr() as usize, Ordering::Release);
        USED.fetch_max(index + 1, Ordering::Release);
        Ok(Self { map, slot })
    }

    /// Whether a page of it could not be read since it was mapped.
    pub fn is_bad(&self) -> bool {
        self.slot.bad.load(Ordering::Acquire)
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.slot.len.store(0, Ordering::Release);
        self.slot.start.store(0, Ordering::Release);
    }
}

fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `on_sigbus` does only what signal-safety(7) allows: atomics and system calls.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        }
    });
}

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo with SA_SIGINFO, and si_addr is set for SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &SLOTS[..USED.load(Ordering::Acquire)] {
        let start = slot.start.load(Ordering::Acquire);
        let len = slot.len.load(Ordering::Acquire);
        if start > 1 && address >= start && address - start < len {
            slot.bad.store(true, Ordering::Release);
            // SAFETY: the page lies inside our own mapping, and MAP_FIXED replaces just this page.
            let page = unsafe {
                let size = libc::sysconf(libc::_SC_PAGESIZE) as usize;
                libc::mmap(
                    (address & !(size - 1)) as *mut libc::c_void,
                    size,
                    libc::PROT_READ,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                )
            };
            if page != libc::MAP_FAILED {
                return;
            }
        }
    }
    // Not ours: let the default action have it when the instruction runs again.
    // SAFETY: signal(2) is async-signal-safe.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_cut_off_under_its_mapping_reads_as_zeros_and_is_bad() {
        let file = tempfile::tempfile().expect("scratch file");
        std::io::Write::write_all(&mut &file, &[7u8; 3 * 4096]).expect("write");
        let mapped = Mapped::open(&file).expect("map");
        assert_eq!(mapped[2 * 4096], 7);
        assert!(!mapped.is_bad());
        file.set_len(4096).expect("truncate");
        assert_eq!(mapped[2 * 4096 + 5], 0);
        assert!(mapped.is_bad());
        assert_eq!(mapped[10], 7, "pages that are still there stay readable");
    }
}
