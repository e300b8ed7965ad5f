//! The bodies of lists, as the distribution specification has them.

use serde_json::json;

use super::{Descriptor, Kind, Tag};

/// The body of a list of tags ("Listing Tags").
pub fn tag_list<'a>(repository: &str, tags: impl Iterator<Item = &'a Tag>) -> Vec<u8> {
    let name = serde_json::Value::from(repository);
    let mut body = format!(r#"{{"name":{name},"tags":["#).into_bytes();
    // There may be 100,000, and nothing in a tag needs an escape.
    for tag in tags {
        body.extend([b"\"", tag.as_str().as_bytes(), b"\","].into_iter().flatten());
    }
    if body.last() == Some(&b',') {
        body.pop();
    }
    body.extend_from_slice(b"]}");
    body
}

/// The body of a list of referrers, an index ("Listing Referrers").
pub fn referrer_list(referrers: &[Descriptor]) -> Vec<u8> {
    let media_type = Kind::OciIndex.media_type();
    json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": referrers })
        .to_string()
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_tags_is_what_the_specification_has() {
        let all = ["a", "b.c", "_x-1"].map(|tag| Tag::parse(tag).unwrap());
        for some in [&all[..], &all[..1], &[]] {
            let wanted = some.iter().map(Tag::as_str).collect::<Vec<_>>();
            let wanted = json!({ "name": "a/b", "tags": wanted }).to_string();
            assert_eq!(tag_list("a/b", some.iter()), wanted.as_bytes());
        }
    }
}
