//! Web servers in front of a registry: real nginx and Caddy with TLS, on 127.0.0.1, stopped when
//! dropped.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::command::run;
use super::tls::{Curl, Pair};
use super::{Registry, STILLAGE};

/// A web server is there within this time, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The prefix that the tests give to `--accel`.
pub const PREFIX: &str = "/_blobs";

/// A running web server.
pub struct Proxy {
    // Stopped before its directory goes.
    server: Running,
    room: tempfile::TempDir,
    addr: SocketAddr,
    trusted: PathBuf,
}

impl Proxy {
    /// nginx with its workers as www-data, configured as `stillage` prints it for `--accel`.
    pub fn nginx(registry: &Registry) -> Proxy {
        let room = room();
        let pair = Pair::new(room.path());
        let root = fs::canonicalize(registry.root()).expect("ROOT");
        on_a_free_port(room, pair.certificate.clone(), |room, addr| {
            // Without what is typed for `serve`: the printed lines alone.
            let mut print = Command::new(STILLAGE);
            print.args(["static", "nginx", "--accel", PREFIX, "--server-name", "localhost"]);
            print.arg(&root).args(["--listen", &addr.to_string()]).args(pair.args());
            print.args(["--upstream", &registry.addr().to_string()]);
            let front = run(&mut print).ok().stdout;
            let room_path = room.display();
            let text = format!(
                "user www-data; daemon off; worker_processes 1; pid {room_path}/pid;\n\
                 error_log {room_path}/log info;\nevents {{ }}\nhttp {{\n\
                 access_log off; client_body_temp_path {room_path}/body;\n\
                 proxy_temp_path {room_path}/p; fastcgi_temp_path {room_path}/f;\n\
                 uwsgi_temp_path {room_path}/u; scgi_temp_path {room_path}/s;\n{front}}}\n"
            );
            fs::write(room.join("conf"), text).expect("the configuration");
            let mut nginx = program("nginx");
            nginx.arg("-e").arg(room.join("log")).arg("-c").arg(room.join("conf"));
            nginx
        })
    }

    /// Caddy with certificates that it makes itself.
    pub fn caddy(registry: &Registry) -> Proxy {
        let room = room();
        let root = room.path().join("pki/authorities/local/root.crt");
        on_a_free_port(room, root, |room, addr| {
            let text = format!(
                "{{\n admin off\n skip_install_trust\n auto_https disable_redirects\n\
                 storage file_system {0}\n}}\n\
                 https://localhost:{1} {{\n bind 127.0.0.1\n tls internal\n\
                 reverse_proxy {2}\n}}\n",
                room.display(),
                addr.port(),
                registry.addr()
            );
            fs::write(room.join("conf"), text).expect("the configuration");
            let mut caddy = program("caddy");
            caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(room.join("conf"));
            caddy.env("HOME", room).env("XDG_DATA_HOME", room).env("XDG_CONFIG_HOME", room);
            caddy
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How a client at the same machine names it.
    pub fn name(&self) -> String {
        format!("localhost:{}", self.addr.port())
    }

    /// curl that trusts it.
    pub fn curl(&self) -> Curl {
        Curl::new(self.addr, &self.trusted)
    }

    /// The directory that makes podman, buildah and skopeo trust it (`--cert-dir`).
    pub fn certificates(&self) -> String {
        let dir = self.room.path().join("certs");
        fs::create_dir_all(&dir).expect("a directory");
        fs::copy(&self.trusted, dir.join("ca.crt")).expect("the certificate");
        dir.display().to_string()
    }

    /// A directory that goes when this does.
    pub fn path(&self) -> &Path {
        self.room.path()
    }

    /// What it complained of.
    pub fn log(&self) -> String {
        fs::read_to_string(self.room.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the web server's log ---\n{}", self.log());
        }
    }
}

/// A program that ends when this does, and when the test is killed.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// One that is stopped with the thread that starts it, however that ends.
fn program(name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", name]);
    command
}

fn room() -> tempfile::TempDir {
    let room = tempfile::Builder::new().prefix("stillage-proxy-").tempdir().expect("a directory");
    fs::set_permissions(room.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    room
}

/// Neither can listen on port 0 and say which it got: somebody else may be faster.
fn on_a_free_port(
    room: tempfile::TempDir,
    trusted: PathBuf,
    command: impl Fn(&Path, SocketAddr) -> Command,
) -> Proxy {
    for _ in 0..5 {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let addr = free.expect("a free port");
        let log = File::create(room.path().join("log")).expect("a log");
        let mut command = command(room.path(), addr);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let mut server = Running(child.expect("tests/run installs what is missing"));
        if comes(&mut server, addr, &trusted) {
            return Proxy { server, room, addr, trusted };
        }
        let log = fs::read_to_string(room.path().join("log")).unwrap_or_default();
        assert!(log.contains("in use"), "it ended:\n{log}");
    }
    panic!("no port stays free")
}

/// Waits until it answers, or has ended.
fn comes(server: &mut Running, addr: SocketAddr, trusted: &Path) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        // It has to be this one, by its certificate: another could have the port by now.
        let curl = Curl::new(addr, trusted);
        if trusted.exists() && curl.run(&["--output", "/dev/null"], "/v2/").code == Some(0) {
            return true;
        }
        if server.0.try_wait().expect("its state").is_some() {
            return false;
        }
        assert!(Instant::now() < until, "it does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
}
