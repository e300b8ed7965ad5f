//! The one place where what went wrong becomes a status, a code and a message.
//!
//! What the client is told names its own digests, tags and repositories, never our paths; the
//! paths and causes go to the log.

use std::error::Error;
use std::io;
use std::time::Duration;

use axum::response::Response;
use http::StatusCode;
use http::header::{ALLOW, CONTENT_RANGE, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use rustix::io::Errno;
use serde_json::json;

use super::faults::Fault;
use super::head::Wrong;
use super::reply::{Code, Problem, value};
use super::route::RouteError;
use crate::access;
use crate::auth::{self, AuthError};
use crate::layout;
use crate::oci::{Digest, MAX_MANIFEST, RepoName};
use crate::registry::{self, UploadId};

/// Why a request is not answered with what it asked for.
#[derive(Debug)]
pub(super) enum Failure {
    /// It means nothing here.
    Route(RouteError),
    /// Its headers or its body are refused before anybody looks at the tree.
    Refusal(Refusal),
    /// It needs other credentials; the value of `WWW-Authenticate` says which.
    Unauthorized { challenge: String, message: String },
    /// The caller is known and may not.
    Denied(RepoName, auth::Action),
    /// Who the caller is cannot be found out now.
    Auth(AuthError),
    /// The registry's own answer.
    Registry(registry::Error),
    /// A chunk of an upload that cannot be put where it says. `None`: its range is not readable.
    Chunk { repo: RepoName, id: UploadId, size: u64, why: String },
}

/// What is refused because of a request's headers or body alone.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the header Host {0}")]
    Host(&'static str),
    #[error(
        "this request came through a proxy that is not trusted: start stillage with --external-url \
         https://NAME, or name the proxy with --trusted-proxy ADDRESS"
    )]
    Forwarded,
    #[error("the header {0} cannot be read")]
    Header(&'static str),
    #[error("the header {0} stands twice")]
    Doubled(&'static str),
    #[error(
        "{0:?} is no name of this server: without logins it answers to localhost and to addresses only"
    )]
    ForeignHost(String),
    #[error("requests from pages of {0:?} are refused: this server has no logins")]
    ForeignOrigin(String),
    #[error("Content-Encoding {0:?} is not supported: send the bytes that the digest names")]
    ContentEncoding(String),
    #[error("the manifest is larger than {MAX_MANIFEST} bytes, which is the most that is stored")]
    ManifestTooLarge,
    #[error("the form is larger than {0} bytes")]
    FormTooLarge(usize),
    #[error("the form {0}")]
    Form(String),
    #[error("grant_type {0:?} is not supported: use GET, or grant_type=password")]
    Grant(String),
    #[error("the range lies outside of the {size} bytes")]
    Range { size: u64 },
    #[error(transparent)]
    Head(#[from] Wrong),
    #[error("the chunks of the body are malformed")]
    Chunks,
    #[error("this port speaks TLS: use https://")]
    NeedsTls,
    #[error("you may not push to {0} any more")]
    Revoked(String),
    #[error("the body ended early: {0}")]
    Body(String),
    #[error("the body stopped coming: nothing arrived for {} seconds", .0.as_secs())]
    Stalled(Duration),
    #[error("the body comes too slowly: fewer than {0} bytes a second")]
    Slow(u64),
    #[error("the server has as many connections as it can serve: try again")]
    Crowded,
    #[error("there are too many connections from your address: close some, or try again")]
    CrowdedAddress,
    #[error("the server has more in hand than it can do at once: try again")]
    Overloaded,
    #[error("this server is read-only: push to the registry that it is a copy of")]
    ReadOnly,
}

