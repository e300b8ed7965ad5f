//! Blobs on the wire: ranges, uploads that contend, encodings, files that were cut short.
//! Each test bears the id of its line in the list of what has gone wrong in registries.

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use support::Registry;
use support::content::{Image, OCI_MANIFEST, random, sha256, sha512, with_query};
use support::http::{Framing, Request};

#[test]
fn ranges() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let blob = random(2048);
    let digest = client.push_blob("a", &blob);
    let path = format!("/v2/a/blobs/{digest}");
    let range = |text: &str| client.send(Request::get(path.as_str()).header("Range", text));

    for (asked, first, last) in [
        ("bytes=500-1499", 500, 1499),
        ("bytes=0-0", 0, 0),
        ("bytes=500-", 500, 2047),
        ("bytes=-500", 1548, 2047),
        ("bytes=-99999", 0, 2047),
        ("bytes=2000-5000", 2000, 2047),
        ("bytes=0-18446744073709551615", 0, 2047),
        ("Bytes=1-2", 1, 2),
    ] {
        let answer = range(asked).expect_status(206);
        assert_eq!(answer.body, blob[first..=last], "{asked}");
        let said = format!("bytes {first}-{last}/2048");
        assert_eq!(answer.header("content-range"), Some(said.as_str()), "{asked}");
        let len = (last - first + 1).to_string();
        assert_eq!(answer.header("content-length"), Some(len.as_str()), "{asked}");
        assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()), "{asked}");
    }
    let several = |count: usize| {
        let ranges: Vec<String> = (0..count).map(|at| format!("{at}-{at}")).collect();
        format!("bytes={}", ranges.join(","))
    };
    for asked in [
        "bytes=-0",
        "bytes=5-2",
        "bytes=500-0",
        "bytes=2048-",
        "bytes=5000-10000",
        "bytes=x-y",
        "bytes=+1-2",
        "bytes",
        "bytes=--1",
        "bytes=0-18446744073709551616",
        "bytes=18446744073709551616-",
        &several(17),
        &several(1000),
    ] {
        let answer = range(asked).expect_error(416, "RANGE_INVALID");
        assert_eq!(answer.header("content-range"), Some("bytes */2048"), "{asked}");
    }
    // A few ranges, and units that we do not know: the whole is right (RFC 9110, 14.2).
    for asked in [several(2), several(16), "lines=1-2".to_owned()] {
        assert_eq!(range(&asked).expect_status(200).body, blob, "{asked}");
    }
    let head = client.send(Request::head(path.as_str()).header("Range", "bytes=5-2"));
    assert_eq!(head.expect_status(200).header("content-length"), Some("2048"));

    let etag = format!("\"{digest}\"");
    let ask = |name: &str, value: &str| {
        client.send(Request::get(path.as_str()).header("Range", "bytes=1-2").header(name, value))
    };
    assert_eq!(ask("If-Range", &etag).expect_status(206).body, blob[1..=2]);
    assert_eq!(ask("If-Range", "\"other\"").expect_status(200).body, blob);
    let same = ask("If-None-Match", &etag).expect_status(304);
    assert_eq!((same.header("etag"), same.body.len()), (Some(etag.as_str()), 0));

    let empty = client.push_blob("a", b"");
    let none =
        client.send(Request::get(format!("/v2/a/blobs/{empty}")).header("Range", "bytes=0-0"));
    assert_eq!(none.expect_status(416).header("content-range"), Some("bytes */0"));
}

#[test]
fn ranges_of_uploads() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let blob = random(3000);
    let digest = sha256(&blob);
    let upload = client.start_upload("a");
    let status = |expected: &str| {
        // With a digest in the query too: clients ask at the URL of the PUT that was refused.
        let answer = client.get(&with_query(&upload, &format!("digest={digest}")));
        assert_eq!(answer.expect_status(204).header("range"), Some(expected));
    };
    status("0-0");
    let patch = |range: &str, bytes: &[u8]| {
        client.send(Request::patch(upload.as_str()).header("Content-Range", range).body(bytes))
    };
    let accepted = patch("0-999", &blob[..1000]).expect_status(202);
    assert_eq!(accepted.header("range"), Some("0-999"));
    assert_eq!(accepted.location(), upload);

    for (range, len) in [
        ("2000-2999", 1000), // a gap
        ("500-1499", 1000),  // an overlap
        ("0-999", 1000),     // the same again
        ("-5-10", 16),       // negative
        ("1000-500", 1),     // backwards
        ("x-y", 4),
        ("1000", 4),
        ("1000-18446744073709551615", 4),
    ] {
        let answer = patch(range, &random(len)).expect_error(416, "BLOB_UPLOAD_INVALID");
        assert_eq!(answer.header("range"), Some("0-999"), "{range}: {answer:?}");
        assert_eq!(answer.location(), upload, "{range}");
        status("0-999");
    }
    // The body is not as long as its range says: nothing of it counts.
    for len in [999, 1001] {
        patch("1000-1999", &random(len)).expect_error(400, "SIZE_INVALID");
        status("0-999");
    }
    let put = |range: &str, bytes: &[u8]| {
        let path = with_query(&upload, &format!("digest={digest}"));
        client.send(Request::put(path).header("Content-Range", range).body(bytes))
    };
    put("0-999", &blob[..1000]).expect_error(416, "BLOB_UPLOAD_INVALID");
    status("0-999");
    patch("1000-1999", &blob[1000..2000]).expect_status(202);
    status("0-1999");
    let stored = put("2000-2999", &blob[2000..]).expect_status(201);
    assert_eq!(stored.header("docker-content-digest"), Some(digest.as_str()));
    assert_eq!(client.get(&stored.location()).expect_status(200).body, blob);
    client.get(&upload).expect_error(404, "BLOB_UPLOAD_UNKNOWN");

    let upload = client.start_upload("a");
    client.delete(&upload).expect_status(204);
    client.delete(&upload).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    let other = client.start_upload("b").replace("/v2/b/", "/v2/a/");
    client.get(&other).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
}

