//! Disk work in a caller's name.
#![allow(unsafe_code)]

use rustix::io::{Errno, Result};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// While it lives, this thread's disk work is done as this user and group (setfsuid(2), setfsgid(2)): owners, quotas
/// and the disk's reserve come out as if the caller had done it. The kernel has checked what the caller may do before
/// it asked, with all groups of the caller, which a request does not tell. So nothing is checked again here
/// (CAP_DAC_OVERRIDE).
///
/// Credentials belong to a thread, so this is not `Send`.
#[derive(Debug)]
#[must_use]
pub(crate) struct AsCaller(PhantomData<*const ()>);

/// What setfsuid(2) to another user than root takes away and is kept.
const UNCHECKED: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

impl AsCaller {
    /// From here on.
    ///
    /// # Errors
    /// EPERM: the kernel left the thread's user or group as it was. setfsuid(2) itself says nothing of it, and the work
    /// would be done as root.
    pub(crate) fn new(uid: u32, gid: u32) -> Result<Self> {
        static OWN: OnceLock<Option<CapabilitySets>> = OnceLock::new();
        let own = OWN.get_or_init(|| capabilities(None).ok());
        // From here on a return takes back what was done.
        let caller = Self(PhantomData);
        if set_group(gid) != gid || set_user(uid) != uid {
            return Err(Errno::PERM);
        }
        if let (Some(own), true) = (own, uid != 0) {
            let effective = own.effective.difference(of_file_systems()).union(own.permitted.intersection(UNCHECKED));
            // Without it the disk checks once more.
            let _ = set_capabilities(None, CapabilitySets { effective, ..*own });
        }
        Ok(caller)
    }
}

impl Drop for AsCaller {
    fn drop(&mut self) {
        // The user first, so that the right to change the group is back.
        set_user(rustix::process::geteuid().as_raw());
        set_group(rustix::process::getegid().as_raw());
    }
}

/// Sets this thread's user for disk work and gives the user that it has then. A call with an impossible user changes
/// nothing and answers that (setfsuid(2), NOTES).
fn set_user(uid: u32) -> u32 {
    // SAFETY: both calls change only this thread's credentials and touch no memory.
    unsafe {
        libc::setfsuid(uid);
        libc::setfsuid(u32::MAX) as u32
    }
}

/// The same for its group.
fn set_group(gid: u32) -> u32 {
    // SAFETY: as above.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsgid(u32::MAX) as u32
    }
}

/// What setfsuid(2) takes away (include/linux/capability.h, CAP_FS_SET).
fn of_file_systems() -> CapabilitySet {
    CapabilitySet::CHOWN
        | CapabilitySet::MKNOD
        | UNCHECKED
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::LINUX_IMMUTABLE
        | CapabilitySet::MAC_OVERRIDE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_cannot_be_is_refused_and_nothing_stays_changed() {
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        // No user has this number (credentials(7)); the kernel leaves everything as it is.
        assert_eq!(AsCaller::new(u32::MAX, own.1).err(), Some(Errno::PERM));
        assert_eq!(AsCaller::new(own.0, u32::MAX).err(), Some(Errno::PERM));
        assert_eq!((set_user(u32::MAX), set_group(u32::MAX)), own);
        drop(AsCaller::new(own.0, own.1).expect("one's own"));
        assert_eq!((set_user(u32::MAX), set_group(u32::MAX)), own);
    }
}
