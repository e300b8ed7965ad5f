//! Collection beside a running server and real clients: what was promised on the wire is kept.

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use support::command::{Outcome, run};
use support::containers::{Containers, localhost};
use support::content::{Image, OCI_MANIFEST, random, sha256};
use support::http::Request;
use support::{Registry, STILLAGE};

fn gc(root: &Path, args: &[&str]) -> Outcome {
    run(Command::new(STILLAGE).arg("gc").arg(root).args(args))
}

fn blob(registry: &Registry, repo: &str, digest: &str) -> PathBuf {
    registry.root().join(repo).join("blobs/sha256").join(&digest["sha256:".len()..])
}

/// Makes blobs' notes as old as two days: the next collection may take them, if nobody asks for them.
fn noted_long_ago(registry: &Registry, repo: &str, digests: [&str; 2]) {
    gc(registry.root(), &[]).ok();
    for digest in digests {
        let note = registry.root().join(".stillage/unreferenced").join(repo).join(digest);
        let note = File::options().write(true).open(note).expect("a note");
        let old = SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
        note.set_modified(old).expect("its time");
    }
}

/// Between blob and manifest, HEAD and manifest, mount and manifest.
#[test]
fn gc_live() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let ways = ["upload", "monolithic", "head", "mount", "nothing"];
    for way in ways {
        let repo = format!("live/{way}");
        let image = Image::random(3_000);
        client.push_image(&repo, "other", &Image::random(100));
        client.push_blob(&repo, &image.config);
        client.push_blob("live/source", &image.layers[0]);
        client.push_blob(&repo, &image.layers[0]);
        let layer = sha256(&image.layers[0]);
        noted_long_ago(&registry, &repo, [&layer, &sha256(&image.config)]);
        let promise = |bytes: &[u8]| {
            let digest = sha256(bytes);
            let uploads = format!("/v2/{repo}/blobs/uploads/");
            match way {
                "upload" => {
                    client.push_blob(&repo, bytes);
                }
                "monolithic" => {
                    let post = Request::post(format!("{uploads}?digest={digest}")).body(bytes);
                    client.send(post).expect_status(201);
                }
                "head" => {
                    client.head(&format!("/v2/{repo}/blobs/{digest}")).expect_status(200);
                }
                "mount" => {
                    // The config is asked for: nobody else has it.
                    if bytes == image.layers[0] {
                        let mount = format!("{uploads}?mount={digest}&from=live/source");
                        client.send(Request::post(mount)).expect_status(201);
                    } else {
                        client.head(&format!("/v2/{repo}/blobs/{digest}")).expect_status(200);
                    }
                }
                _ => {}
            }
        };
        promise(&image.layers[0]);
        promise(&image.config);
        gc(registry.root(), &[]).ok();
        gc(registry.root(), &[]).ok();
        let put = client.put_manifest(&repo, "v1", OCI_MANIFEST, &image.manifest);
        if way == "nothing" {
            // Otherwise the notes were not old, and nothing above was tried.
            put.expect_error(400, "MANIFEST_BLOB_UNKNOWN");
            assert!(!blob(&registry, &repo, &layer).exists());
        } else {
            put.expect_status(201);
            client.assert_pulls(&repo, "v1", &image);
        }
    }
}

