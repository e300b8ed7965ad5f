//! A collection of 20,000 blobs, or of 1,000,000 (`--long`): how long it takes beside
//! `find ROOT | wc -l`, and how much memory of its own.
//!
//! The blobs are empty files under digests that nothing has, each with its name in the pool; the manifests
//! are real. Half of all is one repository. One blob of a hundred is garbage.

#[path = "support/process.rs"]
mod process;
mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use process::memory_while;
use stillage::oci::{Algorithm, Digest};
use support::{STILLAGE, long, measured};

/// What a collection may hold itself.
const MOST_MEMORY: u64 = 256 << 20;
const LAYERS: usize = 10;

struct Made<'a> {
    root: &'a Path,
    next: u64,
    blobs: usize,
    garbage: usize,
}

impl Made<'_> {
    /// A digest that no content has, as far as anybody knows.
    fn digest(&mut self) -> Digest {
        self.next += 1;
        let mix = |n: u64| {
            let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            n ^ (n >> 31)
        };
        let words = (0..4).map(|word| mix(self.next.wrapping_mul(4) + word + 0x9e37_79b9));
        let hex: String = words.map(|word| format!("{word:016x}")).collect();
        Digest::parse(&format!("sha256:{hex}")).unwrap()
    }

    fn put(&mut self, repo: &Path, digest: &Digest, bytes: &[u8]) {
        use std::io::Write;
        use std::os::unix::fs::PermissionsExt;
        let path = repo.join("blobs/sha256").join(digest.hex());
        let mut file = File::create(&path).unwrap();
        file.write_all(bytes).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o444)).unwrap();
        let pool = self.root.join(".stillage/pool/sha256").join(&digest.hex()[..2]);
        fs::hard_link(&path, pool.join(digest.hex())).unwrap();
        self.blobs += 1;
    }

    fn repository(&mut self, name: &str, blobs: usize) {
        let repo = self.root.join(name);
        fs::create_dir_all(repo.join("blobs/sha256")).unwrap();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let (mut entries, end) = (Vec::new(), self.blobs + blobs);
        while self.blobs < end {
            let digests: Vec<Digest> = (0..=LAYERS).map(|_| self.digest()).collect();
            for digest in &digests {
                self.put(&repo, digest, b"");
            }
            let described: Vec<String> = digests
                .iter()
                .map(|digest| format!(r#"{{"mediaType":"x","digest":"{digest}","size":0}}"#))
                .collect();
            let manifest = format!(
                r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{},"layers":[{}]}}"#,
                described[0],
                described[1..].join(",")
            );
            let digest = Digest::of(Algorithm::Sha256, manifest.as_bytes());
            self.put(&repo, &digest, manifest.as_bytes());
            let (n, size) = (entries.len(), manifest.len());
            entries.push(format!(
                r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size},"annotations":{{"org.opencontainers.image.ref.name":"v{n}"}}}}"#
            ));
            while self.garbage * 100 < self.blobs {
                let digest = self.digest();
                self.put(&repo, &digest, b"");
                self.garbage += 1;
            }
        }
        fs::write(repo.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        fs::write(repo.join("index.json"), index).unwrap();
    }
}

/// Runs a collection: how long it took, the most memory that it held, and what it summed up.
fn gc(root: &Path, args: &[&str]) -> (Duration, u64, serde_json::Value) {
    let begun = Instant::now();
    let child = Command::new(STILLAGE)
        .arg("gc")
        .arg(root)
        .arg("--json")
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id();
    let watch = std::thread::spawn(move || {
        let mut most = 0;
        while let Some(now) = memory_while(id) {
            most = most.max(now);
            std::thread::sleep(Duration::from_millis(2));
        }
        most
    });
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    (begun.elapsed(), watch.join().unwrap(), told["summary"].clone())
}

#[test]
fn a_million_blobs_are_collected_in_little_memory() {
    let blobs = if long() { 1_000_000 } else { 20_000 };
    let room = tempfile::Builder::new().prefix("stillage-scale-").tempdir().unwrap();
    let root = room.path();
    fs::create_dir_all(root.join(".stillage/pool/sha256")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root.join(".stillage"), fs::Permissions::from_mode(0o700)).unwrap();
    for n in 0..=255u8 {
        fs::create_dir(root.join(format!(".stillage/pool/sha256/{n:02x}"))).unwrap();
    }
    let mut made = Made { root, next: 0, blobs: 0, garbage: 0 };
    made.repository("one/large", blobs / 2);
    while made.blobs < blobs {
        let name = format!("many/r{}", made.blobs);
        made.repository(&name, blobs / 100);
    }
    let (blobs, garbage) = (made.blobs as u64, made.garbage as u64);

    let find = || {
        let begun = Instant::now();
        let shell = format!("find {} | wc -l", root.display());
        let output = Command::new("sh").args(["-c", &shell]).output().unwrap();
        let names: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
        assert!(names > 2 * blobs, "{names}");
        begun.elapsed()
    };
    find();
    let walked = find();
    let (first, memory, noted) = gc(root, &[]);
    assert_eq!((noted["looked"].as_u64(), noted["noted"].as_u64()), (Some(blobs), Some(garbage)));
    let (again, memory_again, waiting) = gc(root, &[]);
    assert_eq!(waiting["waiting"].as_u64(), Some(garbage));
    let (at_once, memory_now, removed) = gc(root, &["--now"]);
    assert_eq!(removed["removed"].as_u64(), Some(garbage));
    assert_eq!(removed["pooled"].as_u64(), Some(garbage));
    let memory = memory.max(memory_again).max(memory_now);
    measured(format!(
        "gc of {blobs} blobs: {:.1} s the first time, which notes {garbage}; {:.1} s the second; \
         {:.1} s with --now, which takes them; find ROOT | wc -l: {:.1} s; at most {} MiB anonymous",
        first.as_secs_f64(),
        again.as_secs_f64(),
        at_once.as_secs_f64(),
        walked.as_secs_f64(),
        memory >> 20
    ));
    assert!(memory < MOST_MEMORY, "{memory} bytes");
}
