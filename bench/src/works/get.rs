//! GET of a blob of 1 GiB.

use std::time::Instant;

use anyhow::Result;

use super::{Work, players, readers};
use crate::content::{Content, GIB};
use crate::crowd::{Done, together};
use crate::measure::{Bench, Metric};
use crate::servers::Server;
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "get",
    about: "GET of a blob of 1 GiB by 1, 4, 8 and 16 clients, page cache warm",
    metrics: &[Metric::CpuPerGib, Metric::Wall, Metric::Anonymous],
    run,
};

/// So much is got in a turn by all clients together, so that a tick is little beside it; more clients
/// than that get one blob each.
const GIBS: usize = 8;

fn run(bench: &mut Bench) -> Result<()> {
    let trees = Trees::new(&bench.place)?;
    let content = Content::fresh(GIB);
    let repository = trees.repository("big")?;
    let digest = repository.blob(&content)?;
    repository.finish()?;
    let servers = readers(&bench.place, &trees, None)?;
    for server in &servers {
        server.connect()?.check(&server.blob("big", &digest), "", GIB, &digest)?;
    }
    for clients in [1, 4, 8, 16] {
        let each = GIBS.div_ceil(clients);
        let turn =
            |server: &Server, _: &_| get(server, clients, each, &server.blob("big", &digest));
        bench.play(&cases(clients), players(&servers, turn))?;
    }
    Ok(())
}

fn cases(clients: usize) -> String {
    format!("{clients} client{}", if clients == 1 { "" } else { "s" })
}

/// Every client gets it so many times.
fn get(server: &Server, clients: usize, each: usize, path: &str) -> Result<Done> {
    together(&server.target, clients, |_, connection, done| {
        for _ in 0..each {
            let begin = Instant::now();
            let bytes = connection.get(path, "")?;
            done.count(bytes, begin);
        }
        Ok(())
    })
}
