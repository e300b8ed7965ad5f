//! The table "What the client is told": every kind of person, in repositories of every kind.

#[path = "support/pam.rs"]
mod pam;
mod support;

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use pam::{Host, PASSWORD};
use support::Registry;
use support::content::{Image, OCI_MANIFEST, random, sha256};
use support::http::{Client, Framing, Request, Response, basic};

/// A server with four repositories of `daemon`'s, each with the same tag:
/// `open/app`, which everybody may read; `private/app`, which only `daemon` may enter; `drop/box`,
/// to which `bin` may write and which it may not read; `shared/app`, which `games` may read.
/// `absent/app` is not there, and only `daemon` may create it.
struct Place {
    registry: Registry,
    image: Image,
    // Dropped last: the server's services lie in it.
    _host: Host,
}

impl Place {
    fn new(args: &[&str]) -> Place {
        let host = Host::new();
        let confdir = host.path("pam.d").display().to_string();
        let mut all = vec!["--auth", "pam", "--pam-confdir", &confdir];
        all.extend(args);
        let registry = Registry::start(&all);
        registry.grant("u:daemon");
        let image = Image::random(500);
        let place = Place { registry, image, _host: host };
        for repo in ["open/app", "private/app", "drop/box", "shared/app"] {
            place.user("daemon", repo).push_image(repo, "v1", &place.image);
        }
        place.registry.setfacl("o::-", "private/app");
        place.registry.setfacl("u:bin:wx,o::-", "drop/box");
        place.registry.setfacl("u:games:rx,o::-", "shared/app");
        place
    }

    /// With a token for everything that the permissions allow in one repository.
    fn user(&self, name: &str, repo: &str) -> Client {
        self.registry.client().logged_in(name, PASSWORD, repo)
    }

    fn anonymous(&self, repo: &str) -> Client {
        let scope = format!("repository:{repo}:pull,push,delete");
        let token = self.registry.client().token("", "", &[&scope]).expect("an anonymous token");
        self.registry.client().with_authorization(format!("Bearer {token}"))
    }

    /// One request of each kind that reads, with what it is answered where it may be, and where
    /// there is nothing.
    fn reads(&self, repo: &str) -> Vec<(Request, u16, &'static str)> {
        let at = |rest: &str| format!("/v2/{repo}/{rest}");
        let blob = at(&format!("blobs/{}", sha256(&self.image.config)));
        let by_digest = at(&format!("manifests/{}", self.image.digest));
        let range = Request::get(blob.as_str()).header("Range", "bytes=0-3");
        vec![
            (Request::get(at("manifests/v1")), 200, "MANIFEST_UNKNOWN"),
            (Request::head(at("manifests/v1")), 200, ""),
            (Request::get(by_digest), 200, "MANIFEST_UNKNOWN"),
            (Request::get(blob.as_str()), 200, "BLOB_UNKNOWN"),
            (Request::head(blob), 200, ""),
            (range, 206, "BLOB_UNKNOWN"),
            (Request::get(at("tags/list")), 200, "NAME_UNKNOWN"),
        ]
    }

    /// One request of each kind that writes, and what it is answered where it may be.
    fn writes(&self, repo: &str) -> Vec<(Request, u16)> {
        let at = |rest: &str| format!("/v2/{repo}/{rest}");
        let blob = random(10);
        let digest = sha256(&blob);
        let id = "0123456789abcdef0123456789abcdef";
        let session = at(&format!("blobs/uploads/{id}"));
        let manifest = |path: String| {
            Request::put(path)
                .header("Content-Type", OCI_MANIFEST)
                .body(self.image.manifest.as_slice())
        };
        let config = sha256(&self.image.config);
        vec![
            (Request::post(at("blobs/uploads/")), 202),
            (Request::post(at(&format!("blobs/uploads/?digest={digest}"))).body(blob), 201),
            (Request::post(at(&format!("blobs/uploads/?mount={config}"))), 201),
            (Request::get(session.as_str()), 404),
            (Request::patch(session.as_str()).body("x"), 404),
            (Request::put(format!("{session}?digest={digest}")).body("x"), 404),
            (Request::delete(session), 404),
            (manifest(at("manifests/v2")), 201),
            (Request::delete(at("manifests/v2")), 202),
            (Request::delete(at(&format!("blobs/{digest}"))), 202),
        ]
    }
}

