//! One client's connection: which protocol it speaks, and its requests.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::App;
use super::conn::Socket;
use super::errors::Refusal;
use super::head::{MAX_HEAD, MAX_LINES};
use super::http2::{self, Streams};
use super::places::Place;
use super::sendfile::{Outlet, Windows};
use super::strict::Strict;
use super::tls::{HTTP2, Tls};

/// hyper's buffers, of which an idle connection keeps one as large as it needed last. An upload is
/// hashed and written in pieces of what one read gives.
const BUFFER: usize = 256 * 1024;

/// How much of an answer the kernel takes that it cannot send yet. By itself it takes megabytes, and
/// says that there is room again only when a third of them is gone: a client that takes 20 KB a
/// second would seem to take nothing for a minute, and be cut off.
const UNSENT: u32 = 128 * 1024;

/// How long a connection that has no place may take to hear it.
const AT_THE_DOOR: Duration = Duration::from_secs(5);

/// The first byte of a TLS handshake; no HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What is said to a client that speaks TLS: containerd goes on without TLS after just this.
const NO_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 49\r\nConnection: close\r\n\r\nThis server speaks HTTP; the client speaks TLS.\r\n";

/// One client's connection.
pub(super) struct Connection {
    app: Arc<App>,
    peer: SocketAddr,
    stopped: watch::Receiver<bool>,
}

impl Connection {
    pub(super) fn new(
        app: Arc<App>,
        peer: SocketAddr,
        stopped: watch::Receiver<bool>,
    ) -> Connection {
        Connection { app, peer, stopped }
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Tells a client that there is no place for it, and closes. One that expects TLS is not told:
    /// a handshake would cost more than many a request.
    pub(super) async fn turn_away(self, stream: TcpStream, full: Refusal) {
        if self.app.settings.tls.is_none() {
            let talk = self.http1(Socket::new(stream, AT_THE_DOOR), Some(full));
            let _ = tokio::time::timeout(AT_THE_DOOR, talk).await;
        }
    }

    /// Serves requests until either side ends the connection, which then gives its place back.
    pub(super) async fn serve(self, stream: TcpStream, place: Place) {
        // Answers are written whole; waiting for more would only delay them.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
        let speaks_tls = tokio::select! {
            speaks_tls = self.speaks_tls(&stream) => speaks_tls,
            () = self.told() => return,
        };
        match (speaks_tls, self.app.settings.tls.clone()) {
            (Ok(true), Some(tls)) => self.tls(&tls, stream, &place).await,
            (Ok(false), None) => self.plain(stream).await,
            (Ok(false), Some(_)) => {
                self.http1(self.socket(stream), Some(Refusal::NeedsTls)).await;
            }
            (Ok(true), None) => {
                log_tls_once(self.peer);
                let _ = refuse_tls(self.socket(stream)).await;
            }
            (Err(error), _) => self.log(&error, "a connection said nothing"),
        }
    }

    fn socket<S>(&self, stream: S) -> Socket<S> {
        Socket::new(stream, self.app.settings.patience)
    }

    fn log(&self, error: &dyn std::error::Error, what: &'static str) {
        tracing::debug!(peer = %self.peer, error = ?error.to_string(), what);
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

    /// A handshake, then the protocol that the client chose in it.
    async fn tls(self, tls: &Tls, stream: TcpStream, place: &Place) {
        let acceptor = TlsAcceptor::from(tls.current().await);
        let handshake = tokio::time::timeout(self.app.settings.patience, acceptor.accept(stream));
        let stream = tokio::select! {
            done = handshake => match done {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return self.log(&error, "a TLS handshake failed"),
                Err(late) => return self.log(&late, "a TLS handshake took too long"),
            },
            () = self.told() => return,
        };
        if stream.get_ref().1.alpn_protocol() == Some(HTTP2) {
            self.http2(self.socket(stream), place).await;
        } else {
            self.http1(self.socket(stream), None).await;
        }
    }

    /// HTTP/1 with nothing around it: the kernel may send files.
    async fn plain(&self, stream: TcpStream) {
        let windows = Windows::default();
        let outlet = Outlet::new(stream, windows.clone());
        self.http1_with(self.socket(outlet), None, Some(windows)).await;
    }

    /// HTTP/1; with `refusal` every request is answered with that.
    async fn http1(
        &self,
        socket: Socket<impl AsyncRead + AsyncWrite + Unpin>,
        refusal: Option<Refusal>,
    ) {
        self.http1_with(socket, refusal, None).await;
    }

    async fn http1_with(
        &self,
        socket: Socket<impl AsyncRead + AsyncWrite + Unpin>,
        refusal: Option<Refusal>,
        windows: Option<Windows>,
    ) {
        let strict = Strict::new(socket);
        let refusals = strict.refusals();
        let peer = self.peer.ip().to_canonical();
        let service = service_fn(|mut request: Request<Incoming>| {
            if let Some(windows) = &windows {
                request.extensions_mut().insert(windows.clone());
            }
            let app = Arc::clone(&self.app);
            let refused = refusals.next();
            let refusal = refusal.clone();
            async move {
                let refusal = refused.map(|refused| refused.why.clone().into()).or(refusal);
                let Some(refusal) = refusal else {
                    return Ok::<_, Infallible>(app.answer(http2::plain(request), peer).await);
                };
                let (mut request, _) = request.into_parts();
                if let Some((method, target)) = refused.and_then(|refused| refused.asked.clone()) {
                    (request.method, request.uri) = (method, target);
                }
                let mut response = app.refuse(&request, refusal, peer);
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                Ok(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.app.settings.patience)
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_LINES)
            .max_buf_size(BUFFER)
            // Whatever the connection says of itself: what is mapped must not be copied.
            .writev(true)
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
            self.log(&error, "a connection ended badly");
        }
    }

    /// HTTP/2: every request takes a place of its own, as it would on a connection of its own.
    async fn http2(&self, socket: Socket<TlsStream<TcpStream>>, place: &Place) {
        let patience = self.app.settings.patience;
        let streams = Streams::new(patience);
        let peer = self.peer.ip().to_canonical();
        let service = service_fn(|request: Request<Incoming>| {
            let (app, streams) = (Arc::clone(&self.app), streams.clone());
            let place = place.another(peer);
            async move {
                let answer = async {
                    let checked = http2::check(&request).map_err(Refusal::from);
                    match checked.and(place) {
                        Ok(place) => {
                            http2::keep(place);
                            app.answer(http2::plain(request), peer).await
                        }
                        Err(refusal) => app.refuse(&request.into_parts().0, refusal, peer),
                    }
                };
                streams.answer(answer).await
            }
        });
        let connection = streams.builder().serve_connection(TokioIo::new(socket), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = streams.too_many_taken_back() => {
                tracing::warn!(peer = %self.peer, "an HTTP/2 client took back too many requests");
                return;
            }
            () = streams.idle() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(patience, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
            () = self.told() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            self.log(&error, "a connection ended badly");
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
            "a client speaks TLS here: podman --tls-verify=false, or serve with TLS"
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
