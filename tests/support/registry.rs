//! A running `stillage serve`, its tree, and what it said.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::calls::Calls;
use super::command::run;
use super::http::Client;

/// The binary under test.
pub const STILLAGE: &str = env!("CARGO_BIN_EXE_stillage");

/// How long a start or a stop may take before the test fails. Nothing waits for it otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server on loopback and the tree that it serves.
///
/// Dropped, it is stopped by SIGTERM and `stillage check` must find nothing wrong with the tree
/// (unless the test is panicking already, or [`Registry::expect_damage`] was said).
pub struct Registry {
    root: PathBuf,
    /// Holds the temporary directory of ROOT and of the server's output.
    room: tempfile::TempDir,
    args: Vec<String>,
    /// What starts the server, before its own command line.
    by: Vec<String>,
    envs: Vec<(String, String)>,
    /// Who stands between the server and its tree.
    calls: Option<Calls>,
    addr: SocketAddr,
    /// What the server says on stdout after its first line.
    report: Option<Mutex<mpsc::Receiver<String>>>,
    server: Option<Child>,
    damage_expected: bool,
}

impl Registry {
    /// Starts `stillage serve ROOT --listen 127.0.0.1:0 ARGS…` on an empty tree of its own.
    pub fn start(args: &[&str]) -> Registry {
        let room = room();
        let root = room.path().join("registry");
        Registry::launch(room, root, args, &[])
    }

    /// The same on a tree that the caller made and keeps, or on another file system.
    pub fn start_on(root: &Path, args: &[&str]) -> Registry {
        Registry::launch(room(), root.to_path_buf(), args, &[])
    }

    /// The same with additional environment variables.
    pub fn start_with_env(args: &[&str], envs: &[(&str, &str)]) -> Registry {
        let room = room();
        let root = room.path().join("registry");
        Registry::launch(room, root, args, envs)
    }

    /// The same started by another program: setpriv with its arguments, for instance. It must become
    /// the server, not start one.
    pub fn start_by(by: &[&str], root: &Path, args: &[&str]) -> Registry {
        let by = by.iter().map(ToString::to_string).collect();
        Registry::launch_by(by, room(), root.to_path_buf(), args, &[])
    }

    /// The same with somebody between the server and its tree, who can record its system calls and let
    /// them fail.
    pub fn start_held(calls: &Calls, root: &Path, args: &[&str]) -> Registry {
        let mut registry = Registry::prepare(Vec::new(), room(), root.to_path_buf(), args, &[]);
        registry.calls = Some(calls.clone());
        // Nobody looks at the tree but on behalf of a request: calls can be counted.
        registry.envs.push(("STILLAGE_LOOK_EVERY".to_owned(), "0".to_owned()));
        registry.run();
        registry
    }

    fn launch(
        room: tempfile::TempDir,
        root: PathBuf,
        args: &[&str],
        envs: &[(&str, &str)],
    ) -> Registry {
        Registry::launch_by(Vec::new(), room, root, args, envs)
    }

    fn launch_by(
        by: Vec<String>,
        room: tempfile::TempDir,
        root: PathBuf,
        args: &[&str],
        envs: &[(&str, &str)],
    ) -> Registry {
        let mut registry = Registry::prepare(by, room, root, args, envs);
        registry.run();
        registry
    }

    fn prepare(
        by: Vec<String>,
        room: tempfile::TempDir,
        root: PathBuf,
        args: &[&str],
        envs: &[(&str, &str)],
    ) -> Registry {
        Registry {
            root,
            room,
            args: args.iter().map(ToString::to_string).collect(),
            by,
            envs: envs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            calls: None,
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            report: None,
            server: None,
            damage_expected: false,
        }
    }

