//! `--auth basic`: no tokens, user and password with every request, and only administrators push.

#[path = "support/pam.rs"]
mod pam;
mod support;

use std::process::Command;

use pam::{Host, PASSWORD};
use support::Registry;
use support::account::{Account, Group};
use support::command::run;
use support::containers::{Containers, localhost};
use support::content::Image;
use support::http::{Client, Request, Response, basic};

const REALM: &str = "Basic realm=\"stillage\"";

/// `daemon` is in the admin group, the other users of the host are not.
fn serve(host: &Host, args: &[&str]) -> Registry {
    let confdir = host.path("pam.d").display().to_string();
    let all = ["--auth", "basic", "--admin-group", "daemon", "--pam-confdir", &confdir];
    Registry::start(&[&all, args].concat())
}

fn user(registry: &Registry, name: &str) -> Client {
    registry.client().with_authorization(basic(name, PASSWORD))
}

#[track_caller]
fn challenged(answer: Response) {
    let answer = answer.expect_status(401);
    assert_eq!(answer.all("www-authenticate"), [REALM], "{answer:?}");
}

#[test]
fn only_administrators_write_and_whoever_logs_in_reads_what_they_may() {
    let host = Host::new();
    let registry = serve(&host, &["--anonymous", "none"]);
    let (admin, other, nobody) =
        (user(&registry, "daemon"), user(&registry, "games"), registry.client());
    challenged(nobody.get("/v2/"));
    challenged(nobody.get("/v2/_catalog"));
    for client in [&admin, &other] {
        client.get("/v2/").expect_status(200);
    }
    let image = Image::random(1000);
    admin.push_image("team/app", "v1", &image);
    admin.assert_pulls("team/app", "v1", &image);
    other.assert_pulls("team/app", "v1", &image);
    challenged(nobody.get("/v2/team/app/manifests/v1"));
    let wrong = nobody.with_authorization(basic("daemon", "wrong"));
    challenged(wrong.get("/v2/"));
    challenged(wrong.get("/v2/team/app/manifests/v1"));

    // Whatever the permissions say: only administrators write.
    registry.grant("u:games");
    for (method, rest) in [
        ("POST", "blobs/uploads/"),
        ("PUT", "manifests/v2"),
        ("DELETE", "manifests/v1"),
        (
            "POST",
            "blobs/uploads/?mount=sha256:0000000000000000000000000000000000000000000000000000000000000000",
        ),
    ] {
        let path = format!("/v2/team/app/{rest}");
        other.send(Request::new(method, path.as_str())).expect_error(403, "DENIED");
        challenged(nobody.send(Request::new(method, path)));
    }
    other.send(Request::post("/v2/new/blobs/uploads/")).expect_error(403, "DENIED");
    registry.logs("only administrators write");

    let app = registry.root().join("team/app");
    run(Command::new("chmod").arg("o-rx").arg(&app)).ok();
    other.get("/v2/team/app/manifests/v1").expect_error(404, "MANIFEST_UNKNOWN");
    admin.assert_pulls("team/app", "v1", &image);
    admin.delete("/v2/team/app/manifests/v1").expect_status(202);
}

#[test]
fn there_are_no_tokens() {
    let host = Host::new();
    let registry = serve(&host, &[]);
    let client = registry.client();
    for request in [
        Request::get("/token"),
        Request::get("/token?service=stillage&scope=repository:a:pull").basic("daemon", PASSWORD),
        Request::post("/token")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body("grant_type=password&service=x&username=daemon&password=x"),
    ] {
        let answer = client.send(request).expect_error(404, "UNSUPPORTED");
        assert_eq!(answer.header("www-authenticate"), None, "{answer:?}");
    }
    for token in ["x", "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.e30.AAAA"] {
        challenged(client.send(Request::get("/v2/").bearer(token)));
    }
    assert!(host.asked().is_empty(), "no password came with a believable request");
}

