//! `stillage serve --read-only`: a replica with logins, which writes nothing.

mod support;

#[path = "support/pam.rs"]
mod pam;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use pam::{Host, PASSWORD};
use support::command::run;
use support::containers::{Containers, localhost};
use support::content::{Image, OCI_MANIFEST, random, referrer, sha256};
use support::http::{Client, Request, Response};
use support::volume::{Bound, Volume};
use support::{Registry, STILLAGE};

/// What the referrers API was told of in advance.
const FACTS: &str = "open/app/_referrers/facts.jsonl";

/// A tree with an image in `open/app` and in `private/app`, which only `games` may read, and something
/// that refers to the one in `open/app`.
struct Origin {
    registry: Registry,
    image: Image,
    referrer: String,
}

impl Origin {
    fn new(root: &Path) -> Origin {
        let mut registry = Registry::start_on(root, &["--auth", "none"]);
        let (client, image) = (registry.client(), Image::random(3000));
        for repo in ["open/app", "private/app"] {
            client.push_image(repo, "v1", &image);
        }
        let text = referrer(&image.digest, image.manifest.len(), "application/x-signature");
        let referrer = sha256(&text);
        client.push_blob("open/app", b"{}");
        client.put_manifest("open/app", &referrer, OCI_MANIFEST, &text).expect_status(201);
        registry.setfacl("u:games:rx,o::-", "private/app");
        registry.term();
        Origin { registry, image, referrer }
    }

    fn root(&self) -> &Path {
        self.registry.root()
    }

    /// What everybody may ask for, and what `games` may.
    fn assert_served(&self, replica: &Registry) {
        let anonymous = anonymous(replica);
        anonymous.get("/readyz").expect_status(200);
        anonymous.assert_pulls("open/app", "v1", &self.image);
        anonymous.assert_pulls("open/app", &self.image.digest, &self.image);
        assert_eq!(anonymous.tags("open/app"), ["v1"]);
        let list = anonymous.get("/v2/_catalog").expect_status(200).json();
        assert_eq!(list["repositories"], serde_json::json!(["open/app"]));
        let path = format!("/v2/open/app/referrers/{}", self.image.digest);
        let found = anonymous.get(&path).expect_status(200).json();
        assert_eq!(found["manifests"][0]["digest"], self.referrer.as_str(), "{found}");
        anonymous.get("/v2/private/app/manifests/v1").expect_status(401);
        let games = replica.client().logged_in("games", PASSWORD, "private/app");
        games.assert_pulls("private/app", "v1", &self.image);
        let bin = replica.client().logged_in("bin", PASSWORD, "private/app");
        bin.get("/v2/private/app/manifests/v1").expect_error(404, "MANIFEST_UNKNOWN");
    }
}

/// Everybody's token for what everybody may read.
fn anonymous(registry: &Registry) -> Client {
    let scopes = ["repository:open/app:pull", "registry:catalog:*"];
    let token = registry.client().token("", "", &scopes).expect("an anonymous token");
    registry.client().with_authorization(format!("Bearer {token}"))
}

/// A server that only reads, with the accounts of a host of its own.
struct Replica {
    registry: Registry,
    _host: Host,
}

impl Replica {
    fn of(root: &Path) -> Replica {
        let host = Host::new();
        let confdir = host.path("pam.d").display().to_string();
        let args = ["--read-only", "--anonymous", "pull", "--pam-confdir", &confdir];
        Replica { registry: Registry::start_on(root, &args), _host: host }
    }
}

/// Everything about every file that a write would change.
fn picture(root: &Path) -> BTreeMap<PathBuf, (u64, u64, u32, [i64; 4])> {
    let mut all = BTreeMap::new();
    let mut left = vec![root.to_path_buf()];
    while let Some(path) = left.pop() {
        let stat = fs::symlink_metadata(&path).expect("its state");
        let times = [stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec()];
        if stat.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            left.extend(entries.map(|entry| entry.expect("an entry").path()));
        }
        all.insert(path, (stat.ino(), stat.len(), stat.mode(), times));
    }
    all
}

