//! What the server remembers is bounded, and nearly full before the hour begins: what grows much from then on leaks.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::Registry;
use crate::support::content::{Image, OCI_MANIFEST, sha256};
use crate::support::http::{Connection, Request};

/// Images without layers, each with a configuration of its own: more bytes of manifests than are
/// remembered, more blobs than are known to be sound, and lengths of more than half as many as are
/// remembered: with all of them they would begin anew, and leave free what a leak could hide in.
const CLIENTS: usize = 4;
const REPOSITORIES: usize = 16;
const IMAGES: usize = 300;

/// Fills it with images that are gone afterwards; by few clients, because what many leave free in the heap
/// would hide what leaks.
pub(crate) fn fill_what_is_remembered(registry: &Registry) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                for number in 0..REPOSITORIES {
                    let name = format!("warm-{client}-{number}");
                    fill(registry.client().connect(), &name);
                    remove(&registry.root().join(name));
                }
            });
        }
    });
}

/// The server may be about to write a view into it: then it is not empty at the first attempt.
fn remove(repository: &Path) {
    let begun = Instant::now();
    while let Err(error) = fs::remove_dir_all(repository) {
        match error.kind() {
            ErrorKind::NotFound => return,
            ErrorKind::DirectoryNotEmpty if begun.elapsed() < Duration::from_secs(10) => {
                thread::yield_now();
            }
            _ => panic!("{}: {error}", repository.display()),
        }
    }
}

fn fill(mut connection: Connection, repo: &str) {
    for _ in 0..IMAGES {
        let image = Image::of(Vec::new(), "");
        let path = format!("/v2/{repo}/blobs/uploads/?digest={}", sha256(&image.config));
        connection.send(&Request::post(path).body(image.config)).expect_status(201);
        let path = format!("/v2/{repo}/manifests/{}", image.digest);
        let put =
            Request::put(path.clone()).header("Content-Type", OCI_MANIFEST).body(image.manifest);
        connection.send(&put).expect_status(201);
        // What is remembered is what was read.
        connection.send(&Request::get(path)).expect_status(200);
    }
}
