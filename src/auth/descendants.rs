//! Ends what a PAM module may have started and left: `pam_exec` gives its programs sessions of their
//! own, which a signal to the worker's process group does not reach.
//!
//! A worker adopts the orphans among its descendants, so the tree below it is all there is.

use std::fs;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Ends a worker seen from the server: the process, all its descendants, its process group.
///
/// Nobody may have waited for the worker before, or its id might be another process's by now.
pub(super) fn end(worker: Pid) {
    // Stopped first, and so on downwards: who is stopped neither starts a process nor reaps one,
    // and what is listed stays what it is until it is killed.
    let _ = kill(worker, Signal::SIGSTOP);
    end_below(worker);
    let _ = killpg(worker, Signal::SIGKILL);
}

/// Ends all descendants of a process, and not the process itself.
pub(super) fn end_below(process: Pid) {
    let mut found = Vec::new();
    stop_below(process, &mut found);
    for descendant in found {
        let _ = kill(descendant, Signal::SIGKILL);
    }
}

fn stop_below(process: Pid, found: &mut Vec<Pid>) {
    for child in children(process) {
        let _ = kill(child, Signal::SIGSTOP);
        found.push(child);
        stop_below(child, found);
    }
}

/// The children of all threads of a process. None where the kernel does not tell
/// (CONFIG_PROC_CHILDREN is set in the kernels of all large distributions).
fn children(process: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Vec::new();
    };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|line| {
            line.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()
        })
        .map(Pid::from_raw)
        .collect()
}
