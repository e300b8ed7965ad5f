//! The bodies of lists, as the distribution specification has them.

use serde_json::json;

use super::{Descriptor, Kind, Tag};

/// The body of a list of tags ("Listing Tags").
pub fn tag_list<'a>(repository: &str, tags: impl Iterator<Item = &'a Tag>) -> Vec<u8> {
    let tags: Vec<&str> = tags.map(Tag::as_str).collect();
    json!({ "name": repository, "tags": tags }).to_string().into_bytes()
}

/// The body of a list of referrers, an index ("Listing Referrers").
pub fn referrer_list(referrers: &[Descriptor]) -> Vec<u8> {
    let media_type = Kind::OciIndex.media_type();
    json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": referrers })
        .to_string()
        .into_bytes()
}
