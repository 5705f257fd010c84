//! Whether what has failed works again: tried without a request, from time to time, and only while there is a fault.
//!
//! A look is done once more. A change is not: instead the disk is asked for a change that nobody sees. A request that
//! gets a plain answer works: a file that is gone takes its fault with it.

use super::Fs;
use super::counters::Operation;
use super::faults::{Disk, Failed};
use super::listing::{ListRequest, Listing, Position};
use super::media::Reading;
use crate::error::{Result, Verdict};
use crate::tree::NodeId;

/// The handle of the listing of a probe; no open directory has it.
const LISTING: u64 = u64::MAX;

impl Fs {
    /// Tries what has failed, where that is due.
    pub fn probe_faults(&self) {
        let works = |done: Result<()>| done.map_or_else(|error| error.verdict() == Verdict::Answer, |()| true);
        self.faults.probe(|failed| works(self.again(failed)));
    }

    fn again(&self, failed: &Failed) -> Result<()> {
        if let (Disk::Media, true, Some(media)) = (failed.disk, failed.operation.is_change(), &self.media) {
            return media.try_change();
        }
        let Failed { disk, operation, node, ref name, offset } = *failed;
        let epoch = self.epochs.load();
        if let (Disk::Store, Some(bad)) = (disk, epoch.bad()) {
            return Err(bad.damaged("a page of it cannot be read"));
        }
        match operation {
            Operation::Lookup => self.look_up(&epoch, node, name).map(drop),
            Operation::Readlink => self.target(node).map(drop),
            Operation::Getxattr | Operation::Listxattr => self.xattrs(&epoch, node).map(drop),
            Operation::Readdir | Operation::Readdirplus => {
                let from = Position { handle: LISTING, cookie: 0 };
                let request = ListRequest { dir: node, from, most: 1, listing: Listing::Names };
                let listed = self.entries(&epoch, request);
                self.end_listing(node, LISTING);
                listed.map(drop)
            }
            Operation::Statfs => self.room(node).map(drop),
            Operation::Getattr | Operation::Opendir => self.attributes(&epoch, node).map(drop),
            Operation::Read => self.read_one(node, offset),
            // Content as well. A change that failed on the store's disk could not read the release's file that it
            // copies up.
            _ => self.read_one(node, 0),
        }
    }

    fn read_one(&self, node: NodeId, offset: u64) -> Result<()> {
        // A direct read: it asks the disk below and not the pages of the mount.
        self.content(node, offset, 1, Reading { thread: 0, direct: true }).map(drop)
    }
}
