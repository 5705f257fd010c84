//! The control socket, spoken to in raw bytes: whatever a peer sends or leaves unsent, the others are answered.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use verfs::control::client::Client;
use verfs::control::listener::Listener;
use verfs::control::server::{Answer, Limits, Peer, Server};
use verfs::error::{self, Error, Result};
use verfs::protocol::request::{Status, Switch, Umount};
use verfs::protocol::{Done, EncodedPath, MAX_LINE, PinnedPage, Refused, Reply, Request, Switched, Tidy, Time};

/// Nothing here may take longer; what does is a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// A user and group that own nothing.
const NOBODY: u32 = 65534;

const STATUS: &str = r#"{"op":"status"}"#;

/// A reply of this length and some fields just fits into a line.
const LARGE: usize = MAX_LINE - 1000;

/// The status of a daemon that only pretends: who asked stands among the counters.
fn status(peer: Peer) -> Reply {
    let upcalls = [("uid", u64::from(peer.uid)), ("pid", peer.pid as u64)];
    Reply::Status(Box::new(verfs::protocol::StoreStatus {
        store: EncodedPath::from(Path::new("/store")),
        mountpoint: None,
        release: Some("fake".into()),
        previous: None,
        since: None,
        switch: 0,
        switches: 0,
        keeper_pid: None,
        worker_pid: None,
        upcalls: upcalls.map(|(name, count)| (name.to_owned(), count)).into(),
        descriptors: None,
        limits: Vec::new(),
        refused: Refused::default(),
        tidy: Tidy::Done,
        degraded: Vec::new(),
        faults: verfs::protocol::Faults::default(),
        switching: None,
    }))
}

/// The answer to a switch, of any length.
fn switched(to: &str, warning: &str) -> Reply {
    Reply::Switched(Switched {
        from: None,
        to: to.into(),
        changed: 0,
        hidden: Some(0),
        call_us: 0,
        swap_us: 0.0,
        waited_us: 0,
        second: Time(0),
        tidy: Tidy::Done,
        mounted: true,
        warnings: vec![warning.into()],
    })
}

