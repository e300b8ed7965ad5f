//! GET of small blobs.

use anyhow::Result;

use super::{ENOUGH, Work, players, readers};
use crate::content::{Content, KIB};
use crate::crowd::until_taken;
use crate::measure::{Bench, Metric};
use crate::servers::Server;
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "small",
    about: "GET of 1,000 blobs of 4 KiB, 64 KiB, 256 KiB and 1 MiB by 64 clients, kept connections",
    metrics: &[Metric::CpuPerRequest, Metric::RequestsPerSecond, Metric::Median, Metric::P99],
    run,
};

const BLOBS: usize = 1000;
const CLIENTS: usize = 64;

fn run(bench: &mut Bench) -> Result<()> {
    for (kibibytes, case) in [(4, "4 KiB"), (64, "64 KiB"), (256, "256 KiB"), (1024, "1 MiB")] {
        let trees = Trees::new(&bench.place)?;
        let length = kibibytes * KIB;
        let repository = trees.repository("small")?;
        let blobs = (0..BLOBS).map(|_| repository.blob(&Content::fresh(length)));
        let blobs = blobs.collect::<Result<Vec<_>>>()?;
        repository.finish()?;
        let servers = readers(&bench.place, &trees, None)?;
        for server in &servers {
            let mut connection = server.connect()?;
            for digest in &blobs {
                connection.check(&server.blob("small", digest), "", length, digest)?;
            }
        }
        let turn = |server: &Server, meter: &_| {
            until_taken(&server.target, CLIENTS, meter, ENOUGH, |client, number, connection| {
                // Each begins at another blob.
                let digest = &blobs[(client * BLOBS / CLIENTS + number) % BLOBS];
                connection.get(&server.blob("small", digest), "")
            })
        };
        bench.play(case, players(&servers, turn))?;
        drop(servers);
        trees.remove()?;
    }
    Ok(())
}
