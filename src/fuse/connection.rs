//! A connection to the kernel: the mount, the session that answers, and the way to the kernel, made one after the
//! other.
//!
//! ```text
//!   device, mount(2) ──▶ session (INIT is answered) ──▶ kernel (notifications) ──▶ serving (threads)
//! ```

use super::dispatch::Adapter;
use super::mountpoint::Mountpoint;
use super::notify::{AttrDropper, Notify, PageDropper, drop_attributes_of, drop_pages_of};
use super::requests::Requests;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::fs::Fs;
use crate::switch::Kernel;
use fuser::{Config, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

/// How a store is mounted. nosuid, nodev, default_permissions and allow_other always.
#[derive(Clone, Debug, Default)]
pub(crate) struct MountOptions {
    /// What mount(8) shows as the source.
    pub source: String,
    /// Threads that answer the kernel.
    pub threads: usize,
    /// No execution of files.
    pub noexec: bool,
    /// The kernel asks for access lists (POSIX ACLs).
    pub acls: bool,
}

/// A connection whose requests wait to be answered. Dropped, it is unmounted.
pub(crate) struct Connection {
    session: fuser::Session<Adapter>,
    kernel: Arc<Notify>,
    pages: PageDropper,
    mounted: Mounted,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("mounted", &self.mounted).finish_non_exhaustive()
    }
}

impl Connection {
    /// Mounts, and answers the kernel's first request.
    pub(crate) fn mount(fs: Arc<Fs>, mountpoint: Arc<Mountpoint>, options: &MountOptions) -> Result<Self> {
        fault::point("mount.checked");
        let path = mountpoint.path().to_owned();
        let what = || format!("mounting {}", path.display());
        let device = open_device()?;
        let mounted = Mounted::new(&device, mountpoint, options)?;
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(options.threads);
        let (pages, queue) = PageDropper::new();
        let (attributes, answers) = AttrDropper::new();
        let adapter = Adapter::new(Requests::new(fs, pages.clone(), attributes), options.acls, options.threads);
        let session = fuser::Session::from_fd(adapter, device, SessionACL::All, config).context(what)?;
        let own = session.as_fd().try_clone_to_owned().context(what)?;
        drop_pages_of(queue, session.notifier())?;
        drop_attributes_of(answers, session.notifier())?;
        let kernel = Arc::new(Notify::new(session.notifier(), own));
        Ok(Self { session, kernel, pages, mounted })
    }

    /// The way to the kernel.
    pub(crate) fn kernel(&self) -> Arc<dyn Kernel> {
        self.kernel.clone()
    }

    /// Has pages dropped.
    pub(crate) fn pages(&self) -> PageDropper {
        self.pages.clone()
    }

    /// Answers requests, in threads of their own.
    pub(crate) fn serve(self) -> Result<Serving> {
        let threads = self.session.spawn().context(|| "starting the threads that answer the kernel")?;
        Ok(Serving { threads, _mounted: self.mounted })
    }
}

/// A connection that is answered. Dropped, it is unmounted.
#[derive(Debug)]
pub(crate) struct Serving {
    threads: fuser::BackgroundSession,
    _mounted: Mounted,
}

impl Serving {
    /// Waits for the end and gives its reason.
    pub(crate) fn join(self) -> Result<()> {
        self.threads.join().context(|| "serving the mount")
    }
}

fn open_device() -> Result<OwnedFd> {
    rustix::fs::openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::io("opening /dev/fuse", error))
}

/// A mount, taken away when dropped.
#[derive(Debug)]
struct Mounted {
    /// A duplicate of the connection's descriptor: it tells whether the mount is there.
    device: OwnedFd,
    mountpoint: Arc<Mountpoint>,
}

impl Mounted {
    fn new(device: &OwnedFd, mountpoint: Arc<Mountpoint>, options: &MountOptions) -> Result<Self> {
        let what = || format!("mounting {}", mountpoint.path().display());
        let mode = mountpoint.mode().context(what)?;
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        // fuse_parse_param in the kernel's fs/fuse/inode.c; the file system type "fuse.verfs" comes from the subtype.
        let data = format!(
            "fd={},rootmode={mode:o},user_id={uid},group_id={gid},default_permissions,allow_other",
            device.as_raw_fd()
        );
        let data = CString::new(data).map_err(|_| rustix::io::Errno::INVAL).context(what)?;
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        if options.noexec {
            flags |= MountFlags::NOEXEC;
        }
        let own = rustix::io::fcntl_dupfd_cloexec(device, 0).context(what)?;
        mountpoint.mount(&options.source, flags, &data)?;
        Ok(Self { device: own, mountpoint })
    }

    /// Whether the connection has ended: by an unmount, or by its last user after a lazy one (fuse_dev_poll).
    fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.device, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_gone() {
            return;
        }
        if let Err(error) = self.mountpoint.unmount(UnmountFlags::empty()) {
            log::warn!("unmounting {}: {error}", self.mountpoint.path().display());
        }
    }
}