/// A daemon that only pretends: the release name of a switch says what shall happen.
#[derive(Default)]
struct FakeDaemon {
    asked: AtomicUsize,
    /// `switch hold` waits here until `release` is called.
    held: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl FakeDaemon {
    fn wait_until_held(&self) {
        let held = self.held.lock().unwrap();
        let (held, late) = self.changed.wait_timeout_while(held, PATIENCE, |(held, _)| !*held).unwrap();
        assert!(held.0 && !late.timed_out(), "no request reached the daemon");
    }

    fn release(&self) {
        self.held.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

impl Answer for FakeDaemon {
    fn answer(&self, request: Request, peer: Peer) -> Result<Reply> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match request {
            Request::Switch(Switch { release, .. }) => match release.as_str() {
                "panic" => panic!("on purpose"),
                "panic-with-a-value" => std::panic::panic_any(7),
                "missing" => Err(Error::not_found("no such release: missing")),
                "broken" => Err(Error::failed("the disk is full")),
                "huge" => Ok(switched("huge", &"x".repeat(MAX_LINE))),
                "large" => Ok(switched("large", &"x".repeat(LARGE))),
                "hold" => {
                    let mut held = self.held.lock().unwrap();
                    held.0 = true;
                    self.changed.notify_all();
                    let (held, late) = self.changed.wait_timeout_while(held, PATIENCE, |(_, free)| !*free).unwrap();
                    assert!(held.1 && !late.timed_out(), "nobody released the daemon");
                    Ok(switched("held", ""))
                }
                name => Ok(switched(name, "")),
            },
            Request::Pinned(pinned) => Ok(Reply::Pinned(PinnedPage { objects: Vec::new(), next: Some(pinned.after) })),
            Request::Status(_) => Ok(status(peer)),
            _ => Ok(Reply::Done(Done {})),
        }
    }
}

/// A server in a directory of its own, which everybody may enter (the socket's mode decides).
struct Scene {
    directory: TempDir,
    path: PathBuf,
    daemon: Arc<FakeDaemon>,
    server: Server,
}

impl Scene {
    fn new() -> Scene {
        Scene::with(Limits::default(), None)
    }

    fn with(limits: Limits, group: Option<u32>) -> Scene {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.path().join("control.sock");
        let daemon = Arc::new(FakeDaemon::default());
        let listener = Listener::bind(&path, group).unwrap();
        let server = Server::start(listener, limits, Arc::clone(&daemon) as Arc<dyn Answer>).unwrap();
        Scene { directory, path, daemon, server }
    }

    fn raw(&self) -> Raw {
        Raw::connect(&self.path)
    }

    /// What every test ends with: the server is as good as new.
    fn answers_as_ever(&self) {
        assert_eq!(self.raw().ask(STATUS)["ok"]["release"], "fake");
    }
}

/// A connection without any manners of its own.
struct Raw(BufReader<UnixStream>);

impl Raw {
    fn connect(path: &Path) -> Raw {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Raw(BufReader::new(stream))
    }

    fn stream(&self) -> &UnixStream {
        self.0.get_ref()
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream().write_all(bytes).unwrap();
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "cut reply: {line:?}");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn ask(&mut self, line: &str) -> Value {
        self.send(format!("{line}\n").as_bytes());
        self.receive()
    }

    /// The error's text; the code must be `code`.
    fn error(&mut self, code: u64) -> String {
        let reply = self.receive();
        assert_eq!(reply["code"], code, "{reply}");
        reply["error"].as_str().unwrap_or_else(|| panic!("no error: {reply}")).to_owned()
    }

    /// The server has hung up, and said nothing more.
    fn is_at_its_end(&mut self) {
        let mut rest = Vec::new();
        match self.0.by_ref().take(1 << 20).read_to_end(&mut rest) {
            Ok(_) => {}
            // What a closed Unix socket says when bytes were left unread in it.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("still open: {error}"),
        }
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}

fn switch(release: &str) -> String {
    json!({ "op": "switch", "release": release }).to_string()
}

fn call(release: &str) -> Switch {
    Switch { release: release.parse().unwrap(), message: None, uid: None }
}

fn serve(listener: Listener) -> Server {
    Server::start(listener, Limits::default(), Arc::new(FakeDaemon::default())).unwrap()
}

fn client(path: &Path) -> Client {
    Client::connect(path).unwrap().expect("a daemon listens")
}

#[test]
fn garbage_gets_an_error_and_the_connection_goes_on() {
    let scene = Scene::new();
    let mut raw = scene.raw();
    let every_byte: Vec<u8> = (0..=255).filter(|&byte| byte != b'\n').collect();
    let table: &[(&[u8], &str)] = &[
        (b"hello", "no JSON object"),
        (b"", "no JSON object"),
        (b"GET / HTTP/1.1\r", "no JSON object"),
        (b"{\"op\":\"launch\"}", "unknown variant"),
        (b"{\"op\":\"status\",\"verbose\":true}", "unknown field"),
        (b"\xff\xfe", "not UTF-8"),
        (&every_byte, "not UTF-8"),
        (&[0; 10_000], "no JSON object"),
        (&[b'['; MAX_LINE], "no JSON object"),
        (&[b'{'; MAX_LINE], "not JSON"),
    ];
    for (line, reason) in table {
        raw.send(line);
        raw.send(b"\n");
        let text = raw.error(2);
        assert!(text.contains(reason), "{text}");
        assert_eq!(raw.ask(STATUS)["ok"]["release"], "fake");
    }
    assert_eq!(scene.daemon.asked.load(Ordering::SeqCst), table.len(), "garbage reached the daemon");
}

#[test]
fn requests_that_come_in_pieces_or_many_at_once_are_answered_in_order() {
    let scene = Scene::new();
    let mut raw = scene.raw();
    for byte in format!("{STATUS}\n").bytes() {
        raw.send(&[byte]);
    }
    assert_eq!(raw.receive()["ok"]["release"], "fake");
    let mut batch = String::new();
    for after in 0..500 {
        batch += &format!("{}\n", json!({ "op": "pinned", "after": after }));
    }
    batch += "{\"op\":\"pinned\",\"aft";
    raw.send(batch.as_bytes());
    for after in 0..500 {
        assert_eq!(raw.receive()["ok"]["next"], after);
    }
    raw.send(b"er\":500}\n");
    assert_eq!(raw.receive(), json!({ "protocol": 1, "ok": { "objects": [], "next": 500 } }));
}

#[test]
fn a_line_of_64_kib_is_read_and_one_byte_more_is_refused_and_ends_the_connection() {
    let scene = Scene::new();
    let mut raw = scene.raw();
    let mut line = STATUS.as_bytes().to_vec();
    line.resize(MAX_LINE, b' ');
    line.push(b'\n');
    raw.send(&line);
    assert_eq!(raw.receive()["ok"]["release"], "fake");
    line.insert(0, b' ');
    raw.send(&line);
    let text = raw.error(2);
    assert!(text.contains("too long"), "{text}");
    raw.is_at_its_end();
    scene.answers_as_ever();
}

#[test]
fn an_endless_line_is_refused_before_it_ends() {
    let scene = Scene::new();
    for byte in [b' ', 0] {
        let mut raw = scene.raw();
        raw.send(&vec![byte; MAX_LINE + 1]);
        let text = raw.error(2);
        assert!(text.contains("too long"), "{text}");
        raw.is_at_its_end();
    }
    // Megabytes of it: the writer is cut off, and can still read why.
    let mut raw = scene.raw();
    let failure = raw.stream().write_all(&vec![0; 16 << 20]).unwrap_err().kind();
    assert!(matches!(failure, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{failure}");
    assert!(raw.error(2).contains("too long"));
    scene.answers_as_ever();
}

#[test]
fn a_line_that_the_peer_cuts_is_refused_not_done() {
    let scene = Scene::new();
    let mut raw = scene.raw();
    raw.send(switch("03").as_bytes());
    raw.stream().shutdown(Shutdown::Write).unwrap();
    let text = raw.error(2);
    assert!(text.contains("cut"), "{text}");
    raw.is_at_its_end();
    assert_eq!(scene.daemon.asked.load(Ordering::SeqCst), 0);
}

#[test]
fn a_peer_that_has_shut_its_writing_half_gets_all_its_replies() {
    let scene = Scene::new();
    let mut raw = scene.raw();
    raw.send(format!("{STATUS}\n{}\n", switch("03")).as_bytes());
    raw.stream().shutdown(Shutdown::Write).unwrap();
    assert_eq!(raw.receive()["ok"]["release"], "fake");
    assert_eq!(raw.receive()["ok"]["to"], "03");
    raw.is_at_its_end();
}

#[test]
fn silent_and_dawdling_peers_are_disconnected_in_time() {
    let limits = Limits { idle: Duration::from_millis(300), ..Limits::default() };
    let scene = Scene::with(limits, None);
    let start = Instant::now();
    let mut silent = scene.raw();
    let mut half = scene.raw();
    half.send(b"{\"op\":");
    // One byte now and then must not buy more time.
    let dripping = scene.raw();
    let drips = loop {
        if dripping.stream().write_all(b"{").is_err() {
            break start.elapsed();
        }
        assert!(start.elapsed() < PATIENCE, "one byte now and then keeps a connection for ever");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(drips >= limits.idle, "disconnected after {drips:?}");
    silent.is_at_its_end();
    let text = half.error(2);
    assert!(text.contains("not complete after 0.3 seconds"), "{text}");
    half.is_at_its_end();
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    scene.answers_as_ever();
}

#[test]
fn a_peer_that_never_reads_is_disconnected_and_hinders_nobody() {
    let limits = Limits { write: Duration::from_millis(300), ..Limits::default() };
    let scene = Scene::with(limits, None);
    let deaf = scene.raw();
    let request = format!("{}\n", switch("large"));
    let start = Instant::now();
    // The kernel's buffers fill with replies first, then with requests; then the server has enough.
    while let Ok(()) = deaf.stream().write_all(request.as_bytes()) {
        assert!(start.elapsed() < PATIENCE, "never disconnected");
    }
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    scene.answers_as_ever();
}

#[test]
fn peers_that_leave_early_hurt_nobody() {
    let scene = Scene::with(Limits { drain: PATIENCE, ..Limits::default() }, None);
    for round in 0..300 {
        let mut raw = scene.raw();
        match round % 4 {
            0 => {}
            1 => raw.send(b"{\"op\":\"sta"),
            2 => raw.send(format!("{}\n", switch("large")).as_bytes()),
            _ => raw.send(format!("{}\n", switch("large")).repeat(20).as_bytes()),
        }
    }
    // One leaves while its answer is being made.
    let mut raw = scene.raw();
    raw.send(format!("{}\n", switch("hold")).as_bytes());
    scene.daemon.wait_until_held();
    drop(raw);
    scene.answers_as_ever();
    scene.daemon.release();
    scene.answers_as_ever();
    let Scene { mut server, .. } = scene;
    let start = Instant::now();
    server.shutdown();
    assert!(start.elapsed() < PATIENCE / 2, "threads of clients that have left still run");
}

#[test]
fn a_hundred_clients_at_once_are_all_answered() {
    let scene = Scene::new();
    let connected = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..100u64 {
            let (scene, connected) = (&scene, &connected);
            scope.spawn(move || {
                let mut raw = scene.raw();
                assert_eq!(raw.ask(STATUS)["ok"]["release"], "fake");
                connected.fetch_add(1, Ordering::SeqCst);
                let deadline = Instant::now() + PATIENCE;
                while connected.load(Ordering::SeqCst) < 100 {
                    assert!(Instant::now() < deadline, "not all of the hundred were let in");
                    std::thread::sleep(Duration::from_millis(5));
                }
                for round in 0..20 {
                    let after = client * 1000 + round;
                    let request = json!({ "op": "pinned", "after": after });
                    assert_eq!(raw.ask(&request.to_string())["ok"]["next"], after);
                    let release = format!("r{client}-{round}");
                    assert_eq!(raw.ask(&switch(&release))["ok"]["to"], release);
                }
            });
        }
    });
    assert_eq!(scene.daemon.asked.load(Ordering::SeqCst), 100 * 41);
    scene.answers_as_ever();
}

#[test]
fn one_client_too_many_is_told_busy_and_comes_in_when_another_leaves() {
    let scene = Scene::with(Limits { clients: 2, reserved: 0, ..Limits::default() }, None);
    let mut first = scene.raw();
    let mut second = scene.raw();
    first.ask(STATUS);
    second.ask(STATUS);
    let mut third = scene.raw();
    let reply = third.receive();
    assert_eq!((&reply["code"], &reply["kind"]), (&1.into(), &"busy".into()), "{reply}");
    third.is_at_its_end();
    let error = client(&scene.path).call(Status {}, PATIENCE).unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
    assert_eq!(error.exit_code(), 1);
    drop(first);
    // The server learns of the leaving in its own time.
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = client(&scene.path).call(Status {}, PATIENCE) {
        assert!(error.to_string().contains("busy"), "{error}");
        assert!(Instant::now() < deadline, "the slot was never freed");
    }
    second.ask(STATUS);
}

#[test]
fn a_panic_in_the_daemon_is_an_error_for_that_request_only() {
    let scene = Scene::new();
    let mut raw = scene.raw();
    raw.send(format!("{}\n", switch("panic")).as_bytes());
    let text = raw.error(1);
    assert!(text.contains("switch") && text.contains("on purpose"), "{text}");
    raw.send(format!("{}\n", switch("panic-with-a-value")).as_bytes());
    assert!(raw.error(1).contains("no reason given"));
    assert_eq!(raw.ask(&switch("04"))["ok"]["to"], "04");
    scene.answers_as_ever();
}

#[test]
fn a_reply_over_64_kib_is_replaced_by_an_error() {
    let scene = Scene::new();
    let mut raw = scene.raw();
    raw.send(format!("{}\n", switch("huge")).as_bytes());
    let text = raw.error(1);
    assert!(text.contains("at most 65536 bytes"), "{text}");
    let large = raw.ask(&switch("large"));
    assert_eq!(large["ok"]["warnings"][0].as_str().unwrap().len(), LARGE);
}

#[test]
fn an_answer_that_has_begun_is_sent_though_the_server_stops() {
    let Scene { directory, path, daemon, mut server } = Scene::new();
    let mut idle = Raw::connect(&path);
    idle.ask(STATUS);
    let mut raw = Raw::connect(&path);
    raw.send(format!("{}\n{STATUS}\n", switch("hold")).as_bytes());
    daemon.wait_until_held();
    let (stopped, has_stopped) = mpsc::channel();
    let stopping = std::thread::spawn(move || {
        server.shutdown();
        stopped.send(()).unwrap();
    });
    // Idle connections end at once, and nobody new finds the socket; the answer is still waited for.
    idle.is_at_its_end();
    assert!(!path.exists());
    assert!(Client::connect(&path).unwrap().is_none());
    assert!(has_stopped.try_recv().is_err(), "stopped before the answer was sent");
    daemon.release();
    assert_eq!(raw.receive()["ok"]["to"], "held");
    let text = raw.error(1);
    assert!(text.contains("stopping"), "{text}");
    raw.is_at_its_end();
    has_stopped.recv_timeout(PATIENCE).unwrap();
    stopping.join().unwrap();
    assert_eq!(daemon.asked.load(Ordering::SeqCst), 2, "a request was begun after the stop");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn an_answer_that_never_comes_does_not_keep_the_server_from_stopping() {
    let limits = Limits { drain: Duration::from_millis(200), ..Limits::default() };
    let Scene { directory: _directory, path, daemon, mut server } = Scene::with(limits, None);
    let mut raw = Raw::connect(&path);
    raw.send(format!("{}\n", switch("hold")).as_bytes());
    daemon.wait_until_held();
    let start = Instant::now();
    server.shutdown();
    assert!((limits.drain..PATIENCE / 2).contains(&start.elapsed()), "{:?}", start.elapsed());
    raw.is_at_its_end();
    daemon.release();
}

#[test]
fn a_dropped_server_leaves_nothing_and_can_be_bound_again() {
    let Scene { directory, path, server, .. } = Scene::new();
    drop(server);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    assert!(Client::connect(&path).unwrap().is_none());
    let listener = Listener::bind(&path, None).unwrap();
    assert!(path.exists());
    drop(listener);
    assert!(!path.exists());
    let mut twice = serve(Listener::bind(&path, None).unwrap());
    twice.shutdown();
    twice.shutdown();
    assert!(!path.exists());
}

#[test]
fn an_adopted_socket_keeps_its_file_and_the_clients_that_wait() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let bound = Listener::bind(&path, None).unwrap();
    let mut waiting = Raw::connect(&path);
    waiting.send(format!("{STATUS}\n").as_bytes());
    let file = std::fs::metadata(&path).unwrap().ino();
    let given_away = bound.into_fd();
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), file, "the file went with its first owner");
    let adopted = Listener::adopt(given_away, &path).unwrap();
    let server = serve(adopted);
    assert_eq!(waiting.receive()["ok"]["release"], "fake", "who connected before is answered");
    assert_eq!(Raw::connect(&path).ask(STATUS)["ok"]["release"], "fake");
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), file);
    drop(server);
    assert!(!path.exists(), "the last owner removes the file");
}

