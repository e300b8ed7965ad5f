//! The listener: accepts connections, bounds them, and lets requests finish when it must stop.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::faults::Fault;
use super::speak::Connection;
use super::{App, Settings};
use crate::auth::Auth;
use crate::registry::Registry;

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
            let connection = Connection::new(Arc::clone(&app), peer, stopped.clone(), place);
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
    let mut told = false;
    loop {
        let Ok(place) = Arc::clone(places).acquire_owned().await else {
            // Nobody closes the semaphore.
            std::future::pending::<()>().await;
            continue;
        };
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
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

fn refused(error: &io::Error) {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let fault = errno.and_then(|errno| Fault::of(errno, Path::new("the listener")));
    let mend = fault.map_or_else(String::new, |fault| fault.mend);
    tracing::error!(%error, ?mend, "no connection is accepted at present");
}
