//! Names on the wire: what a request calls things, and what the server takes that for.
//! Each test bears the id of its line in the list of what has gone wrong in registries.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::Registry;
use support::content::{Image, sha256};
use support::http::{Client, Request};
use support::snapshot::snapshot;

const ID: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn percent_encoding() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let image = Image::random(100);
    client.push_image("team/private", "v1", &image);

    for same in ["/v2/team/privat%65/manifests/v1", "/v2/team%2Fprivate/manifests/%76%31"] {
        assert_eq!(client.get(same).expect_status(200).body, image.manifest, "{same}");
    }
    for bad in [
        "/v2/team/%2e%2e/team/private/manifests/v1",
        "/v2/team/../team/private/manifests/v1",
        "/v2/team/%2E/private/manifests/v1",
        "/v2/team/privat%2565/manifests/v1",
        "/v2/team%252Fprivate/manifests/v1",
        "/v2/team/private%c0%ae/manifests/v1",
        "/v2/team%c0%afprivate/manifests/v1",
        "/v2/team/private%e0%80%ae/manifests/v1",
        "/v2/team/private%ff/manifests/v1",
        "/v2/team/private%/manifests/v1",
        "/v2/team/private%zz/manifests/v1",
        "/v2/team/private%u0065/manifests/v1",
    ] {
        client.get(bad).expect_error(400, "NAME_INVALID");
    }
    let upload = client.start_upload("team/private");
    for bad in ["%", "%4", "%zz", "%ff", "sha256%253A00"] {
        let put = Request::put(format!("{upload}?digest={bad}")).body("x");
        let answer = client.send(put).expect_status(400);
        assert!(matches!(answer.code().as_str(), "UNSUPPORTED" | "DIGEST_INVALID"), "{answer:?}");
    }
}

/// However a name is written: who may not read it is told what strangers are told.
#[test]
fn percent_encoding_opens_nothing_that_is_closed() {
    let registry = Registry::start(&["--auth", "none"]);
    let image = Image::random(100);
    for repo in ["team/private", "team/public"] {
        registry.client().push_image(repo, "v1", &image);
    }
    let closed = registry.root().join("team/private");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("chmod");
    // The same tree with logins, where anonymous may pull what others may read.
    let gate = Registry::start_on(registry.root(), &["--auth", "pam", "--anonymous", "pull"]);
    let token = gate.client().token("", "", &["repository:team/private:pull"]).expect("a token");
    let both = "repository:team/public:pull";
    let public = gate.client().token("", "", &[both]).expect("a token");
    for (token, expected) in [(&token, 401), (&public, 401)] {
        let client = gate.client().with_authorization(format!("Bearer {token}"));
        for name in [
            "team/private",
            "team/privat%65",
            "team%2Fprivate",
            "team%2fprivat%65",
            "%74%65%61%6d/private",
        ] {
            for rest in ["manifests/v1", "tags/list", &format!("blobs/{}", sha256(&image.config))] {
                let path = format!("/v2/{name}/{rest}");
                client.get(&path).expect_status(expected);
            }
        }
    }
    let client = gate.client().with_authorization(format!("Bearer {public}"));
    let same = client.get("/v2/team%2Fpubli%63/manifests/v1").expect_status(200);
    assert_eq!(same.body, image.manifest);
}

#[test]
fn control_characters() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let before = snapshot(registry.root());
    let digest = sha256(b"x");
    for escaped in ["%00", "%0d%0aX-Evil:%201", "%0a", "%7f", "%1b%5b31m", "%c2%85"] {
        for path in [
            format!("/v2/a{escaped}/manifests/v1"),
            format!("/v2/a/manifests/v1{escaped}"),
            format!("/v2/a/blobs/{digest}{escaped}"),
            format!("/v2/a/blobs/uploads/{ID}{escaped}"),
            format!("/v2/a/tags/list?last={escaped}"),
            format!("/v2/_catalog?n=1&x={escaped}"),
            format!("/token?service=x&scope=repository:a{escaped}:pull"),
            format!("/v2/a/referrers/{digest}?artifactType=a/b{escaped}"),
        ] {
            for method in ["GET", "PUT", "DELETE"] {
                let answer = client.send(Request::new(method, path.as_str()));
                assert_eq!(answer.status, 400, "{method} {path}: {answer:?}");
                assert!(answer.header("x-evil").is_none(), "{path}: {answer:?}");
            }
        }
    }
    // Unescaped ones never get as far as a path.
    for byte in [0_u8, 0x0b, 0x7f] {
        let mut request = b"GET /v2/a".to_vec();
        request.push(byte);
        request.extend_from_slice(b"/tags/list HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        let answer = String::from_utf8_lossy(&client.raw(&request)).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{byte}: {answer}");
    }
    for line in registry.stderr().lines() {
        assert!(!line.contains(char::is_control), "{line:?}");
        let level = line.split_whitespace().nth(1);
        assert!(matches!(level, Some("INFO" | "WARN")), "a forged line? {line:?}");
    }
    assert_eq!(before, snapshot(registry.root()), "something was left in the tree");
}

