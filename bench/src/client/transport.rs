//! The connection below HTTP: TCP, or TLS over it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::net::RecvFlags;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A server that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// So much is dropped at once.
const PIECE: usize = 1 << 20;

/// Where a server is reached.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// Of a server with TLS.
    pub(crate) trust: Option<Trust>,
}

/// Which certificate is believed.
#[derive(Clone)]
pub(crate) struct Trust(Arc<ClientConfig>);

impl Trust {
    pub(crate) fn only(certificate: CertificateDer<'static>) -> Result<Trust> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate)?;
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Trust(Arc::new(config)))
    }
}

pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Transport {
    pub(super) fn connect(target: &Target) -> Result<Transport> {
        let address = target.address;
        let stream = TcpStream::connect(address).with_context(|| format!("connect {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let Some(Trust(config)) = &target.trust else { return Ok(Transport::Plain(stream)) };
        let name = ServerName::IpAddress(address.ip().into());
        let session = ClientConnection::new(Arc::clone(config), name)?;
        Ok(Transport::Tls(Box::new(StreamOwned::new(session, stream))))
    }

    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Transport::Plain(stream) => stream.write_all(bytes),
            Transport::Tls(stream) => {
                stream.write_all(bytes)?;
                stream.flush()
            }
        }
    }

    /// Appends what is there, until `buffer` has `most` bytes; waits for the first one.
    pub(super) fn read_into(&mut self, buffer: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        let old = buffer.len();
        buffer.resize(most, 0);
        let got = match self {
            Transport::Plain(stream) => stream.read(&mut buffer[old..]),
            Transport::Tls(stream) => stream.read(&mut buffer[old..]),
        };
        buffer.truncate(old + *got.as_ref().unwrap_or(&0));
        got
    }

    /// Drops so many bytes. Plain ones are never copied: MSG_TRUNC throws them away in the kernel.
    pub(super) fn discard(&mut self, length: u64) -> Result<()> {
        thread_local! {
            // Never written to by the plain path, so no page of it is ever there.
            static SCRATCH: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; PIECE]);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut left = length;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                let scratch = &mut scratch[..most];
                let got = match self {
                    Transport::Plain(stream) => {
                        let flags = RecvFlags::TRUNC | RecvFlags::WAITALL;
                        rustix::net::recv(&*stream, scratch, flags)?.1
                    }
                    Transport::Tls(stream) => stream.read(scratch)?,
                };
                anyhow::ensure!(got > 0, "the server closed the connection {left} bytes too early");
                left -= got as u64;
            }
            Ok(())
        })
    }
}
