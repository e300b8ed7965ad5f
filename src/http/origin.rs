//! Where a request came from and how its sender reaches us, through proxies or not.
//!
//! Headers with which proxies say so are believed only from those named by `--trusted-proxy`;
//! anybody else could forge an address for the limits on guessing, or a realm to which a client
//! would send its password.

use std::net::IpAddr;
use std::str::FromStr;

use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Version};

use super::Settings;
use super::audit::RequestId;
use super::errors::Refusal;

/// A range of addresses: `10.0.0.0/8`, or one address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether the address lies in it. IPv4 addresses in IPv6 clothes count as IPv4.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let differing = u32::from(base) ^ u32::from(address);
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let differing = u128::from(base) ^ u128::from(address);
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let wrong = || format!("{text:?} is no range of addresses: write 10.0.0.0/8 or 10.1.2.3");
        let (base, prefix) = match text.split_once('/') {
            Some((base, prefix)) => (base, Some(prefix)),
            None => (text, None),
        };
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let longest = if base.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(text) => text.parse().map_err(|_| wrong())?,
            None => longest,
        };
        if prefix > longest {
            return Err(wrong());
        }
        Ok(Network { base, prefix })
    }
}

/// The URL under which clients reach us: scheme and host, no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl(String);

impl BaseUrl {
    /// The text, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<BaseUrl, String> {
        let wrong =
            || format!("{text:?} is no URL of a registry: write https://host or https://host:port");
        let plain = text.strip_suffix('/').unwrap_or(text);
        let (scheme, host) = plain.split_once("://").ok_or_else(wrong)?;
        if !matches!(scheme, "http" | "https") || !is_host(host) {
            return Err(wrong());
        }
        Ok(BaseUrl(plain.to_owned()))
    }
}

/// Where a request came from.
#[derive(Debug)]
pub(super) struct Origin {
    /// The client's address, as far as it can be known.
    pub(super) client: IpAddr,
    /// The request's own name.
    pub(super) request: RequestId,
    /// A trusted proxy passed it on, and said so.
    pub(super) by_proxy: bool,
    /// `Host`, or the host of an absolute request target.
    pub(super) host: Option<String>,
    /// How the client reaches us; an error where an untrusted peer says that it is a proxy.
    base: Result<String, Refusal>,
}

impl Origin {
    /// Scheme and host as the client sees them: the beginning of a challenge's realm.
    pub(super) fn base(&self) -> Result<&str, Refusal> {
        self.base.as_deref().map_err(Refusal::clone)
    }

    /// Reads a request's headers. A `Host` that is missing, doubled or malformed is an error.
    pub(super) fn of(
        request: &Parts,
        id: &RequestId,
        peer: IpAddr,
        settings: &Settings,
    ) -> Result<Origin, Refusal> {
        let (external, trusted) = (settings.external_url.as_ref(), &settings.trusted_proxies);
        let scheme = if settings.tls.is_some() { "https" } else { "http" };
        let host = host(request)?;
        let hops = if trusted.iter().any(|network| network.contains(peer)) {
            Some(Hops::read(&request.headers)?)
        } else {
            None
        };
        let client = hops.as_ref().map_or(peer, |hops| hops.client(peer, trusted));
        let base = match (external, &hops) {
            (Some(url), _) => Ok(url.as_str().to_owned()),
            (None, Some(hops)) => hops.base(trusted, scheme, host.as_deref()),
            (None, None) if is_forwarded(&request.headers) => Err(Refusal::Forwarded),
            (None, None) => direct(scheme, host.as_deref()),
        };
        let by_proxy = hops.is_some() && is_forwarded(&request.headers);
        Ok(Origin { client, request: id.clone(), by_proxy, host, base })
    }
}

fn direct(scheme: &str, host: Option<&str>) -> Result<String, Refusal> {
    let host = host.ok_or(Refusal::Host("is missing"))?;
    Ok(format!("{scheme}://{host}"))
}