/// What two answers may not differ in where nobody is to tell one from the other.
fn shape(answer: &Response, repo: &str) -> (u16, String, Vec<(String, String)>) {
    let own = |text: &str| text.replace(repo, "REPO");
    let headers =
        answer.headers.iter().filter(|(name, _)| name != "date" && name != "x-request-id");
    let headers = headers.filter(|(name, _)| name != "content-length");
    let headers = headers.map(|(name, value)| (name.clone(), own(value))).collect();
    (answer.status, own(&answer.text()), headers)
}

#[track_caller]
fn insufficient(answer: &Response) {
    assert_eq!(answer.status, 401, "{answer:?}");
    let challenge = answer.header("www-authenticate").unwrap_or_default();
    assert!(challenge.ends_with(",error=\"insufficient_scope\""), "{answer:?}");
    assert!(challenge.contains(",scope=\"repository:"), "{answer:?}");
}

#[test]
fn who_may_read_and_write_is_answered_as_it_is() {
    let place = Place::new(&[]);
    for repo in ["open/app", "private/app", "drop/box"] {
        let client = place.user("daemon", repo);
        for (request, expected, _) in place.reads(repo) {
            client.send(request).expect_status(expected);
        }
        for (request, expected) in place.writes(repo) {
            client.send(request).expect_status(expected);
        }
    }
}

#[test]
fn who_may_read_alone_may_not_write() {
    let place = Place::new(&[]);
    for (user, repo) in [("bin", "open/app"), ("games", "shared/app")] {
        let client = place.user(user, repo);
        for (request, expected, _) in place.reads(repo) {
            client.send(request).expect_status(expected);
        }
        for (request, _) in place.writes(repo) {
            client.send(request).expect_error(403, "DENIED");
        }
        assert_eq!(place.user("daemon", repo).tags(repo), ["v1"]);
    }
}

#[test]
fn what_a_user_may_not_read_is_as_if_it_were_not_there() {
    let place = Place::new(&[]);
    let [private, absent] = ["private/app", "absent/app"];
    let [there, nowhere] = [private, absent].map(|repo| place.user("bin", repo));
    for ((request, _, code), (other, ..)) in
        place.reads(private).into_iter().zip(place.reads(absent))
    {
        let line = format!("{} {}", request.method, request.path);
        let [found, missing] = [there.send(request), nowhere.send(other)];
        assert_eq!((found.status, found.code().as_str()), (404, code), "{line}");
        assert_eq!(shape(&found, private), shape(&missing, absent), "{line}");
    }
    let referrers =
        |repo: &str| Request::get(format!("/v2/{repo}/referrers/{}", place.image.digest));
    let [found, missing] = [there.send(referrers(private)), nowhere.send(referrers(absent))];
    assert_eq!(found.status, 200, "an empty index, as for what is not there");
    assert_eq!(shape(&found, private), shape(&missing, absent));

    for ((request, _), (other, _)) in place.writes(private).into_iter().zip(place.writes(absent)) {
        let line = format!("{} {}", request.method, request.path);
        let [found, missing] = [there.send(request), nowhere.send(other)];
        assert_eq!((found.status, found.code().as_str()), (403, "DENIED"), "{line}");
        assert_eq!(shape(&found, private), shape(&missing, absent), "{line}");
    }
    assert!(!place.registry.root().join("absent").exists());
}

#[test]
fn what_strangers_may_not_read_asks_them_to_log_in() {
    let place = Place::new(&[]);
    let [private, absent] = ["private/app", "absent/app"];
    let [there, nowhere] = [private, absent].map(|repo| place.anonymous(repo));
    for ((request, ..), (other, ..)) in place.reads(private).into_iter().zip(place.reads(absent)) {
        let pusher_looks = request.method == "HEAD" && request.path.contains("/blobs/");
        let [found, missing] = [there.send(request), nowhere.send(other)];
        if pusher_looks {
            // The upload that follows is told why; a HEAD has no room for it.
            assert_eq!(found.status, 404, "{found:?}");
        } else {
            insufficient(&found);
        }
        assert_eq!(shape(&found, private), shape(&missing, absent));
    }
    for repo in [private, absent, "open/app"] {
        let client = place.anonymous(repo);
        for (request, _) in place.writes(repo) {
            insufficient(&client.send(request));
        }
    }
    let client = place.anonymous("open/app");
    for (request, expected, _) in place.reads("open/app") {
        client.send(request).expect_status(expected);
    }
}

