//! The lines for the record: who came in, who was turned away, who changed what.

#[path = "support/pam.rs"]
mod pam;
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use pam::{Host, PASSWORD};
use support::Registry;
use support::command::run;
use support::content::{Image, OCI_MANIFEST, sha256};
use support::http::{Client, Request, Response, basic};

fn serve(host: &Host) -> Registry {
    let confdir = host.path("pam.d").display().to_string();
    Registry::start(&["--pam-confdir", &confdir, "--anonymous", "pull"])
}

/// The fields of a line, in its order; strings as they stand there, without the quotes.
type Line = Vec<(String, String)>;

/// `name="text" name=word …`; fails the test if a line holds anything else.
fn fields(text: &str) -> Line {
    let mut rest = text;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (name, value) = rest.split_once('=').unwrap_or_else(|| panic!("{text:?}"));
        let end = match value.strip_prefix('"') {
            None => value.find(' ').unwrap_or(value.len()),
            Some(quoted) => {
                let mut escaped = false;
                let close = quoted.find(|c| {
                    let end = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    end
                });
                close.unwrap_or_else(|| panic!("{text:?}")) + 2
            }
        };
        found.push((name.to_owned(), value[..end].trim_matches('"').to_owned()));
        rest = value[end..].strip_prefix(' ').unwrap_or(&value[end..]);
    }
    found
}

/// All lines of a target.
fn lines(registry: &Registry, target: &str) -> Vec<Line> {
    let log = registry.stderr();
    let marked = format!(" INFO {target}: ");
    log.lines().filter_map(|line| line.split_once(&marked)).map(|(_, rest)| fields(rest)).collect()
}

fn audit(registry: &Registry) -> Vec<Line> {
    lines(registry, "stillage::audit")
}

fn field<'a>(line: &'a Line, name: &str) -> Option<&'a str> {
    line.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// The lines of one request, with the id that its answer told.
#[track_caller]
fn of(registry: &Registry, answer: &Response) -> Vec<Line> {
    let id = answer.header("x-request-id").unwrap_or_else(|| panic!("no id: {answer:?}"));
    assert!(id.len() == 16 && id.bytes().all(|c| c.is_ascii_hexdigit()), "{id}");
    audit(registry).into_iter().filter(|line| field(line, "request") == Some(id)).collect()
}

/// Exactly these fields, `client` and `request` aside, in each line of the request.
#[track_caller]
fn says(registry: &Registry, answer: &Response, expected: &[&str]) {
    let found: Vec<String> = of(registry, answer)
        .into_iter()
        .map(|line| {
            assert_eq!(field(&line, "client"), Some("127.0.0.1"), "{line:?}");
            let rest = line.iter().filter(|(name, _)| name != "client" && name != "request");
            rest.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        })
        .collect();
    assert_eq!(found, expected, "{answer:?}\n{}", registry.stderr());
}

fn put(client: &Client, path: &str, image: &Image) -> Response {
    let request = Request::put(path).header("Content-Type", OCI_MANIFEST);
    client.send(request.body(image.manifest.clone())).expect_status(201)
}

#[test]
fn every_change_is_one_line() {
    let host = Host::new();
    let registry = serve(&host);
    registry.grant("u:daemon");
    // By a token: a password is checked again, and told of, when the host's accounts change meanwhile.
    let client = registry.client().logged_in("daemon", PASSWORD, "a/b");
    let (one, two) = (Image::random(100), Image::random(100));
    for image in [&one, &two] {
        image.layers.iter().chain([&image.config]).for_each(|blob| {
            client.push_blob("a/b", blob);
        });
    }
    let (first, second) = (one.digest.as_str(), two.digest.as_str());
    let at = |rest: &str| format!("/v2/a/b/manifests/{rest}");

    let answer = put(&client, &at("v1"), &one);
    let pushed = format!("event=push who=daemon repo=a/b digest={first}");
    let tagged = format!("event=tag who=daemon repo=a/b tag=v1 digest={first}");
    says(&registry, &answer, &[&pushed, &tagged]);
    let answer = put(&client, &at("v1"), &one);
    says(&registry, &answer, &[]);
    let answer = put(&client, &at(&format!("{first}?tag=v2&tag=v1")), &one);
    says(&registry, &answer, &[&format!("event=tag who=daemon repo=a/b tag=v2 digest={first}")]);
    let answer = put(&client, &at("v1"), &two);
    let pushed = format!("event=push who=daemon repo=a/b digest={second}");
    let moved = format!("event=tag who=daemon repo=a/b tag=v1 digest={second} before={first}");
    says(&registry, &answer, &[&pushed, &moved]);

    let answer = client.delete(&at("v2")).expect_status(202);
    says(&registry, &answer, &[&format!("event=untag who=daemon repo=a/b tag=v2 digest={first}")]);
    client.delete(&at("v2")).expect_status(404);
    let answer = client.delete(&at(second)).expect_status(202);
    let untagged = format!("event=untag who=daemon repo=a/b tag=v1 digest={second}");
    let deleted = format!("event=delete who=daemon repo=a/b digest={second}");
    says(&registry, &answer, &[&untagged, &deleted]);
    let layer = sha256(&two.layers[0]);
    let answer = client.delete(&format!("/v2/a/b/blobs/{layer}")).expect_status(202);
    says(&registry, &answer, &[&format!("event=delete-blob who=daemon repo=a/b digest={layer}")]);

    // What the record says is what the journal says, and the two never come apart.
    let journal = std::fs::read_to_string(registry.root().join("a/b/_log.jsonl")).expect("a file");
    let written: Vec<_> = audit(&registry)
        .iter()
        .filter_map(|line| field(line, "event").map(str::to_owned))
        .filter(|event| ["push", "tag", "untag", "delete"].contains(&event.as_str()))
        .collect();
    let logged: Vec<_> = journal
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .map(|line| line["what"].as_str().expect("text").to_owned())
        .collect();
    assert_eq!(written, logged);
}

