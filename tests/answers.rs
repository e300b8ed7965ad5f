//! What clients are told: challenges, tokens, refusals, and the codes of errors.

#[path = "support/pam.rs"]
mod pam;
mod support;

use pam::{Host, PASSWORD};
use support::Registry;
use support::content::{Image, random, sha256, with_query};
use support::http::{Client, Request, Response};

/// A server whose logins are those of `host`, with more arguments. `daemon` and `games` may
/// create repositories.
fn serve(host: &Host, args: &[&str]) -> Registry {
    let confdir = host.path("pam.d").display().to_string();
    let all: Vec<&str> = ["--auth", "pam", "--pam-confdir", &confdir]
        .into_iter()
        .chain(args.iter().copied())
        .collect();
    let registry = Registry::start(&all);
    registry.grant("u:daemon");
    registry.grant("u:games");
    registry
}

#[track_caller]
fn challenged(answer: Response, realm_of: &Registry, rest: &str) -> Response {
    let answer = answer.expect_status(401);
    let expected =
        format!("Bearer realm=\"http://{}/token\",service=\"stillage\"{rest}", realm_of.addr());
    assert_eq!(answer.all("www-authenticate"), [expected.as_str()], "{answer:?}");
    assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
    answer
}

/// One request of each kind, with the scope that its challenge must name.
fn requests() -> Vec<(Request, &'static str)> {
    let digest = sha256(b"x");
    let id = "0123456789abcdef0123456789abcdef";
    let pull = "repository:a/b:pull";
    let push = "repository:a/b:pull,push";
    let delete = "repository:a/b:delete";
    let at = |rest: &str| format!("/v2/a/b/{rest}");
    vec![
        (Request::get(at("manifests/v1")), pull),
        (Request::head(at("manifests/v1")), pull),
        (Request::get(at(&format!("blobs/{digest}"))), pull),
        (Request::head(at(&format!("blobs/{digest}"))), pull),
        (Request::get(at("tags/list")), pull),
        (Request::get(at(&format!("referrers/{digest}"))), pull),
        (Request::put(at("manifests/v1")).body("{}"), push),
        (Request::post(at("blobs/uploads/")), push),
        (Request::post(at(&format!("blobs/uploads/?digest={digest}"))).body("x"), push),
        (Request::get(at(&format!("blobs/uploads/{id}"))), push),
        (Request::patch(at(&format!("blobs/uploads/{id}"))).body("x"), push),
        (Request::put(at(&format!("blobs/uploads/{id}?digest={digest}"))).body("x"), push),
        (Request::delete(at(&format!("blobs/uploads/{id}"))), push),
        (Request::delete(at("manifests/v1")), delete),
        (Request::delete(at(&format!("blobs/{digest}"))), delete),
        (
            Request::post(at(&format!("blobs/uploads/?mount={digest}&from=c"))),
            "repository:a/b:pull,push repository:c:pull",
        ),
        (Request::get("/v2/_catalog"), "registry:catalog:*"),
    ]
}

#[test]
fn without_credentials_a_challenge_names_the_scope() {
    let host = Host::new();
    let registry = serve(&host, &[]);
    let client = registry.client();
    for ping in ["/v2/", "/v2"] {
        challenged(client.get(ping), &registry, "");
    }
    // `Basic Og==` is what podman sends when it has nothing.
    for nothing in [None, Some("Basic Og==")] {
        for (request, scope) in requests() {
            let request = match nothing {
                Some(value) => request.header("Authorization", value),
                None => request,
            };
            let head = request.method == "HEAD";
            let answer = client.send(request);
            let answer = challenged(answer, &registry, &format!(",scope=\"{scope}\""));
            if !head {
                answer.expect_error(401, "UNAUTHORIZED");
            }
        }
    }
    assert_eq!(client.get("/").expect_status(200).body.len(), 0);
    client.get("/healthz").expect_status(200);
    client.get("/readyz").expect_status(200);
}

#[test]
fn a_bad_token_is_told_so() {
    let host = Host::new();
    let registry = serve(&host, &[]);
    let good = registry.client().token("daemon", PASSWORD, &[]).expect("a token");
    let (body, signature) = good.rsplit_once('.').expect("three parts");
    let forged = format!("{body}.{}", signature.chars().rev().collect::<String>());
    for bad in ["x", "a.b.c", &forged, "eyJhbGciOiJub25lIn0.e30."] {
        let client = registry.client().with_authorization(format!("Bearer {bad}"));
        challenged(client.get("/v2/"), &registry, ",error=\"invalid_token\"");
        for (request, scope) in requests() {
            let rest = format!(",scope=\"{scope}\",error=\"invalid_token\"");
            challenged(client.send(request), &registry, &rest);
        }
    }
}

