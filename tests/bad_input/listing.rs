//! Everything in a directory, contents by their hash: what it takes to say that nothing changed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Paths below a directory, and kind, mode, owner and content of what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing(BTreeMap<PathBuf, String>);

impl Listing {
    /// Lists a store. The log of a daemon that has no syslog may grow, so it does not count.
    pub fn of(store: &Path) -> Listing {
        let mut listing = Listing(BTreeMap::new());
        if store.exists() {
            listing.walk(store, Path::new(""));
        }
        listing.0.remove(Path::new("verfs.log"));
        listing
    }

    /// The listing without what lies at or below these paths.
    pub fn without(mut self, paths: &[&str]) -> Listing {
        self.0.retain(|path, _| !paths.iter().any(|skipped| path.starts_with(skipped)));
        self
    }

    /// The paths at or below `top`.
    pub fn below(&self, top: &str) -> Vec<&Path> {
        let paths = self.0.keys().filter(|path| path.starts_with(top));
        paths.map(PathBuf::as_path).collect()
    }

    /// Fails with the differences, if there are any.
    pub fn assert_same_as(&self, later: &Listing, what: &str) {
        let mut differences = String::new();
        for (path, was) in &self.0 {
            match later.0.get(path) {
                None => writeln!(differences, "gone:    {} {was}", path.display()),
                Some(is) if is != was => {
                    writeln!(differences, "changed: {} {was} -> {is}", path.display())
                }
                Some(_) => Ok(()),
            }
            .unwrap();
        }
        for (path, is) in &later.0 {
            if !self.0.contains_key(path) {
                writeln!(differences, "new:     {} {is}", path.display()).unwrap();
            }
        }
        assert!(differences.is_empty(), "{what} changed the disk:\n{differences}");
    }

    fn walk(&mut self, root: &Path, dir: &Path) {
        for entry in fs::read_dir(root.join(dir)).unwrap() {
            let path = dir.join(entry.unwrap().file_name());
            let whole = root.join(&path);
            let meta = fs::symlink_metadata(&whole).unwrap();
            let kind = meta.file_type();
            let holds = if kind.is_file() {
                let mut hasher = blake3::Hasher::new();
                hasher.update_reader(fs::File::open(&whole).unwrap()).unwrap();
                format!("file {} {}", meta.len(), hasher.finalize())
            } else if kind.is_symlink() {
                format!("symlink {}", fs::read_link(&whole).unwrap().display())
            } else if kind.is_socket() {
                "socket".to_owned()
            } else {
                assert!(kind.is_dir(), "{}: {kind:?}", whole.display());
                self.walk(root, &path);
                "dir".to_owned()
            };
            let line = format!("{:o} {}:{} {holds}", meta.mode() & 0o7777, meta.uid(), meta.gid());
            self.0.insert(path, line);
        }
    }
}
