//! Between the types of verfs and those of the protocol library.

use crate::fs::{Attr, Ttl, Type};
use crate::store::active::stamps::Stamp;
use crate::tree::NodeId;
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use rustix::fs::{Timespec, Timestamps};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// "For ever", as far as the kernel's clock counts: ten years.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

pub(super) fn ttl(ttl: Ttl) -> Duration {
    match ttl {
        Ttl::Zero => Duration::ZERO,
        Ttl::For(time) => time,
        Ttl::Forever => FOREVER,
    }
}

pub(super) fn time(stamp: Stamp) -> SystemTime {
    let nanos = Duration::from_nanos(stamp.nanos.into());
    match u64::try_from(stamp.second) {
        Ok(second) => UNIX_EPOCH + Duration::from_secs(second) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(stamp.second.unsigned_abs()) + nanos,
    }
}

pub(super) fn file_type(kind: Type) -> FileType {
    match kind {
        Type::Dir => FileType::Directory,
        Type::File => FileType::RegularFile,
        Type::Symlink => FileType::Symlink,
        Type::Fifo => FileType::NamedPipe,
        Type::Socket => FileType::Socket,
        Type::Device => FileType::CharDevice,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        crtime: time(attr.ctime),
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.links,
        uid: attr.owner.uid,
        gid: attr.owner.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// An entry that says "nothing here": nodeid 0 with a TTL, which the kernel keeps.
pub(super) fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(NodeId::NONE.0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub(super) fn times(atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>) -> Option<Timestamps> {
    if atime.is_none() && mtime.is_none() {
        return None;
    }
    let spec = |time: Option<TimeOrNow>| match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(TimeOrNow::SpecificTime(at)) => match at.duration_since(UNIX_EPOCH) {
            Ok(since) => Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() },
            // fuser 0.18 takes the nanoseconds off where they must be added: -1.5 s arrives as -2.5 s.
            Err(before) => {
                let before = before.duration();
                Timespec { tv_sec: -(before.as_secs() as i64), tv_nsec: before.subsec_nanos().into() }
            }
        },
    };
    Some(Timestamps { last_access: spec(atime), last_modification: spec(mtime) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_those_of_the_stamp() {
        let before = time(Stamp { second: -2, nanos: 500_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(before).expect("before"), Duration::from_millis(1500));
        assert_eq!(time(Stamp { second: 3, nanos: 7 }), UNIX_EPOCH + Duration::new(3, 7));
    }
}
