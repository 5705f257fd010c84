//! verfs: a docroot that switches.
//!
//! A store holds immutable releases. One of them is mounted, with a writable layer over it, and a switch replaces it by
//! swapping one pointer. docs/SEMANTICS.md has the promises, docs/ARCHITECTURE.md how they are kept, with three
//! requests followed through the files.
//!
//! # Start here
//!
//! - What is asked of the kernel's requests: `fs/mod.rs`, the operations. `fuse/requests.rs` calls them.
//! - What is served: `fs/epoch/mod.rs`. How it is replaced: `switch/mod.rs`, then `switch/commit.rs`.
//! - What a write in a scope does: `tree/union/mod.rs` decides, `fs/media/mutate.rs` carries it out.
//! - What lies on disk: `store/mod.rs`, with a drawing in each file that owns a format.
//! - What a command says to the daemon: `protocol/mod.rs`.
//!
//! # Layers
//!
//! A file uses only what stands to its right; `tests/layering.rs` keeps it so.
//!
//! ```text
//! main > cli > worker > control > fuse > switch > fs > store > protocol > tree > error, sys, fault
//! ```
//!
//! # Processes
//!
//! - **command**: `verfs add`, `gc`, `verify`, `switch`, … Heavy work is done here, never in the process that serves.
//! - **worker**: the process behind `verfs mount`. It answers the kernel and the control socket. Messages and the
//!   protocol call it the daemon.
//! - **keeper** (to come): holds the connection to the kernel, so that the mount outlives its worker.
//!
//! # Words
//!
//! One meaning a word, in code, messages and documents.
//!
//! | word | meaning |
//! |---|---|
//! | store | the directory that holds everything: objects, releases, media, journal, settings |
//! | release | a named immutable tree |
//! | manifest | the metadata of a release, one mapped file; the release exists if and only if it does |
//! | object | the content of a file, named by its BLAKE3 hash, shared by all releases |
//! | pack | a file with many small objects |
//! | docroot | the tree that the mount shows; paths in it have no leading slash |
//! | scope | a declared writable path of the docroot; its top is the directory at that path |
//! | media | what was written in scopes, as plain files |
//! | media home | the directory that media and its whiteouts lie in: the store, or one on another disk |
//! | layer | media and whiteouts of one owner: the shared layer, or a release's own layer |
//! | upper, lower | of a name in a scope: what the layer has there, and what the release has |
//! | whiteout | an empty file that hides the lower entry of its name, and all below it |
//! | copy-up | a lower file gets a copy in the layer, because it is to be changed |
//! | shadowed | of a lower entry: a whiteout or an upper entry hides it |
//! | plan, step | the ordered small changes of the disk that make up one change of names |
//! | orphan | an upper file without a name, kept because it may be open |
//! | node, nodeid | a file or directory as the kernel knows it, and its number (the table is at [`tree::NodeId`]) |
//! | lookup | the kernel asks what a name in a directory stands for; each answer with a node counts until FORGET |
//! | epoch | what is served between two switches: release, stamps, and the transition of a switch under way |
//! | switch | replaces the epoch; a rollback is a switch |
//! | change set | the directory entries in which two releases differ |
//! | stamp | the mtime that is served for a path: the second and the number of the switch that changed it last |
//! | arrival | the earliest mtime that is shown of what lay in a release's own layer when a switch showed it |
//! | stage | a part of a switch as a type: plan, prepared, stamped, commit |
//! | transition | the time in a switch in which changed names are answered with TTL 0 and noted |
//! | barrier | the lock of each changed directory, taken and let go: every earlier reply has been used |
//! | gate | where lookups of changed names wait for the swap |
//! | swap | the instant in which the next epoch is served |
//! | claim | the directories and trees in which one change of names keeps other changes out |
//! | lane | the requests that wait for one disk: a queue for looks and one for changes |
//! | fault | what a disk below the mount could not do; the mount is *degraded* while there is one |
//! | refused | of a write: it was not in a scope, of a denied name, or over a limit |
//!
//! # Locks
//!
//! Every lock, in the order in which they are taken: inside a lock only those further down are. A line without *inside*
//! is a leaf. A line without *waits* is held for an instant, over no disk, no notification and no other wait.
//! `tests/architecture.rs` compares the table with the sources.
//!
//! ```text
//! lock                          file                        guards
//!
//! Service.pinned                worker/service.rs           the last scan for objects in use, page by page
//!   inside   Epochs.current, Media.nodes
//!   waits    for manifests on the store's disk, and for the kernel, which is asked of every node; only `gc` asks
//! Service.last_restore          worker/service.rs           the names of the last restore, page by page
//! Connections.open, Connections.one_closed    control/connections.rs    the open connections
//! Switcher.turn                 switch/switcher.rs          one switch at a time: what is active, what is left to tidy
//!   inside   Switcher.settings, Published.0, MediaDisk.wanted, Lanes.lanes, Lane.queue, Watch.0, Epochs.current,
//!            Epochs.past, Epochs.listings, Gate.0, Transition.noted, PendingAttrs.nodes, Faults.seen, Media.tops,
//!            Media.nodes, Mount.lookups, Scopes.rules, Stamps.nodes, Objects.packs
//!   waits    for the store's disk, the lock file `releases`, 2 s for the disk of media, 2.4 s for a second of its own,
//!            limit_ms for the kernel, settle_ms for readers, 2.4 s until what it shows is of the past, and for what
//!            the kernel says of 10,000 nodes
//! Switcher.settings             switch/switcher.rs          the settings in use
//! Published.0                   switch/publish.rs           what `status` shows: so it waits for no switch
//! MediaDisk.wanted              switch/shadowed.rs          releases whose own layer is still to be made
//! Lanes.lanes                   fuse/lanes.rs               the lane of each disk and class
//!   inside   Lane.queue
//! CopyFirst.stages              fuse/copy_first.rs          who comes again when a large file is copied up
//! Watch.0                       fuse/lanes.rs               lanes in which requests wait, and overdue writes
//!   inside   Lane.queue
//!   waits    for threads to start
//! Lane.queue, Lane.came         fuse/lanes.rs               the requests that wait, and the threads of the lane
//! Epochs.current                fs/epoch/cell.rs            the epoch lock: what is served
//!   inside   PendingAttrs.nodes, Mount.lookups, Epochs.listings
//!   waits    for write(2) of a reply to /dev/fuse
//! Epochs.past                   fs/epoch/cell.rs            the releases that listings are pinned to
//! Epochs.listings               fs/epoch/cell.rs            how many listings began under which switch
//! Gate.0                        fs/epoch/gate.rs            which threads ask for what, and the requests that wait
//! Transition.noted              fs/epoch/transition.rs      changed names that were answered in the transition
//! PendingAttrs.nodes            fs/epoch/pending_attrs.rs   nodes whose changed attributes nobody has asked for
//! Faults.seen                   fs/faults/mod.rs            the faults that are kept and counted
//! Refused.0                     fs/refused.rs               the writes that were refused
//! Contents.open                 fs/contents.rs              the open objects
//! Namespace.claims, Namespace.given_up    fs/media/namespace.rs    which change has claimed which names
//! Media.tops                    fs/media/mod.rs             how the top of each scope looked last
//! Media.notice                  fs/media/mod.rs             who drops pages; set once, at the mount
//! Media.nodes, Media.noted      fs/media/mod.rs             who each media node is: names, backing, steps under way
//!   inside   Descriptors.0, Writeback.runs, Truncations.under_way, Mount.lookups
//! Descriptors.0                 fs/media/descriptors.rs     the open files of media
//! Writeback.runs                fs/media/writeback.rs       files that are written on and on
//! Writeback.ready               fs/media/writeback.rs       the queue of the thread that writes early; set once
//! Truncations.under_way         fs/media/truncation.rs      what truncations took, until the kernel has the answer
//! Truncations.readers           fs/media/truncation.rs      the last reads that met the end of a file
//! Usage.0                       fs/media/limits.rs          how much each scope with a limit takes
//! Litter.is_there, Litter.came  fs/media/reaper.rs          whether there is something to let go of
//! Home.removed                  store/media/home/mod.rs     whiteouts that were taken out, until they are removed
//! Leaving.under_way             store/media/home/times.rs   directories that get an entry and keep their mtime
//! Scopes.rules                  fs/media/scopes.rs          what holds in each scope
//! Mount.lookups                 fs/mount.rs                 how often the kernel looked up each media node
//! Mount.listings                fs/mount.rs                 the listings of open directories in scopes
//! Stamps.nodes                  store/active/stamps.rs      the stamp of each node
//! Objects.packs                 store/release/objects/mod.rs    the packs as they were found last
//! Staging.small                 store/release/import/staging.rs    the small contents of one `add` or `gc`
//!   waits    for the store's disk; only threads of that command ask
//! OWN                           sys/credentials.rs          the capabilities of the process; set once
//! ONCE                          sys/mapped.rs               the handler of SIGBUS; set once
//! FAULT                         fault.rs                    the fault that a test asked for; set once
//! ```
//!
//! Two kinds of locks are no fields. A *claim* of names is made to be held over disk work (inside it one of
//! the times of a directory may be, for one step on the disk, and inside that none); the lock files (flock(2))
//! keep processes apart and go with them. Those that are tried answer "busy" and wait for nobody.
//!
//! ```text
//! held                          by                          against
//!
//! objects/                      store/mod.rs                shared by add and verify, alone by gc; tried
//!   inside   run/, tmp/add-…, tmp/, Staging.small
//! run/                          store/mod.rs                a second worker, or a switch beside it; tried
//!   inside   orphans/, tmp/add-…, releases/, Switcher.turn, claim
//! orphans/                      worker/serve.rs             two stores with one media home; tried
//! Switcher.turn                 switch/switcher.rs          as above
//!   inside   releases/
//! releases/                     store/mod.rs                shared by a switch, from prepare on; alone by remove
//!   waits    for what the switch waits for
//! tmp/add-…                     store/release/import/staging.rs    a sweep of a work space that is in use; tried
//!   inside   tmp/, Staging.small
//! tmp/                          store/release/import/mod.rs    two publishers: mtimes depend on all releases
//!   inside   Staging.small
//! claim                         fs/media/namespace.rs       other changes of the same names; no look claims anything
//!   inside   Namespace.claims, Media.nodes, Media.tops, Scopes.rules, Usage.0, Refused.0, Contents.open,
//!            Objects.packs, Stamps.nodes, Transition.noted, PendingAttrs.nodes, Home.removed,
//!            Leaving.under_way
//!   waits    for the disks of media and of the store
//! ```

#![warn(missing_debug_implementations, unreachable_pub)]

pub mod cli;
pub mod control;
pub mod error;
pub mod fault;
pub mod fs;
mod fuse;
pub mod protocol;
pub mod store;
pub mod switch;
pub mod sys;
pub mod tree;
mod worker;
