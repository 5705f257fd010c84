//! Visitors of a web site that switches, and the judge of what they were served.
//!
//! Owns: a keep-alive HTTP/1.1 client, the truth about each release, the timeline of the switches, and the verdict on every answer.
//! The rule: an answer is right if it is exactly what *some release that was active during the request* says of that path.
//! The tests and the example `visitors` share this file; it knows nothing of verfs, only of releases and of the times when one gives way to another.

use crate::chance::Chance;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

/// No answer within this time counts as a failed request.
const PATIENCE: Duration = Duration::from_secs(20);
/// An answer larger than this is no file of any site we test (bytes).
const LARGEST_BODY: usize = 1 << 30;
/// So many complaints are kept word for word; the rest is only counted.
const COMPLAINTS_KEPT: usize = 12;

// ---------------------------------------------------------------- client

/// One connection that is kept open from request to request. An error closes it, and nothing is ever sent twice.
pub struct Client {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

/// What came back.
pub struct Response {
    pub status: u16,
    pub etag: Option<String>,
    pub last_modified: Option<String>,
    pub body: Vec<u8>,
    /// `Content-Length`, if there was one.
    pub promised: Option<usize>,
    /// False if the connection ended in the middle of the body.
    pub whole: bool,
}

/// Validators of an earlier answer, sent along so that the server may say 304.
#[derive(Default)]
pub struct Validators<'a> {
    pub etag: Option<&'a str>,
    pub last_modified: Option<&'a str>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Client { address, stream: None }
    }

    /// `GET path`. `path` is bytes-as-text from a URL's point of view; it is percent-encoded here.
    pub fn get(&mut self, path: &str, validators: &Validators<'_>) -> io::Result<Response> {
        let answer = self.exchange(path, validators);
        if !matches!(&answer, Ok((_, true))) {
            self.stream = None;
        }
        answer.map(|(response, _)| response)
    }

    /// What is served at `path` now; none if nothing is.
    pub fn body(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let response = self.get(path, &Validators::default())?;
        match response.status {
            200 if response.whole => Ok(Some(response.body)),
            404 => Ok(None),
            status => Err(bad(format!("{path}: status {status}, whole: {}", response.whole))),
        }
    }

    /// The answer, and whether the connection can be used again.
    fn exchange(&mut self, path: &str, validators: &Validators<'_>) -> io::Result<(Response, bool)> {
        let stream = match self.stream.take() {
            Some(stream) => self.stream.insert(stream),
            None => {
                let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                self.stream.insert(BufReader::with_capacity(64 * 1024, stream))
            }
        };
        let mut request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", encode(path), self.address);
        if let Some(etag) = validators.etag {
            let _ = write!(request, "If-None-Match: {etag}\r\n");
        }
        if let Some(time) = validators.last_modified {
            let _ = write!(request, "If-Modified-Since: {time}\r\n");
        }
        request.push_str("\r\n");
        stream.get_mut().write_all(request.as_bytes())?;
        read_response(stream)
    }
}

fn bad(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    stream.take(64 * 1024).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended in the header"));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| bad("a header that is not UTF-8"))
}

