//! Tokens as a client could make them up, and the keys that sign them, with a running server.

#[path = "support/pam.rs"]
mod pam;
mod support;

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use pam::{Host, PASSWORD};
use serde_json::{Value, json};
use sha2::Sha256;
use stillage::layout::Keys;
use support::Registry;
use support::http::{Request, Response};

/// The one header of all our tokens.
const HEADER: &str = r#"{"typ":"JWT","alg":"HS256"}"#;

fn serve(host: &Host) -> Registry {
    let confdir = host.path("pam.d").display().to_string();
    Registry::start(&["--pam-confdir", &confdir])
}

fn keys(registry: &Registry) -> Keys {
    let path = registry.root().join(".stillage/token-key");
    Keys::parse(&fs::read(path).expect("the key file")).expect("keys")
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_secs()).expect("a time")
}

/// The claims of a good token of daemon's, for everything that the tests ask.
fn claims() -> Value {
    json!({
        "sub": "daemon", "aud": "stillage", "nbf": now(), "iat": now(), "exp": now() + 300,
        "jti": "AAAAAAAAAAAAAAAAAAAAAA",
        "access": [{"type": "repository", "name": "a", "actions": ["pull", "push"]}],
    })
}

fn signed(secret: &[u8; 32], header: &str, claims: &Value) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let body = format!("{}.{}", part(header), part(&claims.to_string()));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length");
    mac.update(body.as_bytes());
    format!("{body}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

fn with_token(registry: &Registry, token: &str) -> Response {
    registry.client().send(Request::get("/v2/").bearer(token))
}

#[track_caller]
fn invalid(registry: &Registry, token: &str) {
    let pull = Request::get("/v2/a/tags/list").bearer(token);
    let push = Request::post("/v2/a/blobs/uploads/").bearer(token);
    for request in [Request::get("/v2/").bearer(token), pull, push] {
        let answer = registry.client().send(request).expect_error(401, "UNAUTHORIZED");
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        assert!(challenge.ends_with(",error=\"invalid_token\""), "{answer:?}");
    }
}

#[test]
fn token_key_none_is_taken_from_the_token_and_nothing_is_dialled() {
    let host = Host::new();
    let registry = serve(&host);
    let secret = keys(&registry).current.secret;
    with_token(&registry, &signed(&secret, HEADER, &claims())).expect_status(200);

    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    elsewhere.set_nonblocking(true).expect("nonblocking");
    let url = format!("http://{}/key", elsewhere.local_addr().expect("an address"));
    // A key that a client knows, which the header tells the server to use.
    let own = [9; 32];
    let jwk = json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(own)});
    fs::write(registry.root().join("x"), own).expect("a file of the client's");
    let header = |more: Value| {
        let mut header = json!({"typ": "JWT", "alg": "HS256"});
        let all = more.as_object().expect("an object").clone();
        header.as_object_mut().expect("an object").extend(all);
        header.to_string()
    };
    for more in [
        json!({"jwk": jwk}),
        json!({"jku": url}),
        json!({"x5u": url}),
        json!({"x5c": ["AAAA"]}),
        json!({"kid": "../../x"}),
        json!({"kid": "/dev/null"}),
        json!({"kid": 1}),
        json!({"crit": ["exp"], "exp": 1}),
        json!({"crit": ["unknown"], "unknown": true}),
        json!({"alg": "none"}),
        json!({"alg": "None"}),
        json!({"alg": "HS512"}),
        json!({"alg": "RS256"}),
        json!({"alg": "ES256"}),
        json!({"alg": null}),
        json!({"zip": "DEF"}),
    ] {
        let header = header(more);
        for key in [&own, &*secret, &[0; 32]] {
            invalid(&registry, &signed(key, &header, &claims()));
        }
        let token = signed(&own, &header, &claims());
        let (unsigned, _) = token.rsplit_once('.').expect("three parts");
        invalid(&registry, &format!("{unsigned}."));
    }
    for key in [own, [0; 32]] {
        invalid(&registry, &signed(&key, HEADER, &claims()));
    }
    let dialled = elsewhere.accept().map(|(_, peer)| peer);
    let nobody = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    assert!(dialled.as_ref().is_err_and(nobody), "{dialled:?}");
    let log = registry.stderr();
    assert!(!log.contains("127.0.0.1:") && !log.contains("../../x"), "{log}");
}

