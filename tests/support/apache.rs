//! A private Apache, run as a child process with `examples/apache.conf`.
//!
//! Owns: the process, its port on 127.0.0.1, and the scratch directory of its pid file and log. Dropping it ends the server.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A start or an end that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at something that is awaited.
const GLANCE: Duration = Duration::from_millis(10);

/// Whether Apache looks for `.htaccess` in every directory of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AllowOverride {
    None,
    All,
}

impl fmt::Display for AllowOverride {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AllowOverride::None => "None",
            AllowOverride::All => "All",
        })
    }
}

/// How file bodies reach the socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    Mmap,
    Sendfile,
}

/// A running server. It serves until dropped.
pub struct Apache {
    child: Child,
    address: SocketAddr,
    scratch: tempfile::TempDir,
}

impl Apache {
    /// Starts a server for `docroot` and returns when it takes connections. `docroot` must be reachable for www-data.
    pub fn start(docroot: &Path, allow_override: AllowOverride, sending: Sending) -> Self {
        let program = program();
        // Another process may take the free port before Apache does: then Apache ends at once, and the next port is tried.
        let mut log = String::new();
        for _ in 0..5 {
            match Self::try_start(&program, docroot, allow_override, sending) {
                Ok(apache) => return apache,
                Err(why) => log = why,
            }
        }
        panic!("apache2 did not start:\n{log}");
    }

    fn try_start(
        program: &Path,
        docroot: &Path,
        allow_override: AllowOverride,
        sending: Sending,
    ) -> Result<Self, String> {
        let scratch = tempfile::Builder::new()
            .prefix("verfs-apache.")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).unwrap().port();
        let (mmap, sendfile) = match sending {
            Sending::Mmap => ("On", "Off"),
            Sending::Sendfile => ("Off", "On"),
        };
        let output = fs::File::create(scratch.path().join("output")).unwrap();
        let mut command = Command::new(program);
        command
            .arg("-f")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/apache.conf"))
            .args(["-D", "FOREGROUND"]);
        for (name, value) in [
            ("DIR", scratch.path().display().to_string()),
            ("PORT", port.to_string()),
            ("DOCROOT", docroot.display().to_string()),
            ("OVERRIDE", allow_override.to_string()),
            ("MMAP", mmap.to_owned()),
            ("SENDFILE", sendfile.to_owned()),
        ] {
            command.args(["-C", &format!("Define {name} {value}")]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
        let mut apache = Apache { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), scratch };
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The child first: a port that answers while our server has ended belongs to somebody else.
            if let Some(status) = apache.child.try_wait().unwrap() {
                return Err(format!("{status}\n{}", apache.log()));
            }
            let serves = apache.scratch.path().join("apache.pid").exists()
                && TcpStream::connect_timeout(&apache.address, PATIENCE).is_ok();
            if serves {
                return Ok(apache);
            }
            if Instant::now() > deadline {
                return Err(format!("no answer\n{}", apache.log()));
            }
            thread::sleep(GLANCE);
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All that it has printed and logged.
    pub fn log(&self) -> String {
        ["output", "error.log"]
            .map(|name| fs::read(self.scratch.path().join(name)).unwrap_or_default())
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .concat()
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(group, rustix::process::Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > deadline {
                // Its workers are in a process group of their own, with it as the leader.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                let _ = self.child.wait();
                return;
            }
            thread::sleep(GLANCE);
        }
    }
}

/// The server's program, wherever this Debian or Ubuntu keeps it.
fn program() -> PathBuf {
    ["/usr/sbin/apache2", "/usr/bin/apache2"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
        .expect("apache2 is missing: scripts/install-deps installs it")
}
