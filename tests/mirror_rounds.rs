//! Rounds of a mirror: what they may overwrite, what they carry and what they leave behind, and the ways
//! from one host to another. `mirror` has the load.

mod support;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::command::{Outcome, run};
use support::content::{Image, sha256};
use support::web::{Web, open_room, print};
use support::{Registry, STILLAGE};

/// An account of every Debian that is not ours.
const DAEMON: u32 = 1;

/// What says of a directory that it is a mirror.
const MARK: &str = ".stillage-mirror";

/// A round of the mirror.
fn round(origin: &Path, mirror: &Path) -> Outcome {
    let mut command = Command::new(STILLAGE);
    run(command.args(["static", "mirror", "--run"]).arg(origin).arg(mirror))
}

/// Whether nginx serves an image of `a/b` from a tree, whole.
fn pulls(tree: &Path, tag: &str) -> bool {
    let web = Web::nginx(tree);
    let manifest = web.client().get(&format!("/v2/a/b/manifests/{tag}"));
    if manifest.status == 404 {
        return false;
    }
    let manifest = manifest.expect_status(200).json();
    let layers = manifest["layers"].as_array().expect("layers");
    for blob in layers.iter().chain([&manifest["config"]]) {
        let digest = blob["digest"].as_str().expect("a digest");
        web.client().head(&format!("/v2/a/b/blobs/{digest}")).expect_status(200);
    }
    true
}

fn assert_no_secrets(mirror: &Path) {
    let find =
        "find . -name .stillage -o -name .lock -o -name '_log*' -o -name '.*.????????????????'";
    let found = run(Command::new("sh").current_dir(mirror).args(["-c", find])).ok();
    assert_eq!(found.stdout, "");
}

/// A tree with one image, and where its mirror goes.
struct Pair {
    registry: Registry,
    room: tempfile::TempDir,
}

impl Pair {
    fn new() -> Pair {
        let room = open_room();
        let registry =
            Registry::start_on(&room.path().join("it's the origin"), &["--auth", "none"]);
        registry.client().push_image("a/b", "v1", &Image::random(1000));
        Pair { registry, room }
    }

    fn mirror(&self) -> PathBuf {
        self.room.path().join("mirror")
    }

    fn round(&self) -> Outcome {
        round(self.registry.root(), &self.mirror())
    }

    fn pulls(&self, tag: &str) -> bool {
        pulls(&self.mirror(), tag)
    }
}

#[test]
fn nothing_is_overwritten_that_is_no_mirror() {
    let pair = Pair::new();
    fs::create_dir(pair.mirror()).expect("a directory");
    fs::write(pair.mirror().join("mine"), "mine").expect("a file");
    let refused = pair.round().refused();
    assert!(refused.stderr.contains("is not empty, and no mirror"), "{refused}");
    assert_eq!(fs::read(pair.mirror().join("mine")).expect("there"), b"mine");
    fs::remove_file(pair.mirror().join("mine")).expect("removed");
    // What a file system of its own has from the beginning is nobody's, and stays.
    let own = pair.mirror().join("lost+found");
    fs::create_dir(&own).expect("a directory");
    pair.round().ok();
    assert!(pair.pulls("v1") && own.exists());
    // It is the mirror that says what it is, and only to who looks at its files.
    fs::remove_dir_all(pair.room.path().join("mirror.names")).expect("where names wait");
    pair.round().ok();
    assert!(pair.mirror().join(MARK).exists());
    let web = Web::nginx(&pair.mirror());
    for path in [format!("/{MARK}"), format!("/v2/{MARK}"), format!("/v2/a/../{MARK}")] {
        web.client().get(&path).expect_status(404);
    }
    drop(web);
    // And no mirror of a mirror says it of itself because of that.
    let second = pair.room.path().join("second");
    round(&pair.mirror(), &second).ok();
    fs::remove_file(second.join(MARK)).expect("there");
    round(&pair.mirror(), &second).refused();
    assert!(!second.join(MARK).exists());

    // The two the wrong way round.
    let swapped = round(&pair.mirror(), pair.registry.root()).refused();
    assert!(swapped.stderr.contains("is not empty, and no mirror"), "{swapped}");
    // A disk that is not mounted.
    let empty = pair.room.path().join("empty");
    fs::create_dir(&empty).expect("a directory");
    let refused = round(&empty, &pair.mirror()).refused();
    assert!(refused.stderr.contains("there is no repository in"), "{refused}");
    assert!(pair.pulls("v1"));
    for (origin, mirror, why) in [
        ("/a", "/a/b", "lie in one another"),
        ("x:/a", "y:/b", "both on other hosts"),
        ("/a", "/b\n", "cannot be written"),
    ] {
        let refused = print(&["mirror", origin, mirror]);
        assert_eq!(refused.code, Some(2), "{refused}");
        assert!(refused.stderr.contains(why), "{refused}");
    }
}

