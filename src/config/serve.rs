//! `stillage serve`, as typed and checked.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

use super::{AnonymousMode, ConfigError, units};
use crate::http::webhooks::WebhookUrl;
use crate::http::{BaseUrl, Network};
use crate::registry::{MinFree, Views};
use crate::upkeep::gc;
use crate::{access, auth, http, registry};

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
    /// Listen beyond this machine without TLS: passwords travel in clear
    #[arg(long, env = "STILLAGE_PLAIN_HTTP", hide_env = true, value_parser = FalseyValueParser::new())]
    plain_http: bool,
    /// With --auth none: listen beyond this machine: all may do everything
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
    /// A proxy whose X-Forwarded-* are believed: 10.1.2.3 or 10.0.0.0/8
    #[arg(long, env = "STILLAGE_TRUSTED_PROXY", hide_env = true, value_name = "CIDR")]
    #[arg(value_delimiter = ',')]
    trusted_proxy: Vec<Network>,
    /// Let nginx send the blobs that it can read: see docs/proxy.md
    #[arg(long, env = "STILLAGE_ACCEL", hide_env = true, value_name = "PREFIX")]
    accel: Option<http::Prefix>,
    /// The account that nginx runs as [default: www-data or nginx]
    #[arg(long, env = "STILLAGE_ACCEL_USER", hide = true, value_name = "NAME", requires = "accel")]
    accel_user: Option<String>,
    /// Serve a copy or a read-only mount: write nothing, refuse pushes
    #[arg(long, env = "STILLAGE_READ_ONLY", hide_env = true, value_parser = FalseyValueParser::new())]
    read_only: bool,
    /// Post what happens there to a URL; repeatable: docs/events.md
    #[arg(
        long,
        env = "STILLAGE_WEBHOOK",
        hide_env = true,
        value_name = "URL",
        value_delimiter = ' '
    )]
    webhook: Vec<String>,
    /// Accept manifests that refer to what is not here
    #[arg(long, env = "STILLAGE_ALLOW_SPARSE", hide_env = true, value_parser = FalseyValueParser::new())]
    allow_sparse: bool,
    /// Keep no views for plain web servers, and remove those that are there
    #[arg(long, env = "STILLAGE_NO_VIEWS", hide_env = true, value_parser = FalseyValueParser::new())]
    no_views: bool,
    /// How many uploads one user may have open at once
    #[arg(long, env = "STILLAGE_MAX_UPLOADS", hide_env = true, value_name = "N")]
    #[arg(default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    max_uploads: u32,
    /// How long an upload without any byte is kept: 30m, 7d
    #[arg(long, env = "STILLAGE_UPLOAD_EXPIRY", hide_env = true, value_name = "TIME")]
    #[arg(default_value = "24h", value_parser = units::duration)]
    upload_expiry: Duration,
    /// What uploads leave free: 500M, 5G, 3%, 0 [default: 1G or 2%, the larger; never over 10%]
    #[arg(long, env = "STILLAGE_MIN_FREE", hide_env = true, value_name = "SIZE")]
    #[arg(value_parser = units::min_free)]
    min_free: Option<MinFree>,
    /// How many connections there may be; files leave fewer where few may be open
    #[arg(long, env = "STILLAGE_MAX_CONNECTIONS", hide = true, value_name = "N")]
    #[arg(default_value_t = DEFAULT_CONNECTIONS, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// How many of them one address may have [default: a quarter]
    #[arg(long, env = "STILLAGE_MAX_CONNECTIONS_EACH", hide = true, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    max_connections_each: Option<u32>,
    /// How often garbage is collected: 24h; 0 leaves it to `stillage gc`
    #[arg(long, env = "STILLAGE_GC_EVERY", hide_env = true, value_name = "TIME")]
    #[arg(default_value = "24h", value_parser = units::duration_or_none)]
    gc_every: Duration,
    /// As gc has it
    #[arg(long, env = "STILLAGE_GRACE", hide = true, default_value = "24h")]
    #[arg(value_parser = units::duration_or_none)]
    grace: Duration,
    /// As gc has it
    #[arg(long, env = "STILLAGE_UNDO_WINDOW", hide = true, default_value = "7d")]
    #[arg(value_parser = units::duration_or_none)]
    undo_window: Duration,
    /// How many seconds after its start the server collects at the earliest
    #[arg(long, env = "STILLAGE_GC_DELAY", hide = true, default_value = "300")]
    gc_delay: u64,
    /// How many seconds pass between looks at everything where the kernel cannot tell what changes; 0:
    /// views are renewed by requests alone
    #[arg(long, env = "STILLAGE_LOOK_EVERY", hide = true, default_value = "600")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=86_400))]
    look_every: u64,
    /// How many seconds a client may keep the server waiting
    #[arg(long, env = "STILLAGE_PATIENCE", hide = true, default_value = "60")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
    /// How many seconds a request waits for a repository's lock
    #[arg(long, env = "STILLAGE_LOCK_WAIT", hide = true, default_value = "30")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    lock_wait: u64,
}

