//! Every failure with its status and code, and every code with a failure.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::to_bytes;
use http::HeaderMap;
use serde_json::Value;

use super::*;
use crate::auth::TokenError;
use crate::http::encoding::EncodingError;
use crate::oci::{Algorithm, ContentRange, Manifest, Reference};

fn repo() -> RepoName {
    RepoName::parse("a/b").unwrap()
}

fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, b"x")
}

fn upload() -> UploadId {
    UploadId::parse("0123456789abcdef0123456789abcdef").unwrap()
}

fn route(method: &str, path: &str) -> Failure {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let method = method.parse().unwrap();
    crate::http::route::parse(&method, path, Some(query)).unwrap_err().into()
}

fn io(errno: Errno) -> Failure {
    io_at("/secret/place\nforged", errno)
}

fn io_at(path: &str, errno: Errno) -> Failure {
    let path = PathBuf::from(path);
    let source = Arc::new(io::Error::from(errno));
    registry::Error::Layout(layout::Error::Io { path, source }).into()
}

async fn answer(failure: Failure) -> (u16, HeaderMap, Value) {
    let response = failure.into_response(Some(&repo()));
    let (head, body) = response.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    (head.status.as_u16(), head.headers, serde_json::from_slice(&body).unwrap())
}

/// What goes wrong, and how it is told.
fn all() -> Vec<(Failure, u16, Code)> {
    use registry::Error as E;
    let wait = Duration::from_millis(1500);
    let unread = Manifest::parse(b"{", None).unwrap_err();
    let damaged = layout::Error::damaged("/secret/place", "cut\nforged");
    let sent = ContentRange { first: 5, last: 9 };
    let reference = Reference::parse("v1").unwrap();
    vec![
        (RouteError::Path(EncodingError::Twice).into(), 400, Code::NameInvalid),
        (route("GET", "/v2/A/tags/list"), 400, Code::NameInvalid),
        (route("GET", "/v2/../tags/list"), 400, Code::NameInvalid),
        (route("GET", "/v2/a/tags/list?last=%00"), 400, Code::Unsupported),
        (route("GET", "/v2/a/tags/list?n=1&n=2"), 400, Code::Unsupported),
        (route("GET", "/v2/a/tags/list?n=x"), 400, Code::PaginationNumberInvalid),
        (route("GET", "/v2/a/blobs/x"), 400, Code::DigestInvalid),
        (route("GET", "/v2/a/manifests/.x"), 400, Code::TagInvalid),
        (route("GET", "/v2/a/blobs/uploads/x"), 404, Code::BlobUploadUnknown),
        (route("GET", "/v3"), 404, Code::Unsupported),
        (route("POST", "/v2/"), 405, Code::Unsupported),
        (Refusal::Host("is missing").into(), 400, Code::Unsupported),
        (Refusal::Forwarded.into(), 400, Code::Unsupported),
        (Refusal::Header("x").into(), 400, Code::Unsupported),
        (Refusal::Doubled("x").into(), 400, Code::Unsupported),
        (Refusal::ForeignHost("x".into()).into(), 403, Code::Denied),
        (Refusal::ForeignOrigin("x".into()).into(), 403, Code::Denied),
        (Refusal::ContentEncoding("gzip".into()).into(), 415, Code::Unsupported),
        (Refusal::ManifestTooLarge.into(), 413, Code::ManifestInvalid),
        (Refusal::FormTooLarge(1).into(), 413, Code::Unsupported),
        (Refusal::Form("x".into()).into(), 400, Code::Unsupported),
        (Refusal::Grant("x".into()).into(), 404, Code::Unsupported),
        (Refusal::Range { size: 7 }.into(), 416, Code::RangeInvalid),
        (Refusal::Body("x".into()).into(), 400, Code::BlobUploadInvalid),
        (Refusal::Revoked("a".into()).into(), 403, Code::Denied),
        (Refusal::Chunks.into(), 400, Code::BlobUploadInvalid),
        (Refusal::NeedsTls.into(), 400, Code::Unsupported),
        (Refusal::from(Wrong::LineFeed).into(), 400, Code::Unsupported),
        (Refusal::from(Wrong::TargetTooLong).into(), 414, Code::Unsupported),
        (Refusal::from(Wrong::TooLarge).into(), 431, Code::Unsupported),
        (Refusal::from(Wrong::TooManyLines).into(), 431, Code::Unsupported),
        (Refusal::from(Wrong::Version("HTTP/3.7".into())).into(), 505, Code::Unsupported),
        (Refusal::Stalled(wait).into(), 408, Code::BlobUploadInvalid),
        (Refusal::Slow(1).into(), 408, Code::BlobUploadInvalid),
        (Refusal::Crowded.into(), 503, Code::Unavailable),
        (Refusal::Overloaded.into(), 503, Code::Unavailable),
        (Refusal::ReadOnly.into(), 405, Code::Unsupported),
        (Refusal::CrowdedAddress.into(), 429, Code::TooManyRequests),
        (registry::Error::Overloaded.into(), 503, Code::Unavailable),
        (
            Failure::Unauthorized { challenge: "Bearer".into(), message: "x".into() },
            401,
            Code::Unauthorized,
        ),
        (Failure::Denied(repo(), auth::Action::Push), 403, Code::Denied),
        (Failure::Auth(AuthError::NoCredentials), 401, Code::Unauthorized),
        (Failure::Auth(AuthError::Refused), 401, Code::Unauthorized),
        (Failure::Auth(AuthError::Malformed("x")), 401, Code::Unauthorized),
        (Failure::Auth(AuthError::InvalidToken(TokenError::Signature)), 401, Code::Unauthorized),
        (Failure::Auth(AuthError::TooMany { retry_after: wait }), 429, Code::TooManyRequests),
        (Failure::Auth(AuthError::Busy { retry_after: wait }), 503, Code::Unavailable),
        (Failure::Auth(AuthError::Unavailable), 503, Code::Unavailable),
        (
            Failure::Chunk { repo: repo(), id: upload(), size: 5, why: "x".into() },
            416,
            Code::BlobUploadInvalid,
        ),
        (E::NameUnknown(repo()).into(), 404, Code::NameUnknown),
        (E::BlobUnknown { repo: repo(), digest: digest() }.into(), 404, Code::BlobUnknown),
        (E::ManifestUnknown { repo: repo(), reference }.into(), 404, Code::ManifestUnknown),
        (E::UploadUnknown("x".into()).into(), 404, Code::BlobUploadUnknown),
        (E::UploadRange { id: upload(), size: 5, sent }.into(), 416, Code::BlobUploadInvalid),
        (E::UploadBusy(upload()).into(), 409, Code::BlobUploadInvalid),
        (E::TooManyUploads { limit: 9 }.into(), 429, Code::TooManyRequests),
        (E::UploadLength { announced: 1, received: 2 }.into(), 400, Code::SizeInvalid),
        (
            E::Body(Arc::new(io::ErrorKind::UnexpectedEof.into())).into(),
            400,
            Code::BlobUploadInvalid,
        ),
        (
            E::Body(Arc::new(io::Error::new(io::ErrorKind::TimedOut, Refusal::Stalled(wait))))
                .into(),
            408,
            Code::BlobUploadInvalid,
        ),
        (
            E::DigestMismatch { expected: digest(), actual: digest() }.into(),
            400,
            Code::DigestInvalid,
        ),
        (E::from(unread).into(), 400, Code::ManifestInvalid),
        (E::ManifestBlobUnknown(vec![digest()]).into(), 400, Code::ManifestBlobUnknown),
        (E::BlobInUse { digest: digest(), by: digest() }.into(), 405, Code::Unsupported),
        (E::Busy { path: "/secret/place".into() }.into(), 503, Code::Unavailable),
        (E::Moved(repo()).into(), 409, Code::NameUnknown),
        (E::Layout(damaged).into(), 500, Code::Unknown),
        (
            E::Layout(layout::Error::Full { path: "/secret/place".into(), why: "x".into() }).into(),
            507,
            Code::Unknown,
        ),
        (E::Internal.into(), 500, Code::Unknown),
        (io(Errno::NOSPC), 507, Code::Unknown),
        (io(Errno::DQUOT), 507, Code::Unknown),
        (io(Errno::ROFS), 503, Code::Unavailable),
        (io(Errno::MFILE), 503, Code::Unavailable),
        (io(Errno::ACCESS), 403, Code::Denied),
        (io_at("/secret/place/index.json", Errno::ACCESS), 500, Code::Unknown),
        (io(Errno::PERM), 403, Code::Denied),
        (io_at("/secret/place/index.json", Errno::PERM), 503, Code::Unavailable),
        (io(Errno::MLINK), 507, Code::Unknown),
        (io(Errno::XDEV), 503, Code::Unavailable),
        (io(Errno::NFILE), 503, Code::Unavailable),
        (io(Errno::NOMEM), 503, Code::Unavailable),
        (io(Errno::NOLCK), 503, Code::Unavailable),
        (io(Errno::IO), 503, Code::Unavailable),
        (io(Errno::UCLEAN), 503, Code::Unavailable),
        // Nothing about the machine: somebody put a symlink there.
        (io(Errno::LOOP), 500, Code::Unknown),
    ]
}

