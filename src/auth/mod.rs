//! Who is asking, and may they.
//!
//! Names and passwords are the host's own, checked by PAM in worker processes; tokens carry the
//! result for a few minutes; one function decides. The room knows no paths of the tree and no HTTP
//! statuses: callers hand in values and make answers of what comes back.

mod access;
mod accounts;
mod audit;
mod bounded;
mod credentials;
mod descendants;
mod frame;
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod keys;
mod login;
mod memory;
mod names;
mod pam;
mod permissions;
mod report;
mod scope;
mod settings;
mod token;
mod turns;
mod user;
mod users;
pub mod worker;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

pub use access::{Action, Anonymous, Judgement, Policy, Reason, Right, Way, Who, judge, wanted};
pub use audit::{AUDIT, Peer};
pub use keys::{KeySource, KeysError, Need, SigningKey, SigningKeys};
pub use names::{Names, members};
pub use permissions::{By, Credentials, Entry, Permissions, READ, Ruling, SEARCH, WRITE, Whom};
pub use scope::{Access, Actions, ChallengeError, MAX_SCOPES, Resource, parse_scopes};
pub use settings::{DEFAULT_PAM_SERVICE, DEFAULT_WORKER, Limits, Mode, Settings, StartError};
pub use token::{Issued, LIFETIME, RandomError, TokenError};
pub use user::{NameServiceError, User};

use crate::oci::RepoName;
use accounts::AccountFiles;
use login::{Login, LoginError, Rules};
use memory::Marker;
use token::Signer;
use users::Users;
use workers::{Bounds, Workers};

/// The value of `WWW-Authenticate` that asks for user and password.
pub const BASIC_CHALLENGE: &str = "Basic realm=\"stillage\"";

/// A user or client, and how far what they presented reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who is asking.
    pub who: Who,
    /// How far this request's credentials reach.
    pub granted: Granted,
}

impl Caller {
    /// Whether anything was presented: a token, a password, or no login is asked for at all.
    pub fn presented(&self) -> bool {
        self.granted != Granted::Nothing
    }
}

/// How far a request's credentials reach, whatever the permissions say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Granted {
    /// As far as the permissions: a password came with the request, or none is asked for.
    All,
    /// To what the token was issued for.
    Token(Vec<Access>),
    /// Nowhere: there were none.
    Nothing,
}

/// What a request gets. See the table of answers in the documentation of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Allowed,
    /// There were no credentials; a challenge should name what this request needs.
    NeedsToken,
    /// The token does not reach; another may. Also for anonymous where only a login would do.
    NeedsScope,
    /// Someone who logged in may not, and no token will change that.
    Denied,
    /// The server cannot look far enough to tell, and the caller may know that.
    Untold,
}

/// Why it is not known who is asking. The text of each is fit for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AuthError {
    /// Nothing was presented where something must be. (podman drops a message that is the code's
    /// own default, "authentication required", and leaves its user with the bare code.)
    #[error("log in first")]
    NoCredentials,
    /// Wrong user, wrong password, an account that is expired, locked or not allowed: all alike,
    /// in text and in time.
    #[error("wrong user name or password, or an account that may not log in")]
    Refused,
    /// The token is not believed. The reason is for the log.
    #[error("the token is invalid or has expired")]
    InvalidToken(TokenError),
    /// The header makes no sense.
    #[error("{0}")]
    Malformed(&'static str),
    /// Too many failures from this address lately.
    #[error("too many failed logins from your address: try again in {} s", whole_seconds(*.retry_after))]
    TooMany {
        /// When to try again.
        retry_after: Duration,
    },
    /// Too many logins at once.
    #[error("too many logins at once: try again in {} s", whole_seconds(*.retry_after))]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// PAM or the name service did not answer; the log says why.
    #[error("logins cannot be checked at the moment")]
    Unavailable,
}

/// Rounded up, as `Retry-After` has to be.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