#[test]
fn logins_and_refusals_are_one_line_each() {
    let host = Host::new();
    let registry = serve(&host);
    let client = registry.client();
    let with = |user: &str, password: &str| {
        client.send(Request::get("/token?scope=repository:a:pull").basic(user, password))
    };
    let answer = with("daemon", PASSWORD).expect_status(200);
    says(&registry, &answer, &["event=login who=daemon"]);
    let token = answer.json()["token"].as_str().expect("a token").to_owned();
    let again = with("daemon", PASSWORD).expect_status(200);
    says(&registry, &again, &[]);

    let wrong = "why=pam_authenticate: Authentication failure (PAM code 7)";
    let refused = format!("event=login-refused who=daemon {wrong}");
    // The second is answered from memory, and a refusal all the same.
    for _ in 0..2 {
        says(&registry, &with("daemon", "wrong").expect_status(401), &[&refused]);
    }
    let unknown = with("my secret password", "x").expect_status(401);
    says(&registry, &unknown, &["event=login-refused who=- why=no such user"]);
    let odd = with("dae\nmon", "x").expect_status(401);
    let why = "event=login-refused who=- why=no account has such a name or password";
    says(&registry, &odd, &[why]);
    let root = with("root", PASSWORD).expect_status(401);
    let why = "event=login-refused who=root why=uid 0 may not log in without --allow-root";
    says(&registry, &root, &[why]);

    let forged = client.send(Request::get("/v2/").bearer(&format!("{token}x"))).expect_status(401);
    let line = of(&registry, &forged);
    assert_eq!(field(&line[0], "event"), Some("token-refused"), "{line:?}");
    assert_eq!((line.len(), field(&line[0], "who")), (1, Some("-")), "{line:?}");

    // To be asked for a login is no refusal.
    says(&registry, &client.get("/v2/").expect_status(401), &[]);
    says(&registry, &client.get("/v2/a/tags/list").expect_status(401), &[]);
    let token = client.with_authorization(format!("Bearer {token}"));
    let beyond = token.get("/v2/b/tags/list");
    assert!(of(&registry, &beyond).len() <= 1, "{beyond:?}");
}

#[test]
fn what_somebody_may_not_do_is_recorded_with_what_decided_it() {
    let host = Host::new();
    let registry = serve(&host);
    registry.grant("u:daemon");
    let of_daemon = registry.client().with_authorization(basic("daemon", PASSWORD));
    of_daemon.push_image("a", "v1", &Image::random(10));
    let stranger = registry.client().with_authorization(basic("games", PASSWORD));
    let pushes = stranger.send(Request::post("/v2/a/blobs/uploads/")).expect_status(403);
    registry.logs("event=\"denied\"");
    let lines = of(&registry, &pushes);
    let denied: Vec<_> = lines.iter().filter(|l| field(l, "event") == Some("denied")).collect();
    assert_eq!(denied.len(), 1, "{lines:?}");
    let all: BTreeMap<_, _> = denied[0].iter().cloned().collect();
    assert_eq!((&*all["who"], &*all["repo"], &*all["right"]), ("games", "a", "Push"), "{all:?}");
    assert!(all["why"].contains(&registry.root().join("a").display().to_string()), "{all:?}");
    run(Command::new("chmod").arg("o-rx").arg(registry.root().join("a"))).ok();
    let pulls = stranger.get("/v2/a/tags/list").expect_status(404);
    registry.logs("right=Pull");
    let lines = of(&registry, &pulls);
    assert_eq!(field(&lines[0], "right"), Some("Pull"), "{lines:?}");
}

