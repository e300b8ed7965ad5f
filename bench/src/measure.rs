//! Turns: who did what in which round, and what it took.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::crowd::Done;
use crate::place::Place;
use crate::process::{Meter, TICK, taken};
use crate::stats::{Spread, quantile};

/// What one turn of one server took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Seconds by the clock.
    pub(crate) wall: f64,
    /// Seconds of the server's processor time, in ticks of 0.01 (floors: exact).
    pub(crate) cpu: f64,
    pub(crate) requests: u64,
    /// Of bodies.
    pub(crate) bytes: u64,
    /// The server's most anonymous memory, in bytes.
    pub(crate) anonymous: u64,
    /// The server's most memory, in bytes.
    pub(crate) peak: u64,
    /// Of single requests, in seconds.
    pub(crate) latency: Option<Latency>,
}

/// How long single requests took, in seconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) worst: f64,
}

impl Latency {
    /// Of nothing there is none.
    pub(crate) fn of(all: &[f64]) -> Option<Latency> {
        (!all.is_empty()).then(|| Latency {
            median: quantile(all, 0.5),
            p99: quantile(all, 0.99),
            worst: quantile(all, 1.0),
        })
    }
}

impl Sample {
    /// A deed of clients with a server, which has this process id.
    pub(crate) fn of(server: u32, deed: impl FnOnce(&Meter) -> Result<Done>) -> Result<Sample> {
        let (done, taken) = taken(server, deed);
        let done = done?;
        Ok(Sample {
            wall: taken.wall,
            cpu: taken.cpu,
            requests: done.requests,
            bytes: done.bytes,
            anonymous: taken.anonymous,
            peak: taken.peak,
            latency: Latency::of(&done.latencies),
        })
    }
}

/// What can be said of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    CpuPerGib,
    CpuPerRequest,
    RequestsPerCpu,
    RequestsPerSecond,
    Wall,
    Anonymous,
    Median,
    P99,
    Worst,
}

impl Metric {
    pub(crate) fn of(self, sample: &Sample) -> f64 {
        let requests = sample.requests.max(1) as f64;
        let latency = |pick: fn(Latency) -> f64| sample.latency.map_or(0.0, pick) * 1e3;
        match self {
            Metric::CpuPerGib => sample.cpu / (sample.bytes.max(1) as f64 / f64::from(1 << 30)),
            Metric::CpuPerRequest => sample.cpu / requests * 1e6,
            Metric::RequestsPerCpu => requests / sample.cpu.max(TICK),
            Metric::RequestsPerSecond => requests / sample.wall,
            Metric::Wall => sample.wall,
            Metric::Anonymous => sample.anonymous as f64 / f64::from(1 << 20),
            Metric::Median => latency(|latency| latency.median),
            Metric::P99 => latency(|latency| latency.p99),
            Metric::Worst => latency(|latency| latency.worst),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Metric::CpuPerGib => "CPU-s/GiB",
            Metric::CpuPerRequest => "CPU µs/request",
            Metric::RequestsPerCpu => "requests/CPU-s",
            Metric::RequestsPerSecond => "requests/s",
            Metric::Wall => "wall s",
            Metric::Anonymous => "anonymous MiB",
            Metric::Median => "median ms",
            Metric::P99 => "p99 ms",
            Metric::Worst => "worst ms",
        }
    }
}

/// All turns of one server at one case of a work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) work: String,
    pub(crate) case: String,
    pub(crate) who: String,
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    pub(crate) fn values(&self, metric: Metric) -> Vec<f64> {
        self.samples.iter().map(|sample| metric.of(sample)).collect()
    }

    pub(crate) fn spread(&self, metric: Metric) -> Spread {
        Spread::of(&self.values(metric))
    }
}

/// One who takes turns: a server, or a floor.
pub(crate) struct Player<'a> {
    who: String,
    turn: Box<dyn FnMut() -> Result<Sample> + 'a>,
}

impl<'a> Player<'a> {
    pub(crate) fn new(who: &str, turn: impl FnMut() -> Result<Sample> + 'a) -> Player<'a> {
        Player { who: who.to_owned(), turn: Box::new(turn) }
    }
}

/// A run: where, how many rounds, and what was measured so far.
pub(crate) struct Bench {
    pub(crate) place: Rc<Place>,
    pub(crate) rounds: usize,
    pub(crate) rows: Vec<Row>,
    /// The work that is on.
    pub(crate) work: &'static str,
}

impl Bench {
    /// Rounds in which everybody has a turn, each round begun by the next one, so that noise hits all
    /// alike. Says on stderr how it goes.
    pub(crate) fn play(&mut self, case: &str, players: Vec<Player<'_>>) -> Result<()> {
        self.play_rounds(case, self.rounds, players)
    }

    /// The same with another number of rounds than is asked for.
    pub(crate) fn play_rounds(
        &mut self,
        case: &str,
        rounds: usize,
        mut players: Vec<Player<'_>>,
    ) -> Result<()> {
        let work = self.work;
        let row = |player: &Player<'_>| {
            let (work, case, who) = (work.to_owned(), case.to_owned(), player.who.clone());
            Row { work, case, who, samples: Vec::new() }
        };
        let mut rows: Vec<Row> = players.iter().map(row).collect();
        let begin = Instant::now();
        for round in 0..rounds {
            for step in 0..players.len() {
                let at = (round + step) % players.len();
                let player = &mut players[at];
                let sample = (player.turn)();
                let sample = sample.with_context(|| format!("{work}, {case}: {}", player.who))?;
                rows[at].samples.push(sample);
            }
        }
        eprintln!("{work}, {case}: {rounds} rounds in {:.0} s", begin.elapsed().as_secs_f64());
        self.rows.append(&mut rows);
        Ok(())
    }
}
