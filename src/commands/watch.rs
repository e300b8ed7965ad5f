//! `stillage watch`.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, poll};
use stillage::config::WatchArgs;
use stillage::events::{Follower, Next, Pending};
use stillage::layout::{Dir, Watcher, is_remote};

use super::{Outcome, complain};

/// Held while a line is printed.
static PRINTING: Mutex<()> = Mutex::new(());

/// How long to wait where nothing is to be waited for.
const LONG: Duration = Duration::from_secs(60 * 60);

/// Prints what happens in a tree until it is told to stop, or nobody reads it any more.
///
/// Nothing is written in ROOT, so root stays root, who can read it all.
pub(crate) fn run(args: &WatchArgs) -> Outcome {
    let root = Dir::open_root(&args.root)?;
    end_when_told()?;
    end_when_unread();
    // From here on no change is missed: what comes while the tree is gone through is looked at again.
    let started = SystemTime::now();
    let mut watcher = Watcher::start(&root, args.look_every(), is_remote(&root)?, started);
    let since = args.since.unwrap_or(started);
    let mut follower = Follower::start(&root, since)?;
    let pending = Arc::new(Pending::new(since));
    pending.add_all();
    tracing::info!(root = %args.root.display(), "watching");
    let told = Arc::clone(&pending);
    let watch = move || loop {
        told.add(&watcher.wait());
    };
    std::thread::Builder::new().name("watch".to_owned()).spawn(watch)?;
    loop {
        match pending.next(LONG) {
            Next::Repository(name, since) => {
                let told = follower.follow(&name, since, &mut |event| print(&event.line()));
                match told {
                    Ok(true) => pending.add_again(&name, since),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%error, repo = %name, "cannot be followed"),
                }
            }
            Next::All(since) => pending.add_names(follower.names()?, since),
            Next::Nothing => {}
        }
    }
}

/// One line, whole and at once. It ends with whoever reads.
fn print(line: &str) {
    let whole = PRINTING.lock();
    let mut out = io::stdout().lock();
    let printed = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
    drop(whole);
    match printed {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            complain(&error);
            std::process::exit(1);
        }
    }
}

/// SIGINT and SIGTERM end it, between two lines.
fn end_when_told() -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // For all threads that come after this one.
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.wait().is_ok() {
            end();
        }
    })?;
    Ok(())
}

/// A pipe that nobody reads any more is noticed at once, not with the next event.
fn end_when_unread() {
    let wait = || {
        let out = io::stdout();
        let closed = PollFlags::ERR | PollFlags::HUP;
        loop {
            let mut out = [PollFd::new(&out, PollFlags::empty())];
            match poll(&mut out, None) {
                Ok(_) if out[0].revents().intersects(closed) => end(),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    };
    // Without it the next event tells.
    let _ = std::thread::Builder::new().name("reader".to_owned()).spawn(wait);
}

fn end() {
    // A line that is begun is ended, unless nobody takes it.
    for _ in 0..100 {
        let printing = PRINTING.try_lock();
        if !matches!(printing, Err(TryLockError::WouldBlock)) {
            std::process::exit(0);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    std::process::exit(0);
}
