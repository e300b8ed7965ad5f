//! TLS on the listener: which certificate is shown, and a renewed one without a restart.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

mod own;
mod pair;

pub use own::{Own, OwnError};
use pair::Stamp;
pub use pair::TlsError;

/// Where a certificate and its key lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFiles {
    /// The certificate, with those between it and a root.
    pub certificate: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
}

/// What a listener needs to speak TLS. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    inner: Arc<Inner>,
}

struct Inner {
    /// None for a certificate that nobody else renews.
    files: Option<KeyFiles>,
    current: Mutex<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    /// The files when they were last read, with or without success.
    seen: Seen,
}

type Seen = [Option<Stamp>; 2];

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.inner.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads a pair, which is read again whenever one of the files has changed.
    ///
    /// # Errors
    /// A pair that does not match and a key that everybody can read are refused, saying what to do.
    pub fn from_files(files: KeyFiles) -> Result<Tls, TlsError> {
        let seen = look(&files);
        let loaded = pair::load(&files)?;
        let (certificate, key) = (&files.certificate, &files.key);
        if loaded.is_open {
            tracing::warn!(
                ?key,
                "every account of this machine can read the key of the TLS certificate"
            );
        }
        let config = config(loaded.pair).map_err(|why| TlsError::unusable(certificate, why))?;
        Ok(Tls::with(config, Some(files), seen))
    }

    /// Shows this pair for as long as the server runs.
    fn from_pair(pair: CertifiedKey) -> Result<Tls, rustls::Error> {
        Ok(Tls::with(config(pair)?, None, [None, None]))
    }

    fn with(config: Arc<ServerConfig>, files: Option<KeyFiles>, seen: Seen) -> Tls {
        Tls { inner: Arc::new(Inner { files, current: Mutex::new(Current { config, seen }) }) }
    }

    /// The pair for the next handshake. Two looks at the file system, where it may block.
    pub(super) async fn current(&self) -> Arc<ServerConfig> {
        let inner = Arc::clone(&self.inner);
        let fresh = tokio::task::spawn_blocking(move || inner.fresh()).await;
        // It does not panic; the pair that was shown so far would be right even so.
        fresh.unwrap_or_else(|_| Arc::clone(&self.inner.locked().config))
    }
}

impl Inner {
    fn locked(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pair that the files hold. One that cannot be used, such as a certificate without its
    /// key yet, leaves the old one in use and is not tried again until a file changes.
    fn fresh(&self) -> Arc<ServerConfig> {
        let mut current = self.locked();
        let Some(files) = &self.files else {
            return Arc::clone(&current.config);
        };
        let seen = look(files);
        if seen != current.seen {
            current.seen = seen;
            match reload(files) {
                Ok(config) => {
                    tracing::info!(certificate = ?files.certificate, "a renewed certificate is in use");
                    current.config = config;
                }
                Err(error) => tracing::warn!(
                    error = ?error.to_string(),
                    "a changed certificate is not used: the old one stays in use"
                ),
            }
        }
        Arc::clone(&current.config)
    }
}

fn look(files: &KeyFiles) -> Seen {
    [Stamp::of(&files.certificate), Stamp::of(&files.key)]
}

fn reload(files: &KeyFiles) -> Result<Arc<ServerConfig>, TlsError> {
    config(pair::load(files)?.pair).map_err(|why| TlsError::unusable(&files.certificate, why))
}

/// HTTP/2 is offered before HTTP/1.1: the client chooses (RFC 7301).
fn config(pair: CertifiedKey) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// How TLS names HTTP/2.
pub(super) const HTTP2: &[u8] = b"h2";

/// A path between single quotes, for a line that is to be copied into a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A pair for a name, written over the files.
    fn write(files: &KeyFiles, name: &str) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        fs::write(&files.certificate, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        certificate.der().to_vec()
    }

    fn files(dir: &Path) -> KeyFiles {
        KeyFiles { certificate: dir.join("cert.pem"), key: dir.join("key.pem") }
    }

    fn closed(files: &KeyFiles) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o640)).unwrap();
    }

    #[test]
    fn a_renewed_pair_is_taken_once_it_is_whole() {
        let temp = tempfile::tempdir().unwrap();
        let files = files(temp.path());
        write(&files, "one");
        closed(&files);
        let tls = Tls::from_files(files.clone()).unwrap();
        let first = tls.inner.fresh();
        assert!(Arc::ptr_eq(&first, &tls.inner.fresh()));
        // The key of a pair whose certificate has not come yet.
        let old = fs::read(&files.certificate).unwrap();
        write(&files, "two");
        let new = fs::read(&files.certificate).unwrap();
        fs::write(&files.certificate, old).unwrap();
        assert!(Arc::ptr_eq(&first, &tls.inner.fresh()));
        fs::write(&files.certificate, new).unwrap();
        let second = tls.inner.fresh();
        assert!(!Arc::ptr_eq(&first, &second));
        fs::remove_file(&files.key).unwrap();
        assert!(Arc::ptr_eq(&second, &tls.inner.fresh()));
    }

    #[test]
    fn paths_are_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("/etc/a-b_c.pem")), "/etc/a-b_c.pem");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
