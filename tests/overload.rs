//! More than the server can do at once: it says so, with when to come again, and holds no more
//! memory than it may.

#[path = "support/crowd.rs"]
mod crowd;
#[path = "support/process.rs"]
mod process;
mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crowd::{Talk, connect_from, connect_narrow, host, until_over};
use support::Registry;
use support::content::{Image, OCI_MANIFEST, random, sha256};
use support::http::{Request, Response};

const GET: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn limited(all: &str, each: &str) -> Registry {
    let limits = [("STILLAGE_MAX_CONNECTIONS", all), ("STILLAGE_MAX_CONNECTIONS_EACH", each)];
    Registry::start_with_env(&["--auth", "none"], &limits)
}

/// A connection with a place, kept.
fn keep(registry: &Registry, from: u8) -> TcpStream {
    let mut stream = connect_from(host(from), registry.addr()).expect("a connection");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("a request");
    let mut answer = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    stream
}

fn ask(registry: &Registry, from: u8) -> Talk {
    let stream = connect_from(host(from), registry.addr()).expect("a connection");
    let mut talk = [Talk::new(stream, GET.to_vec())];
    until_over(&mut talk);
    let [talk] = talk;
    talk
}

/// Refused in the specification's words, with when to come again.
fn told(talk: &Talk, status: u16, code: &str) {
    let text = talk.text();
    assert_eq!(talk.status(), status, "{text}");
    let (head, body) = text.split_once("\r\n\r\n").expect("a whole answer");
    assert!(head.contains("\r\nretry-after: ") && head.contains("\r\nconnection: close"), "{text}");
    assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{text}");
    let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(json["errors"][0]["code"], code, "{text}");
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn more_connections_than_there_may_be_are_told_to_come_again() {
    let registry = limited("50", "20");
    let mut first: Vec<TcpStream> = (0..20).map(|_| keep(&registry, 2)).collect();
    told(&ask(&registry, 2), 429, "TOOMANYREQUESTS");
    // One client cannot take all.
    let second: Vec<TcpStream> = (0..20).map(|_| keep(&registry, 3)).collect();
    let third: Vec<TcpStream> = (0..10).map(|_| keep(&registry, 4)).collect();
    for from in [2, 4, 5] {
        told(&ask(&registry, from), 503, "UNAVAILABLE");
    }
    // A thousand more at once: some are told, the rest are closed, and nothing is held of them.
    let before = process::memory(registry.pid());
    let (_, most) = process::most_memory_during(registry.pid(), || {
        let connect = |number: usize| {
            let from = host(10 + u8::try_from(number % 50).expect("small"));
            let stream = connect_from(from, registry.addr()).expect("a connection");
            Talk::new(stream, GET.to_vec())
        };
        let mut crowd: Vec<Talk> = (0..1000).map(connect).collect();
        until_over(&mut crowd);
        let told = crowd.iter().filter(|talk| talk.status() == 503).count();
        let closed = crowd.iter().filter(|talk| talk.status() == 0).count();
        assert_eq!(told + closed, crowd.len());
        support::measured(format!("of 1000 connections too many {told} were told so"));
        assert!(told > 0, "none was told");
    });
    let grown = most.saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for those without a place");
    // Those who have a place are served all the while.
    first[0].write_all(GET).expect("a request");
    let mut answer = String::new();
    let mut stream = first.swap_remove(0);
    std::io::Read::read_to_string(&mut stream, &mut answer).expect("an answer");
    assert!(answer.contains("HTTP/1.1 200"), "{answer}");
    // One goes, one comes.
    drop(stream);
    until("the place is free", || ask(&registry, 5).status() == 200);
    drop((first, second, third));
    until("all places are free", || ask(&registry, 2).status() == 200);
    let log = registry.stderr();
    let warned = log.matches("connections are turned away").count();
    assert!((1..5).contains(&warned), "{warned} warnings");
}

/// Few descriptors: files have theirs, whatever connects.
#[test]
fn files_can_be_opened_whoever_connects() {
    let scratch = tempfile::tempdir().expect("a directory");
    let by = ["prlimit", "--nofile=256:256"];
    let registry = Registry::start_by(&by, &scratch.path().join("registry"), &["--auth", "none"]);
    let client = registry.client();
    let image = Image::random(10_000);
    let mut own = client.connect();
    let held: Vec<TcpStream> = (0..300)
        .map(|n| connect_from(host(10 + u8::try_from(n % 50).expect("small")), registry.addr()))
        .map(|stream| stream.expect("a connection"))
        .collect();
    // All places are taken by then: what is more is told so.
    until("the places are taken", || ask(&registry, 5).status() == 503);
    for bytes in image.layers.iter().chain([&image.config]) {
        let post = format!("/v2/a/blobs/uploads/?digest={}", sha256(bytes));
        own.send(&Request::post(post).body(bytes.as_slice())).expect_status(201);
    }
    let put = Request::put("/v2/a/manifests/v1").header("Content-Type", OCI_MANIFEST);
    own.send(&put.body(image.manifest.as_slice())).expect_status(201);
    own.send(&Request::get("/v2/a/manifests/v1")).expect_status(200);
    assert!(!registry.stderr().contains("Too many open files"), "{}", registry.stderr());
    drop(held);
    until("all is as before", || ask(&registry, 5).status() == 200);
    client.assert_pulls("a", "v1", &image);
}

/// Thousands of pushes in the same moment: each is done, or told to come again.
#[test]
fn pushes_by_the_thousand_are_done_or_told_to_come_again() {
    let count = if support::long() { 5000 } else { 1500 };
    let registry = Registry::start(&["--auth", "none", "--log-level", "warn"]);
    let before = process::memory(registry.pid());
    let blobs: Vec<Vec<u8>> = (0..count).map(|_| random(100_000)).collect();
    let push = |bytes: &Vec<u8>| {
        let head = format!(
            "POST /v2/a/blobs/uploads/?digest={} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            sha256(bytes),
            bytes.len()
        );
        [head.as_bytes(), bytes].concat()
    };
    let begun = Instant::now();
    let (talks, most) = process::most_memory_during(registry.pid(), || {
        let talk = |(number, bytes): (usize, &Vec<u8>)| {
            let from = host(10 + u8::try_from(number % 50).expect("small"));
            Talk::new(connect_from(from, registry.addr()).expect("a connection"), push(bytes))
        };
        let mut talks: Vec<Talk> = blobs.iter().enumerate().map(talk).collect();
        until_over(&mut talks);
        talks
    });
    let took = begun.elapsed();
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    for talk in &talks {
        *statuses.entry(talk.status()).or_default() += 1;
        match talk.status() {
            201 => {}
            429 => told_later(&talk.text()),
            503 => told_later(&talk.text()),
            other => panic!("{other}: {}", talk.text()),
        }
    }
    let grown = most.saturating_sub(before);
    support::measured(format!(
        "{count} pushes at once: {statuses:?} in {:.1} s, {} MiB held at most",
        took.as_secs_f64(),
        grown >> 20
    ));
    assert!(statuses.get(&201).is_some_and(|done| *done >= 500), "{statuses:?}");
    assert!(grown < 1 << 30, "{grown} bytes");
    // What was acknowledged is there; what was not can be pushed again.
    let client = registry.client();
    for (talk, bytes) in talks.iter().zip(&blobs).step_by(50) {
        match talk.status() {
            201 => drop(client.get(&format!("/v2/a/blobs/{}", sha256(bytes))).expect_status(200)),
            _ => drop(client.push_blob("a", bytes)),
        }
    }
}

fn told_later(text: &str) {
    assert!(text.contains("\r\nretry-after: ") && text.contains("{\"errors\":[{"), "{text}");
}

/// Answers that nobody takes: what of them lies in memory is bounded, and others get theirs.
#[test]
fn answers_that_nobody_takes_are_bounded_in_memory() {
    let registry = Registry::start(&["--auth", "none", "--log-level", "warn"]);
    let client = registry.client();
    let image = Image::random(8 * 1024 * 1024);
    client.push_image("a", "v1", &image);
    client.push_blob("a", b"{}");
    let config = support::content::descriptor("application/vnd.oci.empty.v1+json", b"{}");
    let large = format!(
        r#"{{"schemaVersion":2,"config":{config},"layers":[],"annotations":{{"x":"{}"}}}}"#,
        "y".repeat(4_000_000)
    );
    client.put_manifest("a", "large", OCI_MANIFEST, large.as_bytes()).expect_status(201);
    let blob = format!("/v2/a/blobs/{}", sha256(&image.layers[0]));
    let begin = |path: &str, count: usize| -> Vec<TcpStream> {
        let open = |number: usize| {
            let from = host(10 + u8::try_from(number % 50).expect("small"));
            let mut stream = connect_narrow(from, registry.addr()).expect("a connection");
            let get = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            stream.write_all(get.as_bytes()).expect("a request");
            stream
        };
        (0..count).map(open).collect()
    };
    for (what, path, count, most) in [
        // 128 MiB in large pieces, then 64 KiB each.
        ("a blob of 8 MiB", blob.as_str(), 600, 256_u64 << 20),
        // 256 MiB, and what is being made.
        ("a manifest of 4 MB", "/v2/a/manifests/large", 400, 700 << 20),
    ] {
        let before = process::memory(registry.pid());
        let (held, memory) = process::most_memory_during(registry.pid(), || {
            let held = begin(path, count);
            until("each has an answer", || held.iter().all(crowd::has_news));
            // Others are served what they ask for, however large a blob.
            let begun = Instant::now();
            client.assert_pulls("a", "v1", &image);
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
            held
        });
        let statuses = statuses(&held);
        let grown = memory.saturating_sub(before);
        support::measured(format!(
            "{count} that take nothing of {what}: {} MiB held at most, {statuses:?}",
            grown >> 20
        ));
        assert!(grown < most, "{what}: {grown} bytes");
        assert!(statuses.keys().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
        assert!(statuses.contains_key(&200), "{statuses:?}");
        if path.contains("large") {
            assert!(statuses.contains_key(&503), "{statuses:?}");
            let refused = client.get(path);
            expect_later(&refused);
            // What is small needs no room.
            client.get("/v2/a/manifests/v1").expect_status(200);
        }
        drop(held);
        until("there is room again", || client.get(path).status == 200);
    }
}

/// The statuses of answers of which the first bytes have come.
fn statuses(streams: &[TcpStream]) -> BTreeMap<u16, usize> {
    let mut found = BTreeMap::new();
    for stream in streams {
        let mut head = [0; 12];
        stream.peek(&mut head).expect("an answer");
        let text = String::from_utf8_lossy(&head[9..]).into_owned();
        *found.entry(text.parse().unwrap_or(0)).or_default() += 1;
    }
    found
}

fn expect_later(answer: &Response) {
    assert_eq!((answer.status, answer.code().as_str()), (503, "UNAVAILABLE"), "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}
