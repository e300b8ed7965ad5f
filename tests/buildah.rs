//! buildah pushes what it built, in both formats that it writes.

mod support;

use std::fs;

use support::Registry;
use support::account::Account;
use support::containers::{Containers, localhost};
use support::content::{DOCKER_MANIFEST, OCI_MANIFEST};
use support::http::Client;

#[test]
fn a_built_image_is_pushed_and_pulled() {
    let account = Account::new();
    let registry = Registry::start(&["--auth", "pam"]);
    registry.grant(&format!("u:{}", account.name()));
    let server = localhost(registry.addr());
    let home = Containers::new();
    let id = build(&home);
    home.login(&server, account.name(), account.password()).ok();
    let target = format!("docker://{server}/built/image:1");
    home.buildah(&["push", "--tls-verify=false", "built", &target]).ok();
    let client = registry.client().logged_in(account.name(), account.password(), "built/image");
    assert_eq!(media_type(&client, "built/image", "1"), OCI_MANIFEST);

    let other = Containers::new();
    let pulled = format!("{server}/built/image:1");
    other.buildah(&["pull", "--tls-verify=false", &pulled]).ok();
    assert_eq!(other.image_id(&pulled), id);
    // A later build takes it as its base, straight from the registry.
    other.buildah(&["from", "--name", "next", "--tls-verify=false", &pulled]).ok();
}

#[test]
fn the_docker_format_is_kept_as_it_was_pushed() {
    let registry = Registry::start(&["--auth", "none"]);
    let server = localhost(registry.addr());
    let home = Containers::new();
    build(&home);
    let target = format!("docker://{server}/built/docker:1");
    home.buildah(&["push", "--tls-verify=false", "--format", "v2s2", "built", &target]).ok();
    assert_eq!(media_type(&registry.client(), "built/docker", "1"), DOCKER_MANIFEST);

    let other = Containers::new();
    let pulled = format!("{server}/built/docker:1");
    other.podman(&["pull", "--tls-verify=false", &pulled]).ok();
    assert_eq!(registry.client().tags("built/docker"), ["1"]);
}

/// An image `built` made from nothing but one file. Returns its id.
fn build(home: &Containers) -> String {
    let file = home.path().join("file");
    fs::write(&file, support::content::random_hex(64)).expect("a file to copy");
    home.buildah(&["from", "--name", "work", "scratch"]).ok();
    home.buildah(&["copy", "work", file.to_str().expect("a plain path"), "/file"]).ok();
    home.buildah(&["config", "--entrypoint", "[\"/file\"]", "work"]).ok();
    home.buildah(&["commit", "work", "built"]).ok();
    home.image_id("localhost/built")
}

#[track_caller]
fn media_type(client: &Client, repo: &str, tag: &str) -> String {
    let answer = client.head(&format!("/v2/{repo}/manifests/{tag}")).expect_status(200);
    answer.header("content-type").expect("a media type").to_owned()
}
