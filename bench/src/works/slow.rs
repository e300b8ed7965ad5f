//! 500 clients on a slow line.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Work, players, readers};
use crate::content::{Content, GIB, KIB};
use crate::crowd::Done;
use crate::measure::{Bench, Metric};
use crate::servers::Server;
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "slow",
    about: "500 clients get a blob of 1 GiB at 64 KiB a second each, for 8 seconds",
    metrics: &[Metric::Anonymous, Metric::CpuPerGib],
    run,
};

const CLIENTS: usize = 500;
/// Each client reads so much,
const STEP: u64 = 16 * KIB;
/// so many times a second,
const STEPS: u32 = 4;
/// for so long.
const SECONDS: u32 = 8;
/// Noise does not move memory much.
const ROUNDS: usize = 2;

fn run(bench: &mut Bench) -> Result<()> {
    let trees = Trees::new(&bench.place)?;
    let repository = trees.repository("big")?;
    let digest = repository.blob(&Content::fresh(GIB))?;
    repository.finish()?;
    let servers = readers(&bench.place, &trees, None)?;
    for server in &servers {
        server.connect()?.check(&server.blob("big", &digest), "", GIB, &digest)?;
    }
    let turn = |server: &Server, _: &_| slow(server, &server.blob("big", &digest));
    let rounds = bench.rounds.min(ROUNDS);
    bench.play_rounds("500 clients", rounds, players(&servers, turn))?;
    drop(servers);
    trees.remove()
}

/// One thread reads for all: there is time enough.
fn slow(server: &Server, path: &str) -> Result<Done> {
    let mut done = Done::default();
    let mut connections = Vec::with_capacity(CLIENTS);
    for _ in 0..CLIENTS {
        let mut connection = server.connect()?;
        connection.ask("GET", path, "")?.expect(200, path)?;
        connections.push(connection);
        done.requests += 1;
    }
    let begin = Instant::now();
    for step in 1..=STEPS * SECONDS {
        for connection in &mut connections {
            connection.drop_some(STEP)?;
            done.bytes += STEP;
        }
        sleep((Duration::from_secs(1) / STEPS * step).saturating_sub(begin.elapsed()));
    }
    let late = begin.elapsed() > Duration::from_secs(2 * u64::from(SECONDS));
    ensure!(!late, "the client itself is too slow for this");
    Ok(done)
}
