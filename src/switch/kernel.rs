//! The kernel as the switch sees it: what it can be told, and asked.
//!
//! Every call may wait for locks of the kernel's, a directory's above all. So they are made from a thread of their own,
//! never from a request handler and never with a lock held that a handler needs.

use crate::error::Result;
use crate::tree::NodeId;

/// Whether the kernel holds a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It does: a file is open, or still cached.
    Held,
    /// It does not know it any more.
    Gone,
}

/// What the kernel can be told and asked.
pub trait Kernel: std::fmt::Debug + Send + Sync {
    /// Drops a directory entry, and what is cached below it. One that the kernel does not hold is as good as dropped.
    fn drop_entry(&self, dir: NodeId, name: &[u8]) -> Result<()>;
    /// Drops the attributes of a node.
    fn drop_attributes(&self, node: NodeId) -> Result<()>;
    /// Takes the lock of a directory and lets it go, so that every reply that was sent before has been used.
    fn pass_lock(&self, dir: NodeId) -> Result<()>;
    /// Whether it still holds a node.
    fn holds(&self, node: NodeId) -> Result<Use>;
}
