//! Pushes of many small images, as a CI system makes them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;

use super::{Work, writers};
use crate::client::{Connection, push_blob, push_manifest};
use crate::content::{Content, Image, KIB};
use crate::crowd::{Done, together};
use crate::floors;
use crate::measure::{Bench, Metric, Player, Sample};
use crate::servers::Server;
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "images",
    about: "push of 500 images (a layer of 16 KiB, a configuration of 1 KiB, a manifest with a new tag) by 16 clients",
    metrics: &[Metric::RequestsPerSecond, Metric::CpuPerRequest, Metric::Median, Metric::P99],
    run,
};

const IMAGES: usize = 500;
const CLIENTS: usize = 16;
const LAYER: u64 = 16 * KIB;

fn run(bench: &mut Bench) -> Result<()> {
    let trees = Trees::new(&bench.place)?;
    let servers = writers(&bench.place, &trees, None)?;
    let room = bench.place.room("floor")?;
    for (case, repositories) in [("one repository", 1), ("16 repositories", CLIENTS)] {
        let turn = |server: &Server| {
            let images: Vec<Image> = (0..IMAGES).map(|_| Image::fresh(LAYER)).collect();
            Sample::of(server.pid(), |_| push(server, &images, repositories))
        };
        let player = |server| Player::new(Server::name(server), move || turn(server));
        let mut all: Vec<_> = servers.iter().map(player).collect();
        all.push(Player::new("floor: fsync of 4 KiB", || floors::fsync(&room)));
        bench.play(case, all)?;
    }
    drop(servers);
    trees.remove()
}

/// A request here is an image.
fn push(server: &Server, images: &[Image], repositories: usize) -> Result<Done> {
    let next = AtomicUsize::new(0);
    together(&server.target, CLIENTS, |client, connection, done| {
        let repository = format!("ci/app{}", client % repositories);
        while let Some(image) = images.get(next.fetch_add(1, Ordering::Relaxed)) {
            let begin = Instant::now();
            push_image(connection, &repository, image)?;
            let bytes = image.layer.length() + image.config.length();
            done.count(bytes, begin);
        }
        Ok(())
    })
}

/// As docker and podman do it: is each blob there? If not, push it; then the manifest.
pub(crate) fn push_image(
    connection: &mut Connection,
    repository: &str,
    image: &Image,
) -> Result<()> {
    for (content, digest) in
        [(&image.layer, &image.layer_digest), (&image.config, &image.config_digest)]
    {
        missing_then_pushed(connection, repository, content, digest)?;
    }
    // A new tag each time, which is shorter than the digest.
    let tag = &image.layer_digest["sha256:".len()..][..16];
    push_manifest(connection, repository, tag, &image.manifest)
}

fn missing_then_pushed(
    connection: &mut Connection,
    repository: &str,
    content: &Content,
    digest: &str,
) -> Result<()> {
    let path = format!("/v2/{repository}/blobs/{digest}");
    connection.ask("HEAD", &path, "")?.expect(404, "HEAD of a new blob")?;
    push_blob(connection, repository, content, digest)
}
