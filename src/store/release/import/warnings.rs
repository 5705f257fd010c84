//! What is allowed in a release and probably not meant.

use super::show;
use super::walk::Walk;
use crate::tree::{Kind, Owner};
use nix::unistd::{Gid, User, getgrouplist};
use std::ffi::CString;

/// Names under which web servers run.
const WEB_USERS: [&str; 4] = ["www-data", "apache", "nginx", "http"];
/// How many names a warning lists.
const LISTED: usize = 5;

struct WebUser {
    name: &'static str,
    uid: u32,
    groups: Vec<u32>,
}

/// Warnings about a walk, each a sentence.
pub(super) fn of(walk: &Walk) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(user) = web_user() {
        let unreadable = unreadable(walk, &user);
        if !unreadable.is_empty() {
            warnings.push(format!(
                "{} cannot read {}; change their mode, or say --owner or --mode",
                user.name,
                some(&unreadable)
            ));
        }
    }
    let symlinks = (0..walk.found.len()).filter(|number| walk.found[*number].node.kind == Kind::Symlink);
    let outside: Vec<Vec<u8>> = symlinks
        .map(|number| (walk.path(number), &walk.found[number].node.target))
        .filter(|(path, target)| leads_out(path, target))
        .map(|(path, _)| path)
        .collect();
    if !outside.is_empty() {
        warnings.push(format!("{} lead out of the release: what they show is not frozen with it", some(&outside)));
    }
    warnings
}

fn some(paths: &[Vec<u8>]) -> String {
    let names: Vec<String> = paths.iter().take(LISTED).map(|path| show(path)).collect();
    match paths.len().saturating_sub(LISTED) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

fn web_user() -> Option<WebUser> {
    WEB_USERS.into_iter().find_map(|name| {
        known(name).unwrap_or_else(|error| {
            log::warn!("looking for the user {name}: {error}; nothing is said of what the web server may not read");
            None
        })
    })
}

fn known(name: &'static str) -> nix::Result<Option<WebUser>> {
    let Some(user) = User::from_name(name)? else { return Ok(None) };
    // No name in the list has a NUL.
    let groups = getgrouplist(&CString::new(name).map_err(|_| nix::Error::EINVAL)?, user.gid)?;
    Ok(Some(WebUser { name, uid: user.uid.as_raw(), groups: groups.into_iter().map(Gid::as_raw).collect() }))
}

/// What the user cannot reach or read; below a directory that is closed only the directory is named.
fn unreadable(walk: &Walk, user: &WebUser) -> Vec<Vec<u8>> {
    let mut closed = vec![false; walk.found.len()];
    let mut out = Vec::new();
    for (number, found) in walk.found.iter().enumerate() {
        if number > 0 && closed[found.parent as usize] {
            closed[number] = true;
            continue;
        }
        let needs = match found.node.kind {
            Kind::Dir => 0o1,
            Kind::File => 0o4,
            Kind::Symlink => continue,
        };
        if user.bits(found.node.owner, found.node.mode) & needs != needs {
            closed[number] = true;
            out.push(if number == 0 { b".".to_vec() } else { walk.path(number) });
        }
    }
    out
}

impl WebUser {
    fn bits(&self, owner: Owner, mode: u16) -> u16 {
        if self.uid == owner.uid {
            mode >> 6 & 7
        } else if self.groups.contains(&owner.gid) {
            mode >> 3 & 7
        } else {
            mode & 7
        }
    }
}

/// Whether a symlink at `path` points outside the tree, as its text says.
fn leads_out(path: &[u8], target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return true;
    }
    let mut depth = path.split(|b| *b == b'/').count() as i64 - 1;
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => depth -= 1,
            _ => depth += 1,
        }
        if depth < 0 {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_that_leave_the_tree_are_told_from_those_that_stay() {
        for (path, target, out) in [
            (&b"a"[..], &b"b"[..], false),
            (b"a", b"..", true),
            (b"d/a", b"../b", false),
            (b"d/a", b"../../b", true),
            (b"d/a", b"x/../../../etc", true),
            (b"a", b"/etc/passwd", true),
            (b"a", b"./b//c", false),
        ] {
            assert_eq!(leads_out(path, target), out, "{} -> {}", show(path), show(target));
        }
    }

    #[test]
    fn permission_is_that_of_the_first_class_that_fits() {
        let user = WebUser { name: "w", uid: 33, groups: vec![33, 50] };
        assert_eq!(user.bits(Owner { uid: 33, gid: 0 }, 0o074), 0);
        assert_eq!(user.bits(Owner { uid: 0, gid: 50 }, 0o740), 4);
        assert_eq!(user.bits(Owner { uid: 0, gid: 0 }, 0o701), 1);
    }
}
