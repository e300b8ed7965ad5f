//! Who asks, and may they: the table "What the client is told" of the access rules.

use std::sync::Arc;

use axum::response::Response;
use http::HeaderMap;
use http::header::{AUTHORIZATION, ORIGIN};
use rustix::io::Errno;

use super::audit::{self, Source};
use super::errors::{Failure, Refusal};
use super::origin::Origin;
use super::route::{Action, Deed};
use super::{App, lists};
use crate::access;
use crate::auth::{
    self, AuthError, Caller, ChallengeError, Judgement, Peer, Reason, Right, Verdict,
};
use crate::layout::rights::Way;
use crate::layout::{self, Account};
use crate::oci::RepoName;
use crate::registry;

/// Where clients get their tokens, beneath the base URL.
const TOKEN_PATH: &str = "/token";

/// Identifies the caller by the header `Authorization`, of which there may be one.
pub(super) async fn identify(
    app: &App,
    headers: &HeaderMap,
    origin: &Origin,
) -> Result<Result<Caller, AuthError>, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().map(http::HeaderValue::as_bytes);
    if values.next().is_some() {
        return Err(Refusal::Doubled("Authorization"));
    }
    let identified = app.auth.identify(value, peer(origin)).await;
    if let Err(AuthError::InvalidToken(why)) = identified {
        audit::token_refused(origin.client, &origin.request, why);
    }
    Ok(identified)
}

/// Where a login comes from.
pub(super) fn peer(origin: &Origin) -> Peer<'_> {
    Peer { address: origin.client, request: origin.request.as_str() }
}

/// Who makes a request of the API; credentials that are not believed are answered with a challenge.
pub(super) async fn caller(
    app: &App,
    headers: &HeaderMap,
    origin: &Origin,
    action: &Action,
) -> Result<Caller, Failure> {
    identify(app, headers, origin).await?.map_err(|error| match error {
        AuthError::InvalidToken(_) => {
            let invalid = Some(ChallengeError::InvalidToken);
            challenge(app, origin, action, invalid, error.to_string())
        }
        AuthError::Refused | AuthError::Malformed(_) | AuthError::NoCredentials => {
            challenge(app, origin, action, None, error.to_string())
        }
        AuthError::TooMany { .. } | AuthError::Busy { .. } | AuthError::Unavailable => {
            Failure::Auth(error)
        }
    })
}

/// What a request that passed may do besides.
#[derive(Clone, Debug)]
pub(super) struct Permit {
    /// On whose behalf it is done, and what they were let through by.
    pub(super) account: Account,
    /// Who asks whether a blob is there may push it, and so is promised that it stays.
    pub(super) promised: bool,
}

/// Lets a request of the API pass, or says what the client is told instead.
pub(super) fn admit(
    app: &Arc<App>,
    caller: &Caller,
    origin: &Origin,
    action: &Action,
) -> Result<Permit, Failure> {
    let needs = |error, message| Err(challenge(app, origin, action, error, message));
    let log_in = || {
        let how = if app.auth.has_tokens() {
            "no token: log in, or fetch one from /token"
        } else {
            "log in first"
        };
        needs(None, how.to_owned())
    };
    let who = || access::account(*app.auth.policy(), &caller.who);
    let passed = || Permit { account: who(), promised: false };
    let (repo, deed) = match action {
        Action::Repo(repo, deed) => (repo, deed),
        Action::Catalog(_) if app.auth.lets_in(caller) => return Ok(passed()),
        _ if caller.presented() => return Ok(passed()),
        _ => return log_in(),
    };
    if !app.auth.lets_in(caller) {
        return log_in();
    }
    let asks = matches!(deed, Deed::ReadBlob { head: true, .. });
    // Where nobody pushes, nobody is promised anything.
    let promises = asks && !app.registry.is_read_only();
    let found = app.registry.way(repo, promises || deed.right() != auth::Action::Pull)?;
    let way = access::way(&found);
    let (verdict, judgement) = app.auth.decide(caller, repo, &way, deed.right());
    match verdict {
        Verdict::Allowed => {
            let push = || app.auth.decide(caller, repo, &way, auth::Action::Push).0;
            let account = who().having_seen(repo, &found);
            Ok(Permit { account, promised: promises && push() == Verdict::Allowed })
        }
        Verdict::NeedsToken => log_in(),
        // No right is missing: that it cannot be written to now is no answer about who may.
        Verdict::Denied | Verdict::NeedsScope if judgement.reason == Reason::ReadOnly => {
            Err(read_only(&found))
        }
        // Whoever asks whether a blob is there is about to push. Clients print no reason for a 401
        // here, for it has no body, and containerd gives up; the push itself is told to log in.
        Verdict::NeedsScope if asks && judgement.right == Right::No => Err(denied(repo, deed)),
        Verdict::NeedsScope => {
            needs(Some(ChallengeError::InsufficientScope), beyond(caller, repo, deed))
        }
        Verdict::Denied => {
            let asked = Asked { repo: repo.clone(), way: found, right: deed.right() };
            record(app, caller, origin, asked, judgement);
            Err(denied(repo, deed))
        }
        Verdict::Untold => match found.stopped {
            Some(error) => Err(registry::Error::from(error).into()),
            None => Err(denied(repo, deed)),
        },
    }
}