#[test]
fn a_token_that_does_not_reach_is_told_what_would() {
    let host = Host::new();
    let registry = serve(&host, &[]);
    let plain = registry.client();
    plain.logged_in("daemon", PASSWORD, "a/b").push_image("a/b", "v1", &Image::random(10));
    let elsewhere =
        plain.token("daemon", PASSWORD, &["repository:other:pull,push"]).expect("token");
    let anonymous = plain.token("", "", &["repository:a/b:pull,push"]).expect("token");
    for (token, pulls) in [(elsewhere, false), (anonymous, true)] {
        let client = plain.with_authorization(format!("Bearer {token}"));
        client.get("/v2/").expect_status(200);
        client.get("/v2/_catalog").expect_status(200);
        for (request, scope) in requests() {
            if scope.starts_with("registry:") || (pulls && scope.ends_with("b:pull")) {
                continue;
            }
            let rest = format!(",scope=\"{scope}\",error=\"insufficient_scope\"");
            challenged(client.send(request), &registry, &rest);
        }
    }
}

#[test]
fn strangers_pull_only_where_they_may() {
    let host = Host::new();
    let image = Image::random(1000);
    for (args, pulls) in [(&[][..], true), (&["--anonymous", "none"], false)] {
        let registry = serve(&host, args);
        let user = registry.client().logged_in("daemon", PASSWORD, "a/b");
        user.push_image("a/b", "v1", &image);
        let token = registry.client().token("", "", &["repository:a/b:pull"]);
        match token {
            Ok(token) => {
                assert!(pulls);
                let anonymous = registry.client().with_authorization(format!("Bearer {token}"));
                anonymous.assert_pulls("a/b", "v1", &image);
                assert_eq!(anonymous.get("/v2/_catalog").json()["repositories"][0], "a/b");
            }
            Err(answer) => {
                assert!(!pulls);
                let answer = answer.expect_error(401, "UNAUTHORIZED");
                assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"stillage\""));
            }
        }
        // Straight, without a token.
        let basic = registry.client().with_authorization(support::http::basic("daemon", PASSWORD));
        basic.get("/v2/").expect_status(200);
        basic.assert_pulls("a/b", "v1", &image);
        basic.push_image("a/c", "v1", &image);
        basic.delete("/v2/a/c/manifests/v1").expect_status(202);
    }
}

#[test]
fn a_wrong_password_is_a_refusal_everywhere() {
    let host = Host::new();
    let registry = serve(&host, &[]);
    let client = registry.client();
    let token = client.token("daemon", "wrong", &[]).expect_err("a token for a wrong password");
    let token = token.expect_error(401, "UNAUTHORIZED");
    assert_eq!(token.header("cache-control"), Some("no-store"));
    let wrong = Request::get("/v2/").basic("daemon", "wrong");
    let ping = challenged(client.send(wrong), &registry, "");
    assert_eq!(ping.body, token.body, "the same words for the same refusal");
    let unknown = Request::get("/token").basic("nobody-has-this-name-either", "wrong");
    assert_eq!(client.send(unknown).expect_status(401).body, token.body);
    let form = "grant_type=password&service=stillage&username=daemon&password=wrong";
    assert_eq!(post_form(&client, form).expect_status(401).body, token.body);

    for malformed in ["Basic", "Basic !!!", "Digest x", "Basic ZGFlbW9u"] {
        let request = Request::get("/v2/").header("Authorization", malformed);
        challenged(client.send(request), &registry, "").expect_error(401, "UNAUTHORIZED");
    }
    let two = Request::get("/v2/").basic("daemon", PASSWORD).basic("games", PASSWORD);
    client.send(two).expect_error(400, "UNSUPPORTED");
}

fn post_form(client: &Client, form: &str) -> Response {
    let request = Request::post("/token")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(form);
    client.send(request)
}

