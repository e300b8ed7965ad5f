//! A floor of pushing: what it takes to receive a body through hyper and throw it away.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

use super::{Kind, Server, target};
use crate::place::Place;

/// The argument that makes the program this server.
pub(crate) const COMMAND: &str = "receive-floor";

/// hyper's read buffer grows up to this: what DATAPATH found to be best for large uploads.
const BUFFER: usize = 1 << 20;

/// Starts it in a process of its own.
pub(crate) fn start(place: &Place) -> Result<Server> {
    let program = std::env::current_exe().context("this program's file")?;
    let log = place.path().join("receive.log");
    let nowhere = target(SocketAddr::from(([127, 0, 0, 1], 0)), None);
    let server = Server::start(Kind::Receive, &program, &[COMMAND], &[], &log, nowhere)?;
    server.until_it_says(|line| line.parse().ok())
}

/// Says where it listens, and serves until it is ended.
pub(crate) fn serve() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            let connection = http1::Builder::new()
                .max_buf_size(BUFFER)
                .serve_connection(TokioIo::new(stream), service_fn(swallow));
            tokio::spawn(connection);
        }
    })
}

async fn swallow(request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let mut body = request.into_body();
    while let Some(Ok(frame)) = body.frame().await {
        drop(frame);
    }
    Ok(Response::new(Empty::new()))
}
