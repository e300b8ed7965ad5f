//! A blob far larger than memory streams through the server.
//!
//! The disk may be smaller than the blob: behind what has been written, the test punches holes
//! into the session's file. The server must therefore hash what passes and never read it again.

#[path = "support/process.rs"]
mod process;
mod support;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};
use sha2::{Digest as _, Sha256};

use process::memory;
use support::Registry;
use support::content::{hex, random, with_query};
use support::http::{Framing, Request};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
/// Requests that the blob comes in; every one streams its part.
const PATCHES: u64 = 4;
/// What the server may hold in memory of its own, whatever passes through it.
const AT_MOST: u64 = 64 * MIB;

#[test]
fn memory_stays_bounded_while_a_huge_blob_streams_through() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let size = if support::long() { 20 * GIB } else { 2 * GIB };
    let mut location = client.start_upload("huge");
    let mut blob = Blob::new(&registry, &location);

    for number in 0..PATCHES {
        let start = number * size / PATCHES;
        let end = (number + 1) * size / PATCHES;
        let patch = Request::patch(&location)
            .header("Content-Type", "application/octet-stream")
            .header("Content-Range", format!("{start}-{}", end - 1));
        let answer = client
            .stream(&patch, Framing::Length(end - start), |to| blob.write(to, end - start))
            .unwrap_or_else(|error| panic!("PATCH {number}: {error}"))
            .expect_status(202);
        assert_eq!(answer.header("range"), Some(format!("0-{}", end - 1).as_str()));
        location = answer.location();
    }
    let most = blob.most_memory;
    let digest = blob.digest();
    let put = Request::put(with_query(&location, &format!("digest={digest}")));
    client.send(put).expect_status(201);

    let head = client.head(&format!("/v2/huge/blobs/{digest}")).expect_status(200);
    assert_eq!(head.header("content-length"), Some(size.to_string().as_str()));
    support::measured(format!("{} GiB uploaded, {} MiB held at most", size / GIB, most / MIB));
    assert!(most < AT_MOST, "the server held {} MiB of its own", most / MIB);
    // The holes are damage that the test itself has done.
    registry.expect_damage();
}

/// A stream of bytes that nobody has to store.
struct Blob {
    /// One random mebibyte; its first bytes count, so that no two are equal.
    block: Vec<u8>,
    hasher: Sha256,
    written: u64,
    punched: u64,
    session: PathBuf,
    pid: u32,
    most_memory: u64,
}

impl Blob {
    fn new(registry: &Registry, location: &str) -> Blob {
        Blob {
            block: random(usize::try_from(MIB).expect("a mebibyte")),
            hasher: Sha256::new(),
            written: 0,
            punched: 0,
            session: registry.upload_data(location),
            pid: registry.pid(),
            most_memory: 0,
        }
    }

    fn write(&mut self, to: &mut dyn Write, len: u64) -> io::Result<()> {
        let end = self.written + len;
        while self.written < end {
            self.block[..8].copy_from_slice(&self.written.to_le_bytes());
            let part =
                &self.block[..usize::try_from((end - self.written).min(MIB)).expect("small")];
            to.write_all(part)?;
            self.hasher.update(part);
            self.written += part.len() as u64;
            if self.written.is_multiple_of(32 * MIB) {
                self.most_memory = self.most_memory.max(memory(self.pid));
                self.punch()?;
            }
        }
        Ok(())
    }

    /// Gives back what the server has written, but for the last page, where it is still at work.
    fn punch(&mut self) -> io::Result<()> {
        let stored = fs::metadata(&self.session)?.len() / 4096 * 4096;
        let end = stored.saturating_sub(4096);
        if end > self.punched {
            let file = File::options().write(true).open(&self.session)?;
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, mode, self.punched, end - self.punched)?;
            self.punched = end;
        }
        Ok(())
    }

    fn digest(self) -> String {
        format!("sha256:{}", hex(&self.hasher.finalize()))
    }
}
