//! The list of a repository's tags.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{ENOUGH, Work, players, readers};
use crate::crowd::until_taken;
use crate::measure::{Bench, Metric};
use crate::servers::{Kind, Server, stillage};
use crate::trees::{Trees, many_tags};

pub(super) const WORK: Work = Work {
    name: "tags",
    about: "tags/list with all its pages, at 10, 1,000, 10,000 and 100,000 tags, 4 clients",
    metrics: &[Metric::CpuPerRequest, Metric::Median, Metric::P99, Metric::Anonymous],
    run,
};

const CLIENTS: usize = 4;
const PATH: &str = "/v2/tags/tags/list";

fn run(bench: &mut Bench) -> Result<()> {
    for (tags, case) in super::TAGS {
        let trees = Trees::new(&bench.place)?;
        many_tags(&trees, "tags", tags)?;
        let mut servers = readers(&bench.place, &trees, None)?;
        stillage::until_viewed(&trees.stillage.join("tags"))?;
        servers.retain(|server| server.kind != Kind::Nginx);
        for server in &servers {
            let mut pages = Vec::new();
            server.connect()?.list(PATH, &mut |page| pages.push(page))?;
            let mut got = 0;
            for page in pages {
                let list: Value = serde_json::from_slice(&page)?;
                got += list["tags"].as_array().context("no tags")?.len();
            }
            ensure!(got == tags, "{}: {got} tags instead of {tags}", server.name());
        }
        let turn = |server: &Server, meter: &_| {
            until_taken(&server.target, CLIENTS, meter, ENOUGH, |_, _, connection| {
                connection.list(PATH, &mut drop)
            })
        };
        bench.play(case, players(&servers, turn))?;
        drop(servers);
        trees.remove()?;
    }
    Ok(())
}
