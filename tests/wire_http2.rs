//! HTTP/2 by a client that means no good: what it sends must cost us nothing that grows, and nobody
//! else anything. The test bears the id of its line in the list of what has gone wrong in registries.

#[path = "support/process.rs"]
mod process;
mod support;

use std::io;
use std::time::{Duration, Instant};

use support::Registry;
use support::content::random;
use support::tls::{
    CONTINUATION, Curl, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Http2, Pair, RST_STREAM,
    WINDOW_UPDATE,
};

/// More than a few buffers, and far less than what an attack that works would take.
const GROWTH: u64 = 32 * 1024 * 1024;

/// More than the handshakes and answers take; an attack that goes on would take all there is.
const BUSY: Duration = Duration::from_secs(10);

/// Long enough for a loaded machine.
const SOON: Duration = Duration::from_secs(30);

struct Scene {
    _dir: tempfile::TempDir,
    pair: Pair,
    registry: Registry,
    curl: Curl,
}

impl Scene {
    fn new(patience: &str) -> Scene {
        Scene::with(&[("STILLAGE_PATIENCE", patience)])
    }

    fn with(envs: &[(&str, &str)]) -> Scene {
        let dir = tempfile::tempdir().expect("a directory");
        let pair = Pair::new(dir.path());
        let args = [&pair.args()[..], &["--auth", "none", "--log-level", "warn"]].concat();
        let registry = Registry::start_with_env(&args, envs);
        let curl = Curl::new(registry.addr(), &pair.certificate);
        Scene { _dir: dir, pair, registry, curl }
    }

    fn connect(&self) -> Http2 {
        Http2::connect(self.registry.addr(), &self.pair.certificate)
    }

    /// Attacks again and again for a while: each time the server has to end the connection, and
    /// another client is served in between.
    fn bears(&self, what: &str, attack: impl Fn(&mut Http2) -> io::Result<()>) {
        let before = process::memory(self.registry.pid());
        let busy = process::processor_time(self.registry.pid());
        let ((), most) = process::most_memory_during(self.registry.pid(), || {
            for _ in 0..5 {
                let begin = Instant::now();
                let mut client = self.connect();
                let ended = attack(&mut client);
                assert!(ended.is_err(), "{what}: the connection was not ended");
                assert!(begin.elapsed() < SOON, "{what}: ended after {:?}", begin.elapsed());
                assert_eq!(self.curl.status(&["--max-time", "10"], "/v2/"), "2 200", "{what}");
            }
        });
        let grown = most.saturating_sub(before);
        let busy = process::processor_time(self.registry.pid()) - busy;
        support::measured(format!(
            "{what}, five times: {} KiB held more, {:.2} s of processor time",
            grown / 1024,
            busy.as_secs_f64()
        ));
        assert!(grown < GROWTH, "{what}: {grown} bytes more");
        assert!(busy < BUSY, "{what}: {busy:?} of processor time");
    }
}

