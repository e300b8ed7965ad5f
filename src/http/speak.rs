//! One client's connection: which protocol it speaks, and its requests.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::App;
use super::conn::Socket;
use super::head::{MAX_HEAD, MAX_LINES};
use super::strict::Strict;

/// hyper's buffers: large, because an upload is hashed and written in pieces of what one read gives.
const BUFFER: usize = 1024 * 1024;

/// The first byte of a TLS handshake; no HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What is said to a client that speaks TLS: containerd goes on without TLS after just this.
const NO_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 49\r\nConnection: close\r\n\r\nThis server speaks HTTP; the client speaks TLS.\r\n";

/// One client's connection and its place among them all.
pub(super) struct Connection {
    app: Arc<App>,
    peer: SocketAddr,
    stopped: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn new(
        app: Arc<App>,
        peer: SocketAddr,
        stopped: watch::Receiver<bool>,
        place: OwnedSemaphorePermit,
    ) -> Connection {
        Connection { app, peer, stopped, _place: place }
    }

    /// Serves requests until either side ends the connection.
    pub(super) async fn serve(self, stream: TcpStream) {
        // Answers are written whole; waiting for more would only delay them.
        let _ = stream.set_nodelay(true);
        let tls = tokio::select! {
            tls = self.speaks_tls(&stream) => tls,
            () = self.told() => return,
        };
        let socket = Socket::new(stream, self.app.settings.patience);
        match tls {
            Ok(false) => self.http1(socket).await,
            Ok(true) => {
                log_tls_once(self.peer);
                let _ = refuse_tls(socket).await;
            }
            Err(error) => tracing::debug!(peer = %self.peer, %error, "a connection said nothing"),
        }
    }

    /// Waits for the client's first byte: does it speak TLS?
    async fn speaks_tls(&self, stream: &TcpStream) -> io::Result<bool> {
        let mut first = [0];
        let peek = stream.peek(&mut first);
        match tokio::time::timeout(self.app.settings.patience, peek).await {
            Ok(read) => Ok(read? == 1 && first[0] == TLS_HANDSHAKE),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    async fn http1(self, socket: Socket<impl AsyncRead + AsyncWrite + Unpin>) {
        let strict = Strict::new(socket);
        let refusals = strict.refusals();
        let peer = self.peer.ip().to_canonical();
        let service = service_fn(|request: Request<Incoming>| {
            let app = Arc::clone(&self.app);
            let refused = refusals.next();
            async move {
                let Some(refused) = refused else {
                    return Ok::<_, Infallible>(app.answer(request.map(Body::new), peer).await);
                };
                let (mut request, _) = request.into_parts();
                if let Some((method, target)) = refused.asked.clone() {
                    (request.method, request.uri) = (method, target);
                }
                Ok(app.refuse(&request, refused.why.clone().into(), peer))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.app.settings.patience)
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_LINES)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(strict), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.told() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %self.peer, error = ?error.to_string(), "a connection ended badly");
        }
    }

    /// Waits until the server was told to stop.
    async fn told(&self) {
        let _ = self.stopped.clone().wait_for(|stopped| *stopped).await;
    }
}

/// Tells a client that there is no TLS here, and closes.
async fn refuse_tls(mut socket: Socket<TcpStream>) -> io::Result<()> {
    socket.write_all(NO_TLS).await?;
    socket.shutdown().await
}

fn log_tls_once(peer: SocketAddr) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            %peer,
            "a client speaks TLS here: podman --tls-verify=false, or serve with --tls-cert"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_tls_is_as_long_as_it_says() {
        let text = str::from_utf8(NO_TLS).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
