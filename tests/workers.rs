//! The worker processes: what a PAM module does to one of them is nobody else's trouble.

#[path = "support/pam.rs"]
mod pam;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pam::{HERE, Host, PASSWORD, ended, line_of};
use stillage::auth::{Auth, AuthError};

/// For `games` the script leaves its process id and never ends, in a session of its own.
fn hang_for_games(host: &Host) {
    let hung = host.path("hung").display().to_string();
    host.ask_script(&format!(
        "if [ $PAM_USER = games ]; then (echo $$ > {hung}; exec sleep 100) & \
         echo $! > {hung}.child; wait; fi; exit 0"
    ));
}

fn number(line: &str) -> i32 {
    line.parse().expect("a process id")
}

#[tokio::test]
async fn a_module_that_hangs_is_ended_and_holds_up_nobody() {
    let host = Host::new();
    hang_for_games(&host);
    let mut settings = host.settings();
    settings.limits.workers = 2;
    settings.limits.deadline = Duration::from_secs(2);
    let auth = Arc::new(Auth::new(settings).expect("good settings"));
    let began = Instant::now();
    let hanging = {
        let auth = Arc::clone(&auth);
        tokio::spawn(async move { auth.login("games", PASSWORD, HERE).await })
    };
    let child = number(&line_of(host.path("hung.child")).await.expect("it hangs"));
    let script = number(&line_of(host.path("hung")).await.expect("it hangs"));
    // A client that tries again and again, with other passwords, holds no second worker.
    let again = {
        let auth = Arc::clone(&auth);
        tokio::spawn(async move { auth.login("games", "another", HERE).await })
    };
    for user in ["daemon", "bin", "sys"] {
        let who = auth.login(user, PASSWORD, HERE).await;
        assert!(who.is_ok(), "{user}: {who:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "they did not wait: {:?}", began.elapsed());
    assert_eq!(hanging.await.expect("no panic"), Err(AuthError::Unavailable));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(again.await.expect("no panic"), Err(AuthError::Unavailable));
    ended(script).await;
    ended(child).await;
    assert_eq!(host.asked().iter().filter(|asked| asked.1 == "games").count(), 1);
}

#[tokio::test]
async fn a_worker_that_dies_costs_its_one_login() {
    let host = Host::new();
    host.ask_script("[ $PAM_USER = games ] && kill -KILL $PPID; exit 0");
    let mut settings = host.settings();
    settings.limits.workers = 1;
    let auth = Auth::new(settings).expect("good settings");
    assert!(auth.login("daemon", PASSWORD, HERE).await.is_ok());
    assert_eq!(auth.login("games", PASSWORD, HERE).await, Err(AuthError::Unavailable));
    assert!(auth.login("bin", PASSWORD, HERE).await.is_ok());
}

#[tokio::test]
async fn a_worker_that_died_idle_costs_nothing() {
    let host = Host::new();
    let mut settings = host.settings();
    settings.limits.workers = 1;
    let auth = Auth::new(settings).expect("good settings");
    assert!(auth.login("daemon", PASSWORD, HERE).await.is_ok());
    let worker = host.asked()[0].0;
    kill(worker);
    ended(worker).await;
    assert!(auth.login("bin", PASSWORD, HERE).await.is_ok());
}

#[tokio::test]
async fn a_missing_worker_program_is_an_outage() {
    let host = Host::new();
    let mut settings = host.settings();
    settings.worker = host.path("nothing-here");
    let auth = Auth::new(settings).expect("good settings");
    assert_eq!(auth.login("daemon", PASSWORD, HERE).await, Err(AuthError::Unavailable));
}

#[tokio::test]
async fn a_program_that_is_no_worker_is_an_outage() {
    let host = Host::new();
    for program in ["/bin/cat", "/bin/true", "/bin/yes"] {
        let mut settings = host.settings();
        settings.worker = program.into();
        let auth = Auth::new(settings).expect("good settings");
        let result = auth.login("daemon", PASSWORD, HERE).await;
        assert_eq!(result, Err(AuthError::Unavailable), "{program}");
    }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_again() {
    let host = Host::new();
    let go = host.path("go").display().to_string();
    assert!(Command::new("mkfifo").arg(&go).status().expect("mkfifo").success());
    host.ask_script(&format!("[ $PAM_USER = games ] && read line < {go}; exit 0"));
    let mut settings = host.settings();
    settings.limits.workers = 1;
    settings.limits.queue = 1;
    let auth = Arc::new(Auth::new(settings).expect("good settings"));
    let login = |user: &'static str| {
        let auth = Arc::clone(&auth);
        tokio::spawn(async move { auth.login(user, PASSWORD, HERE).await })
    };
    let held = login("games");
    line_of(host.path("asked")).await.expect("the worker is held");
    let (one, two) = (login("daemon"), login("bin"));
    let first = tokio::select! {
        biased;
        one = &mut { one } => one,
        two = &mut { two } => two,
    };
    let busy = AuthError::Busy { retry_after: Duration::from_secs(2) };
    assert_eq!(first.expect("no panic"), Err(busy), "one waits, the other is sent away");
    fs::write(&go, "on\n").expect("the script reads");
    assert!(held.await.expect("no panic").is_ok());
}

#[tokio::test]
async fn a_worker_serves_a_hundred_and_no_more() {
    let host = Host::new();
    let mut settings = host.settings();
    settings.limits.workers = 1;
    settings.limits.failure_floor = Duration::from_millis(1);
    let auth = Auth::new(settings).expect("good settings");
    for n in 0..101 {
        let peer: std::net::IpAddr = format!("192.0.2.{n}").parse().expect("an address");
        let result = auth.login("daemon", &format!("wrong {n}"), peer).await;
        assert_eq!(result, Err(AuthError::Refused));
    }
    let asked = host.asked();
    let first: BTreeSet<i32> = asked[..100].iter().map(|asked| asked.0).collect();
    assert_eq!((asked.len(), first.len()), (101, 1));
    assert_ne!(asked[100].0, asked[99].0);
    ended(asked[0].0).await;
}

#[tokio::test]
async fn no_worker_is_left_when_the_server_is_done() {
    let host = Host::new();
    hang_for_games(&host);
    let auth = Arc::new(host.auth());
    assert!(auth.login("daemon", PASSWORD, HERE).await.is_ok());
    let hanging = {
        let auth = Arc::clone(&auth);
        tokio::spawn(async move { auth.login("games", PASSWORD, HERE).await })
    };
    let child = number(&line_of(host.path("hung.child")).await.expect("it hangs"));
    let workers = host.workers();
    assert_eq!(workers.len(), 1, "the idle one was used again: {workers:?}");
    for worker in &workers {
        for stream in [0, 1] {
            let target = fs::read_link(format!("/proc/{worker}/fd/{stream}")).expect("a stream");
            assert_eq!(target.to_str(), Some("/dev/null"), "modules print into nothing");
        }
    }
    hanging.abort();
    assert!(hanging.await.is_err(), "the client hung up");
    // The attempt goes on without its client, and ends with its deadline.
    for worker in workers {
        ended(worker).await;
    }
    ended(child).await;
    assert!(auth.login("bin", PASSWORD, HERE).await.is_ok());
    let idle = host.workers();
    drop(auth);
    for worker in idle {
        ended(worker).await;
    }
}

#[tokio::test]
async fn a_worker_notices_the_death_of_the_server_even_while_it_hangs() {
    let host = Host::new();
    hang_for_games(&host);
    let (worker, mut requests) = Worker::start(&host.path("worker"));
    requests.write_all(&login_request(&host, "games")).expect("it reads");
    let child = number(&line_of(host.path("hung.child")).await.expect("it hangs"));
    let script = number(&line_of(host.path("hung")).await.expect("it hangs"));
    // What a server leaves that was killed: a pipe without a writer.
    drop(requests);
    ended(script).await;
    ended(child).await;
    ended(worker.id()).await;
}

#[tokio::test]
async fn a_request_that_makes_no_sense_ends_the_worker() {
    for request in [&[255; 8][..], &[1, 0, 0, 0, 9], &[0, 0, 0, 0], &[3, 0, 0, 0, 0, 200, 0]] {
        let (mut worker, mut requests) = Worker::start(Path::new(env!("CARGO_BIN_EXE_stillage")));
        requests.write_all(request).expect("it reads");
        ended(worker.id()).await;
        assert!(!worker.0.wait().expect("ended").success(), "{request:?}");
        drop(requests);
    }
}

/// A worker of the test's own, ended with its group however the test ends.
struct Worker(std::process::Child);

impl Worker {
    fn start(program: &Path) -> (Worker, ChildStdin) {
        let mut child = Command::new(program)
            .arg("pam-worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a worker");
        let requests = child.stdin.take().expect("a pipe");
        (Worker(child), requests)
    }

    fn id(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a process id")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A login as the server writes it to a worker.
fn login_request(host: &Host, user: &str) -> Vec<u8> {
    let confdir = host.path("pam.d").display().to_string();
    let mut body = vec![0];
    for field in [user, PASSWORD, "stillage", &confdir, "127.0.0.1"] {
        body.extend(u32::try_from(field.len()).expect("short").to_le_bytes());
        body.extend(field.as_bytes());
    }
    let mut message = u32::try_from(body.len()).expect("short").to_le_bytes().to_vec();
    message.append(&mut body);
    message
}

fn kill(process: i32) {
    let process = rustix::process::Pid::from_raw(process).expect("a process");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("killed");
}
