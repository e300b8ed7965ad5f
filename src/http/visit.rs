//! One request that passed the gate: what its handlers need.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName};

use super::App;
use super::audit::{RequestId, Source};
use super::body::Upload;
use super::errors::{Failure, Refusal};
use super::gate::Permit;
use super::route::Deed;
use super::sendfile::Windows;
use crate::access;
use crate::auth::{self, Caller, Right, Who};
use crate::layout::Account;
use crate::oci::RepoName;
use crate::registry::{self, Actor, MayRead, Registry};

/// Who asks, with which headers, and of whom.
pub(super) struct Visit {
    pub(super) app: Arc<App>,
    pub(super) caller: Caller,
    pub(super) permit: Permit,
    pub(super) client: IpAddr,
    /// A trusted proxy passes the request on.
    pub(super) by_proxy: bool,
    pub(super) request: RequestId,
    pub(super) headers: HeaderMap,
    /// Where the connection can send files.
    pub(super) windows: Option<Windows>,
}

impl Visit {
    /// Does what the request asks of a repository.
    pub(super) async fn perform(
        &self,
        repo: &RepoName,
        deed: &Deed,
        body: Body,
    ) -> Result<Response, Failure> {
        match deed {
            Deed::ReadBlob { digest, head: true } => self.head_blob(repo, digest).await,
            Deed::ReadBlob { digest, head: false } => self.get_blob(repo, digest).await,
            Deed::DeleteBlob(digest) => self.delete_blob(repo, digest).await,
            Deed::ReadManifest { reference, head } => {
                self.read_manifest(repo, reference, *head).await
            }
            Deed::PutManifest { reference, tags } => {
                self.put_manifest(repo, reference, tags, body).await
            }
            Deed::DeleteManifest(reference) => self.delete_manifest(repo, reference).await,
            Deed::BeginUpload { algorithm } => self.begin_upload(repo, *algorithm).await,
            Deed::PutBlob(digest) => self.put_blob(repo, digest, body).await,
            Deed::Mount { digest, from, algorithm } => {
                self.mount(repo, digest, from.as_ref(), *algorithm).await
            }
            Deed::UploadStatus(id) => self.upload_status(repo, id).await,
            Deed::AppendUpload(id) => self.append_upload(repo, id, body).await,
            Deed::FinishUpload { id, digest } => self.finish_upload(repo, id, digest, body).await,
            Deed::CancelUpload(id) => self.cancel_upload(repo, id).await,
            Deed::Tags(page) => self.tags(repo, page).await,
            Deed::Referrers { subject, artifact_type, last } => {
                let kind = artifact_type.as_deref();
                self.referrers(repo, subject, kind, last.as_ref()).await
            }
        }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.app.registry
    }

    pub(super) fn actor(&self) -> Actor {
        Actor {
            who: self.caller.who.name().map(str::to_owned),
            from: Some(self.client),
            account: self.account(),
        }
    }

    /// Who and which request it is, for the record.
    pub(super) fn source(&self) -> Source {
        let who = self.caller.who.name().map(str::to_owned);
        Source { who, client: self.client, request: self.request.clone() }
    }

    /// Does what changes a repository to its end, and has it recorded, even if the client hangs up.
    pub(super) async fn to_the_end<T: Send + 'static>(
        deed: impl Future<Output = registry::Result<T>> + Send + 'static,
    ) -> registry::Result<T> {
        tokio::spawn(deed).await.unwrap_or(Err(registry::Error::Internal))
    }

    /// What the caller may read of what others put there, and whose rights are in what is made.
    pub(super) fn account(&self) -> Account {
        self.permit.account.clone()
    }

    /// The caller let through to another repository, if they may pull from it, whatever their token
    /// names.
    pub(super) fn may_pull(&self, repo: &RepoName) -> Option<Account> {
        may_pull(&self.app, &self.caller.who, repo).unwrap_or_else(|error| {
            tracing::warn!(cause = ?error.to_string(), "a repository is passed over");
            None
        })
    }

    /// Permissions alone: a client that asks for no particular source cannot have asked for a token
    /// that names one.
    pub(super) fn may_read(&self) -> MayRead {
        let (app, who) = (Arc::clone(&self.app), self.caller.who.clone());
        Arc::new(move |repo: &RepoName| may_pull(&app, &who, repo))
    }

    /// A request's body, for a push to a repository: whoever may not push there any more when it
    /// ends is refused.
    pub(super) fn upload(&self, repo: &RepoName, body: Body) -> Upload {
        let (app, who, repo) = (Arc::clone(&self.app), self.caller.who.clone(), repo.clone());
        Upload::new(body, self.patience()).allowed_while(move || {
            match app.registry.way(&repo, true) {
                Ok(found)
                    if app.auth.judge(&who, &access::way(&found), auth::Action::Push).right
                        == Right::Yes =>
                {
                    Ok(())
                }
                _ => Err(Refusal::Revoked(repo.to_string())),
            }
        })
    }

    /// How long a client may send nothing.
    pub(super) fn patience(&self) -> Duration {
        self.app.settings.patience
    }

    /// A digest names the bytes that are sent, so they must not be packed on the way.
    pub(super) fn refuse_encodings(&self) -> Result<(), Refusal> {
        for value in self.headers.get_all(CONTENT_ENCODING) {
            if !value.as_bytes().eq_ignore_ascii_case(b"identity") {
                let text = String::from_utf8_lossy(value.as_bytes());
                return Err(Refusal::ContentEncoding(text.chars().take(40).collect()));
            }
        }
        Ok(())
    }

    pub(super) fn content_length(&self) -> Result<Option<u64>, Refusal> {
        let text = self.text(CONTENT_LENGTH, "Content-Length")?;
        text.map(|text| text.parse().map_err(|_| Refusal::Header("Content-Length"))).transpose()
    }

    pub(super) fn content_type(&self) -> Result<Option<String>, Refusal> {
        self.text(CONTENT_TYPE, "Content-Type")
    }

    fn text(&self, name: HeaderName, shown: &'static str) -> Result<Option<String>, Refusal> {
        let mut values = self.headers.get_all(name).iter();
        let first = values.next();
        if values.next().is_some() {
            return Err(Refusal::Doubled(shown));
        }
        let text = first.map(|value| value.to_str().map_err(|_| Refusal::Header(shown)));
        Ok(text.transpose()?.map(str::to_owned))
    }
}

/// The caller let through to a repository, if the permissions do.
fn may_pull(app: &App, who: &Who, repo: &RepoName) -> registry::Result<Option<Account>> {
    let found = app.registry.way(repo, false)?;
    let judgement = app.auth.judge(who, &access::way(&found), auth::Action::Pull);
    let account = || access::account(*app.auth.policy(), who).having_seen(repo, &found);
    Ok((judgement.right == Right::Yes).then(account))
}
