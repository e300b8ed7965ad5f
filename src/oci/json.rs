//! Reading JSON from outsiders strictly: one body must have one meaning.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use thiserror::Error;

/// What is wrong with a JSON text.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct StrictJsonError(#[from] serde_json::Error);

/// Refuses what is not JSON, what nests deeper than 128 levels, and objects that name a key
/// twice: of two values for one key, two readers may believe different ones.
pub(super) fn check(bytes: &[u8]) -> Result<(), StrictJsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Unambiguous.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(())
}

struct Unambiguous;

impl<'de> DeserializeSeed<'de> for Unambiguous {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Unambiguous)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                let shown: String = key.chars().take(80).collect();
                return Err(serde::de::Error::custom(format!("the key {shown:?} stands twice")));
            }
            seen.insert(key);
            map.next_value_seed(Unambiguous)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_deep_and_broken_texts_are_refused() {
        assert!(check(br#"{"a":[1,{"b":null}],"c":1e3}"#).is_ok());
        for bad in [r#"{"a":1,"a":2}"#, r#"[{"x":{"k":1,"k":1}}]"#, "{} {}", "", "{", "nul"] {
            assert!(check(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = "[".repeat(100_000);
        assert!(check(deep.as_bytes()).is_err());
    }
}
