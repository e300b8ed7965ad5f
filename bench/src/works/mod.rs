//! The works that are measured, one file each.

mod catalogue;
mod cold;
mod get;
mod head;
mod idle;
pub(crate) mod images;
mod manifest;
mod mount;
mod push;
mod put;
mod range;
mod slow;
mod small;
mod tags;
mod tls;

use anyhow::Result;

use crate::crowd::Done;
use crate::measure::{Bench, Metric, Player, Sample};
use crate::place::{Place, installed};
use crate::process::Meter;
use crate::servers::certificate::Certificate;
use crate::servers::{Server, nginx, registry, stillage};
use crate::trees::Trees;

/// Something that is measured.
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// What is told of it, the most important first.
    pub(crate) metrics: &'static [Metric],
    pub(crate) run: fn(&mut Bench) -> Result<()>,
}

/// All of them, in the order in which they are done.
pub(crate) const ALL: &[Work] = &[
    idle::WORK,
    get::WORK,
    slow::WORK,
    small::WORK,
    range::WORK,
    cold::WORK,
    manifest::WORK,
    head::WORK,
    tags::WORK,
    catalogue::WORK,
    push::WORK,
    images::WORK,
    put::WORK,
    mount::WORK,
    tls::WORK,
];

/// Seconds of processor: small requests are repeated until the server has had so much, of which a tick is a
/// hundredth.
pub(crate) const ENOUGH: f64 = 1.0;

/// How many tags a repository has, and how that is written.
pub(crate) const TAGS: [(usize, &str); 4] =
    [(10, "10"), (1_000, "1,000"), (10_000, "10,000"), (100_000, "100,000")];

/// The servers of a pull, on trees with the same content.
pub(crate) fn readers(
    place: &Place,
    trees: &Trees,
    tls: Option<&Certificate>,
) -> Result<Vec<Server>> {
    let mut servers = vec![
        stillage::start(place, &trees.stillage, tls)?,
        nginx::start(place, &trees.stillage, tls)?,
    ];
    if installed(registry::PROGRAM) {
        servers.push(registry::start(place, &trees.registry, tls)?);
    }
    Ok(servers)
}

/// The servers of a push.
pub(crate) fn writers(
    place: &Place,
    trees: &Trees,
    tls: Option<&Certificate>,
) -> Result<Vec<Server>> {
    let mut servers = vec![stillage::start(place, &trees.stillage, tls)?];
    if installed(registry::PROGRAM) {
        servers.push(registry::start(place, &trees.registry, tls)?);
    }
    Ok(servers)
}

/// A player for each server.
pub(crate) fn players<'a>(
    servers: &'a [Server],
    turn: impl Fn(&'a Server, &Meter) -> Result<Done> + Copy + 'a,
) -> Vec<Player<'a>> {
    let player = |server: &'a Server| {
        Player::new(server.name(), move || Sample::of(server.pid(), |meter| turn(server, meter)))
    };
    servers.iter().map(player).collect()
}