/// Pushes go on while one collection follows the other; nothing that was acknowledged is lost.
#[test]
fn pushes_beside_collections_are_all_acknowledged_and_kept() {
    const PUSHERS: usize = 4;
    const IMAGES: usize = 12;
    let registry = Registry::start(&["--auth", "none"]);
    let over = AtomicBool::new(false);
    let shared: Vec<Vec<u8>> = (0..5).map(|_| random(2_000)).collect();
    let mut runs = 0;
    std::thread::scope(|scope| {
        let pushers: Vec<_> = (0..PUSHERS)
            .map(|n| {
                let (client, shared) = (registry.client(), &shared);
                scope.spawn(move || {
                    (0..IMAGES)
                        .map(|i| {
                            let layers = vec![shared[(n + i) % 5].clone(), random(1_000)];
                            let image = Image::of(layers, "");
                            let repo = format!("busy/{}", i % 2);
                            client.push_image(&repo, &format!("v{n}-{i}"), &image);
                            (repo, format!("v{n}-{i}"), image)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let collector = scope.spawn(|| {
            let mut runs = 0;
            while !over.load(Ordering::Relaxed) || runs < 3 {
                gc(registry.root(), &["--undo-window", "0"]).ok();
                runs += 1;
            }
            runs
        });
        let pushed: Vec<_> = pushers.into_iter().map(|pusher| pusher.join()).collect();
        over.store(true, Ordering::Relaxed);
        runs = collector.join().expect("the collector");
        for (repo, tag, image) in pushed.into_iter().flat_map(|pushed| pushed.expect("a pusher")) {
            registry.client().assert_pulls(&repo, &tag, &image);
        }
    });
    assert!(runs >= 3, "{runs}");
    // What waits for nothing goes, and every image stays whole: the fixture checks that.
    gc(registry.root(), &["--now"]).ok();
}

/// A push by skopeo that is stopped in the middle and continued after several collections.
#[test]
fn a_push_stopped_over_collections_succeeds_when_continued() {
    let registry = Registry::start(&["--auth", "none"]);
    let home = Containers::new();
    // The small layer is there long before the large one.
    let image = Image::of(vec![random(1_000), random(96 * 1024 * 1024)], "");
    let layout = home.path().join("layout");
    write_layout(&layout, &image);
    let target = format!("docker://{}/stopped/push:v1", localhost(registry.addr()));
    let source = format!("oci:{}:v1", layout.display());
    let mut skopeo = home.command("skopeo");
    let args = ["copy", "--dest-tls-verify=false", "--preserve-digests", &source, &target];
    let small = sha256(&image.layers[0]);
    stopped_over_collections(&registry, skopeo.args(args), Some(&small));
    registry.client().assert_pulls("stopped/push", "v1", &image);
}

/// The same by podman, which compresses on its way: what it sends is known when it is there.
#[test]
fn a_push_by_podman_stopped_over_collections_succeeds_when_continued() {
    let registry = Registry::start(&["--auth", "none"]);
    let home = Containers::new();
    let layout = home.path().join("layout");
    write_layout(&layout, &Image::of(tars(&home), ""));
    // From where podman runs: a name of the image is made of the path.
    home.podman(&["pull", "--quiet", "oci:layout:v1"]).ok();
    let listed = home.podman(&["images", "--quiet", "--no-trunc"]).ok();
    let image = listed.stdout.trim();
    let target = format!("{}/stopped/push:v1", localhost(registry.addr()));
    let mut podman = home.command("podman");
    let args = ["push", "--quiet", "--tls-verify=false", image, &target];
    stopped_over_collections(&registry, podman.args(args), None);
    home.podman(&["rmi", "--all", "--force"]).ok();
    home.podman(&["pull", "--quiet", "--tls-verify=false", &target]).ok();
    let pulled = home.podman(&["images", "--quiet", "--no-trunc"]).ok();
    assert_eq!(pulled.stdout.trim(), image, "it is another one");
}

/// Two layers, the small one there long before the large one, as a root file system's archives.
fn tars(home: &Containers) -> Vec<Vec<u8>> {
    let layer = |(name, len): (&str, usize)| {
        let at = home.path().join(name);
        fs::write(&at, random(len)).expect("a file");
        let mut tar = Command::new("tar");
        run(tar.current_dir(home.path()).args(["-cf", "layer.tar", name])).ok();
        fs::remove_file(at).expect("the file");
        fs::read(home.path().join("layer.tar")).expect("the archive")
    };
    [("small", 1_000), ("large", 96 * 1024 * 1024)].map(layer).into()
}

/// A client that does not outlive its test, stopped or not.
struct Pusher(Child);

impl Drop for Pusher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a push to `stopped/push`, stops it once its small layer is there, collects, continues it.
fn stopped_over_collections(registry: &Registry, push: &mut Command, small: Option<&str>) {
    let mut pusher = Pusher(push.spawn().expect("the client starts"));
    let blobs = registry.root().join("stopped/push/blobs/sha256");
    let first = || {
        let there = fs::read_dir(&blobs).into_iter().flatten().flatten();
        let names = there.map(|entry| entry.file_name().into_string().expect("a digest"));
        let whole =
            names.filter(|name| !name.starts_with('.')).map(|name| format!("sha256:{name}"));
        whole.into_iter().find(|name| small.is_none_or(|small| small == *name))
    };
    let until = Instant::now() + Duration::from_secs(60);
    let pid = Pid::from_child(&pusher.0);
    let first = loop {
        assert!(Instant::now() < until, "the small layer does not come");
        if let Some(first) = first() {
            break first;
        }
        std::thread::yield_now();
    };
    kill_process(pid, Signal::STOP).expect("the client runs still");
    assert!(!registry.root().join("stopped/push/index.json").exists(), "it was stopped too late");
    for _ in 0..3 {
        gc(registry.root(), &["-v"]).ok();
    }
    let note = registry.root().join(".stillage/unreferenced/stopped/push");
    assert!(note.join(first).exists(), "collection has seen it");
    kill_process(pid, Signal::CONT).expect("the client is there still");
    assert!(pusher.0.wait().expect("its end").success());
    gc(registry.root(), &[]).ok();
}

fn write_layout(layout: &Path, image: &Image) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a layout");
    for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
        fs::write(blobs.join(&sha256(blob)["sha256:".len()..]), blob).expect("a blob");
    }
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("oci-layout");
    let entry = format!(
        r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"v1"}}}}"#,
        image.digest,
        image.manifest.len()
    );
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
    fs::write(layout.join("index.json"), index).expect("index.json");
}

