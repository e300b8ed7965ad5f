//! The tree served by nginx alone, with what `stillage static nginx` prints: every class of answers, what
//! must not be reached, and real clients.

mod support;

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use support::Registry;
use support::command::run;
use support::containers::{Containers, localhost};
use support::content::{
    DOCKER_LIST, DOCKER_MANIFEST, Image, OCI_INDEX, OCI_MANIFEST, index, random, referrer, sha256,
    sha512,
};
use support::http::{Client, Request};
use support::web::{Served, Web, assert_alike, open_room, print};

/// One of everything, in repositories within repositories. Gives the paths that a client may ask for.
fn push_everything(client: &Client) -> Vec<String> {
    let mut paths = vec!["/v2/".to_owned()];
    for repo in ["a", "a/b", "a/b/c/d/e", "x.y/z_1/w--2"] {
        let put = |reference: &str, media_type: &str, bytes: &[u8]| {
            client.put_manifest(repo, reference, media_type, bytes).expect_status(201);
        };
        let [image, second] = [Image::random(30_000), Image::random(10)];
        client.push_image(repo, "1.8", &image);
        client.push_image(repo, "V_2-x.gz", &second);
        let docker = |image: &Image| {
            let text = String::from_utf8(image.manifest.clone()).expect("text");
            text.replace(OCI_MANIFEST, DOCKER_MANIFEST).into_bytes()
        };
        let docker = docker(&image);
        put("docker", DOCKER_MANIFEST, &docker);
        let both = index(&[(OCI_MANIFEST, &image.manifest), (OCI_MANIFEST, &second.manifest)]);
        put("multi", OCI_INDEX, &both);
        let list = index(&[(DOCKER_MANIFEST, &docker)]);
        let list = String::from_utf8(list).expect("text").replace(OCI_INDEX, DOCKER_LIST);
        put("list", DOCKER_LIST, list.as_bytes());
        let long = Image::of(vec![random(77)], "");
        client.push_image(repo, "of-512", &long);
        put(&sha512(&long.manifest), OCI_MANIFEST, &long.manifest);
        client.push_blob(repo, b"{}");
        let signature = referrer(&image.digest, image.manifest.len(), "application/x.sig");
        put(&sha256(&signature), OCI_MANIFEST, &signature);

        let tags = ["1.8", "V_2-x.gz", "docker", "multi", "list", "of-512"];
        let digests = [
            image.digest.clone(),
            sha256(&docker),
            sha256(&both),
            sha256(list.as_bytes()),
            sha512(&long.manifest),
            sha256(&signature),
        ];
        let references = tags.map(str::to_owned).into_iter().chain(digests);
        paths.extend(references.map(|reference| format!("/v2/{repo}/manifests/{reference}")));
        for blob in [&image.layers[0], &image.config, &b"{}".to_vec()] {
            paths.push(format!("/v2/{repo}/blobs/{}", sha256(blob)));
        }
        paths.push(format!("/v2/{repo}/blobs/{}", sha512(&long.manifest)));
        paths.push(format!("/v2/{repo}/tags/list"));
        for subject in [&image.digest, &second.digest, &sha512(b"nothing")] {
            paths.push(format!("/v2/{repo}/referrers/{subject}"));
        }
    }
    paths.push(format!("/v2/none/referrers/{}", sha256(b"nothing")));
    paths
}

#[test]
fn nginx_answers_what_the_server_answers() {
    let served = Served::new();
    let paths = push_everything(&served.ours());
    for path in &paths {
        assert_alike(&served.ours().get(path), &served.nginx().get(path), path);
        assert_alike(&served.ours().head(path), &served.nginx().head(path), path);
        let ok = served.nginx().get(path).status;
        assert_eq!(ok, 200, "{path}");
    }
    // What is not there, in repositories that are there and in others.
    let nothing = sha256(b"nothing");
    for repo in ["a", "a/b"] {
        for path in [
            format!("/v2/{repo}/manifests/none"),
            format!("/v2/{repo}/manifests/{nothing}"),
            format!("/v2/{repo}/blobs/{nothing}"),
            format!("/v2/{repo}/blobs/{}", sha512(b"nothing")),
        ] {
            let (ours, theirs) = (served.ours().get(&path), served.nginx().get(&path));
            assert_eq!((theirs.status, theirs.code()), (ours.status, ours.code()), "{path}");
            theirs.expect_error(404, &ours.code());
        }
    }
    // A directory on the way to a repository is none.
    for repo in ["a/b/c", "x.y", "none"] {
        for path in [format!("/v2/{repo}/manifests/1.8"), format!("/v2/{repo}/blobs/{nothing}")] {
            served.nginx().get(&path).expect_error(404, "NAME_UNKNOWN");
        }
        let path = format!("/v2/{repo}/tags/list");
        served.nginx().get(&path).expect_error(404, "NAME_UNKNOWN");
        let head = served.nginx().head(&path).expect_status(404);
        assert_eq!(head.body, b"");
    }
    assert_eq!(served.nginx().get("/v2").expect_status(200).text(), "{}");
    assert_eq!(served.web.log(), "", "nothing of this is worth a line in the log");
}

