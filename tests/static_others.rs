//! The tree served by Caddy or by Apache alone, with what `stillage static` prints: what clients need, and
//! what must not be reached. nginx is tried in depth by `static_nginx`.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::process::Command;

use support::Registry;
use support::command::run;
use support::containers::{Containers, localhost};
use support::content::{
    DOCKER_MANIFEST, Image, OCI_INDEX, OCI_MANIFEST, index, referrer, sha256, sha512,
};
use support::http::Request;
use support::web::{Web, open_room, print};

const SERVERS: [&str; 2] = ["caddy", "apache"];

/// What both say of what is there; `ours` are the headers that have to be the server's own.
#[test]
fn manifests_blobs_and_lists_are_what_the_server_sends() {
    let room = open_room();
    let registry = Registry::start_on(&room.path().join("a \"registry\""), &["--auth", "none"]);
    let ours = registry.client();
    let mut paths = vec!["/v2/".to_owned()];
    for repo in ["a", "a/b/c"] {
        let [image, second] = [Image::random(50_000), Image::random(10)];
        // Endings that Apache's mod_mime would take for a language and an encoding.
        for tag in ["1.8", "x.de.gz", "y.html"] {
            ours.push_image(repo, tag, &image);
            paths.push(format!("/v2/{repo}/manifests/{tag}"));
        }
        ours.push_image(repo, "second", &second);
        let docker = String::from_utf8(second.manifest.clone()).expect("text");
        let docker = docker.replace(OCI_MANIFEST, DOCKER_MANIFEST);
        let both = index(&[(OCI_MANIFEST, &image.manifest), (OCI_MANIFEST, &second.manifest)]);
        for (tag, media_type, bytes) in
            [("docker", DOCKER_MANIFEST, docker.as_bytes()), ("both", OCI_INDEX, &both)]
        {
            ours.put_manifest(repo, tag, media_type, bytes).expect_status(201);
            paths.push(format!("/v2/{repo}/manifests/{tag}"));
            paths.push(format!("/v2/{repo}/manifests/{}", sha256(bytes)));
        }
        let long = sha512(&image.manifest);
        ours.put_manifest(repo, &long, OCI_MANIFEST, &image.manifest).expect_status(201);
        ours.push_blob(repo, b"{}");
        let signature = referrer(&image.digest, image.manifest.len(), "application/x.sig");
        let put = ours.put_manifest(repo, &sha256(&signature), OCI_MANIFEST, &signature);
        put.expect_status(201);
        paths.extend([
            format!("/v2/{repo}/manifests/{long}"),
            format!("/v2/{repo}/blobs/{}", sha256(&image.layers[0])),
            format!("/v2/{repo}/tags/list"),
            format!("/v2/{repo}/referrers/{}", image.digest),
            format!("/v2/{repo}/referrers/{}", second.digest),
        ]);
    }
    let mut date = Command::new("date");
    let now = run(date.env("LC_ALL", "C").args(["-u", "+%a, %d %b %Y %T GMT"])).ok().stdout;
    for server in SERVERS {
        let web = Web::start(server, registry.root(), &[]);
        for path in &paths {
            for request in [Request::get(path), Request::head(path)] {
                let what = format!("{server} {} {path}", request.method);
                let (our, their) = (ours.send(request.clone()), web.client().send(request));
                assert_eq!(their.status, 200, "{what}: {their:?}");
                for name in ["content-type", "docker-distribution-api-version", "cache-control"] {
                    if name == "cache-control"
                        && !path.contains("/manifests/")
                        && !path.contains("/blobs/")
                    {
                        continue;
                    }
                    assert_eq!(their.header(name), our.header(name), "{what} {name}: {their:?}");
                }
                assert_eq!(their.header("content-encoding"), None, "{what}");
                assert!(their.body == our.body, "{what}");
                // Neither knows what a tag names without reading it.
                if path.contains(":") && !path.contains("/referrers/") {
                    let name = "docker-content-digest";
                    assert_eq!(their.header(name), our.header(name), "{what}");
                }
            }
        }
        // What may change within a second is told anew each time.
        for path in ["/v2/a/manifests/1.8", "/v2/a/tags/list"] {
            for (name, value) in [("If-None-Match", "*"), ("If-Modified-Since", now.trim())] {
                let answer = web.client().send(Request::get(path).header(name, value));
                let answer = answer.expect_status(200);
                assert_eq!(answer.header("last-modified"), None, "{server}");
            }
        }
        let blob = paths.iter().find(|path| path.contains("/blobs/")).expect("a blob");
        let part = web.client().send(Request::get(blob).header("Range", "bytes=5-9"));
        assert_eq!(part.expect_status(206).body, ours.get(blob).body[5..=9], "{server}");
        let beyond = web.client().send(Request::get(blob).header("Range", "bytes=50000-"));
        let beyond = beyond.expect_status(416);
        assert_eq!(beyond.all("cache-control"), ["no-cache"], "{server}");
        // One request is one answer, not five hundred.
        let many: Vec<String> = (0..500).map(|at| format!("{at}-{at}")).collect();
        for several in ["0-1,5-9", &many.join(",")] {
            let several = Request::get(blob).header("Range", format!("bytes={several}"));
            let whole = web.client().send(several).expect_status(200);
            assert_eq!(whole.body.len(), 50_000, "{server}");
        }
    }
}

