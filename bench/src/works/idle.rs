//! Memory of a server that nobody asks anything.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::{Work, players, readers};
use crate::content::{Image, KIB};
use crate::crowd::Done;
use crate::measure::{Bench, Metric};
use crate::servers::Server;
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "idle",
    about: "a server with one image, for two seconds in which nobody asks anything",
    metrics: &[Metric::Anonymous],
    run,
};

fn run(bench: &mut Bench) -> Result<()> {
    let trees = Trees::new(&bench.place)?;
    let mut repository = trees.repository("some")?;
    repository.image("v1", &Image::fresh(KIB))?;
    repository.finish()?;
    let servers = readers(&bench.place, &trees, None)?;
    let turn = |_: &Server, _: &_| {
        sleep(Duration::from_secs(2));
        Ok(Done::default())
    };
    bench.play_rounds("idle", 1, players(&servers, turn))?;
    drop(servers);
    trees.remove()
}
