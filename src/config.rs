//! The command line and the environment: read once at the start, checked, and handed down as
//! plain values.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use thiserror::Error;

use crate::http::{BaseUrl, Network};
use crate::oci::{NameError, RepoName};
use crate::registry::MinFree;
use crate::{access, auth, http, registry};

mod units;

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
    /// Say who may do what to a repository, and which directory decides it
    Access(AccessArgs),
}

/// `stillage access`
#[derive(Debug, Args)]
#[command(override_usage = "stillage access [ROOT] REPO [USER] [OPTIONS]")]
#[command(after_help = "Without USER: everybody whom a directory on the way names.\n\
    With STILLAGE_ROOT set, ROOT is left out, or begins with '/' or '.'.")]
pub struct AccessArgs {
    /// The registry's directory, the repository, and an account or `anonymous`
    #[arg(required = true, num_args = 1..=3, value_names = ["ROOT", "REPO", "USER"])]
    question: Vec<String>,
    /// Report as one JSON document
    #[arg(long, env = "STILLAGE_JSON", hide_env = true, value_parser = FalseyValueParser::new())]
    pub json: bool,
    /// The group whose members may do everything, as the server has it
    #[arg(long, env = "STILLAGE_ADMIN_GROUP", hide_env = true, value_name = "GROUP")]
    admin_group: Option<String>,
    /// What the server allows without a login
    #[arg(long, env = "STILLAGE_ANONYMOUS", hide_env = true, value_enum, default_value = "pull")]
    anonymous: AnonymousMode,
}

impl AccessArgs {
    /// Checks what was typed. `root` is what the environment says of ROOT.
    pub fn check(self, root: Option<PathBuf>) -> Result<(access::Question, bool), ConfigError> {
        let mut words = self.question.into_iter();
        let first = words.next().unwrap_or_default();
        let (root, repo) = match root {
            // No repository is called so.
            Some(root) if !first.starts_with(['/', '.']) && words.len() < 2 => (root, Some(first)),
            _ => (PathBuf::from(first), words.next()),
        };
        let repo = repo.ok_or(ConfigError::NoRepository)?;
        let repo = RepoName::parse(&repo).map_err(ConfigError::Repository)?;
        let user = words.next();
        let (admin_group, anonymous) = (self.admin_group, self.anonymous.into());
        Ok((access::Question { root, repo, user, admin_group, anonymous }, self.json))
    }
}

/// `stillage check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The directory that holds the registry
    #[arg(env = "STILLAGE_ROOT", hide_env = true)]
    pub root: PathBuf,
    /// Report as one JSON document
    #[arg(long, env = "STILLAGE_JSON", hide_env = true, value_parser = FalseyValueParser::new())]
    pub json: bool,
    /// Manifests may refer to what is not here, as under serve --allow-sparse
    #[arg(long, env = "STILLAGE_ALLOW_SPARSE", hide_env = true, value_parser = FalseyValueParser::new())]
    pub allow_sparse: bool,
}

