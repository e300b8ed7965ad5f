//! Requests that are framed badly, too large, too slow, or in another protocol.
//! Each test bears the id of its line in the list of what has gone wrong in registries.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use support::Registry;
use support::content::{random, with_query};
use support::http::{Framing, Request};

/// What came back until the server closed the connection; panics if it did not, and if it did so
/// by a reset, which may take the answer away from the client.
fn until_closed(stream: &TcpStream) -> String {
    String::from_utf8_lossy(&bytes_until_closed(stream)).into_owned()
}

fn bytes_until_closed(mut stream: &TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut all = Vec::new();
    let mut buffer = [0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => all.extend_from_slice(&buffer[..len]),
            Err(error) => panic!("not closed: {error}, after {:?}", String::from_utf8_lossy(&all)),
        }
    }
    all
}

/// Sends bytes as they are and returns all answers; the server must close.
fn exchange(registry: &Registry, bytes: &[u8]) -> String {
    String::from_utf8_lossy(&exchange_bytes(registry, bytes)).into_owned()
}

fn exchange_bytes(registry: &Registry, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(registry.addr()).expect("connect");
    // The server may have closed already: its answer is what counts.
    let _ = stream.write_all(bytes);
    bytes_until_closed(&stream)
}

fn answers(text: &str) -> Vec<u16> {
    // Wherever they stand: a body need not end with a line.
    let statuses = text.split("HTTP/1.1 ").skip(1);
    statuses.map(|rest| rest[..3].parse().expect("a status")).collect()
}

#[test]
fn smuggling() {
    let registry = Registry::start(&["--auth", "none"]);
    let upload = registry.client().start_upload("a");
    // Whoever reads the lengths otherwise finds this second request.
    let hidden = "GET /v2/hidden/tags/list HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    let post = |lines: &str, body: &str| {
        format!("PATCH {upload} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n\r\n{body}{hidden}")
    };
    let chunked = "3\r\nabc\r\n0\r\n\r\n";
    let huge = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(100_000));
    for (request, what) in [
        (post("Content-Length: 3\r\nTransfer-Encoding: chunked", chunked), "CL, TE"),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 3", chunked), "TE, CL"),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", chunked), "two TE"),
        (post("Transfer-Encoding: chunked, chunked", chunked), "chunked twice"),
        (post("Transfer-Encoding: xchunked", chunked), "xchunked"),
        (post("Transfer-Encoding: gzip, chunked", chunked), "gzip, chunked"),
        (post("Transfer-Encoding: identity", "abc"), "identity"),
        (post("Transfer-Encoding : chunked", chunked), "blank before the colon"),
        (post("Transfer-Encoding:\x0bchunked", chunked), "vertical tab"),
        (post("X: y\r\n Transfer-Encoding: chunked", chunked), "folded"),
        (post("X: y\nTransfer-Encoding: chunked", chunked), "bare LF"),
        (post("X: y\rTransfer-Encoding: chunked", chunked), "bare CR"),
        (post("Content-Length: 3\r\nContent-Length: 3", "abc"), "CL twice"),
        (post("Content-Length: 3\r\nContent-Length: 60", "abc"), "two CL"),
        (post("Content-Length: 3, 60", "abc"), "CL as a list"),
        (post("Content-Length: +3", "abc"), "CL with a sign"),
        (post("Content-Length: 0x3", "abc"), "CL in hex"),
        (post("Transfer-Encoding: chunked", &huge), "a huge chunk extension"),
        (post("Transfer-Encoding: chunked", "3\nabc\n0\n\n"), "chunks with bare LF"),
        (post("Transfer-Encoding: chunked", "-3\r\nabc\r\n0\r\n\r\n"), "a negative chunk"),
        (post("Transfer-Encoding: chunked", "10000000000000003\r\nabc\r\n0\r\n\r\n"), "2^68 + 3"),
        (post("Transfer-Encoding: chunked", "2\r\nabc\r\n0\r\n\r\n"), "a chunk that is too long"),
        (format!("GET /v2/ HTTP/1.1\nHost: 127.0.0.1\n\n{hidden}"), "bare LF throughout"),
        (format!("GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX\x00: y\r\n\r\n{hidden}"), "NUL"),
        (format!("GET  /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n{hidden}"), "two blanks"),
        (format!("GET /v2/\tHTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n{hidden}"), "a tab"),
        (format!("GET /v2/\r\n{hidden}"), "HTTP/0.9"),
        (
            format!(
                "POST /v2/ HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}{hidden}"
            ),
            "chunked in HTTP/1.0",
        ),
    ] {
        let answer = exchange(&registry, request.as_bytes());
        assert_eq!(answers(&answer), [400], "{what}: {answer}");
        assert!(answer.contains("\r\n\r\n{\"errors\":[{\"code\":"), "{what}: {answer}");
    }
    let status = registry.client().get(&upload).expect_status(204);
    // Nothing of what could be read in two ways was stored, unless the framing broke after it.
    assert!(matches!(status.header("range"), Some("0-0" | "0-1" | "0-2")), "{status:?}");

    // What is right goes on, several requests on one connection.
    let good = "GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n\r\nPOST /v2/b/blobs/uploads/ HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    assert_eq!(answers(&exchange(&registry, good.as_bytes())), [200, 202, 200]);
}

