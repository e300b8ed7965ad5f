//! Stillage itself: `serve --auth none`.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::certificate::Certificate;
use super::{Kind, Server, target};
use crate::place::Place;

/// How long views may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Serves a tree and does nothing that nobody asked for: what it does can be counted.
pub(crate) fn start_quiet(place: &Place, root: &Path) -> Result<Server> {
    start_with(place, root, &["--gc-every", "0"], None, &[QUIET])
}

/// The same with one thread that serves, and without views, whose renewal after the start takes its time.
pub(crate) fn start_alone(place: &Place, root: &Path) -> Result<Server> {
    let alone = ("TOKIO_WORKER_THREADS", "1");
    start_with(place, root, &["--gc-every", "0", "--no-views"], None, &[QUIET, alone])
}

/// No look at the tree but on behalf of a request.
const QUIET: (&str, &str) = ("STILLAGE_LOOK_EVERY", "0");

/// Serves a tree. One address may have as many connections as it wants: all clients here are one.
pub(crate) fn start(place: &Place, root: &Path, tls: Option<&Certificate>) -> Result<Server> {
    start_with(place, root, &[], tls, &[])
}

fn start_with(
    place: &Place,
    root: &Path,
    more: &[&str],
    tls: Option<&Certificate>,
    envs: &[(&str, &str)],
) -> Result<Server> {
    let log = place.path().join("stillage.log");
    let root = root.to_str().expect("a path of ours");
    let mut args = vec!["serve", root, "--listen", "127.0.0.1:0", "--auth", "none"];
    args.extend(["--log-level", "warn", "--max-connections-each", "4000", "--min-free", "0"]);
    args.extend(more);
    if let Some(tls) = tls {
        args.extend(["--tls-cert", tls.certificate.to_str().expect("a path of ours")]);
        args.extend(["--tls-key", tls.key.to_str().expect("a path of ours")]);
    }
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let target = target(nowhere, tls.map(|tls| tls.trust.clone()));
    let server = Server::start(Kind::Stillage, &place.stillage, &args, envs, &log, target)?;
    server.until_it_says(|line| {
        let rest = line.strip_prefix("stillage: serving ")?;
        rest.rsplit_once("://")?.1.parse().ok()
    })
}

/// A server that starts makes the views of what was written as files, after a while; their stamp is the
/// last of them.
pub(crate) fn until_viewed(repository: &Path) -> Result<()> {
    let begin = Instant::now();
    while fs::symlink_metadata(repository.join("_manifests/.of")).is_err() {
        ensure!(begin.elapsed() < PATIENCE, "{} has no views", repository.display());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
