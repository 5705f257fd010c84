//! Apache under load while releases switch below it. Needs root, /dev/fuse and apache2 (scripts/install-deps).
#![allow(clippy::unwrap_used)]

#[path = "support/apache.rs"]
mod apache;
#[path = "support/http.rs"]
#[allow(dead_code, reason = "some of it is for the example visitors")]
mod http;
#[path = "apache/shop.rs"]
mod shop;
mod support;
#[path = "support/uploads.rs"]
mod uploads;

use apache::{AllowOverride, Apache, Sending};
use chance::Chance;
use http::{Client, Memory, Release, Response, Site, Tally, Verdict, Visitor};
use serde_json::Value;
use shop::RELEASES;
use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use support::Rig;
use support::chance;
use uploads::Uploads;

/// Visitors at the same time.
const CONNECTIONS: u64 = 8;

/// Requests at most, for each switch, that Apache answers with the length of one release and the body of another: it was kept from running for longer than
/// the gate waits between its two calls. See `Verdict::Crossed`, and docs/SEMANTICS.md, "What is not promised".
const CROSSED_PER_SWITCH: u64 = 1;

/// A directory that www-data can reach, wherever the build directory is.
fn public_directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("verfs-docroot.").permissions(Permissions::from_mode(0o755)).tempdir().unwrap()
}

/// The shop in a store, mounted where Apache can reach it, with release 01 active.
struct Docroot {
    rig: Rig,
    site: Site,
    /// The mountpoint. It goes after the mount.
    _directory: tempfile::TempDir,
}

impl Docroot {
    fn new(share_second: bool) -> Self {
        let rig = Rig::with_limit(Duration::from_secs(400));
        rig.init();
        rig.setting("switch", "share_second", &share_second.to_string());
        let releases: Vec<Release> = (0..RELEASES.len()).map(shop::shop).collect();
        for (n, release) in releases.iter().enumerate() {
            shop::write(release, n, &rig.src.join(&release.name));
        }
        Self::serving(rig, releases)
    }

    /// With the scope `media`, which belongs to www-data and in which the releases have files.
    fn with_scope() -> Self {
        let rig = Rig::with_limit(Duration::from_secs(600));
        let store = rig.store.to_str().unwrap();
        rig.ok(&["init", store, "--writable", "media", "--owner", "www-data:www-data"]);
        rig.setting("switch", "share_second", "true");
        let releases: Vec<Release> = (0..RELEASES.len()).map(shop::shop_with_theme).collect();
        for (n, release) in releases.iter().enumerate() {
            let source = rig.src.join(&release.name);
            shop::write(release, n, &source);
            shop::write_victims(n, &source.join("media"));
        }
        Self::serving(rig, releases)
    }

    /// Adds what was written for each release, and mounts.
    fn serving(mut rig: Rig, releases: Vec<Release>) -> Self {
        for release in &releases {
            rig.ok(&["add", &release.name, rig.src.join(&release.name).to_str().unwrap()]);
        }
        rig.ok(&["switch", RELEASES[0]]);
        let directory = public_directory();
        rig.mnt = directory.path().canonicalize().unwrap().join("docroot");
        fs::create_dir(&rig.mnt).unwrap();
        rig.mount();
        Docroot { rig, site: Site::new(releases, 0), _directory: directory }
    }

    fn apache(&self, allow_override: AllowOverride, sending: Sending) -> Apache {
        Apache::start(&self.rig.mnt, allow_override, sending)
    }