#[test]
fn rounds_do_not_meet_and_the_next_one_goes_on() {
    let pair = Pair::new();
    pair.round().ok();
    let running = fs::File::open(pair.room.path().join("mirror.names/.running")).expect("there");
    running.lock().expect("the lock");
    let refused = pair.round().refused();
    assert!(refused.stderr.contains("a round is running already"), "{refused}");
    drop(running);

    // A round that ends in the middle, for its rsync cannot write: what was there stays whole.
    pair.registry.client().push_image("a/b", "v2", &Image::random(2000));
    let path = pair.room.path().join("bin");
    fs::create_dir(&path).expect("a directory");
    let rsync = "#!/bin/sh\ncase \"$*\" in *index.json*mirror/) exit 11;; esac\nexec /usr/bin/rsync \"$@\"\n";
    fs::write(path.join("rsync"), rsync).expect("a script");
    run(Command::new("chmod").arg("755").arg(path.join("rsync"))).ok();
    let mut command = Command::new(STILLAGE);
    command.args(["static", "mirror", "--run"]).arg(pair.registry.root()).arg(pair.mirror());
    let env = format!("{}:{}", path.display(), std::env::var("PATH").expect("PATH"));
    let ended = run(command.env("PATH", env));
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.stderr.contains("exit code 11"), "{ended}");
    assert!(pair.pulls("v1") && !pair.pulls("v2"));
    pair.round().ok();
    assert!(pair.pulls("v1") && pair.pulls("v2"));
}

/// What is printed is what is run, and a daemon's module is an origin like a directory.
#[test]
fn the_script_runs_by_itself_from_a_daemon_too() {
    let pair = Pair::new();
    let (origin, mirror) = (pair.registry.root(), pair.mirror());
    let script = print(&["mirror", origin.to_str().expect("text"), mirror.to_str().expect("text")]);
    run(Command::new("sh").args(["-c", &script.ok().stdout])).ok();
    assert!(pair.pulls("v1"));

    pair.registry.client().push_image("a/b", "v2", &Image::random(2000));
    let daemon = Daemon::new(origin, pair.room.path());
    let url = format!("rsync://127.0.0.1:{}/registry", daemon.port);
    let script = print(&["mirror", &url, mirror.to_str().expect("text")]).ok().stdout;
    assert!(script.contains("Nothing keeps blobs at the origin"), "{script}");
    run(Command::new("sh").args(["-c", &script])).ok();
    assert!(pair.pulls("v2"));
    assert_no_secrets(&mirror);

    // From the origin to another host.
    let pushed = daemon.writable("");
    for _ in 0..2 {
        round(origin, Path::new(&pushed)).ok();
    }
    let pushed = pair.room.path().join("writable");
    assert!(pulls(&pushed, "v2") && pushed.join(MARK).exists());
    assert_no_secrets(&pushed);
}

