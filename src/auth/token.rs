//! Signed short-lived tokens: who someone is, and what they asked for and may do.
//!
//! Shaped as JSON Web Tokens (RFC 7519) because clients show and some parse them, but with one
//! header for all, compared byte for byte: there is no algorithm to choose, no key to name and
//! nothing to fetch. Signed with HMAC-SHA256. Keys change now and then: which of the two that count
//! signed a token is tried, never told by the token.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use super::keys::{KeySource, KeysError, Need, SigningKey, SigningKeys};
use super::scope::Access;

/// How long a token is good. Clients raise anything below 60 s to 60 s.
pub const LIFETIME: Duration = Duration::from_secs(300);
/// How far the clocks of several servers of one tree may be apart.
pub(super) const SKEW: Duration = Duration::from_secs(60);
/// How long after a change of keys the key before is believed: as long as the last token that it
/// signed, with room for clocks that are apart both where it was signed and where it is checked.
pub(super) const OVERLAP: Duration = Duration::from_secs(LIFETIME.as_secs() + 2 * SKEW.as_secs());
/// Signatures that no key made have the keys read again at most so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The longest token read, in bytes; room for [`MAX_SCOPES`](super::scope::MAX_SCOPES) names.
pub(super) const MAX_TOKEN: usize = 16 << 10;

/// base64url of `{"typ":"JWT","alg":"HS256"}`.
pub(super) const HEADER: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9";

/// A token for a client, with what `/token` says about it.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The token itself.
    pub token: String,
    /// Seconds from `issued_at` until it expires.
    pub expires_in: u64,
    /// When it was signed, in whole seconds.
    pub issued_at: SystemTime,
    /// What it was issued for: of what was asked, as much as the permissions allow.
    pub access: Vec<Access>,
}

/// What a token says. Only [`Signer::verify`] gives one that may be believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    /// The user; absent for an anonymous token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sub: Option<String>,
    /// The service that it is for.
    pub(super) aud: String,
    /// Seconds since 1970 from which on it is good.
    pub(super) nbf: u64,
    /// When it was signed.
    pub(super) iat: u64,
    /// When it ends.
    pub(super) exp: u64,
    /// Its own name, random.
    pub(super) jti: String,
    /// What was granted.
    pub(super) access: Vec<Access>,
}

/// Why a token is not believed. For the log; the client hears `invalid_token`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Longer than any that is issued.
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    Long,
    /// Not three parts of base64url, or the claims cannot be read.
    #[error("the token is malformed")]
    Malformed,
    /// The header is not the one that all our tokens have.
    #[error("the token's header is not ours")]
    Header,
    /// Signed with another key, or changed.
    #[error("the token's signature is wrong")]
    Signature,
    /// For another service.
    #[error("the token is for another service")]
    Audience,
    /// Past its end.
    #[error("the token has expired")]
    Expired,
    /// Not good yet.
    #[error("the token is not valid yet")]
    Early,
    /// The user is not there any more, or may not log in.
    #[error("the token's user is not there any more")]
    Subject,
    /// It cannot be checked: there are no keys to be had.
    #[error("the token cannot be checked")]
    NoKeys,
}

/// Why no token can be signed.
#[derive(Debug, Error)]
pub(super) enum IssueError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl From<getrandom::Error> for IssueError {
    fn from(error: getrandom::Error) -> IssueError {
        IssueError::Random(error.into())
    }
}

