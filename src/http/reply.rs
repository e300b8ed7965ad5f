//! Answers: the specification's error document, and the headers that every answer has.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::Value;

/// The media type of what has none of its own.
pub(super) const JSON: &str = "application/json";

/// The digest of what is answered or was stored.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Error codes: those of the distribution specification ("Error Codes"), then those that it leaves
/// to registries, spelled as other registries do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    TooManyRequests,
    PaginationNumberInvalid,
    RangeInvalid,
    TagInvalid,
    Unavailable,
    Unknown,
}

impl Code {
    #[cfg(test)]
    pub(super) const ALL: [Code; 19] = [
        Code::BlobUnknown,
        Code::BlobUploadInvalid,
        Code::BlobUploadUnknown,
        Code::DigestInvalid,
        Code::ManifestBlobUnknown,
        Code::ManifestInvalid,
        Code::ManifestUnknown,
        Code::NameInvalid,
        Code::NameUnknown,
        Code::SizeInvalid,
        Code::Unauthorized,
        Code::Denied,
        Code::Unsupported,
        Code::TooManyRequests,
        Code::PaginationNumberInvalid,
        Code::RangeInvalid,
        Code::TagInvalid,
        Code::Unavailable,
        Code::Unknown,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Code::BlobUnknown => "BLOB_UNKNOWN",
            Code::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Code::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Code::DigestInvalid => "DIGEST_INVALID",
            Code::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Code::ManifestInvalid => "MANIFEST_INVALID",
            Code::ManifestUnknown => "MANIFEST_UNKNOWN",
            Code::NameInvalid => "NAME_INVALID",
            Code::NameUnknown => "NAME_UNKNOWN",
            Code::SizeInvalid => "SIZE_INVALID",
            Code::Unauthorized => "UNAUTHORIZED",
            Code::Denied => "DENIED",
            Code::Unsupported => "UNSUPPORTED",
            Code::TooManyRequests => "TOOMANYREQUESTS",
            Code::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Code::RangeInvalid => "RANGE_INVALID",
            Code::TagInvalid => "TAG_INVALID",
            Code::Unavailable => "UNAVAILABLE",
            Code::Unknown => "UNKNOWN",
        }
    }
}

/// An answer that says what went wrong. The first entry is what clients print.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    entries: Vec<Entry>,
    headers: HeaderMap,
}

#[derive(Debug, Serialize)]
struct Entry {
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Value::is_null")]
    detail: Value,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: Code, message: impl ToString) -> Problem {
        Problem::of(status).and(code, message)
    }

    /// One without entries yet.
    pub(super) fn of(status: StatusCode) -> Problem {
        Problem { status, entries: Vec::new(), headers: HeaderMap::new() }
    }

    /// One more entry.
    pub(super) fn and(mut self, code: Code, message: impl ToString) -> Problem {
        self.entries.push(Entry {
            code: code.as_str(),
            message: message.to_string(),
            detail: Value::Null,
        });
        self
    }

    /// The detail of the last entry.
    pub(super) fn detail(mut self, detail: Value) -> Problem {
        if let Some(entry) = self.entries.last_mut() {
            entry.detail = detail;
        }
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Problem {
        self.headers.insert(name, value);
        self
    }

    pub(super) fn into_response(self) -> Response {
        let body = serde_json::json!({ "errors": self.entries });
        let mut response = json(self.status, &body);
        response.headers_mut().extend(self.headers);
        response
    }
}

/// A JSON document.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    typed(status, JSON, body)
}

/// A JSON document of its own media type.
pub(super) fn typed(
    status: StatusCode,
    media_type: &'static str,
    body: &impl Serialize,
) -> Response {
    // Only maps with keys that are no strings fail, and there are none.
    document(status, media_type, serde_json::to_vec(body).unwrap_or_default())
}

/// A document as it is.
pub(super) fn document(status: StatusCode, media_type: &'static str, bytes: Vec<u8>) -> Response {
    let mut response = with_status(status);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    *response.body_mut() = Body::from(Bytes::from(bytes));
    response
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = with_status(status);
    // 204 and 304 have no length at all (RFC 9110, 8.6).
    if status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED {
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    response
}

pub(super) fn with_status(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// A header's value from text of ours: digests, names, tags, ids and numbers. What cannot stand in
/// a header is left out, so that no text can ever begin a second one.
pub(super) fn value(text: impl AsRef<str>) -> HeaderValue {
    let text = text.as_ref();
    HeaderValue::from_str(text).unwrap_or_else(|_| {
        let plain: String = text.chars().filter(|c| matches!(c, ' '..='~')).collect();
        HeaderValue::from_str(&plain).unwrap_or_else(|_| HeaderValue::from_static(""))
    })
}

/// What every answer says, whatever it answers.
pub(super) fn finish(response: &mut Response) {
    const COMMON: [(&str, &str); 3] = [
        // Old clients take a registry without it for one of the first version.
        ("docker-distribution-api-version", "registry/2.0"),
        // Blobs and manifests are anybody's bytes: no browser may run them.
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
    ];
    for (name, text) in COMMON {
        let name = HeaderName::from_static(name);
        let value = HeaderValue::from_static(text);
        response.headers_mut().entry(name).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_begin_another_header() {
        assert_eq!(value("a\r\nSet-Cookie: x"), "aSet-Cookie: x");
        assert_eq!(value("/v2/a/blobs/sha256:00"), "/v2/a/blobs/sha256:00");
        assert_eq!(value("ä\0"), "");
    }
}