#[tokio::test]
async fn every_failure_has_its_status_and_code() {
    for (failure, status, code) in all() {
        let shown = format!("{failure:?}");
        let (found, headers, body) = answer(failure).await;
        assert_eq!(found, status, "{shown}");
        assert_eq!(headers["content-type"], "application/json", "{shown}");
        let entries = body["errors"].as_array().expect("errors");
        assert_eq!(entries[0]["code"], code.as_str(), "{shown}");
        let message = entries[0]["message"].as_str().expect("a message");
        assert!(!message.is_empty() && !message.contains("secret"), "{shown}: {message}");
    }
}

#[test]
fn every_code_has_a_failure() {
    for code in Code::ALL {
        assert!(all().iter().any(|(_, _, used)| *used == code), "{}", code.as_str());
        let plain = |c: char| c.is_ascii_uppercase() || c == '_';
        assert!(code.as_str().chars().all(plain), "{}", code.as_str());
    }
}

#[tokio::test]
async fn some_answers_have_more_to_say() {
    let header = |headers: &HeaderMap, name: &str| headers[name].to_str().unwrap().to_owned();
    let (_, headers, _) = answer(route("POST", "/v2/")).await;
    assert_eq!(header(&headers, "allow"), "GET, HEAD");
    let (_, headers, _) = answer(Refusal::Range { size: 7 }.into()).await;
    assert_eq!(header(&headers, "content-range"), "bytes */7");
    let retry_after = Duration::from_millis(1500);
    let (_, headers, _) = answer(Failure::Auth(AuthError::TooMany { retry_after })).await;
    assert_eq!(header(&headers, "retry-after"), "2");
    let (_, headers, _) = answer(registry::Error::TooManyUploads { limit: 9 }.into()).await;
    assert_eq!(header(&headers, "retry-after"), "5");
    let sent = ContentRange { first: 9, last: 9 };
    for (size, range) in [(0, "0-0"), (1, "0-0"), (5, "0-4")] {
        let error = registry::Error::UploadRange { id: upload(), size, sent };
        let (_, headers, _) = answer(error.into()).await;
        assert_eq!(header(&headers, "range"), range);
        let location = format!("/v2/a/b/blobs/uploads/{}", upload().as_str());
        assert_eq!(header(&headers, "location"), location);
    }
}

