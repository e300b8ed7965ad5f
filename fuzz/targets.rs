//! What is fuzzed: everything that reads bytes of outsiders, with what must always hold of it.
//!
//! Each function takes any bytes at all and panics where something does not hold. `cargo fuzz run
//! NAME` feeds them with what libFuzzer makes up, `tests/corpus.rs` with the files of `corpus/NAME`
//! and with variants of them.
#![allow(dead_code, reason = "every fuzz target is a program with one of them")]

use stillage::auth::{self, Resource};
use stillage::http::route::{self, Action, Deed, MAX_PAGE, Page};
use stillage::oci::{
    Algorithm, ByteRange, ContentRange, Digest, Index, Kind, Manifest, Reference, RepoName, Tag,
};

/// Takes any bytes, and panics where something does not hold.
pub(crate) type Target = fn(&[u8]);

/// Every target by its name.
pub(crate) const ALL: [(&str, Target); 6] = [
    ("route", route),
    ("digest", digest),
    ("range", range),
    ("manifest", manifest),
    ("index", index),
    ("scope", scope),
];

/// The first line of a request: method, path and query, divided by blanks.
pub(crate) fn route(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, ' ');
    let Some(Ok(method)) = parts.next().map(|text| http::Method::from_bytes(text.as_bytes()))
    else {
        return;
    };
    let path = parts.next().unwrap_or_default();
    let query = parts.next();
    let parsed = route::parse(&method, path, query);
    // However it is escaped, it is the same request: gate and storage can never see two names.
    if !path.contains('%') && !path.contains(|c: char| c.is_control()) && path.starts_with('/') {
        let escaped: String = path[1..].bytes().map(|byte| format!("%{byte:02X}")).collect();
        assert_eq!(parsed, route::parse(&method, &format!("/{escaped}"), query));
    }
    match parsed {
        Ok(Action::Repo(repo, deed)) => {
            assert_eq!(RepoName::parse(repo.as_str()).as_ref(), Ok(&repo));
            assert!(
                repo.components().all(|part| !part.starts_with(['.', '_']) && !part.is_empty())
            );
            if let Deed::Tags(page) = deed {
                check(&page);
            }
        }
        Ok(Action::Catalog(page)) => check(&page),
        Ok(_) => {}
        Err(error) => {
            let told = error.to_string();
            assert!(told.len() < 2000, "a long message: {told}");
        }
    }
}

fn check(page: &Page) {
    assert!(page.n <= MAX_PAGE);
    assert!(page.last.iter().all(|last| !last.contains(char::is_control)));
}

/// A digest, a tag, a reference, a repository's name.
pub(crate) fn digest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let digest = Digest::parse(&text);
    if let Ok(digest) = &digest {
        assert_eq!(digest.as_str(), text);
        assert_eq!(digest.hex().len(), digest.algorithm().hex_len());
        assert!(digest.hex().bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    }
    match Reference::parse(&text) {
        Ok(Reference::Digest(found)) => assert_eq!(digest, Ok(found)),
        Ok(Reference::Tag(tag)) => assert_eq!(Tag::parse(&text), Ok(tag)),
        Err(_) => assert!(digest.is_err() && Tag::parse(&text).is_err()),
    }
    if let Ok(name) = RepoName::parse(&text) {
        assert_eq!(name.as_str(), text);
        assert!(!text.contains("..") && !text.starts_with('/') && text.len() <= 255);
    }
    for algorithm in Algorithm::ALL {
        assert!(Digest::parse(Digest::of(algorithm, data).as_str()).is_ok());
    }
}

/// Eight bytes of a blob's size, then a `Range` or `Content-Range`.
pub(crate) fn range(data: &[u8]) {
    let Some((size, text)) = data.split_first_chunk::<8>() else {
        return;
    };
    let size = u64::from_le_bytes(*size);
    let text = String::from_utf8_lossy(text);
    if let Ok(Some(range)) = ByteRange::parse(&text, size) {
        assert!(range.first <= range.last && range.last < size);
        assert!((1..=size).contains(&range.len()));
    }
    if let Ok(range) = ContentRange::parse(&text) {
        assert!(range.first <= range.last);
        assert!(range.first.checked_add(range.len()).is_some());
    }
}

/// A manifest, with every type that it might be sent with.
pub(crate) fn manifest(data: &[u8]) {
    let mut kinds = Vec::new();
    let types = Kind::ALL.map(|kind| Some(kind.media_type()));
    for content_type in types.into_iter().chain([None]) {
        let Ok(manifest) = Manifest::parse(data, content_type) else { continue };
        assert!(content_type.is_none_or(|text| Kind::of_media_type(text) == Some(manifest.kind)));
        assert_eq!(manifest.kind.is_index(), manifest.config.is_none());
        assert!(manifest.layers.is_empty() || manifest.manifests.is_empty());
        assert!(manifest.required().count() <= manifest.references().count());
        kinds.push(manifest.kind.is_index());
    }
    // One body is never an image for one reader and an index for another.
    kinds.dedup();
    assert!(kinds.len() <= 1, "two meanings");
}

/// An index.json that anybody may have written.
pub(crate) fn index(data: &[u8]) {
    let Ok(index) = Index::parse(data) else { return };
    let written = index.to_bytes();
    let again = Index::parse(&written).expect("what was written is read again");
    assert!(index.entries().eq(again.entries()));
    assert_eq!(written, again.to_bytes());
    let tags: Vec<Tag> = index.tags_after(None).cloned().collect();
    assert!(tags.is_sorted());
    let mut changed = index;
    for tag in tags {
        assert!(changed.tagged(&tag).is_some());
        assert!(changed.untag(&tag).is_some() && changed.tagged(&tag).is_none());
    }
    let digests: Vec<Digest> = changed.digests().cloned().collect();
    for digest in digests {
        assert!(!changed.remove(&digest).is_empty() && changed.find(&digest).is_none());
    }
    assert!(changed.is_empty());
}

/// The `scope` of a request for a token.
pub(crate) fn scope(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let asked = auth::parse_scopes([&*text]);
    assert!(asked.len() <= auth::MAX_SCOPES);
    for access in &asked {
        if let Resource::Repository(name) = &access.resource {
            assert!(RepoName::parse(name.as_str()).is_ok());
        }
        let told = access.to_string();
        assert_eq!(auth::parse_scopes([told.as_str()]), std::slice::from_ref(access));
    }
}