/// Ways to break a head, the status of each, and what its answer has to name.
fn broken_heads() -> Vec<(&'static str, String, u16, &'static str)> {
    let get = |lines: &str| format!("GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n\r\n");
    vec![
        ("bare LF", "GET /v2/ HTTP/1.1\nHost: x\n\n".to_owned(), 400, "line feed"),
        ("bare CR", get("X: y\rZ: z"), 400, "carriage return"),
        ("CL and TE", get("Content-Length: 3\r\nTransfer-Encoding: chunked"), 400, "side by side"),
        (
            "CL twice",
            get("Content-Length: 3\r\nContent-Length: 3"),
            400,
            "Content-Length stands twice",
        ),
        ("TE", get("Transfer-Encoding: gzip"), 400, "Transfer-Encoding"),
        ("folded", get("X: y\r\n z"), 400, "folded"),
        ("NUL", get("X: y\0z"), 400, "control character 0x00"),
        ("a blank in a name", get("X y: z"), 400, "\\\"X y\\\""),
        ("no colon", get("nothing"), 400, "colon"),
        ("garbage", "one two\r\n\r\n".to_owned(), 400, "request line"),
        ("no text", "\u{1}\u{2}\u{3}".to_owned(), 400, "control character 0x01"),
        ("no URL", "GET http:// HTTP/1.1\r\n\r\n".to_owned(), 400, "URL"),
        ("64 KB header", get(&format!("X: {}", "y".repeat(64 * 1024))), 431, "65536 bytes"),
        ("10,000 headers", get(&"X: y\r\n".repeat(10_000)), 431, "100 header lines"),
        (
            "1 MB URL",
            format!("GET /v2/{} HTTP/1.1\r\n\r\n", "y".repeat(1024 * 1024)),
            414,
            "URL is longer than 16384 bytes",
        ),
        ("HTTP/3.7", "GET /v2/ HTTP/3.7\r\n\r\n".to_owned(), 505, "HTTP/3.7"),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505, "HTTP/2.0"),
    ]
}

