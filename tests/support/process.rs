//! What a running server holds and has read, as the kernel counts it.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// RssAnon in bytes: what the process holds itself, without the pages of files.
pub(crate) fn memory(pid: u32) -> u64 {
    memory_while(pid).expect("the server runs")
}

/// The same of a process that may have ended: then none.
pub(crate) fn memory_while(pid: u32) -> Option<u64> {
    figure(pid, "status", "RssAnon:").map(|kib| kib * 1024)
}

/// How many descriptors the process has open.
pub(crate) fn descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the server runs").count() as u64
}

/// How much processor time the process has taken, in user and kernel.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server runs");
    // The program's name, in brackets, may hold blanks.
    let (_, fields) = text.rsplit_once(')').expect("its name");
    let ticks = |at: usize| -> u64 {
        fields.split_whitespace().nth(at).and_then(|text| text.parse().ok()).expect("a number")
    };
    // Linux counts a hundred ticks a second here, whatever its own clock does.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// How many bytes the process has read from files since its start.
pub(crate) fn read_so_far(pid: u32) -> u64 {
    figure(pid, "io", "rchar:").expect("the server runs")
}

/// The most that the process held at any look while `deed` ran.
pub(crate) fn most_memory_during<T>(pid: u32, deed: impl FnOnce() -> T) -> (T, u64) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = memory(pid);
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
                most = most.max(memory(pid));
            }
            most
        });
        // A deed that fails its test must not leave the watch running for ever.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let end = Over(&over);
        let done = deed();
        drop(end);
        (done, watch.join().expect("the watch"))
    })
}

fn figure(pid: u32, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
