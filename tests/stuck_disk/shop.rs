//! The store of these tests: two releases of a thousand files of code and some in the scope, and uploads that were
//! there before. Its uploads lie where the test says.

use super::support::deadline;
use super::support::tree::{Entry, Tree};
use super::support::{Rig, chance::Chance};
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files of code in a release.
pub const CODE: usize = 1000;
/// Uploads in each directory of `UPLOADS`.
pub const EACH: usize = 64;
/// Directories of uploads that nobody writes to.
pub const UPLOADS: [&str; 3] = ["quiet-0", "quiet-1", "quiet-2"];
/// The web server's user.
const WEB: u32 = 33;
/// More than all tests of one mount together take.
const LIMIT: Duration = Duration::from_secs(280);

/// See the head of this file.
pub struct Shop {
    pub rig: Rig,
    home: PathBuf,
}

impl Shop {
    /// A store without a release and without uploads; nothing is mounted.
    pub fn new() -> Shop {
        let rig = Rig::with_limit(LIMIT);
        let home = rig.root().join("no home");
        Shop { rig, home }
    }

    /// Makes the store with its uploads at `home`, as it is seen by the daemon; adds what `more` adds to each
    /// release, and the uploads. Nothing is mounted.
    pub fn open(&mut self, home: &Path, more: impl Fn(Tree) -> Tree) {
        self.home = home.to_owned();
        let store = self.rig.store.to_str().unwrap();
        let home = home.to_str().unwrap();
        self.rig.ok(&["init", store, "--media", home, "--writable", "media", "--owner", "www-data:www-data"]);
        self.rig.setting("switch", "share_second", "true");
        for release in ["1", "2"] {
            let mut tree = Tree::new().file("changes", release).file("large", large()).dir("media");
            for number in 0..CODE {
                tree.insert(code_path(number), Entry::File(code(number)));
            }
            self.add(release, &more(tree));
        }
        self.rig.ok(&["switch", "1"]);
        for dir in UPLOADS {
            for number in 0..EACH {
                self.upload(&upload_path(dir, number), &upload(dir, number));
            }
        }
    }

    /// Adds a release whose files in the scope are the web server's.
    fn add(&self, release: &str, tree: &Tree) {
        let source = self.rig.src.join(release);
        tree.write(&source);
        for path in tree.0.keys().filter(|path| path.starts_with(b"media")) {
            chown(source.join(std::str::from_utf8(path).unwrap()), Some(WEB), Some(WEB)).unwrap();
        }
        self.rig.ok(&["add", release, source.to_str().unwrap()]);
    }

    /// Puts an upload where the daemon finds it, behind its back; what it lies in comes by itself.
    pub fn upload(&self, path: &str, content: &[u8]) {
        let (dir, _) = path.rsplit_once('/').unwrap();
        self.dir(dir);
        let at = self.behind(path);
        fs::write(&at, content).unwrap();
        chown(&at, Some(WEB), Some(WEB)).unwrap();
    }

    /// Makes a directory of uploads, and those above it.
    pub fn dir(&self, path: &str) {
        let mut at = self.behind("");
        fs::create_dir_all(&at).unwrap();
        chown(&at, Some(WEB), Some(WEB)).unwrap();
        for part in path.split('/') {
            at.push(part);
            if fs::create_dir(&at).is_ok() {
                chown(&at, Some(WEB), Some(WEB)).unwrap();
            }
        }
    }

    /// Where an upload lies.
    pub fn behind(&self, path: &str) -> PathBuf {
        self.home.join("media/media").join(path)
    }

    /// Where the scope is seen.
    pub fn scope(&self) -> PathBuf {
        self.rig.mnt.join("media")
    }

    /// Mounts; the number of the connection.
    pub fn mount(&mut self) -> u32 {
        self.rig.mount();
        // The kernel asks once whether a close matters (FLUSH). From here on, whoever starts a process asks nobody
        // when that closes its copies of what the test has open.
        fs::read(self.rig.mnt.join("changes")).unwrap();
        deadline::connection_of(&self.rig.mnt).unwrap()
    }

    /// Reads files of the release, each for the first time since the mount.
    pub fn read_code(&self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            let path = self.rig.mnt.join(code_path(number));
            assert!(fs::read(&path).unwrap() == code(number), "{}", path.display());
        }
    }

    /// Reads a file of the release that takes more than one request.
    pub fn read_large(&self) {
        assert!(fs::read(self.rig.mnt.join("large")).unwrap() == large(), "a large file of the release");
    }

    /// Looks at everything in a directory of uploads: the names that are there, some that are not, and the list.
    pub fn look_at_uploads(&self, dir: &str) {
        let at = self.scope().join(dir);
        for number in 0..EACH {
            let path = self.scope().join(upload_path(dir, number));
            let content = upload(dir, number);
            assert_eq!(fs::metadata(&path).unwrap().len(), content.len() as u64, "{}", path.display());
            assert!(fs::read(&path).unwrap() == content, "{}", path.display());
            let missing = at.join(format!("missing-{number}"));
            assert_eq!(fs::metadata(missing).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        }
        assert_eq!(fs::read_dir(&at).unwrap().count(), EACH, "{}", at.display());
    }

    /// The daemon says what it serves.
    pub fn status(&self, release: &str) {
        assert_eq!(self.rig.json(&["status"])["release"], release);
    }

    /// Switches, and sees the other release.
    pub fn switch(&self, release: &str) {
        self.rig.ok(&["switch", release]);
        assert_eq!(fs::read_to_string(self.rig.mnt.join("changes")).unwrap(), release);
    }

    /// Unmounts; then nothing in the store is damaged.
    pub fn umount(&mut self) {
        self.rig.umount();
        self.rig.ok(&["verify"]);
    }
}

fn code_path(number: usize) -> String {
    format!("code/{:02}/{number:03}.php", number / 50)
}

fn code(number: usize) -> Vec<u8> {
    random(number as u64, 300 + number % 5000)
}

fn large() -> Vec<u8> {
    random(0, 3 << 20)
}

/// The path of an upload in a directory of uploads.
pub fn upload_path(dir: &str, number: usize) -> String {
    format!("{dir}/{number:02}.jpg")
}

/// What is in it.
pub fn upload(dir: &str, number: usize) -> Vec<u8> {
    let seed = dir.bytes().fold(number as u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    random(seed, 1000 + number * 211)
}

/// Bytes that do not pack.
pub fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Chance::new(seed).fill(&mut bytes);
    bytes
}
