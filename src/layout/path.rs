//! Every path in the tree is spelled here and nowhere else.
//!
//! Paths of a repository are relative to its directory, those of the registry's own room to
//! `ROOT/.stillage`.

use crate::oci::{Algorithm, Digest, Kind, RepoName, Tag};

/// The registry's own room beneath ROOT. No repository name can begin with a dot.
pub const ROOM: &str = ".stillage";

/// Says that a directory is an image layout.
pub const OCI_LAYOUT: &str = "oci-layout";
/// The contents of [`OCI_LAYOUT`].
pub const OCI_LAYOUT_BYTES: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The one truth about a repository.
pub const INDEX: &str = "index.json";
/// Content.
pub const BLOBS: &str = "blobs";
/// The journal.
pub const JOURNAL: &str = "_log.jsonl";
/// flock'ed by whoever changes the repository.
pub const LOCK: &str = ".lock";
/// A view for other tools: a directory of links to manifests, by tag and by digest.
pub const MANIFESTS: &str = "_manifests";
/// A view for other tools: the list of tags.
pub const TAGS: &str = "_tags.json";
/// The directory of what the referrers API needs.
pub const REFERRERS: &str = "_referrers";
/// What is known of manifests, in [`REFERRERS`].
pub const FACTS: &str = "facts.jsonl";
/// A symlink that says what the views were made from, in [`MANIFESTS`].
pub const VIEWS_OF: &str = ".of";

/// The version of the tree, in the room.
pub const VERSION: &str = "version";
/// What [`VERSION`] says.
pub const VERSION_TEXT: &str = "1\n";
/// One more hard link to every blob, in the room.
pub const POOL: &str = "pool";
/// Hints of which repository got which blob, in the room.
pub const HOLDERS: &str = "holders";
/// Open upload sessions, in the room.
pub const UPLOADS: &str = "uploads";
/// What collection has seen unreferenced, in the room.
pub const UNREFERENCED: &str = "unreferenced";
/// Removed repositories, in the room.
pub const TRASH: &str = "trash";
/// What a repair took out, in the room.
pub const QUARANTINE: &str = "quarantine";
/// When the last collection was, in the room.
pub const COLLECTED: &str = "collected";
/// flock'ed by whoever makes blobs' names vanish, and by whoever copies the tree; in the room.
pub const GC_LOCK: &str = "gc.lock";
/// The keys that sign tokens, in the room.
pub const TOKEN_KEY: &str = "token-key";
/// flock'ed by whoever replaces [`TOKEN_KEY`], in the room.
pub const TOKEN_LOCK: &str = "token-key.lock";
/// The certificate that the server made for itself, in the room.
pub const TLS: &str = "tls";
/// The certificate, in [`TLS`].
pub const TLS_CERTIFICATE: &str = "cert.pem";
/// The certificate's key, in [`TLS`].
pub const TLS_KEY: &str = "key.pem";
/// How far each receiver of events was told, in the room.
pub const WEBHOOKS: &str = "webhooks";
/// Which receiver it is, in its directory.
pub const RECEIVER: &str = "_receiver.json";
/// How far it was told of a repository, in a directory of the repository's name in the receiver's.
pub const TOLD: &str = "_told.json";
/// An upload session's bytes, in its directory.
pub const UPLOAD_DATA: &str = "data";
/// Whose session it is, in its directory.
pub const UPLOAD_OWNER: &str = "owner";

/// `blobs/sha256`: where a repository's content of one algorithm lies.
pub fn blobs(algorithm: Algorithm) -> String {
    format!("{BLOBS}/{algorithm}")
}

/// `blobs/sha256/<hex>`
pub fn blob(digest: &Digest) -> String {
    // Several times in each request.
    [BLOBS, "/", digest.algorithm().as_str(), "/", digest.hex()].concat()
}

/// `pool/sha256`: the pool's directory for an algorithm.
pub fn pool_of(algorithm: Algorithm) -> String {
    format!("{POOL}/{algorithm}")
}

/// `pool/sha256/<hh>`: the pool's directory for a digest.
pub fn pool_dir(digest: &Digest) -> String {
    format!("{POOL}/{}/{}", digest.algorithm(), &digest.hex()[..2])
}

/// `pool/sha256/<hh>/<hex>`
pub fn pool(digest: &Digest) -> String {
    format!("{}/{}", pool_dir(digest), digest.hex())
}

