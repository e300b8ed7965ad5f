//! Caddy with TLS in front: real podman, skopeo and curl, and accounts checked by PAM.

mod support;

#[path = "support/pam.rs"]
mod pam;

use std::fs;

use pam::{Host, PASSWORD};
use support::Registry;
use support::containers::Containers;
use support::content::{random, sha256};
use support::proxy::Proxy;

struct Place {
    caddy: Proxy,
    registry: Registry,
    // Dropped last: the server's services lie in it.
    _host: Host,
}

impl Place {
    fn new() -> Place {
        let host = Host::new();
        let confdir = host.path("pam.d").display().to_string();
        let args = ["--anonymous", "none", "--pam-confdir", &confdir];
        let trust = ["--trusted-proxy", "127.0.0.1"];
        let registry = Registry::start(&[&args[..], &trust].concat());
        registry.grant("u:daemon");
        Place { caddy: Proxy::caddy(&registry), registry, _host: host }
    }
}

#[test]
fn podman_and_skopeo_log_in_push_and_pull() {
    let place = Place::new();
    let (server, certificates) = (place.caddy.name(), place.caddy.certificates());
    let trust = ["--cert-dir", certificates.as_str()];
    let home = Containers::new();
    let id = home.image("localhost/made-here", "through Caddy", "amd64");
    let name = format!("{server}/team/app:v1");
    let login = |password| {
        let login = ["login", "-u", "daemon", "-p", password];
        home.podman(&[&login, &trust[..], &[&server]].concat())
    };
    login("wrong").refused();
    let push = || home.podman(&[&["push"], &trust[..], &["localhost/made-here", &name]].concat());
    push().refused();
    login(PASSWORD).ok();
    push().ok();
    home.forget_images();
    home.podman(&[&["pull"], &trust[..], &[&name]].concat()).ok();
    assert_eq!(home.image_id(&name), id);

    let (from, to) = (format!("docker://{name}"), format!("docker://{server}/other/app:v2"));
    let both = ["--src-cert-dir", &certificates, "--dest-cert-dir", &certificates];
    home.skopeo(&[&["copy"], &both[..], &[&from, &to]].concat()).ok();
    let inspected = home.skopeo(&[&["inspect"], &trust[..], &[&to]].concat()).ok();
    assert!(inspected.stdout.contains("\"Layers\""), "{inspected}");
    // A stranger is not told that there is something.
    let stranger = Containers::new();
    let pull = stranger.podman(&[&["pull"], &trust[..], &[&name]].concat()).refused();
    assert!(pull.text().contains("unauthorized"), "{pull}");
}

#[test]
fn curl_pushes_and_pulls_with_a_password_and_with_a_token() {
    let place = Place::new();
    let curl = place.caddy.curl();
    let user = format!("daemon:{PASSWORD}");
    let login = ["--user", user.as_str()];
    let file = place.caddy.path().join("blob");
    let blob = random(20 << 20);
    fs::write(&file, &blob).expect("a blob");
    let back = place.caddy.path().join("back");
    for version in ["--http1.1", "--http2"] {
        let repo = format!("by{}", version.trim_start_matches("--http").replace('.', "-"));
        let digest = curl.push_blob(&[&login[..], &[version]].concat(), &repo, &file);
        let path = format!("/v2/{repo}/blobs/{digest}");
        let output = ["--output", back.to_str().expect("plain"), version];
        curl.run(&[&login[..], &output].concat(), &path).ok();
        assert_eq!(sha256(&fs::read(&back).expect("the blob")), digest, "{version}");
        let part = curl.run(&[&login[..], &["--range", "5-9", "--output", "-"]].concat(), &path);
        assert_eq!(part.ok().stdout.as_bytes(), String::from_utf8_lossy(&blob[5..10]).as_bytes());
    }
    // The realm is what clients reach, not where Stillage listens.
    let ping = curl.run(&["--include"], "/v2/").ok().stdout;
    let realm = format!("realm=\"https://{}/token\"", place.caddy.name());
    assert!(ping.contains(&realm), "{ping}");
    let token = curl.run(&login, "/token?scope=repository:by2:pull").ok().stdout;
    let token: serde_json::Value = serde_json::from_str(&token).expect("JSON");
    let bearer = format!("Authorization: Bearer {}", token["token"].as_str().expect("a token"));
    let list = curl.run(&["--header", &bearer], "/v2/by2/tags/list").ok();
    assert!(list.stdout.contains("NAME_UNKNOWN"), "no manifest yet: {list}");
    assert!(curl.run(&[], "/v2/by2/tags/list").ok().stdout.contains("UNAUTHORIZED"));
    // Caddy takes a client's word about itself away: the log has the address that it saw.
    curl.run(&["--header", "X-Forwarded-For: 6.6.6.6"], "/v2/").ok();
    assert!(!place.registry.stderr().contains("6.6.6.6"), "{}", place.registry.stderr());
}