    /// Switches and rolls back so many times while visitors come; waits with `between` before each, and at the end.
    fn switch_under_load(&self, address: SocketAddr, memory: Memory, switches: usize, between: impl Fn()) -> Tally {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let crowd: Vec<_> = (0..CONNECTIONS)
                .map(|seed| {
                    let visitor = Visitor::new(&self.site, address, seed + 1, memory);
                    scope.spawn(|| visitor.visit_until(&stop))
                })
                .collect();
            // If anything here panics, the visitors must still be told to go home.
            let stopper = StopOnDrop(&stop);
            let mut random = Chance::new(switches as u64);
            let (mut active, mut previous) = (0, 0);
            between();
            for step in 0..switches {
                let answer;
                let next;
                if step % 3 == 2 {
                    next = previous;
                    self.site.timeline.begin(next);
                    answer = self.rig.json(&["rollback"]);
                } else {
                    next = (active + 1 + random.below(RELEASES.len() - 1)) % RELEASES.len();
                    self.site.timeline.begin(next);
                    answer = self.rig.json(&["switch", RELEASES[next]]);
                }
                self.site.timeline.finish();
                assert_eq!(answer["from"], RELEASES[active], "{answer}");
                assert_eq!(answer["to"], RELEASES[next], "{answer}");
                (previous, active) = (active, next);
                between();
            }
            drop(stopper);
            let mut tally = Tally::default();
            for visitor in crowd {
                tally.merge(visitor.join().unwrap());
            }
            tally
        })
    }

    fn wait_for_requests(&self, more: u64) {
        let goal = self.site.answered.load(SeqCst) + more;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.site.answered.load(SeqCst) < goal {
            assert!(Instant::now() < deadline, "the visitors are stuck");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The counters of `status`, and their sum.
    fn upcalls(&self) -> (u64, Value) {
        let counters = self.rig.json(&["status"])["upcalls"].take();
        let sum = counters.as_object().unwrap().values();
        (sum.map(|count| count.as_u64().unwrap()).sum(), counters)
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn report(what: &str, tally: &Tally, switches: usize) {
    eprintln!(
        "{what}: {} requests, failed {}, torn {}, crossed {}, stale {}, slowest {:?}, switches {switches}; \
         304: {}, 404: {}, pages {}, manifests {}",
        tally.requests,
        tally.failed,
        tally.torn,
        tally.crossed,
        tally.stale,
        tally.slowest,
        tally.not_modified,
        tally.not_found,
        tally.pages,
        tally.manifests
    );
    for complaint in &tally.complaints {
        eprintln!("  {complaint}");
    }
}

/// The body of the two tests below. Sendfile, because an Apache that maps files answers a crossed request by closing the connection without a word, which
/// could not be told from a failure.
fn sixty_switches_go_unnoticed(allow_override: AllowOverride) {
    if support::skip_mounted() {
        return;
    }
    let docroot = Docroot::new(true);
    let apache = docroot.apache(allow_override, Sending::Sendfile);
    let tally = docroot.switch_under_load(apache.address(), Memory::None, 60, || docroot.wait_for_requests(1000));
    report(&format!("AllowOverride {allow_override}"), &tally, docroot.site.timeline.switches());
    let log = apache.log();
    assert_eq!((tally.failed, tally.torn, tally.stale), (0, 0, 0), "{:#?}\n{log}", tally.complaints);
    assert_eq!(docroot.site.timeline.switches(), 60);
    assert!(tally.crossed <= 60 * CROSSED_PER_SWITCH, "{}", tally.crossed);
    assert!(tally.requests >= 60_000);
    assert!(tally.not_found > 0 && tally.pages > 0 && tally.manifests > 0);
    assert!(!log.contains("exit signal"), "a worker crashed:\n{log}");
}

#[test]
fn visitors_notice_none_of_60_switches() {
    sixty_switches_go_unnoticed(AllowOverride::None);
}

#[test]
fn visitors_notice_none_of_60_switches_with_htaccess() {
    sixty_switches_go_unnoticed(AllowOverride::All);
}

#[test]
fn every_upload_and_every_deletion_outlives_60_switches_under_load() {
    if support::skip_mounted() {
        return;
    }
    let mut docroot = Docroot::with_scope();
    let media = docroot.rig.mnt.join("media");
    let uploads = Uploads::new(&media, Duration::ZERO);
    let apache = docroot.apache(AllowOverride::None, Sending::Sendfile);
    let address = apache.address();
    let stop = AtomicBool::new(false);
    let (mut tally, theme, mut known) = thread::scope(|scope| {
        let stopper = StopOnDrop(&stop);
        let uploading = scope.spawn(|| uploads.work_until(&stop));
        let theme = scope.spawn(|| visit_theme(&docroot.site, address, &stop));
        let tally = docroot.switch_under_load(address, Memory::None, 60, || {
            docroot.wait_for_requests(500);
            uploads.wait_for_a_round();
        });
        drop(stopper);
        (tally, theme.join().unwrap(), uploading.join().unwrap())
    });
    report("in the scope", &theme, docroot.site.timeline.switches());
    assert!(theme.requests >= 60, "{}", theme.requests);
    tally.merge(theme);
    report("with uploads", &tally, docroot.site.timeline.switches());
    assert_eq!((tally.failed, tally.torn, tally.stale), (0, 0, 0), "{:#?}\n{}", tally.complaints, apache.log());
    // How many were crossed is no matter here: with so much else to do the scheduler keeps anybody waiting.
    assert_eq!(docroot.site.timeline.switches(), 60);

    drop(apache);
    for life in ["in this life of the mount", "in the next"] {
        known.compare_with(&media, life);
        let apache = docroot.apache(AllowOverride::None, Sending::Sendfile);
        let mut client = Client::new(apache.address());
        known.compare(&format!("over HTTP {life}"), |key| client.body(&format!("/media/{key}")));
        drop(apache);
        docroot.rig.umount();
        docroot.rig.mount();
    }
    let (there, gone) = known.count();
    eprintln!("{} uploads, {} deletions; {there} files there, {gone} names gone", known.uploads, known.deletions);
    assert_eq!(known.lost, 0, "{:#?}", known.complaints);
}

/// Loads what the releases have in the scope, again and again.
fn visit_theme(site: &Site, address: SocketAddr, stop: &AtomicBool) -> Tally {
    let mut visitor = Visitor::new(site, address, CONNECTIONS + 1, Memory::None);
    while !stop.load(SeqCst) {
        for path in site.paths().iter().filter(|path| path.starts_with("/media/")) {
            visitor.fetch(path);
        }
    }
    visitor.tally
}

#[test]
fn validators_never_hide_a_change() {
    if support::skip_mounted() {
        return;
    }
    let docroot = Docroot::new(false);
    let apache = docroot.apache(AllowOverride::None, Sending::Sendfile);
    let begun = Instant::now();
    let between = || docroot.wait_for_requests(1000);
    let tally = docroot.switch_under_load(apache.address(), Memory::Validators, 15, between);
    report("validators", &tally, docroot.site.timeline.switches());
    assert!(tally.is_clean(), "{:#?}", tally.complaints);
    assert!(tally.not_modified > 100);
    assert!(begun.elapsed() > Duration::from_secs(13), "two switches shared a second");
}

#[test]
fn ten_thousand_hot_requests_cost_no_upcall() {
    if support::skip_mounted() {
        return;
    }
    let docroot = Docroot::new(true);
    for (allow_override, sending) in [(AllowOverride::None, Sending::Mmap), (AllowOverride::All, Sending::Sendfile)] {
        let apache = docroot.apache(allow_override, sending);
        // Somebody else on this machine may make the kernel drop its caches meanwhile; what costs upcalls by itself costs them every time.
        let cheap = (0..5).any(|_| hot_requests(&docroot, &apache, allow_override) == 0);
        assert!(cheap, "AllowOverride {allow_override}: each time it cost upcalls");
    }
}

/// Warms up, makes 10,000 requests, and gives how many upcalls those cost, and asking for the status with them.
fn hot_requests(docroot: &Docroot, apache: &Apache, allow_override: AllowOverride) -> u64 {
    let paths = docroot.site.paths();
    // A first reading of a file makes the kernel forget its access time, so the second round still asks for attributes.
    for _ in 0..3 {
        let mut visitor = Visitor::new(&docroot.site, apache.address(), 1, Memory::None);
        for path in paths {
            visitor.fetch(path);
        }
        assert!(visitor.tally.is_clean(), "{:#?}", visitor.tally.complaints);
    }
    let (before, counters_before) = docroot.upcalls();
    let next = AtomicU64::new(0);
    let tally = thread::scope(|scope| {
        let crowd: Vec<_> = (0..CONNECTIONS)
            .map(|seed| {
                let mut visitor = Visitor::new(&docroot.site, apache.address(), seed, Memory::None);
                let next = &next;
                scope.spawn(move || {
                    loop {
                        let number = next.fetch_add(1, SeqCst);
                        if number >= 10_000 {
                            return visitor.tally;
                        }
                        visitor.fetch(&paths[number as usize * 7 % paths.len()]);
                    }
                })
            })
            .collect();
        let mut tally = Tally::default();
        for visitor in crowd {
            tally.merge(visitor.join().unwrap());
        }
        tally
    });
    let (after, counters_after) = docroot.upcalls();
    report(&format!("hot, AllowOverride {allow_override}"), &tally, docroot.site.timeline.switches());
    assert!(tally.is_clean(), "{:#?}", tally.complaints);
    assert_eq!(tally.requests, 10_000);
    if after != before {
        eprintln!("  {} upcalls: {counters_before} became {counters_after}", after - before);
    }
    after - before
}

/// The checker itself must be able to say no: here Apache serves a plain directory, and we lie to the checker about it.
#[test]
fn checker_notices_what_a_plain_directory_does_wrong() {
    if support::skip_mounted() {
        return;
    }
    let directory = public_directory();
    let releases: Vec<Release> = (0..2).map(shop::shop).collect();
    shop::write(&releases[0], 0, directory.path());
    let apache = Apache::start(directory.path(), AllowOverride::All, Sending::Mmap);
    let site = Site::new(releases, 0);
    let mut visitor = Visitor::new(&site, apache.address(), 1, Memory::None);
    let changed = "/assets/resized/1/5.bin";
    for path in site.paths() {
        visitor.fetch(path);
    }
    assert!(visitor.tally.is_clean(), "{:#?}", visitor.tally.complaints);

    let file = directory.path().join(&changed[1..]);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    visitor.fetch(changed);
    assert_eq!(visitor.tally.torn, 1);
    fs::remove_file(&file).unwrap();
    visitor.fetch(changed);
    assert_eq!(visitor.tally.failed, 1);

    fs::write(&file, whole).unwrap();
    site.timeline.begin(1);
    visitor.fetch(changed);
    assert_eq!(visitor.tally.stale, 0, "the switch is still under way");
    site.timeline.finish();
    visitor.fetch(changed);
    assert_eq!(visitor.tally.stale, 1);
}

#[test]
fn checker_allows_only_releases_that_were_active() {
    let mut site = [Release::new("old"), Release::new("new")];
    site[0].insert("/page".to_owned(), b"old text".to_vec());
    site[1].insert("/page".to_owned(), b"new and longer".to_vec());
    site[0].insert("/same".to_owned(), b"same one".to_vec());
    site[1].insert("/same".to_owned(), b"same two".to_vec());
    site[1].insert("/late".to_owned(), b"late".to_vec());
    site[1].insert("/dir/index.html".to_owned(), b"index".to_vec());
    let site = Site::new(Vec::from(site), 0);
    let name = |verdict| match verdict {
        Verdict::Right(_) => "right",
        Verdict::Failed(_) => "failed",
        Verdict::Torn(_) => "torn",
        Verdict::Crossed(_) => "crossed",
        Verdict::Stale(_) => "stale",
    };
    let judge = |path: &str, window: &[usize], held, status, body: &[u8], promised: usize| {
        let response = Response {
            status,
            etag: None,
            last_modified: None,
            body: body.to_vec(),
            promised: Some(promised),
            whole: body.len() == promised,
        };
        name(site.judge(path, window, held, &Ok(response)))
    };
    let (old, new, both): (&[usize], &[usize], &[usize]) = (&[0], &[1], &[0, 1]);
    for (path, window, held, status, body, promised, verdict) in [
        ("/page", old, None, 200, "old text", 8, "right"),
        ("/page", both, None, 200, "old text", 8, "right"),
        ("/page", both, None, 200, "new and longer", 14, "right"),
        ("/page", new, None, 200, "old text", 8, "stale"),
        ("/page", old, None, 200, "old", 3, "torn"),
        ("/page", new, None, 200, "new", 14, "torn"),
        ("/page", both, None, 200, "new and ", 8, "crossed"),
        ("/page", both, None, 200, "old text", 14, "crossed"),
        ("/page", both, None, 200, "old text\0\0\0\0\0\0", 14, "crossed"),
        ("/page", both, None, 200, "new text", 8, "torn"),
        ("/page", both, None, 404, "", 0, "failed"),
        ("/page", both, None, 403, "", 0, "failed"),
        ("/page", both, None, 500, "", 0, "failed"),
        ("/page", both, None, 200, "new and", 14, "torn"),
        ("/page", both, None, 200, "", 14, "torn"),
        ("/page", old, None, 200, "new and ", 8, "torn"),
        ("/late", both, None, 200, "", 4, "crossed"),
        ("/late", both, None, 404, "", 0, "right"),
        ("/late", both, None, 403, "", 0, "right"),
        ("/late", old, None, 403, "", 0, "failed"),
        ("/late", new, None, 404, "", 0, "failed"),
        ("/late", old, None, 200, "late", 4, "stale"),
        ("/dir", both, None, 301, "", 0, "right"),
        ("/dir", old, None, 301, "", 0, "failed"),
        ("/dir/", new, None, 200, "index", 5, "right"),
        ("/page", both, Some(0), 304, "", 0, "right"),
        ("/page", new, Some(0), 304, "", 0, "stale"),
        ("/page", new, None, 304, "", 0, "failed"),
    ] {
        let found = judge(path, window, held, status, body.as_bytes(), promised);
        assert_eq!(found, verdict, "{status} for {path}, {window:?}, {body:?}");
    }
    for (path, window, kind, verdict) in [
        ("/page", both, io::ErrorKind::UnexpectedEof, "crossed"),
        ("/page", old, io::ErrorKind::UnexpectedEof, "failed"),
        ("/page", both, io::ErrorKind::TimedOut, "failed"),
        ("/page", both, io::ErrorKind::ConnectionRefused, "failed"),
        ("/same", both, io::ErrorKind::UnexpectedEof, "failed"),
    ] {
        let verdict_is = name(site.judge(path, window, None, &Err(kind.into())));
        assert_eq!(verdict_is, verdict, "{kind} for {path}, {window:?}");
    }
}

/// So must the checker of uploads: here they go to a plain directory, which somebody else damages.
#[test]
fn checker_notices_uploads_and_deletions_that_did_not_last() {
    let directory = public_directory();
    let dir = directory.path();
    let uploads = Uploads::new(dir, Duration::ZERO);
    let stop = AtomicBool::new(false);
    let mut known = thread::scope(|scope| {
        let stopper = StopOnDrop(&stop);
        let uploading = scope.spawn(|| uploads.work_until(&stop));
        (0..40).for_each(|_| uploads.wait_for_a_round());
        drop(stopper);
        uploading.join().unwrap()
    });
    known.compare_with(dir, "untouched");
    assert_eq!(known.lost, 0, "{:#?}", known.complaints);

    let cut = |file: &Path| {
        let length = fs::metadata(file).unwrap().len();
        fs::OpenOptions::new().write(true).open(file).unwrap().set_len(length - 1).unwrap();
    };
    let gone = (0..60).map(|n| dir.join(format!("deleted-2/made-{n}"))).find(|file| !file.exists()).unwrap();
    // Each damage, and how often it is noticed: a name that is missing or too many also by the listing.
    fs::remove_file(dir.join("renamed/7")).unwrap();
    fs::write(gone, "").unwrap();
    fs::write(dir.join("deleted-1/stranger"), "").unwrap();
    cut(&dir.join("moved/7"));
    cut(&dir.join("appended/0"));
    fs::copy(dir.join("truncated/7"), dir.join("truncated/8")).unwrap();
    known.compare_with(dir, "damaged");
    assert_eq!(known.lost, 2 + 2 + 1 + 1 + 1 + 1, "{:#?}", known.complaints);

    // Workers who know of none of these files say so when they come upon them.
    stop.store(false, SeqCst);
    let strangers = Uploads::new(dir, Duration::ZERO);
    let known = thread::scope(|scope| {
        let stopper = StopOnDrop(&stop);
        let uploading = scope.spawn(|| strangers.work_until(&stop));
        strangers.wait_for_a_round();
        drop(stopper);
        uploading.join().unwrap()
    });
    assert!(known.lost >= 5 && known.complaints[0].contains("before it changed"), "{:#?}", known.complaints);
}

/// Both releases of the example shop are what their own lists say.
#[test]
fn manifests_of_the_example_site_are_true() {
    for name in ["01", "02"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/site").join(name);
        let written = fs::read_to_string(root.join("manifest.txt")).unwrap();
        assert_eq!(written, http::manifest_of(&root).unwrap(), "release {name}: run visitors --manifest");
        let listed = http::parse_manifest(written.as_bytes()).unwrap();
        assert!(listed.len() > 10);
    }
}