#[test]
fn only_a_socket_that_listens_under_this_name_is_adopted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let elsewhere = directory.path().join("other.sock");
    let refused = |fd: OwnedFd, why: &str| {
        let error = Listener::adopt(fd, &path).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(std::fs::File::open("/dev/null").unwrap().into(), "no socket");
    refused(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(), "Unix domain");
    refused(UnixStream::pair().unwrap().0.into(), "does not listen");
    refused(UnixListener::bind(&elsewhere).unwrap().into(), "bound to");
    assert!(elsewhere.exists());
    // Without its file a socket is adopted all the same: clients that are connected must be answered.
    let bound = Listener::bind(&path, None).unwrap();
    let mut waiting = Raw::connect(&path);
    let given_away = bound.into_fd();
    std::fs::remove_file(&path).unwrap();
    let _server = serve(Listener::adopt(given_away, &path).unwrap());
    assert_eq!(waiting.ask(STATUS)["ok"]["release"], "fake");
}

#[test]
fn the_socket_of_a_dead_daemon_is_replaced_and_that_of_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    assert!(Client::connect(&path).unwrap().is_none());
    let listener = Listener::bind(&path, None).unwrap();
    // Alive from the first moment, served or not.
    let alive = || {
        let error = Listener::bind(&path, None).unwrap_err();
        assert_eq!((error.exit_code(), error.kind()), (1, error::ErrorKind::Busy));
        let text = error.to_string();
        assert!(text.contains("already") && text.contains(&std::process::id().to_string()), "{text}");
    };
    alive();
    let _server = serve(listener);
    alive();
    assert_eq!(Raw::connect(&path).ask(STATUS)["ok"]["release"], "fake");
}