impl From<RouteError> for Failure {
    fn from(error: RouteError) -> Failure {
        Failure::Route(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refusal(refusal)
    }
}

impl From<registry::Error> for Failure {
    fn from(error: registry::Error) -> Failure {
        Failure::Registry(error)
    }
}

impl Failure {
    /// The answer. `repo` is the repository that the request is about.
    pub(super) fn into_response(self, repo: Option<&RepoName>) -> Response {
        let problem = match self {
            Failure::Route(error) => of_route(error),
            Failure::Refusal(refusal) => of_refusal(refusal),
            Failure::Unauthorized { challenge, message } => {
                Problem::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, message)
                    .header(WWW_AUTHENTICATE, value(challenge))
            }
            Failure::Denied(repo, right) => denied(&repo, right),
            Failure::Auth(error) => of_auth(error),
            Failure::Registry(error) => of_registry(error, repo),
            Failure::Chunk { repo, id, size, why } => chunk(&repo, &id, size, why),
        };
        problem.into_response()
    }
}

fn of_route(error: RouteError) -> Problem {
    let bad = StatusCode::BAD_REQUEST;
    let (status, code) = match &error {
        RouteError::Path(_) | RouteError::Dots(_) | RouteError::Name(_) => (bad, Code::NameInvalid),
        RouteError::Query(_) | RouteError::Repeated(_) => (bad, Code::Unsupported),
        RouteError::Digest(_) | RouteError::NoDigest => (bad, Code::DigestInvalid),
        RouteError::Tag(_) => (bad, Code::TagInvalid),
        RouteError::PageSize(_) => (bad, Code::PaginationNumberInvalid),
        RouteError::Upload(_) => (StatusCode::NOT_FOUND, Code::BlobUploadUnknown),
        RouteError::NotFound => (StatusCode::NOT_FOUND, Code::Unsupported),
        RouteError::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported),
    };
    let problem = Problem::new(status, code, &error);
    match error {
        RouteError::Method { allow, .. } => problem.header(ALLOW, value(allow)),
        _ => problem,
    }
}

fn of_refusal(refusal: Refusal) -> Problem {
    let bad = StatusCode::BAD_REQUEST;
    let (status, code) = match &refusal {
        Refusal::Host(_)
        | Refusal::Forwarded
        | Refusal::Header(_)
        | Refusal::Doubled(_)
        | Refusal::NeedsTls => (bad, Code::Unsupported),
        Refusal::ForeignHost(_) | Refusal::ForeignOrigin(_) | Refusal::Revoked(_) => {
            (StatusCode::FORBIDDEN, Code::Denied)
        }
        Refusal::ContentEncoding(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::Unsupported),
        Refusal::ManifestTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, Code::ManifestInvalid),
        Refusal::FormTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, Code::Unsupported),
        Refusal::Form(_) => (bad, Code::Unsupported),
        // Tells clients to use GET instead.
        Refusal::Grant(_) => (StatusCode::NOT_FOUND, Code::Unsupported),
        Refusal::Range { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, Code::RangeInvalid),
        Refusal::Head(wrong) => (of_head(wrong), Code::Unsupported),
        Refusal::Body(_) | Refusal::Chunks => (bad, Code::BlobUploadInvalid),
        Refusal::Stalled(_) | Refusal::Slow(_) => {
            (StatusCode::REQUEST_TIMEOUT, Code::BlobUploadInvalid)
        }
        Refusal::Crowded | Refusal::Overloaded => {
            (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable)
        }
        Refusal::CrowdedAddress => (StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests),
        Refusal::ReadOnly => (StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported),
    };
    let problem = Problem::new(status, code, &refusal);
    match refusal {
        Refusal::Range { size } => problem.header(CONTENT_RANGE, value(format!("bytes */{size}"))),
        Refusal::Crowded | Refusal::CrowdedAddress | Refusal::Overloaded => {
            problem.header(RETRY_AFTER, value("5"))
        }
        Refusal::ReadOnly => problem.header(ALLOW, value("GET, HEAD")),
        _ => problem,
    }
}

fn of_head(wrong: &Wrong) -> StatusCode {
    match wrong {
        Wrong::TargetTooLong => StatusCode::URI_TOO_LONG,
        Wrong::TooLarge | Wrong::TooManyLines => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Wrong::Version(_) => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        Wrong::LineFeed
        | Wrong::CarriageReturn
        | Wrong::Control(_)
        | Wrong::RequestLine
        | Wrong::Target
        | Wrong::Folded
        | Wrong::NoColon
        | Wrong::Name(_)
        | Wrong::Length
        | Wrong::Twice(_)
        | Wrong::TwoLengths
        | Wrong::Encoding
        | Wrong::OldEncoding => StatusCode::BAD_REQUEST,
    }
}