fn read_response(stream: &mut impl BufRead) -> io::Result<(Response, bool)> {
    let line = read_line(stream)?;
    let status = line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| bad(format!("no HTTP status line: {line:?}")))?;
    let mut response =
        Response { status, etag: None, last_modified: None, body: Vec::new(), promised: None, whole: true };
    let (mut keep, mut chunked) = (true, false);
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad(format!("no header: {line:?}")))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let length = value.parse().ok().filter(|&n| n <= LARGEST_BODY);
                response.promised = Some(length.ok_or_else(|| bad(format!("Content-Length: {value}")))?);
            }
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => keep = !value.eq_ignore_ascii_case("close"),
            "etag" => response.etag = Some(value.to_owned()),
            "last-modified" => response.last_modified = Some(value.to_owned()),
            _ => {}
        }
    }
    if status == 304 || status == 204 {
        return Ok((response, keep));
    }
    if chunked {
        loop {
            let line = read_line(stream)?;
            let size = usize::from_str_radix(line.split(';').next().unwrap_or(""), 16)
                .ok()
                .filter(|&n| n <= LARGEST_BODY)
                .ok_or_else(|| bad(format!("no chunk size: {line:?}")))?;
            let wanted = response.body.len() + size;
            stream.take(size as u64).read_to_end(&mut response.body)?;
            if response.body.len() < wanted {
                response.whole = false;
                return Ok((response, false));
            }
            read_line(stream)?;
            if size == 0 {
                return Ok((response, keep));
            }
        }
    }
    let Some(length) = response.promised else {
        stream.read_to_end(&mut response.body)?;
        return Ok((response, false));
    };
    response.body.reserve_exact(length);
    // A reset in the middle of a body is a body cut short, like an early end.
    let ended = stream.take(length as u64).read_to_end(&mut response.body);
    response.whole = ended.is_ok() && response.body.len() == length;
    let keep = keep && response.whole;
    Ok((response, keep))
}

/// Percent-encodes what may not stand in a request line.
fn encode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(byte as char),
            b'/' | b'-' | b'.' | b'_' | b'~' | b'=' | b'+' | b',' => out.push(byte as char),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

// ---------------------------------------------------------------- releases and manifests

/// A release as a web server shows it: URL path to body. `/dir/` stands for `/dir/index.html`.
pub struct Release {
    pub name: String,
    pub pages: BTreeMap<String, Vec<u8>>,
}

impl Release {
    pub fn new(name: &str) -> Self {
        Release { name: name.to_owned(), pages: BTreeMap::new() }
    }

    /// Adds what is served at `path`, and at the directory's own path if it is an index.
    pub fn insert(&mut self, path: String, body: Vec<u8>) {
        if let Some(directory) = path.strip_suffix("index.html")
            && directory.ends_with('/')
        {
            self.pages.insert(directory.to_owned(), body.clone());
        }
        self.pages.insert(path, body);
    }

    /// Reads a directory tree. Names that start with `.ht` are never served, and left out.
    pub fn read(name: &str, root: &Path) -> io::Result<Self> {
        let mut release = Release::new(name);
        for (path, body) in files(root)? {
            release.insert(path, body);
        }
        Ok(release)
    }

    /// True if the path is a directory here, whether it has an index or not.
    fn is_directory(&self, path: &str) -> bool {
        let below = format!("{}/", path.trim_end_matches('/'));
        let next = self.pages.range(below.clone()..).next();
        next.is_some_and(|(name, _)| name.starts_with(&below))
    }
}

/// Every served file below `root`, by URL path.
fn files(root: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(root.to_path_buf(), String::new())];
    while let Some((directory, url)) = todo.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let name =
                entry.file_name().into_string().map_err(|name| bad(format!("a name that no URL can say: {name:?}")))?;
            if name.starts_with(".ht") {
                continue;
            }
            let path = format!("{url}/{name}");
            // Symlinks are followed, as the server does.
            if fs::metadata(entry.path())?.is_dir() {
                todo.push((entry.path(), path));
            } else {
                found.insert(path, fs::read(entry.path())?);
            }
        }
    }
    Ok(found)
}

/// One line of `manifest.txt`: `HASH  SIZE  PATH`, the hash being BLAKE3 in hex, the path without its leading slash.
pub struct ManifestLine {
    pub hash: String,
    pub size: usize,
    pub path: String,
}

/// The manifest of everything that `root` serves, but for the manifest itself.
pub fn manifest_of(root: &Path) -> io::Result<String> {
    Ok(manifest_text(&files(root)?))
}

/// The manifest of these files.
pub fn manifest_text(pages: &BTreeMap<String, Vec<u8>>) -> String {
    let mut text = String::new();
    for (path, body) in pages {
        if path != "/manifest.txt" && !path.ends_with('/') {
            let hash = blake3::hash(body).to_hex();
            let _ = writeln!(text, "{hash}  {}  {}", body.len(), &path[1..]);
        }
    }
    text
}

