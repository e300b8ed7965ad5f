//! Stillage itself: `serve --auth none`.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::certificate::Certificate;
use super::{Kind, Server, target};
use crate::place::Place;

/// Serves a tree. One address may have as many connections as it wants: all clients here are one.
pub(crate) fn start(place: &Place, root: &Path, tls: Option<&Certificate>) -> Result<Server> {
    let log = place.path().join("stillage.log");
    let root = root.to_str().expect("a path of ours");
    let mut args = vec!["serve", root, "--listen", "127.0.0.1:0", "--auth", "none"];
    args.extend(["--log-level", "warn", "--max-connections-each", "4000", "--min-free", "0"]);
    if let Some(tls) = tls {
        let file = |path: &'static str| path;
        args.extend([file("--tls-cert"), tls.certificate.to_str().expect("a path of ours")]);
        args.extend([file("--tls-key"), tls.key.to_str().expect("a path of ours")]);
    }
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let target = target(nowhere, tls.map(|tls| tls.trust.clone()));
    let server = Server::start(Kind::Stillage, &place.stillage, &args, &log, target)?;
    server.until_it_says(|line| {
        let rest = line.strip_prefix("stillage: serving ")?;
        rest.rsplit_once("://")?.1.parse().ok()
    })
}
