//! How many instructions a request takes, counted by single steps: exact, and needs no counters of the
//! processor, which virtual machines rarely have.
//!
//! valgrind would be quicker, but Debian 12's does not know openat2(2), without which Stillage opens nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::quiet::{until_nobody_is_kept, until_quiet};
use crate::client::Connection;
use crate::content::{self, Image, KIB, MANIFEST};
use crate::place::Place;
use crate::servers::stillage;
use crate::trees::Trees;

/// A request may take so many times the instructions among 100,000 tags, and no fewer.
const TIMES: std::ops::RangeInclusive<f64> = 0.9..=1.1;

/// So many requests are counted, and the cheapest counts: a thread that waits for another one spins now and then.
const REQUESTS: u64 = 3;

/// What grows with the tags and must not.
pub(super) fn complaints(place: &Place) -> Result<Vec<String>> {
    let [few, many] = [10, 100_000].map(|tags| of_a_manifest(place, tags));
    let (few, many) = (few?, many?);
    let times = many as f64 / few as f64;
    println!("instructions of a manifest by tag: {few} among 10 tags, {many} among 100,000");
    let grows = !TIMES.contains(&times);
    let complaint = || {
        format!(
            "a manifest by tag takes {times:.2} times the instructions among 100,000 tags: {many} and {few}; \
             a profile of the two says where (valgrind does not run it: perf record)"
        )
    };
    Ok(grows.then(complaint).into_iter().collect())
}

/// Instructions of one GET of a manifest by tag, in the steady state.
fn of_a_manifest(place: &Place, tags: usize) -> Result<u64> {
    let trees = Trees::new(place)?;
    let mut repository = trees.repository("tags")?;
    let image = Image::fresh(KIB);
    let digest = repository.image("t0", &image)?;
    for number in 1..tags {
        repository.entry(&format!("t{number}"), &digest, image.manifest.len());
    }
    repository.finish()?;
    let server = stillage::start_alone(place, &trees.stillage)?;
    let mut connection = server.connect()?;
    let path = format!("/v2/tags/manifests/t{}", tags - 1);
    let accept = format!("Accept: {MANIFEST}\r\n");
    connection.check(
        &path,
        &accept,
        image.manifest.len() as u64,
        &content::digest(&image.manifest),
    )?;
    let get = |connection: &mut Connection| -> Result<()> {
        connection.get(&path, &accept)?;
        until_quiet(server.pid())
    };
    for _ in 0..REQUESTS {
        get(&mut connection)?;
    }
    until_nobody_is_kept(server.pid())?;
    let steps = Steps::default();
    std::thread::scope(|scope| {
        let tracer = scope.spawn(|| steps.follow(server.pid()));
        let counted = steps.of(|| {
            // The first one wakes who was interrupted.
            get(&mut connection)?;
            let mut least = u64::MAX;
            for _ in 0..REQUESTS {
                let before = steps.taken.load(Ordering::Relaxed);
                get(&mut connection)?;
                least = least.min(steps.taken.load(Ordering::Relaxed) - before);
            }
            Ok(least)
        });
        tracer.join().expect("the tracer")?;
        let counted = counted?;
        ensure!(counted > 1000, "only {counted} instructions were seen");
        Ok(counted)
    })
}

/// Steps of all threads of a process.
#[derive(Default)]
struct Steps {
    taken: AtomicU64,
    begun: AtomicBool,
    over: AtomicBool,
}

impl Steps {
    /// Does something while the steps are counted.
    fn of<T>(&self, deed: impl FnOnce() -> Result<T>) -> Result<T> {
        while !self.begun.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let done = deed();
        self.over.store(true, Ordering::Release);
        done
    }

    /// Steps every thread through what it does, until it is over. The kernel lets them run freely again
    /// when this thread ends.
    fn follow(&self, server: u32) -> Result<()> {
        let seized = self.seize(server);
        // Also whoever could not begin must not be waited for.
        self.begun.store(true, Ordering::Release);
        seized?;
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        while !self.over.load(Ordering::Acquire) {
            match waitpid(None, Some(flags))? {
                WaitStatus::Stopped(thread, Signal::SIGTRAP) => {
                    self.taken.fetch_add(1, Ordering::Relaxed);
                    step(thread, None)?;
                }
                WaitStatus::Stopped(thread, signal) => step(thread, Some(signal))?,
                WaitStatus::PtraceEvent(thread, ..) => step(thread, None)?,
                WaitStatus::StillAlive => std::thread::yield_now(),
                ended => anyhow::ensure!(ended.pid() != Some(pid(server)?), "the server ended"),
            }
        }
        Ok(())
    }

    fn seize(&self, server: u32) -> Result<()> {
        for task in std::fs::read_dir(format!("/proc/{server}/task"))? {
            let thread = task?.file_name().to_str().and_then(|name| name.parse().ok());
            let thread = Pid::from_raw(thread.context("a thread's number")?);
            ptrace::seize(thread, Options::PTRACE_O_TRACECLONE).context("ptrace")?;
            ptrace::interrupt(thread).context("ptrace")?;
        }
        Ok(())
    }
}

/// One instruction further. A thread that is gone takes none.
fn step(thread: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::step(thread, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn pid(server: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(server)?))
}