/// `stillage serve`, as typed.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The directory that holds the registry; made when missing
    #[arg(env = "STILLAGE_ROOT", hide_env = true)]
    root: PathBuf,
    /// Where to listen
    #[arg(long, env = "STILLAGE_LISTEN", hide_env = true, value_name = "ADDR:PORT")]
    #[arg(default_value = "127.0.0.1:5000", value_parser = address)]
    listen: SocketAddr,
    /// How people log in: the host's accounts, the same without tokens, or not at all
    #[arg(long, env = "STILLAGE_AUTH", hide_env = true, value_enum, default_value = "pam")]
    auth: AuthMode,
    /// What is allowed without a login [default: pull on loopback, none elsewhere]
    #[arg(long, env = "STILLAGE_ANONYMOUS", hide_env = true, value_enum)]
    anonymous: Option<AnonymousMode>,
    /// The PAM service that checks passwords
    #[arg(long, env = "STILLAGE_PAM_SERVICE", hide_env = true, value_name = "NAME")]
    #[arg(default_value = auth::DEFAULT_PAM_SERVICE)]
    pam_service: String,
    /// Where PAM's services are described, instead of /etc/pam.d
    #[arg(long, env = "STILLAGE_PAM_CONFDIR", hide = true)]
    pam_confdir: Option<PathBuf>,
    /// The group whose members may do everything
    #[arg(long, env = "STILLAGE_ADMIN_GROUP", hide_env = true, value_name = "GROUP")]
    admin_group: Option<String>,
    /// Let root log in
    #[arg(long, env = "STILLAGE_ALLOW_ROOT", hide_env = true, value_parser = FalseyValueParser::new())]
    allow_root: bool,
    /// Listen beyond this machine without TLS, though passwords travel in clear
    #[arg(long, env = "STILLAGE_PLAIN_HTTP", hide_env = true, value_parser = FalseyValueParser::new())]
    plain_http: bool,
    /// With --auth none: listen beyond this machine, where everyone may then do everything
    #[arg(long, env = "STILLAGE_OPEN_TO_ALL", hide_env = true, value_parser = FalseyValueParser::new())]
    open_to_all: bool,
    /// The certificate for TLS as PEM, with its chain; a renewed one needs no restart
    #[arg(long, env = "STILLAGE_TLS_CERT", hide_env = true, value_name = "FILE")]
    #[arg(requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key as PEM
    #[arg(long, env = "STILLAGE_TLS_KEY", hide_env = true, value_name = "FILE")]
    #[arg(requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// TLS with a certificate made here, and how clients come to trust it
    #[arg(long, env = "STILLAGE_TLS", hide_env = true, value_enum, conflicts_with = "tls_cert")]
    tls: Option<OwnTls>,
    /// The URL under which clients reach the server behind a proxy
    #[arg(long, env = "STILLAGE_EXTERNAL_URL", hide_env = true, value_name = "URL")]
    external_url: Option<BaseUrl>,
    /// A proxy whose X-Forwarded-* headers are believed: an address or 10.0.0.0/8; repeatable
    #[arg(long, env = "STILLAGE_TRUSTED_PROXY", hide_env = true, value_name = "CIDR")]
    #[arg(value_delimiter = ',')]
    trusted_proxy: Vec<Network>,
    /// Accept manifests that refer to what is not here
    #[arg(long, env = "STILLAGE_ALLOW_SPARSE", hide_env = true, value_parser = FalseyValueParser::new())]
    allow_sparse: bool,
    /// How many uploads one user may have open at once
    #[arg(long, env = "STILLAGE_MAX_UPLOADS", hide_env = true, value_name = "N")]
    #[arg(default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    max_uploads: u32,
    /// How long an upload that gets no byte is kept: 30m, 24h, 7d
    #[arg(long, env = "STILLAGE_UPLOAD_EXPIRY", hide_env = true, value_name = "TIME")]
    #[arg(default_value = "24h", value_parser = units::duration)]
    upload_expiry: Duration,
    /// What uploads leave free: 500M, 5G, 3%, 0 [default: 1G or 2%, the larger; never over 10%]
    #[arg(long, env = "STILLAGE_MIN_FREE", hide_env = true, value_name = "SIZE")]
    #[arg(value_parser = units::min_free)]
    min_free: Option<MinFree>,
    /// How many seconds a client may keep the server waiting
    #[arg(long, env = "STILLAGE_PATIENCE", hide = true, default_value = "60")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
    /// How many seconds a request waits for a repository's lock
    #[arg(long, env = "STILLAGE_LOCK_WAIT", hide = true, default_value = "30")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    lock_wait: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AuthMode {
    Pam,
    Basic,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AnonymousMode {
    Pull,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OwnTls {
    SelfSigned,
}

impl From<AnonymousMode> for auth::Anonymous {
    fn from(mode: AnonymousMode) -> auth::Anonymous {
        match mode {
            AnonymousMode::Pull => auth::Anonymous::Pull,
            AnonymousMode::None => auth::Anonymous::Nothing,
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let wanted = |error| format!("{error}: write ADDR:PORT, such as 127.0.0.1:5001");
    let found = text.to_socket_addrs().map_err(wanted)?;
    let mut found = found.collect::<Vec<_>>().into_iter();
    found.next().ok_or_else(|| format!("{text} names no address"))
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
    /// There is something to ask of a repository only.
    #[error("name the repository: stillage access ROOT REPO [USER]")]
    NoRepository,
    /// No repository can be called so.
    #[error(transparent)]
    Repository(#[from] NameError),
    /// Nobody could push.
    #[error(
        "--auth basic lets only administrators push: name their group with --admin-group GROUP"
    )]
    NoAdministrators,
    /// A relative directory would depend on where the workers were started.
    #[error("--pam-confdir {0:?} is not an absolute path")]
    PamConfdir(PathBuf),
}

/// `stillage serve`, checked.
#[derive(Debug)]
pub struct Serve {
    /// The directory that holds the registry.
    pub root: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What the registry takes, and how much.
    pub registry: registry::Settings,
    /// How people log in.
    pub mode: auth::Mode,
    /// What is allowed without a login.
    pub anonymous: auth::Anonymous,
    /// The group whose members may do everything.
    pub admin_group: Option<String>,
    /// Whether root may log in.
    pub allow_root: bool,
    /// The PAM service.
    pub pam_service: String,
    /// Where PAM's services are described, if not in /etc/pam.d.
    pub pam_confdir: Option<PathBuf>,
    /// Which certificate the listener shows; none without TLS.
    pub certificate: Option<Certificate>,
    /// What the wire needs to know, but for the certificate itself.
    pub http: http::Settings,
}

/// Where the listener's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// Somebody puts it there and renews it.
    Files(http::KeyFiles),
    /// The server makes it.
    SelfSigned,
}

impl ServeArgs {
    /// Checks what was typed, and fills in what was not.
    pub fn check(self) -> Result<Serve, ConfigError> {
        let loopback = self.listen.ip().to_canonical().is_loopback();
        let certificate = match (self.tls_cert, self.tls_key, self.tls) {
            (Some(certificate), Some(key), _) => {
                Some(Certificate::Files(http::KeyFiles { certificate, key }))
            }
            (_, _, Some(OwnTls::SelfSigned)) => Some(Certificate::SelfSigned),
            _ => None,
        };
        if !loopback && certificate.is_none() && !self.plain_http {
            return Err(ConfigError::PlainHttp(self.listen));
        }
        let open = self.auth == AuthMode::None;
        if !loopback && open && !self.open_to_all {
            return Err(ConfigError::OpenToAll(self.listen));
        }
        if open && self.anonymous == Some(AnonymousMode::None) {
            return Err(ConfigError::Anonymous);
        }
        if self.auth == AuthMode::Basic && self.admin_group.is_none() {
            return Err(ConfigError::NoAdministrators);
        }
        if let Some(path) = self.pam_confdir.as_ref().filter(|path| path.is_relative()) {
            return Err(ConfigError::PamConfdir(path.clone()));
        }
        let anonymous = match self.anonymous {
            Some(mode) => mode.into(),
            None if loopback => auth::Anonymous::Pull,
            None => auth::Anonymous::Nothing,
        };
        Ok(Serve {
            root: self.root,
            listen: self.listen,
            registry: registry::Settings {
                allow_sparse: self.allow_sparse,
                lock_wait: Duration::from_secs(self.lock_wait),
                max_uploads: usize::try_from(self.max_uploads).unwrap_or(usize::MAX),
                upload_expiry: self.upload_expiry,
                min_free: self.min_free.unwrap_or(MinFree::Usual),
            },
            mode: match self.auth {
                AuthMode::Pam => auth::Mode::Pam,
                AuthMode::Basic => auth::Mode::Basic,
                AuthMode::None => auth::Mode::None,
            },
            anonymous,
            admin_group: self.admin_group,
            allow_root: self.allow_root,
            pam_service: self.pam_service,
            pam_confdir: self.pam_confdir,
            certificate,
            http: http::Settings {
                external_url: self.external_url,
                trusted_proxies: self.trusted_proxy,
                // Beyond loopback names are no protection, and everybody was let in knowingly.
                open: open && !self.open_to_all,
                patience: Duration::from_secs(self.patience),
                ..http::Settings::default()
            },
        })
    }
}

impl Serve {
    /// Login and permissions.
    pub fn auth(&self, keys: Arc<dyn auth::KeySource>) -> auth::Settings {
        auth::Settings {
            anonymous: self.anonymous,
            admin_group: self.admin_group.clone(),
            allow_root: self.allow_root,
            pam_service: self.pam_service.clone(),
            pam_confdir: self.pam_confdir.clone(),
            ..auth::Settings::new(self.mode, keys)
        }
    }

    /// What the start report says of rights.
    pub fn start(&self) -> access::Start<'_> {
        access::Start {
            root: &self.root,
            anonymous: (self.mode != auth::Mode::None).then_some(self.anonymous),
            admin_group: self.admin_group.as_deref(),
            only_admins_write: self.mode == auth::Mode::Basic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn serve(args: &[&str]) -> Result<Serve, ConfigError> {
        let line = ["stillage", "serve", "/r"].iter().chain(args);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Serve(args) => args.check(),
            other => panic!("{other:?}"),
        }
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
        let arguments =
            std::iter::once(&cli).chain(cli.get_subcommands()).flat_map(|c| c.get_arguments());
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
        assert!(serve.lines().count() <= 40, "{serve}");
    }
}