impl From<LoginError> for AuthError {
    fn from(error: LoginError) -> AuthError {
        match error {
            LoginError::Refused(_) => AuthError::Refused,
            LoginError::TooMany(retry_after) => AuthError::TooMany { retry_after },
            LoginError::Busy(retry_after) => AuthError::Busy { retry_after },
            LoginError::Unavailable => AuthError::Unavailable,
        }
    }
}

/// The room's door: everything that the rest of the program asks of it.
pub struct Auth {
    settings: Settings,
    policy: Policy,
    signer: Signer,
    /// The account that this process runs as.
    server: Arc<User>,
    users: Arc<Users>,
    login: Login,
}

impl Auth {
    /// Checks the settings. Starts no process yet; needs a tokio runtime when it is used.
    pub fn new(settings: Settings) -> Result<Auth, StartError> {
        settings.validate()?;
        let marker = Arc::new(Marker::new()?);
        let files = Arc::new(AccountFiles::of_host());
        let pool = |workers| {
            let limits = &settings.limits;
            let bounds = Bounds { workers, queue: limits.queue, deadline: limits.deadline };
            Workers::new(settings.worker.clone(), bounds)
        };
        let users = Arc::new(Users::new(
            pool(settings.limits.workers.min(2)),
            Arc::clone(&files),
            Arc::clone(&marker),
        ));
        let rules = Rules {
            service: settings.pam_service.clone(),
            confdir: settings.pam_confdir.clone(),
            allow_root: settings.allow_root,
            floor: settings.limits.failure_floor,
        };
        let workers = pool(settings.limits.workers);
        Ok(Auth {
            policy: Policy { anonymous: settings.anonymous, admins: settings.admins()? },
            signer: Signer::new(Arc::clone(&settings.keys), &settings.service_name),
            server: Arc::new(User::of_this_process()),
            login: Login::new(rules, workers, Arc::clone(&users), files, marker),
            users,
            settings,
        })
    }

    /// Whether there are tokens, and a place to get them.
    pub fn has_tokens(&self) -> bool {
        self.settings.mode != Mode::Basic
    }

    /// Whether a request for something that can be read may pass without credentials: where there
    /// are no tokens, who is not asked to log in sends none.
    pub fn lets_in(&self, caller: &Caller) -> bool {
        caller.presented() || (!self.has_tokens() && self.policy.anonymous == Anonymous::Pull)
    }

    /// Finds out who is asking from the bytes of the `Authorization` header, if there is one.
    ///
    /// A password is checked as [`Auth::login`] does. An empty user with an empty password, which
    /// some clients send when they have none, is the same as no header. Where no login is asked
    /// for, whatever the header holds is ignored.
    pub async fn identify(
        &self,
        authorization: Option<&[u8]>,
        peer: impl Into<Peer<'_>>,
    ) -> Result<Caller, AuthError> {
        let peer = peer.into();
        if self.settings.mode == Mode::None {
            return Ok(Caller {
                who: Who::Server(Arc::clone(&self.server)),
                granted: Granted::All,
            });
        }
        let Some(header) = authorization else {
            return Ok(nobody());
        };
        match split_scheme(header) {
            (scheme, _) if scheme.eq_ignore_ascii_case(b"bearer") && !self.has_tokens() => {
                Err(AuthError::Malformed("there are no tokens here: send user and password"))
            }
            (scheme, rest) if scheme.eq_ignore_ascii_case(b"bearer") => self.bearer(rest).await,
            (scheme, rest) if scheme.eq_ignore_ascii_case(b"basic") => self.basic(rest, peer).await,
            _ => Err(AuthError::Malformed("the Authorization header is neither Bearer nor Basic")),
        }
    }

    /// Checks a user and password, given apart from a header. Both empty is anonymous.
    pub async fn login(
        &self,
        user: &str,
        password: &str,
        peer: impl Into<Peer<'_>>,
    ) -> Result<Who, AuthError> {
        self.check(user, password.as_bytes(), peer.into()).await
    }

