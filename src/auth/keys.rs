//! The keys that sign tokens, as they are handed in: this room reads no files.

use std::time::SystemTime;

use thiserror::Error;
use zeroize::Zeroizing;

/// A key and when it became the one that signs.
#[derive(Clone)]
pub struct SigningKey {
    /// Whoever knows it can be anybody.
    pub secret: Zeroizing<[u8; 32]>,
    /// When it was made.
    pub made: SystemTime,
}

/// The keys of one moment.
#[derive(Clone)]
pub struct SigningKeys {
    /// The key that signs.
    pub current: SigningKey,
    /// The one before, whose tokens stay good for their life.
    pub previous: Option<SigningKey>,
}

/// What keys are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To sign a token: the current key may be replaced first if it is old.
    Sign,
    /// To check a token.
    Verify,
    /// To check a token that none of the keys signed, as far as is known: look again.
    Unknown,
}

/// The keys cannot be had.
#[derive(Debug, Error)]
#[error("no key to sign tokens: {0}")]
pub struct KeysError(pub String);

/// Where keys come from. Asked for every token, so that a key that another server of the same tree
/// made counts at once.
pub trait KeySource: Send + Sync {
    /// The keys as they are now.
    fn keys(&self, need: Need) -> Result<SigningKeys, KeysError>;
}

/// One key for good.
impl KeySource for [u8; 32] {
    fn keys(&self, _: Need) -> Result<SigningKeys, KeysError> {
        let current = SigningKey { secret: Zeroizing::new(*self), made: SystemTime::UNIX_EPOCH };
        Ok(SigningKeys { current, previous: None })
    }
}