    /// Starts the server again after [`Registry::kill9`] or [`Registry::term`]. The port is a new one.
    pub fn run(&mut self) {
        assert!(self.server.is_none(), "the server is running already");
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(self.stderr_path())
            .expect("the server's stderr file");
        let line = self.by.iter().map(String::as_str).chain([STILLAGE]).collect::<Vec<_>>();
        let mut command = Command::new(line[0]);
        command
            .args(&line[1..])
            .arg("serve")
            .arg(&self.root)
            .args(["--listen", "127.0.0.1:0"])
            .args(&self.args)
            // The machine's disk may be nearly full, which is no business of most tests.
            .env("STILLAGE_MIN_FREE", "0")
            .envs(self.envs.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let child = match &self.calls {
            Some(calls) => calls.spawn(&mut command),
            None => command.spawn(),
        };
        let mut child = child.expect("the built binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        self.server = Some(child);
        let (first, lines) = mpsc::channel();
        std::thread::spawn(move || {
            // Read to the end: a server whose stdout is not read could block on it.
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = first.send(text);
            }
        });
        let line = lines.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let state = self.stop(Signal::KILL);
            panic!("the server printed no line ({state:?}); its stderr:\n{}", self.stderr())
        });
        let prefix = format!("stillage: serving {} at ", self.root.display());
        let url = line.strip_prefix(&prefix).and_then(|url| url.split_once("://"));
        self.addr = url
            .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
            .and_then(|(_, addr)| addr.parse().ok())
            .unwrap_or_else(|| panic!("first line {line:?}, expected {prefix}http://ADDR"));
        self.report = Some(Mutex::new(lines));
    }

    /// SIGTERM, wait for the end, start again on the same tree. The port is a new one.
    pub fn restart(&mut self) {
        let status = self.term();
        assert!(status.success(), "SIGTERM ended in {status}; stderr:\n{}", self.stderr());
        self.run();
    }

    /// SIGTERM: requests in flight are finished. Returns how the server ended.
    pub fn term(&mut self) -> ExitStatus {
        self.stop(Signal::TERM).expect("a running server")
    }

    /// SIGKILL: what a crash of the process leaves.
    pub fn kill9(&mut self) -> ExitStatus {
        self.stop(Signal::KILL).expect("a running server")
    }

    /// SIGTERM without waiting: for what is to be seen while the server ends. Then [`Registry::term`].
    pub fn signal_term(&self) {
        send(Signal::TERM, self.server.as_ref().expect("a running server"));
    }

    fn stop(&mut self, signal: Signal) -> Option<ExitStatus> {
        let mut server = self.server.take()?;
        send(signal, &server);
        let pid = Pid::from_child(&server);
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || ended.send(server.wait()));
        let status = end.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let _ = kill_process(pid, Signal::KILL);
            panic!("the server did not end at {signal:?}; its stderr:\n{}", self.stderr())
        });
        Some(status.expect("wait for the server"))
    }

    /// Where the server listens: 127.0.0.1 and its port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next line that the server prints on stdout, after the one with its address.
    pub fn next_line(&self) -> String {
        let lines = self.report.as_ref().expect("a server that was started");
        let lines = lines.lock().expect("nobody panics with it");
        lines.recv_timeout(PATIENCE).expect("one more line")
    }

    /// The directory that is served.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file of an open upload session, by its Location; it appears with the first byte.
    pub fn upload_data(&self, location: &str) -> PathBuf {
        let path = location.split('?').next().unwrap_or_default();
        let id = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        self.root.join(".stillage/uploads").join(id).join("data")
    }

    /// An empty directory beside the tree, for what a test needs to put somewhere; removed at the end.
    pub fn scratch(&self) -> PathBuf {
        let path = self.room.path().join("scratch");
        fs::create_dir_all(&path).expect("scratch directory");
        path
    }

    /// Lets somebody create repositories beneath ROOT, as an administrator would: `who` as
    /// setfacl(1) spells it, such as `u:alice`. What they create is theirs to push to.
    pub fn grant(&self, who: &str) {
        self.setfacl(&format!("{who}:rwx"), "");
    }

    /// `setfacl -m ENTRY` of a directory beneath ROOT.
    pub fn setfacl(&self, entry: &str, relative: &str) {
        let path = self.root.join(relative);
        run(Command::new("setfacl").args(["-m", entry]).arg(path)).ok();
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("a running server").id()
    }

    /// A client without credentials.
    pub fn client(&self) -> Client {
        Client::new(self.addr)
    }

    /// Waits until the server's log says this: what is written beside an answer may come after it.
    #[track_caller]
    pub fn logs(&self, text: &str) {
        let until = std::time::Instant::now() + PATIENCE;
        while !self.stderr().contains(text) {
            assert!(std::time::Instant::now() < until, "{text:?} is not in\n{}", self.stderr());
            std::thread::yield_now();
        }
    }

    /// What the server has written to stderr since its first start.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.stderr_path()).unwrap_or_default()
    }

    fn stderr_path(&self) -> PathBuf {
        self.room.path().join("stderr")
    }

    /// Says that the tree is damaged on purpose: it is not checked at the end.
    pub fn expect_damage(&mut self) {
        self.damage_expected = true;
    }

    /// Runs `stillage check ROOT`: its exit code (0 clean, 4 damage) and what it printed.
    pub fn check(&self) -> (Option<i32>, String) {
        let output = Command::new(STILLAGE)
            .arg("check")
            .arg(&self.root)
            .output()
            .expect("stillage check starts");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.code(), text)
    }

    /// Fails the test if `stillage check` finds anything.
    pub fn assert_sound(&self) {
        let (code, text) = self.check();
        assert_eq!(code, Some(0), "stillage check {}:\n{text}", self.root.display());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(mut server) = self.server.take() {
                let _ = server.kill();
                let _ = server.wait();
            }
            eprintln!("--- the server's stderr ---\n{}", self.stderr());
            return;
        }
        if let Some(status) = self.stop(Signal::TERM) {
            assert!(status.success(), "SIGTERM ended in {status}; stderr:\n{}", self.stderr());
        }
        let said = self.stderr();
        assert!(!said.contains("panicked at"), "the server panicked:\n{said}");
        if !self.damage_expected {
            self.assert_sound();
        }
    }
}

fn send(signal: Signal, server: &Child) {
    kill_process(Pid::from_child(server), signal).expect("a signal to our own child");
}

fn room() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("stillage-test-").tempdir().expect("a temporary directory")
}
