//! Mount of a large blob into other repositories.

use std::time::Instant;

use anyhow::Result;

use super::{Work, players, writers};
use crate::content::{Content, GIB, KIB};
use crate::crowd::together;
use crate::measure::{Bench, Metric};
use crate::servers::Server;
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "mount",
    about: "mount of a blob into 100 new repositories, one after the other",
    metrics: &[Metric::Median, Metric::P99, Metric::Worst, Metric::CpuPerRequest],
    run,
};

const MOUNTS: usize = 100;

fn run(bench: &mut Bench) -> Result<()> {
    for (case, length) in [("1 KiB", KIB), ("1 GiB", GIB)] {
        let trees = Trees::new(&bench.place)?;
        let repository = trees.repository("source")?;
        let digest = repository.blob(&Content::fresh(length))?;
        repository.finish()?;
        let servers = writers(&bench.place, &trees, None)?;
        for server in &servers {
            server.connect()?.check(&server.blob("source", &digest), "", length, &digest)?;
        }
        let turns = std::cell::Cell::new(0);
        let turn = |server: &Server, _: &_| {
            turns.set(turns.get() + 1);
            let prefix = format!("turn{}", turns.get());
            together(&server.target, 1, |_, connection, done| {
                for number in 0..MOUNTS {
                    let query = format!("mount={digest}&from=source");
                    let path = format!("/v2/{prefix}/to{number}/blobs/uploads/?{query}");
                    let begin = Instant::now();
                    let answer = connection.send("POST", &path, "", 0, std::iter::empty())?;
                    connection.skip(&answer.expect(201, "mount")?)?;
                    done.count(0, begin);
                }
                Ok(())
            })
        };
        bench.play(case, players(&servers, turn))?;
        drop(servers);
        trees.remove()?;
    }
    Ok(())
}
