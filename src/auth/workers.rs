//! The server's side of its worker processes: a small pool, and a deadline for every request.
//!
//! A worker that crashes costs its one request; one that hangs is ended at the deadline with its
//! whole process group. Neither delays others beyond the worker that it held.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::descendants;
use super::frame::{Answer, Ask, MAX_ANSWER};

/// The hidden subcommand that makes a process a worker.
pub(super) const SUBCOMMAND: &str = "pam-worker";

/// A worker is replaced after so many requests: modules leak.
const REQUESTS_PER_WORKER: u32 = 100;

/// How many workers, and how long anything may take.
pub(super) struct Bounds {
    pub(super) workers: usize,
    /// How many requests may wait for a worker.
    pub(super) queue: usize,
    /// How long a request may wait for a worker, and then how long that worker may take.
    pub(super) deadline: Duration,
}

/// A pool of workers, started when first needed. Ended when dropped.
pub(super) struct Workers {
    program: PathBuf,
    bounds: Bounds,
    slots: Semaphore,
    waiting: AtomicUsize,
    idle: Mutex<Vec<Worker>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkersError {
    /// More requests wait than the queue holds, or one waited too long.
    #[error("all workers are busy")]
    Busy,
    /// The worker did not answer in time and was ended.
    #[error("no answer within {} s: the worker process and its children were ended", .0.as_secs_f32())]
    Deadline(Duration),
    /// The worker ended without an answer.
    #[error("the worker process ended without an answer: {0}")]
    Crashed(io::Error),
    /// No worker could be started.
    #[error("{program}: cannot start a worker process: {source}")]
    Start { program: String, source: io::Error },
}

impl Workers {
    pub(super) fn new(program: PathBuf, bounds: Bounds) -> Workers {
        let slots = Semaphore::new(bounds.workers);
        Workers { program, bounds, slots, waiting: AtomicUsize::new(0), idle: Mutex::default() }
    }

    /// Sends one request and waits for its answer. If the future is dropped, so is the worker that
    /// had the request.
    pub(super) async fn ask(&self, ask: &Ask<'_>) -> Result<Answer, WorkersError> {
        let _slot = self.slot().await?;
        let message = ask.encode();
        let deadline = self.bounds.deadline;
        match timeout(deadline, self.exchange(&message)).await {
            Ok(result) => result,
            Err(_) => Err(WorkersError::Deadline(deadline)),
        }
    }

    async fn slot(&self) -> Result<tokio::sync::SemaphorePermit<'_>, WorkersError> {
        if let Ok(slot) = self.slots.try_acquire() {
            return Ok(slot);
        }
        let waiter = Waiter::enter(&self.waiting);
        if waiter.place > self.bounds.queue {
            return Err(WorkersError::Busy);
        }
        match timeout(self.bounds.deadline, self.slots.acquire()).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) | Err(_) => Err(WorkersError::Busy),
        }
    }

    async fn exchange(&self, message: &[u8]) -> Result<Answer, WorkersError> {
        let (mut worker, fresh) = match self.take_idle() {
            Some(worker) => (worker, false),
            None => (self.start()?, true),
        };
        if let Err(error) = worker.send(message).await {
            if fresh {
                return Err(WorkersError::Crashed(error));
            }
            // It died while it was idle, so the request reached nobody.
            worker = self.start()?;
            worker.send(message).await.map_err(WorkersError::Crashed)?;
        }
        let answer = worker.receive().await.map_err(WorkersError::Crashed)?;
        worker.served += 1;
        if worker.served < REQUESTS_PER_WORKER {
            self.idle.lock().unwrap_or_else(|held| held.into_inner()).push(worker);
        }
        Ok(answer)
    }

    fn take_idle(&self) -> Option<Worker> {
        self.idle.lock().unwrap_or_else(|held| held.into_inner()).pop()
    }

    fn start(&self) -> Result<Worker, WorkersError> {
        Worker::start(&self.program).map_err(|source| WorkersError::Start {
            program: self.program.display().to_string(),
            source,
        })
    }
}

/// One request in the queue, for as long as it waits.
struct Waiter<'a> {
    waiting: &'a AtomicUsize,
    place: usize,
}

impl Waiter<'_> {
    fn enter(waiting: &AtomicUsize) -> Waiter<'_> {
        Waiter { waiting, place: waiting.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One worker process, the leader of its own process group. Dropping it ends the group and all
/// that the process started.
struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: ChildStdout,
    served: u32,
}

impl Worker {
    fn start(program: &PathBuf) -> io::Result<Worker> {
        let mut child = Command::new(program)
            .arg(SUBCOMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .current_dir("/")
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the worker has no pipes"));
        };
        Ok(Worker { child, requests, answers, served: 0 })
    }

    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.requests.write_all(message).await?;
        self.requests.flush().await
    }

    async fn receive(&mut self) -> io::Result<Answer> {
        let length = self.answers.read_u32_le().await? as usize;
        if length > MAX_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer too long"));
        }
        let mut body = vec![0; length];
        self.answers.read_exact(&mut body).await?;
        Answer::decode(&body).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "an answer that makes no sense")
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Nothing waits for the child before this, so its id cannot have been given to another.
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            descendants::end(Pid::from_raw(id));
        }
    }
}