#[test]
fn token_claims_audience_and_times_count() {
    let host = Host::new();
    let registry = serve(&host);
    let secret = keys(&registry).current.secret;
    let token = |claim: &str, value: Value| {
        let mut claims = claims();
        match value {
            Value::Null => claims.as_object_mut().expect("an object").remove(claim),
            value => claims.as_object_mut().expect("an object").insert(claim.to_owned(), value),
        };
        signed(&secret, HEADER, &claims)
    };
    for (claim, value) in [
        ("aud", Value::Null),
        ("aud", json!("")),
        ("aud", json!("other")),
        ("aud", json!(["stillage"])),
        ("exp", Value::Null),
        ("exp", json!(now() - 62)),
        ("exp", json!(0)),
        ("exp", json!(-1)),
        ("exp", json!("9999999999")),
        ("exp", json!(1e300)),
        ("nbf", Value::Null),
        ("nbf", json!(now() + 90)),
        ("iat", json!(now() + 90)),
        ("access", Value::Null),
        ("sub", json!("nobody-has-this-name")),
        ("sub", json!("root")),
        ("sub", json!({"name": "daemon"})),
    ] {
        invalid(&registry, &token(claim, value));
    }
    // Clocks of several servers may be a minute apart.
    for (claim, value) in [("exp", now() - 50), ("nbf", now() + 50), ("iat", now() + 50)] {
        let answer = with_token(&registry, &token(claim, json!(value)));
        assert_eq!(answer.status, 200, "{claim}: {answer:?}");
    }
}

/// Writes the key file as an older server left it.
fn put_keys(registry: &Registry, bytes: &[u8]) {
    use std::os::unix::fs::OpenOptionsExt;
    let path = registry.root().join(".stillage/token-key");
    let beside = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&beside).expect("a file");
    std::io::Write::write_all(&mut file, bytes).expect("write");
    fs::rename(beside, path).expect("rename");
}

#[test]
fn a_key_of_the_first_version_is_replaced_at_the_start_and_its_tokens_live_on() {
    let host = Host::new();
    let mut registry = serve(&host);
    registry.term();
    put_keys(&registry, &[7; 32]);
    registry.run();
    let new = keys(&registry);
    assert_eq!(*new.previous.as_ref().expect("the one before").secret, [7; 32]);
    assert_ne!(*new.current.secret, [7; 32]);
    with_token(&registry, &signed(&[7; 32], HEADER, &claims())).expect_status(200);
    let token = registry.client().token("daemon", PASSWORD, &[]).expect("a token");
    with_token(&registry, &token).expect_status(200);
    registry.restart();
    with_token(&registry, &token).expect_status(200);
    assert_eq!(keys(&registry), new, "young enough");
}

#[test]
fn two_servers_of_a_tree_change_the_key_once_and_believe_each_other() {
    let host = Host::new();
    let one = serve(&host);
    let confdir = host.path("pam.d").display().to_string();
    let other = Registry::start_on(one.root(), &["--pam-confdir", &confdir]);
    let first = keys(&one);
    let token = |of: &Registry| of.client().token("daemon", PASSWORD, &[]).expect("a token");
    let before = token(&one);
    with_token(&other, &before).expect_status(200);
    // A month later.
    let hex: String = first.current.secret.iter().map(|byte| format!("{byte:02x}")).collect();
    put_keys(&one, format!("2026-01-01T00:00:00Z {hex}\n").as_bytes());
    let after = std::thread::scope(|scope| {
        [&one, &other].map(|of| scope.spawn(move || token(of))).map(|made| made.join().expect("ok"))
    });
    let second = keys(&one);
    assert_eq!(second.previous.expect("the one before").secret, first.current.secret, "once");
    for token in [&before, &after[0], &after[1]] {
        for of in [&one, &other] {
            with_token(of, token).expect_status(200);
        }
    }
    // Whoever wants all tokens void removes the file.
    fs::remove_file(one.root().join(".stillage/token-key")).expect("remove");
    for token in [&before, &after[0], &after[1]] {
        invalid(&other, token);
        invalid(&one, token);
    }
    let again = token(&one);
    with_token(&other, &again).expect_status(200);
    assert!(keys(&one).current.made + Duration::from_secs(60) > SystemTime::now());
}

#[test]
fn a_key_file_that_cannot_be_read_is_no_reason_to_believe_or_to_log_out() {
    let host = Host::new();
    let mut registry = serve(&host);
    let good = registry.client().token("daemon", PASSWORD, &[]).expect("a token");
    let bytes = fs::read(registry.root().join(".stillage/token-key")).expect("the key file");
    put_keys(&registry, b"short");
    with_token(&registry, &good).expect_status(503);
    let refused = registry.client().token("daemon", PASSWORD, &[]).expect_err("no token");
    refused.expect_status(503);
    assert!(registry.stderr().contains("token-key: is no file of keys"), "{}", registry.stderr());
    put_keys(&registry, &bytes);
    with_token(&registry, &good).expect_status(200);
    registry.term();
    put_keys(&registry, b"short");
    registry.expect_damage();
}
