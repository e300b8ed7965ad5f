//! A certificate that the server makes for itself: for a first evening, before there is a real one.
//!
//! It is no certificate authority, so whoever trusts it trusts this server under these names and
//! nothing else.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{Tls, TlsError, pair, quoted};
use crate::layout::OwnCertificate;
use crate::registry::{self, Registry};

/// As long as clients accept at most.
const VALID: time::Duration = time::Duration::days(825);

/// Clocks differ, and somebody has to copy the new one in time.
const BEFORE_END: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why there is no certificate of our own.
#[derive(Debug, Error)]
pub enum OwnError {
    /// It cannot be read or kept.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// It cannot be made.
    #[error("no certificate could be made")]
    Made(#[from] rcgen::Error),
    /// What was made cannot be used.
    #[error("the certificate that was made cannot be used: {0}")]
    Unusable(String),
}

/// A certificate that the server made.
#[derive(Debug)]
pub struct Own {
    /// For the listener.
    pub tls: Tls,
    /// Where the certificate lies.
    pub path: PathBuf,
}

impl Own {
    /// The certificate in the tree, made anew when it is missing, ends soon, or lacks a name under
    /// which clients reach a server that listens at `address`.
    pub fn of(registry: &Registry, address: IpAddr) -> Result<Own, OwnError> {
        let names = names(address);
        let kept = registry.own_certificate()?.as_ref().and_then(|kept| usable(kept, &names).ok());
        let pair = match kept {
            Some(pair) => pair,
            None => {
                let made = make(&names)?;
                registry.keep_certificate(&made)?;
                usable(&made, &names).map_err(OwnError::Unusable)?
            }
        };
        let tls = Tls::from_pair(pair).map_err(|error| OwnError::Unusable(error.to_string()))?;
        Ok(Own { tls, path: registry.own_certificate_path() })
    }

    /// The lines that make podman and docker on this machine trust a server that listens there.
    pub fn how_to_trust(&self, address: SocketAddr) -> String {
        let here = address.ip().to_canonical().is_loopback();
        let name = host_name().filter(|_| !here).unwrap_or_else(|| "localhost".to_owned());
        let host = format!("{name}:{}", address.port());
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let sudo = if rustix::process::geteuid().is_root() { "" } else { "sudo " };
        let line = |tool: &str| {
            let to = format!("/etc/{tool}/certs.d/{host}/ca.crt");
            format!("    {sudo}install -D -m 644 {} {}\n", quoted(&path), quoted(Path::new(&to)))
        };
        format!(
            "stillage: the certificate is self-signed; this lets podman and docker trust it:\n{}{}",
            line("containers"),
            line("docker")
        )
    }
}

/// This machine's name, in lower case, if it can be one of a certificate.
fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_ascii_lowercase();
    matches!(ServerName::try_from(name.as_str()), Ok(ServerName::DnsName(_))).then_some(name)
}

fn names(address: IpAddr) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let own = (!address.is_unspecified()).then(|| address.to_canonical().to_string());
    for name in host_name().into_iter().chain(own) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn make(names: &[String]) -> Result<OwnCertificate, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "stillage, self-signed");
    params.distinguished_name = subject;
    params.is_ca = IsCa::ExplicitNoCa;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::DAY;
    params.not_after = params.not_before + VALID;
    let certificate = params.self_signed(&key)?.pem().into_bytes();
    Ok(OwnCertificate { certificate, key: Zeroizing::new(key.serialize_pem().into_bytes()) })
}

/// The pair, if a client that trusts it would accept it under all these names for some time yet.
fn usable(own: &OwnCertificate, names: &[String]) -> Result<CertifiedKey, String> {
    let nowhere = Path::new("");
    let text = |error: TlsError| error.to_string();
    let chain = pair::certificates(&own.certificate, nowhere).map_err(text)?;
    let key = pair::private_key(&own.key, nowhere).map_err(text)?;
    let text = |error: rustls::Error| error.to_string();
    let provider = ring::default_provider();
    let pair = CertifiedKey::from_der(chain, key, &provider).map_err(text)?;
    let certificate = pair.end_entity_cert().map_err(text)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).map_err(text)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider));
    let verifier = verifier.build().map_err(|error| error.to_string())?;
    let now = UnixTime::now();
    let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + BEFORE_END);
    for name in names {
        let name = ServerName::try_from(name.as_str()).map_err(|error| error.to_string())?;
        for time in [now, later] {
            verifier.verify_server_cert(certificate, &[], &name, &[], time).map_err(text)?;
        }
    }
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_used_while_it_is_valid_for_all_names() {
        let all = names("192.0.2.7".parse().unwrap());
        assert!(all.contains(&"192.0.2.7".to_owned()) && all.contains(&"::1".to_owned()));
        let made = make(&all).unwrap();
        usable(&made, &all).unwrap();
        usable(&made, &names("::".parse().unwrap())).unwrap();
        let other = names("192.0.2.8".parse().unwrap());
        assert!(usable(&made, &other).is_err());
        let mixed = OwnCertificate { key: make(&all).unwrap().key, ..made.clone() };
        assert!(usable(&mixed, &all).is_err());
        let torn = OwnCertificate { certificate: made.certificate[..99].to_vec(), ..made };
        assert!(usable(&torn, &all).is_err());
    }
}
