//! Plain web servers on a tree: nginx, Caddy and Apache, each with what `stillage static` prints and
//! nothing else, on a free port of 127.0.0.1, as the account that they serve by.

use std::fs::{self, File, Permissions};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::command::{Outcome, run};
use super::http::{Client, Response};
use super::{Registry, STILLAGE};

/// How long a start or a stop may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Debian's `www-data`, by which all three serve.
pub const WWW_DATA: u32 = 33;

/// A directory that everybody may enter, for a tree that a web server's account is to read; removed when
/// dropped.
pub fn open_room() -> tempfile::TempDir {
    let room = tempfile::Builder::new().prefix("stillage-web-").tempdir().expect("a directory");
    fs::set_permissions(room.path(), Permissions::from_mode(0o755)).expect("its mode");
    room
}

/// A registry, and nginx on its tree. Dropped in this order.
pub struct Served {
    pub web: Web,
    pub registry: Registry,
    _room: tempfile::TempDir,
}

impl Served {
    pub fn new() -> Served {
        Served::called("registry")
    }

    /// ROOT has this name.
    pub fn called(name: &str) -> Served {
        Served::with(name, &[])
    }

    /// The server has these arguments.
    pub fn with(name: &str, args: &[&str]) -> Served {
        let room = open_room();
        let args = [&["--auth", "none"], args].concat();
        let registry = Registry::start_on(&room.path().join(name), &args);
        let web = Web::nginx(registry.root());
        Served { web, registry, _room: room }
    }

    pub fn ours(&self) -> Client {
        self.registry.client()
    }

    pub fn nginx(&self) -> Client {
        self.web.client()
    }

    pub fn repo(&self, name: &str) -> PathBuf {
        self.registry.root().join(name)
    }
}

/// What a client goes by. `Accept-Ranges` and `ETag` are each server's own.
const HEADERS: [&str; 8] = [
    "content-type",
    "content-length",
    "docker-content-digest",
    "docker-distribution-api-version",
    "cache-control",
    "x-content-type-options",
    "content-security-policy",
    "location",
];

#[track_caller]
pub fn assert_alike(ours: &Response, theirs: &Response, what: &str) {
    assert_eq!(theirs.status, ours.status, "{what}: {theirs:?}\n{ours:?}");
    // The server says of what has no digest nothing, nginx that it is to be asked for anew.
    let named = ["/manifests/", "/blobs/"].iter().any(|part| what.contains(part));
    for name in HEADERS.into_iter().filter(|name| named || *name != "cache-control") {
        assert_eq!(theirs.header(name), ours.header(name), "{what}, {name}: {theirs:?}\n{ours:?}");
    }
    assert_eq!(theirs.text(), ours.text(), "{what}");
}

/// A web server that runs; stopped when dropped, also when the test fails or is killed.
pub struct Web {
    addr: SocketAddr,
    child: Child,
    room: tempfile::TempDir,
}

impl Web {
    /// nginx with one worker.
    #[track_caller]
    pub fn nginx(root: &Path) -> Web {
        Web::start("nginx", root, &[])
    }

    /// `nginx`, `caddy` or `apache` with what `stillage static` prints for these arguments.
    #[track_caller]
    pub fn start(server: &str, root: &Path, args: &[&str]) -> Web {
        Web::start_with(server, |listen| {
            let mut command = Command::new(STILLAGE);
            command.args(["static", server]).arg(root).args(["--listen", listen]).args(args);
            run(&mut command).ok().stdout
        })
    }

    /// The same with a configuration of the test's own, for an address such as `127.0.0.1:1234`.
    #[track_caller]
    pub fn start_with(server: &str, configuration: impl Fn(&str) -> String) -> Web {
        // Somebody else may take the free port before the server does.
        for _ in 0..5 {
            let addr = free_port();
            let room = open_room();
            let text = configuration(&addr.to_string());
            let mut command = prepare(server, room.path(), &text);
            let child = command.spawn().unwrap_or_else(|error| {
                panic!("{server}: {error} (tests/run installs what is missing)")
            });
            let mut web = Web { addr, child, room };
            if web.answers() {
                return web;
            }
            let said = web.log();
            assert!(
                said.contains("in use") || said.contains("not bind"),
                "{server}: {said}\n{text}"
            );
        }
        panic!("{server} found every port taken");
    }

