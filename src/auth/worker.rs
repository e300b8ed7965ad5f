//! The worker process: `stillage pam-worker`, which the server starts and nobody types.
//!
//! It answers one request at a time from its standard input until that ends. Whatever a PAM or NSS
//! module does — hang, crash, print, change the process's groups or signal handlers — happens here,
//! where the server can end it together with its children.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::mpsc;

use nix::sys::signal::{Signal, killpg};
use nix::unistd;
use zeroize::Zeroizing;

use super::credentials;
use super::descendants;
use super::frame::{Answer, Ask, Check, MAX_REQUEST};
use super::pam::{self, Outcome, Secret};
use super::user::User;

/// Serves the pipes until the server closes them; then ends this process and its whole group.
pub fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The server's log collects it; there is no client to answer.
            let _ = writeln!(io::stderr(), "stillage pam-worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    no_core_dumps()?;
    // The server makes every file with its own mode; modules rely on what is usual.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Orphans of modules become this process's children, where they can be found and ended.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let (mut requests, mut answers) = take_over_pipes()?;
    let (sender, receiver) = mpsc::sync_channel(1);
    // Read beside the work: while a module hangs, the end of the server must still be noticed.
    std::thread::Builder::new().name("requests".into()).spawn(move || {
        while let Ok(Some(body)) = read_request(&mut requests) {
            if sender.send(body).is_err() {
                break;
            }
        }
        end_group();
    })?;
    for body in receiver {
        let ask = Ask::decode(&body).ok_or(io::ErrorKind::InvalidData)?;
        answers.write_all(&answer(&ask).encode())?;
    }
    Ok(())
}

/// A core file would hold passwords.
fn no_core_dumps() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

/// Moves both pipes out of the way of modules and of the helpers that they start: what those print
/// must not reach the server as an answer, and what they read must not be the next password.
fn take_over_pipes() -> io::Result<(File, File)> {
    let aside = |fd: std::os::fd::BorrowedFd<'_>| -> io::Result<File> {
        Ok(File::from(rustix::io::fcntl_dupfd_cloexec(fd, 3)?))
    };
    let pipes = (aside(io::stdin().as_fd())?, aside(io::stdout().as_fd())?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    unistd::dup2_stdin(&null)?;
    unistd::dup2_stdout(&null)?;
    Ok(pipes)
}

/// `None` at the end of the requests.
fn read_request(requests: &mut File) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut length = [0; 4];
    match requests.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_REQUEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = Zeroizing::new(vec![0; length]);
    requests.read_exact(&mut body)?;
    Ok(Some(body))
}

/// Ends this process, and with it helpers that a hanging module may have left. The group is only
/// ended if it is this process's own, as the server makes it.
fn end_group() {
    let (group, own) = (unistd::getpgrp(), unistd::getpid());
    descendants::end_below(own);
    if group == own {
        let _ = killpg(group, Signal::SIGKILL);
    }
    std::process::exit(0);
}

fn answer(ask: &Ask<'_>) -> Answer {
    match ask {
        Ask::Check(request) => check(request),
        Ask::Lookup(name) => lookup(name),
    }
}

fn check(request: &Check<'_>) -> Answer {
    let Some(transaction) = transaction(request) else {
        return Answer::Broken("a request that should have been refused before PAM".into());
    };
    match pam::check(&transaction) {
        Outcome::Accepted(user) => lookup(&user),
        Outcome::Refused(failure) => {
            let known = matches!(User::find(request.user), Ok(Some(_)));
            Answer::Refused { failure, known }
        }
        Outcome::Broken(failure) => Answer::Broken(failure.to_string()),
    }
}

/// `None` for what must never reach PAM; the server has refused it already.
fn transaction(request: &Check<'_>) -> Option<pam::Request> {
    if !credentials::acceptable(request.user, request.password) {
        return None;
    }
    request.rhost.parse::<IpAddr>().ok()?;
    Some(pam::Request {
        service: CString::new(request.service).ok()?,
        user: CString::new(request.user).ok()?,
        password: Secret::new(request.password)?,
        confdir: match request.confdir {
            b"" => None,
            path => Some(CString::new(path).ok()?),
        },
        rhost: CString::new(request.rhost).ok()?,
    })
}

fn lookup(name: &str) -> Answer {
    match User::find(name) {
        Ok(Some(user)) => Answer::User(user),
        Ok(None) => Answer::Absent,
        Err(error) => Answer::Broken(error.to_string()),
    }
}