/// No random bytes could be had from the system.
#[derive(Debug, Error)]
#[error("the system gives no random bytes: {0}")]
pub struct RandomError(#[from] getrandom::Error);

/// Issues and checks the tokens of one service.
pub(super) struct Signer {
    keys: Arc<dyn KeySource>,
    service: String,
    /// When keys were last read again for an unknown signature.
    again: Mutex<Option<Instant>>,
}

impl Signer {
    /// A signer for tokens whose audience is `service`.
    pub(super) fn new(keys: Arc<dyn KeySource>, service: &str) -> Signer {
        Signer { keys, service: service.to_owned(), again: Mutex::default() }
    }

    /// Signs a token that is good from now for [`LIFETIME`]; `user` is `None` for anonymous.
    pub(super) fn issue(
        &self,
        user: Option<&str>,
        access: Vec<Access>,
    ) -> Result<Issued, IssueError> {
        self.issue_at(SystemTime::now(), user, access)
    }

    fn issue_at(
        &self,
        now: SystemTime,
        user: Option<&str>,
        access: Vec<Access>,
    ) -> Result<Issued, IssueError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        let issued = seconds(now);
        let claims = Claims {
            sub: user.map(str::to_owned),
            aud: self.service.clone(),
            nbf: issued,
            iat: issued,
            exp: issued + LIFETIME.as_secs(),
            jti: URL_SAFE_NO_PAD.encode(id),
            access,
        };
        let key = self.keys.keys(Need::Sign)?.current;
        Ok(Issued {
            token: sign(&key, HEADER, &claims),
            expires_in: LIFETIME.as_secs(),
            issued_at: UNIX_EPOCH + Duration::from_secs(issued),
            access: claims.access,
        })
    }

    /// Checks length, header, signature, audience and times, in this order: nothing of the claims
    /// is read before the signature is known to be good.
    pub(super) fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        self.verify_at(SystemTime::now(), token)
    }

    fn verify_at(&self, now: SystemTime, token: &str) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Long);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, body) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        if header != HEADER {
            return Err(TokenError::Header);
        }
        let signature = decode(signature)?;
        self.is_signed(now, signed.as_bytes(), &signature)?;
        let claims: Claims =
            serde_json::from_slice(&decode(body)?).map_err(|_| TokenError::Malformed)?;
        self.believe(now, claims)
    }

    fn is_signed(&self, now: SystemTime, signed: &[u8], by: &[u8]) -> Result<(), TokenError> {
        let ask = |need| {
            self.keys.keys(need).map_err(|error| {
                tracing::error!("cannot check a token: {error}");
                TokenError::NoKeys
            })
        };
        if has_signed(&ask(Need::Verify)?, now, signed, by)
            || (self.may_look_again() && has_signed(&ask(Need::Unknown)?, now, signed, by))
        {
            return Ok(());
        }
        Err(TokenError::Signature)
    }

    /// Anybody can send bad signatures: they must not keep a disk busy.
    fn may_look_again(&self) -> bool {
        let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let may = again.is_none_or(|last| now.duration_since(last) >= LOOK_AGAIN);
        if may {
            *again = Some(now);
        }
        may
    }

    fn believe(&self, now: SystemTime, claims: Claims) -> Result<Claims, TokenError> {
        let (now, skew) = (seconds(now), SKEW.as_secs());
        if claims.aud != self.service {
            return Err(TokenError::Audience);
        }
        if claims.exp.saturating_add(skew) <= now {
            return Err(TokenError::Expired);
        }
        if claims.nbf.max(claims.iat) > now.saturating_add(skew) {
            return Err(TokenError::Early);
        }
        Ok(claims)
    }
}

fn sign(key: &SigningKey, header: &str, claims: &Claims) -> String {
    // Strings, numbers and lists: serde_json has nothing to refuse in them.
    let body = serde_json::to_vec(claims).unwrap_or_default();
    let mut token = format!("{header}.{}", URL_SAFE_NO_PAD.encode(body));
    let signature = mac(key, token.as_bytes()).finalize().into_bytes();
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}

fn mac(key: &SigningKey, signed: &[u8]) -> Hmac<Sha256> {
    let mut mac = keyed(&key.secret);
    mac.update(signed);
    mac
}

/// Whether the current key signed this, or the one before if its last tokens may still live.
fn has_signed(keys: &SigningKeys, now: SystemTime, signed: &[u8], by: &[u8]) -> bool {
    let ended = |age: Duration| age >= OVERLAP;
    let over = now.duration_since(keys.current.made).is_ok_and(ended);
    let previous = keys.previous.as_ref().filter(|_| !over);
    // `verify_slice` compares in constant time.
    let mut both = std::iter::once(&keys.current).chain(previous);
    both.any(|key| mac(key, signed).verify_slice(by).is_ok())
}

/// What a key makes of signed bytes.
pub(super) fn signature(secret: &[u8; 32], signed: &[u8]) -> [u8; 32] {
    let mut mac = keyed(secret);
    mac.update(signed);
    mac.finalize().into_bytes().into()
}

/// HMAC-SHA256 with a key of 32 bytes.
pub(super) fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    // A key of at most one block is only padded: `new` is what `new_from_slice` does for it, and
    // cannot fail.
    let mut block = Zeroizing::new([0; 64]);
    block[..32].copy_from_slice(key);
    Hmac::new((&*block).into())
}

/// Strict: no padding, no other alphabet, no stray bits.
fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
