//! Many slow clients at once: each is cut off after the time limit, and nobody else waits for them.
//! Each test bears the id of its line in the list of what has gone wrong in registries.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use support::Registry;
use support::content::random;
use support::http::Client;

/// So many of each kind.
const SLOW: usize = 50;

/// What the server was told to bear: `STILLAGE_PATIENCE` is in seconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// Long enough for a loaded machine, and far from for ever.
const CUT: Duration = Duration::from_secs(30);

#[test]
fn slow_client() {
    let patience = PATIENCE.as_secs().to_string();
    let registry =
        Registry::start_with_env(&["--auth", "none"], &[("STILLAGE_PATIENCE", &patience)]);
    let client = registry.client();
    let small = client.push_blob("a", &random(10_000));
    let large = client.push_blob("a", &random(64 * 1024 * 1024));
    let uploads: Vec<String> = (0..2 * SLOW).map(|_| client.start_upload("slow")).collect();
    let small = format!("/v2/a/blobs/{small}");
    let alone = p99(&client, &small, Duration::from_secs(2));

    let begin = Instant::now();
    let addr = registry.addr();
    let patch = |upload: &str| {
        format!("PATCH {upload} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\nabc")
    };
    let mut waiting = Vec::new();
    let mut heads = Vec::new();
    for number in 0..SLOW {
        waiting.push((connect(addr, b""), "says nothing"));
        waiting.push((connect(addr, patch(&uploads[number]).as_bytes()), "half a body"));
        let open = connect(addr, patch(&uploads[SLOW + number]).as_bytes());
        open.shutdown(Shutdown::Write).expect("half-closed");
        waiting.push((open, "half-open"));
        let get = format!("GET /v2/a/blobs/{large} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        waiting.push((connect(addr, get.as_bytes()), "reads nothing"));
        heads.push(connect(addr, b"GET /v2/ HTTP/1.1\r\nX: "));
    }
    // A byte now and then: never silent for long, never done.
    let dripping = thread::spawn(move || drip(heads));

    let beside = p99(&client, &small, PATIENCE.mul_f32(0.7));
    assert!(begin.elapsed() < PATIENCE.mul_f32(1.5), "the slow ones were not there any more");
    let most = alone * 20 + Duration::from_millis(100);
    support::measured(format!(
        "p99 of a small blob: {} ms alone, {} ms beside {} slow clients",
        alone.as_millis(),
        beside.as_millis(),
        5 * SLOW
    ));
    assert!(beside < most, "p99 was {alone:?} and became {beside:?}");

    // Who reads nothing is cut off by then: what the kernel holds of the answer is the rest of it.
    thread::sleep((PATIENCE * 2).saturating_sub(begin.elapsed()));
    for (stream, kind) in waiting {
        let taken = until_cut(stream, kind);
        assert!(taken < 32 * 1024 * 1024, "{kind}: {taken} bytes");
    }
    let longest = dripping.join().expect("the heads that never end");
    assert!(longest < CUT, "a head was waited for, for {longest:?}");
    assert!(begin.elapsed() < CUT, "cut off only after {:?}", begin.elapsed());

    // What came of a body is kept, and the session is free for who comes back.
    for upload in &uploads {
        let status = client.get(upload).expect_status(204);
        assert_eq!(status.header("range"), Some("0-2"));
        client.delete(upload).expect_status(204);
    }
}

fn connect(addr: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(addr).expect("connect");
    stream.write_all(bytes).expect("send");
    stream
}

/// The time within which 99 of 100 requests are answered, one after the other.
fn p99(client: &Client, path: &str, during: Duration) -> Duration {
    let begin = Instant::now();
    let mut times = Vec::new();
    while begin.elapsed() < during || times.len() < 100 {
        let one = Instant::now();
        client.get(path).expect_status(200);
        times.push(one.elapsed());
    }
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// Sends a byte on each connection at a time until the server has closed them all; gives how long
/// the last one lived.
fn drip(mut streams: Vec<TcpStream>) -> Duration {
    let begin = Instant::now();
    for stream in &streams {
        stream.set_nonblocking(true).expect("non-blocking");
    }
    while !streams.is_empty() && begin.elapsed() < CUT {
        streams.retain_mut(|stream| stream.write_all(b"x").is_ok() && !is_cut(stream));
        thread::sleep(Duration::from_millis(100));
    }
    begin.elapsed()
}

/// Whether the server closed a connection that does not block.
fn is_cut(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 1024];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// How many bytes came until the server closed the connection; panics if it does not.
fn until_cut(mut stream: TcpStream, kind: &str) -> usize {
    stream.set_read_timeout(Some(CUT)).expect("timeout");
    let mut taken = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => taken += len,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{kind}: not cut off: {error}"),
        }
    }
    taken
}
