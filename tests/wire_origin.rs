//! Where requests come from: proxies, browsers, and those who pretend.
//! Each test bears the id of its line in the list of what has gone wrong in registries.

mod support;

use support::Registry;
use support::content::sha256;
use support::http::{Request, Response};

fn realm(answer: &Response) -> &str {
    let challenge = answer.header("www-authenticate").unwrap_or_default();
    let realm = challenge.strip_prefix("Bearer realm=\"").and_then(|rest| rest.split('"').next());
    realm.unwrap_or_else(|| panic!("no realm: {answer:?}"))
}

/// What `/v2/` answers to a request with these headers.
fn ping(registry: &Registry, headers: &[(&str, &str)]) -> Response {
    let mut request = Request::get("/v2/");
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    registry.client().send(request)
}

#[test]
fn forwarded() {
    let registry = Registry::start(&["--auth", "pam"]);
    let direct = ping(&registry, &[]).expect_error(401, "UNAUTHORIZED");
    assert_eq!(realm(&direct), format!("http://{}/token", registry.addr()));
    let named = ping(&registry, &[("Host", "Reg.internal:5000")]).expect_status(401);
    assert_eq!(realm(&named), "http://reg.internal:5000/token");
    // Whoever speaks like a proxy and is not named as one gets no realm to send passwords to.
    for (name, value) in [
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Real-IP", "203.0.113.9"),
        ("Forwarded", "for=203.0.113.9;proto=https;host=evil.example"),
    ] {
        let answer = ping(&registry, &[(name, value)]).expect_error(400, "UNSUPPORTED");
        assert!(answer.header("www-authenticate").is_none(), "{answer:?}");
        assert!(answer.message().contains("--external-url"), "{answer:?}");
    }
    // Nothing else hangs on it: what needs no challenge is answered.
    let token = registry.client().token("", "", &["repository:a:pull"]).expect("a token");
    let request = Request::get("/v2/").bearer(&token).header("X-Forwarded-Proto", "https");
    registry.client().send(request).expect_status(200);
    assert!(!registry.stderr().contains("203.0.113.9"), "a stranger's word about addresses");
}