#[test]
fn http2() {
    let scene = Scene::new("60");
    assert_eq!(scene.curl.status(&[], "/v2/"), "2 200");
    let reset = 8_u32.to_be_bytes();

    // Requests taken back in the same breath (CVE-2023-44487).
    scene.bears("rapid reset", |client| {
        let get = Http2::head("GET", "/v2/_catalog");
        for batch in 0..10_000_u32 {
            let mut bytes = Vec::new();
            for at in 0..50 {
                let stream = (batch * 50 + at) * 2 + 1;
                let flags = END_HEADERS | END_STREAM;
                bytes.extend(Http2::frame(HEADERS, flags, stream, &get));
                bytes.extend(Http2::frame(RST_STREAM, 0, stream, &reset));
            }
            client.raw(&bytes)?;
        }
        client.until(GOAWAY, 0)?;
        client.settle()
    });

    // Requests taken back once the server is at work on them.
    scene.bears("slow reset", |client| {
        let digest = format!("sha256:{}", "0".repeat(64));
        let post = Http2::head("POST", &format!("/v2/a/blobs/uploads/?digest={digest}"));
        for batch in 0..10_000_u32 {
            let streams = || (0..20).map(|at| (batch * 20 + at) * 2 + 1);
            let begun = streams().flat_map(|at| Http2::frame(HEADERS, END_HEADERS, at, &post));
            client.raw(&begun.collect::<Vec<_>>())?;
            // Read, then accepted, then begun.
            for _ in 0..3 {
                client.settle()?;
            }
            let ended = streams().flat_map(|at| Http2::frame(RST_STREAM, 0, at, &reset));
            client.raw(&ended.collect::<Vec<_>>())?;
        }
        Ok(())
    });
    let log = scene.registry.stderr();
    assert!(log.contains("took back too many requests"), "{log}");

    // A head without an end (RUSTSEC-2024-0332).
    scene.bears("CONTINUATION flood", |client| {
        client.send(HEADERS, END_STREAM, 1, &Http2::head("GET", "/v2/"))?;
        // A header that is never indexed: x: yyy…
        let mut line = vec![0, 1, b'x', 100];
        line.extend([b'y'; 100]);
        let lines = line.repeat(150);
        for _ in 0..100_000 {
            client.send(CONTINUATION, 0, 1, &lines)?;
        }
        Ok(())
    });
    // The same without any content at all.
    scene.bears("empty CONTINUATION flood", |client| {
        client.send(HEADERS, END_STREAM, 1, &Http2::head("GET", "/v2/"))?;
        let empty = Http2::frame(CONTINUATION, 0, 1, &[]).repeat(1000);
        for _ in 0..100_000 {
            client.raw(&empty)?;
        }
        Ok(())
    });
}

/// DATA frames that hold nothing, of which none need be paid for with a window (RUSTSEC-2026-0258).
#[test]
fn http2_frames_without_content_are_not_kept() {
    let scene = Scene::new("60");
    let before = process::memory(scene.registry.pid());
    let ((), most) = process::most_memory_during(scene.registry.pid(), || {
        let post = Http2::head("POST", "/v2/a/blobs/uploads/");
        let mut client = scene.connect();
        client.send(HEADERS, END_HEADERS, 1, &post).expect("send");
        let empty = Http2::frame(DATA, 0, 1, &[]).repeat(1000);
        // The server may end this at any time; until then it keeps none of them.
        for _ in 0..2000 {
            if client.raw(&empty).is_err() {
                break;
            }
        }
        assert_eq!(scene.curl.status(&["--max-time", "10"], "/v2/"), "2 200");
    });
    let grown = most.saturating_sub(before);
    support::measured(format!("two million empty frames: {} KiB held more", grown / 1024));
    assert!(grown < GROWTH, "{grown} bytes more");
}

/// Each request counts as a connection does: one client cannot have more of them by asking on one.
#[test]
fn http2_requests_take_places() {
    let scene = Scene::with(&[("STILLAGE_PATIENCE", "60"), ("STILLAGE_MAX_CONNECTIONS_EACH", "8")]);
    let mut client = scene.connect();
    let post =
        Http2::head("POST", &format!("/v2/a/blobs/uploads/?digest=sha256:{}", "0".repeat(64)));
    for number in 0..12 {
        client.send(HEADERS, END_HEADERS, number * 2 + 1, &post).expect("send");
    }
    // Seven and the connection itself have places.
    for _ in 7..12 {
        let answer = loop {
            let frame = client.next().expect("an answer");
            if frame.kind == DATA {
                break String::from_utf8_lossy(&frame.payload).into_owned();
            }
        };
        assert!(answer.contains("TOOMANYREQUESTS"), "{answer}");
    }
    // Taken back, they are free again.
    for number in 0..7 {
        client.send(RST_STREAM, 0, number * 2 + 1, &8_u32.to_be_bytes()).expect("send");
    }
    client.settle().expect("settled");
    client.get(101, "/v2/").expect("send");
    let answer = client.until(DATA, 101).expect("an answer");
    assert_eq!(answer.payload, b"{}", "{answer:?}");
}

