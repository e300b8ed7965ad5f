//! Percent-encoding, decoded once and strictly: whoever checks a name and whoever uses it must
//! read the same one.

use std::borrow::Cow;

/// Why a text cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    /// `%` without two hexadecimal digits after it.
    #[error("has a % without two hexadecimal digits after it")]
    Escape,
    /// Decoding leaves something that would decode again.
    #[error("is percent-encoded twice")]
    Twice,
    /// NUL, line feed, DEL and their like.
    #[error("has a control character in it")]
    Control,
    /// Overlong forms and surrogates included.
    #[error("is not UTF-8")]
    Utf8,
}

/// Decodes the path of a request target.
pub(super) fn path(text: &str) -> Result<Cow<'_, str>, EncodingError> {
    let decoded = decode(text)?;
    // No name, tag or digest has a percent sign, so this one could only be meant to be decoded again.
    if decoded.contains('%') {
        return Err(EncodingError::Twice);
    }
    Ok(decoded)
}

/// Decodes the pairs of a query or of a form, where `+` stands for a space.
pub(super) fn form(text: &str) -> Result<Vec<(String, String)>, EncodingError> {
    let decoded = |text: &str| Ok(decode(&text.replace('+', " "))?.into_owned());
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decoded(name)?, decoded(value)?))
        })
        .collect()
}

fn decode(text: &str) -> Result<Cow<'_, str>, EncodingError> {
    let bytes = text.as_bytes();
    // Nearly every text is what it says.
    if bytes.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'%') {
        return Ok(Cow::Borrowed(text));
    }
    let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let mut escapes = bytes.iter().enumerate().filter(|(_, b)| **b == b'%');
    if !escapes.all(|(at, _)| is_hex(at + 1) && is_hex(at + 2)) {
        return Err(EncodingError::Escape);
    }
    let decoded =
        percent_encoding::percent_decode(bytes).decode_utf8().map_err(|_| EncodingError::Utf8)?;
    if decoded.chars().any(char::is_control) {
        return Err(EncodingError::Control);
    }
    Ok(decoded)
}

/// Encodes a value for the query of a URL that we send.
pub(super) fn encode(text: &str) -> String {
    const KEPT: percent_encoding::AsciiSet = percent_encoding::NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'/')
        .remove(b':');
    percent_encoding::utf8_percent_encode(text, &KEPT).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_decoded_once() {
        assert_eq!(path("/v2/privat%65/x").unwrap(), "/v2/private/x");
        assert_eq!(path("/a%2Fb%2fc").unwrap(), "/a/b/c");
        for (bad, why) in [
            ("/%", EncodingError::Escape),
            ("/%1", EncodingError::Escape),
            ("/%zz", EncodingError::Escape),
            ("/%252e", EncodingError::Twice),
            ("/%00", EncodingError::Control),
            ("/a%0d%0ab", EncodingError::Control),
            ("/%7f", EncodingError::Control),
            ("/%c2%85", EncodingError::Control),
            ("/%c0%ae", EncodingError::Utf8),
            ("/%e0%80%af", EncodingError::Utf8),
            ("/%ff", EncodingError::Utf8),
        ] {
            assert_eq!(path(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn forms_have_pairs_and_spaces() {
        let pairs = form("a=1&b=x+y%2Bz&c&&d=%3D").unwrap();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(pairs, [("a", "1"), ("b", "x y+z"), ("c", ""), ("d", "=")]);
        assert_eq!(form("a=%0a"), Err(EncodingError::Control));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_again(text in "[^\\p{Cc}]{0,40}") {
            let pairs = form(&format!("x={}", encode(&text))).unwrap();
            prop_assert_eq!(&pairs[0].1, &text);
        }
    }
}