fn denied(repo: &RepoName, right: auth::Action) -> Problem {
    let what = match right {
        auth::Action::Pull => "read",
        auth::Action::Push => "push to",
        auth::Action::Delete => "delete from",
    };
    let message = format!("you may not {what} {repo}");
    Problem::new(StatusCode::FORBIDDEN, Code::Denied, message)
}

fn of_auth(error: AuthError) -> Problem {
    let later = |status, code, wait: Duration| {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Problem::new(status, code, error).header(RETRY_AFTER, value(seconds.to_string()))
    };
    match error {
        AuthError::NoCredentials
        | AuthError::Refused
        | AuthError::InvalidToken(_)
        | AuthError::Malformed(_) => {
            Problem::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, error)
        }
        AuthError::TooMany { retry_after } => {
            later(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, retry_after)
        }
        AuthError::Busy { retry_after } => {
            later(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, retry_after)
        }
        AuthError::Unavailable => {
            later(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, Duration::from_secs(5))
        }
    }
}

/// Where an upload stands, as `Range` says it: the last byte is included, so that nothing and one
/// byte look the same (specification and clients know no other form).
pub(super) fn upload_range(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

fn chunk(repo: &RepoName, id: &UploadId, size: u64, why: String) -> Problem {
    let location = format!("/v2/{repo}/blobs/uploads/{}", id.as_str());
    Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::BlobUploadInvalid, why)
        .header(LOCATION, value(location))
        .header(RANGE, value(upload_range(size)))
}

fn of_registry(error: registry::Error, repo: Option<&RepoName>) -> Problem {
    use registry::Error;
    let bad = |code| Problem::new(StatusCode::BAD_REQUEST, code, &error);
    let absent = |code| Problem::new(StatusCode::NOT_FOUND, code, &error);
    match &error {
        Error::NameUnknown(name) => {
            absent(Code::NameUnknown).detail(json!({ "name": name.as_str() }))
        }
        Error::BlobUnknown { digest, .. } => {
            absent(Code::BlobUnknown).detail(json!({ "digest": digest.as_str() }))
        }
        Error::ManifestUnknown { reference, .. } => {
            absent(Code::ManifestUnknown).detail(json!({ "reference": reference.to_string() }))
        }
        Error::UploadUnknown(_) => absent(Code::BlobUploadUnknown),
        Error::UploadRange { id, size, .. } => match repo {
            Some(repo) => chunk(repo, id, *size, error.to_string()),
            None => bad(Code::BlobUploadInvalid),
        },
        // Sooner or later a push of the same user ends; only they know when.
        Error::TooManyUploads { .. } => {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, &error)
                .header(RETRY_AFTER, value("5"))
        }
        Error::UploadBusy(_) => Problem::new(StatusCode::CONFLICT, Code::BlobUploadInvalid, &error),
        Error::UploadLength { .. } => bad(Code::SizeInvalid),
        Error::Body(source) => of_refusal(body(source)),
        Error::DigestMismatch { .. } => bad(Code::DigestInvalid),
        Error::Manifest(_) => bad(Code::ManifestInvalid),
        Error::ManifestBlobUnknown(digests) => missing(digests),
        Error::BlobInUse { .. } => {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, &error)
                .header(ALLOW, value("GET, HEAD"))
        }
        Error::Closed { .. } => {
            tracing::warn!(cause = ?error.to_string(), "a change was refused");
            let text = "somebody put files into this repository that you may not read: ask them, or \
                an administrator, to let you";
            Problem::new(StatusCode::FORBIDDEN, Code::Denied, text)
        }
        Error::Overloaded => {
            tracing::warn!("a request waited too long for a thread");
            later("the server has more in hand than it can do at once: try again")
        }
        Error::Moved(_) => Problem::new(StatusCode::CONFLICT, Code::NameUnknown, &error),
        Error::Busy { path } => {
            tracing::warn!(?path, "a lock was not to be had in time");
            later("the repository is busy: try again")
        }
        // Whoever may create a repository and cannot have it for themselves is told why, without
        // our paths.
        Error::Layout(source @ layout::Error::NoAcls { .. }) => {
            tracing::warn!(error = ?source.to_string(), "a repository was not created");
            let text = "the new repository would shut you out, and the server's file system keeps \
                no ACLs that would let you in: ask an administrator to make its directory";
            Problem::new(StatusCode::FORBIDDEN, Code::Denied, text)
        }
        Error::Layout(layout::Error::Replaced { .. }) => {
            let text = "the repository was moved or replaced meanwhile: push again";
            Problem::new(StatusCode::CONFLICT, Code::NameUnknown, text)
        }
        Error::Layout(source) => match source.errno() {
            Some(Errno::ACCESS | Errno::PERM) => locked_out(source),
            errno => match errno.and_then(|errno| Fault::of(errno, source.path())) {
                Some(fault) => {
                    let (cause, mend) = (error.to_string(), &fault.mend);
                    tracing::error!(?cause, ?mend, "the machine refused");
                    fault.problem()
                }
                None => {
                    log(&error);
                    broken()
                }
            },
        },
        Error::Internal => {
            log(&error);
            broken()
        }
    }
}