#[test]
fn what_is_no_socket_is_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let refused = |what: &str| {
        let error = Listener::bind(&path, None).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("control.sock"), "{what}: {error}");
    };
    std::fs::write(&path, "mine").unwrap();
    refused("a file");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    std::fs::remove_file(&path).unwrap();
    // A symlink is refused whether it leads to a dead socket or nowhere, and so is its target left alone.
    let target = directory.path().join("elsewhere");
    std::os::unix::fs::symlink(&target, &path).unwrap();
    refused("a dangling symlink");
    drop(UnixListener::bind(&target).unwrap());
    refused("a symlink to a socket");
    assert!(target.exists() && path.is_symlink());
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    refused("a directory");
    let error = Listener::bind(&directory.path().join("no/such/control.sock"), None).unwrap_err();
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn a_foreign_socket_at_our_path_is_not_removed_at_the_end() {
    let Scene { directory: _directory, path, mut server, .. } = Scene::new();
    std::fs::remove_file(&path).unwrap();
    let _foreign = UnixListener::bind(&path).unwrap();
    server.shutdown();
    assert!(path.exists());
}

#[test]
fn a_path_of_any_length_works() {
    let directory = tempfile::tempdir().unwrap();
    // The longest path for an address, one more, and one as long as paths may be (less what a test needs for itself).
    for length in [106, 107, 108, 109, 4000] {
        let mut parent = directory.path().to_owned();
        let name = "control.sock";
        loop {
            let missing = length - parent.as_os_str().len() - name.len() - 1;
            match missing {
                0 => break,
                2..=200 => parent.push("d".repeat(missing - 1)),
                _ => parent.push("d".repeat(100)),
            }
            std::fs::create_dir_all(&parent).unwrap();
        }
        let path = parent.join(name);
        assert_eq!(path.as_os_str().len(), length);
        assert!(Client::connect(&path).unwrap().is_none());
        // A stale one, then a live one.
        bind_stale(&path);
        // Bound, and adopted from whoever bound it.
        let bound = Listener::bind(&path, None).unwrap();
        let server = serve(Listener::adopt(bound.into_fd(), &path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600, "{length}");
        let mut client = client(&path);
        assert_eq!(client.call(Status {}, PATIENCE).unwrap().release.as_deref(), Some("fake"), "{length}");
        assert!(Listener::bind(&path, None).is_err(), "{length}");
        drop(server);
        assert!(!path.exists(), "{length}");
    }
}

/// A socket file that nobody listens on, at a path of any length.
fn bind_stale(path: &Path) {
    let short = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(short.path().join("s")).unwrap());
    std::fs::rename(short.path().join("s"), path).unwrap();
}