#[test]
fn names() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let before = snapshot(registry.root());
    let long = "a".repeat(256);
    for name in [
        "A/B",
        "a/B",
        "_catalog",
        ".stillage",
        ".stillage/uploads",
        "a..b",
        "a/-b",
        "a_",
        "a//b",
        "blobs",
        "a/blobs",
        "index.json",
        "oci-layout/x",
        "a/blobs/uploads/b",
        "_manifests/x",
        &long,
    ] {
        for (method, rest) in [
            ("GET", "tags/list"),
            ("GET", "manifests/v1"),
            ("PUT", "manifests/v1"),
            ("DELETE", "manifests/v1"),
            ("POST", "blobs/uploads/"),
        ] {
            let path = format!("/v2/{name}/{rest}");
            let answer = client.send(Request::new(method, path)).expect_error(400, "NAME_INVALID");
            assert!(!answer.message().is_empty(), "{answer:?}");
        }
    }
    for tag in [".x", "-x", "a%20b", "%C3%A4", &"x".repeat(129)] {
        let path = format!("/v2/a/manifests/{tag}");
        client.get(&path).expect_error(400, "TAG_INVALID");
        client.send(Request::put(path).body("{}")).expect_error(400, "TAG_INVALID");
    }
    // The words of the API are names like any others where they are unambiguous.
    for name in ["tags", "manifests/list", "a/tags/list", "referrers", "uploads", "v2/_catalog2"] {
        let answer = client.get(&format!("/v2/{name}/tags/list"));
        let known = matches!(answer.code().as_str(), "NAME_UNKNOWN" | "NAME_INVALID");
        assert!(known, "{name}: {answer:?}");
    }
    client.get("/v2/manifests/list/tags/list").expect_error(404, "NAME_UNKNOWN");
    client.get("/v1/search?q=a").expect_error(404, "UNSUPPORTED");
    client.get("/extensions/v2/a/signatures/x").expect_error(404, "UNSUPPORTED");
    assert_eq!(before, snapshot(registry.root()), "something was left in the tree");
}

#[test]
fn digests() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let before = snapshot(registry.root());
    let good = sha256(b"x");
    for digest in [
        "sha256:..%2f..%2fetc%2fpasswd",
        "sha256:",
        "sha256:00",
        "sha512:00",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        "sha256+b64:x",
        "nonsense",
        &good.to_uppercase(),
        &format!("{}A", &good[..70]),
        &format!("{good}0"),
        &good.replace(':', "%3A%3A"),
    ] {
        for path in [format!("/v2/a/blobs/{digest}"), format!("/v2/a/referrers/{digest}")] {
            let answer = client.get(&path);
            // A slash in it makes it another path, which no route has.
            let refused = matches!(answer.code().as_str(), "DIGEST_INVALID" | "NAME_INVALID");
            assert!(answer.status == 400 && refused, "{path}: {answer:?}");
        }
        if digest.contains(':') && !digest.contains("%2f") {
            client.get(&format!("/v2/a/manifests/{digest}")).expect_error(400, "DIGEST_INVALID");
        }
        for post in [format!("digest={digest}"), format!("mount={digest}")] {
            let post = Request::post(format!("/v2/a/blobs/uploads/?{post}")).body("x");
            client.send(post).expect_error(400, "DIGEST_INVALID");
        }
    }
    client.get("/v2/a/manifests/sha256:..%2f..%2fx").expect_error(400, "NAME_INVALID");
    let put = Request::put(format!("/v2/a/blobs/uploads/{ID}"));
    client.send(put).expect_error(400, "DIGEST_INVALID");
    let post = Request::post("/v2/a/blobs/uploads/?digest-algorithm=md5");
    client.send(post).expect_error(400, "DIGEST_INVALID");
    assert_eq!(before, snapshot(registry.root()), "something was left in the tree");
}

