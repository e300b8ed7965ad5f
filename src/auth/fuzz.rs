//! Doors for the fuzz targets (`fuzz/`): what is made of the `Authorization` header before anybody
//! is believed. They sign with a key that everybody can read here; no server has it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::scope::Access;
use super::token::{self, Claims, Signer, TokenError};
use super::{credentials, split_scheme};

/// The service that tokens are for here.
pub const SERVICE: &str = "fuzz";

const KEY: [u8; 32] = [7; 32];

/// The scheme of a header and what follows it.
pub fn scheme(header: &[u8]) -> (&[u8], &[u8]) {
    split_scheme(header)
}

/// User and password of `Basic`, and whether PAM would be shown them.
pub fn basic(encoded: &[u8]) -> Result<(String, Vec<u8>, bool), &'static str> {
    let pair = credentials::parse_basic(encoded)?;
    let shown = credentials::acceptable(&pair.user, &pair.password);
    Ok((pair.user, pair.password.to_vec(), shown))
}

/// What a token says that is believed at the present time.
#[derive(Debug, PartialEq, Eq)]
pub struct Believed {
    /// Whom it names.
    pub user: Option<String>,
    /// The service that it is for.
    pub service: String,
    /// From when to when it is good.
    pub times: (u64, u64),
    /// What was granted.
    pub access: Vec<Access>,
}

/// Checks a token.
pub fn verify(token: &str) -> Result<Believed, TokenError> {
    let signer = Signer::new(std::sync::Arc::new(KEY), SERVICE);
    let Claims { sub, aud, nbf, iat, exp, access, .. } = signer.verify(token)?;
    Ok(Believed { user: sub, service: aud, times: (nbf.max(iat), exp), access })
}

/// A token with our header and any claims at all, rightly signed.
pub fn sign(claims: &[u8]) -> String {
    let signed = format!("{}.{}", token::HEADER, URL_SAFE_NO_PAD.encode(claims));
    let signature = token::signature(&KEY, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