#[test]
fn the_socket_belongs_to_the_group_and_to_nobody_else() {
    for (group, mode) in [(None, 0o600), (Some(NOBODY), 0o660)] {
        let scene = Scene::with(Limits::default(), group);
        let file = std::fs::metadata(&scene.path).unwrap();
        assert!(file.file_type().is_socket());
        assert_eq!(file.mode() & 0o7777, mode);
        if let Some(group) = group {
            assert_eq!(file.gid(), group);
        }
    }
}

#[test]
fn the_client_turns_error_replies_into_errors_with_their_code() {
    let scene = Scene::new();
    let mut client = client(&scene.path);
    let table = [
        ("missing", 2, "no such release: missing", error::ErrorKind::NotFound),
        ("broken", 1, "the disk is full", error::ErrorKind::Failed),
    ];
    for (release, code, text, kind) in table {
        let error = client.call(call(release), PATIENCE).unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().as_str(), error.kind()), (code, text, kind));
    }
    let status = client.call(Status {}, PATIENCE).unwrap();
    assert_eq!(status.upcalls["pid"], u64::from(std::process::id()));
    assert_eq!(client.server_pid().unwrap(), i32::try_from(std::process::id()).unwrap());
}

#[test]
fn a_client_whose_answer_is_late_does_not_take_it_for_the_next_one() {
    let scene = Scene::new();
    let mut client = client(&scene.path);
    let error = client.call(call("hold"), Duration::from_millis(100)).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("has not answered switch within 0.1 seconds"), "{error}");
    scene.daemon.release();
    let error = client.call(Status {}, PATIENCE).unwrap_err();
    assert!(error.to_string().contains("failed before"), "{error}");
}