/// So many missing blobs are named; an answer must not grow with what a client makes up.
const MOST_NAMED: usize = 50;

fn missing(digests: &[Digest]) -> Problem {
    let problem = Problem::of(StatusCode::BAD_REQUEST);
    digests.iter().take(MOST_NAMED).fold(problem, |problem, digest| {
        let message = format!(
            "the manifest refers to {digest}, which is not in this repository: push it first"
        );
        problem.and(Code::ManifestBlobUnknown, message).detail(json!({ "digest": digest.as_str() }))
    })
}

/// The log gets the path and the cause, the client a sentence. Debug writes control characters as
/// escapes, so that no name in a tree can begin a line of the log.
fn log(error: &registry::Error) {
    tracing::error!(cause = ?error.to_string(), "a request failed on our side");
}

/// The files belong to somebody who did not let the server in: only an administrator can mend that.
///
/// A repository whose index.json cannot be read is broken for everybody, whatever they may do; only
/// where the server may not go on with something else is it as if the client may not.
fn locked_out(error: &layout::Error) -> Problem {
    let path = error.path();
    let uid = rustix::process::geteuid().as_raw();
    // No right is missing where even the owner, or root, may not: an attribute forbids it.
    let forbidden = error.errno() == Some(Errno::PERM);
    let mend = match forbidden {
        true => format!("lsattr -d {0}; chattr -i -a {0}", access::quote(path)),
        false => format!("setfacl -m u:{uid}:rwX {}", access::quote(path)),
    };
    tracing::error!(
        cause = ?error.to_string(),
        ?mend,
        "the server's own account may not use this"
    );
    if path.ends_with(layout::path::INDEX) {
        return if forbidden {
            later("the repository cannot be changed at present")
        } else {
            broken()
        };
    }
    let message =
        "the server itself may not do this: its administrator finds the reason in its log";
    Problem::new(StatusCode::FORBIDDEN, Code::Denied, message)
}

fn later(message: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message)
        .header(RETRY_AFTER, value("5"))
}

fn broken() -> Problem {
    let message = "the registry could not do this: its log says why";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Unknown, message)
}

/// What became of a request's body: the client stalled, went away or broke the framing. Whoever
/// handed the error on may have wrapped it.
pub(super) fn body(source: &io::Error) -> Refusal {
    let mut cause: Option<&(dyn Error + 'static)> = Some(source);
    while let Some(error) = cause {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return refusal.clone();
        }
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // `source` would pass over it.
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    Refusal::Body(source.to_string())
}

#[cfg(test)]
#[path = "errors_tests.rs"]
mod tests;
