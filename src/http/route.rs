//! What a request asks for, as one value: for the gate, the log and the handlers alike.
//!
//! Pure functions on method, path and query; nothing here looks at headers or at the tree.

use http::Method;

use super::encoding::{self, EncodingError};
use crate::auth;
use crate::oci::{
    Algorithm, Digest, DigestError, NameError, Reference, ReferenceError, RepoName, Tag, TagError,
};
use crate::registry::UploadId;

/// The largest page of a list, and the one that is sent where the request names no size.
pub const MAX_PAGE: usize = 1000;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `/`, which old probes look at.
    Front,
    /// `/healthz`: does the process answer?
    Health,
    /// `/readyz`: can it serve?
    Ready,
    /// `GET /token`, with the `scope` parameters as they came.
    Token {
        /// Each may be a list itself.
        scopes: Vec<String>,
    },
    /// `POST /token`: the parameters are in the body.
    TokenForm,
    /// `/v2/`, from which clients learn whether to log in.
    Ping,
    /// `/v2/_catalog`.
    Catalog(Page),
    /// Everything that concerns one repository.
    Repo(RepoName, Deed),
}

/// What is to be done in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// `GET` (or, with `head`, `HEAD`) of a blob.
    ReadBlob {
        /// Which.
        digest: Digest,
        /// Only the headers.
        head: bool,
    },
    /// `DELETE` of a blob.
    DeleteBlob(Digest),
    /// `GET` (or, with `head`, `HEAD`) of a manifest.
    ReadManifest {
        /// Which.
        reference: Reference,
        /// Only the headers.
        head: bool,
    },
    /// `PUT` of a manifest.
    PutManifest {
        /// Under which name.
        reference: Reference,
        /// `?tag=`: more names for it.
        tags: Vec<Tag>,
    },
    /// `DELETE` of a manifest or of a tag.
    DeleteManifest(Reference),
    /// `POST …/blobs/uploads/`: opens a session.
    BeginUpload {
        /// `?digest-algorithm=`.
        algorithm: Option<Algorithm>,
    },
    /// `POST …/blobs/uploads/?digest=`: a whole blob in one request.
    PutBlob(Digest),
    /// `POST …/blobs/uploads/?mount=`.
    Mount {
        /// What.
        digest: Digest,
        /// From which repository; none means from any that the caller may read.
        from: Option<RepoName>,
        /// `?digest-algorithm=`, for the session that is opened where nothing can be mounted.
        algorithm: Option<Algorithm>,
    },
    /// `GET` of an upload session.
    UploadStatus(UploadId),
    /// `PATCH` of an upload session.
    AppendUpload(UploadId),
    /// `PUT` of an upload session.
    FinishUpload {
        /// The session.
        id: UploadId,
        /// What the blob must hash to.
        digest: Digest,
    },
    /// `DELETE` of an upload session.
    CancelUpload(UploadId),
    /// `…/tags/list`.
    Tags(Page),
    /// `…/referrers/<digest>`.
    Referrers {
        /// What they refer to.
        subject: Digest,
        /// `?artifactType=`.
        artifact_type: Option<String>,
        /// Where the page before ended (our own parameter, which our `Link` names).
        last: Option<Digest>,
    },
}

/// Which part of a list is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// How many entries at most; never above [`MAX_PAGE`].
    pub n: usize,
    /// The entry after which the page begins.
    pub last: Option<String>,
}

/// Why a request means nothing here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The path cannot be decoded.
    #[error("the path {0}")]
    Path(EncodingError),
    /// The query cannot be decoded.
    #[error("the query {0}")]
    Query(EncodingError),
    /// A component of the path is `.` or `..`.
    #[error("the path has a component {0:?}")]
    Dots(String),
    /// The repository's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A digest, or the name of an algorithm.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A tag.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// `PUT` of an upload session without `?digest=`.
    #[error("the query has no digest: end an upload with ?digest=sha256:<64 hex digits>")]
    NoDigest,
    /// Not an id that we ever gave out.
    #[error("upload {0:?} is not known")]
    Upload(String),
    /// `n=` is not a number.
    #[error("n={0:?} is not a number of entries")]
    PageSize(String),
    /// A parameter stands there twice with two values.
    #[error("the query names {0} twice")]
    Repeated(&'static str),
    /// The path is known, the method is not.
    #[error("{method} is not supported here: use {allow}")]
    Method {
        /// What was sent.
        method: String,
        /// The value of `Allow`.
        allow: &'static str,
    },
    /// No such path.
    #[error("there is no such path on this server")]
    NotFound,
}