#[test]
fn a_stream_that_is_not_taken_is_reset_and_the_others_go_on() {
    let scene = Scene::new("4");
    let file = scene.registry.scratch().join("blob");
    std::fs::write(&file, random(8 * 1024 * 1024)).expect("a blob");
    let digest = scene.curl.push_blob(&[], "a", &file);
    let blob = format!("/v2/a/blobs/{digest}");
    let mut client = scene.connect();
    let begin = Instant::now();
    // The connection has room, the stream's own window is 65,535 bytes.
    client.get(1, &blob).expect("send");
    client.get(3, "/v2/").expect("send");
    client.until(HEADERS, 3).expect("another stream's answer");
    let mut stream = 5;
    // Others are asked for all the while, so the connection is not idle.
    let ended = loop {
        client.get(stream, "/v2/").expect("send");
        let frame = loop {
            let frame = client.next().expect("a frame");
            if frame.stream == 1 && frame.kind == RST_STREAM || frame.stream == stream {
                break frame;
            }
        };
        if frame.stream == 1 {
            break begin.elapsed();
        }
        assert!(begin.elapsed() < SOON, "the stream was not reset");
        stream += 2;
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(ended > Duration::from_secs(3), "reset after {ended:?} only");
    // The connection lives on, and who takes what is sent gets all of it.
    stream += 2;
    let window = 0x7000_0000_u32.to_be_bytes();
    client.get(stream, &blob).expect("send");
    client.send(WINDOW_UPDATE, 0, stream, &window).expect("send");
    let mut taken = 0;
    loop {
        let frame = client.until(DATA, stream).expect("more of the blob");
        taken += frame.payload.len();
        if frame.flags & END_STREAM != 0 {
            break;
        }
    }
    assert_eq!(taken, 8 * 1024 * 1024);
}

#[test]
fn an_early_refusal_arrives_whole() {
    let scene = Scene::new("60");
    let mut client = scene.connect();
    client.send(HEADERS, END_HEADERS, 1, &Http2::head("POST", "/nowhere")).expect("send");
    client.send(DATA, 0, 1, &[7; 10_000]).expect("send");
    client.until(HEADERS, 1).expect("an answer");
    let answer = client.until(DATA, 1).expect("its body");
    assert!(answer.payload.starts_with(b"{\"errors\":"), "{answer:?}");
    // Then the client is told to stop sending, and that nothing went wrong (RFC 9113, 8.1).
    let reset = client.until(RST_STREAM, 1).expect("the end of the stream");
    assert_eq!(reset.payload, [0; 4]);
    client.get(3, "/v2/").expect("send");
    client.until(HEADERS, 3).expect("the connection lives on");
}

#[test]
fn slow_client_on_http2() {
    let scene = Scene::new("2");
    // A head that does not end, a body that does not come, and no request at all.
    let mut head = scene.connect();
    head.send(HEADERS, END_STREAM, 1, &Http2::head("GET", "/v2/")).expect("send");
    let mut idle = scene.connect();
    let mut body = scene.connect();
    let post =
        Http2::head("POST", &format!("/v2/a/blobs/uploads/?digest=sha256:{}", "0".repeat(64)));
    body.send(HEADERS, END_HEADERS, 1, &post).expect("send");
    body.send(DATA, 0, 1, b"abc").expect("send");
    let answer = body.until(DATA, 1).expect("an answer to half a body");
    let text = String::from_utf8_lossy(&answer.payload).into_owned();
    assert!(text.contains("the body stopped coming"), "{text}");
    for (client, what) in [(&mut head, "half a head"), (&mut idle, "nothing"), (&mut body, "body")]
    {
        let begin = Instant::now();
        while client.next().is_ok() {
            assert!(begin.elapsed() < SOON, "{what}: the connection was not ended");
        }
    }
    assert_eq!(scene.curl.status(&[], "/v2/"), "2 200");
}
