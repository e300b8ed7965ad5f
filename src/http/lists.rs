//! Lists: tags, referrers, the catalogue.

use axum::response::Response;
use http::StatusCode;
use http::header::{HeaderName, LINK};
use serde_json::json;

use super::encoding::encode;
use super::errors::Failure;
use super::reply::{self, value};
use super::route::Page;
use super::visit::Visit;
use crate::oci::{self, Descriptor, Digest, Kind, MAX_MANIFEST, RepoName, Tag};
use crate::registry;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

impl Visit {
    pub(super) async fn catalog(&self, page: &Page) -> Result<Response, Failure> {
        let (last, n, reader) = (page.last.as_deref(), page.n, self.account());
        let found = self.registry().catalog(last, n, self.may_read(), &reader).await?;
        let names: Vec<&str> = found.items.iter().map(RepoName::as_str).collect();
        let next = next(&found, names.last().copied(), "/v2/_catalog", page.n);
        Ok(linked(reply::json(StatusCode::OK, &json!({ "repositories": names })), next))
    }

    pub(super) async fn tags(&self, repo: &RepoName, page: &Page) -> Result<Response, Failure> {
        let found =
            self.registry().tags(repo, page.last.as_deref(), page.n, &self.account()).await?;
        let tags: Vec<&str> = found.items.iter().map(Tag::as_str).collect();
        let path = format!("/v2/{repo}/tags/list");
        let next = next(&found, tags.last().copied(), &path, page.n);
        let body = oci::tag_list(repo.as_str(), found.items.iter());
        Ok(linked(reply::document(StatusCode::OK, reply::JSON, body), next))
    }

    pub(super) async fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&Digest>,
    ) -> Result<Response, Failure> {
        let reader = self.account();
        let found = self.registry().referrers(repo, subject, artifact_type, last, &reader).await?;
        let (page, more) = cut(found, last, MAX_MANIFEST);
        let next = page.last().filter(|_| more).map(|end| {
            let filter = artifact_type.map(|text| format!("&artifactType={}", encode(text)));
            let filter = filter.unwrap_or_default();
            format!("/v2/{repo}/referrers/{subject}?last={}{filter}", end.digest)
        });
        let response = linked(index(&page), next);
        Ok(match artifact_type {
            Some(_) => filtered(response),
            None => response,
        })
    }
}

/// An index of these descriptors.
fn index(manifests: &[Descriptor]) -> Response {
    let body = oci::referrer_list(manifests);
    reply::document(StatusCode::OK, Kind::OciIndex.media_type(), body)
}

/// What a repository answers in which nothing refers to anything, and one that is not there.
pub(super) fn no_referrers(artifact_type: Option<&str>) -> Response {
    match artifact_type {
        Some(_) => filtered(index(&[])),
        None => index(&[]),
    }
}

fn filtered(mut response: Response) -> Response {
    response.headers_mut().insert(FILTERS_APPLIED, value("artifactType"));
    response
}

/// The descriptors after `last` that make a document of at most `most` bytes, which is what
/// clients read of a manifest; and whether more follow. One always fits.
fn cut(mut all: Vec<Descriptor>, last: Option<&Digest>, most: usize) -> (Vec<Descriptor>, bool) {
    // By digest, so that a page can say where it ended whatever is pushed meanwhile.
    all.sort_by(|a, b| a.digest.cmp(&b.digest));
    if let Some(last) = last {
        all.retain(|descriptor| descriptor.digest > *last);
    }
    let mut size = 200;
    let fitting = all.iter().take_while(|descriptor| {
        size += serde_json::to_vec(descriptor).map_or(0, |bytes| bytes.len() + 1);
        size <= most
    });
    let keep = fitting.count().max(1);
    let more = all.len() > keep;
    all.truncate(keep);
    (all, more)
}

fn next<T>(found: &registry::Page<T>, end: Option<&str>, path: &str, n: usize) -> Option<String> {
    let end = end.filter(|_| found.more)?;
    Some(format!("{path}?last={}&n={n}", encode(end)))
}

fn linked(mut response: Response, next: Option<String>) -> Response {
    if let Some(next) = next {
        let link = format!("<{next}>; rel=\"next\"");
        response.headers_mut().insert(LINK, value(link));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn pages_of_referrers_lose_none() {
        let all: Vec<Descriptor> = (0..50_u8)
            .map(|i| Descriptor::new("a/b", Digest::of(Algorithm::Sha256, &[i]), 1))
            .collect();
        let mut seen = Vec::new();
        let mut pages = 0;
        loop {
            let last = seen.last().cloned();
            let (page, more) = cut(all.clone(), last.as_ref(), 1000);
            seen.extend(page.into_iter().map(|descriptor| descriptor.digest));
            pages += 1;
            if !more {
                break;
            }
        }
        assert!(pages > 5, "{pages}");
        let mut wanted: Vec<Digest> = all.into_iter().map(|descriptor| descriptor.digest).collect();
        wanted.sort();
        assert_eq!(seen, wanted);
        assert_eq!(cut(Vec::new(), None, 1000).0.len(), 0);
    }
}