/// The server collects by itself, not right after its start, and as seldom as it is told.
#[test]
fn a_server_collects_on_its_schedule() {
    let args = ["--auth", "none", "--gc-every", "1s", "--gc-delay", "1", "--grace", "0"];
    let registry = Registry::start(&args);
    let client = registry.client();
    client.push_image("a", "v1", &Image::random(100));
    let garbage = client.push_blob("a", b"garbage");
    registry.logs("collected garbage");
    let until = Instant::now() + Duration::from_secs(60);
    while blob(&registry, "a", &garbage).exists() {
        assert!(Instant::now() < until, "it is never taken");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(registry.root().join(".stillage/collected").exists());
    let quiet = Registry::start(&["--auth", "none", "--gc-every", "0", "--gc-delay", "0"]);
    let usual = Registry::start(&["--auth", "none", "--gc-every", "1s"]);
    std::thread::sleep(Duration::from_millis(1500));
    for registry in [quiet, usual] {
        assert!(!registry.root().join(".stillage/collected").exists());
    }
}

/// One document, the reasons, and the exit codes.
#[test]
fn what_gc_prints_and_exits_with() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    client.push_image("a", "v1", &Image::random(100));
    client.push_image("b", "v1", &Image::random(100));
    let garbage = client.push_blob("a", b"garbage");
    let root = registry.root().to_owned();
    let json = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&gc(&root, args).ok().stdout).expect("one document")
    };
    let told = json(&["--json", "-n"]);
    assert_eq!(told["summary"]["noted"], 1);
    assert_eq!(told["dryRun"], true);
    let told = json(&["--json", "-v", "--grace", "0"]);
    assert_eq!(told["events"][0]["digest"], garbage.as_str());
    assert_eq!(told["events"][0]["what"], "removed");
    assert_eq!(told["summary"]["removed"], 1);
    let copying = File::open(root.join(".stillage/gc.lock")).expect("the lock");
    copying.lock_shared().expect("it is free");
    client.push_blob("a", b"more garbage");
    let blocked = gc(&root, &["--grace", "0", "--wait", "0"]);
    assert_eq!(blocked.code, Some(3), "{blocked}");
    assert!(blocked.stdout.contains(&format!("process {}", std::process::id())), "{blocked}");
    drop(copying);
    fs::write(root.join("b/index.json"), "{").expect("damage");
    let left = gc(&root, &["--grace", "0"]);
    assert_eq!(left.code, Some(3), "{left}");
    assert!(left.stdout.contains("b: left as it is: "), "{left}");
    assert_eq!(gc(&root, &["A"]).code, Some(2));
    assert_eq!(gc(&root, &["nowhere"]).code, Some(1));
    assert_eq!(gc(&root.join("nowhere"), &[]).code, Some(1));
    let last = r#"{"begin":"2999-01-01T00:00:00Z","end":"2999-01-01T00:00:00Z"}"#;
    fs::write(root.join(".stillage/collected"), last).expect("a clock that was ahead");
    let behind = gc(&root, &[]);
    assert_eq!(behind.code, Some(1));
    assert!(behind.stderr.contains("the clock says"), "{behind}");
    registry.expect_damage();
}
