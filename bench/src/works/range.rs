//! GET of parts of a large blob.

use anyhow::{Result, ensure};

use super::{ENOUGH, Work, players, readers};
use crate::content::{Content, GIB, KIB, digest};
use crate::crowd::until_taken;
use crate::measure::{Bench, Metric};
use crate::servers::Server;
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "range",
    about: "GET of 64 KiB somewhere in a blob of 1 GiB, 16 clients",
    metrics: &[Metric::CpuPerRequest, Metric::RequestsPerSecond, Metric::Median, Metric::P99],
    run,
};

const CLIENTS: usize = 16;
const PART: u64 = 64 * KIB;

fn run(bench: &mut Bench) -> Result<()> {
    let trees = Trees::new(&bench.place)?;
    let content = Content::fresh(GIB);
    let repository = trees.repository("big")?;
    let blob = repository.blob(&content)?;
    repository.finish()?;
    let servers = readers(&bench.place, &trees, None)?;
    for server in &servers {
        let mut connection = server.connect()?;
        for begin in [0, 12_345, GIB - PART] {
            let answer = connection.ask("GET", &server.blob("big", &blob), &header(begin))?;
            let answer = answer.expect(206, "GET with Range")?;
            let part = connection.read(&answer)?;
            let right: Vec<u8> = content.range(begin, PART).collect::<Vec<_>>().concat();
            ensure!(digest(&part) == digest(&right), "{}: another part", server.name());
        }
    }
    let turn = |server: &Server, meter: &_| {
        let path = server.blob("big", &blob);
        until_taken(&server.target, CLIENTS, meter, ENOUGH, |client, number, connection| {
            // Steps of a prime number of pages: all over the file, the same for everybody.
            let step = 104_729 * 4096;
            let begin = ((client * 7919 + number) as u64 * step) % (GIB - PART);
            let answer = connection.ask("GET", &path, &header(begin))?.expect(206, "GET")?;
            connection.skip(&answer)
        })
    };
    bench.play("64 KiB of 1 GiB", players(&servers, turn))?;
    drop(servers);
    trees.remove()
}

fn header(begin: u64) -> String {
    format!("Range: bytes={begin}-{}\r\n", begin + PART - 1)
}
