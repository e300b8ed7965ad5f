//! GET and push of 1 GiB over TLS 1.3.

use std::time::Instant;

use anyhow::Result;

use super::push::{self, streamed};
use super::{Work, players, readers, writers};
use crate::content::{Content, GIB};
use crate::crowd::together;
use crate::measure::{Bench, Metric, Player};
use crate::servers::Server;
use crate::servers::certificate::Certificate;
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "tls",
    about: "over TLS 1.3: GET of 1 GiB by 4 clients, push of 1 GiB by POST, PATCH and PUT",
    metrics: &[Metric::CpuPerGib, Metric::Wall, Metric::Anonymous],
    run,
};

const CLIENTS: usize = 4;

fn run(bench: &mut Bench) -> Result<()> {
    let certificate = Certificate::make(&bench.place.room("certificate")?)?;
    let trees = Trees::new(&bench.place)?;
    let repository = trees.repository("big")?;
    let digest = repository.blob(&Content::fresh(GIB))?;
    repository.finish()?;
    let servers = readers(&bench.place, &trees, Some(&certificate))?;
    for server in &servers {
        server.connect()?.check(&server.blob("big", &digest), "", GIB, &digest)?;
    }
    let turn = |server: &Server, _: &_| {
        let path = server.blob("big", &digest);
        together(&server.target, CLIENTS, |_, connection, done| {
            let begin = Instant::now();
            let bytes = connection.get(&path, "")?;
            done.count(bytes, begin);
            Ok(())
        })
    };
    bench.play("GET, 4 clients", players(&servers, turn))?;
    drop(servers);
    let servers = writers(&bench.place, &trees, Some(&certificate))?;
    let turn = |server: &Server| push::push(server, &trees, 1, GIB, streamed);
    let player = |server| Player::new(Server::name(server), move || turn(server));
    bench.play("push", servers.iter().map(player).collect())?;
    drop(servers);
    trees.remove()
}