#[test]
fn ranges_and_validators_are_those_of_content_that_never_changes() {
    let served = Served::new();
    let image = Image::random(100_000);
    served.ours().push_image("a", "v1", &image);
    let layer = &image.layers[0];
    let blob = format!("/v2/a/blobs/{}", sha256(layer));
    let nginx = served.nginx();
    let range = |value: &str| nginx.send(Request::get(&blob).header("Range", value));
    let part = range("bytes=5-9").expect_status(206);
    assert_eq!(part.body, layer[5..=9]);
    assert_eq!(part.header("content-range"), Some("bytes 5-9/100000"));
    assert_eq!(range("bytes=99990-").expect_status(206).body, layer[99_990..]);
    assert_eq!(range("bytes=-3").expect_status(206).body, layer[99_997..]);
    assert_eq!(range("lines=1-2").expect_status(200).body, *layer);
    let beyond = range("bytes=100000-").expect_error(416, "RANGE_INVALID");
    assert_eq!(beyond.header("content-range"), Some("bytes */100000"));
    assert_eq!(beyond.all("cache-control"), ["no-cache"], "nobody keeps it");
    for (name, _) in &beyond.headers {
        assert_eq!(beyond.all(name).len(), 1, "{name} in {beyond:?}");
    }
    assert_eq!(nginx.get(&blob).all("cache-control"), ["max-age=31536000, immutable"]);
    let manifest = format!("/v2/a/manifests/{}", image.digest);
    for path in [&manifest, "/v2/a/manifests/v1", "/v2/a/tags/list"] {
        let beyond = nginx.send(Request::get(path).header("Range", "bytes=9999-"));
        assert_eq!(beyond.expect_error(416, "RANGE_INVALID").all("cache-control"), ["no-cache"]);
    }
    // One request is one answer, not five hundred.
    let many: Vec<String> = (0..500).map(|at| format!("{at}-{at}")).collect();
    for several in ["0-1,5-9", &many.join(",")] {
        let whole = range(&format!("bytes={several}")).expect_status(200);
        assert!(whole.body == *layer, "{} bytes", whole.body.len());
    }

    // A download that was cut short goes on.
    let whole = nginx.get(&blob);
    let etag = whole.header("etag").expect("a validator");
    let rest = Request::get(&blob).header("Range", "bytes=70000-").header("If-Range", etag);
    assert_eq!(nginx.send(rest).expect_status(206).body, layer[70_000..]);
    let by_digest = format!("/v2/a/manifests/{}", image.digest);
    for path in [&blob, &by_digest] {
        let etag = nginx.get(path).header("etag").expect("a validator").to_owned();
        for value in [etag.as_str(), &format!("\"x\", W/{etag}"), "*"] {
            let same = nginx.send(Request::get(path).header("If-None-Match", value));
            assert_eq!(same.expect_status(304).body, b"");
        }
        nginx.send(Request::get(path).header("If-None-Match", "\"x\"")).expect_status(200);
    }
    // What may change within a second and keep its length is told anew each time.
    let manifest = served.repo("a/_manifests/v1.oci-image");
    let list = served.repo("a/_tags.json");
    for (path, file) in [("/v2/a/manifests/v1", manifest), ("/v2/a/tags/list", list)] {
        let answer = nginx.get(path).expect_status(200);
        assert_eq!((answer.header("etag"), answer.header("last-modified")), (None, None), "{path}");
        let mut date = Command::new("date");
        date.args(["-u", "+%a, %d %b %Y %T GMT", "-r"]).arg(file);
        let modified = run(date.env("LC_ALL", "C")).ok().stdout;
        for (name, value) in [("If-None-Match", etag), ("If-Modified-Since", modified.trim())] {
            let again = nginx.send(Request::get(path).header(name, value));
            assert_eq!(again.expect_status(200).body, answer.body, "{path}");
        }
    }
}

