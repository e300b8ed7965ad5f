//! Manifests on the wire: bodies with two meanings, too large, too deep, or lying about sizes.
//! Each test bears the id of its line in the list of what has gone wrong in registries.

#[path = "support/process.rs"]
mod process;
mod support;

use std::fs;
use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use support::Registry;
use support::content::{
    DOCKER_LIST, DOCKER_MANIFEST, Image, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, descriptor, random,
    random_hex, sha256,
};
use support::http::{Client, Framing, Request, Response};

const MOST: usize = 4 * 1024 * 1024;

fn put(client: &Client, content_type: &str, body: impl Into<Vec<u8>>) -> Response {
    let request = Request::put("/v2/a/manifests/v1").header("Content-Type", content_type);
    client.send(request.body(body))
}

/// An image manifest of a config `{}` and what `rest` adds to it.
fn image_with(rest: &str) -> String {
    let config = descriptor("application/vnd.oci.empty.v1+json", b"{}");
    format!(r#"{{"schemaVersion":2,"config":{config}{rest}}}"#)
}

#[test]
fn type_confusion() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    client.push_blob("a", b"{}");
    let both = image_with(r#","layers":[],"manifests":[]"#);
    let typed = |kind: &str| image_with(&format!(r#","layers":[],"mediaType":"{kind}""#));
    for (content_type, body) in [
        (OCI_MANIFEST, both.clone()),
        (OCI_INDEX, both),
        (OCI_INDEX, image_with("")),
        (OCI_INDEX, image_with(r#","manifests":[]"#)),
        (OCI_INDEX, r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_owned()),
        (OCI_INDEX, typed(OCI_MANIFEST)),
        (OCI_MANIFEST, typed(OCI_INDEX)),
        (DOCKER_MANIFEST, typed(OCI_MANIFEST)),
        (DOCKER_LIST, image_with(r#","layers":[]"#)),
        (OCI_MANIFEST, image_with(r#","layers":[],"Manifests":[]"#)),
        (OCI_MANIFEST, image_with(r#","layers":[],"fsLayers":[]"#)),
        ("application/json", image_with(r#","layers":[]"#)),
        ("text/html", typed("text/html")),
        ("", image_with(r#","layers":[]"#)),
    ] {
        let answer = put(&client, content_type, body.as_str());
        let answer = answer.expect_error(400, "MANIFEST_INVALID");
        assert!(!answer.message().is_empty(), "{content_type} {body}: {answer:?}");
    }
    let old = r#"{"schemaVersion":1,"name":"a","tag":"v1","fsLayers":[],"history":[]}"#;
    let old = put(&client, "application/vnd.docker.distribution.manifest.v1+prettyjws", old);
    assert!(old.expect_error(400, "MANIFEST_INVALID").message().contains("schema 1"));
    let twice = Request::put("/v2/a/manifests/v1")
        .header("Content-Type", OCI_MANIFEST)
        .header("Content-Type", OCI_INDEX);
    client.send(twice.body(image_with(r#","layers":[]"#))).expect_error(400, "UNSUPPORTED");
    client.get("/v2/a/manifests/v1").expect_error(404, "MANIFEST_UNKNOWN");

    // What was stored is what is given, whatever the client would rather have.
    let plain = image_with(r#","layers":[]"#);
    put(&client, OCI_MANIFEST, plain.as_str()).expect_status(201);
    for accept in ["*/*", OCI_INDEX, DOCKER_MANIFEST, "text/html"] {
        let request = Request::get("/v2/a/manifests/v1").header("Accept", accept);
        let answer = client.send(request).expect_status(200);
        assert_eq!(answer.header("content-type"), Some(OCI_MANIFEST), "{accept}");
        assert_eq!(answer.body, plain.as_bytes(), "{accept}");
    }
    let digest = sha256(plain.as_bytes());
    let other = Request::put(format!("/v2/a/manifests/{digest}"))
        .header("Content-Type", OCI_MANIFEST)
        .body(format!("{plain}  "));
    client.send(other).expect_error(400, "DIGEST_INVALID");
}

#[test]
fn manifest_size() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    client.push_blob("a", b"{}");
    let filled = |len: usize| {
        let empty = image_with(r#","layers":[],"annotations":{"x":""}"#).len();
        let filler = "y".repeat(len - empty);
        image_with(&format!(r#","layers":[],"annotations":{{"x":"{filler}"}}"#))
    };
    let (most, more) = (filled(MOST), filled(MOST + 1));
    assert_eq!((most.len(), more.len()), (MOST, MOST + 1));
    let request = Request::put("/v2/a/manifests/v1").header("Content-Type", OCI_MANIFEST);
    let chunked = |body: &str| {
        client
            .stream(&request, Framing::Chunked, |out| {
                body.as_bytes().chunks(100_000).try_for_each(|piece| out.write_all(piece))
            })
            .expect("an answer")
    };
    put(&client, OCI_MANIFEST, most.as_str()).expect_status(201);
    chunked(&most).expect_status(201);
    put(&client, OCI_MANIFEST, more.as_str()).expect_error(413, "MANIFEST_INVALID");
    chunked(&more).expect_error(413, "MANIFEST_INVALID");
    // Announced or not, the rest is not read: the answer comes while the client still sends.
    let endless = |framing| {
        let zeros = vec![0; 64 * 1024];
        let mut sent = 0_u64;
        let answer = client.stream(&request, framing, |out| {
            while sent < 1 << 30 {
                out.write_all(&zeros)?;
                sent += zeros.len() as u64;
            }
            Ok(())
        });
        let answer = answer.expect("an answer").expect_error(413, "MANIFEST_INVALID");
        assert!(answer.message().contains("4194304"), "{answer:?}");
        assert!(sent < 1 << 28, "{sent} bytes were taken");
    };
    endless(Framing::Length(1 << 30));
    endless(Framing::Chunked);

    // A layer is no manifest, and is not read to find that out.
    let layer = client.push_blob("a", &random(8 * 1024 * 1024));
    client.get(&format!("/v2/a/manifests/{layer}")).expect_error(404, "MANIFEST_UNKNOWN");
    huge_layer(&mut registry);
}

/// 10 GB under a manifest's URL: neither a blob nor what a lying index.json calls a manifest is
/// read to its end, or into memory.
fn huge_layer(registry: &mut Registry) {
    const HUGE: u64 = 10 << 30;
    let image = Image::random(1000);
    registry.client().push_image("a", "fine", &image);
    let blobs = registry.root().join("a/blobs/sha256");
    let [plain, named] = [random_hex(32), random_hex(32)];
    for hex in [&plain, &named] {
        // Sparse: it takes no space.
        fs::File::create(blobs.join(hex)).and_then(|file| file.set_len(HUGE)).expect("a file");
    }
    expect_cheap(registry, &format!("manifests/sha256:{plain}"), 404);
    expect_cheap(registry, &format!("manifests/sha256:{named}"), 404);

    let index = registry.root().join("a/index.json");
    let text = fs::read_to_string(&index).expect("index.json");
    let entry = format!(
        r#""manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"sha256:{named}","size":{HUGE},"annotations":{{"org.opencontainers.image.ref.name":"huge"}}}},"#
    );
    let lying = text.replacen(r#""manifests":["#, &entry, 1);
    assert!(lying.len() > text.len(), "{text}");
    fs::write(&index, lying).expect("index.json");
    registry.expect_damage();
    expect_cheap(registry, &format!("manifests/sha256:{plain}"), 404);
    for broken in [&format!("manifests/sha256:{named}"), "manifests/huge"] {
        expect_cheap(registry, broken, 500);
    }
    assert!(registry.stderr().contains(&named), "no path in the log:\n{}", registry.stderr());
    // One lie hides nothing else.
    expect_cheap(registry, &format!("referrers/{}", image.digest), 200);
    registry.client().assert_pulls("a", "fine", &image);
}

fn expect_cheap(registry: &Registry, what: &str, status: u16) {
    let (pid, path) = (registry.pid(), format!("/v2/a/{what}"));
    let (before, begin) = (process::read_so_far(pid), Instant::now());
    let (_, memory) = process::most_memory_during(pid, || {
        registry.client().get(&path).expect_status(status);
        registry.client().head(&path)
    });
    let (read, took) = (process::read_so_far(pid) - before, begin.elapsed());
    assert!(took < Duration::from_secs(10), "{path} took {took:?}");
    assert!(read < 64 << 20, "{path}: {read} bytes were read");
    assert!(memory < 128 << 20, "{path}: {memory} bytes of memory");
}

#[test]
fn json() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    client.push_blob("a", b"{}");
    let size = |size: &str| {
        let digest = sha256(b"{}");
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{digest}","size":{size}}},"layers":[]}}"#
        )
    };
    let deep =
        |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    for body in [
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        "\"\"".to_owned(),
        "{}".to_owned(),
        "{".to_owned(),
        image_with(r#","layers":[]"#) + "{}",
        image_with(r#","layers":[]"#) + "\0",
        image_with(r#","layers":[],"layers":[]"#),
        image_with(r#","layers":[],"annotations":{"a":"b","a":"c"}"#),
        image_with(r#","layers":{}"#),
        image_with(r#","layers":[null]"#),
        image_with(r#","layers":[{"mediaType":"x","digest":"sha256:00","size":1}]"#),
        image_with(r#","layers":[],"subject":"x""#),
        image_with(r#","layers":[],"annotations":{"a":1}"#),
        image_with(&format!(r#","layers":[],"x":{}"#, deep("[", "]"))),
        image_with(&format!(
            r#","layers":[],"x":{}1{}"#,
            r#"{"y":"#.repeat(100_000),
            "}".repeat(100_000)
        )),
        deep("[", "]"),
        size("-1"),
        size("1e3"),
        size("9223372036854775808"),
        size("1.0"),
        size("\"2\""),
        r#"{"schemaVersion":3,"config":{},"layers":[]}"#.to_owned(),
        "\u{feff}{}".to_owned(),
    ] {
        let shown: String = body.chars().take(80).collect();
        let answer = put(&client, OCI_MANIFEST, body.as_str());
        assert_eq!((answer.status, answer.code().as_str()), (400, "MANIFEST_INVALID"), "{shown}");
        assert!(answer.body.len() < 4096, "{shown}: a long answer");
    }
    let not_text = put(&client, OCI_MANIFEST, b"{\"schemaVersion\":2,\"x\":\"\xff\"}".as_slice());
    not_text.expect_error(400, "MANIFEST_INVALID");

    // As many layers as fit into 4 MiB, none of them there.
    let layers: Vec<String> =
        (0..25_000_u32).map(|number| descriptor(OCI_LAYER, &number.to_be_bytes())).collect();
    let many = image_with(&format!(r#","layers":[{}]"#, layers.join(",")));
    assert!(many.len() < MOST, "{}", many.len());
    let answer = put(&client, OCI_MANIFEST, many).expect_error(400, "MANIFEST_BLOB_UNKNOWN");
    assert!(answer.body.len() < 64 * 1024, "{} bytes of errors", answer.body.len());
    let named = sha256(&0_u32.to_be_bytes());
    assert_eq!(answer.json()["errors"][0]["detail"]["digest"], named.as_str());
    assert!(answer.message().contains(&named), "{}", answer.message());

    // A million layers that are none: what a layer costs in bytes bounds the others.
    let numbers = vec!["1"; 1_000_000].join(",");
    let million = image_with(&format!(r#","layers":[{numbers}]"#));
    assert!(million.len() < MOST, "{}", million.len());
    let answer = put(&client, OCI_MANIFEST, million).expect_error(400, "MANIFEST_INVALID");
    assert!(answer.body.len() < 4096, "{} bytes of errors", answer.body.len());
}

#[test]
fn foreign_urls() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    elsewhere.set_nonblocking(true).expect("non-blocking");
    let url = format!("http://{}/layer", elsewhere.local_addr().expect("its address"));
    let digest = sha256(b"never pushed");
    let layer = format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"{digest}","size":12,"urls":["{url}"]}}"#
    );
    client.push_blob("a", b"{}");
    let body = image_with(&format!(r#","layers":[{layer}]"#));
    put(&client, OCI_MANIFEST, body.as_str()).expect_status(201);
    assert_eq!(client.get("/v2/a/manifests/v1").expect_status(200).body, body.as_bytes());
    client.get(&format!("/v2/a/blobs/{digest}")).expect_error(404, "BLOB_UNKNOWN");
    let dialled = elsewhere.accept().map(|(_, peer)| peer);
    assert_eq!(dialled.unwrap_err().kind(), io::ErrorKind::WouldBlock);
}