#[test]
fn page_size() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let image = Image::random(100);
    let tags = ["a", "b", "c", "d", "e"];
    for (tag, repo) in tags.iter().zip(["r/e", "r/d", "r/c", "r/b", "r/a"]) {
        client.push_image(repo, tag, &image);
        client.push_image("many", tag, &image);
    }
    let before = memory(&registry);
    for list in ["/v2/_catalog", "/v2/many/tags/list"] {
        for bad in ["", "-1", "abc", "1e3", "0x10", "1,2", "%2b5"] {
            client.get(&format!("{list}?n={bad}")).expect_error(400, "PAGINATION_NUMBER_INVALID");
        }
        for many in ["2147483648", "9223372036854775808", "99999999999999999999999999"] {
            let answer = client.get(&format!("{list}?n={many}")).expect_status(200);
            assert!(items(&answer).len() >= 5 && answer.header("link").is_none(), "{answer:?}");
        }
        let none = client.get(&format!("{list}?n=0")).expect_status(200);
        assert!(items(&none).is_empty() && none.header("link").is_none(), "{none:?}");
    }
    assert!(memory(&registry) < before + 32 * 1024, "a large n took memory");

    assert_eq!(walk(&client, "/v2/many/tags/list?n=2"), tags);
    assert_eq!(walk(&client, "/v2/_catalog?n=2"), ["many", "r/a", "r/b", "r/c", "r/d", "r/e"]);
    let after = client.get("/v2/many/tags/list?last=b%21").expect_status(200);
    assert_eq!(items(&after), ["c", "d", "e"]);
    client.get("/v2/many/tags/list?n=1&n=2").expect_error(400, "UNSUPPORTED");
    client.get("/v2/none/tags/list?n=0").expect_error(404, "NAME_UNKNOWN");
}

#[test]
fn head_changes_nothing() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let image = Image::random(100);
    client.push_image("there", "v1", &image);
    let before = snapshot(registry.root());
    let absent = sha256(b"absent");
    for repo in ["there", "there/below", "nowhere", "nowhere/at/all"] {
        for path in [
            format!("/v2/{repo}/blobs/{absent}"),
            format!("/v2/{repo}/manifests/{absent}"),
            format!("/v2/{repo}/manifests/absent"),
            format!("/v2/{repo}/blobs/uploads/{ID}"),
        ] {
            for method in ["GET", "HEAD"] {
                let answer = client.send(Request::new(method, path.as_str()));
                let expected = if method == "HEAD" && path.contains("uploads") { 405 } else { 404 };
                assert_eq!(answer.status, expected, "{method} {path}: {answer:?}");
            }
        }
        client.get(&format!("/v2/{repo}/referrers/{absent}")).expect_status(200);
        if repo != "there" {
            client.get(&format!("/v2/{repo}/tags/list")).expect_error(404, "NAME_UNKNOWN");
        }
        for refused in [
            Request::patch(format!("/v2/{repo}/blobs/uploads/{ID}")).body("x"),
            Request::put(format!("/v2/{repo}/blobs/uploads/{ID}?digest={absent}")).body("x"),
            Request::delete(format!("/v2/{repo}/blobs/uploads/{ID}")),
            Request::patch(format!("/v2/{repo}/blobs/uploads/..%2f{ID}")).body("x"),
            Request::patch(format!("/v2/{repo}/blobs/uploads/{}", "a".repeat(4096))).body("x"),
        ] {
            let answer = client.send(refused);
            assert!(matches!(answer.status, 400 | 404), "{answer:?}");
        }
    }
    assert_eq!(before, snapshot(registry.root()), "asking for what is not there left something");
}

fn items(answer: &support::http::Response) -> Vec<String> {
    let json = answer.json();
    let list = json.get("tags").or_else(|| json.get("repositories")).expect("a list");
    let list = list.as_array().expect("an array, never null");
    list.iter().map(|item| item.as_str().expect("text").to_owned()).collect()
}

/// Follows the Links of a list to its end.
fn walk(client: &Client, first: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(path) = next {
        let answer = client.get(&path).expect_status(200);
        all.extend(items(&answer));
        next = answer.header("link").map(|link| {
            let (url, rel) = link.split_once('>').expect("a Link in angle brackets");
            assert_eq!(rel, "; rel=\"next\"", "{link}");
            url.strip_prefix('<').expect("a Link in angle brackets").to_owned()
        });
    }
    all
}

/// The server's resident memory in KiB.
fn memory(registry: &Registry) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", registry.pid())).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}
