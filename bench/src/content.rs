//! What is pushed and pulled: bytes that nobody can compress or has seen before, and the manifests
//! that name them.

use std::hash::{BuildHasher as _, RandomState};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// The media type of every manifest here.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Random bytes are made once; contents are pieces of them in an order of their own, so that a client
/// sends them without making anything.
const POOL: usize = 8 << 20;
const PIECE: usize = 1 << 20;

static SEED: OnceLock<u64> = OnceLock::new();

/// From the start the contents are those of every other run that says so: for counts that depend on
/// digests.
pub(crate) fn repeat() {
    SEED.set(1).expect("said before anything is made");
}

/// So many random bytes, of this run alone unless [`repeat`] was said.
fn pool() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut state = *SEED.get_or_init(|| RandomState::new().hash_one(0));
        let words = (0..POOL / 8).flat_map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mixed(state).to_le_bytes()
        });
        words.collect()
    })
}

/// SplitMix64's last step: every bit of the input moves every bit of the output.
fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Bytes of a length that no other content of this run has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    /// What it begins with; tells it from every other.
    mark: [u8; 16],
    length: u64,
}

impl Content {
    /// A content of its own each time it is called.
    pub(crate) fn fresh(length: u64) -> Content {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut mark = [0; 16];
        mark[..8].copy_from_slice(&pool()[..8]);
        mark[8..].copy_from_slice(&mixed(number + 1).to_le_bytes());
        Content { mark, length }
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Its bytes from `begin` on, at most `length` of them, in pieces of at most a mebibyte.
    pub(crate) fn range(&self, begin: u64, length: u64) -> impl Iterator<Item = &[u8]> {
        let end = self.length.min(begin + length);
        let mut at = begin;
        std::iter::from_fn(move || {
            let piece = self.piece(at / MIB);
            let piece = &piece[usize::try_from(at % MIB).expect("below a mebibyte")..];
            let left = usize::try_from(end.checked_sub(at)?).unwrap_or(usize::MAX);
            // The mark is a piece of its own within the first mebibyte.
            let piece = if at < 16 { &self.mark[usize::try_from(at).ok()?..] } else { piece };
            let piece = &piece[..piece.len().min(left)];
            at += piece.len() as u64;
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// All of its bytes.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.range(0, self.length)
    }

    /// The mebibyte of that number, without the mark.
    fn piece(&self, number: u64) -> &'static [u8] {
        let seed = u64::from_le_bytes(self.mark[8..].try_into().expect("eight bytes"));
        let begin = mixed(seed ^ (number + 1)) % (POOL - PIECE) as u64;
        let begin = usize::try_from(begin).expect("within the pool");
        &pool()[begin..begin + PIECE]
    }

    /// Its digest, as it stands in manifests. Costs the hash.
    pub(crate) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for piece in self.pieces() {
            hash.update(piece);
        }
        written(&hash.finalize())
    }

    pub(crate) fn write_to(&self, to: &mut impl Write) -> std::io::Result<()> {
        self.pieces().try_for_each(|piece| to.write_all(piece))
    }
}

/// The digest of bytes, as it stands in manifests.
pub(crate) fn digest(bytes: &[u8]) -> String {
    written(&Sha256::digest(bytes))
}

/// A hash as a digest.
pub(crate) fn written(hash: &[u8]) -> String {
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// The digits of a digest, as blobs' files are called.
pub(crate) fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// An image: a configuration, one layer, and the manifest that names both.
pub(crate) struct Image {
    pub(crate) config: Content,
    pub(crate) layer: Content,
    pub(crate) config_digest: String,
    pub(crate) layer_digest: String,
    pub(crate) manifest: Vec<u8>,
}

impl Image {
    /// With a layer of this length, and nothing in common with any other.
    pub(crate) fn fresh(layer: u64) -> Image {
        Image::of(Content::fresh(KIB), Content::fresh(layer))
    }

    pub(crate) fn of(config: Content, layer: Content) -> Image {
        let (config_digest, layer_digest) = (config.digest(), layer.digest());
        let manifest =
            manifest((&config_digest, config.length()), (&layer_digest, layer.length()), "");
        Image { config, layer, config_digest, layer_digest, manifest }
    }
}

/// A manifest that names a configuration and a layer, and is told from others by `note`.
pub(crate) fn manifest(config: (&str, u64), layer: (&str, u64), note: &str) -> Vec<u8> {
    let descriptor = |media_type: &str, (digest, size): (&str, u64)| serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size });
    let mut manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, config),
        "layers": [descriptor(LAYER, layer)],
    });
    if !note.is_empty() {
        manifest["annotations"] = serde_json::json!({ "org.example.note": note });
    }
    manifest.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_a_part_of_the_whole() {
        let content = Content::fresh(3 * MIB + 5);
        let whole = content.pieces().collect::<Vec<_>>().concat();
        assert_eq!(whole.len(), 3 * (1 << 20) + 5);
        for (begin, length) in [(0, 7), (3, 20), (15, 2), (16, MIB), (MIB - 1, 2), (MIB, 9 * MIB)] {
            let part = content.range(begin, length).collect::<Vec<_>>().concat();
            let begin = usize::try_from(begin).unwrap();
            let end = whole.len().min(begin + usize::try_from(length).unwrap());
            assert_eq!(part, whole[begin..end], "{begin} {length}");
        }
        assert_eq!(content.digest(), digest(&whole));
        assert_ne!(Content::fresh(3 * MIB + 5).digest(), content.digest());
    }
}
