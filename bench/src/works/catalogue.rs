//! A registry of 10,000 repositories: its catalogue, and how soon a server that starts on it answers.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{ENOUGH, Work, players, readers};
use crate::content::{Image, KIB, MANIFEST};
use crate::crowd::until_taken;
use crate::measure::{Bench, Latency, Metric, Player, Sample};
use crate::place::{Place, installed};
use crate::process::{TICK, Tree};
use crate::servers::{Kind, Server, nginx, registry, stillage};
use crate::trees::Trees;

pub(super) const WORK: Work = Work {
    name: "catalogue",
    about: "10,000 repositories: pages of 100 of the catalogue; from the start of the program to the first answer; memory",
    metrics: &[Metric::Median, Metric::P99, Metric::CpuPerRequest, Metric::Anonymous],
    run,
};

const REPOSITORIES: usize = 10_000;
const PAGE: &str = "/v2/_catalog?n=100&last=team5/app5000";

fn run(bench: &mut Bench) -> Result<()> {
    let trees = Trees::new(&bench.place)?;
    let image = Image::fresh(KIB);
    let mut digest = String::new();
    for number in 0..REPOSITORIES {
        let mut repository = trees.repository(&format!("team{}/app{number}", number % 10))?;
        digest = repository.image("v1", &image)?;
        repository.finish()?;
    }
    starts(bench, &trees, &digest)?;
    let mut servers = readers(&bench.place, &trees, None)?;
    servers.retain(|server| server.kind != Kind::Nginx);
    for server in &servers {
        let mut connection = server.connect()?;
        let answer = connection.ask("GET", PAGE, "")?.expect(200, PAGE)?;
        let list: Value = serde_json::from_slice(&connection.read(&answer)?)?;
        let got = list["repositories"].as_array().context("no repositories")?.len();
        ensure!(got == 100, "{}: {got} repositories instead of 100", server.name());
    }
    let turn = |server: &Server, meter: &_| {
        until_taken(&server.target, 1, meter, ENOUGH, |_, _, connection| connection.get(PAGE, ""))
    };
    bench.play("a page of the catalogue", players(&servers, turn))?;
    drop(servers);
    trees.remove()
}

/// The latency is the time from before the program is started to its first answer: a manifest by tag.
fn starts(bench: &mut Bench, trees: &Trees, digest: &str) -> Result<()> {
    type Start = fn(&Place, &Trees) -> Result<Server>;
    let mut all: Vec<(Kind, Start)> = vec![
        (Kind::Stillage, |place, trees| stillage::start(place, &trees.stillage, None)),
        (Kind::Nginx, |place, trees| nginx::start(place, &trees.stillage, None)),
    ];
    if installed(registry::PROGRAM) {
        all.push((Kind::Registry, |place, trees| registry::start(place, &trees.registry, None)));
    }
    let place = &*Rc::clone(&bench.place);
    let player = |(kind, start): (Kind, Start)| {
        Player::new(kind.name(), move || {
            let begin = Instant::now();
            let server = start(place, trees)?;
            let path = server.manifest("team7/app1237", "v1", digest);
            server.connect()?.get(&path, &format!("Accept: {MANIFEST}\r\n"))?;
            let took = begin.elapsed().as_secs_f64();
            let tree = Tree::of(server.pid());
            Ok(Sample {
                wall: took,
                cpu: tree.ticks() as f64 * TICK,
                requests: 1,
                anonymous: tree.anonymous(),
                peak: tree.peak(),
                latency: Latency::of(&[took]),
                ..Sample::default()
            })
        })
    };
    let players = all.into_iter().map(player).collect();
    bench.play("first answer after the start", players)
}
