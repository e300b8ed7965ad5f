//! Thousands of connections that are idle or slow: what others see of them, and what they cost.
//!
//! The long form (`tests/run --long`) holds 10,000 idle and 500 slow ones, and others' p99 has to
//! stay within twice what it is alone; the short one holds fewer, and fails only at what no noise
//! of the machine explains.

#[path = "support/crowd.rs"]
mod crowd;
#[path = "support/process.rs"]
mod process;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crowd::{connect_from, connect_narrow, host};
use support::Registry;
use support::content::{Image, OCI_MANIFEST, random, with_query};
use support::http::{Client, Connection, Request};

/// An idle connection may take this much of the server's memory; a slow one this much.
const MOST_IDLE: u64 = 64 * 1024;
const MOST_SLOW: u64 = 1024 * 1024;

struct Sizes {
    idle: usize,
    slow: usize,
    rounds: usize,
    each: Duration,
    /// How many times its value alone p99 may become, and how much above that.
    ratio: f64,
    slack: Duration,
}

fn sizes() -> Sizes {
    if support::long() {
        let each = Duration::from_secs(20);
        return Sizes {
            idle: 10_000,
            slow: 500,
            rounds: 5,
            each,
            ratio: 2.0,
            slack: Duration::ZERO,
        };
    }
    let (each, slack) = (Duration::from_secs(3), Duration::from_millis(100));
    Sizes { idle: 1000, slow: 100, rounds: 2, each, ratio: 10.0, slack }
}

/// What others do all the while, each kind measured for itself.
const KINDS: [&str; 4] = ["GET manifest", "GET blob", "HEAD blob", "PUT manifest"];

type Times = [Vec<Duration>; KINDS.len()];

struct Others {
    requests: [Request; KINDS.len()],
    connection: Connection,
}

impl Others {
    fn new(client: &Client) -> Others {
        let image = Image::random(10_000);
        client.push_image("others", "v1", &image);
        let blob = format!("/v2/others/blobs/{}", support::content::sha256(&image.layers[0]));
        let put = Request::put("/v2/others/manifests/v2").header("Content-Type", OCI_MANIFEST);
        Others {
            requests: [
                Request::get("/v2/others/manifests/v1"),
                Request::get(blob.as_str()),
                Request::head(blob.as_str()),
                put.body(image.manifest),
            ],
            connection: client.connect(),
        }
    }

    fn work(&mut self, during: Duration, times: &mut Times) {
        let begun = Instant::now();
        while begun.elapsed() < during {
            for (request, times) in self.requests.iter().zip(times.iter_mut()) {
                let one = Instant::now();
                let answer = self.connection.send(request);
                times.push(one.elapsed());
                assert!(matches!(answer.status, 200 | 201), "{answer:?}");
            }
        }
    }
}

fn p99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[test]
fn slow_client_by_the_thousand() {
    let sizes = sizes();
    // Idle ones are to be held, not closed.
    let registry = Registry::start_with_env(
        &["--auth", "none", "--log-level", "warn"],
        &[("STILLAGE_PATIENCE", "600")],
    );
    let client = registry.client();
    let large = client.push_blob("a", &random(16 * 1024 * 1024));
    let mut others = Others::new(&client);
    let (mut alone, mut beside): (Times, Times) = Default::default();
    others.work(Duration::from_secs(1), &mut Default::default());
    let mut worst = (0, 0);
    for _ in 0..sizes.rounds {
        others.work(sizes.each, &mut alone);
        let before = process::memory(registry.pid());
        let idle = hold_idle(registry.addr(), sizes.idle);
        let held = process::memory(registry.pid()).saturating_sub(before);
        let slow = Slow::begin(&registry, sizes.slow, &large);
        others.work(sizes.each, &mut beside);
        let all = process::memory(registry.pid()).saturating_sub(before + held);
        worst = (worst.0.max(held / sizes.idle as u64), worst.1.max(all / sizes.slow as u64));
        slow.end();
        assert!(idle.iter().all(|stream| !crowd::has_news(stream)), "an idle one was closed");
    }
    support::measured(format!(
        "memory of a connection: {} KiB idle ({} of them), {} KiB slow ({} of them)",
        worst.0 / 1024,
        sizes.idle,
        worst.1 / 1024,
        sizes.slow
    ));
    let mut failed = Vec::new();
    for ((kind, alone), beside) in KINDS.iter().zip(&mut alone).zip(&mut beside) {
        let (requests, alone, beside) = (beside.len(), p99(alone), p99(beside));
        let ratio = beside.as_secs_f64() / alone.as_secs_f64();
        let line = format!(
            "p99 of {kind}: {:.2} ms alone, {:.2} ms beside {} idle and {} slow ({ratio:.2} times, {requests} requests)",
            alone.as_secs_f64() * 1e3,
            beside.as_secs_f64() * 1e3,
            sizes.idle,
            sizes.slow
        );
        support::measured(&line);
        if beside > alone.mul_f64(sizes.ratio) + sizes.slack {
            failed.push(line);
        }
    }
    assert!(worst.0 < MOST_IDLE && worst.1 < MOST_SLOW, "{worst:?} bytes a connection");
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(!registry.stderr().contains("ERROR"), "{}", registry.stderr());
}