#[test]
fn podman_and_skopeo_pull_from_nginx_alone() {
    let mut served = Served::new();
    let server = localhost(served.registry.addr());
    let home = Containers::new();
    let mut ids = Vec::new();
    for arch in ["amd64", "arm64"] {
        let name = format!("localhost/{arch}");
        ids.push(home.image(&name, arch, arch));
        let to = format!("{server}/deep/er/app:{arch}");
        home.podman(&["push", "--tls-verify=false", &name, &to]).ok();
        let docker = format!("{server}/deep/er/app:{arch}-docker");
        home.podman(&["push", "--tls-verify=false", "--format", "v2s2", &name, &docker]).ok();
    }
    let together = ["localhost/amd64:latest", "localhost/arm64:latest"];
    home.push_together(&together, &format!("{server}/deep/er/app:both"));
    let digests = ["amd64", "both"].map(|tag| {
        let answer = served.ours().get(&format!("/v2/deep/er/app/manifests/{tag}"));
        sha256(&answer.expect_status(200).body)
    });
    served.registry.term();

    let web = localhost(served.web.addr());
    let guest = Containers::new();
    let pull = |reference: &str, args: &[&str]| {
        let name = format!("{web}/deep/er/app{reference}");
        guest.podman(&[&["pull", "--tls-verify=false"], args, &[&name]].concat()).ok();
        let id = guest.image_id(&name);
        guest.forget_images();
        id
    };
    assert_eq!(pull(":amd64", &[]), ids[0]);
    assert_eq!(pull(&format!("@{}", digests[0]), &[]), ids[0]);
    for (id, arch) in ids.iter().zip(["amd64", "arm64"]) {
        assert_eq!(pull(":both", &["--arch", arch]), *id);
        assert_eq!(pull(&format!("@{}", digests[1]), &["--arch", arch]), *id);
    }
    pull(":arm64-docker", &[]);

    let from = format!("docker://{web}/deep/er/app:both");
    let to = format!("oci:{}:both", guest.path().join("copy").display());
    guest.skopeo(&["copy", "--all", "--src-tls-verify=false", &from, &to]).ok();
    let tags =
        guest.skopeo(&["list-tags", "--tls-verify=false", &format!("docker://{web}/deep/er/app")]);
    assert!(tags.ok().stdout.contains("amd64-docker"));
    let inspected = guest.skopeo(&["inspect", "--tls-verify=false", &from]).ok();
    assert!(inspected.stdout.contains(&digests[1]), "{inspected}");
    // Who has a login elsewhere sends it here too, and is served all the same.
    let push = guest.skopeo(&["copy", "--dest-tls-verify=false", &to, &from]).refused();
    assert!(push.text().contains("read-only") || push.text().contains("405"), "{push}");
    served.registry.run();
}