#[test]
fn what_is_refused_at_its_head_is_told_in_words_and_logged() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let blob = random(3 * 1024 * 1024);
    let digest = client.push_blob("a", &blob);
    // What is right before it is answered in full, however large.
    let good = format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    for (what, bad, status, named) in broken_heads() {
        let before = registry.stderr().len();
        for (first, expected) in [("", 1), (good.as_str(), 2)] {
            let all = exchange_bytes(&registry, format!("{first}{bad}").as_bytes());
            let (head, body) = last_answer(&all);
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {head}");
            let length = format!("content-length: {}", body.len());
            for line in ["content-type: application/json", "connection: close", &length] {
                assert!(head.lines().any(|found| found == line), "{what}: {line} in {head}");
            }
            assert!(head.contains("x-content-type-options: nosniff"), "{what}: {head}");
            let json: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!(json["errors"].as_array().map(Vec::len), Some(1), "{what}: {body}");
            assert_eq!(json["errors"][0]["code"], "UNSUPPORTED", "{what}: {body}");
            assert!(body.contains(named), "{what}: {body} does not say {named}");
            if expected == 2 {
                let from = all.len() - head.len() - body.len() - 4;
                assert!(all[..from].ends_with(&blob), "{what}: the first answer is not whole");
            }
        }
        let log = registry.stderr()[before..].to_owned();
        let line = format!("status={status} ");
        assert_eq!(log.matches(&line).count(), 2, "{what}: {log}");
        assert_eq!(log.matches("stillage::access").count(), 3, "{what}: {log}");
    }
    // The line names what was asked for, where that was readable.
    let log = registry.stderr();
    assert!(log.contains("method=\"GET\" path=\"/v2/\" status=431"), "{log}");
    assert!(log.contains("method=\"-\" path=\"*\" status=414"), "{log}");
}

/// The last answer of several: its head without the empty line, and its body.
fn last_answer(all: &[u8]) -> (String, String) {
    let at = all.windows(9).rposition(|window| window == b"HTTP/1.1 ").expect("an answer");
    let text = String::from_utf8_lossy(&all[at..]).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").expect("a whole head");
    (head.to_owned(), body.to_owned())
}

#[test]
fn chunks_that_break_off_are_told_in_words() {
    let registry = Registry::start(&["--auth", "none"]);
    let upload = registry.client().start_upload("a");
    let bad = format!(
        "PATCH {upload} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX"
    );
    let answer = exchange(&registry, bad.as_bytes());
    assert_eq!(answers(&answer), [400]);
    assert!(answer.contains("\"code\":\"BLOB_UPLOAD_INVALID\""), "{answer}");
    assert!(answer.contains("the chunks of the body are malformed"), "{answer}");
}

