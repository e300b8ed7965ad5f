//! The command line and the environment: read once at the start, checked, and handed down as
//! plain values. One file for each command.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use thiserror::Error;

use crate::http::webhooks::WebhookError;
use crate::oci::NameError;
use crate::{auth, web};

mod access;
mod check;
mod gc;
mod serve;
mod snapshot;
mod statics;
mod units;
mod watch;

pub use access::AccessArgs;
pub use check::CheckArgs;
pub use gc::{Gc, GcArgs};
pub use serve::{Certificate, Serve, ServeArgs};
pub use snapshot::SnapshotArgs;
pub use statics::{MirrorArgs, SiteArgs, StaticArgs, StaticCommand};
pub use watch::WatchArgs;

/// An OCI container registry that is nothing but files.
#[derive(Debug, Parser)]
#[command(name = "stillage", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Every flag can also be given as a variable: --listen as STILLAGE_LISTEN.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What is logged to stderr: error, warn, info, debug or filters as RUST_LOG has them
    #[arg(long, global = true, env = "STILLAGE_LOG_LEVEL", hide_env = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the registry in ROOT
    Serve(Box<ServeArgs>),
    /// Look for damage in ROOT; exits 4 where there is some
    Check(CheckArgs),
    /// Give back what nothing needs any more, beside a running server; exits 3 where something was
    /// left for the next time
    Gc(GcArgs),
    /// Copy ROOT to DEST on the same file system, in moments: blobs are shared
    Snapshot(SnapshotArgs),
    /// Print what happens in ROOT: a line of JSON for each push, tag, untag and delete
    Watch(WatchArgs),
    /// Say who may do what to a repository, and which directory decides it
    Access(AccessArgs),
    /// Print what lets a plain web server serve the tree: a configuration, the script of a mirror
    Static(StaticArgs),
}

/// What is allowed without a login, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AnonymousMode {
    Pull,
    None,
}

impl From<AnonymousMode> for auth::Anonymous {
    fn from(mode: AnonymousMode) -> auth::Anonymous {
        match mode {
            AnonymousMode::Pull => auth::Anonymous::Pull,
            AnonymousMode::None => auth::Anonymous::Nothing,
        }
    }
}

