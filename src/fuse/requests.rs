//! Requests of the kernel, answered: call, match, reply. Which thread runs one is the adapter's business.

use super::convert::{file_attr, file_type, nothing, ttl};
use super::copy_first::{CopyFirst, Request};
use super::notify::{AttrDropper, PageDropper};
use crate::error::{Error, Result};
use crate::fs::media::{Caller, Changes, New, Permissions, Reading, SetBits, Writing};
use crate::fs::{Entry, Fs, ListRequest, Listed, Listing, LookupRef, Operation, Position};
use crate::tree::NodeId;
use crate::tree::union::Onto;
use fuser::{
    FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most entries that are computed for one reply to a listing.
const MOST_ENTRIES: usize = 1024;

/// Answers requests of the kernel.
pub(super) struct Requests {
    pub(super) fs: Arc<Fs>,
    /// Refused writes drop what the writer dirtied.
    pages: PageDropper,
    /// Changes of a content that cleared suid or sgid tell the kernel so.
    attributes: AttrDropper,
    pub(super) copy_first: CopyFirst,
    /// How many entries fitted into the last replies: the buffer's size is not told beforehand.
    plain_fit: AtomicUsize,
    plus_fit: AtomicUsize,
}

/// What is to be made, with a name of its own: the request may outlive what the kernel gave.
pub(super) enum NewEntry {
    /// As [`New`].
    File,
    Dir,
    Symlink(Vec<u8>),
    Fifo,
    Socket,
}

impl NewEntry {
    fn as_new(&self) -> New<'_> {
        match self {
            Self::File => New::File,
            Self::Dir => New::Dir,
            Self::Symlink(target) => New::Symlink(target),
            Self::Fifo => New::Fifo,
            Self::Socket => New::Socket,
        }
    }
}

impl Requests {
    pub(super) fn new(fs: Arc<Fs>, pages: PageDropper, attributes: AttrDropper) -> Self {
        let fit = || AtomicUsize::new(MOST_ENTRIES);
        Self { fs, pages, attributes, copy_first: CopyFirst::default(), plain_fit: fit(), plus_fit: fit() }
    }

    /// Answers a change of a content, whose reply has no attributes: the kernel must not believe in the former mode
    /// when the caller goes on.
    fn changed(&self, node: NodeId, bits: SetBits, answer: impl FnOnce() + Send + 'static) {
        match bits {
            SetBits::Kept => answer(),
            SetBits::Cleared => self.attributes.drop_then(node, answer),
        }
    }

    /// The number for an error of a change; what was refused outside the scopes is counted.
    fn refuse(&self, error: &Error) -> fuser::Errno {
        if matches!(error, Error::Refused) {
            self.fs.counters.count(Operation::Refused);
        }
        errno(error)
    }

