//! Manifests on the wire: bodies with two meanings, too large, too deep, or lying about sizes.
//! Each test bears the id of its line in the list of what has gone wrong in registries.

mod support;

use std::fs;
use std::io;
use std::net::TcpListener;

use support::Registry;
use support::content::{
    DOCKER_LIST, DOCKER_MANIFEST, Image, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST,
    descriptor, random, referrer, sha256,
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
    let registry = Registry::start(&["--auth", "none"]);
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
}

#[test]
fn json() {
    let mut registry = Registry::start(&["--auth", "none"]);
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

    damaged_index(&mut registry, &client);
}

/// An index.json that cannot be read: 500, the path in the log, never overwritten; others go on.
fn damaged_index(registry: &mut Registry, client: &Client) {
    let image = Image::random(1000);
    client.push_image("fine", "v1", &image);
    registry.expect_damage();
    for (repo, text) in [
        ("deep", format!("{{\"schemaVersion\":2,\"manifests\":{}", "[".repeat(100_000))),
        ("cut", r#"{"schemaVersion":2,"manifests":[{"mediaType":"#.to_owned()),
        (
            "negative",
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:00","size":-1}]}"#
                .to_owned(),
        ),
        ("empty", String::new()),
    ] {
        registry.client().push_image(repo, "v1", &image);
        let path = registry.root().join(repo).join("index.json");
        fs::write(&path, &text).expect("write index.json");
        // Younger than two seconds it might be half written: then the last good one counts.
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        fs::File::options().write(true).open(&path).expect("open").set_modified(old).expect("time");
        registry.restart();
        let client = registry.client();
        client.get(&format!("/v2/{repo}/manifests/v1")).expect_error(500, "UNKNOWN");
        client.get(&format!("/v2/{repo}/tags/list")).expect_error(500, "UNKNOWN");
        let push = Request::put(format!("/v2/{repo}/manifests/v2"))
            .header("Content-Type", OCI_MANIFEST)
            .body(image.manifest.as_slice());
        let answer = client.send(push).expect_error(500, "UNKNOWN");
        let root = registry.root().display().to_string();
        assert!(!answer.text().contains(&root), "our paths are not the client's: {answer:?}");
        assert_eq!(fs::read_to_string(&path).expect("index.json"), text, "it was overwritten");
        let log = registry.stderr();
        assert!(log.contains(&format!("{repo}/index.json")), "no path in the log:\n{log}");
        client.assert_pulls("fine", "v1", &image);
    }
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

#[test]
fn referrers() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let image = Image::random(1000);
    client.push_image("a", "v1", &image);
    client.push_blob("a", b"{}");
    let list = |path: &str| {
        let answer = client.get(path).expect_status(200);
        assert_eq!(answer.header("content-type"), Some(OCI_INDEX), "{answer:?}");
        answer
    };
    let subject = image.digest.as_str();
    let path = format!("/v2/a/referrers/{subject}");
    assert_eq!(list(&path).json()["manifests"], serde_json::json!([]));
    assert_eq!(
        list(&format!("/v2/none/referrers/{subject}")).json()["manifests"],
        serde_json::json!([])
    );

    // More than a client reads of one document: pages, none lost, none twice.
    let filler = "y".repeat(100_000);
    let mut pushed = Vec::new();
    for number in 0..60 {
        let text = referrer(subject, image.manifest.len(), "application/x.sig+json");
        let text = String::from_utf8(text).expect("text");
        let text = text.replace(r#""nonce":"#, &format!(r#""filler":"{filler}","nonce":"#));
        let digest = sha256(text.as_bytes());
        let request = Request::put(format!("/v2/a/manifests/{digest}"))
            .header("Content-Type", OCI_MANIFEST)
            .body(text);
        let answer = client.send(request).expect_status(201);
        assert_eq!(answer.header("oci-subject"), Some(subject), "{number}");
        pushed.push(digest);
    }
    pushed.sort();
    for filter in
        ["", "?artifactType=application%2Fx.sig%2Bjson", "?artifactType=application/x.sig+json"]
    {
        let mut found = Vec::new();
        let mut pages = 0;
        let mut next = Some(format!("{path}{filter}"));
        while let Some(page) = next {
            let answer = list(&page);
            assert!(answer.body.len() <= MOST, "{} bytes", answer.body.len());
            let applied = (!filter.is_empty()).then_some("artifactType");
            assert_eq!(answer.header("oci-filters-applied"), applied, "{page}");
            let json = answer.json();
            for entry in json["manifests"].as_array().expect("an array") {
                assert_eq!(entry["artifactType"], "application/x.sig+json");
                assert_eq!(entry["annotations"]["filler"].as_str().map(str::len), Some(100_000));
                found.push(entry["digest"].as_str().expect("a digest").to_owned());
            }
            pages += 1;
            next = answer.header("link").map(|link| {
                link.strip_prefix('<').and_then(|l| l.split_once('>')).expect("a Link").0.to_owned()
            });
        }
        found.sort();
        assert_eq!(found, pushed, "{filter}");
        assert!(pages > 1, "{pages}");
    }
    let other = list(&format!("{path}?artifactType=other"));
    assert_eq!(other.json()["manifests"], serde_json::json!([]));
    assert_eq!(other.header("oci-filters-applied"), Some("artifactType"));

    // A subject elsewhere, or nowhere: accepted, listed here, and not there.
    let absent = sha256(b"absent");
    let config = descriptor(OCI_CONFIG, &image.config);
    for repo in ["a", "b"] {
        client.push_blob(repo, &image.config);
        let body = format!(
            r#"{{"schemaVersion":2,"config":{config},"layers":[],"subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{absent}","size":5}},"annotations":{{"in":"{repo}"}}}}"#
        );
        let request = Request::put(format!("/v2/{repo}/manifests/signature"))
            .header("Content-Type", OCI_MANIFEST)
            .body(body);
        client.send(request).expect_status(201);
        let json = list(&format!("/v2/{repo}/referrers/{absent}")).json();
        assert_eq!(json["manifests"].as_array().map(Vec::len), Some(1), "{json}");
        assert_eq!(json["manifests"][0]["annotations"]["in"], repo);
        assert_eq!(json["manifests"][0]["artifactType"], OCI_CONFIG);
    }
}