/// A client that got 401 at `/v2/` and has no login sends nothing with what follows.
#[test]
fn anonymous_pulls_send_nothing_and_pass_where_others_may_read() {
    let host = Host::new();
    let registry = serve(&host, &["--anonymous", "pull"]);
    let (admin, nobody) = (user(&registry, "daemon"), registry.client());
    let image = Image::random(100);
    admin.push_image("public", "v1", &image);
    admin.push_image("private", "v1", &image);
    run(Command::new("chmod").arg("o-rx").arg(registry.root().join("private"))).ok();

    challenged(nobody.get("/v2/"));
    for client in [nobody.clone(), nobody.with_authorization("Basic Og==")] {
        client.assert_pulls("public", "v1", &image);
        client.get("/v2/public/tags/list").expect_status(200);
        let catalog = client.get("/v2/_catalog").expect_status(200);
        assert_eq!(catalog.json()["repositories"], serde_json::json!(["public"]));
        for repo in ["private", "absent"] {
            challenged(client.get(&format!("/v2/{repo}/manifests/v1")));
        }
        challenged(client.send(Request::post("/v2/public/blobs/uploads/")));
        challenged(client.delete("/v2/public/manifests/v1"));
    }
}

#[test]
fn a_password_is_asked_once_a_minute() {
    let host = Host::new();
    let registry = serve(&host, &[]);
    let admin = user(&registry, "daemon");
    admin.push_image("a", "v1", &Image::random(10));
    assert_eq!(host.asked().len(), 1, "{:?}", host.asked());
}

#[test]
fn podman_skopeo_and_curl_work_without_tokens() {
    // Groups before accounts: they go in the other order.
    let group = Group::new();
    let (admin, reader) = (Account::new(), Account::new());
    admin.join(&group);
    let registry =
        Registry::start(&["--auth", "basic", "--anonymous", "none", "--admin-group", group.name()]);
    let server = localhost(registry.addr());
    let (theirs, ours) = (Containers::new(), Containers::new());
    ours.image("localhost/made-here", "basic", "amd64");
    let name = format!("{server}/test/this:v1");

    let refused = ours.login(&server, admin.name(), "wrong").refused();
    assert!(!refused.text().contains("Login Succeeded"), "{refused}");
    ours.login(&server, admin.name(), admin.password()).ok();
    ours.podman(&["tag", "localhost/made-here", &name]).ok();
    ours.podman(&["push", "--tls-verify=false", &name]).ok();

    theirs.podman(&["pull", "--tls-verify=false", &name]).refused();
    theirs.login(&server, reader.name(), reader.password()).ok();
    theirs.podman(&["pull", "--tls-verify=false", &name]).ok();
    let again = format!("{server}/test/this:v2");
    theirs.podman(&["tag", &name, &again]).ok();
    let push = theirs.podman(&["push", "--tls-verify=false", &again]).refused();
    assert!(push.text().contains("denied"), "{push}");

    let pair = |account: &Account| format!("{}:{}", account.name(), account.password());
    let source = format!("docker://{name}");
    let inspect = ["inspect", "--tls-verify=false", "--creds", &pair(&reader), &source];
    ours.skopeo(&inspect).ok();
    let target = format!("docker://{server}/test/copied:v1");
    let copy = |creds: &str| {
        ours.skopeo(&[
            "copy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--src-creds",
            &pair(&reader),
            "--dest-creds",
            creds,
            &source,
            &target,
        ])
    };
    copy(&pair(&reader)).refused();
    copy(&pair(&admin)).ok();
    let list = format!("http://{server}/v2/test/copied/tags/list");
    let curl = run(Command::new("curl").args(["-sS", "--fail", "-u", &pair(&reader), &list])).ok();
    assert_eq!(curl.stdout, r#"{"name":"test/copied","tags":["v1"]}"#);
    run(Command::new("curl").args(["-sS", "--fail", &list])).refused();
}