#[test]
fn a_drop_box_takes_and_shows_nothing() {
    let place = Place::new(&[]);
    let client = place.user("bin", "drop/box");
    for (request, _, code) in place.reads("drop/box") {
        let answer = client.send(request);
        assert_eq!((answer.status, answer.code().as_str()), (404, code), "{answer:?}");
    }
    for (request, expected) in place.writes("drop/box") {
        client.send(request).expect_status(expected);
    }
    client.push_image("drop/box", "v3", &Image::random(100));
}

#[test]
fn a_token_that_did_not_ask_is_told_to_ask() {
    let place = Place::new(&[]);
    let plain = place.registry.client();
    let token = plain.token("daemon", PASSWORD, &["repository:other:pull"]).expect("a token");
    let client = plain.with_authorization(format!("Bearer {token}"));
    let reads = place.reads("open/app").into_iter().map(|(request, ..)| request);
    let writes = place.writes("open/app").into_iter().map(|(request, _)| request);
    for request in reads.chain(writes) {
        insufficient(&client.send(request));
    }
}

#[test]
fn administrators_may_do_everything() {
    let place = Place::new(&["--admin-group", "sys"]);
    for repo in ["private/app", "drop/box", "open/app"] {
        let client = place.user("sys", repo);
        for (request, expected, _) in place.reads(repo) {
            client.send(request).expect_status(expected);
        }
        for (request, expected) in place.writes(repo) {
            client.send(request).expect_status(expected);
        }
    }
    let client = place.user("sys", "absent/app");
    client.push_image("absent/app", "v1", &place.image);
    let listed = client.get("/v2/_catalog").json();
    assert_eq!(listed["repositories"].as_array().map(Vec::len), Some(5), "{listed}");
}

/// SECURITY: the intersection of what was asked and what is allowed; a push token cannot delete;
/// lists name nothing that cannot be read.
#[test]
fn scope_is_what_was_asked_and_is_allowed() {
    let place = Place::new(&[]);
    let plain = place.registry.client();
    let granted = |user: &str, scope: &str| {
        let form = format!(
            "grant_type=password&service=stillage&username={user}&password={}&scope={scope}",
            PASSWORD.replace(' ', "+").replace('ß', "%C3%9F")
        );
        let request = Request::post("/token")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(form);
        plain.send(request).expect_status(200).json()["scope"].as_str().unwrap().to_owned()
    };
    for (user, repo, expected) in [
        ("daemon", "private/app", "pull,push,delete"),
        ("bin", "private/app", ""),
        ("bin", "open/app", "pull"),
        ("bin", "drop/box", "push,delete"),
        ("games", "shared/app", "pull"),
        ("daemon", "absent/app", "pull,push,delete"),
        ("bin", "absent/app", ""),
    ] {
        let expected = match expected {
            "" => String::new(),
            actions => format!("repository:{repo}:{actions}"),
        };
        assert_eq!(granted(user, &format!("repository:{repo}:*")), expected, "{user} {repo}");
    }
    let token = plain.token("daemon", PASSWORD, &["repository:open/app:pull,push"]).expect("token");
    let pusher = plain.with_authorization(format!("Bearer {token}"));
    pusher.push_image("open/app", "v2", &place.image);
    insufficient(&pusher.delete("/v2/open/app/manifests/v2"));

    for (user, expected) in [
        ("daemon", &["drop/box", "open/app", "private/app", "shared/app"][..]),
        ("bin", &["open/app"]),
        ("games", &["open/app", "shared/app"]),
        ("", &["open/app"]),
    ] {
        let token = plain.token(user, PASSWORD, &[]).expect("a token");
        let list = plain.with_authorization(format!("Bearer {token}")).get("/v2/_catalog").json();
        assert_eq!(list["repositories"], serde_json::json!(expected), "{user}");
    }
}

