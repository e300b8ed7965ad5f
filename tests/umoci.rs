//! umoci on the tree: another reader and writer of the same layouts.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::Registry;
use support::command::{Outcome, run};
use support::containers::{Containers, localhost};

#[test]
fn a_pushed_image_is_listed_examined_and_unpacked() {
    let registry = pushed("hello from the tree");
    let repo = registry.root().join("team/app");
    let list = umoci(&["ls", "--layout", path(&repo)]).ok();
    assert_eq!(list.stdout, "v1\n");

    let image = format!("{}:v1", repo.display());
    let stat = umoci(&["stat", "--image", &image, "--json"]).ok();
    let stat: serde_json::Value = serde_json::from_str(&stat.stdout).expect("umoci stat --json");
    assert_eq!(stat["history"].as_array().map(Vec::len), Some(1), "{stat}");

    let bundle = registry.scratch().join("bundle");
    umoci(&["unpack", "--image", &image, path(&bundle)]).ok();
    let hello = fs::read_to_string(bundle.join("rootfs/hello")).expect("the unpacked file");
    assert_eq!(hello, "hello from the tree");
}

#[test]
fn what_umoci_changes_on_the_tree_is_served_at_once() {
    let registry = pushed("to be changed");
    let client = registry.client();
    assert_eq!(client.tags("team/app"), ["v1"]);
    let image = format!("{}:v1", registry.root().join("team/app").display());

    umoci(&["tag", "--image", &image, "again"]).ok();
    assert_eq!(client.tags("team/app"), ["again", "v1"]);

    let before = client.get("/v2/team/app/manifests/v1").expect_status(200).body;
    umoci(&["config", "--image", &image, "--tag", "v2", "--config.user", "65534"]).ok();
    assert_eq!(client.tags("team/app"), ["again", "v1", "v2"]);
    assert_eq!(client.get("/v2/team/app/manifests/v1").expect_status(200).body, before);
    let home = Containers::new();
    let name = format!("{}/team/app:v2", localhost(registry.addr()));
    home.podman(&["pull", "--tls-verify=false", &name]).ok();
    let user = home.podman(&["image", "inspect", "--format", "{{.User}}", &name]).ok();
    assert_eq!(user.stdout.trim(), "65534");

    umoci(&["rm", "--image", &image]).ok();
    assert_eq!(client.tags("team/app"), ["again", "v2"]);
    client.get("/v2/team/app/manifests/v1").expect_status(404);
}

/// A registry where podman pushed `team/app:v1`, an image with this text in `/hello`.
fn pushed(hello: &str) -> Registry {
    let registry = Registry::start(&["--auth", "none"]);
    let home = Containers::new();
    home.image("localhost/made-here", hello, "amd64");
    let name = format!("{}/team/app:v1", localhost(registry.addr()));
    home.podman(&["push", "--tls-verify=false", "localhost/made-here", &name]).ok();
    registry
}

#[track_caller]
fn umoci(args: &[&str]) -> Outcome {
    run(Command::new("umoci").args(args))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