impl From<ReferenceError> for RouteError {
    fn from(error: ReferenceError) -> RouteError {
        match error {
            ReferenceError::Digest(error) => error.into(),
            ReferenceError::Tag(error) => error.into(),
        }
    }
}

/// Reads a request line's parts: `path` and `query` as they came, still encoded.
pub fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Action, RouteError> {
    let path = encoding::path(path).map_err(RouteError::Path)?;
    let query = Query::parse(query.unwrap_or_default())?;
    let segments: Vec<&str> = path.split('/').collect();
    if let Some(dots) = segments.iter().find(|part| matches!(**part, "." | "..")) {
        return Err(RouteError::Dots((*dots).to_owned()));
    }
    match segments.as_slice() {
        ["", ""] => read_only(method, Action::Front),
        ["", "healthz"] => read_only(method, Action::Health),
        ["", "readyz"] => read_only(method, Action::Ready),
        ["", "token"] => token(method, &query),
        ["", "v2"] | ["", "v2", ""] => read_only(method, Action::Ping),
        ["", "v2", "_catalog"] => read_only(method, Action::Catalog(query.page()?)),
        ["", "v2", rest @ ..] => in_repository(method, rest, &query),
        _ => Err(RouteError::NotFound),
    }
}

fn read_only(method: &Method, action: Action) -> Result<Action, RouteError> {
    match *method {
        Method::GET | Method::HEAD => Ok(action),
        _ => refused(method, "GET, HEAD"),
    }
}

fn token(method: &Method, query: &Query) -> Result<Action, RouteError> {
    match *method {
        Method::GET => {
            Ok(Action::Token { scopes: query.all("scope").map(str::to_owned).collect() })
        }
        Method::POST => Ok(Action::TokenForm),
        _ => refused(method, "GET, POST"),
    }
}

fn refused<T>(method: &Method, allow: &'static str) -> Result<T, RouteError> {
    Err(RouteError::Method { method: method.as_str().chars().take(32).collect(), allow })
}

/// Names have slashes and may contain every word of the API but `blobs`, so the end decides.
fn in_repository(method: &Method, rest: &[&str], query: &Query) -> Result<Action, RouteError> {
    let (name, deed) = match rest {
        [name @ .., "tags", "list"] => (name, tags(method, query)),
        [name @ .., "manifests", reference] => (name, manifest(method, reference, query)),
        [name @ .., "referrers", subject] => (name, referrers(method, subject, query)),
        [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
            (name, new_upload(method, query))
        }
        [name @ .., "blobs", "uploads", id] => (name, upload(method, id, query)),
        [name @ .., "blobs", digest] => (name, blob(method, digest)),
        _ => return Err(RouteError::NotFound),
    };
    // A wrong name is told before a wrong digest: it is what stands first.
    let name = RepoName::parse(&name.join("/"))?;
    Ok(Action::Repo(name, deed?))
}

fn tags(method: &Method, query: &Query) -> Result<Deed, RouteError> {
    match *method {
        Method::GET | Method::HEAD => Ok(Deed::Tags(query.page()?)),
        _ => refused(method, "GET, HEAD"),
    }
}

fn manifest(method: &Method, reference: &str, query: &Query) -> Result<Deed, RouteError> {
    let reference = Reference::parse(reference)?;
    match *method {
        Method::GET => Ok(Deed::ReadManifest { reference, head: false }),
        Method::HEAD => Ok(Deed::ReadManifest { reference, head: true }),
        Method::PUT => Ok(Deed::PutManifest {
            reference,
            tags: query.all("tag").map(Tag::parse).collect::<Result<_, _>>()?,
        }),
        Method::DELETE => Ok(Deed::DeleteManifest(reference)),
        _ => refused(method, "GET, HEAD, PUT, DELETE"),
    }
}

fn referrers(method: &Method, subject: &str, query: &Query) -> Result<Deed, RouteError> {
    let subject = Digest::parse(subject)?;
    // A media type has no space in it: this was a plus that the client left unencoded.
    let artifact_type = query.one("artifactType")?.map(|text| text.replace(' ', "+"));
    match *method {
        Method::GET | Method::HEAD => Ok(Deed::Referrers {
            subject,
            artifact_type: artifact_type.filter(|text| !text.is_empty()),
            last: query.one("last")?.map(Digest::parse).transpose()?,
        }),
        _ => refused(method, "GET, HEAD"),
    }
}

