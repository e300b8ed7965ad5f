//! nginx as the issue means it: sendfile, a worker per core, no access log.

use std::path::Path;

use anyhow::Result;

use super::certificate::Certificate;
use super::{Kind, Server, target};
use crate::place::{self, Place};

/// Serves the files beneath `root` under their own names. A connection is kept for as many requests as
/// the client wants (nginx ends one after 1,000 otherwise).
pub(crate) fn start(place: &Place, root: &Path, tls: Option<&Certificate>) -> Result<Server> {
    let room = place.room("nginx")?;
    let address = place::free_port()?;
    let (listen, certificate) = match tls {
        None => (address.to_string(), String::new()),
        Some(tls) => (
            format!("{address} ssl"),
            format!(
                "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3;",
                tls.certificate.display(),
                tls.key.display()
            ),
        ),
    };
    let config = format!(
        "daemon off; worker_processes auto; worker_rlimit_nofile 16384; user root;
pid {room}/pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
  default_type application/octet-stream; types {{ }}
  client_body_temp_path {room}/body; proxy_temp_path {room}/proxy; fastcgi_temp_path {room}/fastcgi;
  uwsgi_temp_path {room}/uwsgi; scgi_temp_path {room}/scgi;
  server {{ listen {listen}; {certificate} root {root}; }}
}}
",
        room = room.display(),
        root = root.display(),
    );
    let file = room.join("nginx.conf");
    std::fs::write(&file, config)?;
    let file = file.to_str().expect("a path of ours");
    let target = target(address, tls.map(|tls| tls.trust.clone()));
    let args = ["-c", file, "-p", room.to_str().expect("a path of ours"), "-e", "stderr"];
    let log = room.join("log");
    Server::start(Kind::Nginx, Path::new("nginx"), &args, &[], &log, target)?.until_it_listens()
}