/// Connections that asked one thing and say no more.
fn hold_idle(to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let open = |number: usize| {
        let from = host(2 + u8::try_from(number % 20).expect("small"));
        let mut stream = connect_from(from, to).expect("a connection");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("a request");
        let mut answer = [0; 1024];
        let len = stream.read(&mut answer).expect("an answer");
        assert!(answer[..len].starts_with(b"HTTP/1.1 200 "), "{:?}", answer[..len].escape_ascii());
        stream
    };
    (0..count).map(open).collect()
}

/// Connections that send or take a little now and then.
struct Slow {
    over: &'static AtomicBool,
    driver: thread::JoinHandle<()>,
}

enum Kind {
    /// A head that does not end.
    Head,
    /// A body that takes hours.
    Body,
    /// An answer that is taken by the kilobyte.
    Reader,
}

impl Slow {
    fn begin(registry: &Registry, count: usize, large: &str) -> Slow {
        let client = registry.client();
        let mut streams = Vec::new();
        for number in 0..count {
            let from = host(100 + u8::try_from(number % 20).expect("small"));
            let mut stream = connect_narrow(from, registry.addr()).expect("a connection");
            let (kind, head) = match number % 3 {
                0 => (Kind::Head, "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nX: ".to_owned()),
                1 => (
                    Kind::Body,
                    format!(
                        "PATCH {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n",
                        client.start_upload("slow")
                    ),
                ),
                _ => (
                    Kind::Reader,
                    format!("GET /v2/a/blobs/{large} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
                ),
            };
            stream.write_all(head.as_bytes()).expect("a request");
            stream.set_nonblocking(true).expect("non-blocking");
            streams.push((kind, stream));
        }
        let over: &AtomicBool = Box::leak(Box::default());
        let driver = thread::spawn(move || drive(streams, over));
        Slow { over, driver }
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.driver.join().expect("none was closed");
    }
}

/// Each sends or takes something twice a second.
fn drive(mut streams: Vec<(Kind, TcpStream)>, over: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !over.load(Ordering::Relaxed) {
        for (kind, stream) in &mut streams {
            let done = match kind {
                Kind::Head => stream.write(b"x"),
                Kind::Body => stream.write(&[7; 100]),
                Kind::Reader => stream.read(&mut buffer),
            };
            match done {
                Ok(len) => assert!(len > 0, "a slow one was closed"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Who takes a little all the while is waited for, many times as long as who takes nothing.
#[test]
fn slow_client_that_takes_a_little_is_served_to_the_end() {
    let patience = Duration::from_secs(2);
    let registry = Registry::start_with_env(&["--auth", "none"], &[("STILLAGE_PATIENCE", "2")]);
    let bytes = random(16 * 1024 * 1024);
    let digest = registry.client().push_blob("a", &bytes);
    let mut stream = connect_narrow(host(1), registry.addr()).expect("a connection");
    let get = format!(
        "GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(get.as_bytes()).expect("a request");
    let begun = Instant::now();
    let mut all = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    while begun.elapsed() < patience * 4 {
        let len = stream.read(&mut piece).expect("more");
        assert!(len > 0, "closed after {:?}", begun.elapsed());
        all.extend_from_slice(&piece[..len]);
        thread::sleep(patience / 10);
    }
    assert!(all.len() < bytes.len(), "it was not slow");
    stream.read_to_end(&mut all).expect("the rest");
    assert!(all.ends_with(&bytes), "{} bytes", all.len());
}

/// Who sends a byte now and then is not, although never silent for long.
#[test]
fn slow_client_that_sends_a_little_is_ended() {
    let registry = Registry::start_with_env(&["--auth", "none"], &[("STILLAGE_PATIENCE", "1")]);
    let client = registry.client();
    let [trickle, modem] = [0, 1].map(|_| client.start_upload("a"));
    let begin = |upload: &str| {
        let mut stream = connect_from(host(1), registry.addr()).expect("a connection");
        let head = format!(
            "PATCH {upload} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("a request");
        stream
    };
    let (mut trickling, mut dialled) = (begin(&trickle), begin(&modem));
    let begun = Instant::now();
    // A kilobyte a second is slow, and honest.
    while !crowd::has_news(&trickling) {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited for all the while");
        let _ = trickling.write_all(b"x");
        dialled.write_all(&[7; 250]).expect("still taken");
        thread::sleep(Duration::from_millis(250));
    }
    assert!(begun.elapsed() > Duration::from_secs(4), "after {:?} only", begun.elapsed());
    let mut answer = String::new();
    let _ = trickling.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("too slowly"), "{answer}");
    // What came is kept, and the other is taken to its end.
    let status = client.get(&trickle).expect_status(204);
    assert!(status.header("range").is_some_and(|range| range != "0-0"), "{status:?}");
    assert!(!crowd::has_news(&dialled), "the honest one was ended");
    drop(dialled);
    for upload in [&trickle, &modem] {
        let begun = Instant::now();
        // Free as soon as the server has noticed that its client is gone.
        while client.delete(&with_query(upload, "x=y")).status != 204 {
            assert!(begun.elapsed() < Duration::from_secs(30), "the session is held");
            thread::sleep(Duration::from_millis(50));
        }
    }
}
