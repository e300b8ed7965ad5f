//! Blobs: GET, HEAD, DELETE.

use axum::response::Response;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::audit;
use super::download;
use super::errors::{Failure, Refusal};
use super::reply::{self, CONTENT_DIGEST, value};
use super::visit::Visit;
use crate::oci::{ByteRange, Digest, RepoName};

/// Content that is named by its digest never changes.
pub(super) const FOREVER: &str = "max-age=31536000, immutable";

impl Visit {
    pub(super) async fn head_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Response, Failure> {
        let pusher = self.permit.promised.then(|| self.actor());
        let reader = self.account();
        let blob = self.registry().stat_blob(repo, digest, &reader, pusher.as_ref()).await?;
        if is_known(&self.headers, digest) {
            return Ok(not_modified(digest));
        }
        let mut response = reply::with_status(StatusCode::OK);
        describe(&mut response, digest, blob.size);
        Ok(response)
    }

    pub(super) async fn get_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Response, Failure> {
        let blob = self.registry().open_blob(repo, digest, &self.account()).await?;
        if is_known(&self.headers, digest) {
            return Ok(not_modified(digest));
        }
        if self.by_proxy
            && let Some(accel) = &self.app.settings.accel
            && let Some(response) = accel.answer(repo, digest, &blob)
        {
            return Ok(response);
        }
        let size = blob.size;
        let range = range(&self.headers, digest, size)?;
        let (status, first, len) = match range {
            Some(range) => (StatusCode::PARTIAL_CONTENT, range.first, range.len()),
            None => (StatusCode::OK, 0, size),
        };
        let mut response = reply::with_status(status);
        describe(&mut response, digest, len);
        if let Some(ByteRange { first, last }) = range {
            let text = format!("bytes {first}-{last}/{size}");
            response.headers_mut().insert(CONTENT_RANGE, value(text));
        }
        *response.body_mut() =
            download::of_blob(blob, (first, len), self.windows.as_ref(), &self.app.memory);
        Ok(response)
    }

    pub(super) async fn delete_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Response, Failure> {
        let (registry, actor) = (self.registry().clone(), self.actor());
        let (source, repo, digest) = (self.source(), repo.clone(), digest.clone());
        Self::to_the_end(async move {
            registry.delete_blob(&repo, &digest, &actor).await?;
            audit::blob_deleted(&source, &repo, &digest);
            Ok(())
        })
        .await?;
        Ok(reply::empty(StatusCode::ACCEPTED))
    }
}

/// An answer that tells of a blob, but not how long it is.
pub(super) fn described(digest: &Digest) -> Response {
    let mut response = reply::with_status(StatusCode::OK);
    describe(&mut response, digest, 0);
    response
}

fn describe(response: &mut Response, digest: &Digest, len: u64) {
    let headers = response.headers_mut();
    // Whatever the manifest calls it: a browser must not take it for a page.
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    name(headers, digest);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(FOREVER));
}

/// The digest as the two headers that name content.
pub(super) fn name(headers: &mut HeaderMap, digest: &Digest) {
    headers.insert(CONTENT_DIGEST, value(digest.as_str()));
    headers.insert(ETAG, value(["\"", digest.as_str(), "\""].concat()));
}

pub(super) fn not_modified(digest: &Digest) -> Response {
    let mut response = reply::empty(StatusCode::NOT_MODIFIED);
    name(response.headers_mut(), digest);
    response
}

/// `If-None-Match` (RFC 9110, 13.1.2): does the client have this content already?
pub(super) fn is_known(headers: &HeaderMap, digest: &Digest) -> bool {
    let lines = headers.get_all(IF_NONE_MATCH).iter();
    let tags = lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    tags.map(str::trim).any(|tag| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        tag == "*" || tag.trim_matches('"') == digest.as_str()
    })
}

/// The part that is asked for, if it is one; `If-Range` (RFC 9110, 13.1.5) may set it aside.
fn range(headers: &HeaderMap, digest: &Digest, size: u64) -> Result<Option<ByteRange>, Refusal> {
    let Some(range) = headers.get(RANGE) else {
        return Ok(None);
    };
    if let Some(validator) = headers.get(IF_RANGE)
        && validator.as_bytes() != format!("\"{digest}\"").as_bytes()
    {
        return Ok(None);
    }
    let text = range.to_str().map_err(|_| Refusal::Range { size })?;
    ByteRange::parse(text, size).map_err(|_| Refusal::Range { size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn headers(name: http::header::HeaderName, text: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value(text))])
    }

    #[test]
    fn entity_tags_are_compared_weakly() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        for good in [format!("\"{digest}\""), format!("\"a\", W/\"{digest}\""), "*".to_owned()] {
            assert!(is_known(&headers(IF_NONE_MATCH, &good), &digest), "{good}");
        }
        for bad in ["", "\"\"", "\"sha256:00\""] {
            assert!(!is_known(&headers(IF_NONE_MATCH, bad), &digest), "{bad}");
        }
        assert!(!is_known(&HeaderMap::new(), &digest));
    }

    #[test]
    fn a_range_of_other_content_is_set_aside() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let mut asked = headers(RANGE, "bytes=1-2");
        assert!(range(&asked, &digest, 9).unwrap().is_some());
        assert!(matches!(range(&asked, &digest, 1), Err(Refusal::Range { size: 1 })));
        asked.insert(IF_RANGE, value(format!("\"{digest}\"")));
        assert!(range(&asked, &digest, 9).unwrap().is_some());
        asked.insert(IF_RANGE, value("\"other\""));
        assert!(range(&asked, &digest, 9).unwrap().is_none());
    }
}
