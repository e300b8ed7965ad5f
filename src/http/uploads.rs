//! Uploads: whole, in a session, or as a mount of what is there already.

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_RANGE, HeaderName, LOCATION, RANGE};

use super::errors::{Failure, Refusal, upload_range};
use super::reply::{self, CONTENT_DIGEST, value};
use super::visit::Visit;
use crate::auth;
use crate::oci::{Algorithm, ContentRange, Digest, RepoName};
use crate::registry::{MountFrom, UploadId, UploadStatus};

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

impl Visit {
    pub(super) async fn begin_upload(
        &self,
        repo: &RepoName,
        algorithm: Option<Algorithm>,
    ) -> Result<Response, Failure> {
        let status = self.registry().begin_upload(repo, algorithm, &self.actor()).await?;
        Ok(progress(StatusCode::ACCEPTED, repo, &status))
    }

    pub(super) async fn put_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        body: Body,
    ) -> Result<Response, Failure> {
        self.refuse_encodings()?;
        let body = self.upload(repo, body);
        self.registry().put_blob(repo, &self.actor(), body, digest).await?;
        Ok(stored(repo, digest))
    }

    /// What cannot be mounted is uploaded: whatever the reason, the client is told the same.
    pub(super) async fn mount(
        &self,
        repo: &RepoName,
        digest: &Digest,
        from: Option<&RepoName>,
        algorithm: Option<Algorithm>,
    ) -> Result<Response, Failure> {
        let from = match from {
            None => Some(MountFrom::Anywhere(self.may_read())),
            Some(from) => {
                let granted = self.caller.granted.reaches(from, auth::Action::Pull);
                let reader = if granted { self.may_pull(from) } else { None };
                reader.map(|reader| MountFrom::Repo(from.clone(), reader))
            }
        };
        if let Some(from) = from
            && self.registry().mount(repo, digest, from, &self.actor()).await?
        {
            return Ok(stored(repo, digest));
        }
        self.begin_upload(repo, algorithm).await
    }

    pub(super) async fn upload_status(
        &self,
        repo: &RepoName,
        id: &UploadId,
    ) -> Result<Response, Failure> {
        let status = self.registry().upload_status(repo, id, &self.actor()).await?;
        Ok(progress(StatusCode::NO_CONTENT, repo, &status))
    }

    pub(super) async fn append_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
        body: Body,
    ) -> Result<Response, Failure> {
        self.refuse_encodings()?;
        let range = self.chunk(repo, id).await?;
        let body = self.upload(repo, body);
        let status = self.registry().append_upload(repo, id, &self.actor(), range, body).await?;
        Ok(progress(StatusCode::ACCEPTED, repo, &status))
    }

    pub(super) async fn finish_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
        digest: &Digest,
        body: Body,
    ) -> Result<Response, Failure> {
        self.refuse_encodings()?;
        let range = self.chunk(repo, id).await?;
        let body = self.upload(repo, body);
        self.registry().finish_upload(repo, id, &self.actor(), range, body, digest).await?;
        Ok(stored(repo, digest))
    }

    pub(super) async fn cancel_upload(
        &self,
        repo: &RepoName,
        id: &UploadId,
    ) -> Result<Response, Failure> {
        self.registry().cancel_upload(repo, id, &self.actor()).await?;
        Ok(reply::empty(StatusCode::NO_CONTENT))
    }

    /// `Content-Range`, if the request has one. One that cannot be read is answered like one that
    /// does not follow: with where the upload stands.
    async fn chunk(&self, repo: &RepoName, id: &UploadId) -> Result<Option<ContentRange>, Failure> {
        let mut values = self.headers.get_all(CONTENT_RANGE).iter();
        let Some(first) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(Refusal::Doubled("Content-Range").into());
        }
        let text = first.to_str().map_err(|_| Refusal::Header("Content-Range"))?;
        let why = match ContentRange::parse(text) {
            Ok(range) => return Ok(Some(range)),
            Err(error) => error.to_string(),
        };
        let status = self.registry().upload_status(repo, id, &self.actor()).await?;
        Err(Failure::Chunk { repo: repo.clone(), id: status.id, size: status.size, why })
    }
}

fn progress(code: StatusCode, repo: &RepoName, status: &UploadStatus) -> Response {
    let mut response = reply::empty(code);
    let id = status.id.as_str();
    let headers = response.headers_mut();
    headers.insert(LOCATION, value(format!("/v2/{repo}/blobs/uploads/{id}")));
    headers.insert(RANGE, value(upload_range(status.size)));
    headers.insert(UPLOAD_UUID, value(id));
    response
}

fn stored(repo: &RepoName, digest: &Digest) -> Response {
    let mut response = reply::empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, value(format!("/v2/{repo}/blobs/{digest}")));
    headers.insert(CONTENT_DIGEST, value(digest.as_str()));
    response
}