pub fn parse_manifest(body: &[u8]) -> io::Result<Vec<ManifestLine>> {
    let text = std::str::from_utf8(body).map_err(|_| bad("a manifest that is not UTF-8"))?;
    text.lines()
        .map(|line| {
            let mut words = line.splitn(3, "  ");
            let parsed = (|| {
                Some(ManifestLine {
                    hash: words.next()?.to_owned(),
                    size: words.next()?.parse().ok()?,
                    path: format!("/{}", words.next()?),
                })
            })();
            parsed.ok_or_else(|| bad(format!("no line of a manifest: {line:?}")))
        })
        .collect()
}

// ---------------------------------------------------------------- timeline and verdict

/// Which release was active when. Position 0 is the one that was served at the start; each switch adds a position.
pub struct Timeline {
    order: RwLock<Vec<usize>>,
    started: AtomicUsize,
    finished: AtomicUsize,
}

impl Timeline {
    fn new(first: usize) -> Self {
        Timeline { order: RwLock::new(vec![first]), started: AtomicUsize::new(0), finished: AtomicUsize::new(0) }
    }

    /// To be called before the switch to `release` (an index into the site's releases) is asked for.
    pub fn begin(&self, release: usize) {
        let mut order = self.order.write().unwrap_or_else(PoisonError::into_inner);
        order.push(release);
        self.started.store(order.len() - 1, SeqCst);
    }

    /// To be called after the switch has answered that it is done.
    pub fn finish(&self) {
        self.finished.store(self.started.load(SeqCst), SeqCst);
    }

    /// How many switches have finished.
    pub fn switches(&self) -> usize {
        self.finished.load(SeqCst)
    }

    fn during(&self, low: usize, high: usize) -> Vec<usize> {
        let order = self.order.read().unwrap_or_else(PoisonError::into_inner);
        order[low..=high].to_vec()
    }
}

/// What an answer was worth.
pub enum Verdict {
    /// Right, and the body is that of this release (none for a 404 that is right).
    Right(Option<usize>),
    /// No answer, an error, or a 404 for a path that every active release has.
    Failed(String),
    /// A body that is of no release, or only a part of one.
    Torn(String),
    /// The length of one active release and the body of another: Apache looks a file up twice, first for its length and then to open it, and the
    /// switch fell in between. So it does with every way of replacing a file; counted apart from what only a file system could have torn.
    Crossed(String),
    /// The body (or the 304) of a release that was no longer active when the request started.
    Stale(String),
}

/// The releases of a site, and the switches among them.
pub struct Site {
    pub releases: Vec<Release>,
    pub timeline: Timeline,
    /// Requests that all visitors together have made so far.
    pub answered: AtomicU64,
    paths: Vec<String>,
}

impl Site {
    /// `first` is the release that is served now.
    pub fn new(releases: Vec<Release>, first: usize) -> Self {
        let paths: BTreeSet<String> = releases.iter().flat_map(|release| release.pages.keys().cloned()).collect();
        Site {
            releases,
            timeline: Timeline::new(first),
            answered: AtomicU64::new(0),
            paths: paths.into_iter().collect(),
        }
    }

    /// Every path that any release serves, in order.
    pub fn paths(&self) -> &[String] {
        &self.paths
    }

    fn names(&self, window: &[usize]) -> String {
        let names: Vec<_> = window.iter().map(|&release| self.releases[release].name.as_str()).collect();
        names.join(", ")
    }

