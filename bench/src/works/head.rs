//! HEAD of a blob that is not there: what every push begins with.

use anyhow::Result;

use super::{ENOUGH, Work, players, readers};
use crate::content::{Content, Image, KIB};
use crate::crowd::until_taken;
use crate::measure::{Bench, Metric};
use crate::servers::Server;
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "head",
    about: "HEAD of a blob that is not there, 16 clients",
    metrics: &[Metric::RequestsPerCpu, Metric::RequestsPerSecond, Metric::Median],
    run,
};

const CLIENTS: usize = 16;

fn run(bench: &mut Bench) -> Result<()> {
    let trees = Trees::new(&bench.place)?;
    let mut repository = trees.repository("some")?;
    repository.image("v1", &Image::fresh(KIB))?;
    repository.finish()?;
    let servers = readers(&bench.place, &trees, None)?;
    let missing: Vec<String> = (0..1000).map(|_| Content::fresh(16).digest()).collect();
    let turn = |server: &Server, meter: &_| {
        until_taken(&server.target, CLIENTS, meter, ENOUGH, |_, number, connection| {
            let path = server.blob("some", &missing[number % missing.len()]);
            connection.ask("HEAD", &path, "")?.expect(404, "HEAD")?;
            Ok(0)
        })
    };
    bench.play("missing", players(&servers, turn))?;
    drop(servers);
    trees.remove()
}