/// Every request that would change something, and some that make no sense besides.
fn changes(image: &Image) -> Vec<Request> {
    let (digest, id) = (&image.digest, "0123456789abcdef0123456789abcdef");
    let uploads = "/v2/open/app/blobs/uploads/";
    vec![
        Request::post(uploads),
        Request::post(format!("{uploads}?digest={digest}")).body("x"),
        Request::post(format!("{uploads}?mount={digest}&from=private/app")),
        Request::patch(format!("{uploads}{id}")).body("x"),
        Request::put(format!("{uploads}{id}?digest={digest}")).body("x"),
        Request::put(format!("{uploads}{id}")),
        Request::delete(format!("{uploads}{id}")),
        Request::put("/v2/open/app/manifests/v2")
            .header("Content-Type", OCI_MANIFEST)
            .body(image.manifest.clone()),
        Request::put("/v2/new/app/manifests/v1").body("{}"),
        Request::delete("/v2/open/app/manifests/v1"),
        Request::delete(format!("/v2/open/app/manifests/{digest}")),
        Request::delete(format!("/v2/open/app/blobs/{digest}")),
        Request::post("/v2/"),
        Request::put("/v2/NO/manifests/v1"),
        Request::delete("/nowhere"),
    ]
}

fn assert_refused(answer: Response) {
    let answer = answer.expect_error(405, "UNSUPPORTED");
    assert!(answer.message().contains("read-only"), "{answer:?}");
    assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{answer:?}");
    assert!(answer.header("www-authenticate").is_none(), "{answer:?}");
}

#[test]
fn a_read_only_mount_is_served_with_a_room_and_without_one() {
    let volume = Volume::ext4(32, &[]);
    let origin = Origin::new(&volume.path().join("registry"));
    for room in [true, false] {
        if !room {
            volume.remount("rw");
            fs::remove_dir_all(origin.root().join(".stillage")).expect("the room");
            fs::remove_file(origin.root().join(FACTS)).expect("the facts");
            fs::remove_file(origin.root().join("open/app/.lock")).expect("the lock");
        }
        volume.remount("ro");
        let before = picture(origin.root());
        let mut replica = Replica::of(origin.root());
        origin.assert_served(&replica.registry);
        for request in changes(&origin.image) {
            assert_refused(anonymous(&replica.registry).send(request));
        }
        replica.registry.restart();
        origin.assert_served(&replica.registry);
        drop(replica);
        assert_eq!(picture(origin.root()), before);
    }
}

#[test]
fn nothing_is_written_where_it_could_be() {
    let temp = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(&temp.path().join("registry"));
    for room in [true, false] {
        if !room {
            fs::remove_dir_all(origin.root().join(".stillage")).expect("the room");
            fs::remove_file(origin.root().join(FACTS)).expect("the facts");
            fs::remove_file(origin.root().join("open/app/.lock")).expect("the lock");
        }
        let (before, around) = (picture(origin.root()), picture(temp.path()));
        let replica = Replica::of(origin.root());
        let (registry, image) = (&replica.registry, &origin.image);
        origin.assert_served(registry);
        let games = registry.client().logged_in("games", PASSWORD, "open/app");
        let basic = registry.client().with_authorization(support::http::basic("games", PASSWORD));
        for client in [registry.client(), anonymous(registry), games, basic] {
            for request in changes(image) {
                assert_refused(client.send(request));
            }
        }
        // Whoever asks whether a blob is there is told, and promised nothing.
        let blob = format!("/v2/open/app/blobs/{}", sha256(&image.config));
        anonymous(registry).head(&blob).expect_status(200);
        drop(replica);
        assert_eq!(picture(origin.root()), before);
        assert_eq!(picture(temp.path()), around);
    }
}

