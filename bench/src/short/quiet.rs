//! Waits until a server has nothing more to do.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// A server whose threads were not once awake for so long rests.
const REST: Duration = Duration::from_millis(60);
/// tokio keeps a thread for blocking work for ten seconds; here is a little more. Nothing that the server does by
/// itself may come as often.
const KEPT: Duration = Duration::from_secs(12);
/// A server that never rests has failed.
const PATIENCE: Duration = Duration::from_secs(180);

/// What follows an answer (closing files, views) comes after it: nobody tells when it is done. It is when
/// no thread runs, and none has run for a while.
pub(super) fn until_quiet(server: u32) -> Result<()> {
    until_quiet_for(REST, server)
}

/// Also threads that were kept for more work are gone then. A thread's end gives back what it had of memory:
/// after an index of 100,000 tags was read that is millions of instructions, which are no request's.
pub(super) fn until_nobody_is_kept(server: u32) -> Result<()> {
    until_quiet_for(KEPT, server)
}

fn until_quiet_for(rest: Duration, server: u32) -> Result<()> {
    let begin = Instant::now();
    let mut before = switches(server);
    let mut since = Instant::now();
    while since.elapsed() < rest {
        sleep(Duration::from_millis(5));
        let now = switches(server);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        if begin.elapsed() > PATIENCE {
            bail!("the server never rests");
        }
    }
    Ok(())
}

/// How often its threads were put to sleep or displaced, and how many run: a thread that waits for a
/// processor changes nothing and is no rest.
fn switches(server: u32) -> (u64, Option<Instant>) {
    let mut all = 0;
    let mut awake = false;
    for task in fs::read_dir(format!("/proc/{server}/task")).into_iter().flatten().flatten() {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        for line in status.lines() {
            if let Some((name, count)) = line.split_once(":\t") {
                awake |= name == "State" && !count.starts_with('S');
                if name.ends_with("voluntary_ctxt_switches") {
                    all += count.parse::<u64>().unwrap_or(0);
                }
            }
        }
    }
    // Whoever is awake is never like before.
    (all, awake.then(Instant::now))
}