#[test]
fn a_client_is_told_when_the_daemon_dies_without_an_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // The kernel reports a close differently when bytes were left unread.
    for (said, read) in [("", 5), ("{\"ok\":tr", 5), ("", usize::MAX), ("{\"ok\":tr", usize::MAX)] {
        let mut client = client(&path);
        let (mut daemon, _) = listener.accept().unwrap();
        let dying = std::thread::spawn(move || {
            let mut request = Vec::new();
            while request.len() < read && request.last() != Some(&b'\n') {
                let mut byte = [0];
                daemon.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            daemon.write_all(said.as_bytes()).unwrap();
        });
        let error = client.call(Umount { lazy: false }, PATIENCE).unwrap_err();
        assert!(error.to_string().contains("without an answer to umount"), "{error}");
        assert_eq!(error.exit_code(), 1);
        dying.join().unwrap();
    }
    // And a daemon that talks without end.
    let mut client = client(&path);
    let (mut daemon, _) = listener.accept().unwrap();
    let talking = std::thread::spawn(move || daemon.write_all(&vec![b'x'; 16 << 20]).unwrap_err().kind());
    let error = client.call(Status {}, PATIENCE).unwrap_err();
    assert!(error.to_string().contains("longer than a line"), "{error}");
    drop(client);
    talking.join().unwrap();
}