#[test]
fn tokens_are_given_in_both_ways() {
    let host = Host::new();
    let registry = serve(&host, &[]);
    let client = registry.client();
    let query = "account=daemon&service=stillage&scope=repository:a:pull,push&scope=repository%3Ab%3Apull&client_id=docker&offline_token=true";
    let get = client.send(Request::get(format!("/token?{query}")).basic("daemon", PASSWORD));
    let password = PASSWORD.replace(' ', "+").replace('ß', "%C3%9F");
    let form = format!(
        "grant_type=password&service=stillage&client_id=containerd&username=daemon&password={password}&scope=repository:a:pull,push+repository:b:pull&access_type=offline"
    );
    let post = post_form(&client, &form);
    assert!(post.json().get("scope").is_some(), "{post:?}");
    for answer in [get.expect_status(200), post.expect_status(200)] {
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let json = answer.json();
        assert_eq!(json["token"], json["access_token"]);
        assert!(json["expires_in"].as_u64().is_some_and(|time| time >= 60), "{json}");
        assert!(json.get("refresh_token").is_none(), "{json}");
        if let Some(scope) = json.get("scope") {
            assert_eq!(scope, "repository:a:pull,push repository:b:pull");
        }
        let issued = json["issued_at"].as_str().expect("issued_at");
        let format = time::format_description::well_known::Rfc3339;
        let issued = time::OffsetDateTime::parse(issued, &format).expect("RFC 3339");
        assert!((time::OffsetDateTime::now_utc() - issued).abs() < time::Duration::minutes(1));
        let token = json["token"].as_str().expect("a token");
        let bearer = client.with_authorization(format!("Bearer {token}"));
        bearer.get("/v2/").expect_status(200);
        bearer.start_upload("a");
        bearer.get("/v2/b/tags/list").expect_error(404, "NAME_UNKNOWN");
        bearer.send(Request::post("/v2/b/blobs/uploads/")).expect_error(401, "UNAUTHORIZED");
    }
    // No scope: what `podman login` asks for.
    client.send(Request::get("/token").basic("daemon", PASSWORD)).expect_status(200);

    post_form(&client, "grant_type=refresh_token&refresh_token=x").expect_error(404, "UNSUPPORTED");
    post_form(&client, "").expect_error(404, "UNSUPPORTED");
    post_form(&client, "grant_type=password&username=a&username=b")
        .expect_error(400, "UNSUPPORTED");
    post_form(&client, "grant_type=password&username=%ff").expect_error(400, "UNSUPPORTED");
    post_form(&client, "grant_type=password&username=%00").expect_error(400, "UNSUPPORTED");
    let large = format!("grant_type=password&x={}", "y".repeat(100_000));
    post_form(&client, &large).expect_error(413, "UNSUPPORTED");
    let json = Request::post("/token").header("Content-Type", "application/json").body("{}");
    client.send(json).expect_error(400, "UNSUPPORTED");
    let put = client.send(Request::put("/token")).expect_error(405, "UNSUPPORTED");
    assert_eq!(put.header("allow"), Some("GET, POST"));
}

#[test]
fn mounts_never_ask_for_another_token() {
    let host = Host::new();
    let registry = serve(&host, &[]);
    let plain = registry.client();
    let blob = random(1000);
    let digest = plain.logged_in("daemon", PASSWORD, "src").push_blob("src", &blob);
    let with = |scopes: &[&str]| {
        let token = plain.token("daemon", PASSWORD, scopes).expect("a token");
        plain.with_authorization(format!("Bearer {token}"))
    };
    let target = with(&["repository:dst:pull,push"]);
    let both = with(&["repository:dst:pull,push", "repository:src:pull"]);
    let mount = |client: &Client, query: &str| {
        client.send(Request::post(format!("/v2/dst/blobs/uploads/?{query}")))
    };
    let absent = sha256(b"absent");
    for (client, query, status) in [
        (&target, format!("mount={digest}&from=src"), 202),
        (&both, format!("mount={absent}&from=src"), 202),
        (&both, format!("mount={digest}&from=none"), 202),
        (&target, format!("mount={absent}"), 202),
        (&both, format!("mount={digest}&from=src"), 201),
    ] {
        let answer = mount(client, &query).expect_status(status);
        if status == 202 {
            assert_eq!(answer.header("range"), Some("0-0"), "{query}");
            let other = random(100);
            let path = with_query(&answer.location(), &format!("digest={}", sha256(&other)));
            client.send(Request::put(path).body(other)).expect_status(201);
        } else {
            assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
            assert_eq!(client.get(&answer.location()).expect_status(200).body, blob);
        }
    }
    let anywhere = Request::post(format!("/v2/dst2/blobs/uploads/?mount={digest}"));
    with(&["repository:dst2:pull,push"]).send(anywhere).expect_status(201);
}

