//! `mount.verfs`: the language of mount(8)'s helpers, so that a line of fstab works.

use super::namespace::run;
use super::support::deadline::connection_of;
use super::support::tree::Tree;
use super::support::{self, Rig};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn store() -> (Rig, PathBuf) {
    let rig = Rig::new();
    rig.init();
    rig.add("01", &Tree::new().file("index.html", "one"));
    let helper = rig.root().join("mount.verfs");
    symlink(env!("CARGO_BIN_EXE_verfs"), &helper).unwrap();
    (rig, helper)
}

fn call(helper: &Path, args: &[&str]) -> Output {
    Command::new("timeout")
        .arg("60")
        .arg(helper)
        .args(args)
        .env_remove("VERFS_STORE")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_helper_mounts_with_the_options_that_mount_passes_on() {
    if support::skip_mounted() {
        return;
    }
    let (rig, helper) = store();
    let (store, mnt) = (shown(&rig.store), shown(&rig.mnt));
    let calls: [&[&str]; 5] = [
        &[store, mnt],
        &[store, mnt, "-o", "rw"],
        &[store, mnt, "-o", "rw,noauto,nofail,_netdev,x-systemd.requires=network.target,noatime"],
        &[store, mnt, "-n", "-v", "-o", "rw,noexec"],
        &[store, mnt, "-s", "-o", "rw,some-unknown-option"],
    ];
    for args in calls {
        let output = call(&helper, args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        let _watch = super::watch::watch(&rig.mnt, None);
        assert_eq!(fs::read(rig.mnt.join("index.html")).unwrap(), b"one");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(mnt)).unwrap();
        assert_eq!(line.contains("noexec"), args.join(" ").contains("noexec"), "{line}");
        rig.ok(&["umount", mnt]);
    }
}

#[test]
fn the_helper_mounts_nothing_when_it_is_told_to_pretend() {
    if support::skip_mounted() {
        return;
    }
    let (rig, helper) = store();
    let output = call(&helper, &[shown(&rig.store), shown(&rig.mnt), "-f"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(connection_of(&rig.mnt), None);
}

/// mount(8), EXIT STATUS: 1 is a wrong call, 32 a mount that failed.
#[test]
fn the_exit_codes_of_the_helper_are_those_of_mount() {
    if support::skip_mounted() {
        return;
    }
    let (mut rig, helper) = store();
    let (store, mnt) = (shown(&rig.store).to_owned(), shown(&rig.mnt).to_owned());
    let other = rig.root().join("other");
    fs::create_dir(&other).unwrap();
    let missing = rig.root().join("missing");
    let wrong: [&[&str]; 4] =
        [&[&store], &[&store, &mnt, "--no-such-option"], &[&store, &mnt, "-o", "colour=blue"], &[shown(&other), &mnt]];
    for args in wrong {
        let output = call(&helper, args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{args:?} said nothing");
        assert_eq!(connection_of(&rig.mnt), None);
    }
    rig.mount();
    let output = call(&helper, &[&store, shown(&other)]);
    assert_eq!(output.status.code(), Some(32), "a store in use: {output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use"), "{output:?}");
    rig.umount();
    // From the background too the code is that of mount(8), not that of verfs.
    let output = call(&helper, &[&store, shown(&missing)]);
    let code = output.status.code();
    assert!(matches!(code, Some(1 | 32)), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(shown(&missing)), "{output:?}");
}

#[test]
fn mount_with_type_verfs_and_a_line_of_fstab_work() {
    if support::skip_mounted() {
        return;
    }
    let (rig, _) = store();
    // In this namespace /sbin has nothing but the helper, and /etc/fstab nothing but one line.
    let script = r#"
        mount -t tmpfs none /sbin || exit 9
        ln -s "$VERFS" /sbin/mount.verfs
        echo "$1 $2 verfs nofail,noatime,x-systemd.automount 0 0" >"$3"
        mount --bind "$3" /etc/fstab || exit 8
        mount -t verfs "$1" "$2" -o noatime,nofail >/dev/null; echo "by type: $?"
        cat "$2/index.html"; echo
        umount "$2"; echo "umount: $?"
        for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            # umount(8) comes back before the daemon has let go of the store.
            mount "$2" >/dev/null 2>"$3.said"; code=$?
            grep -q 'in use' "$3.said" || break
            sleep 0.1
        done; cat "$3.said"; echo "by fstab: $code"
        cat "$2/index.html"; echo
        "$VERFS" umount "$2" >/dev/null; echo "verfs umount: $?"
        mount -t verfs "$1" /no/such/mountpoint; echo "no mountpoint: $?"
        mount -t verfs /no/such/store "$2"; echo "no store: $?"
        "#;
    let fstab = rig.root().join("fstab");
    fs::write(&fstab, "").unwrap();
    if !Path::new("/etc/fstab").exists() {
        eprintln!("skipped: this machine has no /etc/fstab to put another in the place of");
        return;
    }
    let said = run(script, &[shown(&rig.store), shown(&rig.mnt), shown(&fstab)]);
    let lines: Vec<&str> = said.stdout.lines().collect();
    let expected = ["by type: 0", "one", "umount: 0", "by fstab: 0", "one", "verfs umount: 0"];
    assert_eq!(lines[..6], expected, "{said:?}");
    assert!(["no mountpoint: 1", "no mountpoint: 32"].contains(&lines[6]), "{said:?}");
    assert!(["no store: 1", "no store: 32"].contains(&lines[7]), "{said:?}");
    assert!(said.stderr.contains("/no/such/store"), "{said:?}");
}
