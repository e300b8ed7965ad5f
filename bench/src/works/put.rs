//! PUT of manifests with new tags, among few and many tags, and by many writers at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;

use super::{TAGS, Work, players, writers};
use crate::client::push_manifest;
use crate::content::{self, Content, KIB};
use crate::crowd::together;
use crate::floors;
use crate::measure::{Bench, Metric, Player};
use crate::servers::{Server, stillage};
use crate::trees::{Trees, many_tags};

pub(super) const WORK: Work = Work {
    name: "put",
    about: "PUT of a manifest with a new tag at 10, 1,000, 10,000 and 100,000 tags, one client; 64 writers at once; and the floor of replacing an index.json of that size",
    metrics: &[Metric::Median, Metric::P99, Metric::CpuPerRequest, Metric::RequestsPerSecond],
    run,
};

/// So many in a turn.
const PUTS: usize = 64;

fn run(bench: &mut Bench) -> Result<()> {
    for (tags, case) in TAGS {
        let trees = Trees::new(&bench.place)?;
        let manifests = many_tags(&trees, "tags", tags)?;
        let index = std::fs::read(trees.stillage.join("tags/index.json"))?;
        let parts = Parts::new(&trees)?;
        drop(manifests);
        let servers = writers(&bench.place, &trees, None)?;
        stillage::until_viewed(&trees.stillage.join("tags"))?;
        let room = bench.place.room("floor")?;
        for (writers, case) in
            [(1, format!("{case} tags")), (64, format!("{case} tags, 64 writers"))]
        {
            let turn = |server: &Server, _: &_| {
                let round = parts.round();
                together(&server.target, writers, |writer, connection, done| {
                    for number in 0..PUTS / writers {
                        let tag = format!("new-{round}-{writer}-{number}");
                        let manifest = parts.manifest(&tag);
                        let begin = Instant::now();
                        push_manifest(connection, "tags", &tag, &manifest)?;
                        done.count(0, begin);
                    }
                    Ok(())
                })
            };
            let mut all = players(&servers, turn);
            if writers == 1 {
                let floor = || floors::replace(&room, &index, PUTS);
                all.push(Player::new("floor: replace", floor));
            }
            bench.play(&case, all)?;
        }
        drop(servers);
        trees.remove()?;
    }
    Ok(())
}

/// What all manifests here refer to, and what makes each a new one.
struct Parts {
    config: (String, u64),
    layer: (String, u64),
    rounds: AtomicUsize,
}

impl Parts {
    fn new(trees: &Trees) -> Result<Parts> {
        let repository = trees.again("tags");
        let (config, layer) = (Content::fresh(KIB), Content::fresh(KIB));
        let config = (repository.blob(&config)?, config.length());
        let layer = (repository.blob(&layer)?, layer.length());
        Ok(Parts { config, layer, rounds: AtomicUsize::new(0) })
    }

    fn round(&self) -> usize {
        self.rounds.fetch_add(1, Ordering::Relaxed)
    }

    fn manifest(&self, note: &str) -> Vec<u8> {
        content::manifest((&self.config.0, self.config.1), (&self.layer.0, self.layer.1), note)
    }
}
