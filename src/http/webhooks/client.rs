//! Posting to a receiver: one request on a connection of its own, and no redirect followed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Request, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::envelope::MEDIA_TYPE;
use super::url::WebhookUrl;

/// How long a receiver may take, from the connection to its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// So much of an answer's body is taken before the connection is closed.
const MOST_OF_BODY: usize = 64 * 1024;

/// Why something was not taken.
#[derive(Debug, Error)]
pub(super) enum PostError {
    /// It was not reached, or the connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It does not speak HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The certificates of the host, or the name, are of no use.
    #[error("{0}")]
    Tls(String),
    /// It answered something else than that it has taken it.
    #[error("it answered {0}")]
    Status(StatusCode),
    /// It took too long.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Slow,
}

/// A client of one receiver.
#[derive(Default)]
pub(super) struct Client {
    /// Whom to trust, as the host does; read when it is needed, and again after a failure.
    tls: Option<Arc<ClientConfig>>,
}

impl Client {
    /// Posts an envelope. Any 2xx means that it was taken.
    pub(super) async fn post(&mut self, url: &WebhookUrl, body: Vec<u8>) -> Result<(), PostError> {
        let posted = tokio::time::timeout(PATIENCE, self.send(url, body)).await;
        let posted = posted.unwrap_or(Err(PostError::Slow));
        if posted.is_err() {
            self.tls = None;
        }
        posted
    }

    async fn send(&mut self, url: &WebhookUrl, body: Vec<u8>) -> Result<(), PostError> {
        let stream = TcpStream::connect((url.host(), url.port())).await?;
        if !url.tls() {
            return exchange(stream, url, body).await;
        }
        let config = match &self.tls {
            Some(config) => Arc::clone(config),
            None => Arc::clone(self.tls.insert(trust()?)),
        };
        let wrong = |_| PostError::Tls("its name cannot be in a certificate".to_owned());
        let name = ServerName::try_from(url.host().to_owned()).map_err(wrong)?;
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        exchange(stream, url, body).await
    }
}

/// Whom the host trusts.
fn trust() -> Result<Arc<ClientConfig>, PostError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (good, _) = roots.add_parsable_certificates(found.certs);
    if good == 0 {
        let why = "the host has no certificates of authorities that it trusts";
        return Err(PostError::Tls(why.to_owned()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| PostError::Tls(error.to_string()))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

async fn exchange<S>(stream: S, url: &WebhookUrl, body: Vec<u8>) -> Result<(), PostError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::post(url.path().as_str())
        .header(HOST, url.authority())
        .header(USER_AGENT, concat!("stillage/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, MEDIA_TYPE)
        .header(CONNECTION, "close");
    if let Some(authorization) = url.authorization() {
        request = request.header(AUTHORIZATION, authorization);
    }
    let request = request
        .body(Body::from(body))
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        // Whoever answers is not cut off while it does, unless it never ends.
        let _ = axum::body::to_bytes(Body::new(answer.into_body()), MOST_OF_BODY).await;
        if status.is_success() { Ok(()) } else { Err(PostError::Status(status)) }
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        answered = &mut exchange => answered,
        // The connection may end with the answer.
        ended = &mut connection => match exchange.await {
            Err(PostError::Http(_)) if ended.is_err() => ended.map_err(PostError::Http),
            answered => answered,
        },
    }
}
