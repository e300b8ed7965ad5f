//! Pushes of 1 GiB, durable, beside what their parts take at least.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{Work, writers};
use crate::client::{Connection, begin_upload, finish_upload, push_blob};
use crate::content::{Content, GIB, MIB};
use crate::crowd::together;
use crate::floors;
use crate::measure::{Bench, Metric, Player, Sample};
use crate::servers::{Server, receive};
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "push",
    about: "push of 1 GiB of new content: POST and PUT; POST, PATCH and PUT; in chunks of 64 MiB; 8 at once; and its floors",
    metrics: &[Metric::CpuPerGib, Metric::Wall, Metric::Anonymous],
    run,
};

/// What a chunk of a chunked upload has.
const CHUNK: u64 = 64 * MIB;

/// So many push at once in the last case.
const CROWD: usize = 8;

/// A way to push a content, of which the digest is known.
pub(super) type Push = fn(&mut Connection, &Content, &str) -> Result<()>;

/// The ways to push.
const WAYS: [(&str, Push); 3] =
    [("POST, PUT", monolithic), ("POST, PATCH, PUT", streamed), ("chunks of 64 MiB", chunked)];

fn run(bench: &mut Bench) -> Result<()> {
    let trees = Trees::new(&bench.place)?;
    let servers = writers(&bench.place, &trees, None)?;
    let sink = receive::start(&bench.place)?;
    let room = bench.place.room("floor")?;
    for (case, way) in WAYS {
        let turn = |server: &Server| push(server, &trees, 1, GIB, way);
        let mut all: Vec<_> =
            servers.iter().map(|server| Player::new(server.name(), move || turn(server))).collect();
        // The floors are those of all ways.
        if case == WAYS[1].0 {
            all.push(Player::new("floor: hash", floors::hash));
            all.push(Player::new("floor: write", || floors::write(&room)));
            all.push(Player::new("floor: receive", || receive(&sink)));
        }
        bench.play(case, all)?;
    }
    let turn = |server: &Server| push(server, &trees, CROWD, GIB / 4, streamed);
    let player = |server| Player::new(Server::name(server), move || turn(server));
    bench.play("8 at once of 256 MiB", servers.iter().map(player).collect())?;
    drop(servers);
    trees.remove()
}

/// So many clients push a blob of this length each. What a turn pushes is hashed before it, and forgotten
/// after it.
pub(super) fn push(
    server: &Server,
    trees: &Trees,
    clients: usize,
    length: u64,
    way: Push,
) -> Result<Sample> {
    let contents: Vec<_> = (0..clients).map(|_| Content::fresh(length)).collect();
    let digests: Vec<_> = contents.iter().map(Content::digest).collect();
    let sample = Sample::of(server.pid(), |_| {
        together(&server.target, clients, |client, connection, done| {
            let begin = Instant::now();
            way(connection, &contents[client], &digests[client])?;
            done.count(length, begin);
            Ok(())
        })
    })?;
    let mut connection = server.connect()?;
    for digest in &digests {
        let answer = connection.ask("HEAD", &server.blob("pushed", digest), "")?;
        answer.expect(200, "HEAD of what was pushed")?;
        trees.forget("pushed", digest);
    }
    Ok(sample)
}

fn monolithic(connection: &mut Connection, content: &Content, digest: &str) -> Result<()> {
    let location = begin_upload(connection, "pushed")?;
    finish_upload(connection, &location, digest, content.pieces(), content.length())
}

pub(super) fn streamed(connection: &mut Connection, content: &Content, digest: &str) -> Result<()> {
    push_blob(connection, "pushed", content, digest)
}

fn chunked(connection: &mut Connection, content: &Content, digest: &str) -> Result<()> {
    let mut location = begin_upload(connection, "pushed")?;
    let mut at = 0;
    while at < content.length() {
        let end = content.length().min(at + CHUNK);
        let headers = format!(
            "Content-Type: application/octet-stream\r\nContent-Range: {at}-{}\r\n",
            end - 1
        );
        let pieces = content.range(at, CHUNK);
        let answer = connection.send("PATCH", &location, &headers, end - at, pieces)?;
        let answer = answer.expect(202, "PATCH")?;
        connection.skip(&answer)?;
        location = answer.location.context("PATCH: no Location")?;
        at = end;
    }
    finish_upload(connection, &location, digest, std::iter::empty(), 0)
}

/// The floor of receiving: the same body to a server that throws it away.
fn receive(sink: &Server) -> Result<Sample> {
    let content = Content::fresh(GIB);
    Sample::of(sink.pid(), |_| {
        together(&sink.target, 1, |_, connection, done| {
            let begin = Instant::now();
            let answer = connection.send("PUT", "/", "", content.length(), content.pieces())?;
            let answer = answer.expect(200, "PUT")?;
            connection.skip(&answer)?;
            done.count(content.length(), begin);
            Ok(())
        })
    })
}
