//! Extended attributes of what an O_PATH descriptor stands for.

use crate::error::Errno;
use std::os::fd::OwnedFd;

/// The names under which access lists are kept (acl(5)): who may, and what is handed down in a directory.
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// Whether an extended attribute is an access list.
pub fn is_acl(name: &[u8]) -> bool {
    ACLS.contains(&name)
}

/// Whether a directory hands an access list down to what is made in it.
pub fn has_default_acl(dir: &OwnedFd) -> rustix::io::Result<bool> {
    match rustix::fs::getxattr(proc_link(dir), ACLS[1], &mut [0; 1 << 12][..]) {
        Ok(len) => Ok(len > 0),
        // A longer list.
        Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The user's extended attributes of what an O_PATH descriptor stands for, and its access lists.
pub fn xattrs(handle: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let link = proc_link(handle);
    let mut names = vec![0; 1 << 16];
    let len = match rustix::fs::listxattr(&link, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for name in names[..len].split(|b| *b == 0).filter(|name| name.starts_with(b"user.") || is_acl(name)) {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::getxattr(&link, name, &mut value[..])?;
        value.truncate(len);
        found.push((name.to_vec(), value));
    }
    Ok(found)
}

/// One extended attribute of what an O_PATH descriptor stands for; `None` if it has none of that name.
pub fn xattr(handle: &OwnedFd, name: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
    // XATTR_SIZE_MAX of include/uapi/linux/limits.h.
    let mut value = vec![0; 1 << 16];
    match rustix::fs::getxattr(proc_link(handle), name, &mut value[..]) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets an extended attribute (value and flags of setxattr(2)), or removes it.
pub fn set_xattr(handle: &OwnedFd, name: &[u8], value: Option<(&[u8], u32)>) -> rustix::io::Result<()> {
    let link = proc_link(handle);
    match value {
        Some((value, flags)) => {
            rustix::fs::setxattr(&link, name, value, rustix::fs::XattrFlags::from_bits_retain(flags))
        }
        None => rustix::fs::removexattr(&link, name),
    }
}

/// An O_PATH descriptor takes no call on attributes; its link in /proc leads to the very file.
pub(in crate::store) fn proc_link(handle: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(handle))
}