/// RFC 9112, 3.2: exactly one `Host` in HTTP/1.1. In HTTP/2 the target names the host; a `Host`
/// beside it says the same (RFC 9113, 8.3.1).
fn host(request: &Parts) -> Result<Option<String>, Refusal> {
    let mut values = request.headers.get_all(HOST).iter();
    let host = values.next();
    if values.next().is_some() {
        return Err(Refusal::Host("stands twice"));
    }
    let of_target = request.uri.authority();
    match (request.version, host, of_target) {
        (Version::HTTP_11, None, _) => return Err(Refusal::Host("is missing")),
        (Version::HTTP_2, None, None) => return Err(Refusal::Host("is missing")),
        (Version::HTTP_2, Some(host), Some(target))
            if !host.as_bytes().eq_ignore_ascii_case(target.as_str().as_bytes()) =>
        {
            return Err(Refusal::Host("names another host than :authority"));
        }
        _ => {}
    }
    let text = match of_target {
        Some(authority) => authority.as_str(),
        None => match host {
            Some(value) => value.to_str().map_err(|_| Refusal::Host("is malformed"))?,
            None => return Ok(None),
        },
    };
    if !is_host(text) {
        return Err(Refusal::Host("is malformed"));
    }
    Ok(Some(text.to_ascii_lowercase()))
}

/// A name or address with an optional port, and nothing that could end a quoted string.
fn is_host(text: &str) -> bool {
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    !text.is_empty() && text.bytes().all(plain) && text.parse::<Authority>().is_ok()
}

const FORWARDED: &str = "forwarded";
const X_FORWARDED: [&str; 3] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];

fn is_forwarded(headers: &HeaderMap) -> bool {
    let mut names = X_FORWARDED.iter().chain(&[FORWARDED, "x-real-ip"]);
    names.any(|name| headers.contains_key(*name))
}

/// What trusted proxies added, the nearest one's word last.
#[derive(Debug, Default)]
struct Hops {
    clients: Vec<String>,
    schemes: Vec<String>,
    hosts: Vec<String>,
}

impl Hops {
    /// `Forwarded` counts only where no `X-Forwarded-*` is there: a proxy that sets the ones passes
    /// the other on as the client wrote it.
    fn read(headers: &HeaderMap) -> Result<Hops, Refusal> {
        if X_FORWARDED.iter().any(|name| headers.contains_key(*name)) {
            let [clients, schemes, hosts] = X_FORWARDED;
            return Ok(Hops {
                clients: list(headers, clients)?,
                schemes: list(headers, schemes)?,
                hosts: list(headers, hosts)?,
            });
        }
        let mut hops = Hops::default();
        for hop in list(headers, FORWARDED)? {
            for pair in hop.split(';') {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let value = value.trim().trim_matches('"').to_owned();
                match name.trim().to_ascii_lowercase().as_str() {
                    "for" => hops.clients.push(value),
                    "proto" => hops.schemes.push(value),
                    "host" => hops.hosts.push(value),
                    _ => {}
                }
            }
        }
        Ok(hops)
    }

    /// The first address from the right that is no trusted proxy.
    fn client(&self, peer: IpAddr, trusted: &[Network]) -> IpAddr {
        let mut last = peer;
        for text in self.clients.iter().rev() {
            let Some(address) = address(text) else { break };
            last = address;
            if !trusted.iter().any(|network| network.contains(address)) {
                break;
            }
        }
        last
    }

    /// The value that the outermost trusted proxy added: one from the right for each trusted
    /// address in between.
    fn outermost<'a>(&self, values: &'a [String], trusted: &[Network]) -> Option<&'a str> {
        let is_trusted = |text: &&String| {
            let address = address(text);
            address.is_some_and(|address| trusted.iter().any(|n| n.contains(address)))
        };
        let proxies = self.clients.iter().rev().take_while(is_trusted).count();
        let from_right = proxies.min(values.len().checked_sub(1)?);
        values.get(values.len() - 1 - from_right).map(String::as_str)
    }

    fn base(
        &self,
        trusted: &[Network],
        own_scheme: &str,
        host: Option<&str>,
    ) -> Result<String, Refusal> {
        let scheme = self.outermost(&self.schemes, trusted).unwrap_or(own_scheme);
        let scheme = scheme.to_ascii_lowercase();
        let host = self.outermost(&self.hosts, trusted).or(host);
        let host = host.ok_or(Refusal::Host("is missing"))?;
        if !matches!(scheme.as_str(), "http" | "https") || !is_host(host) {
            return Err(Refusal::Header("X-Forwarded-Proto or X-Forwarded-Host"));
        }
        Ok(format!("{scheme}://{host}"))
    }
}

