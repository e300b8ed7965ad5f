//! `stillage static`, as typed and checked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf, absolute};

use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand};

use super::{ConfigError, serve};
use crate::http::Prefix;
use crate::web::accel::Front;
use crate::web::{Mirror, Server, Site};

/// `stillage static`
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct StaticArgs {
    /// What to print.
    #[command(subcommand)]
    pub what: StaticCommand,
}

/// What `stillage static` prints.
#[derive(Debug, Subcommand)]
pub enum StaticCommand {
    /// A server block for /etc/nginx/conf.d
    Nginx(NginxArgs),
    /// A site for the Caddyfile
    Caddy(SiteArgs),
    /// A virtual host for /etc/apache2/sites-available
    Apache(SiteArgs),
    /// A script that makes and refreshes a read-only copy of a tree, one round of rsync at a time
    Mirror(MirrorArgs),
}

/// `stillage static nginx`
#[derive(Debug, Args)]
#[command(
    long_about = "Print a configuration that serves the tree in ROOT for reading, without a Stillage \
                  process.\n\nThere are no logins: everybody pulls what the web server's account can read. \
                  With --accel it stands in front of a Stillage that has the logins."
)]
pub struct NginxArgs {
    #[command(flatten)]
    site: SiteArgs,
    /// Stand in front of `stillage serve --accel PREFIX`, and send the blobs: docs/proxy.md
    #[arg(long, env = "STILLAGE_ACCEL", hide_env = true, value_name = "PREFIX")]
    accel: Option<Prefix>,
    /// Where that one listens
    #[arg(long, env = "STILLAGE_UPSTREAM", hide_env = true, value_name = "ADDR:PORT")]
    #[arg(default_value = "127.0.0.1:5000", value_parser = serve::address)]
    upstream: SocketAddr,
}

/// `stillage static caddy` and `stillage static apache`
#[derive(Debug, Args)]
#[command(
    long_about = "Print a configuration that serves the tree in ROOT for reading, without a Stillage \
                  process.\n\nThere are no logins: everybody pulls what the web server's account can read."
)]
pub struct SiteArgs {
    /// The directory that holds the registry, or a mirror of it
    #[arg(env = "STILLAGE_ROOT", hide_env = true)]
    root: PathBuf,
    /// Where to listen
    #[arg(long, env = "STILLAGE_LISTEN", hide_env = true, value_name = "ADDR:PORT")]
    #[arg(default_value = "127.0.0.1:5000", value_parser = serve::address)]
    listen: SocketAddr,
    /// The certificate for TLS as PEM, with its chain
    #[arg(long, env = "STILLAGE_TLS_CERT", hide_env = true, value_name = "FILE")]
    #[arg(requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key as PEM
    #[arg(long, env = "STILLAGE_TLS_KEY", hide_env = true, value_name = "FILE")]
    #[arg(requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The host name to answer to [default: any]
    #[arg(long, env = "STILLAGE_SERVER_NAME", hide_env = true, value_name = "NAME")]
    server_name: Option<String>,
}

/// `stillage static mirror`
#[derive(Debug, Args)]
#[command(
    long_about = "Print the script of a mirror's round: it makes a read-only copy of a tree, or brings it up \
                  to date, while a web server serves it.\n\nWhoever pulls meanwhile never meets a tag \
                  without its blobs."
)]
pub struct MirrorArgs {
    /// The tree that is copied: a directory, HOST:PATH or rsync://HOST/MODULE
    #[arg(env = "STILLAGE_ORIGIN", hide_env = true)]
    origin: PathBuf,
    /// The copy: a directory that is not there yet, or a mirror; or HOST:PATH, from a directory
    #[arg(env = "STILLAGE_MIRROR", hide_env = true)]
    mirror: PathBuf,
    /// Where names wait for their blobs [default: beside the directory, with .names added]
    #[arg(long, env = "STILLAGE_STAGE", hide_env = true, value_name = "DIR")]
    stage: Option<PathBuf>,
    /// Do a round, instead of printing it
    #[arg(long, env = "STILLAGE_RUN", hide_env = true, value_parser = FalseyValueParser::new())]
    pub run: bool,
}

impl StaticCommand {
    /// Checks what was typed, and gives what it comes to: a configuration or a script.
    pub fn text(&self) -> Result<String, ConfigError> {
        match self {
            StaticCommand::Nginx(args) => args.configuration(),
            StaticCommand::Caddy(args) => args.configuration(Server::Caddy),
            StaticCommand::Apache(args) => args.configuration(Server::Apache),
            StaticCommand::Mirror(args) => {
                Ok(Mirror::new(&args.origin, &args.mirror, args.stage.as_deref())?.script())
            }
        }
    }

    /// Whether it is to be run instead of printed.
    pub fn is_to_run(&self) -> bool {
        matches!(self, StaticCommand::Mirror(args) if args.run)
    }
}

impl NginxArgs {
    fn configuration(&self) -> Result<String, ConfigError> {
        let Some(prefix) = &self.accel else { return self.site.configuration(Server::Nginx) };
        let site = self.site.site()?;
        if site.listen == self.upstream {
            return Err(ConfigError::SamePort(self.upstream));
        }
        Ok(Front { site, upstream: self.upstream, prefix: prefix.to_string() }.nginx()?)
    }
}

impl SiteArgs {
    fn configuration(&self, server: Server) -> Result<String, ConfigError> {
        Ok(server.configuration(&self.site()?)?)
    }

    fn site(&self) -> Result<Site, ConfigError> {
        let tls = match self.tls_cert.as_deref().zip(self.tls_key.as_deref()) {
            Some((certificate, key)) => Some((whole(certificate)?, whole(key)?)),
            None => None,
        };
        Ok(Site {
            root: whole(&self.root)?,
            listen: self.listen,
            tls,
            name: self.server_name.clone(),
        })
    }
}

/// The path from the root of the file system: a web server is started elsewhere.
fn whole(path: &Path) -> Result<PathBuf, ConfigError> {
    let whole =
        absolute(path).map_err(|error| ConfigError::NoPath(path.to_owned(), error.to_string()))?;
    // Without what is empty or says "here".
    Ok(whole.components().collect())
}
