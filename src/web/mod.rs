//! What lets a plain web server serve the tree, or stand in front of Stillage: its configuration, and the
//! script that keeps a copy of the tree up to date. Text only: nothing here opens a file.

pub mod accel;
mod mirror;
mod quote;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

pub use mirror::{Mirror, MirrorError};

/// The web servers that there is a configuration for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// nginx 1.22 or newer.
    Nginx,
    /// Caddy 2.6 or newer.
    Caddy,
    /// Apache's httpd 2.4.
    Apache,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Server::Nginx => "nginx",
            Server::Caddy => "Caddy",
            Server::Apache => "Apache",
        })
    }
}

/// What is to be served, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The tree; an absolute path.
    pub root: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Certificate and key as PEM, absolute paths: without them it is plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The host name that it answers to; any without one.
    pub name: Option<String>,
}

/// What a configuration cannot say.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SiteError {
    /// A path would mean something else there, whatever it is quoted with.
    #[error(
        "{server} cannot be told of the path {path:?}, because of {what}: rename it, or let a bind mount \
         give it another name"
    )]
    Path {
        /// Which server.
        server: Server,
        /// What was to be written.
        path: PathBuf,
        /// What it does not take.
        what: &'static str,
    },
    /// Not the name of a host.
    #[error("{0:?} is no host name: use letters, digits, '.', '-' and a leading '*.'")]
    Name(String),
}

/// A component of a repository's name, as all three servers read regular expressions.
const COMPONENT: &str = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*";
/// What follows the algorithm in a digest.
const HEX: &str = "[0-9a-f]{64}(?:[0-9a-f]{64})?";

impl Server {
    /// The configuration that serves a tree for reading: manifests, blobs and lists, and nothing else that
    /// lies there.
    ///
    /// # Errors
    /// A path or the name cannot be written in the server's language.
    pub fn configuration(self, site: &Site) -> Result<String, SiteError> {
        let name = site.name.as_deref().map(host).transpose()?;
        let root = self.path(&site.root)?;
        let tls = match &site.tls {
            None => None,
            Some((certificate, key)) => Some((self.path(certificate)?, self.path(key)?)),
        };
        let repository = format!("{COMPONENT}(?:/{COMPONENT})*");
        let values = [
            ("NAME", repository),
            ("HEX", HEX.to_owned()),
            ("TLS", self.tls(tls.as_ref())),
            ("SSL_MODULE", tls.as_ref().map_or("", |_| " ssl").to_owned()),
            ("LISTEN", self.listen(site)),
            ("BIND", site.listen.ip().to_string()),
            ("ADDRESS", address(site, name)),
            ("SERVER_NAME", name.unwrap_or(self.no_name()).to_owned()),
            ("ROOT", root),
        ];
        Ok(fill(self.template(), &values))
    }

    fn template(self) -> &'static str {
        match self {
            Server::Nginx => include_str!("nginx.conf"),
            Server::Caddy => include_str!("Caddyfile"),
            Server::Apache => include_str!("apache.conf"),
        }
    }

    fn listen(self, site: &Site) -> String {
        match self {
            Server::Nginx if site.tls.is_some() => format!("{} ssl", site.listen),
            _ => site.listen.to_string(),
        }
    }

    /// What stands for any name.
    fn no_name(self) -> &'static str {
        match self {
            Server::Nginx => "_",
            _ => "localhost",
        }
    }

    /// The lines that turn TLS on; none without a certificate.
    fn tls(self, files: Option<&(String, String)>) -> String {
        let Some((certificate, key)) = files else { return String::new() };
        let template = match self {
            Server::Nginx => include_str!("nginx-tls.conf"),
            Server::Caddy => include_str!("Caddyfile-tls"),
            Server::Apache => include_str!("apache-tls.conf"),
        };
        fill(template, &[("CERTIFICATE", certificate.clone()), ("KEY", key.clone())])
    }
}