    /// `window`: the releases that were active during the request. `held`: the release whose body the validators were taken from.
    pub fn judge(&self, path: &str, window: &[usize], held: Option<usize>, answer: &io::Result<Response>) -> Verdict {
        let active = self.names(window);
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                let text = format!("{path}: {error} (active: {active})");
                let closed = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
                return if closed && self.shrinks(path, window) {
                    Verdict::Crossed(text)
                } else {
                    Verdict::Failed(text)
                };
            }
        };
        let body_in = |release: usize| self.releases[release].pages.get(path);
        match response.status {
            200 => {
                let matches = |release: &usize| body_in(*release) == Some(&response.body);
                if response.whole {
                    if let Some(&release) = window.iter().find(|release| matches(release)) {
                        return Verdict::Right(Some(release));
                    }
                    if let Some(release) = (0..self.releases.len()).find(matches) {
                        let name = &self.releases[release].name;
                        return Verdict::Stale(format!("{path}: the body of release {name} while active: {active}"));
                    }
                }
                let text = self.tear(path, window, response);
                if self.is_crossed(path, window, response) { Verdict::Crossed(text) } else { Verdict::Torn(text) }
            }
            304 => match held {
                Some(held) if window.iter().any(|&release| body_in(release) == body_in(held)) => {
                    Verdict::Right(Some(held))
                }
                Some(held) => Verdict::Stale(format!(
                    "{path}: 304 to a visitor who holds release {} while active: {active}",
                    self.releases[held].name
                )),
                None => Verdict::Failed(format!("{path}: 304, and no validator was sent")),
            },
            // A directory without its slash, where an active release has a directory.
            301 if window.iter().any(|&release| self.releases[release].is_directory(path)) => Verdict::Right(None),
            404 if window.iter().any(|&release| body_in(release).is_none()) => Verdict::Right(None),
            // Apache looks a file up twice: gone in between is its "forbidden". Right only for a request that saw a switch to a release without the path.
            403 if window.len() > 1 && window.iter().any(|&release| body_in(release).is_none()) => Verdict::Right(None),
            status => Verdict::Failed(format!("{path}: status {status} (active: {active})")),
        }
    }

    /// See [`Verdict::Crossed`]: the length of one, then all that the other has, as far as the length goes.
    fn is_crossed(&self, path: &str, window: &[usize], response: &Response) -> bool {
        let pages = || window.iter().map(|&release| self.releases[release].pages.get(path));
        let Some(promised) = response.promised else {
            return false;
        };
        if !pages().flatten().any(|page| page.len() == promised && *page != response.body) {
            return false;
        }
        let body = &response.body;
        pages().any(|page| match page {
            Some(page) if page.len() >= promised => page[..promised] == **body,
            // Sent from a mapping, a body that is too short is filled with zeros to the end of its last memory page.
            Some(page) if response.whole => body.starts_with(page) && body[page.len()..].iter().all(|byte| *byte == 0),
            Some(page) => page == body,
            // Gone, or a directory by then.
            None => body.is_empty(),
        })
    }

    /// Whether Apache may have opened less than it had announced: then it closes the connection, for small files before it has sent anything.
    fn shrinks(&self, path: &str, window: &[usize]) -> bool {
        let sizes = window.iter().map(|&release| {
            let page = self.releases[release].pages.get(path);
            page.map(Vec::len)
        });
        let sizes: BTreeSet<Option<usize>> = sizes.collect();
        sizes.len() > 1
    }

    /// Says in words what a torn body looks like.
    fn tear(&self, path: &str, window: &[usize], response: &Response) -> String {
        let mut text = format!(
            "{path}: {} bytes of {:?}, whole: {}, active: {}",
            response.body.len(),
            response.promised,
            response.whole,
            self.names(window)
        );
        for release in &self.releases {
            let Some(page) = release.pages.get(path) else {
                continue;
            };
            let shared = page.iter().zip(&response.body).take_while(|(a, b)| a == b).count();
            let _ =
                write!(text, "; release {} has {} bytes, the first {shared} of them agree", release.name, page.len());
        }
        text
    }
}

// ---------------------------------------------------------------- visitors

/// What visitors have seen.
#[derive(Default)]
pub struct Tally {
    pub requests: u64,
    pub failed: u64,
    pub torn: u64,
    pub crossed: u64,
    pub stale: u64,
    /// Answers 304 that were right.
    pub not_modified: u64,
    /// Answers 404 that were right.
    pub not_found: u64,
    /// Pages fetched with all their assets, and manifests checked, with no switch meanwhile.
    pub pages: u64,
    pub manifests: u64,
    pub bytes: u64,
    pub slowest: Duration,
    pub complaints: Vec<String>,
}