#[test]
fn nothing_is_written_and_nothing_else_is_read() {
    let room = open_room();
    let registry = Registry::start_on(&room.path().join("registry"), &["--auth", "none"]);
    let image = Image::random(1000);
    for repo in ["a", "private/app"] {
        registry.client().push_image(repo, "v1", &image);
    }
    let at = |path: &str| registry.root().join(path);
    fs::set_permissions(at("private"), Permissions::from_mode(0o700)).expect("its mode");
    fs::write(at("secret.txt"), "what the server's account can read").expect("a file");
    for server in SERVERS {
        let web = Web::start(server, registry.root(), &[]);
        let client = web.client();
        for method in ["PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE"] {
            let refused = client.send(Request::new(method, "/v2/a/manifests/v1").body("body"));
            let refused = refused.expect_error(405, "UNSUPPORTED");
            assert!(refused.header("allow").is_some_and(|allow| allow.starts_with("GET, HEAD")));
        }
        for (path, code) in [
            ("/v2/a/manifests/none", "MANIFEST_UNKNOWN"),
            ("/v2/a/manifests/.of", "MANIFEST_UNKNOWN"),
            ("/v2/a/manifests/v1%0a", "MANIFEST_UNKNOWN"),
            (&format!("/v2/a/blobs/{}", sha256(b"none")), "BLOB_UNKNOWN"),
            ("/v2/a/blobs/none", "BLOB_UNKNOWN"),
            ("/v2/none/tags/list", "NAME_UNKNOWN"),
            ("/v2/none/manifests/v1", "NAME_UNKNOWN"),
            ("/v2/private/app/manifests/v1", "NAME_UNKNOWN"),
            ("/v2/private/app/tags/list", "NAME_UNKNOWN"),
            (&format!("/v2/private/app/blobs/{}", sha256(&image.layers[0])), "NAME_UNKNOWN"),
            ("/v2/a/index.json", "NAME_UNKNOWN"),
            ("/a/index.json", "UNSUPPORTED"),
            ("/a/_manifests/v1.oci-image", "UNSUPPORTED"),
            ("/.stillage/version", "UNSUPPORTED"),
            ("/secret.txt", "UNSUPPORTED"),
            ("/v2/_catalog", "UNSUPPORTED"),
            ("/", "UNSUPPORTED"),
        ] {
            let answer = client.get(path);
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (404, code),
                "{server} {path}: {answer:?}"
            );
            assert_eq!(answer.header("content-type"), Some("application/json"), "{server} {path}");
        }
        for path in ["/v2/a/referrers/sha256:zz", "/v2/none/referrers/v1"] {
            client.get(path).expect_error(400, "DIGEST_INVALID");
        }
        // What a server refuses by itself is told in the same manner.
        for path in ["/v2/a/manifests/v0%00", "/v2/a%00/tags/list"] {
            let answer = client.get(path);
            assert!([400, 404].contains(&answer.status), "{server} {path}: {answer:?}");
            assert!(!answer.code().is_empty(), "{server} {path}: {answer:?}");
        }
        for target in ["127.0.0.1:1", "/v2/"] {
            let tunnel = client.send(Request::new("CONNECT", target));
            assert!((400..500).contains(&tunnel.status), "{server}: {tunnel:?}");
            if tunnel.header("content-type") == Some("application/json") {
                assert_eq!(tunnel.code(), "UNSUPPORTED", "{server}: {tunnel:?}");
            }
        }
        for file in ["index.json", "_log.jsonl", "../.stillage/version", ".lock"] {
            for path in [
                format!("/v2/a/manifests/..%2F{file}"),
                format!("/v2/a/manifests/../{file}"),
                format!("/v2/a/blobs/sha256:../../{file}"),
                format!("/v2/../a/{file}"),
                format!("/v2/a/%2e%2e/a/{file}"),
            ] {
                let answer = client.get(&path);
                assert!([400, 404].contains(&answer.status), "{server} {path}: {answer:?}");
            }
        }
    }
    // Apache looks at whose link it is. Caddy cannot: its configuration and docs/static.md say so.
    let planted = at("a/_manifests/evil.oci-image");
    symlink(at("secret.txt"), &planted).expect("planted");
    lchown(&planted, Some(1), Some(1)).expect("root");
    let apache = Web::start("apache", registry.root(), &[]);
    let answer = apache.client().get("/v2/a/manifests/evil");
    assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{answer:?}");
    let said = print(&["caddy", "/srv/registry"]).ok().stdout;
    assert!(said.contains("Caddy follows symlinks"), "{said}");
    fs::remove_file(planted).expect("removed");
    // Apache has no way to say of a file that it is not there, once it could not open it.
    let blob = at("a/blobs/sha256").join(&sha256(&image.layers[0])["sha256:".len()..]);
    fs::set_permissions(&blob, Permissions::from_mode(0o400)).expect("its mode");
    let path = format!("/v2/a/blobs/{}", sha256(&image.layers[0]));
    apache.client().get(&path).expect_error(403, "DENIED");
    Web::start("caddy", registry.root(), &[]).client().get(&path).expect_status(404);
    fs::set_permissions(&blob, Permissions::from_mode(0o444)).expect("its mode");
    fs::set_permissions(at("private"), Permissions::from_mode(0o755)).expect("its mode");
}

