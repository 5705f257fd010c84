//! Who answers a request: the thread that took it from the kernel, or one of the lane of the disk that it may wait for.

use super::lanes::{Class, Lanes};
use super::requests::{NewEntry, Requests};
use crate::fault;
use crate::fs::media::{Caller, Permissions};
use crate::fs::{Operation, Turn};
use crate::sys::caught;
use crate::tree::NodeId;
use fuser::{INodeNo, ReplyEntry, Request};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// The file system as fuser calls it.
pub(super) struct Adapter {
    pub(super) requests: Arc<Requests>,
    pub(super) lanes: Arc<Lanes>,
    pub(super) acls: bool,
}

impl Adapter {
    /// For a session of so many threads.
    pub(super) fn new(requests: Requests, acls: bool, threads: usize) -> Self {
        Self { requests: Arc::new(requests), lanes: Arc::new(Lanes::new(threads)), acls }
    }

    /// Counts a request, and takes it on. If that panics, the request is dropped, which answers it with EIO.
    pub(super) fn serve(&self, operation: Operation, take_on: impl FnOnce()) {
        self.requests.fs.counters.count(operation);
        caught(|| {
            fault::point(operation.name());
            take_on();
        });
    }

    /// Runs a look at a node, in the lane of the disk that it may wait for.
    pub(super) fn look(&self, node: NodeId, answer: impl FnOnce(&Requests) + Send + 'static) {
        self.run(self.requests.fs.disk_to_look(node), Class::Look, answer);
    }

    /// Runs a change of a node, or of a name in it, in the lane of its disk.
    pub(super) fn change(&self, node: NodeId, answer: impl FnOnce(&Requests) + Send + 'static) {
        self.run(self.requests.fs.disk_to_change(node), Class::Change, answer);
    }

    pub(super) fn run(&self, disk: Option<u64>, class: Class, answer: impl FnOnce(&Requests) + Send + 'static) {
        match disk {
            None => answer(&self.requests),
            Some(disk) => {
                let requests = self.requests.clone();
                self.lanes.run(disk, class, move || answer(&requests));
            }
        }
    }

    pub(super) fn make(
        &self,
        req: &Request,
        dir: INodeNo,
        name: &OsStr,
        new: NewEntry,
        mode: Permissions,
        reply: ReplyEntry,
    ) {
        let (caller, dir, name) = (caller(req), NodeId(dir.0), own(name));
        self.change(dir, move |requests| requests.make(caller, (dir, &name), &new, mode, reply));
    }
}

/// Answers a LOOKUP, after the swap if it has to wait for that.
pub(super) fn look_up(
    requests: Arc<Requests>,
    lanes: Arc<Lanes>,
    thread: u32,
    (dir, name): (NodeId, Vec<u8>),
    reply: ReplyEntry,
) {
    let fs = requests.fs.clone();
    let disk = fs.disk_to_look_up(dir, &name);
    let own = name.clone();
    fs.gated(dir, &name, thread, move |turn| match (disk, turn) {
        // The thread may be that of the switch.
        (None, _) => {
            caught(|| requests.lookup(dir, &own, reply));
        }
        (Some(disk), Turn::Own) => lanes.run(disk, Class::Look, move || requests.lookup(dir, &own, reply)),
        (Some(disk), Turn::Switch) => lanes.queue(disk, Class::Look, move || requests.lookup(dir, &own, reply)),
    });
}

pub(super) fn own(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

pub(super) fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), thread: req.pid(), notes: true }
}
