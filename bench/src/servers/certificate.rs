//! A certificate for 127.0.0.1, the same for every server with TLS.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{CertifiedKey, generate_simple_self_signed};

use crate::client::Trust;

/// Files of a certificate and its key (ECDSA, P-256), and who believes it.
pub(crate) struct Certificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) trust: Trust,
}

impl Certificate {
    pub(crate) fn make(room: &Path) -> Result<Certificate> {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let (certificate, key) = (room.join("cert.pem"), room.join("key.pem"));
        std::fs::write(&certificate, cert.pem())?;
        std::fs::write(&key, signing_key.serialize_pem())?;
        let mode: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&key, mode)?;
        Ok(Certificate { certificate, key, trust: Trust::only(cert.der().clone())? })
    }
}
