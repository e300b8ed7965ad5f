//! GET of a manifest, by tag and by digest, among few and many tags.

use anyhow::Result;

use super::{ENOUGH, Work, players, readers};
use crate::content::{MANIFEST, digest};
use crate::crowd::until_taken;
use crate::measure::{Bench, Metric};
use crate::servers::{Kind, Server, stillage};
use crate::trees::{Trees, many_tags};

pub(super) const WORK: Work = Work {
    name: "manifest",
    about: "GET of a manifest by tag and by digest, at 10 and 100,000 tags, 16 clients; nginx: a file of that size",
    metrics: &[
        Metric::RequestsPerCpu,
        Metric::RequestsPerSecond,
        Metric::Median,
        Metric::Anonymous,
    ],
    run,
};

const CLIENTS: usize = 16;

fn run(bench: &mut Bench) -> Result<()> {
    let accept = format!("Accept: {MANIFEST}\r\n");
    for (tags, written) in [(10, "10"), (100_000, "100,000")] {
        let trees = Trees::new(&bench.place)?;
        let manifests = many_tags(&trees, "tags", tags)?;
        let servers = readers(&bench.place, &trees, None)?;
        stillage::until_viewed(&trees.stillage.join("tags"))?;
        let last = &manifests[manifests.len() - 1];
        let (digest, length) = (digest(last), last.len() as u64);
        let tag = format!("t{}", tags - 1);
        for (case, reference) in [("by tag", tag.as_str()), ("by digest", &digest)] {
            for server in &servers {
                // docker-registry's tags share few manifests.
                if server.kind == Kind::Registry && case == "by tag" {
                    server.connect()?.get(&server.manifest("tags", reference, &digest), &accept)?;
                    continue;
                }
                let path = server.manifest("tags", reference, &digest);
                server.connect()?.check(&path, &accept, length, &digest)?;
            }
            let turn = |server: &Server, meter: &_| {
                let path = server.manifest("tags", reference, &digest);
                until_taken(&server.target, CLIENTS, meter, ENOUGH, |_, _, connection| {
                    connection.get(&path, &accept)
                })
            };
            bench.play(&format!("{case}, {written} tags"), players(&servers, turn))?;
        }
        drop(servers);
        trees.remove()?;
    }
    Ok(())
}
