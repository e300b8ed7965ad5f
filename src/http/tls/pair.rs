//! A certificate and its key in files of the administrator's: read, and refused where they do not
//! belong together or where the key is no secret.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, fstatfs, fstatvfs};
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error as RustlsError, InconsistentKeys};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{KeyFiles, quoted};

/// A chain of certificates is a few kilobytes; what is larger is another file.
const MOST: u64 = 1024 * 1024;

/// Why a certificate and its key cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file is not there, or may not be read.
    #[error("{path:?} cannot be read{}", hint(.path, .source))]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No certificate in the file.
    #[error(
        "{0:?} holds no certificate: it has to be PEM, with a line -----BEGIN CERTIFICATE----- \
         (`openssl x509 -inform der -in FILE -out NEW` makes that of DER)"
    )]
    NoCertificate(PathBuf),
    /// No key in the file.
    #[error("{0:?} holds no private key: it has to be PEM, PKCS#8, PKCS#1 or SEC1")]
    NoKey(PathBuf),
    /// The key has a passphrase.
    #[error("the key in {path:?} has a passphrase: `openssl pkey -in {} -out NEW` makes a file without", quoted(.path))]
    Passphrase {
        /// Which file.
        path: PathBuf,
    },
    /// Whoever has an account can read the key.
    #[error("every account of this machine can read or write the key in {path:?}: run `chmod o-rwx {}`", quoted(.path))]
    Open {
        /// Which file.
        path: PathBuf,
    },
    /// The key is another certificate's.
    #[error(
        "the key in {:?} is not that of the first certificate in {:?}: compare `openssl x509 -pubkey -noout -in {}` \
         with `openssl pkey -pubout -in {}`",
        .0.key, .0.certificate, quoted(&.0.certificate), quoted(&.0.key)
    )]
    Mismatch(KeyFiles),
    /// The library does not take it.
    #[error("{path:?} cannot be used: {why}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl TlsError {
    pub(super) fn unusable(path: &Path, why: impl ToString) -> TlsError {
        TlsError::Unusable { path: path.to_owned(), why: why.to_string() }
    }
}

fn hint(path: &Path, source: &io::Error) -> String {
    if source.kind() != io::ErrorKind::PermissionDenied {
        return format!(": {source}");
    }
    let uid = rustix::process::geteuid().as_raw();
    format!(
        " by uid {uid}, which runs this server: run `setfacl -m u:{uid}:r {}`, and let it enter the \
         directories above",
        quoted(path)
    )
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp([i64; 2], [u64; 3], [i64; 2]);

impl Stamp {
    /// Of what is at a path now, behind symlinks; `None` if nothing can be found out.
    pub(super) fn of(path: &Path) -> Option<Stamp> {
        let stat = fs::metadata(path).ok()?;
        Some(Stamp(
            [stat.mtime(), stat.mtime_nsec()],
            [stat.dev(), stat.ino(), stat.size()],
            [stat.ctime(), stat.ctime_nsec()],
        ))
    }
}

/// A pair that can be used.
pub(super) struct Loaded {
    pub(super) pair: CertifiedKey,
    /// Others can read the key, and nothing can be done about it.
    pub(super) is_open: bool,
}

/// Reads both files.
pub(super) fn load(files: &KeyFiles) -> Result<Loaded, TlsError> {
    let (_, text) = read(&files.certificate)?;
    let chain = certificates(&text, &files.certificate)?;
    let (file, text) = read(&files.key)?;
    let is_open =
        is_open(&file).map_err(|source| TlsError::Read { path: files.key.clone(), source })?;
    if is_open && !cannot_be_closed(&file) {
        return Err(TlsError::Open { path: files.key.clone() });
    }
    let key = private_key(&text, &files.key)?;
    let pair = CertifiedKey::from_der(chain, key, &ring::default_provider());
    let pair = pair.map_err(|error| match error {
        RustlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::Mismatch(files.clone())
        }
        RustlsError::InvalidCertificate(why) => TlsError::unusable(&files.certificate, why),
        error => TlsError::unusable(&files.key, error),
    })?;
    Ok(Loaded { pair, is_open })
}

fn read(path: &Path) -> Result<(File, Zeroizing<Vec<u8>>), TlsError> {
    let opened = File::open(path).and_then(|file| {
        // With room for all of it: a vector that grows leaves copies behind.
        let size = usize::try_from(file.metadata()?.len().min(MOST)).unwrap_or(0);
        let mut text = Zeroizing::new(Vec::with_capacity(size + 1));
        (&file).take(MOST).read_to_end(&mut text)?;
        Ok((file, text))
    });
    opened.map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// The certificate and those that lead from it to a root.
pub(super) fn certificates(
    text: &[u8],
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(TlsError::NoCertificate(path.to_owned())),
        Err(error) => Err(TlsError::unusable(path, error)),
    }
}

/// The first key in the text.
pub(super) fn private_key(text: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const LOCKED: [&[u8]; 2] = [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];
    if LOCKED.iter().any(|mark| text.windows(mark.len()).any(|window| window == *mark)) {
        return Err(TlsError::Passphrase { path: path.to_owned() });
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey(path.to_owned()),
        error => TlsError::unusable(path, error),
    })
}

/// Whether the permissions let everybody read the file, or write it.
fn is_open(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.mode() & 0o006 != 0)
}

/// Containers are given their secrets on a tmpfs or a read-only mount, with modes that nobody there
/// can change.
fn cannot_be_closed(file: &File) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    let in_memory = fstatfs(file).is_ok_and(|found| matches!(found.f_type, TMPFS | RAMFS));
    let read_only =
        fstatvfs(file).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY));
    in_memory || read_only
}