#[test]
fn a_client_hears_what_was_said_before_it_could_ask() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut client = client(&path);
    let (mut daemon, _) = listener.accept().unwrap();
    daemon.write_all(b"{\"error\":\"too many\",\"code\":1,\"kind\":\"busy\"}\n").unwrap();
    drop(daemon);
    let error = client.call(Status {}, PATIENCE).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.kind()), ("too many", error::ErrorKind::Busy));
}

#[test]
fn a_command_and_a_daemon_of_different_protocols_say_what_to_do() {
    // A newer command, and the daemon goes on for those it understands.
    let scene = Scene::new();
    let mut raw = scene.raw();
    raw.send(b"{\"protocol\":2,\"op\":\"status\",\"deep\":true}\n");
    let text = raw.error(2);
    assert!(text.contains("protocol 2") && text.contains("Restart it"), "{text}");
    assert_eq!(raw.ask(STATUS)["ok"]["release"], "fake");
    assert_eq!(scene.daemon.asked.load(Ordering::SeqCst), 1, "the newer request reached the daemon");
    // A newer daemon.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut client = client(&path);
    let (mut daemon, _) = listener.accept().unwrap();
    daemon.write_all(b"{\"protocol\":2,\"ok\":[\"another form\"]}\n").unwrap();
    let error = client.call(Status {}, PATIENCE).unwrap_err();
    assert!(error.to_string().contains("Use the newer verfs"), "{error}");
    assert_eq!(error.exit_code(), 1);
    // `umount` works between all of them: an older daemon knows no numbers, a newer one may answer more.
    let mut client = self::client(&path);
    let (mut daemon, _) = listener.accept().unwrap();
    daemon.write_all(b"{\"ok\":{\"unmounted\":true},\"more\":1}\n").unwrap();
    assert_eq!(client.call(Umount { lazy: true }, PATIENCE).unwrap(), Done {});
    let mut asked = String::new();
    BufReader::new(daemon).read_line(&mut asked).unwrap();
    assert_eq!(asked, "{\"op\":\"umount\",\"lazy\":true}\n");
}

