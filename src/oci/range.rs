//! Ranges of bytes: `Range` on a pull, `Content-Range` on an upload.

use thiserror::Error;

/// Why a range cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RangeError {
    /// It is not of the form that the specification wants.
    #[error("range {0:?} is malformed")]
    Malformed(String),
    /// It lies outside of the content.
    #[error("range {text:?} lies outside of the {size} bytes")]
    Unsatisfiable {
        /// What was asked for.
        text: String,
        /// The content's length.
        size: u64,
    },
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Digits only: `str::parse` would take a plus sign.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// So many ranges in one header are ignored; more are refused.
const MOST_RANGES: usize = 16;

/// Part of a blob: the first byte and the last one, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub first: u64,
    /// Offset of the last byte.
    pub last: u64,
}

impl ByteRange {
    /// Reads a `Range` header for content of `size` bytes.
    ///
    /// `None` means that the whole content is the right answer: another unit than bytes, or several
    /// ranges at once, which a server may ignore (RFC 9110, 14.2). What cannot be satisfied, a
    /// range that ends before it begins, a number that does not fit 64 bits, and ranges by the
    /// hundred, which nobody asks for in good faith, are an error, which is 416 on the wire.
    pub fn parse(header: &str, size: u64) -> Result<Option<ByteRange>, RangeError> {
        let Some((unit, spec)) = header.split_once('=') else {
            return Err(RangeError::Malformed(clip(header)));
        };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Ok(None);
        }
        let unsatisfiable = || RangeError::Unsatisfiable { text: clip(header), size };
        match spec.split(',').count() {
            1 => {}
            2..=MOST_RANGES => return Ok(None),
            _ => return Err(unsatisfiable()),
        }
        let (first, last) =
            spec.trim().split_once('-').ok_or_else(|| RangeError::Malformed(clip(header)))?;
        match (first, last) {
            ("", suffix) => {
                let length = number(suffix).ok_or_else(unsatisfiable)?.min(size);
                if length == 0 {
                    return Err(unsatisfiable());
                }
                Ok(Some(ByteRange { first: size - length, last: size - 1 }))
            }
            (first, last) => {
                let first = number(first).ok_or_else(unsatisfiable)?;
                let last = if last.is_empty() {
                    u64::MAX
                } else {
                    number(last).ok_or_else(unsatisfiable)?
                };
                if first >= size || last < first {
                    return Err(unsatisfiable());
                }
                Ok(Some(ByteRange { first, last: last.min(size - 1) }))
            }
        }
    }

    /// How many bytes it spans.
    pub fn len(self) -> u64 {
        self.last - self.first + 1
    }

    /// Never: the last byte is included.
    pub fn is_empty(self) -> bool {
        false
    }
}

/// The part of a blob that a PATCH or PUT carries: `Content-Range: <first>-<last>`
/// (distribution specification, "Pushing a blob in chunks"); RFC 9110's `bytes a-b/c` is taken too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// Offset of the first byte.
    pub first: u64,
    /// Offset of the last byte.
    pub last: u64,
}

impl ContentRange {
    /// Parses the header's value.
    pub fn parse(header: &str) -> Result<ContentRange, RangeError> {
        let malformed = || RangeError::Malformed(clip(header));
        let text = header.trim();
        let text =
            text.strip_prefix("bytes ").or_else(|| text.strip_prefix("bytes=")).unwrap_or(text);
        let text = text.split_once('/').map_or(text, |(range, _)| range);
        let (first, last) = text.split_once('-').ok_or_else(malformed)?;
        let first = number(first).ok_or_else(malformed)?;
        let last = number(last).ok_or_else(malformed)?;
        // u64::MAX as the last byte would make a length that does not fit.
        if last < first || last == u64::MAX {
            return Err(malformed());
        }
        Ok(ContentRange { first, last })
    }

    /// How many bytes the body must have.
    pub fn len(self) -> u64 {
        self.last - self.first + 1
    }

    /// Never: the last byte is included.
    pub fn is_empty(self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_of_a_blob() {
        let of = |text: &str| ByteRange::parse(text, 2048);
        assert_eq!(of("bytes=500-1499"), Ok(Some(ByteRange { first: 500, last: 1499 })));
        assert_eq!(of("bytes=500-"), Ok(Some(ByteRange { first: 500, last: 2047 })));
        assert_eq!(of("bytes=-500"), Ok(Some(ByteRange { first: 1548, last: 2047 })));
        assert_eq!(of("bytes=-5000"), Ok(Some(ByteRange { first: 0, last: 2047 })));
        assert_eq!(of("bytes=2000-5000"), Ok(Some(ByteRange { first: 2000, last: 2047 })));
        let largest = "bytes=0-18446744073709551615";
        assert_eq!(of(largest), Ok(Some(ByteRange { first: 0, last: 2047 })));
        for bad in [
            "bytes=-0",
            "bytes=5-2",
            "bytes=5000-",
            "bytes=x-2",
            "bytes=+1-2",
            "bytes=-",
            "bytes=0-18446744073709551616",
            "bytes=18446744073709551616-",
            "bytes=-18446744073709551616",
            &format!("bytes=0-0{}", ",5-6".repeat(MOST_RANGES)),
        ] {
            assert!(matches!(of(bad), Err(RangeError::Unsatisfiable { .. })), "{bad}");
        }
        assert!(matches!(of("bytes"), Err(RangeError::Malformed(_))));
        assert_eq!(of("bytes=0-1,5-6"), Ok(None));
        assert_eq!(of(&format!("bytes=0-0{}", ",5-6".repeat(MOST_RANGES - 1))), Ok(None));
        assert_eq!(of("lines=0-1"), Ok(None));
        assert!(ByteRange::parse("bytes=0-0", 0).is_err());
    }

    #[test]
    fn ranges_of_a_chunk() {
        assert_eq!(ContentRange::parse("0-1023"), Ok(ContentRange { first: 0, last: 1023 }));
        assert_eq!(ContentRange::parse("bytes 5-9/*"), Ok(ContentRange { first: 5, last: 9 }));
        for bad in ["", "5", "5-2", "-5", "0--1", "a-b", "0-18446744073709551615", "1 - 2"] {
            assert!(ContentRange::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_range_stays_within_the_blob(text in "(bytes=)?[0-9x,+-]{0,30}", size in any::<u64>()) {
            if let Ok(Some(range)) = ByteRange::parse(&text, size) {
                prop_assert!(range.first <= range.last && range.last < size);
            }
            let _ = ContentRange::parse(&text).map(ContentRange::len);
        }
    }
}