/// A template with its values in place of `@KEY@`. What is in a value is never looked at.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('@') {
        text.push_str(before);
        let value = values
            .iter()
            .find_map(|(key, value)| Some((value, after.strip_prefix(key)?.strip_prefix('@')?)));
        match value {
            Some((value, behind)) => {
                text.push_str(value);
                rest = behind;
            }
            None => {
                text.push('@');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

/// Caddy's name of a site: without a scheme it would fetch a certificate for it.
fn address(site: &Site, name: Option<&str>) -> String {
    let scheme = if site.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{}:{}", name.unwrap_or_default(), site.listen.port())
}

fn host(name: &str) -> Result<&str, SiteError> {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
    let good = rest.bytes().all(plain) && rest.starts_with(|c: char| c.is_ascii_alphanumeric());
    if good { Ok(name) } else { Err(SiteError::Name(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::path;
    use crate::oci::{Kind, RepoName};

    const ALL: [Server; 3] = [Server::Nginx, Server::Caddy, Server::Apache];

    fn site() -> Site {
        Site {
            root: "/srv/registry".into(),
            listen: "127.0.0.1:5000".parse().unwrap(),
            tls: None,
            name: None,
        }
    }

    #[test]
    fn every_kind_has_its_type_and_every_view_its_name() {
        for server in ALL {
            let text = server.configuration(&site()).unwrap();
            for kind in Kind::ALL {
                assert!(text.contains(kind.short()), "{server:?} {kind:?}");
                assert!(text.contains(kind.media_type()), "{server:?} {kind:?}");
            }
            for name in [path::MANIFESTS, path::BLOBS, path::REFERRERS] {
                assert!(text.contains(&format!("/{name}/")), "{server:?} {name}");
            }
            for name in [path::TAGS, path::INDEX] {
                assert!(text.contains(&format!("/{name}")), "{server:?} {name}");
            }
            assert!(text.lines().all(|line| !line.ends_with(' ')), "{text}");
            for key in ["NAME", "HEX", "TLS", "LISTEN", "BIND", "ADDRESS", "SERVER_NAME", "ROOT"] {
                assert!(!text.contains(&format!("@{key}@")), "{text}");
            }
        }
    }

    #[test]
    fn what_is_typed_is_written_or_refused() {
        let mut typed = site();
        typed.root = r#"/srv/a b/"c"/@TLS@"#.into();
        for server in ALL {
            let text = server.configuration(&typed).unwrap();
            assert!(text.contains(r#""/srv/a b/\"c\"/@TLS@"#), "{text}");
            for name in ["a;b", "a b", "", "*", "a\"", "$host", "a\nb"] {
                let name = Some(name.to_owned());
                let refused = server.configuration(&Site { name, ..site() }).unwrap_err();
                assert!(matches!(refused, SiteError::Name(_)), "{refused}");
            }
            for name in ["registry.example", "*.example", "a-b"] {
                let name = Some(name.to_owned());
                assert!(server.configuration(&Site { name, ..site() }).is_ok());
            }
        }
    }

    #[test]
    fn a_certificate_turns_tls_on() {
        let tls = Some(("/c".into(), "/k".into()));
        for (server, lines) in [
            (Server::Nginx, ["listen 127.0.0.1:5000 ssl;", "ssl_certificate_key \"/k\";"]),
            (Server::Caddy, ["https://:5000 {", "tls \"/c\" \"/k\""]),
            (
                Server::Apache,
                ["SSLCertificateFile \"/c\"", "a2enmod rewrite headers mime setenvif ssl"],
            ),
        ] {
            let text = server.configuration(&Site { tls: tls.clone(), ..site() }).unwrap();
            for line in lines {
                assert!(text.contains(line), "{text}");
                assert!(!server.configuration(&site()).unwrap().contains(line));
            }
        }
    }

    /// The pattern is the one that names are parsed by: what it lets through is a name, but for its
    /// length and the three reserved words, which no repository has.
    #[test]
    fn the_pattern_of_names_is_that_of_the_specification() {
        assert_eq!(COMPONENT, r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*");
        for good in ["a", "a/b", "a.b", "a_b", "a__b", "a---b", "0/1/2"] {
            assert!(RepoName::parse(good).is_ok(), "{good}");
        }
    }
}
