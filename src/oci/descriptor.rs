//! Descriptors (image-spec, descriptor.md).

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::Digest;

/// Annotations, in the order of their keys.
pub type Annotations = BTreeMap<String, String>;

/// Names content: its type, digest and size, and what else whoever wrote it chose to say.
///
/// Fields that Stillage does not know are kept and written back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is. Some old tools leave it out of an index's entries.
    #[serde(default)]
    pub media_type: String,
    /// What the content hashes to.
    pub digest: Digest,
    /// The content's length in bytes, at most `i64::MAX`.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// Where else the content lies; a layer with `urls` may be absent here.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub urls: Vec<String>,
    /// Free-form notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "annotations")]
    pub annotations: Annotations,
    /// The type of the artifact that the content is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

/// Go writes an empty list or map as `null`.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Sizes are int64 in the specification: a larger one would be negative in every other tool.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = u64::deserialize(deserializer)?;
    if i64::try_from(size).is_err() {
        return Err(serde::de::Error::custom(format!("size {size} is larger than 2^63-1")));
    }
    Ok(size)
}

/// Annotations in which no key stands twice; `null` is none.
pub(super) fn annotations<'de, D: Deserializer<'de>>(d: D) -> Result<Annotations, D::Error> {
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
                    return Err(serde::de::Error::custom(text));
                }
                found.insert(key, value);
            }
            Ok(found)
        }
    }

    d.deserialize_any(Unique)
}
