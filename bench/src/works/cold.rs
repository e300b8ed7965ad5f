//! GET of 1 GiB that is not in the page cache, and what another client sees meanwhile.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Result;
use rustix::fs::{Advice, fadvise};

use super::{Work, readers};
use crate::content::{Content, GIB, KIB, hex};
use crate::crowd::{Done, together};
use crate::measure::{Bench, Metric, Player, Sample};
use crate::servers::Server;
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "cold",
    about: "GET of 1 GiB from the disk by 4 clients at once; the latencies are of another client that gets blobs of 4 KiB meanwhile",
    metrics: &[Metric::CpuPerGib, Metric::Wall, Metric::Median, Metric::P99, Metric::Worst],
    run,
};

const CLIENTS: usize = 4;

fn run(bench: &mut Bench) -> Result<()> {
    let trees = Trees::new(&bench.place)?;
    let repository = trees.repository("big")?;
    let large = repository.blob(&Content::fresh(GIB))?;
    let small = repository.blob(&Content::fresh(4 * KIB))?;
    repository.finish()?;
    // Both trees name the same inode.
    let file = File::open(trees.stillage.join("big/blobs/sha256").join(hex(&large)))?;
    file.sync_all()?;
    let servers = readers(&bench.place, &trees, None)?;
    for server in &servers {
        server.connect()?.check(&server.blob("big", &large), "", GIB, &large)?;
    }
    let turn = |server: &Server| -> Result<Sample> {
        fadvise(&file, 0, None, Advice::DontNeed)?;
        let (large, small) = (server.blob("big", &large), server.blob("big", &small));
        Sample::of(server.pid(), |_| beside(server, &large, &small))
    };
    let player = |server| Player::new(Server::name(server), move || turn(server));
    bench.play("4 clients", servers.iter().map(player).collect())?;
    drop(servers);
    trees.remove()
}

/// The bytes are those of the large blob, the latencies those of the small one.
fn beside(server: &Server, large: &str, small: &str) -> Result<Done> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            together(&server.target, 1, |_, connection, done| {
                while !over.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    let bytes = connection.get(small, "")?;
                    done.count(bytes, begin);
                    // Not a load, but somebody who looks.
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                Ok(())
            })
        });
        let done = together(&server.target, CLIENTS, |_, connection, done| {
            let begin = Instant::now();
            let bytes = connection.get(large, "")?;
            done.count(bytes, begin);
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        let other = other.join().expect("the other client")?;
        Ok(Done { latencies: other.latencies, ..done? })
    })
}
