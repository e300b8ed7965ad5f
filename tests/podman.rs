//! What a person with podman and an account on the host does.

mod support;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use support::Registry;
use support::account::Account;
use support::containers::{Containers, localhost};
use support::http::{Client, Request, Response};

/// The walk-through of the README, line by line.
#[test]
fn a_person_logs_in_pushes_looks_at_the_disk_and_pushes_again() {
    let account = Account::new();
    let mut registry = Registry::start(&["--auth", "pam"]);
    registry.grant(&format!("u:{}", account.name()));
    let server = localhost(registry.addr());
    let home = Containers::new();
    home.image("localhost/made-here", "walk-through", "amd64");

    let login = home.login(&server, account.name(), account.password()).ok();
    assert!(login.stdout.contains("Login Succeeded!"), "{login}");

    let name = format!("{server}/test/this:mytag1.8");
    home.podman(&["tag", "localhost/made-here", &name]).ok();
    home.podman(&["push", "--tls-verify=false", &name]).ok();

    let client = registry.client().logged_in(account.name(), account.password(), "test/this");
    let list = client.get("/v2/test/this/tags/list").expect_status(200);
    assert_eq!(list.text(), r#"{"name":"test/this","tags":["mytag1.8"]}"#);

    let manifest = client.get("/v2/test/this/manifests/mytag1.8").expect_status(200);
    let digest = manifest.header("docker-content-digest").expect("a digest").to_owned();
    registry.term();
    let layout = format!("oci:{}/test/this:mytag1.8", registry.root().display());
    let inspected = home.skopeo(&["inspect", &layout]).ok();
    assert!(inspected.stdout.contains(&digest), "{digest} is not in {inspected}");
    registry.run();

    let server = localhost(registry.addr());
    home.login(&server, account.name(), account.password()).ok();
    let second = format!("{server}/other/repo:latest");
    home.podman(&["tag", "localhost/made-here", &second]).ok();
    home.podman(&["push", "--tls-verify=false", &second]).ok();
    let first = inodes(&registry.root().join("test/this/blobs/sha256"));
    let second = inodes(&registry.root().join("other/repo/blobs/sha256"));
    assert!(first.len() >= 3, "manifest, config and layer: {first:?}");
    assert_eq!(first, second, "the same names and the same inodes in both repositories");
}

#[test]
fn what_was_pushed_is_pulled_by_tag_and_by_digest() {
    let account = Account::new();
    let registry = Registry::start(&["--auth", "pam"]);
    registry.grant(&format!("u:{}", account.name()));
    let server = localhost(registry.addr());
    let home = Containers::new();
    let id = home.image("localhost/made-here", "there and back", "amd64");
    let name = format!("{server}/team/app:v1");
    home.login(&server, account.name(), account.password()).ok();
    home.podman(&["push", "--tls-verify=false", "localhost/made-here", &name]).ok();
    let client = registry.client().logged_in(account.name(), account.password(), "team/app");
    let digest = digest_of(&client, "team/app", "v1");

    // Another person, without a login: what may be read by everyone needs none on loopback.
    let guest = Containers::new();
    for reference in [name.clone(), format!("{server}/team/app@{digest}")] {
        guest.podman(&["pull", "--tls-verify=false", &reference]).ok();
        assert_eq!(guest.image_id(&reference), id, "{reference}");
        guest.forget_images();
    }
}

/// From one podman, before and after a login: the registry answers `/v2/` with a challenge to
/// everybody, so that a login is used where there is one and not missed where there is none.
#[test]
fn public_and_private_repositories_stand_side_by_side() {
    let [owner, other] = [Account::new(), Account::new()];
    let registry = Registry::start(&["--auth", "pam"]);
    registry.grant(&format!("u:{}", owner.name()));
    let server = localhost(registry.addr());
    let home = Containers::new();
    home.image("localhost/made-here", "side by side", "amd64");
    let [public, private] = ["public", "private"].map(|repo| format!("{server}/{repo}/app:1"));
    home.login(&server, owner.name(), owner.password()).ok();
    for name in [&public, &private] {
        home.podman(&["push", "--tls-verify=false", "localhost/made-here", name]).ok();
    }
    registry.setfacl("o::-", "private");

    let guest = Containers::new();
    let pull = |name: &str| guest.podman(&["pull", "--tls-verify=false", name]);
    pull(&public).ok();
    let refused = pull(&private).refused();
    assert!(refused.text().contains("unauthorized"), "{refused}");

    guest.login(&server, other.name(), other.password()).ok();
    guest.forget_images();
    pull(&public).ok();
    let refused = pull(&private).refused();
    assert!(refused.text().contains("manifest unknown"), "{refused}");
    let push = guest.podman(&["push", "--tls-verify=false", &public, &private]).refused();
    assert!(push.text().contains("denied"), "{push}");

    registry.setfacl(&format!("u:{}:rx", other.name()), "private");
    pull(&private).ok();
    guest.podman(&["logout", &server]).ok();
    pull(&private).refused();
    pull(&public).ok();
}

#[test]
fn an_image_for_two_platforms_is_pushed_and_pulled_by_tag_and_by_digest() {
    let registry = Registry::start(&["--auth", "none"]);
    let server = localhost(registry.addr());
    let home = Containers::new();
    let mut ids = HashMap::new();
    home.podman(&["manifest", "create", "localhost/list"]).ok();
    for arch in ["amd64", "arm64"] {
        let name = format!("localhost/one:{arch}");
        ids.insert(arch, home.image(&name, &format!("for {arch}"), arch));
        let source = format!("containers-storage:{name}");
        home.podman(&["manifest", "add", "localhost/list", &source]).ok();
    }
    let name = format!("{server}/multi/arch:1");
    let target = format!("docker://{name}");
    let push = ["manifest", "push", "--all", "--tls-verify=false", "localhost/list", &target];
    home.podman(&push).ok();

    let list = registry.client().get("/v2/multi/arch/manifests/1").expect_status(200);
    assert_eq!(list.header("content-type"), Some(support::content::OCI_INDEX));
    let digest = list.header("docker-content-digest").expect("a digest");
    let listed = list.json()["manifests"].as_array().map(Vec::len);
    assert_eq!(listed, Some(2), "{list:?}");

    let other = Containers::new();
    for reference in [name, format!("{server}/multi/arch@{digest}")] {
        for arch in ["amd64", "arm64"] {
            other.podman(&["pull", "--tls-verify=false", "--arch", arch, &reference]).ok();
            assert_eq!(other.image_id(&reference), ids[arch], "{reference} for {arch}");
            other.forget_images();
        }
    }
    for child in list.json()["manifests"].as_array().expect("a list") {
        let digest = child["digest"].as_str().expect("a digest");
        let reference = format!("{server}/multi/arch@{digest}");
        other.podman(&["pull", "--tls-verify=false", &reference]).ok();
    }
}

#[test]
fn a_tag_moves_with_the_next_push() {
    let registry = Registry::start(&["--auth", "none"]);
    let name = format!("{}/moving:latest", localhost(registry.addr()));
    let home = Containers::new();
    let mut digests = Vec::new();
    for text in ["first", "second"] {
        home.image("localhost/made-here", text, "amd64");
        home.podman(&["push", "--tls-verify=false", "localhost/made-here", &name]).ok();
        digests.push(digest_of(&registry.client(), "moving", "latest"));
    }
    assert_ne!(digests[0], digests[1]);
    // Who pulls by digest still gets the first.
    assert_eq!(digest_of(&registry.client(), "moving", &digests[0]), digests[0]);
    assert_eq!(registry.client().tags("moving"), ["latest"]);
}

#[test]
fn a_push_without_a_login_is_refused() {
    let registry = Registry::start(&["--auth", "pam"]);
    refused_push(&registry, None);
}

#[test]
fn a_push_is_refused_where_strangers_may_not_even_read() {
    let registry = Registry::start(&["--auth", "pam", "--anonymous", "none"]);
    refused_push(&registry, None);
}

#[test]
fn a_wrong_password_neither_logs_in_nor_pushes() {
    let account = Account::new();
    let registry = Registry::start(&["--auth", "pam"]);
    refused_login(&registry, account.name(), "not the password");
    refused_push(&registry, Some((account.name(), "not the password")));
}

#[test]
fn an_unknown_user_neither_logs_in_nor_pushes() {
    let registry = Registry::start(&["--auth", "pam"]);
    refused_login(&registry, "nobody-of-that-name", "any");
    refused_push(&registry, Some(("nobody-of-that-name", "any")));
}

#[test]
fn an_expired_account_neither_logs_in_nor_pushes() {
    let account = Account::new();
    account.expire();
    let registry = Registry::start(&["--auth", "pam"]);
    refused_login(&registry, account.name(), account.password());
    refused_push(&registry, Some((account.name(), account.password())));
}

/// `podman login` fails and never claims success. (It prints its own words, not the server's.)
#[track_caller]
fn refused_login(registry: &Registry, user: &str, password: &str) {
    let home = Containers::new();
    let login = home.login(&localhost(registry.addr()), user, password).refused();
    assert!(!login.text().contains("Login Succeeded!"), "{login}");
    assert!(login.text().contains("invalid username/password"), "{login}");
}

/// `podman push` fails and says "unauthorized" with the message of the server's error;
/// nothing of the repository appears on the disk.
#[track_caller]
fn refused_push(registry: &Registry, login: Option<(&str, &str)>) {
    let home = Containers::new();
    home.image("localhost/made-here", "refused", "amd64");
    let name = format!("{}/test/refused:1", localhost(registry.addr()));
    let credentials = login.map(|(user, password)| format!("{user}:{password}"));
    let mut args = vec!["push", "--tls-verify=false"];
    if let Some(credentials) = &credentials {
        args.extend(["--creds", credentials]);
    }
    args.extend(["localhost/made-here", &name]);
    let push = home.podman(&args).refused();

    let answer = refusal(&registry.client(), login).expect_error(401, "UNAUTHORIZED");
    assert!(!answer.message().is_empty(), "{answer:?}");
    let expected = format!("unauthorized: {}", answer.message());
    assert!(push.text().contains(&expected), "{expected:?} is not in {push}");
    assert!(!registry.root().join("test").exists(), "the refused push left something");
}

/// What a client is told that asks as podman does: for a token, then for an upload.
#[track_caller]
fn refusal(client: &Client, login: Option<(&str, &str)>) -> Response {
    let (user, password) = login.unwrap_or_default();
    match client.token(user, password, &["repository:test/refused:pull,push"]) {
        Err(answer) => answer,
        Ok(token) => client.send(Request::post("/v2/test/refused/blobs/uploads/").bearer(&token)),
    }
}

#[track_caller]
fn digest_of(client: &Client, repo: &str, reference: &str) -> String {
    let answer = client.head(&format!("/v2/{repo}/manifests/{reference}")).expect_status(200);
    answer.header("docker-content-digest").expect("a digest").to_owned()
}

/// The names in a directory with their inodes, as `ls -i` shows them.
fn inodes(directory: &Path) -> std::collections::BTreeMap<String, u64> {
    fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| {
            let entry = entry.expect("a directory entry");
            let inode = entry.metadata().expect("its inode").ino();
            (entry.file_name().to_string_lossy().into_owned(), inode)
        })
        .collect()
}