/// Runs the test `name` of this file again, as nobody, with the socket to talk to.
fn as_nobody(name: &str, scene: &Scene) {
    // Through /proc the binary runs wherever it lies, in /root too.
    let output = Command::new("/proc/self/exe")
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env("CONTROL_TEST_SOCKET", &scene.path)
        .current_dir(&scene.directory)
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .expect("these tests need root, to become nobody");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "as nobody: {text}");
    assert!(text.contains("1 passed"), "as nobody nothing was tested: {text}");
}

/// The socket to talk to, if this process is one that `as_nobody` started.
fn nobodys_socket() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("CONTROL_TEST_SOCKET")?);
    let uid = std::fs::metadata("/proc/self").unwrap().uid();
    assert_eq!(uid, NOBODY, "not nobody");
    Some(path)
}

#[test]
fn a_member_of_the_group_may_read_and_not_change() {
    let Some(path) = nobodys_socket() else {
        let scene = Scene::with(Limits::default(), Some(NOBODY));
        as_nobody("a_member_of_the_group_may_read_and_not_change", &scene);
        assert_eq!(scene.daemon.asked.load(Ordering::SeqCst), 2, "more than the two readings came through");
        return;
    };
    let mut raw = Raw::connect(&path);
    let status = raw.ask(STATUS);
    assert_eq!(status["ok"]["upcalls"]["uid"], NOBODY, "{status}");
    for request in [
        &switch("03"),
        r#"{"op":"rollback"}"#,
        r#"{"op":"reload"}"#,
        r#"{"op":"umount"}"#,
        r#"{"op":"pinned"}"#,
        r#"{"op":"repacked"}"#,
    ] {
        let reply = raw.ask(request);
        assert_eq!((&reply["code"], &reply["kind"]), (&2.into(), &"permission-denied".into()), "{request}: {reply}");
        let text = reply["error"].as_str().unwrap();
        assert!(text.contains("is for root only; you are uid 65534"), "{request}: {text}");
    }
    assert_eq!(raw.ask(STATUS)["ok"]["release"], "fake");
}

#[test]
fn without_a_group_nobody_else_may_connect() {
    let Some(path) = nobodys_socket() else {
        let scene = Scene::new();
        as_nobody("without_a_group_nobody_else_may_connect", &scene);
        return;
    };
    assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::PermissionDenied);
    let error = Client::connect(&path).unwrap_err();
    assert_eq!((error.exit_code(), error.kind()), (1, error::ErrorKind::PermissionDenied));
    assert!(error.to_string().contains("ask as root"), "{error}");
}

#[test]
fn slots_are_kept_for_those_who_may_change_something() {
    let Some(path) = nobodys_socket() else {
        let scene = Scene::with(Limits { clients: 3, reserved: 1, ..Limits::default() }, Some(NOBODY));
        as_nobody("slots_are_kept_for_those_who_may_change_something", &scene);
        return;
    };
    let mut first = Raw::connect(&path);
    let mut second = Raw::connect(&path);
    first.ask(STATUS);
    second.ask(STATUS);
    let text = Raw::connect(&path).error(1);
    assert!(text.contains("busy: 2 clients"), "{text}");
}

#[test]
fn a_daemon_that_is_not_root_may_be_changed_by_its_own_uid() {
    let Some(path) = nobodys_socket() else {
        let scene = Scene::new();
        std::fs::set_permissions(scene.directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        as_nobody("a_daemon_that_is_not_root_may_be_changed_by_its_own_uid", &scene);
        return;
    };
    let own = path.with_file_name("own.sock");
    let _server = serve(Listener::bind(&own, None).unwrap());
    assert_eq!(Raw::connect(&own).ask(&switch("03"))["ok"]["to"], "03");
}