/// Settings that contradict each other or that are dangerous without a second word.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Passwords and tokens would travel in clear.
    #[error(
        "{0} is not loopback, and without TLS passwords would travel in clear: add --tls-cert and \
         --tls-key, or --plain-http if nobody listens on the way, or put a proxy with TLS in front \
         of 127.0.0.1"
    )]
    PlainHttp(SocketAddr),
    /// Everyone who reaches the port could do everything.
    #[error(
        "{0} is not loopback, and with --auth none everyone who reaches it may do everything: add --open-to-all to say so"
    )]
    OpenToAll(SocketAddr),
    /// Who has no logins cannot ask for one.
    #[error("--auth none lets everyone in: --anonymous none contradicts it")]
    Anonymous,
    /// There is nothing to work on.
    #[error("name the registry's directory, or set STILLAGE_ROOT")]
    NoRoot,
    /// There is something to ask of a repository only.
    #[error("name the repository: stillage access ROOT REPO [USER]")]
    NoRepository,
    /// No repository can be called so.
    #[error(transparent)]
    Repository(#[from] NameError),
    /// Nobody can be told there.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// Nobody could push.
    #[error(
        "--auth basic lets only administrators push: name their group with --admin-group GROUP"
    )]
    NoAdministrators,
    /// Files would be handed to nobody.
    #[error("--accel hands blobs to the proxy that --trusted-proxy names: name it, as 127.0.0.1")]
    AccelProxy,
    /// It would be another one at each start.
    #[error(
        "--read-only keeps no certificate: give one with --tls-cert and --tls-key instead of --tls"
    )]
    ReadOnlyCertificate,
    /// How far its receiver was told would be forgotten.
    #[error(
        "--read-only keeps no account of what was posted: let the origin's server have --webhook"
    )]
    ReadOnlyWebhook,
    /// nginx would take the port, or find it taken.
    #[error("nginx and Stillage cannot both listen at {0}: say where with --listen or --upstream")]
    SamePort(SocketAddr),
    /// A relative directory would depend on where the workers were started.
    #[error("--pam-confdir {0:?} is not an absolute path")]
    PamConfdir(PathBuf),
    /// There is no working directory that a relative path could begin at, or no path.
    #[error("{0:?}: {1}")]
    NoPath(PathBuf, String),
    /// A web server's configuration cannot say that.
    #[error(transparent)]
    Site(#[from] web::SiteError),
    /// No mirror can be made of that.
    #[error(transparent)]
    Mirror(#[from] web::MirrorError),
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory;

    use super::*;
    use crate::registry::MinFree;
    use crate::{access, http, registry};

    fn serve(args: &[&str]) -> Result<Serve, ConfigError> {
        let line = ["stillage", "serve", "/r"].iter().chain(args);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Serve(args) => args.check(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_age_of_untagged_manifests_without_them_is_refused() {
        let gc = |args: &[&str]| {
            let line = ["stillage", "gc", "/r"].iter().chain(args);
            match Cli::try_parse_from(line)?.command {
                Command::Gc(args) => Ok(args.check(None).unwrap().options.untagged),
                other => panic!("{other:?}"),
            }
        };
        let days = |days: u64| Some(Duration::from_secs(days * 24 * 60 * 60));
        assert_eq!(gc(&["--untagged", "--older", "7d"]).unwrap(), days(7));
        assert_eq!(gc(&["--untagged"]).unwrap(), days(30));
        assert_eq!(gc(&[]).unwrap(), None);
        let refused: clap::Error = gc(&["--older", "7d"]).unwrap_err();
        assert!(refused.to_string().contains("--untagged"), "{refused}");
    }

    #[test]
    fn beyond_loopback_a_second_word_is_needed() {
        let outside = ["--listen", "0.0.0.0:5000"];
        assert!(matches!(serve(&outside), Err(ConfigError::PlainHttp(_))));
        let outside = ["--listen", "[::]:5000", "--plain-http"];
        assert_eq!(serve(&outside).unwrap().anonymous, auth::Anonymous::Nothing);
        let open = ["--listen", "0.0.0.0:5000", "--plain-http", "--auth", "none"];
        assert!(matches!(serve(&open), Err(ConfigError::OpenToAll(_))));
        let outside = ["--listen", "0.0.0.0:5000", "--tls", "self-signed"];
        assert_eq!(serve(&outside).unwrap().certificate, Some(Certificate::SelfSigned));
        let open = ["--listen", "0.0.0.0:5000", "--tls", "self-signed", "--auth", "none"];
        assert!(matches!(serve(&open), Err(ConfigError::OpenToAll(_))));
        let inside = serve(&["--auth", "none", "--listen", "[::1]:0"]).unwrap();
        assert!(inside.http.open);
        assert_eq!(inside.anonymous, auth::Anonymous::Pull);
        let none = serve(&["--anonymous", "none"]).unwrap();
        assert_eq!(none.anonymous, auth::Anonymous::Nothing);
        assert!(matches!(serve(&["--pam-confdir", "x"]), Err(ConfigError::PamConfdir(_))));
        let nobody = serve(&["--auth", "basic"]).unwrap_err();
        assert_eq!(nobody, ConfigError::NoAdministrators);
        let some = serve(&["--auth", "basic", "--admin-group", "adm"]).unwrap();
        assert_eq!(some.mode, auth::Mode::Basic);
    }

    #[test]
    fn a_certificate_has_a_key() {
        let both = serve(&["--tls-cert", "a", "--tls-key", "b"]).unwrap();
        let files = http::KeyFiles { certificate: "a".into(), key: "b".into() };
        assert_eq!(both.certificate, Some(Certificate::Files(files)));
        assert_eq!(serve(&[]).unwrap().certificate, None);
        for wrong in [
            &["--tls-cert", "a"][..],
            &["--tls-key", "b"],
            &["--tls-cert", "a", "--tls-key", "b", "--tls", "self-signed"],
            &["--tls", "on"],
        ] {
            let line = ["stillage", "serve", "root"].iter().chain(wrong);
            assert!(Cli::try_parse_from(line).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn who_only_reads_collects_nothing_and_makes_no_certificate() {
        let replica = serve(&["--read-only", "--gc-every", "1h"]).unwrap();
        assert!(replica.registry.read_only && replica.gc_every.is_none());
        assert!(!serve(&[]).unwrap().registry.read_only);
        let own = serve(&["--read-only", "--tls", "self-signed"]).unwrap_err();
        assert_eq!(own, ConfigError::ReadOnlyCertificate);
        let told = serve(&["--read-only", "--webhook", "http://127.0.0.1:1/"]).unwrap_err();
        assert_eq!(told, ConfigError::ReadOnlyWebhook);
    }

    #[test]
    fn files_are_handed_to_a_proxy_that_is_named() {
        assert_eq!(serve(&["--accel", "/_blobs"]).unwrap_err(), ConfigError::AccelProxy);
        let both = ["--accel", "/_blobs/", "--trusted-proxy", "127.0.0.1"];
        let (prefix, account) = serve(&both).unwrap().accel.unwrap();
        assert_eq!((prefix.as_str(), account), ("/_blobs", None));
        let named = [&both[..], &["--accel-user", "web"]].concat();
        assert_eq!(serve(&named).unwrap().accel.unwrap().1.as_deref(), Some("web"));
        for wrong in [&["--accel-user", "web"][..], &["--accel", "/v2"], &["--accel", "x"]] {
            let line = ["stillage", "serve", "root"].iter().chain(wrong);
            assert!(Cli::try_parse_from(line).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn uploads_are_bounded_unless_told_otherwise() {
        let usual = serve(&[]).unwrap().registry;
        let default = registry::Settings::default();
        assert_eq!(usual.max_uploads, default.max_uploads);
        assert_eq!(usual.upload_expiry, default.upload_expiry);
        assert_eq!(usual.min_free, MinFree::Usual);
        let args = ["--max-uploads", "7", "--upload-expiry", "90m", "--min-free", "0"];
        let told = serve(&args).unwrap().registry;
        assert_eq!((told.max_uploads, told.min_free), (7, MinFree::Bytes(0)));
        assert_eq!(told.upload_expiry, Duration::from_secs(90 * 60));
        assert!(Cli::try_parse_from(["stillage", "serve", "/r", "--max-uploads", "0"]).is_err());
    }

    #[test]
    fn every_argument_has_its_variable() {
        let cli = Cli::command();
        let commands = std::iter::once(&cli).chain(cli.get_subcommands());
        let all =
            commands.flat_map(|command| std::iter::once(command).chain(command.get_subcommands()));
        // The commands of the first level are met twice.
        let arguments = all.flat_map(|command| command.get_arguments());
        let mut seen = 0;
        for argument in arguments {
            let id = argument.get_id().as_str();
            // What is asked is no setting.
            if id == "question" {
                continue;
            }
            let expected = format!("STILLAGE_{}", id.to_ascii_uppercase());
            let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
            assert_eq!(variable, Some(expected), "{id}");
            if let Some(flag) = argument.get_long() {
                assert_eq!(flag.replace('-', "_"), id);
            }
            seen += 1;
        }
        // Of the commands, and of all.
        assert!(seen > 15, "{seen}");
    }

    #[test]
    fn the_root_of_the_environment_may_be_left_out() {
        let asked = |root: Option<&str>, words: &[&str]| {
            let line = ["stillage", "access"].iter().chain(words);
            let Command::Access(args) = Cli::try_parse_from(line).unwrap().command else {
                panic!("another command");
            };
            let (question, _) = args.check(root.map(PathBuf::from)).map_err(|e| e.to_string())?;
            let access::Question { root, repo, user, .. } = question;
            Ok::<_, String>(format!("{} {repo} {user:?}", root.display()))
        };
        assert_eq!(asked(None, &["r", "a/b"]).unwrap(), "r a/b None");
        assert_eq!(asked(None, &["r", "a/b", "u"]).unwrap(), "r a/b Some(\"u\")");
        assert_eq!(asked(Some("/e"), &["a/b"]).unwrap(), "/e a/b None");
        assert_eq!(asked(Some("/e"), &["a/b", "u"]).unwrap(), "/e a/b Some(\"u\")");
        assert_eq!(asked(Some("/e"), &["./r", "a/b"]).unwrap(), "./r a/b None");
        assert_eq!(asked(Some("/e"), &["r", "a/b", "u"]).unwrap(), "r a/b Some(\"u\")");
        assert!(asked(None, &["r"]).unwrap_err().contains("name the repository"));
        assert!(asked(None, &["r", "A"]).unwrap_err().contains("\"A\""));
    }

    #[test]
    fn help_fits_a_screen() {
        let mut cli = Cli::command();
        cli.clone().debug_assert();
        let main = cli.render_help().to_string();
        assert!(main.lines().count() <= 24, "{main}");
        let serve = cli.find_subcommand_mut("serve").unwrap().render_help().to_string();
        assert!(serve.lines().count() <= 48, "{serve}");
    }
}