/// All values of a header, its lines in order, each a list.
fn list(headers: &HeaderMap, name: &'static str) -> Result<Vec<String>, Refusal> {
    let mut all = Vec::new();
    for line in headers.get_all(name) {
        let line = line.to_str().map_err(|_| Refusal::Header(name))?;
        all.extend(line.split(',').map(|part| part.trim().to_owned()));
    }
    Ok(all)
}

/// `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]`, `[::1]:5`
fn address(text: &str) -> Option<IpAddr> {
    let found = text.parse().ok().or_else(|| {
        let bare = text.strip_prefix('[').and_then(|text| text.split_once(']'));
        match bare {
            Some((bare, _)) => bare.parse().ok(),
            None => text.rsplit_once(':')?.0.parse().ok(),
        }
    });
    found.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn networks_hold_their_addresses() {
        let holds = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };
        for (network, address) in [
            ("10.0.0.0/8", "10.255.0.1"),
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.3", "::ffff:10.1.2.3"),
            ("0.0.0.0/0", "203.0.113.9"),
            ("2001:db8::/32", "2001:db8:1::7"),
            ("::1", "::1"),
            ("192.168.1.77/24", "192.168.1.1"),
        ] {
            assert!(holds(network, address), "{network} {address}");
        }
        for (network, address) in [
            ("10.0.0.0/8", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "::1"),
            ("2001:db8::/32", "2001:db9::1"),
            ("192.168.1.0/25", "192.168.1.128"),
        ] {
            assert!(!holds(network, address), "{network} {address}");
        }
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "x", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_of_registries_have_no_path() {
        let good = "https://reg.example:8443/".parse::<BaseUrl>().unwrap();
        assert_eq!(good.as_str(), "https://reg.example:8443");
        assert!("http://[::1]:5000".parse::<BaseUrl>().is_ok());
        for bad in
            ["", "reg.example", "ftp://x", "https://", "https://x/y", "https://u@x", "https://x?y"]
        {
            assert!(bad.parse::<BaseUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_come_with_and_without_ports() {
        for (text, expected) in [
            ("203.0.113.9", "203.0.113.9"),
            ("203.0.113.9:4711", "203.0.113.9"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]:4711", "2001:db8::7"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
        ] {
            assert_eq!(address(text), Some(expected.parse().unwrap()), "{text}");
        }
        for bad in ["", "unknown", "_hidden", "[::1", "1.2.3.4:x:y"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    fn host_of(version: Version, target: &str, hosts: &[&str]) -> Result<Option<String>, Refusal> {
        let mut request = http::Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        host(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn every_version_has_its_way_to_name_the_host() {
        let named =
            |version, target: &str, hosts: &[&str]| host_of(version, target, hosts).ok().flatten();
        let x = Some("x:5".to_owned());
        assert_eq!(named(Version::HTTP_11, "/", &["X:5"]), x);
        assert_eq!(named(Version::HTTP_11, "http://x:5/", &["y"]), x);
        assert_eq!(named(Version::HTTP_2, "https://x:5/", &[]), x);
        assert_eq!(named(Version::HTTP_2, "https://x:5/", &["X:5"]), x);
        assert_eq!(named(Version::HTTP_2, "/", &["x:5"]), x);
        assert!(matches!(host_of(Version::HTTP_10, "/", &[]), Ok(None)));
        for (version, target, hosts) in [
            (Version::HTTP_11, "/", &[][..]),
            (Version::HTTP_11, "http://x/", &[]),
            (Version::HTTP_11, "/", &["x", "x"]),
            (Version::HTTP_2, "/", &[]),
            (Version::HTTP_2, "https://x/", &["y"]),
            (Version::HTTP_2, "https://u@x/", &[]),
        ] {
            assert!(host_of(version, target, hosts).is_err(), "{version:?} {target} {hosts:?}");
        }
    }

    proptest! {
        #[test]
        fn no_host_ends_a_quoted_string(text in "\\PC{0,40}") {
            if is_host(&text) {
                prop_assert!(!text.contains(['"', '\\', '/', ',', '@', ' ']));
            }
        }
    }
}