/// What a client can do about it is to wait; where only an administrator can help, it is told so.
#[tokio::test]
async fn who_is_refused_by_the_machine_is_told_what_to_do() {
    for (errno, wait, words) in [
        (Errno::NOSPC, None, "administrator"),
        (Errno::DQUOT, None, "administrator"),
        (Errno::MLINK, None, "administrator"),
        (Errno::ROFS, Some("30"), "later"),
        (Errno::IO, Some("30"), "administrator"),
        (Errno::MFILE, Some("5"), "again"),
        (Errno::NFILE, Some("5"), "again"),
        (Errno::NOMEM, Some("5"), "again"),
    ] {
        let (_, headers, body) = answer(io(errno)).await;
        let found = headers.get("retry-after").map(|value| value.to_str().unwrap());
        assert_eq!(found, wait, "{errno}");
        let message = body["errors"][0]["message"].as_str().unwrap();
        assert!(message.contains(words), "{errno}: {message}");
        let fault = Fault::of(errno, std::path::Path::new("/tree")).unwrap();
        let named = matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM);
        assert_eq!(fault.mend.contains("/tree"), !named, "{errno}: {}", fault.mend);
    }
}

#[tokio::test]
async fn many_missing_blobs_make_one_short_answer() {
    let digests: Vec<Digest> =
        (0..5000_u32).map(|i| Digest::of(Algorithm::Sha256, &i.to_be_bytes())).collect();
    let first = digests[0].to_string();
    let (_, _, body) = answer(registry::Error::ManifestBlobUnknown(digests).into()).await;
    let entries = body["errors"].as_array().unwrap();
    assert_eq!(entries.len(), MOST_NAMED);
    assert_eq!(entries[0]["detail"]["digest"], first.as_str());
    assert!(entries[0]["message"].as_str().unwrap().contains(&first));
}
