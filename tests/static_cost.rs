//! What nginx does for the tree, beside what it does for the same files in one flat directory: the same
//! system calls but for the names that are looked up, and about the same time.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::Registry;
use support::content::{Image, sha256};
use support::http::{Client, Request};
use support::web::{Web, open_room};

/// The calls that look names up: which file is it?
const LOOKUPS: [&str; 6] = ["openat", "close", "newfstatat", "fstat", "readlink", "lstat"];

/// A tree with one image, and the same content in a flat directory, each served by nginx.
struct Places {
    tree: Web,
    flat: Web,
    /// The flat directory without any care for symlinks, which is nginx's own default.
    bare: Web,
    registry: Registry,
    _room: tempfile::TempDir,
    image: Image,
}

impl Places {
    fn new(layer: usize) -> Places {
        let room = open_room();
        let registry = Registry::start_on(&room.path().join("registry"), &["--auth", "none"]);
        let image = Image::random(layer);
        registry.client().push_image("a", "v1", &image);
        let dir = room.path().join("flat");
        fs::create_dir(&dir).expect("a directory");
        for bytes in [&image.layers[0], &image.manifest] {
            fs::write(dir.join(&sha256(bytes)[7..]), bytes).expect("a file");
        }
        let flat = |links: &str| {
            Web::start_with("nginx", |listen| {
                format!(
                    "server {{ listen {listen}; root {root}; types {{ }} gzip off; sendfile on; \
                     tcp_nopush on; default_type application/octet-stream; {links} }}\n",
                    root = dir.display()
                )
            })
        };
        Places {
            tree: Web::nginx(registry.root()),
            flat: flat(&format!("disable_symlinks on from={};", dir.display())),
            bare: flat(""),
            registry,
            _room: room,
            image,
        }
    }
}

/// The system calls that one request takes on a connection that is there.
fn calls(web: &Web, path: &str, room: &Path) -> Vec<String> {
    let mut connection = web.client().connect();
    let request = Request::get(path);
    connection.send(&request).expect_status(200);
    let output = room.join("trace");
    let mut strace = Command::new("strace")
        .arg("-o")
        .arg(&output)
        .args(["-p", &web.worker().to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace is installed");
    let mut said = BufReader::new(strace.stderr.take().expect("stderr is piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("strace says something");
    assert!(line.contains("attached"), "{line}");
    connection.send(&request).expect_status(200);
    // What comes after the answer is there when the next request is answered.
    connection.send(&request).expect_status(200);
    let pid = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    strace.wait().expect("strace ends");
    let text = fs::read_to_string(&output).expect("the trace");
    let names = text.lines().filter_map(|line| Some(line.split_once('(')?.0.to_owned()));
    let all: Vec<String> = names.filter(|name| name != "epoll_wait").collect();
    let begins: Vec<usize> = (0..all.len())
        .filter(|at| {
            all[*at] == "recvfrom" && all.get(at + 1).is_some_and(|next| next != "recvfrom")
        })
        .collect();
    let [first, second, ..] = begins[..] else { panic!("not two requests: {text}") };
    all[first..second].to_vec()
}

/// What is not a lookup, with neighbours that are alike counted once: a large file takes as many turns
/// as the socket wants.
fn others(calls: &[String]) -> Vec<&str> {
    let mut others: Vec<&str> = calls.iter().map(String::as_str).collect();
    others.retain(|call| !LOOKUPS.contains(call));
    others.dedup();
    others
}

fn lookups(calls: &[String]) -> usize {
    calls.iter().filter(|call| LOOKUPS.contains(&call.as_str())).count()
}

#[test]
fn the_tree_costs_the_names_that_are_looked_up_and_nothing_else() {
    let places = Places::new(4096);
    let room = places.registry.scratch();
    let blob = sha256(&places.image.layers[0]);
    let digest = &places.image.digest;
    let paths = [
        ("a blob", format!("/v2/a/blobs/{blob}"), &blob),
        ("a manifest by digest", format!("/v2/a/manifests/{digest}"), digest),
        ("a manifest by tag", "/v2/a/manifests/v1".to_owned(), digest),
    ];
    for (what, path, content) in &paths {
        let tree = calls(&places.tree, path, &room);
        let name = format!("/{}", &content[7..]);
        let flat = calls(&places.flat, &name, &room);
        let bare = calls(&places.bare, &name, &room);
        assert_eq!(others(&tree), others(&flat), "{what}: {tree:?}\n{flat:?}");
        assert_eq!(others(&tree), others(&bare), "{what}: {tree:?}\n{bare:?}");
        if *what == "a blob" {
            // The repository, blobs/ and sha256/: one openat and one close for each.
            assert_eq!(lookups(&tree), lookups(&flat) + 3 * 2, "{tree:?}\n{flat:?}");
        }
        support::measured(format!(
            "nginx, system calls for {what}: {} ({} of them lookups); from a flat directory {} ({}), without \
             disable_symlinks {} ({})",
            tree.len(),
            lookups(&tree),
            flat.len(),
            lookups(&flat),
            bare.len(),
            lookups(&bare),
        ));
    }
}

/// Medians of requests in turns, one connection each.
#[test]
fn the_tree_is_about_as_fast_as_a_flat_directory() {
    let places = Places::new(65_536);
    let [blob, manifest] = [sha256(&places.image.layers[0]), sha256(&places.image.manifest)];
    assert_eq!(manifest, places.image.digest);
    for (what, path, content) in [
        ("a blob of 64 KB", format!("/v2/a/blobs/{blob}"), &blob),
        ("a manifest by tag", "/v2/a/manifests/v1".to_owned(), &manifest),
    ] {
        let name = format!("/{}", &content[7..]);
        let asked = [
            (places.tree.client(), path.clone()),
            (places.flat.client(), name.clone()),
            (places.bare.client(), name),
        ];
        let [tree, flat, bare] = medians(&asked).map(|time| time.as_nanos() / 1000);
        support::measured(format!(
            "nginx, median of {what}: {tree} µs; from a flat directory {flat} µs, without \
             disable_symlinks {bare} µs"
        ));
        // Anything that grew with the tree would be much more; two noisy cores are noisy.
        assert!(tree < 3 * flat + 300, "{what}: {tree} µs, flat {flat} µs");
    }
}

fn medians(asked: &[(Client, String); 3]) -> [Duration; 3] {
    let mut connections = asked.each_ref().map(|(client, _)| client.connect());
    let mut took: [Vec<Duration>; 3] = Default::default();
    for _ in 0..1500 {
        for (at, connection) in connections.iter_mut().enumerate() {
            // nginx ends a connection after 1,000 requests.
            let request = Request::get(&asked[at].1);
            let begin = Instant::now();
            let answer = match connection.try_send(&request) {
                Ok(answer) => answer,
                Err(_) => {
                    *connection = asked[at].0.connect();
                    continue;
                }
            };
            took[at].push(begin.elapsed());
            assert_eq!(answer.status, 200);
        }
    }
    took.map(|mut all| {
        all.sort();
        all[all.len() / 2]
    })
}
