//! The keys that sign tokens: from the registry's files to whoever signs.

use std::sync::Arc;

use crate::auth::{KeySource, KeysError, Need, SigningKey, SigningKeys};
use crate::registry::{Key, KeyNeed, Registry};

/// The keys of a registry's tree.
pub fn token_keys(registry: &Registry) -> Arc<dyn KeySource> {
    Arc::new(OfTree(registry.clone()))
}

struct OfTree(Registry);

impl KeySource for OfTree {
    fn keys(&self, need: Need) -> Result<SigningKeys, KeysError> {
        let need = match need {
            Need::Sign => KeyNeed::Sign,
            Need::Verify => KeyNeed::Verify,
            Need::Unknown => KeyNeed::Unknown,
        };
        let keys = self.0.token_keys(need).map_err(|error| KeysError(error.to_string()))?;
        let of = |key: &Key| SigningKey { secret: key.secret.clone(), made: key.made };
        Ok(SigningKeys { current: of(&keys.current), previous: keys.previous.as_ref().map(of) })
    }
}
