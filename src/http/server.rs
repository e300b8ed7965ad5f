//! The listener: accepts connections, bounds them, and lets requests finish when it must stop.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::errors::Refusal;
use super::faults::Fault;
use super::places::Places;
use super::speak::Connection;
use super::{App, Settings};
use crate::auth::Auth;
use crate::registry::Registry;

/// So many connections without a place are told so at once; any more are closed. There are also no
/// more of them than an eighth of those with one: each takes a descriptor.
const AT_THE_DOOR: usize = 256;

/// How often the log may say that some were turned away.
const SAID: Duration = Duration::from_secs(60);

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
        let app = Arc::new(App { registry, auth, settings, memory: Arc::default() });
        Ok(Server { listener, app })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The URL under which clients reach it, as far as the server knows.
    pub fn url(&self) -> io::Result<String> {
        let settings = &self.app.settings;
        if let Some(url) = &settings.external_url {
            return Ok(url.as_str().to_owned());
        }
        let scheme = if settings.tls.is_some() { "https" } else { "http" };
        let address = self.address()?;
        if !address.ip().is_unspecified() {
            return Ok(format!("{scheme}://{address}"));
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(format!("{scheme}://{host}:{}", address.port()))
    }

    /// The second line of the start report.
    pub fn who_can_log_in(&self) -> String {
        self.app.auth.who_can_log_in()
    }

    /// Serves until `stop` yields; then no more connections are taken, and requests in flight may
    /// finish until [`Settings::farewell`] is over or `stop` yields again.
    pub async fn run(self, mut stop: impl Stream<Item = ()> + Unpin) {
        let Server { listener, app } = self;
        let Settings { connections, connections_each, trusted_proxies, .. } = &app.settings;
        let each = connections_each.unwrap_or(connections.div_ceil(4));
        let places = Places::new(*connections, each, trusted_proxies.clone());
        let mut door = Door::new((connections / 8).clamp(1, AT_THE_DOOR));
        let (stopping, stopped) = watch::channel(false);
        loop {
            let (stream, peer) = tokio::select! {
                accepted = accept(&listener) => accepted,
                _ = stop.next() => break,
            };
            let connection = Connection::new(Arc::clone(&app), peer, stopped.clone());
            match places.take(peer.ip()) {
                Ok(place) => drop(tokio::spawn(connection.serve(stream, place))),
                Err(full) => door.turn_away(connection, stream, full),
            }
        }
        drop(listener);
        let _ = stopping.send(true);
        tracing::info!("stopping: requests in flight may finish");
        tokio::select! {
            () = places.all_free() => {}
            () = tokio::time::sleep(app.settings.farewell) => tracing::warn!("some requests were cut off"),
            _ = stop.next() => tracing::warn!("told twice: some requests were cut off"),
        }
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // Of one connection that came to nothing: the next one need not wait for that.
            Err(error) if is_of_one(&error) => {}
            Err(error) => {
                // Once, until one is accepted again: the log may lie on the disk that is full.
                if !std::mem::replace(&mut told, true) {
                    refused(&error);
                }
                // Out of descriptors, mostly: without a pause this would spin until one is free.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// accept4(2) hands on what is wrong with the connection that it would have given.
fn is_of_one(error: &io::Error) -> bool {
    let passed_on = [
        Errno::CONNABORTED,
        Errno::PROTO,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
    ];
    Errno::from_io_error(error).is_some_and(|errno| passed_on.contains(&errno))
}

fn refused(error: &io::Error) {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let fault = errno.and_then(|errno| Fault::of(errno, Path::new("the listener")));
    let mend = fault.map_or_else(String::new, |fault| fault.mend);
    tracing::error!(%error, ?mend, "no connection is accepted at present");
}

/// Where those wait who have no place.
struct Door {
    room: Arc<Semaphore>,
    turned_away: u64,
    said: Option<Instant>,
}

impl Door {
    fn new(room: usize) -> Door {
        Door { room: Arc::new(Semaphore::new(room)), turned_away: 0, said: None }
    }

    fn turn_away(&mut self, connection: Connection, stream: TcpStream, full: Refusal) {
        self.turned_away += 1;
        if self.said.is_none_or(|said| said.elapsed() >= SAID) {
            let (why, peer, count) = (full.to_string(), connection.peer(), self.turned_away);
            tracing::warn!(%peer, count, "connections are turned away: {why}");
            (self.said, self.turned_away) = (Some(Instant::now()), 0);
        }
        if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
            tokio::spawn(async move {
                connection.turn_away(stream, full).await;
                drop(room);
            });
        }
    }
}
