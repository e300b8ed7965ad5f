//! Descriptors (image-spec, descriptor.md).

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::Digest;
use super::json::Text;

/// Annotations, in the order of their keys.
pub type Annotations = BTreeMap<String, String>;

/// Names content: its type, digest and size, and what else whoever wrote it chose to say.
///
/// Fields that Stillage does not know are kept and written back.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is. Some old tools leave it out of an index's entries.
    pub media_type: String,
    /// What the content hashes to.
    pub digest: Digest,
    /// The content's length in bytes, at most `i64::MAX`.
    pub size: u64,
    /// Where else the content lies; a layer with `urls` may be absent here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free-form notes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Annotations,
    /// The type of the artifact that the content is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Whatever else stands there (`platform`, `data`, …).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Descriptor {
    /// A descriptor that says the three required things and no more.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: Annotations::new(),
            artifact_type: None,
            extra: Map::new(),
        }
    }
}

/// Read by hand: serde's own way with unknown fields goes through a buffer of every value, and an
/// index.json may have 100,000 of these. No key may stand twice.
impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Descriptor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a descriptor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Descriptor, A::Error> {
        let mut media_type = None;
        let mut digest = None;
        let mut length = None;
        let mut urls = None;
        let mut notes = None;
        let mut artifact_type = None;
        let mut extra = Map::new();
        while let Some(Text(key)) = map.next_key()? {
            match key.as_ref() {
                "mediaType" => once(&mut media_type, "mediaType", map.next_value::<String>()?)?,
                "digest" => once(&mut digest, "digest", map.next_value::<Digest>()?)?,
                "size" => once(&mut length, "size", size(map.next_value()?)?)?,
                "urls" => once(&mut urls, "urls", map.next_value::<Option<_>>()?)?,
                "annotations" => once(&mut notes, "annotations", map.next_value::<Notes>()?)?,
                "artifactType" => {
                    once(&mut artifact_type, "artifactType", map.next_value::<Option<_>>()?)?;
                }
                _ => {
                    let value = map.next_value()?;
                    if extra.insert(key.clone().into_owned(), value).is_some() {
                        return Err(A::Error::custom(format!("duplicate field {key:?}")));
                    }
                }
            }
        }
        Ok(Descriptor {
            media_type: media_type.unwrap_or_default(),
            digest: digest.ok_or_else(|| A::Error::missing_field("digest"))?,
            size: length.ok_or_else(|| A::Error::missing_field("size"))?,
            urls: urls.flatten().unwrap_or_default(),
            annotations: notes.map(|Notes(notes)| notes).unwrap_or_default(),
            artifact_type: artifact_type.flatten(),
            extra,
        })
    }
}

pub(super) fn once<T, E: Error>(
    slot: &mut Option<T>,
    name: &'static str,
    value: T,
) -> Result<(), E> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(E::duplicate_field(name)),
    }
}

/// Sizes are int64 in the specification: a larger one would be negative in every other tool.
fn size<E: Error>(size: u64) -> Result<u64, E> {
    if i64::try_from(size).is_err() {
        return Err(E::custom(format!("size {size} is larger than 2^63-1")));
    }
    Ok(size)
}

/// Annotations as they stand in a descriptor.
#[derive(Deserialize)]
pub(super) struct Notes(#[serde(deserialize_with = "annotations")] pub(super) Annotations);

/// Annotations in which no key stands twice; `null` is none.
fn annotations<'de, D: Deserializer<'de>>(d: D) -> Result<Annotations, D::Error> {
    struct Unique;

    impl<'de> Visitor<'de> for Unique {
        type Value = Annotations;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of annotations")
        }

        fn visit_unit<E>(self) -> Result<Annotations, E> {
            Ok(Annotations::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
            let mut found = Annotations::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                if found.contains_key(&key) {
                    let text = format!("the annotation {key:?} stands twice");
                    return Err(A::Error::custom(text));
                }
                found.insert(key, value);
            }
            Ok(found)
        }
    }

    d.deserialize_any(Unique)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn read(fields: &str) -> Result<Descriptor, serde_json::Error> {
        serde_json::from_str(&format!(r#"{{"digest":"{DIGEST}","size":1{fields}}}"#))
    }

    #[test]
    fn what_is_not_known_is_kept_and_written_back() {
        let text = format!(
            r#"{{"mediaType":"m","digest":"{DIGEST}","size":1,"urls":["u"],"annotations":{{"k":"v"}},"artifactType":"a","data":"x","platform":{{"os":"linux"}}}}"#
        );
        let descriptor: Descriptor = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&descriptor).unwrap(), text);
        let escaped = read(r#","\u0061rtifactType":"a","x\n":1"#).unwrap();
        assert_eq!(escaped.artifact_type.as_deref(), Some("a"));
        assert!(escaped.extra.contains_key("x\n"));
    }

    #[test]
    fn nothing_stands_twice_and_nothing_is_missing() {
        assert!(read(r#","urls":null,"annotations":null,"artifactType":null"#).is_ok());
        for bad in [
            r#","size":1"#,
            r#","urls":null,"urls":null"#,
            r#","x":1,"x":2"#,
            r#","annotations":{"k":"v","k":"v"}"#,
            r#","annotations":{"k":1}"#,
            r#","annotations":{},"annotations":{}"#,
            r#","mediaType":null"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        for bad in ["{}", "[]", "null", r#"{"size":1}"#] {
            assert!(serde_json::from_str::<Descriptor>(bad).is_err(), "{bad}");
        }
    }
}