/// Another repository, a typing error away from the mirror.
#[test]
fn nothing_is_overwritten_on_another_host_either() {
    let pair = Pair::new();
    let daemon = Daemon::new(pair.registry.root(), pair.room.path());
    let there = pair.room.path().join("writable");
    fs::create_dir(there.join("precious")).expect("a directory");
    fs::write(there.join("precious/index.json"), "{}").expect("a file");
    for _ in 0..2 {
        let refused = round(pair.registry.root(), Path::new(&daemon.writable(""))).refused();
        assert!(refused.stderr.contains("is not empty, and no mirror"), "{refused}");
        assert!(there.join("precious/index.json").exists());
    }
    // Beside it there is nothing yet.
    for _ in 0..2 {
        round(pair.registry.root(), Path::new(&daemon.writable("new"))).ok();
    }
    assert!(pulls(&there.join("new"), "v1"));
    // Whether a mirror is empty that cannot be looked at is not known.
    let url = format!("rsync://127.0.0.1:{}/nowhere/at/all", daemon.port);
    let refused = round(pair.registry.root(), Path::new(&url)).refused();
    assert!(refused.stderr.contains("cannot be looked at"), "{refused}");
}

/// Who may write to a repository with a shell plants links; on the mirror they would be those of whoever
/// runs the round, and Caddy follows any.
#[test]
fn what_is_planted_at_the_origin_does_not_come_to_the_mirror() {
    let mut pair = Pair::new();
    // It would make a list of tags anew.
    pair.registry.term();
    let repo = pair.registry.root().join("a/b");
    let planted = sha256(b"planted");
    let hex = &planted["sha256:".len()..];
    let beyond = "../blobs/sha256/../../../../../../../../../etc/passwd";
    for (target, at) in [
        ("/etc/passwd", format!("blobs/sha256/{hex}")),
        ("/etc/passwd", "_manifests/leak.oci-image".to_owned()),
        (beyond, "_manifests/beyond.oci-image".to_owned()),
        ("../index.json", "_manifests/index.oci-image".to_owned()),
        ("../../../c/blobs/sha256/x", "_manifests/another.oci-image".to_owned()),
        ("/etc/passwd", format!("_manifests/sha256/{hex}.oci-index")),
        ("/etc/passwd", format!("_referrers/sha256/{hex}.json")),
        ("/etc", "etc".to_owned()),
    ] {
        let path = repo.join(at);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        symlink(target, &path).expect("planted");
        lchown(&path, Some(DAEMON), Some(DAEMON)).expect("root");
    }
    let list = repo.join("_tags.json");
    fs::remove_file(&list).expect("removed");
    symlink("/etc/passwd", &list).expect("planted");
    for _ in 0..2 {
        pair.round().ok();
    }
    let links = "find . -type l -printf '%P %l\\n'";
    let links = run(Command::new("sh").current_dir(pair.mirror()).args(["-c", links])).ok().stdout;
    for link in links.lines() {
        let (name, target) = link.split_once(' ').expect("both");
        let below = if name.contains("/_manifests/sha256/") { "../../" } else { "../" };
        let hex = target.strip_prefix(&format!("{below}blobs/sha256/")).expect(link);
        assert!(hex.len() == 64 && !hex.contains(['.', '/']), "{link}");
    }
    assert_eq!(links.lines().count(), 2, "by tag and by digest:\n{links}");

    let web = Web::start("caddy", &pair.mirror(), &[]);
    web.client().get("/v2/a/b/manifests/v1").expect_status(200);
    for path in [
        format!("/v2/a/b/blobs/{planted}"),
        format!("/v2/a/b/manifests/{planted}"),
        "/v2/a/b/manifests/leak".to_owned(),
        "/v2/a/b/manifests/beyond".to_owned(),
        "/v2/a/b/manifests/index".to_owned(),
        "/v2/a/b/tags/list".to_owned(),
    ] {
        let answer = web.client().get(&path).expect_status(404);
        assert!(!answer.text().contains("root:"), "{path}: {answer:?}");
    }
    fs::remove_dir_all(&repo).expect("what was planted");
    pair.registry.run();
}