#[test]
fn upload_owner_a_session_is_one_users_and_one_repositorys() {
    let host = Host::new();
    let registry = serve(&host, &[]);
    let [mine, other] =
        ["daemon", "games"].map(|user| registry.client().logged_in(user, PASSWORD, "a"));
    let upload = mine.start_upload("a");
    mine.send(Request::patch(upload.as_str()).body("abc")).expect_status(202);
    let (_, id) = upload.rsplit_once('/').expect("a path");
    let bits: std::collections::BTreeSet<String> =
        (0..16).map(|_| mine.start_upload("a")).collect();
    assert!(id.len() == 32 && id.bytes().all(|c| c.is_ascii_hexdigit()), "128 bits: {id}");
    let starts: std::collections::BTreeSet<_> =
        bits.iter().filter_map(|upload| upload.rsplit('/').next()?.get(..8)).collect();
    assert_eq!(starts.len(), 16, "random from the first digit on: {bits:?}");

    let elsewhere = registry.client().logged_in("daemon", PASSWORD, "b");
    elsewhere.start_upload("b");
    let moved = upload.replace("/v2/a/", "/v2/b/");
    for (client, path) in [(&other, &upload), (&elsewhere, &moved)] {
        let finish = with_query(path, &format!("digest={}", sha256(b"abc")));
        for request in [
            Request::get(path.as_str()),
            Request::patch(path.as_str()).body("def"),
            Request::put(finish.as_str()),
            Request::delete(path.as_str()),
        ] {
            client.send(request).expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        }
    }
    let finish = with_query(&upload, &format!("digest={}", sha256(b"abc")));
    mine.send(Request::put(finish)).expect_status(201);
}

/// In the same time: by the same way through the code, except that PAM takes longer for some than
/// for others, and so every refusal is answered at a set time after it began.
#[test]
fn enumeration_neither_users_nor_repositories_show() {
    let host = Host::new();
    let registry = serve(&host, &["--anonymous", "pull"]);
    let client = registry.client();
    let refusals: Vec<(Vec<u8>, std::time::Duration)> = std::thread::scope(|scope| {
        let pairs =
            [("daemon", "wrong"), ("nobody-at-all", "wrong"), ("root", PASSWORD), ("games", "")];
        let asked = pairs.map(|(user, password)| {
            let client = client.clone();
            scope.spawn(move || {
                let began = std::time::Instant::now();
                let answer = client.send(Request::get("/token").basic(user, password));
                (answer.expect_status(401).body, began.elapsed())
            })
        });
        asked.into_iter().map(|asked| asked.join().expect("no panic")).collect()
    });
    for (body, took) in &refusals {
        assert_eq!(body, &refusals[0].0);
        assert!((1500..3000).contains(&took.as_millis()), "{refusals:?}");
    }

    let owner = client.logged_in("daemon", PASSWORD, "private");
    let image = Image::random(10);
    owner.push_image("private", "v1", &image);
    std::process::Command::new("chmod")
        .arg("o-rx")
        .arg(registry.root().join("private"))
        .status()
        .expect("chmod");
    let stranger = |repo: &str| {
        let games = client.with_authorization(support::http::basic("games", PASSWORD));
        let token = client.token("", "", &[&format!("repository:{repo}:pull")]).expect("a token");
        let anonymous = client.with_authorization(format!("Bearer {token}"));
        let mut told = Vec::new();
        for (who, asks) in [("games", games), ("anonymous", anonymous), ("nobody", client.clone())]
        {
            for path in [
                "manifests/v1".to_owned(),
                format!("manifests/{}", image.digest),
                format!("blobs/{}", sha256(&image.layers[0])),
                "tags/list".to_owned(),
                format!("referrers/{}", image.digest),
            ] {
                for method in ["GET", "HEAD"] {
                    let answer = asks.send(Request::new(method, format!("/v2/{repo}/{path}")));
                    let headers: Vec<_> = answer
                        .headers
                        .iter()
                        .filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()))
                        .map(|(name, value)| format!("{name}: {value}").replace(repo, "REPO"))
                        .collect();
                    let body = answer.text().replace(repo, "REPO");
                    told.push((who, method, path.clone(), answer.status, headers, body));
                }
            }
        }
        told
    };
    // Names of one length, so that lengths can be compared too.
    assert_eq!(stranger("private"), stranger("missing"));
}

#[test]
fn the_start_report_and_the_log_say_who() {
    let host = Host::new();
    let registry = serve(&host, &[]);
    let user = registry.client().logged_in("daemon", PASSWORD, "a");
    user.get("/v2/a/tags/list").expect_status(404);
    let _ = registry.client().token("my secret typed as a name", "x", &[]);
    // The line of a request is written when its answer has been sent, which is soon.
    let wanted =
        "who=\"daemon\" client=127.0.0.1 method=\"GET\" path=\"/v2/a/tags/list\" status=404";
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !registry.stderr().contains(wanted) && std::time::Instant::now() < until {
        std::thread::yield_now();
    }
    let log = registry.stderr();
    assert!(log.contains(wanted), "{log}");
    assert!(!log.contains("my secret"), "{log}");
    assert!(!log.contains(PASSWORD), "{log}");
}
