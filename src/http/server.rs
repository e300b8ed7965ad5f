//! The listener: accepts connections, bounds them, and lets requests finish when it must stop.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use futures_util::{Stream, StreamExt};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::conn::Socket;
use super::{App, Settings};
use crate::auth::Auth;
use crate::registry::Registry;

/// The most bytes of a request's head, and the most of its lines.
const MAX_HEAD: usize = 64 * 1024;
const MAX_LINES: usize = 100;

/// hyper's buffers: large, because an upload is hashed and written in pieces of what one read gives.
const BUFFER: usize = 1024 * 1024;

/// A listener with a registry behind it.
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
}

impl Server {
    /// Listens at `address`; port 0 takes any that is free.
    pub async fn bind(
        address: SocketAddr,
        registry: Registry,
        auth: Auth,
        settings: Settings,
    ) -> io::Result<Server> {
        let listener = TcpListener::bind(address).await?;
        let app = Arc::new(App { registry, auth, settings });
        Ok(Server { listener, app })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The second line of the start report.
    pub fn who_can_log_in(&self) -> String {
        self.app.auth.who_can_log_in()
    }

    /// Serves until `stop` yields; then no more connections are taken, and requests in flight may
    /// finish until [`Settings::farewell`] is over or `stop` yields again.
    pub async fn run(self, mut stop: impl Stream<Item = ()> + Unpin) {
        let Server { listener, app } = self;
        let places = Arc::new(Semaphore::new(app.settings.connections));
        let (stopping, stopped) = watch::channel(false);
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &places) => accepted,
                _ = stop.next() => break,
            };
            let (stream, peer, place) = accepted;
            let connection =
                Connection { app: Arc::clone(&app), peer, stopped: stopped.clone(), _place: place };
            tokio::spawn(connection.serve(stream));
        }
        drop(listener);
        let _ = stopping.send(true);
        tracing::info!("stopping: requests in flight may finish");
        let all = u32::try_from(app.settings.connections).unwrap_or(u32::MAX);
        tokio::select! {
            _ = places.acquire_many(all) => {}
            () = tokio::time::sleep(app.settings.farewell) => tracing::warn!("some requests were cut off"),
            _ = stop.next() => tracing::warn!("told twice: some requests were cut off"),
        }
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    loop {
        let Ok(place) = Arc::clone(places).acquire_owned().await else {
            // Nobody closes the semaphore.
            std::future::pending::<()>().await;
            continue;
        };
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                // Out of descriptors, mostly: without a pause this would spin until one is free.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One client's connection and its place among them all.
struct Connection {
    app: Arc<App>,
    peer: SocketAddr,
    stopped: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        // Answers are written whole; waiting for more would only delay them.
        let _ = stream.set_nodelay(true);
        let socket = Socket::new(stream, self.app.settings.patience);
        let tls = tokio::select! {
            tls = socket.speaks_tls() => tls,
            () = told(self.stopped.clone()) => return,
        };
        match tls {
            Ok(false) => self.speak_http(socket).await,
            Ok(true) => {
                log_tls_once(self.peer);
                let _ = socket.refuse_tls().await;
            }
            Err(error) => tracing::debug!(peer = %self.peer, %error, "a connection said nothing"),
        }
    }

    async fn speak_http(self, socket: Socket) {
        let app = Arc::clone(&self.app);
        let peer = self.peer.ip().to_canonical();
        let service = service_fn(move |request: http::Request<Incoming>| {
            let app = Arc::clone(&app);
            async move { Ok::<_, Infallible>(app.answer(request.map(Body::new), peer).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.app.settings.patience)
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_LINES)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(socket), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = told(self.stopped.clone()) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %self.peer, error = ?error.to_string(), "a connection ended badly");
        }
    }
}

/// Waits until the server was told to stop.
async fn told(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
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
