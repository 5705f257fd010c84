//! Upcalls by operation.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! operations {
    ($($variant:ident $name:literal),+ $(,)?) => {
        /// What the kernel asked for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the names are those of the FUSE protocol")]
        pub enum Operation { $($variant),+ }

        /// The names under which they are shown, in order.
        const NAMES: &[&str] = &[$($name),+];
    };
}

operations! {
    Lookup "lookup", Forget "forget", Getattr "getattr", Readlink "readlink", Open "open", Read "read",
    Release "release", Flush "flush", Opendir "opendir", Readdir "readdir", Readdirplus "readdirplus",
    Releasedir "releasedir", Statfs "statfs", Getxattr "getxattr", Listxattr "listxattr", Lseek "lseek",
    Create "create", Write "write", Setattr "setattr", Mknod "mknod", Mkdir "mkdir", Unlink "unlink", Rmdir "rmdir",
    Symlink "symlink", Rename "rename", Link "link", Fallocate "fallocate", CopyFileRange "copy_file_range",
    Setxattr "setxattr", Removexattr "removexattr", Access "access", Fsync "fsync", Ioctl "ioctl",
    Poll "poll", Refused "refused_write",
}

impl Operation {
    /// Whether it changes something, or makes a change durable.
    pub fn is_change(self) -> bool {
        use Operation::*;
        match self {
            Create | Write | Setattr | Mknod | Mkdir | Unlink | Rmdir | Symlink | Rename | Link | Fallocate
            | CopyFileRange | Setxattr | Removexattr | Fsync => true,
            Lookup | Forget | Getattr | Readlink | Open | Read | Release | Flush | Opendir | Readdir | Readdirplus
            | Releasedir | Statfs | Getxattr | Listxattr | Lseek | Access | Ioctl | Poll | Refused => false,
        }
    }
}

impl Operation {
    /// The name under which it is shown.
    pub(crate) fn name(self) -> &'static str {
        NAMES.get(self as usize).copied().unwrap_or_default()
    }
}

/// How many upcalls there were, by operation.
#[derive(Debug)]
pub struct Counters([AtomicU64; NAMES.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counters {
    /// One more.
    pub fn count(&self, operation: Operation) {
        self.0[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Name and count of each.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.iter().zip(&self.0).map(|(name, count)| (*name, count.load(Ordering::Relaxed)))
    }
}
