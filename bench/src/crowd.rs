//! Many clients at once, each with a thread and a connection of its own.

use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::client::{Connection, Target};
use crate::process::Meter;

/// What a crowd did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    /// Seconds of each request, where they are asked for.
    pub(crate) latencies: Vec<f64>,
}

impl Done {
    /// One request more.
    pub(crate) fn count(&mut self, bytes: u64, begin: Instant) {
        self.requests += 1;
        self.bytes += bytes;
        self.latencies.push(begin.elapsed().as_secs_f64());
    }

    fn add(&mut self, other: Done) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.latencies.extend(other.latencies);
    }
}

/// So many clients connect, then all begin at once; each does `deed` with its number. The first error
/// of any of them counts.
pub(crate) fn together(
    target: &Target,
    clients: usize,
    deed: impl Fn(usize, &mut Connection, &mut Done) -> Result<()> + Sync,
) -> Result<Done> {
    let barrier = Barrier::new(clients);
    let one = |number: usize| -> Result<Done> {
        let connection = Connection::open(target);
        // Also who could not connect comes here, or the others would wait for ever.
        barrier.wait();
        let mut done = Done::default();
        deed(number, &mut connection?, &mut done).with_context(|| format!("client {number}"))?;
        Ok(done)
    };
    std::thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..clients).map(|number| scope.spawn(move || one(number))).collect();
        let mut all = Done::default();
        for thread in threads {
            all.add(thread.join().expect("a client panicked")?);
        }
        Ok(all)
    })
}

/// The same with one small request after the other until the server has had `seconds` of processor,
/// but for no longer than so many times that by the clock. `request` gives how many bytes came.
pub(crate) fn until_taken(
    target: &Target,
    clients: usize,
    meter: &Meter,
    seconds: f64,
    request: impl Fn(usize, usize, &mut Connection) -> Result<u64> + Sync,
) -> Result<Done> {
    const LONGEST: f64 = 8.0;
    let begin = Instant::now();
    together(target, clients, |client, connection, done| {
        for number in 0.. {
            let sent = Instant::now();
            let bytes = request(client, number, connection)?;
            done.count(bytes, sent);
            if meter.has_taken(seconds) || begin.elapsed().as_secs_f64() > LONGEST * seconds {
                break;
            }
        }
        Ok(())
    })
}