/// `holders/sha256`: the directory of hints for an algorithm.
pub fn holders_dir(algorithm: Algorithm) -> String {
    format!("{HOLDERS}/{algorithm}")
}

/// `<hhh>`: the file of hints for a digest, in [`holders_dir`].
pub fn holders_name(digest: &Digest) -> &str {
    &digest.hex()[..3]
}

/// `unreferenced/<repository>`: the directory of a repository's notes.
pub fn notes(repo: &RepoName) -> String {
    format!("{UNREFERENCED}/{repo}")
}

/// `webhooks/<id>`: what is known of a receiver of events.
pub fn receiver(id: &str) -> String {
    format!("{WEBHOOKS}/{id}")
}

/// `<tag>.<kind>`: the name of a tag's manifest, in [`MANIFESTS`].
pub fn tag_view(tag: &Tag, kind: Kind) -> String {
    format!("{tag}.{}", kind.short())
}

/// `<hex>.<kind>`: the name of a manifest, in `_manifests/<algorithm>`.
pub fn digest_view(digest: &Digest, kind: Kind) -> String {
    format!("{}.{}", digest.hex(), kind.short())
}

/// `<hex>.json`: the name of the list of a manifest's referrers, in `_referrers/<algorithm>`.
pub fn referrers_view(subject: &Digest) -> String {
    format!("{}.json", subject.hex())
}

/// `_manifests/<algorithm>`
pub fn manifest_views(algorithm: Algorithm) -> String {
    format!("{MANIFESTS}/{algorithm}")
}

/// `_referrers/<algorithm>`
pub fn referrer_views(algorithm: Algorithm) -> String {
    format!("{REFERRERS}/{algorithm}")
}

/// Whether a name in a directory of a repository, empty for its own, is one that a view can have.
pub fn is_view(dir: &str, name: &str) -> bool {
    let of = |ending: Option<(&str, &str)>| {
        let (name, short) = ending?;
        Kind::ALL.iter().any(|kind| kind.short() == short).then(|| name.to_owned())
    };
    let is_hex =
        |algorithm: Algorithm, hex: &str| Digest::parse(&format!("{algorithm}:{hex}")).is_ok();
    let manifest = of(name.rsplit_once('.'));
    match dir {
        "" => name == TAGS,
        MANIFESTS => manifest.is_some_and(|tag| Tag::parse(&tag).is_ok()),
        _ => Algorithm::ALL.into_iter().any(|algorithm| {
            let listed = name.strip_suffix(".json").filter(|_| dir == referrer_views(algorithm));
            let named = manifest.as_deref().filter(|_| dir == manifest_views(algorithm));
            listed.or(named).is_some_and(|hex| is_hex(algorithm, hex))
        }),
    }
}

/// The number of an older part of the journal, `_log.<n>.jsonl`.
pub fn old_journal(name: &str) -> Option<u64> {
    let number = name.strip_prefix("_log.")?.strip_suffix(".jsonl")?;
    number.parse().ok()
}

/// `_log.<n>.jsonl`
pub fn journal_part(number: u64) -> String {
    format!("_log.{number}.jsonl")
}

/// A name beside `name` for what is about to replace it: hidden, and never met twice.
pub fn temporary(name: &str) -> String {
    let name = name.trim_start_matches('.');
    format!(".{name}.{}", random_hex::<8>())
}

/// Whether a name is of the form that [`temporary`] gives.
pub fn is_temporary(name: &str) -> bool {
    let parts = name.strip_prefix('.').and_then(|name| name.rsplit_once('.'));
    parts.is_some_and(|(of, random)| {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        !of.is_empty() && random.len() == 16 && random.bytes().all(digit)
    })
}

/// `.<name>.stillage-snapshot`: a snapshot `<name>` in the making, beside its final name. Always the
/// same, so that the next run finds what a killed one left.
pub fn staging(name: &str) -> String {
    format!(".{name}.stillage-snapshot")
}

/// `N` random bytes in hexadecimal.
pub fn random_hex<const N: usize>() -> String {
    let mut bytes = [0u8; N];
    // Without randomness neither ids nor keys are safe: nothing sensible can be done without it.
    getrandom::fill(&mut bytes).unwrap_or_else(|error| panic!("getrandom(2): {error}"));
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
