//! Row 1: Apache (event MPM) with its DocumentRoot on each file system, under wrk.
//!
//! One server has a virtual host for each peer and setting: the same processes serve all of them, so nothing but the file system differs.

use super::chance::Chance;
use super::measure::{Board, Unit, digits, interleave};
use super::peers::{self, FUSE, Mounted, NATIVE, Source, VERFS};
use super::plots::Plot;
use super::report::{Limit, Section, Target};
use super::stage::{self, Outcome, Stage};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Six directories deep.
const DEEP: &str = "a/b/c/d/e/f";
const SIZES: [(&str, usize); 3] = [("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("10 MiB", 10 << 20)];
const CONNECTIONS: &str = "16";
/// wrk takes whole seconds. Many short turns, not few long ones: that is what evens out a noisy machine.
const SECONDS: &str = "1";
const PATIENCE: Duration = Duration::from_secs(20);

const RATE: &str = "requests/s";
const P50: &str = "p50";
const P99: &str = "p99";
const UPCALLS: &str = "upcalls per request";
const MEASURES: [(&str, Unit); 4] =
    [(RATE, Unit::PerSecond), (P50, Unit::Microseconds), (P99, Unit::Microseconds), (UPCALLS, Unit::Count)];

/// How Apache is set: sendfile, and whether it looks for .htaccess in every directory of a path.
#[derive(Clone, Copy)]
struct Setting {
    sendfile: &'static str,
    allow_override: &'static str,
}

impl Setting {
    fn words(self) -> String {
        format!("sendfile {}, AllowOverride {}", self.sendfile, self.allow_override)
    }
}

const fn setting(sendfile: &'static str, allow_override: &'static str) -> Setting {
    Setting { sendfile, allow_override }
}

const SETTINGS: [Setting; 4] =
    [setting("on", "None"), setting("on", "All"), setting("off", "None"), setting("off", "All")];

pub fn run(stage: &Stage) -> Outcome<Section> {
    let rounds = stage.size(2, 9);
    let settings = stage.size(&SETTINGS[..1], &SETTINGS[..]);
    let source = Source::new(stage, lay_down)?;
    let contenders = peers::mount_all(stage, &peers::all(), &source)?;
    let server = Server::start(stage, &contenders)?;
    let mut boards = Vec::new();
    let mut asked: BTreeMap<String, u64> = BTreeMap::new();
    for (number, setting) in settings.iter().enumerate() {
        for (label, _) in SIZES {
            stage.say(&format!("{label}, {}", setting.words()));
            let mut board = Board::new(format!("{label}, {}", setting.words()), NATIVE, &MEASURES);
            for at in 0..contenders.len() {
                server.warm(at, number, label)?;
            }
            let numbered: Vec<usize> = (0..contenders.len()).collect();
            // The peers are far behind: a third of the rounds shows it.
            let every = |at: &usize| if [NATIVE, VERFS].contains(&contenders[*at].0) { 1 } else { 3 };
            interleave(stage, rounds, &numbered, every, |round, at| {
                let (name, mounted) = &contenders[*at];
                let before = by_operation(mounted)?;
                let load = wrk(&server.address, &host(*at, number), &url(label))?;
                board.note(round, name, RATE, load.rate);
                board.note(round, name, P50, load.p50);
                board.note(round, name, P99, load.p99);
                if mounted.verfs.is_some() {
                    let mut all = 0;
                    for (operation, count) in by_operation(mounted)? {
                        let more = count - before.get(&operation).copied().unwrap_or(0);
                        *asked.entry(operation).or_default() += more;
                        all += more;
                    }
                    board.note(round, name, UPCALLS, all as f64 / load.requests);
                }
                Ok(())
            })?;
            boards.push(board);
        }
    }
    drop(server);
    drop(contenders);

    let mut targets = Vec::new();
    for (at, board) in boards.iter().enumerate() {
        let least = if at % SIZES.len() == 0 { 0.95 } else { 0.98 };
        targets.push(Target::ratio(board, RATE, Limit::AtLeast(least)));
        targets.push(Target::ahead(board, RATE, &FUSE));
        targets.push(Target::own(board, UPCALLS, Limit::AtMost(0.0)));
    }
    let asked: Vec<String> = asked
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(operation, count)| format!("{count} {operation}"))
        .collect();
    let ratios: Vec<String> = boards
        .iter()
        .filter_map(|board| Some(format!("{} at {}", digits(board.ratio(VERFS, RATE)?.median), board.title)))
        .collect();
    Ok(Section {
        number: 1,
        name: "apache",
        title: "Apache".to_owned(),
        how: format!(
            "Apache with the event MPM, one virtual host for each file system and setting; a file {} directories deep; wrk with one thread, \
             {CONNECTIONS} connections and {SECONDS} s a turn, on the same machine: its cost is in every figure alike. {rounds} rounds for the \
             plain directory and {VERFS}, {} for the others. With sendfile off Apache maps the file (EnableMMAP). AllowOverride All makes \
             Apache look for .htaccess in every directory of the path; there is none.",
            DEEP.split('/').count(),
            rounds.div_ceil(3),
        ),
        plots: boards
            .iter()
            .enumerate()
            .take(3)
            .map(|(at, board)| Plot::ratios(&format!("apache-{at}"), board, RATE))
            .collect(),
        remarks: vec![
            format!("{VERFS} to {NATIVE}, requests/s: {}.", ratios.join("; ")),
            format!(
                "All upcalls under load, in all turns: {}.",
                if asked.is_empty() { "none".to_owned() } else { asked.join(", ") }
            ),
            format!(
                "Where there are no upcalls, what a request costs beside the plain directory is the kernel's own work for a FUSE file: for each name \
                 of a path it looks whether that still holds (fuse_dentry_revalidate, fuse_permission) and once more for an access list, since it \
                 does not remember for FUSE that there is none (fuse_get_inode_acl); and it keeps the pages of a file one by one, which ext4 keeps in \
                 large folios. That shows with large files, and so does what the kernel takes out of the page cache by itself: the peers find it \
                 there once more below, {VERFS} keeps large files once and reads from the disk."
            ),
        ],
        boards,
        targets,
        took: 0.0,
    })
}

/// What the kernel has asked verfs so far; nothing of the others.
fn by_operation(mounted: &Mounted) -> Outcome<BTreeMap<String, u64>> {
    mounted.verfs.as_ref().map_or_else(|| Ok(BTreeMap::new()), |mount| mount.upcalls())
}

fn url(label: &str) -> String {
    format!("/{DEEP}/{}.html", label.replace(' ', ""))
}

fn host(contender: usize, setting: usize) -> String {
    format!("c{contender}s{setting}.test")
}

fn lay_down(root: &Path) -> Outcome<()> {
    let mut random = Chance::new(1);
    fs::create_dir_all(root.join(DEEP))?;
    for (label, size) in SIZES {
        let mut bytes = vec![0; size];
        random.fill(&mut bytes);
        fs::write(root.join(url(label).trim_start_matches('/')), bytes)?;
    }
    Ok(())
}

/// A private Apache; ended when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Server {
    fn start(stage: &Stage, contenders: &[(&str, Mounted)]) -> Outcome<Server> {
        // Another process may take the free port before Apache does: then the next is tried.
        let mut last = String::new();
        for _ in 0..5 {
            match Server::try_start(stage, contenders) {
                Ok(server) => return Ok(server),
                Err(why) => last = why.to_string(),
            }
        }
        Err(format!("apache2 did not start: {last}").into())
    }

    fn try_start(stage: &Stage, contenders: &[(&str, Mounted)]) -> Outcome<Server> {
        let directory = stage.directory()?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let config = directory.path().join("apache.conf");
        fs::write(&config, config_text(directory.path(), port, contenders))?;
        let mut said = File::options().read(true).write(true).create_new(true).open(directory.path().join("output"))?;
        let child = stage::tied("apache2")
            .arg("-f")
            .arg(&config)
            .args(["-D", "FOREGROUND"])
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said.try_clone()?)
            .spawn()?;
        let mut server =
            Server { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), _directory: directory };
        let end = Instant::now() + PATIENCE;
        loop {
            // The child first: a port that answers while our server has ended belongs to somebody else.
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("{status}: {}", stage::text(&mut said)?.trim()).into());
            }
            if server._directory.path().join("apache.pid").exists() && TcpStream::connect(server.address).is_ok() {
                return Ok(server);
            }
            if Instant::now() > end {
                return Err("no answer".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fetches a file a few times and compares its length: what is measured has to be the right answer.
    fn warm(&self, contender: usize, setting: usize, label: &str) -> Outcome<()> {
        let size = SIZES.iter().find(|(known, _)| *known == label).map_or(0, |(_, size)| *size);
        for _ in 0..4 {
            let mut stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let host = host(contender, setting);
            write!(stream, "GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n", url(label))?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
            if !answer.starts_with(b"HTTP/1.1 200 ") || answer.len() - head != size {
                let said = String::from_utf8_lossy(&answer[..head]).into_owned();
                return Err(format!("{host}{}: {} bytes: {said}", url(label), answer.len() - head).into());
            }
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        stage::end(&mut self.child);
    }
}

fn config_text(directory: &Path, port: u16, contenders: &[(&str, Mounted)]) -> String {
    let dir = directory.display();
    let modules: String = ["mpm_event", "authz_core", "dir", "mime"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
    // As examples/apache.conf, so that the load is that of the quickstart.
    let mut text = format!(
        "ServerRoot {dir}\nDefaultRuntimeDir {dir}\nPidFile {dir}/apache.pid\nErrorLog {dir}/error.log\nLogLevel warn\n\
         ServerName 127.0.0.1\nListen 127.0.0.1:{port}\n{modules}User www-data\nGroup www-data\n\
         StartServers 2\nServerLimit 2\nThreadsPerChild 25\nMaxRequestWorkers 50\nMinSpareThreads 25\nMaxSpareThreads 50\n\
         MaxKeepAliveRequests 0\nKeepAliveTimeout 30\nTypesConfig /etc/mime.types\n\
         <Directory />\n    AllowOverride None\n    Require all denied\n</Directory>\n"
    );
    for (at, (_, mounted)) in contenders.iter().enumerate() {
        for (number, setting) in SETTINGS.iter().enumerate() {
            let root = mounted.root.display();
            let mmap = if setting.sendfile == "on" { "Off" } else { "On" };
            let _ = writeln!(
                text,
                "<VirtualHost 127.0.0.1:{port}>\n    ServerName {}\n    DocumentRoot {root}\n    EnableSendfile {}\n    EnableMMAP {mmap}\n    \
                 <Directory {root}>\n        Options FollowSymLinks\n        AllowOverride {}\n        Require all granted\n    </Directory>\n\
                 </VirtualHost>",
                host(at, number),
                setting.sendfile,
                setting.allow_override
            );
        }
    }
    text
}

/// What wrk found; times in microseconds.
struct Load {
    rate: f64,
    requests: f64,
    p50: f64,
    p99: f64,
}

fn wrk(address: &SocketAddr, host: &str, url: &str) -> Outcome<Load> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c", CONNECTIONS, "-d", SECONDS, "--timeout", "10", "--latency"]);
    command.args(["-H", &format!("Host: {host}"), &format!("http://{address}{url}")]);
    let text = String::from_utf8(stage::run(&mut command)?)?;
    parse(&text).ok_or_else(|| format!("wrk said what we do not understand, or errors:\n{text}").into())
}

/// None if something is missing, or if wrk counted errors.
fn parse(text: &str) -> Option<Load> {
    let after = |key: &str| {
        let line = text.lines().map(str::trim_start).find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()
    };
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return None;
    }
    let requests = text.lines().find(|line| line.contains(" requests in "))?.split_whitespace().next()?;
    Some(Load {
        rate: after("Requests/sec:")?.parse().ok()?,
        requests: requests.parse().ok()?,
        p50: microseconds(after("50%")?)?,
        p99: microseconds(after("99%")?)?,
    })
}

/// wrk writes 123.00us, 1.20ms, 1.01s.
fn microseconds(text: &str) -> Option<f64> {
    let (number, factor) = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7)]
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}
