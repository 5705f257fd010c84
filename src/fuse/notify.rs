//! What the kernel is told unasked.
//!
//! A notification waits for locks of the kernel's, the directory's above all. So these calls are made from
//! threads of their own, never from a request handler and never with a lock held that a handler needs.

use crate::error::{Errno, Error, Result};
use crate::tree::NodeId;
use fuser::{INodeNo, Notifier};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{SyncSender, sync_channel};

/// FUSE_NOTIFY_INVAL_INODE of the protocol (include/uapi/linux/fuse.h).
const INVAL_INODE: i32 = 2;
/// A name that no entry can have: it stands for "take and let go the directory's lock".
const IMPOSSIBLE: &[u8] = b"/";

/// Whether the kernel holds a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It does: a file is open, or still cached.
    Held,
    /// It does not know it any more.
    Gone,
}

/// The way to the kernel.
#[derive(Debug)]
pub struct Kernel {
    notifier: Notifier,
    device: OwnedFd,
    dropper: SyncSender<NodeId>,
}

impl Kernel {
    /// `device` is a duplicate of the session's descriptor.
    pub fn new(notifier: Notifier, device: OwnedFd) -> Self {
        let (dropper, nodes) = sync_channel::<NodeId>(1024);
        let own = notifier.clone();
        let thread = std::thread::Builder::new().name("verfs-pages".into()).spawn(move || {
            for node in nodes {
                if let Err(error) = own.inval_inode(INodeNo(node.0), 0, 0) {
                    log::debug!("dropping the pages of {node:?}: {error}");
                }
            }
        });
        if let Err(error) = thread {
            log::error!("starting the thread that drops pages: {error}");
        }
        Self { notifier, device, dropper }
    }

    /// Drops a directory entry, and what is cached below it.
    pub fn drop_entry(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        self.notifier
            .inval_entry(INodeNo(dir.0), OsStr::from_bytes(name))
            .map_err(|error| Error::io("telling the kernel of a changed name", error))
    }

    /// Drops the attributes of a node.
    pub fn drop_attributes(&self, node: NodeId) -> Result<()> {
        self.notifier
            .inval_inode(INodeNo(node.0), -1, 0)
            .map_err(|error| Error::io("telling the kernel of changed attributes", error))
    }

    /// Takes and lets go the lock of a directory, so that every reply that was sent before has been used.
    /// Works on kernels up to 6.18; see [`Kernel::drop_entry`] for what else it does there: nothing.
    pub fn pass_lock(&self, dir: NodeId) -> Result<()> {
        self.drop_entry(dir, IMPOSSIBLE)
    }

    /// Drops the pages of a node soon, from another thread.
    pub fn drop_pages_later(&self, node: NodeId) {
        // Full: there are a thousand refused writes waiting already, and each drops its file's pages.
        let _ = self.dropper.try_send(node);
    }

    /// Whether the kernel still holds a node. fuser's notifier hides the answer, so this one is written here.
    pub fn holds(&self, node: NodeId) -> Result<Use> {
        let mut message = [0u8; 40];
        message[0..4].copy_from_slice(&40u32.to_le_bytes());
        message[4..8].copy_from_slice(&INVAL_INODE.to_le_bytes());
        message[16..24].copy_from_slice(&node.0.to_le_bytes());
        message[24..32].copy_from_slice(&(-1i64).to_le_bytes());
        match rustix::io::write(&self.device, &message) {
            Ok(_) => Ok(Use::Held),
            Err(Errno::NOENT) => Ok(Use::Gone),
            Err(error) => Err(Error::io("asking the kernel for a node", error)),
        }
    }
}
