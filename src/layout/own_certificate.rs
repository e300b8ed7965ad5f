//! The certificate that the server made for itself, and the certificate's key.

use std::path::PathBuf;

use zeroize::Zeroizing;

use super::dir;
use super::durable;
use super::error::{OrAbsent, Result};
use super::inherit::Purpose;
use super::path;
use super::tree::Tree;

/// Longer files are not what the server wrote.
const MOST: u64 = 64 * 1024;

/// A certificate and its key, both as PEM.
#[derive(Clone, Debug)]
pub struct OwnCertificate {
    /// The certificate, which is no secret.
    pub certificate: Vec<u8>,
    /// The key.
    pub key: Zeroizing<Vec<u8>>,
}

impl OwnCertificate {
    /// The one that was kept, if there is one. The two files need not belong together: a crash may
    /// have come between them.
    pub fn read(tree: &Tree) -> Result<Option<OwnCertificate>> {
        let Some(dir) = tree.room.dir(path::TLS).or_absent()? else {
            return Ok(None);
        };
        let read = |name| {
            let file = dir.file(name).or_absent()?;
            file.map(|file| dir::read_all(&file, MOST, || dir.at(name))).transpose()
        };
        let (certificate, key) = (read(path::TLS_CERTIFICATE)?, read(path::TLS_KEY)?);
        Ok(certificate
            .zip(key)
            .map(|(certificate, key)| OwnCertificate { certificate, key: Zeroizing::new(key) }))
    }

    /// Keeps it, instead of another if there was one. It is on the disk on return.
    pub fn keep(&self, tree: &Tree) -> Result<()> {
        let dir = tree.make_in_room(path::TLS)?;
        durable::replace(&*tree.disk, &dir, path::TLS_KEY, &self.key, Purpose::Lock)?;
        let certificate = path::TLS_CERTIFICATE;
        durable::replace(&*tree.disk, &dir, certificate, &self.certificate, Purpose::Public)?;
        tree.disk.sync_dir(&dir)?;
        tree.disk.sync_dir(&tree.room)
    }

    /// Where the certificate lies once it was kept.
    pub fn path(tree: &Tree) -> PathBuf {
        tree.room.at(&format!("{}/{}", path::TLS, path::TLS_CERTIFICATE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    #[test]
    fn what_was_kept_is_read_and_the_key_is_for_the_server_alone() {
        let temp = tempfile::tempdir().unwrap();
        let tree = Tree::open(temp.path(), Arc::new(crate::layout::RealDisk)).unwrap();
        assert!(OwnCertificate::read(&tree).unwrap().is_none());
        for text in ["one", "two"] {
            let key = Zeroizing::new(text.as_bytes().to_vec());
            OwnCertificate { certificate: b"c".to_vec(), key }.keep(&tree).unwrap();
            let found = OwnCertificate::read(&tree).unwrap().unwrap();
            assert_eq!((&found.certificate[..], &found.key[..]), (&b"c"[..], text.as_bytes()));
        }
        let mode = |name: &str| {
            let path = temp.path().join(".stillage/tls").join(name);
            path.metadata().unwrap().permissions().mode() & 0o7777
        };
        assert_eq!((mode(""), mode("key.pem"), mode("cert.pem")), (0o700, 0o600, 0o644));
        assert_eq!(std::fs::read(OwnCertificate::path(&tree)).unwrap(), b"c");
        std::fs::remove_file(temp.path().join(".stillage/tls/key.pem")).unwrap();
        assert!(OwnCertificate::read(&tree).unwrap().is_none());
    }
}
