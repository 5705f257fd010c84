//! What the kernel is told unasked.
//!
//! A notification waits for locks of the kernel's, the directory's above all. So these calls are made from
//! threads of their own, never from a request handler and never with a lock held that a handler needs.

use crate::error::{Context, Errno, Error, Result};
use crate::switch::{Kernel, Use};
use crate::sys::to_the_end;
use crate::tree::NodeId;
use fuser::{INodeNo, Notifier};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, SendError, SyncSender, sync_channel};

/// FUSE_NOTIFY_INVAL_INODE of the protocol (include/uapi/linux/fuse.h).
const INVAL_INODE: i32 = 2;
/// A name that no entry can have: it stands for "take and let go the directory's lock".
const IMPOSSIBLE: &[u8] = b"/";
/// Nodes whose pages wait to be dropped: past this many refused writes, some keep theirs until the kernel writes them.
const MOST_WAITING: usize = 1024;

/// The kernel at the other end of a connection.
#[derive(Debug)]
pub(super) struct Notify {
    notifier: Notifier,
    device: OwnedFd,
}

impl Notify {
    /// `device` is a duplicate of the session's descriptor.
    pub(super) fn new(notifier: Notifier, device: OwnedFd) -> Self {
        Self { notifier, device }
    }
}

impl Kernel for Notify {
    fn drop_entry(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        self.notifier
            .inval_entry(INodeNo(dir.0), OsStr::from_bytes(name))
            .map_err(|error| Error::io("telling the kernel of a changed name", error))
    }

    fn drop_attributes(&self, node: NodeId) -> Result<()> {
        self.notifier
            .inval_inode(INodeNo(node.0), -1, 0)
            .map_err(|error| Error::io("telling the kernel of changed attributes", error))
    }

    /// An invalidation of a name that cannot exist: up to 6.18 the kernel takes the directory's lock for it, and finds
    /// nothing.
    fn pass_lock(&self, dir: NodeId) -> Result<()> {
        self.drop_entry(dir, IMPOSSIBLE)
    }

    /// fuser's notifier hides the answer, so this message is written here.
    fn holds(&self, node: NodeId) -> Result<Use> {
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

/// Has the pages of nodes dropped soon, from another thread: a handler may use it, and before there is a connection.
#[derive(Clone, Debug)]
pub(crate) struct PageDropper(SyncSender<NodeId>);

impl PageDropper {
    /// The dropper, and the other end of its queue.
    pub(super) fn new() -> (Self, Receiver<NodeId>) {
        let (nodes, queue) = sync_channel(MOST_WAITING);
        (Self(nodes), queue)
    }

    /// Drops the pages of a node soon.
    pub(crate) fn drop_pages(&self, node: NodeId) {
        // Full: there are a thousand refused writes waiting already, and each drops its file's pages.
        let _ = self.0.try_send(node);
    }
}

/// What is done once the kernel has dropped what it believes of a node.
type Then = Box<dyn FnOnce() + Send>;

/// Has the attributes of a node dropped and then something done, from another thread: a handler may use it for an
/// answer that does not tell the kernel what else changed. The thread drops no pages, so it waits for no answer: not
/// for those in its own queue either.
#[derive(Clone, Debug)]
pub(super) struct AttrDropper(SyncSender<(NodeId, Then)>);

impl AttrDropper {
    /// The dropper, and the other end of its queue.
    pub(super) fn new() -> (Self, Receiver<(NodeId, Then)>) {
        let (nodes, queue) = sync_channel(MOST_WAITING);
        (Self(nodes), queue)
    }

    /// Drops the attributes of a node, whose file the kernel has open, and then calls `then`.
    pub(super) fn drop_then(&self, node: NodeId, then: impl FnOnce() + Send + 'static) {
        if let Err(SendError((_, then))) = self.0.send((node, Box::new(then))) {
            then();
        }
    }
}

/// Starts the thread that drops the attributes of what comes through the queue. It ends with the last [`AttrDropper`].
pub(super) fn drop_attributes_of(queue: Receiver<(NodeId, Then)>, notifier: Notifier) -> Result<()> {
    let run = move || {
        for (node, then) in queue {
            if let Err(error) = notifier.inval_inode(INodeNo(node.0), -1, 0) {
                log::debug!("dropping the attributes of {node:?}: {error}");
            }
            then();
        }
    };
    std::thread::Builder::new().name("verfs-modes".into()).spawn(run).context(|| "starting a thread")?;
    Ok(())
}

/// Starts the thread that drops the pages of what comes through the queue. It ends with the last [`PageDropper`].
pub(super) fn drop_pages_of(queue: Receiver<NodeId>, notifier: Notifier) -> Result<()> {
    let run = move || {
        for node in &queue {
            if let Err(error) = notifier.inval_inode(INodeNo(node.0), 0, 0) {
                log::debug!("dropping the pages of {node:?}: {error}");
            }
        }
    };
    std::thread::Builder::new()
        .name("verfs-pages".into())
        .spawn(move || to_the_end(run))
        .context(|| "starting a thread")?;
    Ok(())
}