#[test]
fn what_the_origin_changes_is_served_and_its_tokens_are_believed() {
    let temp = tempfile::tempdir().expect("a directory");
    let root = temp.path().join("registry");
    let host = Host::new();
    let confdir = host.path("pam.d").display().to_string();
    let writer = Registry::start_on(&root, &["--anonymous", "none", "--pam-confdir", &confdir]);
    writer.grant("u:daemon");
    let token = "repository:a:pull,push";
    let token = writer.client().token("daemon", PASSWORD, &[token]).expect("a token");
    let args = ["--read-only", "--anonymous", "none", "--pam-confdir", &confdir];
    let reader = Registry::start_on(&root, &args);
    let bearer = |to: &Registry| to.client().with_authorization(format!("Bearer {token}"));
    let (writes, reads) = (bearer(&writer), bearer(&reader));
    for tag in ["v1", "v2"] {
        let image = Image::random(100);
        writes.push_image("a", tag, &image);
        reads.assert_pulls("a", tag, &image);
    }
    assert_refused(reads.delete("/v2/a/manifests/v1"));
}

/// Without a key in the tree a token is good at the server that signed it, until that ends.
#[test]
fn tokens_are_signed_with_a_key_in_memory() {
    let temp = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(&temp.path().join("registry"));
    fs::remove_dir_all(origin.root().join(".stillage")).expect("the room");
    let mut replica = Replica::of(origin.root());
    let token = |registry: &Registry| {
        registry.client().token("games", PASSWORD, &["repository:private/app:pull"]).expect("one")
    };
    let list = |registry: &Registry, token: &str| {
        let get = Request::get("/v2/private/app/tags/list").bearer(token);
        registry.client().send(get)
    };
    let first = token(&replica.registry);
    list(&replica.registry, &first).expect_status(200);
    replica.registry.restart();
    let stale = list(&replica.registry, &first).expect_status(401);
    let challenge = stale.header("www-authenticate").unwrap_or_default();
    assert!(challenge.contains("invalid_token"), "{stale:?}");
    list(&replica.registry, &token(&replica.registry)).expect_status(200);
}

#[test]
fn tokens_are_for_pulling_alone() {
    let temp = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(&temp.path().join("registry"));
    // All may do everything, were it not for the flag.
    run(Command::new("chmod").args(["-R", "go+rwX"]).arg(origin.root().join("open"))).ok();
    let replica = Replica::of(origin.root());
    let client = replica.registry.client();
    for (asked, granted) in [
        ("repository:open/app:pull,push,delete", "repository:open/app:pull"),
        ("repository:open/app:*", "repository:open/app:pull"),
        ("repository:open/app:push repository:private/app:pull", "repository:private/app:pull"),
        ("repository:open/app:delete", ""),
        ("registry:catalog:*", "registry:catalog:*"),
    ] {
        let form = format!(
            "grant_type=password&service=stillage&client_id=x&username=games&password={}&scope={}",
            PASSWORD.replace(' ', "+").replace('ß', "%C3%9F"),
            asked.replace(' ', "+")
        );
        let kind = "application/x-www-form-urlencoded";
        let post = Request::post("/token").header("Content-Type", kind).body(form);
        let answer = client.send(post).expect_status(200).json();
        assert_eq!(answer["scope"], granted, "{asked}");
    }
}

