//! Doors for the fuzz targets (`fuzz/`): what reads a client's bytes before anything else does, and
//! is nobody's business otherwise.

use std::net::IpAddr;

use http::{HeaderMap, Request};

use super::audit::RequestId;
use super::framing::Framing;
use super::origin::{Network, Origin};
use super::{Settings, encoding};

/// Which bytes of a connection pass, and what is wrong with those after them.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// So many of all the bytes.
    pub bytes: usize,
    /// In words of its own.
    pub violation: Option<String>,
}

/// Reads a connection's bytes as they come, piece by piece.
pub fn framing<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Passed {
    let mut framing = Framing::default();
    let (mut held, mut bytes) = (Vec::new(), 0);
    for piece in pieces {
        held.extend_from_slice(piece);
        let look = framing.look(&held);
        bytes += look.passed;
        held.drain(..look.passed);
        if let Some(violation) = look.violation {
            return Passed { bytes, violation: Some(format!("{violation:?}")) };
        }
    }
    Passed { bytes, violation: None }
}

/// The client's address and the beginning of a challenge's realm, from a request's headers and the
/// proxies that are believed; `None` where the request is refused.
pub fn origin(
    headers: HeaderMap,
    peer: IpAddr,
    trusted: Vec<Network>,
) -> Option<(IpAddr, Option<String>)> {
    let settings = Settings { trusted_proxies: trusted, ..Settings::default() };
    let mut request = Request::new(()).into_parts().0;
    request.headers = headers;
    let origin = Origin::of(&request, &RequestId::next(), peer, &settings).ok()?;
    Some((origin.client, origin.base().ok().map(str::to_owned)))
}

/// A value as it stands in the links that we send.
pub fn encode(text: &str) -> String {
    encoding::encode(text)
}