/// SECURITY: a right that was taken away is gone with the next request, whatever the token says.
#[test]
fn revoked_rights_end_with_the_next_request() {
    let place = Place::new(&[]);
    let games = place.user("games", "shared/app");
    let daemon = place.user("daemon", "shared/app");
    let look = Request::get("/v2/shared/app/manifests/v1");
    games.send(look.clone()).expect_status(200);
    place.registry.setfacl("u:games:-", "shared/app");
    games.send(look.clone()).expect_status(404);
    place.registry.setfacl("u:games:rx", "shared/app");
    games.send(look.clone()).expect_status(200);
    place.registry.setfacl("o::-", "shared");
    games.send(look).expect_status(404);

    let push = Request::post("/v2/shared/app/blobs/uploads/");
    daemon.send(push.clone()).expect_status(202);
    let upload = daemon.start_upload("shared/app");
    place.registry.setfacl("u:daemon:rx", "shared/app");
    daemon.send(push.clone()).expect_error(403, "DENIED");
    daemon.send(Request::patch(upload.as_str()).body("x")).expect_error(403, "DENIED");
    daemon
        .send(Request::put(format!("{upload}?digest={}", sha256(b""))))
        .expect_error(403, "DENIED");
    daemon.delete("/v2/shared/app/manifests/v1").expect_error(403, "DENIED");
    place.registry.setfacl("u:daemon:rwx", "shared/app");
    daemon.send(push).expect_status(202);
}

/// A body that is still on its way when the right is taken away changes nothing any more: its sender
/// alone decides how long it takes.
#[test]
fn revoked_rights_end_what_is_still_being_sent() {
    let place = Place::new(&[]);
    let daemon = place.user("daemon", "open/app");
    let blob = random(1000);
    let digest = sha256(&blob);
    let manifest = &place.image.manifest;
    let put = Request::put("/v2/open/app/manifests/late").header("Content-Type", OCI_MANIFEST);
    let post = Request::post(format!("/v2/open/app/blobs/uploads/?digest={digest}"));
    for (request, body) in [(put, manifest), (post, &blob)] {
        place.registry.setfacl("u:daemon:rwx", "open/app");
        let framing = Framing::Length(body.len() as u64);
        let answer = daemon.stream(&request, framing, |out| {
            out.write_all(&body[..10])?;
            out.flush()?;
            place.registry.setfacl("u:daemon:rx", "open/app");
            // It is the time that a body takes which counts.
            std::thread::sleep(std::time::Duration::from_millis(1500));
            out.write_all(&body[10..])
        });
        answer.expect("an answer").expect_error(403, "DENIED");
    }
    assert_eq!(daemon.tags("open/app"), ["v1"]);
    daemon.head(&format!("/v2/open/app/blobs/{digest}")).expect_status(404);
}

/// SECURITY: content that only a private repository has cannot be had through one's own.
#[test]
fn private_dedupe_gives_nothing_away() {
    let place = Place::new(&[]);
    place.registry.grant("u:bin");
    let secret = random(300);
    let digest = place.user("daemon", "private/app").push_blob("private/app", &secret);
    let mine = place.user("bin", "mine/app");
    mine.push_image("mine/app", "v1", &Image::random(10));
    let path = format!("/v2/mine/app/blobs/{digest}");
    mine.get(&path).expect_error(404, "BLOB_UNKNOWN");
    mine.head(&path).expect_status(404);
    mine.send(Request::get(path.as_str()).header("Range", "bytes=0-9")).expect_status(404);
    mine.delete(&path).expect_error(404, "BLOB_UNKNOWN");
    // A manifest that only names it does not bring it in.
    let stolen = Image::of(vec![secret.clone()], "");
    mine.push_blob("mine/app", &stolen.config);
    mine.put_manifest("mine/app", "v2", OCI_MANIFEST, &stolen.manifest)
        .expect_error(400, "MANIFEST_BLOB_UNKNOWN");
    // A file under its name, put there with a shell, is not compared with what others have.
    let [known, unknown] = [digest.clone(), sha256(b"nobody has this")].map(|digest| {
        let hex = digest.trim_start_matches("sha256:").to_owned();
        let planted = place.registry.root().join("mine/app/blobs/sha256").join(hex);
        fs::write(&planted, "abc").expect("a planted file");
        let path = format!("/v2/mine/app/blobs/{digest}");
        let answers = [mine.head(&path), mine.get(&path), mine.head(&path)];
        fs::remove_file(planted).expect("the planted file");
        answers.map(|answer| shape(&answer, &digest))
    });
    assert_eq!(known, unknown);
    // Whoever has the content shares the inode, and learns nothing by it.
    mine.push_blob("mine/app", &secret);
    assert_eq!(mine.get(&path).expect_status(200).body, secret);
}

