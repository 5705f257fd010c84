//! Fault points for tests: places where a test makes verfs stop or leave a step out.
//!
//! Compiled in only with the feature `faults`; without it every call is nothing. `VERFS_FAULT` holds one of
//! the names of [`Skip`], or `crash:POINT` or `crash:POINT:N`, which aborts the process at the Nth passing of
//! that point, or `panic:POINT`, which panics at each passing. `hold:POINT:FILE` makes FILE at that point and waits
//! until it is gone. A simulation sets a fault for what one thread does instead: [`with`].

/// A step of the switch, or a safeguard, that a test leaves out, to see that somebody notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Step 2 sends no invalidations.
    Drop,
    /// Step 4 does nothing.
    Tidy,
    /// No barriers in steps 2 and 4.
    Barrier,
    /// Names below a directory that appears or goes are left out of the change set.
    DeepChangeSet,
    /// Changed names keep their TTL in the transition.
    Ttl0,
    /// Numbers of nodes have 12 bits of their hash: many are the same.
    WideHash,
}

/// Every crash point as `(verb, point)`: a test kills the process at each.
#[cfg(feature = "faults")]
pub(crate) const CRASH_POINTS: &[(&str, &str)] = &[
    ("add", "add.begun"),
    ("add", "add.object-staged"),
    ("add", "add.staged"),
    ("add", "add.object-placed"),
    ("add", "add.objects-placed"),
    ("add", "atomic.written"),
    ("add", "atomic.synced"),
    ("add", "add.manifest-placed"),
    ("add", "journal.before"),
    ("add", "journal.after"),
    ("switch", "switch.prepared"),
    ("switch", "stamps.written"),
    ("switch", "switch.stamped"),
    ("switch", "atomic.written"),
    ("switch", "atomic.synced"),
    ("switch", "switch.recorded"),
    ("switch", "journal.before"),
    ("switch", "journal.after"),
    ("rollback", "switch.prepared"),
    ("rollback", "stamps.written"),
    ("rollback", "switch.stamped"),
    ("rollback", "atomic.written"),
    ("rollback", "atomic.synced"),
    ("rollback", "switch.recorded"),
    ("rollback", "journal.before"),
    ("rollback", "journal.after"),
    ("compaction", "atomic.written"),
    ("compaction", "atomic.synced"),
    ("compaction", "stamps.compacted"),
    ("conversion", "atomic.synced"),
    ("conversion", "switch.recorded"),
    ("conversion", "format.raised"),
    ("rotation", "journal.rotated"),
    ("mounted-switch", "switch.opened"),
    ("mounted-switch", "switch.dropped"),
    ("mounted-switch", "switch.recorded"),
    ("mounted-switch", "switch.swapped"),
    ("mounted-switch", "switch.tidied"),
    ("remove", "remove.before"),
    ("remove", "remove.unlinked"),
    ("remove", "journal.before"),
    ("remove", "journal.after"),
    ("gc", "gc.begun"),
    ("gc", "gc.object-removed"),
    ("gc", "gc.repacked"),
    ("gc", "gc.pack-removed"),
    ("restore", "stamps.written"),
    ("restore", "atomic.written"),
    ("restore", "atomic.synced"),
    ("restore", "media.step"),
    ("restore", "media.done"),
    ("restore", "journal.before"),
    ("media", "media.step"),
    ("media", "media.done"),
    ("media", "upper.copied"),
    ("media", "upper.added"),
    ("media", "upper.whiteout"),
    ("media", "upper.exchanged"),
    ("media", "upper.kept"),
];

#[cfg(feature = "faults")]
mod compiled {
    use super::Skip;
    use std::cell::Cell;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    enum Fault {
        None,
        Skip(Skip),
        Crash { point: String, after: u64, seen: AtomicU64 },
        Panic { point: String },
        Hold { point: String, file: String },
    }

    fn fault() -> &'static Fault {
        static FAULT: OnceLock<Fault> = OnceLock::new();
        FAULT.get_or_init(|| {
            let Ok(text) = std::env::var("VERFS_FAULT") else { return Fault::None };
            match text.as_str() {
                "skip-drop" => return Fault::Skip(Skip::Drop),
                "skip-tidy" => return Fault::Skip(Skip::Tidy),
                "skip-barrier" => return Fault::Skip(Skip::Barrier),
                "shallow-change-set" => return Fault::Skip(Skip::DeepChangeSet),
                "no-ttl0" => return Fault::Skip(Skip::Ttl0),
                "narrow-hash" => return Fault::Skip(Skip::WideHash),
                _ => {}
            }
            let mut parts = text.split(':');
            match (parts.next(), parts.next()) {
                (Some("crash"), Some(point)) => Fault::Crash {
                    point: point.to_owned(),
                    after: parts.next().and_then(|n| n.parse().ok()).unwrap_or(1),
                    seen: AtomicU64::new(0),
                },
                (Some("panic"), Some(point)) => Fault::Panic { point: point.to_owned() },
                (Some("hold"), Some(point)) => {
                    Fault::Hold { point: point.to_owned(), file: parts.next().map(str::to_owned).unwrap_or_default() }
                }
                // A misspelt fault must not look like a test that passed.
                _ => panic!("VERFS_FAULT={text} names no fault"),
            }
        })
    }

    thread_local! {
        /// What this thread leaves out, whatever the environment says.
        static OWN: Cell<Option<Option<Skip>>> = const { Cell::new(None) };
    }

    pub(super) fn with<T>(skip: Option<Skip>, run: impl FnOnce() -> T) -> T {
        /// Puts it back, after a panic too.
        struct Before(Option<Option<Skip>>);
        impl Drop for Before {
            fn drop(&mut self) {
                OWN.set(self.0);
            }
        }
        let _before = Before(OWN.replace(Some(skip)));
        run()
    }

    pub(super) fn skips(skip: Skip) -> bool {
        match OWN.get() {
            Some(own) => own == Some(skip),
            None => matches!(fault(), Fault::Skip(set) if *set == skip),
        }
    }

    pub(super) fn point(name: &str) {
        if let Fault::Hold { point, file } = fault()
            && point == name
            && std::fs::write(file, "").is_ok()
        {
            // The test has a deadline; a process that it forgot ends here.
            for _ in 0..12_000 {
                if !std::path::Path::new(file).exists() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        if let Fault::Crash { point, after, seen } = fault()
            && point == name
            && seen.fetch_add(1, Ordering::Relaxed) + 1 == *after
        {
            eprintln!("VERFS_FAULT: stopping at {name}");
            std::process::abort();
        }
        if let Fault::Panic { point } = fault()
            && point == name
        {
            panic!("VERFS_FAULT: at {name}");
        }
    }
}

/// Runs something that leaves this step out, or none, as long as it stays on this thread.
#[cfg(feature = "faults")]
pub fn with<T>(skip: Option<Skip>, run: impl FnOnce() -> T) -> T {
    compiled::with(skip, run)
}

/// Whether the test asked to leave this step out.
#[inline]
pub(crate) fn skips(skip: Skip) -> bool {
    #[cfg(feature = "faults")]
    return compiled::skips(skip);
    #[cfg(not(feature = "faults"))]
    {
        let _ = skip;
        false
    }
}

/// A place where a test may stop the process.
#[inline]
pub(crate) fn point(name: &str) {
    #[cfg(feature = "faults")]
    compiled::point(name);
    #[cfg(not(feature = "faults"))]
    let _ = name;
}
