//! What the machine itself takes for what no registry can leave out.
//!
//! Processor time here is that of the thread that does it, exact.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest as _, Sha256};

use crate::content::{Content, GIB, MIB};
use crate::measure::{Latency, Sample};

/// How often an fsync is repeated in a turn.
const SYNCS: usize = 200;

fn processor() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Does something in this thread.
fn timed(bytes: u64, deed: impl FnOnce() -> Result<Vec<f64>>) -> Result<Sample> {
    let (begin, processor_before) = (Instant::now(), processor());
    let latencies = deed()?;
    let cpu = processor() - processor_before;
    Ok(Sample {
        wall: begin.elapsed().as_secs_f64(),
        cpu,
        requests: latencies.len().max(1) as u64,
        bytes,
        latency: Latency::of(&latencies),
        ..Sample::default()
    })
}

/// SHA-256 of 1 GiB, in pieces of a mebibyte.
pub(crate) fn hash() -> Result<Sample> {
    let content = Content::fresh(GIB);
    timed(GIB, || {
        let mut hash = Sha256::new();
        for piece in content.pieces() {
            hash.update(piece);
        }
        std::hint::black_box(hash.finalize());
        Ok(Vec::new())
    })
}

/// Writing 1 GiB in pieces of a mebibyte with space reserved, then fdatasync.
pub(crate) fn write(dir: &Path) -> Result<Sample> {
    let content = Content::fresh(GIB);
    let path = dir.join("written");
    let sample = timed(GIB, || {
        let mut file = File::create(&path)?;
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, GIB)?;
        content.write_to(&mut file)?;
        file.sync_data()?;
        Ok(Vec::new())
    });
    fs::remove_file(&path)?;
    sample
}

/// An fsync of 4 KiB that were just written, again and again, to a file that has its length already.
pub(crate) fn fsync(dir: &Path) -> Result<Sample> {
    let path = dir.join("synced");
    fs::write(&path, vec![0; MIB as usize])?;
    let file = OpenOptions::new().write(true).open(&path)?;
    file.sync_all()?;
    let sample = timed(0, || {
        let one = |number: usize| -> Result<f64> {
            file.write_all_at(&[1; 4096], (number as u64 * 4096) % MIB)?;
            let begin = Instant::now();
            file.sync_all()?;
            Ok(begin.elapsed().as_secs_f64())
        };
        (0..SYNCS).map(one).collect()
    });
    fs::remove_file(&path)?;
    sample
}

/// A file of this text written beside its name, fsynced, renamed over it, and its directory fsynced:
/// what replacing an index.json takes at least.
pub(crate) fn replace(dir: &Path, text: &[u8], times: usize) -> Result<Sample> {
    let (beside, path) = (dir.join(".index.json.new"), dir.join("index.json"));
    fs::write(&path, text)?;
    let sample = timed(0, || {
        let one = |_| -> Result<f64> {
            let begin = Instant::now();
            let mut file = File::create(&beside)?;
            file.write_all(text)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(dir)?.sync_all()?;
            Ok(begin.elapsed().as_secs_f64())
        };
        (0..times).map(one).collect()
    });
    fs::remove_file(&path)?;
    sample
}