#[test]
fn podman_pulls_from_each_alone() {
    let room = open_room();
    let mut registry = Registry::start_on(&room.path().join("registry"), &["--auth", "none"]);
    let server = localhost(registry.addr());
    let home = Containers::new();
    let ids = ["amd64", "arm64"].map(|arch| home.image(&format!("localhost/{arch}"), arch, arch));
    let pushed = format!("{server}/team/app:one");
    home.podman(&["push", "--tls-verify=false", "localhost/amd64", &pushed]).ok();
    let together = ["localhost/amd64:latest", "localhost/arm64:latest"];
    home.push_together(&together, &format!("{server}/team/app:both"));
    let digest = sha256(&registry.client().get("/v2/team/app/manifests/both").body);
    registry.term();
    for name in SERVERS {
        let web = Web::start(name, registry.root(), &[]);
        let guest = Containers::new();
        let from = localhost(web.addr());
        let digest = format!("@{digest}");
        for (reference, arch, id) in
            [(":one", "amd64", &ids[0]), (":both", "arm64", &ids[1]), (&digest, "arm64", &ids[1])]
        {
            let reference = format!("{from}/team/app{reference}");
            guest.podman(&["pull", "--tls-verify=false", "--arch", arch, &reference]).ok();
            assert_eq!(guest.image_id(&reference), *id, "{name} {reference}");
            guest.forget_images();
        }
    }
    registry.run();
}

#[test]
fn with_a_certificate_they_speak_tls() {
    let room = open_room();
    let registry = Registry::start_on(&room.path().join("registry"), &["--auth", "none"]);
    registry.client().push_image("a", "v1", &Image::random(1000));
    let pair = support::tls::Pair::new(room.path());
    fs::set_permissions(&pair.key, Permissions::from_mode(0o644)).expect("the key is Caddy's too");
    let args = [&pair.args()[..], &["--server-name", "localhost"]].concat();
    for server in SERVERS {
        let web = Web::start(server, registry.root(), &args);
        let url = format!("https://localhost:{}/v2/a/tags/list", web.addr().port());
        let mut curl = Command::new("curl");
        curl.args(["-sSf", "--cacert"]).arg(&pair.certificate).arg(url);
        assert_eq!(run(&mut curl).ok().stdout, r#"{"name":"a","tags":["v1"]}"#);
    }
    for (server, root) in
        [("caddy", "/{a}"), ("caddy", "/a*"), ("apache", "/a%b"), ("apache", "/a[1]")]
    {
        let refused = print(&[server, root]);
        assert_eq!(refused.code, Some(2), "{refused}");
        assert!(refused.stderr.contains("cannot be told of the path"), "{refused}");
    }
}