#[test]
fn host_names() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    for head in [
        "GET /v2/ HTTP/1.1\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: local host\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: localhost\"\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: user@localhost\r\n\r\n",
        "GET /v2/ HTTP/1.1\r\nHost: \r\n\r\n",
    ] {
        let answer = client.raw(head.as_bytes());
        assert_eq!(answers(&String::from_utf8_lossy(&answer)), [400], "{head:?}");
    }
    let old = client.raw(b"GET /v2/ HTTP/1.0\r\n\r\n");
    assert!(old.starts_with(b"HTTP/1.0 200") || old.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn headers() {
    let registry = Registry::start(&["--auth", "none"]);
    let get = "GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n";
    let large = format!("{get}X: {}\r\n\r\n", "y".repeat(64 * 1024));
    let endless = format!("{get}X: {}", "y".repeat(2 * 1024 * 1024));
    let many = format!("{get}{}\r\n", "X: y\r\n".repeat(10_000));
    for (request, what) in [(large, "64 KB"), (endless, "no end"), (many, "10,000 lines")] {
        let answer = exchange(&registry, request.as_bytes());
        assert_eq!(answers(&answer), [431], "{what}: {answer}");
    }
    let url = format!("GET /v2/{} HTTP/1.1\r\nHost: x\r\n\r\n", "y".repeat(1024 * 1024));
    let answer = exchange(&registry, url.as_bytes());
    assert_eq!(answers(&answer), [414], "{answer}");
    // Just below the limits all is well.
    let fits = format!("{get}{}Connection: close\r\n\r\n", "X: y\r\n".repeat(90));
    assert_eq!(answers(&exchange(&registry, fits.as_bytes())), [200]);
    let fits = format!("{get}X: {}\r\nConnection: close\r\n\r\n", "y".repeat(60 * 1024));
    assert_eq!(answers(&exchange(&registry, fits.as_bytes())), [200]);
}

#[test]
fn smuggling_an_early_refusal_closes_the_connection() {
    let registry = Registry::start(&["--auth", "pam"]);
    let client = registry.client();
    let zeros = vec![0; 64 * 1024];
    for framing in [Framing::Length(1 << 30), Framing::Chunked] {
        let mut sent = 0_u64;
        let request = Request::post("/v2/a/blobs/uploads/");
        let answer = client.stream(&request, framing, |out| {
            while sent < 1 << 30 {
                out.write_all(&zeros)?;
                sent += zeros.len() as u64;
            }
            Ok(())
        });
        answer.expect("an answer").expect_error(401, "UNAUTHORIZED");
        assert!(sent < 1 << 28, "{sent} bytes were taken");
    }
    // Who asks before sending is refused without being told to go on.
    let asking = "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
    assert_eq!(answers(&exchange(&registry, asking.as_bytes())), [401]);
    // Part of a body, and then another request: the connection ends instead.
    let two = format!(
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{}",
        "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3)
    );
    let mut stream = TcpStream::connect(registry.addr()).expect("connect");
    stream.write_all(two.as_bytes()).expect("send");
    assert_eq!(answers(&until_closed(&stream)), [401]);
    // Who is still sending meets no reset, which could overtake the answer.
    for piece in zeros[..20_000].chunks(2_000) {
        stream.write_all(piece).expect("a server that reads on for a while");
    }
}

#[test]
fn slow_client() {
    let registry = Registry::start_with_env(&["--auth", "none"], &[("STILLAGE_PATIENCE", "1")]);
    let client = registry.client();
    let blob = random(64 * 1024 * 1024);
    let digest = client.push_blob("a", &blob);
    let upload = client.start_upload("a");
    let connect = || TcpStream::connect(registry.addr()).expect("connect");

    let silent = connect();
    let mut slow_head = connect();
    slow_head.write_all(b"GET /v2/ HTTP/1.1\r\nHost: 127.0").expect("send");
    let mut slow_body = connect();
    let head =
        format!("PATCH {upload} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\nabc");
    slow_body.write_all(head.as_bytes()).expect("send");
    let mut slow_reader = connect();
    let get = format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    slow_reader.write_all(get.as_bytes()).expect("send");

    // Others are served meanwhile.
    let begin = Instant::now();
    let mut worst = Duration::ZERO;
    while begin.elapsed() < Duration::from_millis(1500) {
        let one = Instant::now();
        client.get("/v2/").expect_status(200);
        worst = worst.max(one.elapsed());
    }
    assert!(worst < Duration::from_millis(500), "another client waited {worst:?}");

    assert_eq!(answers(&until_closed(&silent)), [0_u16; 0]);
    assert!(answers(&until_closed(&slow_head)).iter().all(|status| *status == 408));
    assert_eq!(answers(&until_closed(&slow_body)), [408]);
    let taken = until_closed(&slow_reader);
    assert!(taken.len() < blob.len() / 2, "{} bytes for who reads nothing", taken.len());

    // What had arrived of the upload is kept, and nobody else was in its way.
    let status = client.get(&upload).expect_status(204);
    assert_eq!(status.header("range"), Some("0-2"));
    let rest = Request::patch(upload.as_str()).header("Content-Range", "3-5").body("def");
    client.send(rest).expect_status(202);
    let digest = support::content::sha256(b"abcdef");
    let put = Request::put(with_query(&upload, &format!("digest={digest}")));
    client.send(put).expect_status(201);
}

#[test]
fn a_body_that_breaks_off_leaves_the_session_as_it_is() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let upload = client.start_upload("a");
    let mut stream = TcpStream::connect(registry.addr()).expect("connect");
    let head =
        format!("PATCH {upload} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\nabc");
    stream.write_all(head.as_bytes()).expect("send");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    // The half-open client still hears what became of its request, or at least the end.
    assert!(answers(&until_closed(&stream)).iter().all(|status| *status == 400));
    assert_eq!(client.get(&upload).expect_status(204).header("range"), Some("0-2"));
}

#[test]
fn tls_is_answered_in_plain_words() {
    let registry = Registry::start(&["--auth", "none"]);
    // A ClientHello as far as its first bytes go.
    let hello = [0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3, 0, 0, 0];
    for _ in 0..2 {
        let answer = exchange(&registry, &hello);
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    }
    let said = registry.stderr();
    assert_eq!(said.matches("a client speaks TLS here").count(), 1, "{said}");
}
