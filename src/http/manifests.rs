//! Manifests: GET, HEAD, PUT, DELETE.

use axum::body::Body;
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, LOCATION};
use http::{HeaderValue, StatusCode};

use super::audit;
use super::blobs::{FOREVER, is_known, name, not_modified};
use super::errors::{self, Failure, Refusal};
use super::reply::{self, CONTENT_DIGEST, value};
use super::visit::Visit;
use crate::oci::{MAX_MANIFEST, Reference, RepoName, Tag};
use crate::registry::{Push, Pushed};

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

impl Visit {
    /// `Accept` changes nothing: the stored bytes are what their digest names.
    pub(super) async fn read_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        head: bool,
    ) -> Result<Response, Failure> {
        let manifest = self.registry().manifest(repo, reference, &self.account()).await?;
        if is_known(&self.headers, &manifest.digest) {
            return Ok(not_modified(&manifest.digest));
        }
        let mut response = reply::with_status(StatusCode::OK);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, value(&manifest.media_type));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(manifest.bytes.len()));
        name(headers, &manifest.digest);
        let keep = match reference {
            Reference::Digest(_) => FOREVER,
            // A tag may name something else at any time.
            Reference::Tag(_) => "no-cache",
        };
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(keep));
        if !head {
            *response.body_mut() = Body::from(manifest.bytes);
        }
        Ok(response)
    }

    pub(super) async fn put_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
        tags: &[Tag],
        body: Body,
    ) -> Result<Response, Failure> {
        self.refuse_encodings()?;
        if self.content_length()?.is_some_and(|len| len > MAX_MANIFEST as u64) {
            return Err(Refusal::ManifestTooLarge.into());
        }
        let body = self.upload(repo, body).collect(MAX_MANIFEST, &self.app.memory).await;
        let bytes = body.map_err(|error| errors::body(&error))?;
        let push = Push {
            reference: reference.clone(),
            tags: tags.to_vec(),
            content_type: self.content_type()?,
            bytes: bytes.ok_or(Refusal::ManifestTooLarge)?,
        };
        let (registry, actor) = (self.registry().clone(), self.actor());
        let (source, name) = (self.source(), repo.clone());
        let pushed = Self::to_the_end(async move {
            let pushed = registry.put_manifest(&name, push, &actor).await?;
            audit::changed(&source, &name, &pushed.changes);
            Ok(pushed)
        });
        Ok(created(repo, &pushed.await?))
    }

    pub(super) async fn delete_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Response, Failure> {
        let (registry, actor) = (self.registry().clone(), self.actor());
        let (source, repo, reference) = (self.source(), repo.clone(), reference.clone());
        Self::to_the_end(async move {
            let changes = registry.delete_manifest(&repo, &reference, &actor).await?;
            audit::changed(&source, &repo, &changes);
            Ok(())
        })
        .await?;
        Ok(reply::empty(StatusCode::ACCEPTED))
    }
}

fn created(repo: &RepoName, pushed: &Pushed) -> Response {
    let mut response = reply::empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    let location = format!("/v2/{repo}/manifests/{}", pushed.digest);
    headers.insert(LOCATION, value(location));
    headers.insert(CONTENT_DIGEST, value(pushed.digest.as_str()));
    if let Some(subject) = &pushed.subject {
        headers.insert(OCI_SUBJECT, value(subject.as_str()));
    }
    if !pushed.tags.is_empty() {
        let tags: Vec<&str> = pushed.tags.iter().map(Tag::as_str).collect();
        headers.insert(OCI_TAG, value(tags.join(", ")));
    }
    response
}
