//! PAM services of a test's own: no account of the machine is touched, no root is needed.
//!
//! Users are such as every Debian has (`daemon`, `games`, …); their passwords here come from a file
//! beside the services, read by `pam_matrix.so` of the package libpam-wrapper.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use stillage::auth::{Auth, Mode, Settings};

/// The password of every user in [`USERS`].
pub(crate) const PASSWORD: &str = "geheim ß";
/// Users whom `pam_matrix` knows. Besides, it knows `man`, whose password is 511 times `p`.
pub(crate) const USERS: [&str; 6] =
    ["root", "daemon", "bin", "sys", "games", "nobody-has-this-name"];
pub(crate) const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// A directory with services, passwords, and the program that is started as a worker under a name
/// that only this test uses.
pub(crate) struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    /// With the service `stillage`, which notes every login in `asked` and then goes by password.
    pub(crate) fn new() -> Host {
        let host = Host { dir: tempfile::tempdir().expect("a directory") };
        fs::create_dir(host.path("pam.d")).expect("a directory");
        symlink(env!("CARGO_BIN_EXE_stillage"), host.path("worker")).expect("a link");
        host.ask_script("exit 0");
        host.service(
            "stillage",
            "auth requisite EXEC\nauth required MATRIX\naccount required MATRIX\n",
        );
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a service. EXEC stands for the script, MATRIX for the module that knows passwords.
    pub(crate) fn service(&self, name: &str, lines: &str) {
        let dir = self.dir.path().display();
        let exec = format!("pam_exec.so quiet /bin/sh {dir}/ask.sh");
        let matrix = format!("{} passdb={dir}/passdb", matrix().display());
        let text = lines.replace("EXEC", &exec).replace("MATRIX", &matrix);
        fs::write(self.path("pam.d").join(name), text).expect("write");
        let mut known = fs::read_to_string(self.path("passdb")).unwrap_or_default();
        let long = ("man", "p".repeat(511));
        let pairs = USERS.map(|user| (user, PASSWORD.to_owned()));
        for (user, password) in pairs.into_iter().chain([long]) {
            known.push_str(&format!("{user}:{password}:{name}\n"));
        }
        fs::write(self.path("passdb"), known).expect("write");
    }

    /// What the script does after it noted who asked. PAM gives it PAM_USER and PAM_RHOST.
    pub(crate) fn ask_script(&self, then: &str) {
        let note = self.path("asked");
        let text = format!("echo $PPID $PAM_USER $PAM_RHOST >> {}\n{then}\n", note.display());
        fs::write(self.path("ask.sh"), text).expect("write");
    }

    /// The logins that reached PAM: the worker's process, the user, the address.
    pub(crate) fn asked(&self) -> Vec<(i32, String, String)> {
        let text = fs::read_to_string(self.path("asked")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let mut words = line.split(' ').map(str::to_owned);
                let mut word = || words.next().unwrap_or_default();
                (word().parse().expect("a process"), word(), word())
            })
            .collect()
    }

    /// Short times, so that tests are short.
    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::new(Mode::Pam, Arc::new([7; 32]));
        settings.pam_confdir = Some(self.path("pam.d"));
        settings.worker = self.path("worker");
        settings.limits.failure_floor = Duration::from_millis(100);
        settings.limits.deadline = Duration::from_secs(5);
        settings
    }

    pub(crate) fn auth(&self) -> Auth {
        Auth::new(self.settings()).expect("good settings")
    }

    /// The workers of this test that are there now, zombies left out.
    pub(crate) fn workers(&self) -> Vec<i32> {
        let program = self.path("worker").into_os_string().into_encoded_bytes();
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|id| {
                let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                line.split(|byte| *byte == 0).next() == Some(&program)
            })
            .collect()
    }
}

fn matrix() -> PathBuf {
    let libraries = fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    libraries
        .map(|entry| entry.path().join("pam_wrapper/pam_matrix.so"))
        .find(|path| path.exists())
        .expect("pam_matrix.so: install libpam-wrapper")
}

/// Waits until a process has ended, which it must within ten seconds.
pub(crate) async fn ended(id: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(id) else { panic!("{id} is no process") };
    let handle: OwnedFd =
        match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return,
            Err(error) => panic!("process {id}: {error}"),
        };
    let wait = move || {
        let mut handle = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
        poll(&mut handle, PollTimeout::from(10_000_u16)).expect("poll") == 1
    };
    let gone = tokio::task::spawn_blocking(wait).await.expect("no panic");
    assert!(gone, "process {id} is still there");
}

/// Waits until a file holds a whole line, and gives that.
pub(crate) async fn line_of(path: PathBuf) -> io::Result<String> {
    for _ in 0..1000 {
        if let Ok(text) = fs::read_to_string(&path)
            && text.ends_with('\n')
        {
            return Ok(text.trim().to_owned());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, path.display().to_string()))
}