#[test]
fn digest_algorithms() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let blob = random(1000);
    let digest = sha512(&blob);
    // Told at the beginning, and only at the end.
    for (repo, query) in [("a", "?digest-algorithm=sha512"), ("b", "")] {
        let begun = client.send(Request::post(format!("/v2/{repo}/blobs/uploads/{query}")));
        let upload = begun.expect_status(202).location();
        client.send(Request::patch(upload.as_str()).body(&blob[..500])).expect_status(202);
        let put = Request::put(with_query(&upload, &format!("digest={digest}"))).body(&blob[500..]);
        let stored = client.send(put).expect_status(201);
        assert_eq!(stored.header("docker-content-digest"), Some(digest.as_str()));
        assert_eq!(client.get(&stored.location()).expect_status(200).body, blob);
    }
    let wrong = Request::post(format!("/v2/c/blobs/uploads/?digest={digest}")).body("other");
    client.send(wrong).expect_error(400, "DIGEST_INVALID");
    client.get(&format!("/v2/c/blobs/{digest}")).expect_error(404, "BLOB_UNKNOWN");
}

#[test]
fn same_upload_twice() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let blob = random(100_000);
    let upload = client.start_upload("a");
    let range = format!("0-{}", blob.len() - 1);
    let patch = Request::patch(upload.as_str()).header("Content-Range", range);
    let mut second = 0;
    let first = client
        .stream(&patch, Framing::Length(blob.len() as u64), |body| {
            body.write_all(&blob[..50_000])?;
            second = client.send(patch.clone().body(blob.as_slice())).status;
            body.write_all(&blob[50_000..])
        })
        .expect("an answer");
    let statuses = [first.status, second];
    assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1, "{statuses:?}");
    assert!(statuses.iter().any(|status| matches!(status, 409 | 416)), "{statuses:?}");
    let digest = sha256(&blob);
    let put = Request::put(with_query(&upload, &format!("digest={digest}")));
    let stored = client.send(put).expect_status(201);
    assert_eq!(client.get(&stored.location()).expect_status(200).body, blob);
}

#[test]
fn content_encoding() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let digest = sha256(b"x");
    let upload = client.start_upload("a");
    let finish = with_query(&upload, &format!("digest={digest}"));
    for request in [
        Request::patch(upload.as_str()),
        Request::put(finish.as_str()),
        Request::post(format!("/v2/a/blobs/uploads/?digest={digest}")),
        Request::put("/v2/a/manifests/v1").header("Content-Type", OCI_MANIFEST),
    ] {
        for encoding in ["gzip", "identity, zstd", "\u{e4}"] {
            let request = request.clone().header("Content-Encoding", encoding).body("x");
            client.send(request).expect_error(415, "UNSUPPORTED");
        }
    }
    assert_eq!(client.get(&upload).expect_status(204).header("range"), Some("0-0"));
    let plain = Request::put(finish).header("Content-Encoding", "identity").body("x");
    client.send(plain).expect_status(201);
}

#[test]
fn short_blob() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let blob = random(32 * 1024 * 1024);
    let digest = client.push_blob("a", &blob);
    let image = Image::random(1000);
    client.push_image("a", "v1", &image);
    let path = format!("/v2/a/blobs/{digest}");

    // While it is sent: the connection ends before the length that was promised.
    let mut slow = TcpStream::connect(registry.addr()).expect("connect");
    write!(slow, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").expect("send");
    let mut head = vec![0; 1024];
    slow.read_exact(&mut head).expect("the head");
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!(head.contains(&format!("content-length: {}\r\n", blob.len())), "{head}");
    truncate(&registry, &digest, 1000);
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(rest.len() < blob.len() - 1024, "{} bytes of a file that is not there", rest.len());

    // Before it is asked for: an error, for GET, a part of it, and as a manifest. Who may push is told
    // by HEAD that it is absent, for what he then pushes takes its place.
    let stored = image.digest.as_str();
    truncate(&registry, stored, 10);
    registry.restart();
    let client = registry.client();
    client.get(&path).expect_error(500, "UNKNOWN");
    client.head(&path).expect_status(404);
    let part = Request::get(path.as_str()).header("Range", "bytes=0-9");
    client.send(part).expect_error(500, "UNKNOWN");
    client.get(&format!("/v2/a/manifests/{stored}")).expect_error(500, "UNKNOWN");
    client.get("/v2/a/manifests/v1").expect_error(500, "UNKNOWN");
    let log = registry.stderr();
    assert!(log.contains(&digest["sha256:".len()..]), "the log names no path:\n{log}");
    registry.expect_damage();
    let (code, found) = registry.check();
    assert_eq!(code, Some(4), "{found}");
}

fn file_of(registry: &Registry, digest: &str) -> PathBuf {
    registry.root().join("a/blobs").join(digest.replace(':', "/"))
}

/// Cuts a blob as a failing disk or a careless person would.
fn truncate(registry: &Registry, digest: &str, len: u64) {
    let path = file_of(registry, digest);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
    let file = File::options().write(true).open(&path).expect("the blob's file");
    file.set_len(len).expect("truncate");
}