/// SECURITY: from a repository that cannot be read, that is absent, or that has no such blob, a mount
/// is the same upload; without `from`, what only a repository has that may not be read is not found.
#[test]
fn mount_tells_nothing_of_its_source() {
    let place = Place::new(&[]);
    place.registry.grant("u:bin");
    let secret = place.user("daemon", "private/app").push_blob("private/app", &random(300));
    let shown = place.user("daemon", "open/app").push_blob("open/app", &random(300));
    let scopes: Vec<String> = ["mine", "private/app", "open/app", "absent/app"]
        .iter()
        .map(|repo| format!("repository:{repo}:pull,push"))
        .collect();
    let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
    let token = place.registry.client().token("bin", PASSWORD, &scopes).expect("a token");
    let bin = place.registry.client().with_authorization(format!("Bearer {token}"));
    let mount = |query: &str| bin.send(Request::post(format!("/v2/mine/blobs/uploads/?{query}")));
    let mut shapes = Vec::new();
    for query in [
        format!("mount={secret}&from=private/app"),
        format!("mount={secret}&from=absent/app"),
        format!("mount={secret}&from=open/app"),
        format!("mount={secret}"),
        format!("mount={}", sha256(b"nowhere")),
    ] {
        let answer = mount(&query).expect_status(202);
        let location = answer.location();
        let id = location.rsplit('/').next().expect("an id");
        shapes.push(shape(&answer, id));
    }
    shapes.dedup();
    assert_eq!(shapes.len(), 1, "{shapes:#?}");
    mount(&format!("mount={shown}&from=open/app")).expect_status(201);
    let again = Request::post(format!("/v2/mine/blobs/uploads/?mount={shown}"));
    bin.send(again).expect_status(201);
    // Its owner may mount it, also without saying from where.
    let owner = place.user("daemon", "theirs");
    owner
        .send(Request::post(format!("/v2/theirs/blobs/uploads/?mount={secret}")))
        .expect_status(201);
}

/// A directory that the server's own account may not use is the server's fault, not the client's:
/// 403, and the command that mends it in the log.
#[test]
fn what_the_server_may_not_use_is_said_in_its_log() {
    let host = Host::new();
    let room = tempfile::tempdir().expect("a directory");
    let root = room.path().join("registry");
    // Everybody may enter `shut` but its group, which is that of the server's account.
    for (path, owner, mode) in [("", 2, 0o755), ("shut", 0, 0o705), ("shut/app", 2, 0o755)] {
        let path = root.join(path);
        fs::create_dir_all(&path).expect("a directory");
        chown(&path, Some(owner), Some(2)).expect("chown");
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
    }
    for path in [room.path().to_owned(), host.path("")] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("chmod");
    }
    let confdir = host.path("pam.d").display().to_string();
    let mut server = Command::new(support::STILLAGE)
        .arg("serve")
        .arg(&root)
        .args(["--listen", "127.0.0.1:0", "--auth", "pam", "--pam-confdir", &confdir])
        .args(["--admin-group", "sys"])
        .uid(2)
        .gid(2)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the built binary starts");
    let mut line = String::new();
    let mut out = BufReader::new(server.stdout.take().expect("stdout is piped"));
    out.read_line(&mut line).expect("a line");
    let addr = line.trim().rsplit("http://").next().expect("a URL").parse().expect("an address");
    let client = Client::new(addr);
    for user in ["games", "sys"] {
        let with = client.with_authorization(basic(user, PASSWORD));
        with.get("/v2/shut/app/tags/list").expect_error(403, "DENIED");
        with.send(Request::post("/v2/shut/app/blobs/uploads/")).expect_error(403, "DENIED");
    }
    server.kill().expect("kill");
    let output = server.wait_with_output().expect("the server's log");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains(&format!("setfacl -m u:2:rwX {}", root.join("shut").display())), "{log}");
}
