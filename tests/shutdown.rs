//! SIGTERM: what is in flight is finished, what is new is refused, the process ends well.

mod support;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::thread;

use support::Registry;
use support::content::{random, sha256, with_query};
use support::http::{Framing, Request};

#[test]
fn an_upload_in_flight_is_finished_and_the_server_ends() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let blob = random(1_000_000);
    let digest = sha256(&blob);
    let location = client.start_upload("in/flight");
    let data = registry.upload_data(&location);
    let put = Request::put(with_query(&location, &format!("digest={digest}")));
    let answer = client.stream(&put, Framing::Length(blob.len() as u64), |to| {
        to.write_all(&blob[..500_000])?;
        // What the server has not begun to read is not in flight yet.
        while fs::metadata(&data).map_or(0, |data| data.len()) == 0 {
            thread::yield_now();
        }
        registry.signal_term();
        // Nobody new is let in: that is how one sees that the signal has arrived.
        while is_let_in(registry.addr()) {
            thread::yield_now();
        }
        to.write_all(&blob[500_000..])
    });
    answer.expect("an answer in spite of SIGTERM").expect_status(201);
    assert!(registry.term().success());

    registry.run();
    let kept = registry.client().get(&format!("/v2/in/flight/blobs/{digest}")).expect_status(200);
    assert!(kept.body == blob, "the blob differs");
}

#[test]
fn an_idle_connection_does_not_keep_the_server() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let mut idle = registry.client().connect();
    idle.send(&Request::get("/v2/")).expect_status(200);
    assert!(registry.term().success());
    assert!(idle.try_send(&Request::get("/v2/")).is_err(), "the server still answers");
}

/// Whether somebody listens. (Where nobody does, the kernel may connect a socket to itself.)
fn is_let_in(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).is_ok_and(|stream| stream.local_addr().is_ok_and(|own| own != addr))
}