/// Whoever hangs up while a push waits for its lock has pushed all the same.
#[test]
fn a_push_is_recorded_even_if_the_client_hangs_up() {
    let host = Host::new();
    let registry = serve(&host);
    registry.grant("u:daemon");
    let client = registry.client().with_authorization(basic("daemon", PASSWORD));
    let image = Image::random(10);
    client.push_image("a", "v1", &image);
    let lock = File::open(registry.root().join("a/.lock")).expect("the lock");
    lock.lock().expect("locked");
    let waits = || {
        let table = std::fs::read_to_string("/proc/locks").expect("/proc/locks");
        let server = format!(" {} ", registry.pid());
        table.lines().any(|line| line.contains("->") && line.contains(&server))
    };
    let body = String::from_utf8(image.manifest.clone()).expect("text");
    let bytes = format!(
        "PUT /v2/a/manifests/v2 HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\nContent-Type: {}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        registry.addr(),
        basic("daemon", PASSWORD),
        OCI_MANIFEST,
        body.len(),
    );
    let mut stream = std::net::TcpStream::connect(registry.addr()).expect("connect");
    std::io::Write::write_all(&mut stream, bytes.as_bytes()).expect("sent");
    wait_for(waits);
    drop(stream);
    wait_for(|| {
        let access = lines(&registry, "stillage::access");
        access.iter().any(|line| field(line, "status") == Some("499"))
    });
    drop(lock);
    wait_for(|| audit(&registry).iter().any(|line| field(line, "tag") == Some("v2")));
    assert_eq!(client.tags("a"), ["v1", "v2"]);
}

#[track_caller]
fn wait_for(what: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < until, "it does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a text wherever a client can put one.
fn inject(client: &Client, text: &str) {
    let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    client.send(Request::get("/token").basic(text, "x")).expect_status(401);
    client.send(Request::get("/v2/").basic(text, "x")).expect_status(401);
    let form = format!("grant_type=password&username={escaped}&password=x");
    let form = Request::post("/token")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(form);
    let answer = client.send(form);
    assert!(matches!(answer.status, 400 | 401), "{answer:?}");
    client.get(&format!("/token?account={escaped}&service={escaped}&scope={escaped}"));
    for path in ["v2", "v2/a/manifests", "token"] {
        client.get(&format!("/{path}/{escaped}"));
    }
    let user = client.with_authorization(basic("daemon", PASSWORD));
    user.get(&format!("/v2/{escaped}/tags/list"));
    user.send(Request::get("/v2/").header("X-Request-Id", "0123456789abcdef"));
    user.send(Request::get("/v2/").header("User-Agent", "\"quoted\" who=\"root\""));
}

#[test]
fn log_injection_nothing_that_a_client_sends_makes_a_line_or_shows_a_password() {
    let host = Host::new();
    let registry = serve(&host);
    let client = registry.client();
    let forged =
        "x\n2026-01-01T00:00:00.000000Z  INFO stillage::audit: event=\"login\" who=\"root\"";
    let colours = "\u{1b}[2K\u{1b}[1Gdaemon\u{202e}\u{85}\r";
    // Each refusal is slow by itself.
    std::thread::scope(|scope| {
        for text in [forged, colours, "my secret typed as a name", "\" who=\"root\" x=\""] {
            let client = client.clone();
            scope.spawn(move || inject(&client, text));
        }
    });
    client.send(Request::get("/v2/").basic("daemon", "a password that is wrong"));
    wait_for(|| registry.stderr().contains("stillage::access: who=\"-\""));
    let log = registry.stderr();
    for secret in ["my secret", PASSWORD, "a password that is wrong", "0123456789abcdef"] {
        assert!(!log.contains(secret), "{secret:?} in {log}");
    }
    let odd = |c: char| c.is_control() && c != '\n' || c == '\u{202e}' || c == '\u{85}';
    assert!(!log.contains(odd), "{log:?}");
    for line in log.lines() {
        // Time, level and target are the server's own: nothing else begins a line.
        assert!(line.starts_with("20") && line.as_bytes()[10] == b'T', "{line:?}");
    }
    let names: Vec<_> =
        audit(&registry).iter().filter_map(|l| field(l, "who").map(str::to_owned)).collect();
    assert!(names.iter().all(|name| name == "-" || name == "daemon"), "{names:?}");
    assert!(names.len() >= 9, "{names:?}");
}