/// As in docs/mirror.md: pushed from the origin's host, and fetched from it.
#[test]
fn a_mirror_is_kept_over_ssh() {
    let pair = Pair::new();
    let ssh = Ssh::new(pair.room.path());
    let round = |origin: &Path, mirror: &Path| {
        let mut command = Command::new(STILLAGE);
        command.args(["static", "mirror", "--run"]).arg(origin).arg(mirror);
        run(command.env("RSYNC_RSH", &ssh.client))
    };
    let there = |path: &Path| PathBuf::from(format!("127.0.0.1:{}", path.display()));
    let (origin, pushed) = (pair.registry.root(), pair.room.path().join("pushed"));
    for _ in 0..2 {
        round(origin, &there(&pushed)).ok();
    }
    assert!(pulls(&pushed, "v1") && pushed.join(MARK).exists());
    assert_no_secrets(&pushed);
    round(&there(origin), &pair.mirror()).ok();
    assert!(pair.pulls("v1"));

    let used = pair.room.path().join("used");
    fs::create_dir_all(used.join("precious")).expect("a directory");
    let refused = round(origin, &there(&used)).refused();
    assert!(refused.stderr.contains("is not empty, and no mirror"), "{refused}");
    assert!(used.join("precious").exists());
}

/// rsync's daemon on 127.0.0.1, stopped when dropped.
struct Daemon {
    port: u16,
    _child: Running,
}

impl Daemon {
    /// With a module `registry` to read from, and `writable`, a directory in `room`.
    fn new(tree: &Path, room: &Path) -> Daemon {
        let port = free_port();
        let writable = room.join("writable");
        fs::create_dir(&writable).expect("a directory");
        let settings = format!(
            "use chroot = no\nuid = root\ngid = root\n[registry]\npath = {}\nread only = yes\n\
             exclude = /.stillage/\n[writable]\npath = {}\nread only = no\nmunge symlinks = no\n",
            tree.display(),
            writable.display()
        );
        fs::write(room.join("rsyncd.conf"), settings).expect("its settings");
        let mut command = program("rsync");
        command.args(["--daemon", "--no-detach", "--address=127.0.0.1"]);
        command.arg(format!("--port={port}")).arg("--config").arg(room.join("rsyncd.conf"));
        Daemon { port, _child: Running::listening(&mut command, port) }
    }

    /// The URL of a directory in `writable`.
    fn writable(&self, name: &str) -> String {
        format!("rsync://127.0.0.1:{}/writable/{name}", self.port)
    }
}

/// sshd on 127.0.0.1 for root with a key of its own, stopped when dropped.
struct Ssh {
    /// The client's command, for `RSYNC_RSH`.
    client: String,
    _child: Running,
    made: bool,
}

/// The directory that sshd locks itself into.
const JAIL: &str = "/run/sshd";

impl Drop for Ssh {
    fn drop(&mut self) {
        if self.made {
            let _ = fs::remove_dir(JAIL);
        }
    }
}

impl Ssh {
    fn new(room: &Path) -> Ssh {
        let at = |name: &str| room.join(name).display().to_string();
        for name in ["host", "user"] {
            let mut command = Command::new("ssh-keygen");
            run(command.args(["-q", "-t", "ed25519", "-N", "", "-f", &at(name)])).ok();
        }
        let made = fs::create_dir(JAIL).is_ok();
        let port = free_port();
        let settings = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\n\
             PidFile none\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
             AllowUsers root\n",
            at("host"),
            at("user.pub"),
        );
        fs::write(room.join("sshd_config"), settings).expect("its settings");
        // It starts itself anew for each connection, by its full path.
        let mut command = program("/usr/sbin/sshd");
        command.args(["-D", "-q", "-f", &at("sshd_config")]);
        let client = format!(
            "ssh -F none -p {port} -l root -i {} -o BatchMode=yes -o LogLevel=ERROR \
             -o StrictHostKeyChecking=no -o UserKnownHostsFile={}",
            at("user"),
            at("known"),
        );
        Ssh { client, _child: Running::listening(&mut command, port), made }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// One that ends with the thread that starts it.
fn program(name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", name]);
    command
}

/// A server that runs until it is dropped.
struct Running(Child);

impl Running {
    fn listening(command: &mut Command, port: u16) -> Running {
        let child =
            command.stdin(Stdio::null()).spawn().expect("tests/run installs what is missing");
        let running = Running(child);
        let until = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "it does not listen");
            std::thread::yield_now();
        }
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