    async fn check(&self, user: &str, password: &[u8], peer: Peer<'_>) -> Result<Who, AuthError> {
        if self.settings.mode == Mode::None {
            return Ok(Who::Server(Arc::clone(&self.server)));
        }
        if user.is_empty() && password.is_empty() {
            return Ok(Who::Anonymous);
        }
        Ok(Who::User(self.login.check(user, password, peer).await?))
    }

    async fn basic(&self, encoded: &[u8], peer: Peer<'_>) -> Result<Caller, AuthError> {
        let pair = credentials::parse_basic(encoded).map_err(AuthError::Malformed)?;
        match self.check(&pair.user, &pair.password, peer).await? {
            Who::Anonymous => Ok(nobody()),
            who => Ok(Caller { who, granted: Granted::All }),
        }
    }

    async fn bearer(&self, token: &[u8]) -> Result<Caller, AuthError> {
        let token =
            str::from_utf8(token).map_err(|_| AuthError::InvalidToken(TokenError::Malformed))?;
        let claims = self.signer.verify(token).map_err(|error| match error {
            TokenError::NoKeys => AuthError::Unavailable,
            error => AuthError::InvalidToken(error),
        })?;
        let who = match &claims.sub {
            None => Who::Anonymous,
            Some(name) => self.subject(name).await?,
        };
        Ok(Caller { who, granted: Granted::Token(claims.access) })
    }

    /// The user of a token as they are now: groups change, accounts go.
    async fn subject(&self, name: &str) -> Result<Who, AuthError> {
        let found = self.users.find(name).await.map_err(|_| AuthError::Unavailable)?;
        match found {
            Some(user) if user.uid != 0 || self.settings.allow_root => Ok(Who::User(user)),
            _ => Err(AuthError::InvalidToken(TokenError::Subject)),
        }
    }

    /// Issues a token for the part of what was asked that the permissions allow now, which may be
    /// nothing. `look` says what lies on the way to a repository, for reading or for writing; what
    /// it cannot tell is not granted. [`AuthError::NoCredentials`] for anonymous where anonymous may
    /// do nothing.
    pub fn grant(
        &self,
        who: &Who,
        asked: &[Access],
        look: impl Fn(&RepoName, bool) -> Option<Way>,
    ) -> Result<Issued, AuthError> {
        if *who == Who::Anonymous && self.policy.anonymous == Anonymous::Nothing {
            return Err(AuthError::NoCredentials);
        }
        let access =
            asked.iter().filter_map(|access| self.allowed_part(who, access, &look)).collect();
        self.signer.issue(who.name(), access).map_err(|error| {
            tracing::error!("cannot issue a token: {error}");
            AuthError::Unavailable
        })
    }

    fn allowed_part(
        &self,
        who: &Who,
        asked: &Access,
        look: &impl Fn(&RepoName, bool) -> Option<Way>,
    ) -> Option<Access> {
        let Resource::Repository(name) = &asked.resource else {
            return Some(Access::catalog());
        };
        let way = look(name, asked.actions.push || asked.actions.delete)?;
        let may = |action| judge(&self.policy, who, &way, action).right != Right::No;
        let actions = asked.actions.filter(|action| match action {
            // Who creates a repository can read it: the token is to outlast the first push.
            Action::Pull if !way.whole => may(Action::Push),
            action => may(action),
        });
        (!actions.is_empty()).then(|| Access::repository(name.clone(), actions))
    }

    /// What a request for an action on a repository gets, and why: the permissions as they are now,
    /// and the reach of its credentials.
    pub fn decide(
        &self,
        caller: &Caller,
        repo: &RepoName,
        way: &Way,
        action: Action,
    ) -> (Verdict, Judgement) {
        let judgement = self.judge(&caller.who, way, action);
        let verdict = match (judgement.right, &caller.who) {
            (Right::Yes, Who::Anonymous) if !self.has_tokens() => Verdict::Allowed,
            _ if !caller.presented() => Verdict::NeedsToken,
            (Right::No, Who::Anonymous) => Verdict::NeedsScope,
            (Right::No, Who::User(_) | Who::Server(_)) => Verdict::Denied,
            _ if !caller.granted.reaches(repo, action) => Verdict::NeedsScope,
            (Right::Yes, _) => Verdict::Allowed,
            (Right::Untold, _) => Verdict::Untold,
        };
        (verdict, judgement)
    }

