//! Debian's docker-registry: distribution with its filesystem driver, as its package configures it but
//! for the logs.

use std::path::Path;

use anyhow::Result;

use super::certificate::Certificate;
use super::{Kind, Server, target};
use crate::place::{self, Place};

/// The program, as Debian calls it.
pub(crate) const PROGRAM: &str = "docker-registry";

/// Serves a tree in its own format.
pub(crate) fn start(place: &Place, root: &Path, tls: Option<&Certificate>) -> Result<Server> {
    let room = place.room("docker-registry")?;
    let address = place::free_port()?;
    let certificate = match tls {
        None => String::new(),
        Some(tls) => format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            tls.certificate.display(),
            tls.key.display()
        ),
    };
    let config = format!(
        "version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: {root}
  delete:
    enabled: true
http:
  addr: {address}
{certificate}",
        root = root.display(),
    );
    let file = room.join("config.yml");
    std::fs::write(&file, config)?;
    let file = file.to_str().expect("a path of ours");
    let target = target(address, tls.map(|tls| tls.trust.clone()));
    let log = room.join("log");
    let args = ["serve", file];
    Server::start(Kind::Registry, Path::new(PROGRAM), &args, &[], &log, target)?.until_it_listens()
}
