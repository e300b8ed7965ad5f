//! The servers, each started with a tree of its own on 127.0.0.1 and stopped when dropped.
//!
//! Nobody writes a line for each request: nginx and docker-registry have their access logs off, so
//! Stillage logs warnings only.

pub(crate) mod certificate;
pub(crate) mod nginx;
pub(crate) mod receive;
pub(crate) mod registry;
pub(crate) mod stillage;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::client::{Connection, Target, Trust};
use crate::content::hex;

/// How long a start or a stop may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whose URLs they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stillage,
    /// Serves the files of a Stillage tree as they lie there.
    Nginx,
    Registry,
    /// A floor: takes bodies and throws them away.
    Receive,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Stillage => "stillage",
            Kind::Nginx => "nginx",
            Kind::Registry => "docker-registry",
            Kind::Receive => "receive",
        }
    }
}

/// A running server.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) target: Target,
    child: Child,
    /// Its output.
    log: PathBuf,
}

impl Server {
    /// What another work or case calls it.
    pub(crate) fn name(&self) -> &'static str {
        self.kind.name()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn connect(&self) -> Result<Connection> {
        Connection::open(&self.target)
    }

    /// The path of a blob.
    pub(crate) fn blob(&self, repository: &str, digest: &str) -> String {
        match self.kind {
            Kind::Nginx => format!("/{repository}/blobs/sha256/{}", hex(digest)),
            _ => format!("/v2/{repository}/blobs/{digest}"),
        }
    }

    /// The path of a manifest by tag or digest; nginx has the file of that digest for both.
    pub(crate) fn manifest(&self, repository: &str, reference: &str, digest: &str) -> String {
        match self.kind {
            Kind::Nginx => self.blob(repository, digest),
            _ => format!("/v2/{repository}/manifests/{reference}"),
        }
    }

    /// Starts a program. It ends with us, however we end.
    fn start(
        kind: Kind,
        program: &Path,
        args: &[&str],
        envs: &[(&str, &str)],
        log: &Path,
        target: Target,
    ) -> Result<Server> {
        let said = File::create(log).with_context(|| format!("{}", log.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(program)
            .args(args)
            .envs(envs.iter().copied())
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .with_context(|| format!("{}", program.display()))?;
        Ok(Server { kind, target, child, log: log.to_owned() })
    }

    /// Waits until somebody listens. There is nothing to wait for but that a connection is taken.
    fn until_it_listens(mut self) -> Result<Server> {
        let until = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(self.target.address).is_err() {
            self.must_run(until)?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self)
    }

    /// Waits for a line in the server's output that `find` finds an address in.
    fn until_it_says(mut self, find: fn(&str) -> Option<SocketAddr>) -> Result<Server> {
        let until = Instant::now() + PATIENCE;
        loop {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            // A line is read when it has its end.
            let lines = said.rsplit_once('\n').map_or("", |(lines, _)| lines);
            if let Some(address) = lines.lines().find_map(find) {
                self.target.address = address;
                return Ok(self);
            }
            self.must_run(until)?;
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn must_run(&mut self, until: Instant) -> Result<()> {
        if self.child.try_wait()?.is_none() && Instant::now() < until {
            return Ok(());
        }
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        bail!("{} does not run: {said}", self.name())
    }

    fn signal(&self, signal: Signal) {
        // Who has ended already needs none.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let until = Instant::now() + PATIENCE;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > until {
                self.signal(Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A target that is not known yet, or without TLS.
fn target(address: SocketAddr, trust: Option<Trust>) -> Target {
    Target { address, trust }
}