    /// The permissions alone, whatever a token was issued for: for lists, which show what their
    /// reader may pull.
    pub fn judge(&self, who: &Who, way: &Way, action: Action) -> Judgement {
        let reads = action == Action::Pull;
        if self.settings.mode == Mode::Basic && !reads && !self.is_administrator(who) {
            return Judgement { right: Right::No, reason: Reason::NotAdministrator };
        }
        judge(&self.policy, who, way, action)
    }

    /// Whether somebody gets all of the `wanted` bits of one directory or file.
    pub fn allows(&self, who: &Who, permissions: &Permissions, wanted: u8) -> bool {
        self.policy.allows(who, permissions, wanted)
    }

    /// Whether somebody may do everything.
    pub fn is_administrator(&self, who: &Who) -> bool {
        self.policy.is_administrator(who)
    }

    /// What holds for every repository.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The value of `WWW-Authenticate`. `realm` is the absolute URL of the token endpoint; `scope`
    /// is what this request needs. Where there are no tokens, see [`BASIC_CHALLENGE`].
    pub fn challenge(
        &self,
        realm: &str,
        scope: &[Access],
        error: Option<ChallengeError>,
    ) -> String {
        scope::challenge(realm, &self.settings.service_name, scope, error)
    }

    /// Who can log in, in one line for the start.
    pub fn who_can_log_in(&self) -> String {
        match self.settings.mode {
            Mode::None => format!("no login: every request acts as {}", self.server.name),
            Mode::Pam | Mode::Basic => report::who_can_log_in(&report::Facts {
                server: &self.server,
                service: &self.settings.pam_service,
                confdir: self.settings.pam_confdir.as_deref(),
                allow_root: self.settings.allow_root,
                no_new_privileges: rustix::thread::no_new_privs().unwrap_or(false),
            }),
        }
    }
}

impl Granted {
    /// Whether the credentials reach an action on a repository.
    pub fn reaches(&self, repo: &RepoName, action: Action) -> bool {
        match self {
            Granted::All => true,
            Granted::Nothing => false,
            Granted::Token(access) => access.iter().any(|access| {
                matches!(&access.resource, Resource::Repository(name) if name == repo)
                    && access.actions.has(action)
            }),
        }
    }
}

fn nobody() -> Caller {
    Caller { who: Who::Anonymous, granted: Granted::Nothing }
}

/// The scheme and what follows it, without the blanks between.
fn split_scheme(header: &[u8]) -> (&[u8], &[u8]) {
    let header = header.trim_ascii();
    let end = header.iter().position(|byte| *byte == b' ').unwrap_or(header.len());
    let (scheme, rest) = header.split_at(end);
    (scheme, rest.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_split_from_what_follows() {
        assert_eq!(split_scheme(b"Basic  Og=="), (&b"Basic"[..], &b"Og=="[..]));
        assert_eq!(split_scheme(b" Bearer a b "), (&b"Bearer"[..], &b"a b"[..]));
        assert_eq!(split_scheme(b"Bearer"), (&b"Bearer"[..], &b""[..]));
        assert_eq!(split_scheme(b""), (&b""[..], &b""[..]));
    }

    #[test]
    fn waits_are_rounded_up() {
        let retry_after = Duration::from_millis(1001);
        assert!(AuthError::Busy { retry_after }.to_string().ends_with("in 2 s"));
        let retry_after = Duration::from_secs(3);
        assert!(AuthError::TooMany { retry_after }.to_string().ends_with("in 3 s"));
    }
}
