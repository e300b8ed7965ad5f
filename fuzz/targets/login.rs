//! Who clients say they are, and what they ask for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use stillage::auth::{self, Resource, fuzz};
use stillage::oci::RepoName;

/// The value of `Authorization`.
pub(crate) fn authorization(data: &[u8]) {
    let (scheme, rest) = fuzz::scheme(data);
    assert!(!scheme.contains(&b' ') && scheme.len() + rest.len() <= data.len());
    for encoded in [rest, data] {
        let Ok((user, password, shown)) = fuzz::basic(encoded) else { continue };
        assert!(!user.contains(':'));
        if shown {
            assert!(!user.is_empty() && !user.chars().any(char::is_control));
            assert!(!password.iter().any(u8::is_ascii_control));
        }
        // It is read in one way only: no two headers are the same pair by accident.
        let pair = [user.as_bytes(), b":", &password].concat();
        let header = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pair);
        assert_eq!(header.as_bytes(), encoded);
    }
}

/// A token as anybody may write it, and claims as only our key signs them.
pub(crate) fn token(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(believed) = fuzz::verify(&text) {
        panic!("a token was forged: {believed:?}");
    }
    let signed = fuzz::sign(data);
    let Ok(believed) = fuzz::verify(&signed) else { return };
    assert_eq!(believed.service, fuzz::SERVICE);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let skew = Duration::from_secs(90);
    let (from, to) = believed.times;
    assert!(from <= (now + skew).as_secs() && (now - skew).as_secs() <= to);
    for access in &believed.access {
        if let Resource::Repository(name) = &access.resource {
            assert!(RepoName::parse(name.as_str()).is_ok());
        }
    }
    // One letter elsewhere, and it is nobody's.
    let at = data.len() % (signed.len() - 44);
    let mut other = signed.into_bytes();
    other[at] = if other[at] == b'A' { b'B' } else { b'A' };
    assert!(fuzz::verify(&String::from_utf8_lossy(&other)).is_err());
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
