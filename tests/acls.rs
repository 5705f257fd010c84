//! Access lists (POSIX ACLs) in a scope, as on a plain directory; and refused, where they are not switched on.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::user::WWW_DATA;
use support::{Rig, skip_mounted};

fn mounted(acls: bool, top_mode: u32) -> Rig {
    let mut rig = Rig::with_limit(Duration::from_secs(120));
    rig.ok(&["init", rig.store.to_str().unwrap(), "--writable", "media"]);
    rig.setting("serve", "acls", if acls { "true" } else { "false" });
    let source = rig.src.join("1");
    fs::create_dir_all(source.join("media/theme")).unwrap();
    fs::write(source.join("media/theme/logo"), "logo").unwrap();
    fs::write(source.join("page"), "page").unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(top_mode)).unwrap();
    rig.ok(&["add", "1", source.to_str().unwrap()]);
    rig.mount();
    rig
}

fn setfacl(dir: &Path, words: &[&str]) -> Result<(), String> {
    let output = Command::new("setfacl").args(words).current_dir(dir).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn getfacl(dir: &Path, name: &str) -> String {
    let output = Command::new("getfacl").args(["-n", name]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the web server's user may do to some names, and what their lists and modes are.
fn outcome(dir: &Path) -> Vec<String> {
    let tried = WWW_DATA.work_in(dir, || {
        let mut tried = Vec::new();
        for name in ["shared", "closed", "theme/logo", "inbox/from-root", "inbox/sub"] {
            tried.push(format!("read {name}: {:?}", fs::read(name).map_err(|error| error.raw_os_error())));
            let appended = File::options().append(true).open(name).map(drop);
            tried.push(format!("append to {name}: {:?}", appended.map_err(|error| error.raw_os_error())));
        }
        let made = fs::write("inbox/made", "made").map_err(|error| error.raw_os_error());
        tried.push(format!("make in inbox: {made:?}"));
        tried.push(format!("make beside: {:?}", fs::write("made", "made").map_err(|error| error.raw_os_error())));
        tried
    });
    let names = ["shared", "closed", "theme", "theme/logo", "inbox", "inbox/from-root", "inbox/sub", "inbox/made"];
    let lists = names.map(|name| getfacl(dir, name));
    let modes = names.map(|name| format!("{name} {:o}", fs::metadata(dir.join(name)).unwrap().mode()));
    tried.into_iter().chain(lists).chain(modes).collect()
}

/// Gives and takes rights by lists; the kernel and setfacl see to the rest.
fn give_and_take(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    for (name, mode) in [("shared", 0o600), ("closed", 0o644)] {
        fs::write(dir.join(name), name).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(dir.join("inbox")).unwrap();
    setfacl(dir, &["-m", "u:33:rw", "shared"]).unwrap();
    setfacl(dir, &["-m", "u:33:-", "closed"]).unwrap();
    setfacl(dir, &["-m", "u:33:rw", "theme/logo"]).unwrap();
    setfacl(dir, &["-m", "u:33:rwx,d:u:33:rwx,d:g::r-x,d:o::-", "inbox"]).unwrap();
    // The umask does not count where a list is handed down.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    fs::write(dir.join("inbox/from-root"), "from root").unwrap();
    fs::create_dir(dir.join("inbox/sub")).unwrap();
    rustix::process::umask(umask);
    fs::set_permissions(dir.join("inbox/sub"), fs::Permissions::from_mode(0o750)).unwrap();
    setfacl(dir, &["-x", "u:33", "theme/logo"]).unwrap();
}

#[test]
fn access_lists_in_a_scope_do_what_they_do_in_a_plain_directory() {
    if skip_mounted() {
        return;
    }
    let rig = mounted(true, 0o755);
    let (scope, plain) = (rig.mnt.join("media"), rig.root().join("plain"));
    assert!(Command::new("cp").arg("-a").arg(rig.src.join("1/media")).arg(&plain).status().unwrap().success());
    for dir in [&scope, &plain] {
        give_and_take(dir);
    }
    let (here, there) = (outcome(&scope), outcome(&plain));
    assert_eq!(here, there);
    assert!(here.iter().any(|line| line == "append to shared: Ok(())"), "{here:#?}");
    assert!(here.iter().any(|line| line == "read closed: Err(Some(13))"), "{here:#?}");
    // Files of a release have none, and everybody may read what modes let them.
    let page = rig.mnt.join("page");
    assert!(getfacl(&rig.mnt, "page").contains("other::r--"));
    assert_eq!(
        WWW_DATA.work_in(&rig.mnt, || fs::read(&page).ok().or_else(|| fs::read("page").ok())),
        Some(b"page".to_vec())
    );
    assert!(setfacl(&rig.mnt, &["-m", "u:33:rw", "page"]).is_err());
}

#[test]
fn access_lists_that_are_not_switched_on_are_refused() {
    if skip_mounted() {
        return;
    }
    let rig = mounted(false, 0o755);
    fs::write(rig.mnt.join("media/file"), "file").unwrap();
    let refused = setfacl(&rig.mnt.join("media"), &["-m", "u:33:rw", "file"]).unwrap_err();
    assert!(refused.contains("Operation not supported"), "{refused}");
}

#[test]
fn under_a_top_directory_without_rights_of_its_group_lists_are_not_asked_for_again_and_again() {
    if skip_mounted() {
        return;
    }
    let rig = mounted(true, 0o705);
    let asked = || rig.json(&["status"])["upcalls"]["getxattr"].as_u64().unwrap();
    let open_often = || WWW_DATA.work_in(&rig.mnt, || (0..100).for_each(|_| drop(fs::read("page").unwrap())));
    open_often();
    let before = asked();
    open_often();
    assert_eq!(asked(), before);
}