/// An idle connection takes some 30 KB.
const DEFAULT_CONNECTIONS: u32 = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AuthMode {
    Pam,
    Basic,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OwnTls {
    SelfSigned,
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let wanted = |error| format!("{error}: write ADDR:PORT, such as 127.0.0.1:5001");
    let found = text.to_socket_addrs().map_err(wanted)?;
    let mut found = found.collect::<Vec<_>>().into_iter();
    found.next().ok_or_else(|| format!("{text} names no address"))
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
    /// How often garbage is collected; never by the server, if there is no time.
    pub gc_every: Option<Duration>,
    /// How long after the start at the earliest.
    pub gc_delay: Duration,
    /// What is collected.
    pub gc: gc::Options,
    /// Who is told what happens.
    pub webhooks: Vec<WebhookUrl>,
    /// How much time passes between looks at everything, where the kernel cannot tell what changes;
    /// none where nobody is to be told but receivers of events.
    pub look_every: Option<Duration>,
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
    /// Where trusted proxies find blobs, and the account that they run as.
    pub accel: Option<(http::Prefix, Option<String>)>,
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
        let certificate = self.certificate();
        self.check_listener(certificate.is_some())?;
        self.check_together()?;
        let webhooks = self.webhook.iter().map(|url| url.parse()).collect::<Result<_, _>>()?;
        Ok(Serve {
            registry: self.registry(),
            gc_every: (!self.gc_every.is_zero() && !self.read_only).then_some(self.gc_every),
            gc_delay: Duration::from_secs(self.gc_delay),
            gc: self.gc(),
            webhooks,
            look_every: (self.look_every != 0).then(|| Duration::from_secs(self.look_every)),
            mode: match self.auth {
                AuthMode::Pam => auth::Mode::Pam,
                AuthMode::Basic => auth::Mode::Basic,
                AuthMode::None => auth::Mode::None,
            },
            anonymous: self.anonymous(),
            certificate,
            http: self.http(),
            root: self.root,
            listen: self.listen,
            admin_group: self.admin_group,
            allow_root: self.allow_root,
            pam_service: self.pam_service,
            pam_confdir: self.pam_confdir,
            accel: self.accel.map(|prefix| (prefix, self.accel_user)),
        })
    }

    fn is_local(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }

    fn is_open(&self) -> bool {
        self.auth == AuthMode::None
    }

    fn certificate(&self) -> Option<Certificate> {
        match (&self.tls_cert, &self.tls_key, self.tls) {
            (Some(certificate), Some(key), _) => Some(Certificate::Files(http::KeyFiles {
                certificate: certificate.clone(),
                key: key.clone(),
            })),
            (_, _, Some(OwnTls::SelfSigned)) => Some(Certificate::SelfSigned),
            _ => None,
        }
    }

    /// Beyond this machine nothing is in clear, and nobody is let in, unless that was said.
    fn check_listener(&self, has_tls: bool) -> Result<(), ConfigError> {
        if self.is_local() {
            return Ok(());
        }
        if !has_tls && !self.plain_http {
            return Err(ConfigError::PlainHttp(self.listen));
        }
        if self.is_open() && !self.open_to_all {
            return Err(ConfigError::OpenToAll(self.listen));
        }
        Ok(())
    }

    /// What makes no sense together.
    fn check_together(&self) -> Result<(), ConfigError> {
        if self.is_open() && self.anonymous == Some(AnonymousMode::None) {
            return Err(ConfigError::Anonymous);
        }
        if self.accel.is_some() && self.trusted_proxy.is_empty() {
            return Err(ConfigError::AccelProxy);
        }
        if self.read_only && self.tls.is_some() {
            return Err(ConfigError::ReadOnlyCertificate);
        }
        if self.read_only && !self.webhook.is_empty() {
            return Err(ConfigError::ReadOnlyWebhook);
        }
        if self.auth == AuthMode::Basic && self.admin_group.is_none() {
            return Err(ConfigError::NoAdministrators);
        }
        match &self.pam_confdir {
            Some(path) if path.is_relative() => Err(ConfigError::PamConfdir(path.clone())),
            _ => Ok(()),
        }
    }

    fn anonymous(&self) -> auth::Anonymous {
        match self.anonymous {
            Some(mode) => mode.into(),
            None if self.is_local() => auth::Anonymous::Pull,
            None => auth::Anonymous::Nothing,
        }
    }

    fn registry(&self) -> registry::Settings {
        registry::Settings {
            read_only: self.read_only,
            allow_sparse: self.allow_sparse,
            lock_wait: Duration::from_secs(self.lock_wait),
            max_uploads: whole(self.max_uploads),
            upload_expiry: self.upload_expiry,
            min_free: self.min_free.unwrap_or(MinFree::Usual),
            views: if self.no_views { Views::None } else { Views::Make },
        }
    }

    fn gc(&self) -> gc::Options {
        gc::Options {
            grace: self.grace,
            undo_window: self.undo_window,
            // The server sweeps them itself, and counts them.
            upload_expiry: None,
            ..gc::Options::default()
        }
    }

    fn http(&self) -> http::Settings {
        http::Settings {
            external_url: self.external_url.clone(),
            trusted_proxies: self.trusted_proxy.clone(),
            // Beyond loopback names are no protection, and everybody was let in knowingly.
            open: self.is_open() && !self.open_to_all,
            patience: Duration::from_secs(self.patience),
            connections: whole(self.max_connections),
            connections_each: self.max_connections_each.map(whole),
            ..http::Settings::default()
        }
    }
}

fn whole(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
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
