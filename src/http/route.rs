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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn get(target: &str) -> Result<Action, RouteError> {
        of("GET", target)
    }

    fn of(method: &str, target: &str) -> Result<Action, RouteError> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        parse(&method.parse().unwrap(), path, query)
    }

    fn repo(action: Result<Action, RouteError>) -> (String, Deed) {
        match action {
            Ok(Action::Repo(name, deed)) => (name.as_str().to_owned(), deed),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_matched_from_the_end() {
        for (target, name) in [
            ("/v2/a/tags/list", "a"),
            ("/v2/a/b/c/tags/list", "a/b/c"),
            ("/v2/tags/list/tags/list", "tags/list"),
            ("/v2/a/manifests/tags/list", "a/manifests"),
            ("/v2/privat%65/x/tags/list", "private/x"),
            ("/v2/a%2fb/tags/list", "a/b"),
        ] {
            let (found, deed) = repo(get(target));
            assert_eq!(found, name, "{target}");
            assert!(matches!(deed, Deed::Tags(_)), "{target}");
        }
        let (name, deed) = repo(get("/v2/a/manifests/manifests/v1"));
        assert_eq!(name, "a/manifests");
        assert!(matches!(deed, Deed::ReadManifest { head: false, .. }));
        let (name, deed) =
            repo(of("HEAD", &format!("/v2/referrers/x/blobs/{DIGEST}?ns=docker.io")));
        assert_eq!(name, "referrers/x");
        assert!(matches!(deed, Deed::ReadBlob { head: true, .. }));
    }

    #[test]
    fn uploads_begin_in_four_ways() {
        let post = |query: &str| of("POST", &format!("/v2/a/blobs/uploads/{query}"));
        let begin = |query: &str| repo(post(query)).1;
        assert_eq!(begin(""), Deed::BeginUpload { algorithm: None });
        let long = Some(Algorithm::Sha512);
        assert_eq!(begin("?digest-algorithm=sha512"), Deed::BeginUpload { algorithm: long });
        let digest = Digest::parse(DIGEST).unwrap();
        assert_eq!(begin(&format!("?digest={DIGEST}")), Deed::PutBlob(digest.clone()));
        let escaped = DIGEST.replace(':', "%3A");
        assert_eq!(
            begin(&format!("?mount={escaped}&from=x%2Fy")),
            Deed::Mount {
                digest: digest.clone(),
                from: Some(RepoName::parse("x/y").unwrap()),
                algorithm: None
            }
        );
        assert!(matches!(begin(&format!("?mount={DIGEST}")), Deed::Mount { from: None, .. }));
        assert!(matches!(post("?digest-algorithm=md5"), Err(RouteError::Digest(_))));
        assert!(matches!(post(&format!("?mount={DIGEST}&from=A")), Err(RouteError::Name(_))));
    }

    #[test]
    fn sessions_have_ids_that_we_gave_out() {
        let at = |method, id: &str| of(method, &format!("/v2/a/blobs/uploads/{id}"));
        let id = UploadId::parse(ID).unwrap();
        assert_eq!(repo(at("PATCH", ID)).1, Deed::AppendUpload(id.clone()));
        assert_eq!(repo(at("DELETE", ID)).1, Deed::CancelUpload(id.clone()));
        let with_digest = format!("{ID}?digest={DIGEST}");
        assert_eq!(repo(at("GET", &with_digest)).1, Deed::UploadStatus(id));
        assert!(matches!(repo(at("PUT", &with_digest)).1, Deed::FinishUpload { .. }));
        assert_eq!(at("PUT", ID), Err(RouteError::NoDigest));
        for bad in ["x", "0123", &"a".repeat(4096), &ID.to_uppercase()] {
            assert!(matches!(at("PATCH", bad), Err(RouteError::Upload(_))), "{bad}");
        }
        assert!(matches!(at("PATCH", "..%2f..%2fx"), Err(RouteError::Dots(_))));
        assert!(matches!(at("PATCH", "%00"), Err(RouteError::Path(_))));
        let twice = format!("{ID}?digest={DIGEST}&digest=sha256:00");
        assert_eq!(at("PUT", &twice), Err(RouteError::Repeated("digest")));
    }

    #[test]
    fn pages_are_clamped_or_refused() {
        let n = |n: &str| match get(&format!("/v2/_catalog?n={n}&last=a/b")) {
            Ok(Action::Catalog(page)) => Ok(page.n),
            Err(error) => Err(error),
            other => panic!("{other:?}"),
        };
        assert_eq!(n("0"), Ok(0));
        assert_eq!(n("7"), Ok(7));
        for many in ["1001", "2147483648", "9223372036854775808", &"9".repeat(99)] {
            assert_eq!(n(many), Ok(MAX_PAGE), "{many}");
        }
        for bad in ["", "-1", "abc", "1e3", "%2b1", " 1"] {
            assert!(matches!(n(bad), Err(RouteError::PageSize(_))), "{bad}");
        }
        let page = Page { n: MAX_PAGE, last: None };
        assert_eq!(get("/v2/_catalog"), Ok(Action::Catalog(page)));
    }

    #[test]
    fn what_is_not_ours_is_told_apart() {
        for path in ["/v1/search", "/v2/x", "/v2/a/tags", "/v3/", "*", "", "/v2/a/tags/list/"] {
            assert_eq!(get(path), Err(RouteError::NotFound), "{path}");
        }
        for (method, path, allowed) in [
            ("POST", "/v2/", "GET, HEAD"),
            ("DELETE", "/token", "GET, POST"),
            ("PATCH", "/v2/a/manifests/b", "GET, HEAD, PUT, DELETE"),
            ("GET", "/v2/a/blobs/uploads/", "POST"),
            ("BREW", "/v2/a/tags/list", "GET, HEAD"),
        ] {
            match of(method, path) {
                Err(RouteError::Method { allow, .. }) => assert_eq!(allow, allowed, "{path}"),
                other => panic!("{method} {path}: {other:?}"),
            }
        }
    }

    #[test]
    fn malformed_names_digests_and_tags_say_so() {
        for path in [
            "/v2/A/tags/list",
            "/v2//tags/list",
            "/v2/_catalog/tags/list",
            "/v2/tags/list",
            "/v2/a/blobs/uploads/b/tags/list",
            "/v2/a//b/tags/list",
        ] {
            assert!(matches!(get(path), Err(RouteError::Name(_))), "{path}");
        }
        for path in ["/v2/a/../b/tags/list", "/v2/a/%2e%2e/tags/list", "/v2/a/%2E/tags/list", "/.."]
        {
            assert!(matches!(get(path), Err(RouteError::Dots(_))), "{path}");
        }
        assert!(matches!(get("/v2/a/blobs/sha256:00"), Err(RouteError::Digest(_))));
        assert!(matches!(get("/v2/a/manifests/sha256:x"), Err(RouteError::Digest(_))));
        assert!(matches!(get("/v2/a/manifests/.x"), Err(RouteError::Tag(_))));
        assert!(matches!(of("PUT", "/v2/a/manifests/x?tag=a/b"), Err(RouteError::Tag(_))));
        assert!(matches!(get("/v2/a/tags/list?last=%0a"), Err(RouteError::Query(_))));
    }

    #[test]
    fn media_types_keep_their_plus() {
        for raw in ["a/b+json", "a%2Fb%2Bjson"] {
            let (_, deed) = repo(get(&format!("/v2/a/referrers/{DIGEST}?artifactType={raw}")));
            match deed {
                Deed::Referrers { artifact_type, .. } => {
                    assert_eq!(artifact_type.unwrap(), "a/b+json")
                }
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(method in "[A-Z]{1,8}", path in "\\PC{0,60}", query in "\\PC{0,60}") {
            let _ = parse(&method.parse().unwrap(), &path, Some(&query));
        }

        #[test]
        fn every_name_comes_through(name in "[a-z0-9]{1,5}(/[a-z0-9]{1,4}){0,4}", tag in "[a-z0-9_][a-zA-Z0-9._-]{0,10}") {
            prop_assume!(RepoName::parse(&name).is_ok());
            let (found, deed) = repo(get(&format!("/v2/{name}/manifests/{tag}")));
            prop_assert_eq!(found, name);
            let wanted = Reference::Tag(Tag::parse(&tag).unwrap());
            prop_assert_eq!(deed, Deed::ReadManifest { reference: wanted, head: false });
        }

        #[test]
        fn escaped_or_not_is_the_same(path in "/v2/[a-z/]{1,12}/(tags/list|manifests/x)") {
            let escaped: String = path.bytes().map(|b| format!("%{b:02x}")).collect();
            // The first slash stands as it is: a request target begins with one.
            let escaped = format!("/{}", &escaped[3..]);
            prop_assert_eq!(get(&path), get(&escaped));
        }
    }
}