#[test]
fn forwarded_by_trusted_proxies() {
    let trusting =
        ["--auth", "pam", "--trusted-proxy", "127.0.0.1", "--trusted-proxy", "10.0.0.0/8"];
    let registry = Registry::start(&trusting);
    for (headers, expected) in [
        (&[][..], format!("http://{}/token", registry.addr())),
        (
            &[("Host", "reg.example"), ("X-Forwarded-Proto", "https")],
            "https://reg.example/token".into(),
        ),
        (
            &[("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "evil.example, reg.example")],
            "https://reg.example/token".into(),
        ),
        (
            // Two trusted proxies: the word of the outer one counts, not what stands before it.
            &[
                ("X-Forwarded-For", "6.6.6.6, 203.0.113.1, 10.1.2.3"),
                ("X-Forwarded-Proto", "gopher, https, http"),
                ("X-Forwarded-Host", "evil.example, reg.example, inner"),
            ],
            "https://reg.example/token".into(),
        ),
        (
            &[("Forwarded", "for=\"[2001:db8::7]:4711\";proto=https;host=reg.example:8443")],
            "https://reg.example:8443/token".into(),
        ),
        (
            // The proxy sets the one and passes the other on as the client wrote it.
            &[
                ("X-Forwarded-Proto", "https"),
                ("X-Forwarded-Host", "reg.example"),
                ("Forwarded", "for=6.6.6.7;proto=https;host=evil.example"),
            ],
            "https://reg.example/token".into(),
        ),
    ] {
        let answer = ping(&registry, headers).expect_error(401, "UNAUTHORIZED");
        assert_eq!(realm(&answer), expected, "{headers:?}");
    }
    for (name, value) in [
        ("X-Forwarded-Host", "evil.example\""),
        ("X-Forwarded-Host", "a b"),
        ("X-Forwarded-Proto", "javascript"),
    ] {
        ping(&registry, &[(name, value)]).expect_error(400, "UNSUPPORTED");
    }
    let log = registry.stderr();
    for seen in ["client=203.0.113.1 ", "client=2001:db8::7 "] {
        assert!(log.contains(seen), "{seen}:\n{log}");
    }
    assert!(!log.contains("client=6.6.6."), "the left end is anybody's:\n{log}");
}

#[test]
fn forwarded_with_an_external_url() {
    let registry = Registry::start(&["--auth", "pam", "--external-url", "https://reg.example/"]);
    for headers in [
        &[][..],
        &[("Host", "evil.example")],
        &[("X-Forwarded-Host", "evil.example"), ("X-Forwarded-For", "6.6.6.6")],
        &[("Forwarded", "host=evil.example;proto=http")],
    ] {
        let answer = ping(&registry, headers).expect_error(401, "UNAUTHORIZED");
        assert_eq!(realm(&answer), "https://reg.example/token", "{headers:?}");
    }
    assert!(!registry.stderr().contains("client=6.6.6.6"));
}

#[test]
fn forwarded_or_not_locations_are_relative() {
    let registry = Registry::start(&["--auth", "none"]);
    let headers = [("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Proto", "https")];
    let begin = headers
        .iter()
        .fold(Request::post("/v2/a/blobs/uploads/"), |request, (k, v)| request.header(k, *v));
    let answer = registry.client().send(begin).expect_status(202);
    let location = answer.header("location").expect("Location");
    assert!(location.starts_with("/v2/a/blobs/uploads/"), "{location}");
}

#[test]
fn browser() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let page = b"<html><script>alert(1)</script></html>";
    let drawing = b"<svg xmlns=\"http://www.w3.org/2000/svg\" onload=\"alert(1)\"/>";
    for body in [page.as_slice(), drawing] {
        let digest = client.push_blob("a", body);
        let get = Request::get(format!("/v2/a/blobs/{digest}")).header("Accept", "text/html");
        let answer = client.send(get).expect_status(200);
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        harmless(&answer);
    }
    let markup = client.get("/v2/a/manifests/%3Cscript%3E").expect_error(400, "TAG_INVALID");
    harmless(&markup);
    harmless(&client.get("/v2/"));

    // A name that was made to point here, or a page of another site: not without logins.
    let port = registry.addr().port();
    let digest = sha256(page);
    let ask = |method: &str, headers: &[(&str, &str)]| {
        let path = match method {
            "POST" => "/v2/a/blobs/uploads/".to_owned(),
            _ => format!("/v2/a/blobs/{digest}"),
        };
        let request = headers.iter().fold(Request::new(method, path), |r, (k, v)| r.header(k, *v));
        client.send(request)
    };
    let own = format!("http://127.0.0.1:{port}");
    let local = format!("localhost:{port}");
    for method in ["GET", "POST"] {
        for good in [
            &[("Host", local.as_str())][..],
            &[("Host", "LOCALHOST")],
            &[("Host", "127.0.0.1:80")],
            &[("Host", "[::1]:5000")],
            &[("Origin", own.as_str())],
        ] {
            let status = ask(method, good).status;
            assert!(matches!(status, 200 | 202), "{method} {good:?}: {status}");
        }
        for bad in [
            &[("Host", "evil.example")][..],
            &[("Host", "localhost.evil.example:5000")],
            &[("Host", "127.0.0.1.evil.example")],
            &[("Origin", "http://evil.example")],
            &[("Origin", "null")],
            &[("Origin", own.as_str()), ("Origin", "http://evil.example")],
            &[("Host", local.as_str()), ("Origin", own.as_str())],
        ] {
            ask(method, bad).expect_error(403, "DENIED");
        }
    }
}

#[track_caller]
fn harmless(answer: &Response) {
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{answer:?}");
    let policy = answer.header("content-security-policy").unwrap_or_default();
    assert!(policy.contains("sandbox") && policy.contains("default-src 'none'"), "{answer:?}");
    assert!(answer.header("access-control-allow-origin").is_none(), "{answer:?}");
}