impl Tally {
    pub fn merge(&mut self, other: Tally) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.torn += other.torn;
        self.crossed += other.crossed;
        self.stale += other.stale;
        self.not_modified += other.not_modified;
        self.not_found += other.not_found;
        self.pages += other.pages;
        self.manifests += other.manifests;
        self.bytes += other.bytes;
        self.slowest = self.slowest.max(other.slowest);
        self.complaints.extend(other.complaints);
        self.complaints.truncate(COMPLAINTS_KEPT);
    }

    /// True if nobody had anything to complain about.
    pub fn is_clean(&self) -> bool {
        self.failed + self.torn + self.stale == 0
    }

    fn complain(&mut self, text: String) {
        if self.complaints.len() < COMPLAINTS_KEPT {
            self.complaints.push(text);
        }
    }
}

/// Whether a visitor asks again with the validators of what it holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Every request is unconditional.
    None,
    /// Half of the requests for something seen before carry `If-None-Match`, `If-Modified-Since`, or both.
    Validators,
}

/// What a visitor holds of a path: validators, and the release that the body agreed with.
struct Held {
    etag: Option<String>,
    last_modified: Option<String>,
    release: usize,
}

/// One visitor: a connection, and a walk over the site that is drawn from a seed.
pub struct Visitor<'a> {
    site: &'a Site,
    client: Client,
    memory: Memory,
    held: HashMap<String, Held>,
    random: Chance,
    pub tally: Tally,
}

impl<'a> Visitor<'a> {
    pub fn new(site: &'a Site, address: SocketAddr, seed: u64, memory: Memory) -> Self {
        Visitor {
            site,
            client: Client::new(address),
            memory,
            held: HashMap::new(),
            random: Chance::new(seed),
            tally: Tally::default(),
        }
    }

    /// Goes on visiting until told to stop.
    pub fn visit_until(mut self, stop: &AtomicBool) -> Tally {
        while !stop.load(SeqCst) {
            match self.random.below(16) {
                0 => self.check_manifest(8),
                1 | 2 => self.view_page(),
                _ => {
                    let path = self.any_path();
                    self.fetch(&path);
                }
            }
        }
        self.tally
    }

    fn any_path(&mut self) -> String {
        let paths = self.site.paths();
        paths[self.random.below(paths.len())].clone()
    }

    /// Fetches one path and judges the answer. Gives the body if it was 200 and right.
    pub fn fetch(&mut self, path: &str) -> Option<Vec<u8>> {
        let held = match self.memory {
            Memory::Validators if self.random.below(2) == 0 => self.held.get(path),
            _ => None,
        };
        let mut validators = Validators::default();
        if let Some(held) = held {
            let kind = self.random.below(3);
            if kind != 0 {
                validators.etag = held.etag.as_deref();
            }
            if kind != 1 {
                validators.last_modified = held.last_modified.as_deref();
            }
        }
        let held_release = held.map(|held| held.release);

        let timeline = &self.site.timeline;
        let low = timeline.finished.load(SeqCst);
        let begun = Instant::now();
        let answer = self.client.get(path, &validators);
        let took = begun.elapsed();
        let window = timeline.during(low, timeline.started.load(SeqCst));

        self.site.answered.fetch_add(1, SeqCst);
        let tally = &mut self.tally;
        tally.requests += 1;
        tally.slowest = tally.slowest.max(took);
        match self.site.judge(path, &window, held_release, &answer) {
            Verdict::Right(release) => {
                let response = answer.ok()?;
                tally.bytes += response.body.len() as u64;
                match (response.status, release) {
                    (200, Some(release)) => {
                        if self.memory == Memory::Validators {
                            let held = Held { etag: response.etag, last_modified: response.last_modified, release };
                            self.held.insert(path.to_owned(), held);
                        }
                        return Some(response.body);
                    }
                    (304, _) => tally.not_modified += 1,
                    _ => tally.not_found += 1,
                }
            }
            Verdict::Failed(text) => {
                tally.failed += 1;
                tally.complain(format!("failed: {text}"));
            }
            Verdict::Torn(text) => {
                tally.torn += 1;
                tally.complain(format!("torn: {text}"));
            }
            Verdict::Crossed(text) => {
                tally.crossed += 1;
                // One for each visitor shows what is meant.
                if tally.crossed == 1 {
                    tally.complain(format!("crossed: {text}"));
                }
            }
            Verdict::Stale(text) => {
                tally.stale += 1;
                tally.complain(format!("stale: {text}"));
            }
        }
        None
    }

