//! A user's name and password as a client sent them, and what is refused before anyone looks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::pam::{MAX_PASSWORD, MAX_USER};

/// A pair out of `Authorization: Basic`; the password is wiped when dropped.
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: Zeroizing<Vec<u8>>,
}

/// Whether PAM may see this pair. Control characters confuse modules and logs, a NUL cannot be
/// represented, and longer values are cut or refused in ways that differ between modules.
pub(super) fn acceptable(user: &str, password: &[u8]) -> bool {
    !user.is_empty()
        && user.len() <= MAX_USER
        && !user.chars().any(char::is_control)
        && password.len() <= MAX_PASSWORD
        && !password.iter().any(u8::is_ascii_control)
}

/// Decodes what follows `Basic `. The error is for the client.
pub(super) fn parse_basic(encoded: &[u8]) -> Result<Credentials, &'static str> {
    // Far above both limits together: what is longer is refused without being decoded.
    const MAX_ENCODED: usize = 4096;
    const MALFORMED: &str = "the Basic credentials are not base64 of user:password";
    if encoded.len() > MAX_ENCODED {
        return Err("the Basic credentials are too long");
    }
    let mut decoded = Zeroizing::new(vec![0; encoded.len()]);
    let length = STANDARD.decode_slice(encoded, &mut decoded).map_err(|_| MALFORMED)?;
    let pair = decoded.get(..length).ok_or(MALFORMED)?;
    let colon = pair.iter().position(|byte| *byte == b':').ok_or(MALFORMED)?;
    let (user, password) = (&pair[..colon], &pair[colon + 1..]);
    let user = std::str::from_utf8(user).map_err(|_| "the user name is not UTF-8")?;
    Ok(Credentials { user: user.to_owned(), password: Zeroizing::new(password.to_vec()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_lengths_are_refused() {
        let (user, password) = ("u".repeat(255), vec![b'p'; 511]);
        assert!(acceptable(&user, &password));
        assert!(acceptable("ännä", "gehe:im ß".as_bytes()));
        assert!(acceptable("anna", b""));
        assert!(!acceptable(&"u".repeat(256), b"x"));
        assert!(!acceptable("anna", &[b'p'; 512]));
        for bad in ["", "an\0na", "an\nna", "\u{1b}[31m", "an\u{85}na", "anna\u{7f}"] {
            assert!(!acceptable(bad, b"x"), "{bad:?}");
        }
        for bad in [&b"p\0w"[..], b"pw\n", b"\x7f", b"\r"] {
            assert!(!acceptable("anna", bad), "{bad:?}");
        }
    }

    #[test]
    fn basic_is_split_at_its_first_colon() {
        let pair = parse_basic(STANDARD.encode("anna:a:b").as_bytes()).expect("good");
        assert_eq!((pair.user.as_str(), pair.password.as_slice()), ("anna", &b"a:b"[..]));
        let empty = parse_basic(b"Og==").expect("what podman sends when it has nothing");
        assert_eq!((empty.user.as_str(), empty.password.as_slice()), ("", &b""[..]));
    }

    #[test]
    fn basic_that_does_not_decode_is_refused() {
        let latin1 = STANDARD.encode(b"\xe4nna:x");
        let long = STANDARD.encode([b'x'; 4000]);
        for bad in ["", "Og", "????", "YW5uYQ==", "Og== ", &latin1, &long] {
            assert!(parse_basic(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