/// The digest that is said is that of the bytes that are sent, and a tag that is there is found,
/// whatever it moves to meanwhile.
#[test]
fn a_tag_that_moves_is_always_whole() {
    let served = Served::new();
    let client = served.ours();
    let image = Image::random(100);
    client.push_image("a", "image", &image);
    let kinds = [
        (OCI_MANIFEST, image.manifest.clone()),
        (OCI_INDEX, index(&[(OCI_MANIFEST, &image.manifest)])),
        (OCI_MANIFEST, {
            let second = Image::random(100);
            client.push_image("a", "second", &second);
            second.manifest
        }),
        (OCI_INDEX, index(&[])),
    ];
    client.put_manifest("a", "moves", kinds[0].0, &kinds[0].1).expect_status(201);
    let done = AtomicBool::new(false);
    let rounds = if support::long() { 5000 } else { 300 };
    let answered = [0, 1].map(|_| AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let readers = answered.each_ref().map(|answered| {
            scope.spawn(|| {
                let mut connection = served.nginx().connect();
                while !done.load(Ordering::Relaxed) {
                    let answer = connection.try_send(&Request::get("/v2/a/manifests/moves"));
                    let Ok(answer) = answer else {
                        // nginx ends a connection after 1,000 requests.
                        connection = served.nginx().connect();
                        continue;
                    };
                    let answer = answer.expect_status(200);
                    let digest = sha256(&answer.body);
                    assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
                    let kind = kinds.iter().find(|(_, bytes)| *bytes == answer.body);
                    let (media_type, _) = kind.expect("one that was pushed");
                    assert_eq!(answer.header("content-type"), Some(*media_type));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let end = Ended(&done);
        for (media_type, bytes) in kinds.iter().cycle().take(rounds) {
            client.put_manifest("a", "moves", media_type, bytes).expect_status(201);
            // While one request is answered the tag moves once at most: twice is twice too often.
            for (reader, answered) in readers.iter().zip(&answered) {
                let before = answered.load(Ordering::Relaxed);
                while answered.load(Ordering::Relaxed) < before + 2 && !reader.is_finished() {
                    std::thread::yield_now();
                }
            }
        }
        drop(end);
        for reader in readers {
            reader.join().expect("a reader");
        }
    });
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn any_name_of_root_is_quoted_or_refused() {
    let served = Served::called("it's a \"registry\" {of} #; \\mine");
    served.ours().push_image("a", "v1", &Image::random(1000));
    for path in ["/v2/a/manifests/v1", "/v2/a/tags/list"] {
        assert_alike(&served.ours().get(path), &served.nginx().get(path), path);
    }
    let manifest = served.nginx().get("/v2/a/manifests/v1").json();
    let blob = manifest["layers"][0]["digest"].as_str().expect("a digest").to_owned();
    for path in
        [format!("/v2/a/blobs/{blob}"), format!("/v2/a/manifests/{}", sha256(blob.as_bytes()))]
    {
        let (ours, theirs) = (served.ours().get(&path), served.nginx().get(&path));
        assert_eq!((ours.status, ours.code()), (theirs.status, theirs.code()), "{path}");
    }
    for (root, why) in [("/a$b", "begins a variable"), ("/a\nb", "control character")] {
        let refused = print(&["nginx", root]);
        assert_eq!(refused.code, Some(2), "{refused}");
        assert!(refused.stderr.contains(why), "{refused}");
    }
    let relative = print(&["nginx", "./x/../y"]).ok().stdout;
    let here = std::env::current_dir().expect("a directory");
    assert!(relative.contains(&format!("root \"{}/x/../y\"", here.display())), "{relative}");
}

/// Debian has one on port 80, and a site without a name of its own gets nothing beside it: the head of the
/// configuration says so.
#[test]
fn beside_a_default_site_it_answers_to_its_name() {
    let room = open_room();
    let registry = Registry::start_on(&room.path().join("registry"), &["--auth", "none"]);
    let root = registry.root().to_str().expect("text");
    for (name, status) in [(&["--server-name", "registry.example"][..], 200), (&[], 404)] {
        let web = Web::start_with("nginx", |listen| {
            let ours = print(&[&["nginx", root, "--listen", listen], name].concat()).ok().stdout;
            assert!(ours.contains("remove /etc/nginx/sites-enabled/default, or give a"), "{ours}");
            format!("{ours}server {{ listen {listen} default_server; server_name _; return 404; }}")
        });
        let asked = Request::get("/v2/").header("Host", "registry.example");
        web.client().send(asked).expect_status(status);
    }
}

#[test]
fn with_a_certificate_it_speaks_tls() {
    let room = open_room();
    let registry = Registry::start_on(&room.path().join("registry"), &["--auth", "none"]);
    let image = Image::random(200_000);
    registry.client().push_image("a/b", "v1", &image);
    let pair = support::tls::Pair::new(room.path());
    let args = [&pair.args()[..], &["--server-name", "localhost"]].concat();
    let web = Web::start("nginx", registry.root(), &args);
    let blob = sha256(&image.layers[0]);
    let url = format!("https://localhost:{}/v2/a/b/blobs/{blob}", web.addr().port());
    let file = room.path().join("got");
    let mut curl = Command::new("curl");
    curl.args(["-sSf", "--cacert"]).arg(&pair.certificate).arg("-o").arg(&file).arg(url);
    run(&mut curl).ok();
    assert!(fs::read(file).expect("a file") == image.layers[0]);
}
