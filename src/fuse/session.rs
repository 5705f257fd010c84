//! The mount and the session that serves it.

use super::adapter::Adapter;
use super::notify::Kernel;
use crate::error::{Context, Result};
use crate::fs::Fs;
use fuser::{Config, MountOption, SessionACL};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// How a store is mounted. nosuid, nodev, default_permissions and allow_other always.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// What mount(8) shows as the source.
    pub source: String,
    /// Threads that answer the kernel.
    pub threads: usize,
    /// No execution of files.
    pub noexec: bool,
    /// The kernel asks for access lists (POSIX ACLs).
    pub acls: bool,
}

/// A mounted file system.
#[derive(Debug)]
pub struct Session {
    inner: fuser::BackgroundSession,
    /// The way to the kernel.
    pub kernel: Arc<OnceLock<Kernel>>,
}

/// Mounts; when it returns, the mount answers.
pub fn mount(fs: Arc<Fs>, mountpoint: &Path, options: &MountOptions) -> Result<Session> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.source.clone()),
        // fuser leaves its own Subtype out of what the kernel is told.
        MountOption::CUSTOM("subtype=verfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    if options.noexec {
        config.mount_options.push(MountOption::NoExec);
    }
    config.acl = SessionACL::All;
    config.n_threads = Some(options.threads);
    let kernel = Arc::new(OnceLock::new());
    let what = || format!("mounting {}", mountpoint.display());
    let session =
        fuser::Session::new(Adapter::new(fs, kernel.clone(), options.acls, options.threads), mountpoint, &config)
            .context(what)?;
    let device = session.as_fd().try_clone_to_owned().context(what)?;
    let _ = kernel.set(Kernel::new(session.notifier(), device));
    let inner = session.spawn().context(what)?;
    Ok(Session { inner, kernel })
}

impl Session {
    /// Waits for the end and gives its reason.
    pub fn join(self) -> Result<()> {
        self.inner.join().context(|| "serving the mount")
    }
}