    /// A page and everything it refers to, as a browser does it. With no switch meanwhile every link must lead somewhere.
    fn view_page(&mut self) {
        let path = self.any_path();
        if !path.ends_with(".html") && !path.ends_with('/') {
            return;
        }
        let before = self.still();
        let Some(body) = self.fetch_fresh(&path) else {
            return;
        };
        let mut broken = None;
        for link in links(&path, &body) {
            if self.fetch_fresh(&link).is_none() {
                broken.get_or_insert(link);
            }
        }
        if before.is_some() && before == self.still() {
            self.tally.pages += 1;
            if let Some(link) = broken {
                self.tally.failed += 1;
                self.tally.complain(format!("failed: {path} refers to {link}, which is missing"));
            }
        }
    }

    /// Fetches the manifest and some of its files: with no switch meanwhile, all of it must agree. The truth about the releases is not used for this.
    fn check_manifest(&mut self, samples: usize) {
        let before = self.still();
        let Some(body) = self.fetch_fresh("/manifest.txt") else {
            return;
        };
        let lines = match parse_manifest(&body) {
            Ok(lines) if !lines.is_empty() => lines,
            _ => {
                self.tally.torn += 1;
                self.tally.complain("torn: a broken manifest.txt".to_owned());
                return;
            }
        };
        let mut wrong = None;
        for _ in 0..samples {
            let line = &lines[self.random.below(lines.len())];
            let got = self.fetch_fresh(&line.path).unwrap_or_default();
            if got.len() != line.size || blake3::hash(&got).to_hex().as_str() != line.hash {
                wrong.get_or_insert_with(|| line.path.clone());
            }
        }
        if before.is_some() && before == self.still() {
            self.tally.manifests += 1;
            if let Some(path) = wrong {
                self.tally.torn += 1;
                self.tally.complain(format!("torn: {path} is not what manifest.txt says"));
            }
        }
    }

    /// Fetches without validators.
    fn fetch_fresh(&mut self, path: &str) -> Option<Vec<u8>> {
        let memory = std::mem::replace(&mut self.memory, Memory::None);
        let body = self.fetch(path);
        self.memory = memory;
        body
    }

    /// The number of switches so far, if none is under way.
    fn still(&self) -> Option<usize> {
        let finished = self.site.timeline.finished.load(SeqCst);
        (finished == self.site.timeline.started.load(SeqCst)).then_some(finished)
    }
}

/// The paths of this site that a page refers to by `src="…"` and `href="…"`.
fn links(page: &str, body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    let mut found = Vec::new();
    for mark in ["src=\"", "href=\""] {
        for piece in text.split(mark).skip(1) {
            let link = piece.split(['"', '#', '?']).next().unwrap_or("");
            if link.is_empty() || link.contains(':') || link.starts_with("//") {
                continue;
            }
            let mut parts: Vec<&str> = Vec::new();
            if !link.starts_with('/') {
                let directory = page.rsplit_once('/').map_or("", |(directory, _)| directory);
                parts.extend(directory.split('/').filter(|part| !part.is_empty()));
            }
            for part in link.split('/') {
                match part {
                    "" | "." => {}
                    ".." => {
                        parts.pop();
                    }
                    part => parts.push(part),
                }
            }
            let mut path = format!("/{}", parts.join("/"));
            if link.ends_with('/') && path != "/" {
                path.push('/');
            }
            if !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}
