//! What the end-to-end tests share: a real server on a real tree, and the means to talk to it.
//!
//! A test file says `mod support;` and begins with `let registry = Registry::start(&["--auth", "none"]);`.
//! Nothing here is a stand-in: the server is the built binary, the tree is on the file system
//! of `TMPDIR`, accounts are the system's own.
//!
//! - [`Registry`]: a running server; dropped, it is stopped and its tree is checked.
//! - [`http`]: a small HTTP/1.1 client that hides nothing, and speaks nonsense when asked to.
//! - [`content`]: random blobs and images, and the pushes that a client makes of them.
//! - [`deeds`]: what clients do, and what must be true afterwards.
//! - [`calls`]: the system calls that a program makes on its tree, to be recorded or to fail.
//! - [`account`]: a system account with a password, for as long as the guard lives.
//! - [`containers`]: podman, buildah and skopeo with storage of their own.
//! - [`tls`]: certificates, curl that trusts them, raw TLS and HTTP/2.
//! - [`recipes`]: the commands of docs/backup.md.
//! - [`snapshot`]: a tree as it is, to be compared later.
//! - [`command`]: other programs, run with their output kept for the failure message.
//! - [`volume`]: a small disk: to be full, read-only, without inodes or links, over its quota.
//! - [`tmpfs`]: a small file system, to be filled.
//! - [`views`]: what the views of a repository have to be.
//! - [`power`]: file systems whose power can be cut.
//! - [`proxy`]: nginx and Caddy with TLS in front of a server.
//! - [`random`]: random choices that a seed replays.
//! - [`web`]: nginx, Caddy and Apache on a tree.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "every test binary uses another part of the support code"
)]

pub mod account;
pub mod calls;
pub mod command;
pub mod containers;
pub mod content;
pub mod deeds;
pub mod http;
pub mod power;
pub mod proxy;
pub mod random;
pub mod recipes;
mod registry;
pub mod snapshot;
pub mod tls;
pub mod tmpfs;
pub mod views;
pub mod volume;
pub mod web;

pub use registry::{Registry, STILLAGE};

/// True for `tests/run --long`: the full sizes of what is otherwise tried in a shorter form.
pub fn long() -> bool {
    std::env::var_os("STILLAGE_TEST_LONG").is_some_and(|value| value == "1")
}

/// Of a long run that is done in parts the part that is wanted: `STILLAGE_TEST_PART=2/4` is the second
/// quarter, everything without it. Neighbours go to different parts, which take the same time.
pub fn part<T>(all: Vec<T>) -> Vec<T> {
    let Ok(part) = std::env::var("STILLAGE_TEST_PART") else { return all };
    let numbers =
        part.split_once('/').and_then(|(at, of)| Some((at.parse().ok()?, of.parse().ok()?)));
    let of: Option<(usize, usize)> = numbers.filter(|(at, of)| (1..=*of).contains(at));
    let (at, of) = of.unwrap_or_else(|| panic!("STILLAGE_TEST_PART is {part:?}, not such as 2/4"));
    all.into_iter().skip(at - 1).step_by(of).collect()
}

/// A figure that docs/measured.md or docs/reliability.md states; `tests/run` prints it.
pub fn measured(text: impl std::fmt::Display) {
    eprintln!("measured: {text}");
}
