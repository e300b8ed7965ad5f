//! Reading JSON from outsiders strictly: one body must have one meaning.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
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
        let mut seen = Seen::default();
        while let Some(Text(key)) = map.next_key()? {
            if let Some(key) = seen.again(key) {
                let shown: String = key.chars().take(80).collect();
                return Err(serde::de::Error::custom(format!("the key {shown:?} stands twice")));
            }
            map.next_value_seed(Unambiguous)?;
        }
        Ok(())
    }
}

/// A string, borrowed where it stands as it is. serde's own `Cow` is always a copy.
pub(super) struct Text<'de>(pub(super) Cow<'de, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowing;

        impl<'de> Visitor<'de> for Borrowing {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }

        deserializer.deserialize_str(Borrowing)
    }
}

/// So many keys are compared one by one.
const FEW: usize = 16;

/// The keys of one object. Almost all have few.
#[derive(Default)]
struct Seen<'de> {
    few: Vec<Cow<'de, str>>,
    many: HashSet<Cow<'de, str>>,
}

impl<'de> Seen<'de> {
    /// Takes a key; gives it back if it was there.
    fn again(&mut self, key: Cow<'de, str>) -> Option<Cow<'de, str>> {
        if self.few.contains(&key) || self.many.contains(&key) {
            return Some(key);
        }
        if self.few.len() < FEW {
            self.few.push(key);
        } else {
            self.many.insert(key);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_twice_among_few_or_many() {
        for (count, again) in [(1, 0), (16, 15), (17, 0), (17, 16), (40, 3), (40, 39)] {
            let keys: Vec<String> = (0..count).map(|n| format!(r#""k{n}":{n}"#)).collect();
            assert!(check(format!("{{{}}}", keys.join(",")).as_bytes()).is_ok(), "{count}");
            let text = format!(r#"{{{},"\u006b{again}":0}}"#, keys.join(","));
            let why = check(text.as_bytes()).unwrap_err().to_string();
            assert!(why.contains("stands twice"), "{count}, {again}: {why}");
        }
    }

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