    fn done(&self, reply: ReplyEmpty, result: Result<()>) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.refuse(&error)),
        }
    }

    pub(super) fn lookup(&self, dir: NodeId, name: &[u8], reply: ReplyEntry) {
        self.fs.answer(
            |epoch| self.fs.lookup(epoch, dir, name),
            |epoch, answer| match answer {
                Ok(entry) => {
                    entry.attr.iter().for_each(|attr| self.fs.attrs_sent(epoch, attr.node));
                    send_entry(entry, reply);
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    pub(super) fn getattr(&self, node: NodeId, reply: ReplyAttr) {
        self.fs.answer(
            |epoch| self.fs.getattr(epoch, node),
            |epoch, answer| match answer {
                Ok((attr, valid)) => {
                    self.fs.attrs_sent(epoch, attr.node);
                    reply.attr(&ttl(valid), &file_attr(&attr));
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    pub(super) fn readlink(&self, node: NodeId, reply: ReplyData) {
        match self.fs.readlink(node) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    pub(super) fn read(&self, node: NodeId, offset: u64, size: u32, how: Reading, reply: ReplyData) {
        match self.fs.read(node, offset, size, how) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(&error)),
        }
    }

    pub(super) fn seek(&self, node: NodeId, offset: i64, whence: i32, reply: ReplyLseek) {
        match self.fs.seek(node, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(errno(&error)),
        }
    }

    pub(super) fn opendir(&self, node: NodeId, reply: ReplyOpen) {
        self.fs.answer(
            |epoch| self.fs.begin_listing(epoch, node),
            |_, answer| match answer {
                Ok(handle) => {
                    self.fs.listing_begun(node, handle);
                    reply.opened(FileHandle(handle), FopenFlags::empty());
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    pub(super) fn readdir(&self, node: NodeId, from: Position, mut reply: ReplyDirectory) {
        let most = self.plain_fit.load(Ordering::Relaxed);
        self.fs.answer(
            |epoch| self.fs.list(epoch, ListRequest { dir: node, from, most, listing: Listing::Names }),
            |_, answer| match answer {
                Ok(mut listed) => {
                    fill(&mut listed, most, &self.plain_fit, |entry| {
                        let (ino, kind) = (INodeNo(entry.attr.node.0), file_type(entry.attr.kind));
                        reply.add(ino, entry.cookie, kind, OsStr::from_bytes(&entry.name))
                    });
                    reply.ok();
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    pub(super) fn readdirplus(&self, node: NodeId, from: Position, mut reply: ReplyDirectoryPlus) {
        let most = self.plus_fit.load(Ordering::Relaxed);
        self.fs.answer(
            |epoch| self.fs.list(epoch, ListRequest { dir: node, from, most, listing: Listing::Plus }),
            |epoch, answer| match answer {
                Ok(mut listed) => {
                    fill(&mut listed, most, &self.plus_fit, |entry| {
                        let attr = file_attr(&entry.attr);
                        let name = OsStr::from_bytes(&entry.name);
                        let full = reply.add(attr.ino, entry.cookie, name, &ttl(entry.ttl), &attr, Generation(0));
                        // The kernel keeps what it is told of, but for the two that it knows already.
                        if !full && !matches!(&entry.name[..], b"." | b"..") {
                            entry.lookup.take().into_iter().for_each(LookupRef::sent);
                            self.fs.attrs_sent(epoch, entry.attr.node);
                        }
                        full
                    });
                    reply.ok();
                }
                Err(error) => reply.error(errno(&error)),
            },
        );
    }

    pub(super) fn getxattr(&self, node: NodeId, name: &[u8], size: u32, reply: ReplyXattr) {
        self.fs.answer(|epoch| self.fs.getxattr(epoch, node, name), |_, value| send_xattr(reply, size, value));
    }

    pub(super) fn listxattr(&self, node: NodeId, size: u32, reply: ReplyXattr) {
        self.fs.answer(|epoch| self.fs.listxattr(epoch, node), |_, names| send_xattr(reply, size, names));
    }

    pub(super) fn statfs(&self, node: NodeId, reply: ReplyStatfs) {
        match self.fs.statfs(node) {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                stat.f_bsize as u32,
                255,
                stat.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(&error)),
        }
    }

    pub(super) fn fsync(&self, node: NodeId, data_only: bool, reply: ReplyEmpty) {
        empty(reply, self.fs.fsync(node, data_only));
    }

    pub(super) fn fsync_dir(&self, node: NodeId, reply: ReplyEmpty) {
        empty(reply, self.fs.fsync_dir(node));
    }

    // Changes: in a scope the writable layer's, elsewhere EROFS.

    pub(super) fn setattr(&self, caller: Caller, node: NodeId, changes: Changes, reply: ReplyAttr) {
        match self.fs.setattr(caller, node, changes) {
            Ok((attr, valid)) => reply.attr(&ttl(valid), &file_attr(&attr)),
            Err(error) => reply.error(self.refuse(&error)),
        }
    }

    pub(super) fn make(
        &self,
        caller: Caller,
        (dir, name): (NodeId, &[u8]),
        new: &NewEntry,
        mode: Permissions,
        reply: ReplyEntry,
    ) {
        self.entry(reply, self.fs.make(caller, dir, name, new.as_new(), mode));
    }

    pub(super) fn create(
        &self,
        caller: Caller,
        (dir, name): (NodeId, &[u8]),
        mode: Permissions,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.fs.create(caller, dir, name, mode, flags) {
            Ok(entry) => {
                let attr = entry.attr.as_ref().map_or_else(nothing, file_attr);
                // fuser has one time for both here.
                let valid = ttl(entry.entry_ttl.min(entry.attr_ttl));
                entry.lookup.into_iter().for_each(LookupRef::sent);
                reply.created(&valid, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => reply.error(self.refuse(&error)),
        }
    }

    pub(super) fn unlink(&self, caller: Caller, dir: NodeId, name: &[u8], reply: ReplyEmpty) {
        self.done(reply, self.fs.unlink(caller, dir, name));
    }

    pub(super) fn rmdir(&self, caller: Caller, dir: NodeId, name: &[u8], reply: ReplyEmpty) {
        self.done(reply, self.fs.rmdir(caller, dir, name));
    }

    pub(super) fn rename(
        &self,
        caller: Caller,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        onto: Onto,
        reply: ReplyEmpty,
    ) {
        match self.copy_first.begin(caller.thread, || self.fs.copies_to_rename(caller, from, to, onto)) {
            Request::Answer => self.done(reply, self.fs.rename(caller, from, to, onto)),
            Request::CopyFirst(copying) => {
                reply.error(fuser::Errno::ESTALE);
                copying.make(|node| self.fs.copy_up(caller, node));
            }
            Request::Full(full) => reply.error(fuser::Errno::from_i32(full.raw_os_error())),
        }
    }

    pub(super) fn link(&self, caller: Caller, node: NodeId, dir: NodeId, name: &[u8], reply: ReplyEntry) {
        match self.copy_first.begin(caller.thread, || self.fs.copies_to_link(caller, node, dir, name)) {
            Request::Answer => self.entry(reply, self.fs.link(caller, node, dir, name)),
            Request::CopyFirst(copying) => {
                reply.error(fuser::Errno::ESTALE);
                copying.make(|node| self.fs.copy_up(caller, node));
            }
            Request::Full(full) => reply.error(fuser::Errno::from_i32(full.raw_os_error())),
        }
    }

    /// Root can open a release file for writing, since OPEN is not asked, and dirty a shared mapping of it. Outside
    /// the scopes the write is refused here, and the page that the kernel made dirty is dropped.
    pub(super) fn write(
        &self,
        caller: Caller,
        node: NodeId,
        offset: u64,
        bytes: &[u8],
        how: Writing,
        reply: ReplyWrite,
    ) {
        match self.fs.write(caller, node, offset, bytes, how) {
            Ok((len, bits)) => self.changed(node, bits, move || reply.written(len)),
            Err(error) => {
                reply.error(self.refuse(&error));
                self.pages.drop_pages(node);
            }
        }
    }

    pub(super) fn fallocate(&self, caller: Caller, node: NodeId, range: (u64, u64), mode: i32, reply: ReplyEmpty) {
        match self.fs.fallocate(caller, node, range, mode) {
            Ok(bits) => self.changed(node, bits, move || reply.ok()),
            Err(error) => reply.error(self.refuse(&error)),
        }
    }

    pub(super) fn copy_range(
        &self,
        caller: Caller,
        from: (NodeId, u64),
        to: (NodeId, u64),
        len: u64,
        reply: ReplyWrite,
    ) {
        match self.fs.copy_range(caller, from, to, len) {
            Ok((len, bits)) => self.changed(to.0, bits, move || reply.written(len)),
            Err(error) => reply.error(self.refuse(&error)),
        }
    }

    pub(super) fn setxattr(
        &self,
        caller: Caller,
        node: NodeId,
        name: &[u8],
        value: Option<(&[u8], u32)>,
        reply: ReplyEmpty,
    ) {
        self.done(reply, self.fs.setxattr(caller, node, name, value));
    }

    fn entry(&self, reply: ReplyEntry, made: Result<Entry>) {
        match made {
            Ok(entry) => send_entry(entry, reply),
            Err(error) => reply.error(self.refuse(&error)),
        }
    }
}

fn errno(error: &Error) -> fuser::Errno {
    fuser::Errno::from_i32(error.errno().raw_os_error())
}

fn send_entry(entry: Entry, reply: ReplyEntry) {
    let attr = entry.attr.as_ref().map_or_else(nothing, file_attr);
    entry.lookup.into_iter().for_each(LookupRef::sent);
    reply.entry_with_ttls(&ttl(entry.attr_ttl), &ttl(entry.entry_ttl), &attr, Generation(0));
}

fn empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

fn send_xattr(reply: ReplyXattr, size: u32, value: Result<Vec<u8>>) {
    match value {
        Err(error) => reply.error(errno(&error)),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

/// Fills a reply with `add` until it is full, and remembers how many fitted. `most` were computed, unless the listing
/// was over before: then nothing is known of how many would have fitted.
fn fill(listed: &mut [Listed], most: usize, fit: &AtomicUsize, mut add: impl FnMut(&mut Listed) -> bool) {
    let computed = listed.len();
    let fitted = listed.iter_mut().map(&mut add).take_while(|full| !full).count();
    let next = match fitted == computed {
        false => fitted + 8,
        true if fitted >= most => fitted * 2,
        true => return,
    };
    fit.store(next.clamp(16, MOST_ENTRIES), Ordering::Relaxed);
}