    /// Waits until it listens; `false` if it ended instead.
    fn answers(&mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            if self.child.try_wait().expect("its state").is_some() {
                return false;
            }
            if TcpStream::connect(self.addr).is_ok() {
                return true;
            }
            assert!(Instant::now() < until, "it does not listen: {}", self.log());
            std::thread::yield_now();
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(self.addr)
    }

    /// The process that answers: for nginx its one worker.
    pub fn worker(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let text = fs::read_to_string(children).expect("its children");
        text.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("a worker")
    }

    /// What it said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.room.path().join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        // Its workers are in the same group.
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let until = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > until {
                self.signal(Signal::KILL);
            }
            std::thread::yield_now();
        }
        if std::thread::panicking() {
            eprintln!("--- the web server's log ---\n{}", self.log());
        }
    }
}

/// Runs `stillage static` with these arguments.
pub fn print(args: &[&str]) -> Outcome {
    run(Command::new(STILLAGE).arg("static").args(args))
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}

/// The command that runs a server in the foreground, with everything that it writes in `room`. It ends
/// with the thread that starts it, whatever becomes of that.
fn prepare(server: &str, room: &Path, site: &str) -> Command {
    let at = |name: &str| room.join(name);
    fs::write(at("site"), site).expect("the site's file");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]);
    match server {
        "nginx" => {
            fs::write(at("main"), nginx(room)).expect("nginx's file");
            command.args(["nginx", "-e", "stderr", "-p"]).arg(room).arg("-c").arg(at("main"));
        }
        "caddy" => {
            fs::write(
                at("main"),
                format!(
                    "{{\n\tadmin off\n\tauto_https disable_redirects\n}}\nimport {}\n",
                    at("site").display()
                ),
            )
            .expect("Caddy's file");
            chown(room, Some(WWW_DATA), Some(WWW_DATA)).expect("its directory");
            command.args(["--reuid=33", "--regid=33", "--clear-groups", "caddy", "run"]);
            command.args(["--adapter", "caddyfile", "--config"]).arg(at("main"));
        }
        "apache" => {
            fs::write(at("main"), apache(room)).expect("Apache's file");
            command.args(["apache2", "-D", "FOREGROUND", "-f"]).arg(at("main"));
        }
        other => panic!("{other} is no web server"),
    }
    let log = File::options().create(true).append(true).open(at("log")).expect("its log");
    command
        .current_dir(room)
        .env("HOME", room)
        .env("XDG_DATA_HOME", room)
        .env("XDG_CONFIG_HOME", room)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("its log"))
        .stderr(log)
        .process_group(0);
    command
}

/// What stands around a server block on a host: Debian's nginx.conf, but that it writes to `room` only.
fn nginx(room: &Path) -> String {
    let at = |name: &str| -> PathBuf { room.join(name) };
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {};\n", at(what).display()))
        .concat();
    format!(
        "user www-data;\nworker_processes 1;\ndaemon off;\npid {pid};\nerror_log stderr warn;\n\
         events {{ worker_connections 768; }}\n\
         http {{\nsendfile on;\ntcp_nopush on;\ninclude /etc/nginx/mime.types;\n\
         default_type application/octet-stream;\ngzip on;\naccess_log off;\n{temporary}include {site};\n}}\n",
        pid = at("pid").display(),
        site = at("site").display(),
    )
}

/// What stands around a virtual host on a host: the modules, and what Debian's configuration says of
/// directories and of endings.
fn apache(room: &Path) -> String {
    let modules = [
        "mpm_event",
        "authz_core",
        "rewrite",
        "headers",
        "mime",
        "ssl",
        "alias",
        "dir",
        "setenvif",
    ]
    .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
    .concat();
    format!(
        "ServerRoot {room}\nServerName localhost\nPidFile {room}/pid\nDefaultRuntimeDir {room}\n\
         ErrorLog {room}/log\nUser www-data\nGroup www-data\n{modules}\
         <Directory />\nOptions FollowSymLinks\nAllowOverride None\nRequire all denied\n</Directory>\n\
         TypesConfig /etc/mime.types\nAddEncoding x-gzip .gz\nAddLanguage de .de\nInclude {room}/site\n",
        room = room.display()
    )
}
