//! The trees that are served and added: the same for the same numbers, on every machine.

use super::chance::Chance;
use super::stage::{Outcome, Stage};
use super::verfs::Store;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Files of a directory.
pub const FANOUT: usize = 100;

/// Words that PHP files are full of: the text packs about as well as theirs, for the peers that compress.
const WORDS: [&str; 16] = [
    "<?php\n",
    "function ",
    "$this->",
    "return ",
    "array(",
    ");\n",
    "foreach (",
    "if (",
    "public static ",
    "namespace ",
    " => ",
    "'value'",
    "/** @var string */\n",
    "self::",
    "isset($",
    "\n}\n\n",
];

/// Where file number `i` stands in every tree: three names deep, 100 in a directory, 100 directories in one above.
pub fn path_of(i: usize) -> PathBuf {
    PathBuf::from(format!("module-{}/part-{}/file-{i}.php", i / (FANOUT * 100), (i / FANOUT) % 100))
}

/// What sizes the files of a tree have.
#[derive(Clone, Copy)]
pub enum Sizes {
    /// As in a real PHP tree: half are under 3 KiB, one of a hundred is over 40.
    Php,
    /// All the same.
    Bytes(usize),
}

/// Writes file number `i` in one of its editions; no two have the same content.
pub fn write_file(root: &Path, i: usize, edition: usize, sizes: Sizes) -> Outcome<()> {
    let mut random = Chance::new((i * 64 + edition) as u64 + 1);
    let size = match sizes {
        Sizes::Bytes(size) => size,
        // Twelve even numbers make a normal one; the median of its exponential is 3 KiB.
        Sizes::Php => {
            let normal = (0..12).map(|_| random.share()).sum::<f64>() - 6.0;
            ((3072.0 * (1.15 * normal).exp()) as usize).clamp(40, 400_000)
        }
    };
    let mut text = format!("<?php // file {i}, edition {edition}, {:016x}\n", random.next());
    while text.len() < size {
        let mut word = random.next();
        for _ in 0..12 {
            text.push_str(WORDS[(word & 15) as usize]);
            word >>= 4;
        }
        text.push_str(&format!("{word:x}"));
    }
    text.truncate(size.max(40));
    let path = root.join(path_of(i));
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Writes a whole tree.
pub fn write(stage: &Stage, root: &Path, files: usize, sizes: Sizes) -> Outcome<()> {
    for i in 0..files {
        if i % FANOUT == 0 {
            stage.go_on()?;
            let path = root.join(path_of(i));
            fs::create_dir_all(path.parent().unwrap_or(root))?;
        }
        write_file(root, i, 0, sizes)?;
    }
    Ok(())
}

/// Writes another edition of `changed` of the files, spread evenly from the `first` on.
pub fn change(root: &Path, files: usize, changed: usize, edition: usize, first: usize, sizes: Sizes) -> Outcome<()> {
    for k in 0..changed {
        write_file(root, (k * files / changed + first) % files, edition, sizes)?;
    }
    Ok(())
}

/// All regular files below a directory.
pub fn files_below(root: &Path) -> Outcome<Vec<PathBuf>> {
    let (mut files, mut stack) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = stack.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                stack.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// The number of files below a directory, each asked for its attributes, as `find` with a condition does it.
pub fn walk(stage: &Stage, root: &Path) -> Outcome<usize> {
    let (mut files, mut stack) = (0, vec![root.to_owned()]);
    while let Some(directory) = stack.pop() {
        stage.go_on()?;
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if fs::symlink_metadata(&path)?.is_dir() {
                stack.push(path);
            } else {
                files += 1;
            }
        }
    }
    Ok(files)
}

/// A store with the releases 01 and 02, which differ in some files; 02 was added last, 01 is active.
pub struct Pair {
    pub store: Store,
    pub files: usize,
    /// Seconds that the two `add` took.
    pub added: [f64; 2],
    _directory: TempDir,
}

impl Pair {
    pub fn new(stage: &Stage, files: usize, changed: usize, sizes: Sizes) -> Outcome<Pair> {
        // Source and objects; a block for each small file, and inodes.
        stage.needs_disk(files as u64 * 2 * (4096 + 512))?;
        stage.say(&format!("a tree of {files} files, and one with {changed} changed"));
        let directory = stage.directory()?;
        let source = directory.path().join("source");
        write(stage, &source, files, sizes)?;
        let store = Store::init(stage, directory.path().join("store"))?;
        let first = store.add("01", &source)?;
        change(&source, files, changed, 1, 0, sizes)?;
        let second = store.add("02", &source)?;
        store.run(&["switch", "01"])?;
        fs::remove_dir_all(&source)?;
        let added = [first, second].map(|answer| answer["call_us"].as_f64().map_or(f64::NAN, |us| us / 1e6));
        Ok(Pair { store, files, added, _directory: directory })
    }
}

/// The largest tree of this run: 1,000,000 files, or 20,000 in a quick one. 100 of them differ.
pub fn largest(stage: &Stage) -> Outcome<&Pair> {
    if stage.largest.get().is_none() {
        let pair = Pair::new(stage, stage.size(20_000, 1_000_000), 100, Sizes::Bytes(256))?;
        let _ = stage.largest.set(pair);
    }
    stage.largest.get().ok_or_else(|| "the largest tree was just made".into())
}
