//! docker and containerd, each with a daemon of its own, pull from nginx, Caddy and Apache alone.

mod support;

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use support::Registry;
use support::command::{Outcome, run};
use support::containers::{Containers, localhost};
use support::content::sha256;
use support::web::{Web, open_room};

const SERVERS: [&str; 3] = ["nginx", "caddy", "apache"];

/// An image for two platforms and one for one, pushed by podman; the server has ended.
struct Tree {
    registry: Registry,
    /// The digest of the image for two platforms.
    both: String,
    _room: tempfile::TempDir,
}

impl Tree {
    fn new() -> Tree {
        let room = open_room();
        let mut registry = Registry::start_on(&room.path().join("registry"), &["--auth", "none"]);
        let server = localhost(registry.addr());
        let home = Containers::new();
        for arch in ["amd64", "arm64"] {
            home.image(&format!("localhost/{arch}"), arch, arch);
        }
        let docker = format!("{server}/team/app:docker");
        let args = ["push", "--tls-verify=false", "--format", "v2s2", "localhost/amd64", &docker];
        home.podman(&args).ok();
        let together = ["localhost/amd64:latest", "localhost/arm64:latest"];
        home.push_together(&together, &format!("{server}/team/app:both"));
        let both = sha256(&registry.client().get("/v2/team/app/manifests/both").body);
        registry.term();
        Tree { registry, both, _room: room }
    }

    /// What is pulled, by each server's port. It has to be a name of loopback for which docker needs no
    /// TLS.
    fn references(&self, web: &Web) -> [String; 3] {
        let repo = format!("{}/team/app", web.addr());
        [format!("{repo}:docker"), format!("{repo}:both"), format!("{repo}@{}", self.both)]
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // It is checked as it ends.
            self.registry.run();
        }
    }
}

/// A daemon whose files and socket are in a directory of its own; stopped when dropped.
struct Daemon {
    child: Child,
    room: tempfile::TempDir,
}

impl Daemon {
    /// `line` with `@` for its directory, where its socket is called `sock`.
    fn new(line: &str, settings: &str) -> Daemon {
        let room = open_room();
        let at = room.path().to_str().expect("text");
        std::fs::write(room.path().join("settings"), settings.replace('@', at)).expect("settings");
        let log = File::create(room.path().join("log")).expect("its log");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).args(line.replace('@', at).split(' '));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("its log")).stderr(log);
        let child = command.current_dir(&room).process_group(0).spawn();
        Daemon { child: child.expect("setpriv is installed"), room }
    }

    fn socket(&self) -> PathBuf {
        self.room.path().join("sock")
    }

    /// Waits until a command of its client succeeds.
    fn until(&mut self, client: impl Fn(&Daemon) -> Outcome) {
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            let outcome = client(self);
            if outcome.code == Some(0) {
                return;
            }
            let ended = self.child.try_wait().expect("its state");
            assert!(ended.is_none() && Instant::now() < until, "{outcome}\n{}", self.log());
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.room.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        let _ = kill_process_group(pid, Signal::TERM);
        let until = Instant::now() + Duration::from_secs(60);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > until {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            std::thread::yield_now();
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}", self.log());
        }
    }
}

#[test]
fn docker_pulls_from_each_alone() {
    let tree = Tree::new();
    let mut daemon = Daemon::new(
        "dockerd --data-root @/data --exec-root @/exec --pidfile @/pid -H unix://@/sock --bridge=none \
         --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --storage-driver=vfs \
         --config-file @/settings",
        "{}",
    );
    let docker = |daemon: &Daemon, args: &[&str]| {
        let host = format!("unix://{}", daemon.socket().display());
        run(Command::new("docker").env("HOME", daemon.room.path()).args(["-H", &host]).args(args))
    };
    daemon.until(|daemon| docker(daemon, &["version"]));
    for server in SERVERS {
        let web = Web::start(server, tree.registry.root(), &[]);
        for reference in tree.references(&web) {
            docker(&daemon, &["pull", &reference]).ok();
            docker(&daemon, &["rmi", "--force", &reference]).ok();
        }
    }
}

#[test]
fn containerd_pulls_from_each_alone() {
    let tree = Tree::new();
    let mut daemon = Daemon::new(
        "containerd -c @/settings",
        "version = 2\nroot = \"@/root\"\nstate = \"@/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"@/sock\"\n",
    );
    let ctr = |daemon: &Daemon, args: &[&str]| {
        run(Command::new("ctr").arg("-a").arg(daemon.socket()).args(args))
    };
    daemon.until(|daemon| ctr(daemon, &["version"]));
    for server in SERVERS {
        let web = Web::start(server, tree.registry.root(), &[]);
        for reference in tree.references(&web) {
            let pull = ["images", "pull", "--plain-http", "--snapshotter", "native", &reference];
            ctr(&daemon, &pull).ok();
            let all = ["content", "fetch", "--plain-http", "--all-platforms", &reference];
            ctr(&daemon, &all).ok();
            let listed = ctr(&daemon, &["images", "ls", "-q"]).ok().stdout;
            assert!(listed.contains(&reference), "{listed}");
            ctr(&daemon, &["images", "rm", "--sync", &reference]).ok();
        }
    }
}