#[test]
fn podman_pulls_with_a_login_and_is_told_why_it_cannot_push() {
    let temp = tempfile::tempdir().expect("a directory");
    let root = temp.path().join("registry");
    let home = Containers::new();
    let id = home.image("localhost/made-here", "to be copied", "amd64");
    {
        let origin = Registry::start_on(&root, &["--auth", "none"]);
        let name = format!("{}/private/app:v1", localhost(origin.addr()));
        home.podman(&["push", "--tls-verify=false", "localhost/made-here", &name]).ok();
        origin.setfacl("u:games:rwx,o::-", "private/app");
    }
    let replica = Replica::of(&root);
    let server = localhost(replica.registry.addr());
    let name = format!("{server}/private/app:v1");
    home.podman(&["pull", "--tls-verify=false", &name]).refused();
    home.login(&server, "games", PASSWORD).ok();
    home.forget_images();
    home.podman(&["pull", "--tls-verify=false", &name]).ok();
    assert_eq!(home.image_id(&name), id);
    for target in ["private/app:v2", "new/app:v1"] {
        let target = format!("{server}/{target}");
        home.image("localhost/another", target.as_str(), "amd64");
        let refused = home.podman(&["push", "--tls-verify=false", "localhost/another", &target]);
        let refused = refused.refused().text();
        assert!(refused.contains("this server is read-only"), "{refused}");
    }
}

#[test]
fn an_account_that_owns_nothing_of_it_serves_what_it_may_read() {
    let temp = tempfile::tempdir().expect("a directory");
    fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let mut origin = Origin::new(&temp.path().join("registry"));
    origin.registry.expect_damage();
    let damaged = {
        // What is not its own is read before it is served.
        let blob = random(2000);
        let digest = sha256(&blob);
        let name = digest.strip_prefix("sha256:").expect("a digest");
        let path = origin.root().join("open/app/blobs/sha256").join(name);
        fs::write(&path, random(2000)).expect("a wrong blob");
        chown(&path, Some(7), None).expect("chown");
        digest
    };
    let before = picture(origin.root());
    let by = ["setpriv", "--reuid=5", "--regid=60", "--clear-groups"];
    let mut replica = Registry::start_by(&by, origin.root(), &["--read-only", "--auth", "none"]);
    replica.expect_damage();
    replica.logs("another account's and is not used");
    let client = replica.client();
    client.assert_pulls("open/app", "v1", &origin.image);
    client.get(&format!("/v2/open/app/blobs/{damaged}")).expect_status(500);
    // It may enter, by the ACL.
    client.assert_pulls("private/app", "v1", &origin.image);
    for request in changes(&origin.image) {
        assert_refused(client.send(request));
    }
    drop(replica);
    assert_eq!(picture(origin.root()), before);
}

/// A bind mount takes no writes although its file system does.
#[test]
fn a_read_only_bind_mount_is_served() {
    let temp = tempfile::tempdir().expect("a directory");
    let origin = Origin::new(&temp.path().join("registry"));
    let bound = Bound::read_only(origin.root());
    let replica = Replica::of(origin.root());
    origin.assert_served(&replica.registry);
    // Before the mount goes.
    drop(replica);
    drop(bound);
}

#[test]
fn a_root_that_is_not_there_is_not_made() {
    let temp = tempfile::tempdir().expect("a directory");
    let root = temp.path().join("registry");
    let root = root.to_str().expect("a plain path");
    let serve = |more: &[&str]| {
        // One that starts all the same is ended.
        let args = ["60", STILLAGE, "serve", root, "--listen", "127.0.0.1:0", "--auth", "none"];
        run(Command::new("timeout").args(args).args(more)).refused()
    };
    let refused = serve(&["--read-only"]);
    assert!(refused.stderr.contains("No such file or directory"), "{refused}");
    assert!(!Path::new(root).exists());
    let own = serve(&["--read-only", "--tls", "self-signed"]);
    assert!(own.stderr.contains("--tls-cert") && own.code == Some(2), "{own}");
}

#[test]
fn the_start_says_that_nothing_is_written() {
    let temp = tempfile::tempdir().expect("a directory");
    let registry = Registry::start_on(temp.path(), &["--read-only", "--auth", "none"]);
    let lines = [registry.next_line(), registry.next_line(), registry.next_line()];
    assert!(lines[1].contains("read-only") && !lines.concat().contains("setfacl"), "{lines:?}");
    assert_eq!(fs::read_dir(temp.path()).expect("ROOT").count(), 0);
}