/// Writes down that somebody who is known was turned away, and why, beside the answer: it reads the
/// host's account files, and that there is something to refuse must not show in the time. That there
/// is nothing to pull is no refusal: each first push begins by looking.
fn record(app: &Arc<App>, caller: &Caller, origin: &Origin, asked: Asked, judgement: Judgement) {
    if judgement.reason == Reason::Absent {
        return;
    }
    let (app, who) = (Arc::clone(app), caller.who.clone());
    let source = Source {
        who: who.name().map(str::to_owned),
        client: origin.client,
        request: origin.request.clone(),
    };
    tokio::task::spawn_blocking(move || {
        let case = access::Case {
            names: auth::Names::Files,
            policy: app.auth.policy(),
            who: &who,
            called: None,
            repo: &asked.repo,
            way: &asked.way,
            action: asked.right,
            server: rustix::process::geteuid().as_raw(),
        };
        audit::denied(&source, &asked.repo, asked.right, &access::why(&case, &judgement));
    });
}

/// What was asked for, and what lay on the way to it.
struct Asked {
    repo: RepoName,
    way: Way,
    right: auth::Action,
}

fn beyond(caller: &Caller, repo: &RepoName, deed: &Deed) -> String {
    match caller.who.name() {
        None if deed.right() == auth::Action::Pull => {
            format!("{repo} is not for everybody: log in first")
        }
        None => format!("changing {repo} needs a login: log in first"),
        Some(user) => format!("the token of {user} does not name {repo}: ask for one that does"),
    }
}

/// Who may not read must not learn whether there is something to read.
fn denied(repo: &RepoName, deed: &Deed) -> Failure {
    match deed.right() {
        auth::Action::Pull => Failure::Registry(absent(repo, deed)),
        right => Failure::Denied(repo.clone(), right),
    }
}

/// As if the deed had been tried.
fn read_only(way: &Way) -> Failure {
    let path = way.levels.last().map(|level| level.path.clone()).unwrap_or_default();
    let source = Arc::new(Errno::ROFS.into());
    Failure::Registry(layout::Error::Io { path, source }.into())
}

/// What a repository that is not there answers to a read.
fn absent(repo: &RepoName, deed: &Deed) -> registry::Error {
    let repo = repo.clone();
    match deed {
        Deed::ReadBlob { digest, .. } => {
            registry::Error::BlobUnknown { repo, digest: digest.clone() }
        }
        Deed::ReadManifest { reference, .. } => {
            registry::Error::ManifestUnknown { repo, reference: reference.clone() }
        }
        _ => registry::Error::NameUnknown(repo),
    }
}

/// Makes the answers of a repository that is absent and of one that may not be read alike.
pub(super) fn alike(
    outcome: Result<Response, Failure>,
    action: &Action,
) -> Result<Response, Failure> {
    match (outcome, action) {
        // The specification wants an empty list for what is not there.
        (
            Err(Failure::Registry(registry::Error::NameUnknown(_))),
            Action::Repo(_, Deed::Referrers { artifact_type, .. }),
        ) => Ok(lists::no_referrers(artifact_type.as_deref())),
        (Err(Failure::Registry(registry::Error::NameUnknown(_))), Action::Repo(repo, deed)) => {
            Err(Failure::Registry(absent(repo, deed)))
        }
        (outcome, _) => outcome,
    }
}

fn challenge(
    app: &App,
    origin: &Origin,
    action: &Action,
    error: Option<ChallengeError>,
    message: String,
) -> Failure {
    if !app.auth.has_tokens() {
        let challenge = auth::BASIC_CHALLENGE.to_owned();
        return Failure::Unauthorized { challenge, message };
    }
    match origin.base() {
        // A realm that a stranger could choose would send passwords to the stranger.
        Err(refusal) => refusal.into(),
        Ok(base) => Failure::Unauthorized {
            challenge: app.auth.challenge(&format!("{base}{TOKEN_PATH}"), &action.scope(), error),
            message,
        },
    }
}

/// A server without logins answers nobody's page but its own: a name that was made to point at
/// loopback, or a form on a foreign page, would act as whoever started the server.
pub(super) fn browsers(app: &App, headers: &HeaderMap, origin: &Origin) -> Result<(), Refusal> {
    if !app.settings.open {
        return Ok(());
    }
    let external = app.settings.external_url.as_ref().map(|url| url.as_str());
    let is_external = |host: &str| external.is_some_and(|url| url.ends_with(&format!("://{host}")));
    let host = origin.host.as_deref().unwrap_or_default();
    if !host.is_empty() && !is_own(host) && !is_external(host) {
        return Err(Refusal::ForeignHost(host.to_owned()));
    }
    for value in headers.get_all(ORIGIN) {
        let from = value.to_str().map_err(|_| Refusal::Header("Origin"))?;
        let own = from.split_once("://").is_some_and(|(_, from)| from.eq_ignore_ascii_case(host));
        if !own {
            return Err(Refusal::ForeignOrigin(from.chars().take(80).collect()));
        }
    }
    Ok(())
}

/// `localhost` or an address, whatever the port.
fn is_own(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok()
}