fn blob(method: &Method, digest: &str) -> Result<Deed, RouteError> {
    let digest = Digest::parse(digest)?;
    match *method {
        Method::GET => Ok(Deed::ReadBlob { digest, head: false }),
        Method::HEAD => Ok(Deed::ReadBlob { digest, head: true }),
        Method::DELETE => Ok(Deed::DeleteBlob(digest)),
        _ => refused(method, "GET, HEAD, DELETE"),
    }
}

fn new_upload(method: &Method, query: &Query) -> Result<Deed, RouteError> {
    if method != Method::POST {
        return refused(method, "POST");
    }
    let algorithm = query.one("digest-algorithm")?.map(str::parse).transpose()?;
    if let Some(digest) = query.one("mount")? {
        return Ok(Deed::Mount {
            digest: Digest::parse(digest)?,
            from: query.one("from")?.map(RepoName::parse).transpose()?,
            algorithm,
        });
    }
    match query.one("digest")? {
        Some(digest) => Ok(Deed::PutBlob(Digest::parse(digest)?)),
        None => Ok(Deed::BeginUpload { algorithm }),
    }
}

fn upload(method: &Method, id: &str, query: &Query) -> Result<Deed, RouteError> {
    let known =
        || UploadId::parse(id).ok_or_else(|| RouteError::Upload(id.chars().take(80).collect()));
    match *method {
        // Whatever the query says: clients ask for the state at the URL of a PUT that was refused.
        Method::GET => Ok(Deed::UploadStatus(known()?)),
        Method::PATCH => Ok(Deed::AppendUpload(known()?)),
        Method::PUT => Ok(Deed::FinishUpload {
            id: known()?,
            digest: Digest::parse(query.one("digest")?.ok_or(RouteError::NoDigest)?)?,
        }),
        Method::DELETE => Ok(Deed::CancelUpload(known()?)),
        _ => refused(method, "GET, PATCH, PUT, DELETE"),
    }
}

impl Deed {
    /// The right that it takes.
    pub fn right(&self) -> auth::Action {
        match self {
            Deed::ReadBlob { .. }
            | Deed::ReadManifest { .. }
            | Deed::Tags(_)
            | Deed::Referrers { .. } => auth::Action::Pull,
            Deed::PutManifest { .. }
            | Deed::BeginUpload { .. }
            | Deed::PutBlob(_)
            | Deed::Mount { .. }
            | Deed::UploadStatus(_)
            | Deed::AppendUpload(_)
            | Deed::FinishUpload { .. }
            | Deed::CancelUpload(_) => auth::Action::Push,
            Deed::DeleteBlob(_) | Deed::DeleteManifest(_) => auth::Action::Delete,
        }
    }
}

impl Action {
    /// What a token must grant for it: the scope that a challenge names. Empty where none is needed.
    pub fn scope(&self) -> Vec<auth::Access> {
        let (repo, deed) = match self {
            Action::Catalog(_) => return vec![auth::Access::catalog()],
            Action::Repo(repo, deed) => (repo, deed),
            _ => return Vec::new(),
        };
        let actions = match deed.right() {
            auth::Action::Pull => auth::Actions::PULL,
            auth::Action::Push => auth::Actions::PUSH,
            auth::Action::Delete => auth::Actions::DELETE,
        };
        let mut scope = vec![auth::Access::repository(repo.clone(), actions)];
        if let Deed::Mount { from: Some(from), .. } = deed {
            scope.push(auth::Access::repository(from.clone(), auth::Actions::PULL));
        }
        scope
    }
}

/// The decoded pairs of a query. Unknown ones are ignored (containerd adds `ns=`).
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Result<Query, RouteError> {
        encoding::form(text).map(Query).map_err(RouteError::Query)
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(key, _)| key == name);
        named.map(|(_, value)| value.as_str())
    }

    /// The one value of a parameter: two different ones would be two meanings.
    fn one(&self, name: &'static str) -> Result<Option<&str>, RouteError> {
        let mut values = self.all(name);
        let first = values.next();
        if values.any(|value| Some(value) != first) {
            return Err(RouteError::Repeated(name));
        }
        Ok(first)
    }

    fn page(&self) -> Result<Page, RouteError> {
        let n = match self.one("n")? {
            None => MAX_PAGE,
            Some(text) if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(RouteError::PageSize(text.chars().take(40).collect()));
            }
            // More digits than fit mean many.
            Some(text) => text.parse().unwrap_or(MAX_PAGE).min(MAX_PAGE),
        };
        let last = self.one("last")?.map(str::to_owned);
        Ok(Page { n, last })
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
