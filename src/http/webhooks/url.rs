//! The URL of a receiver. Its password and its query are for the receiver alone.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::uri::{PathAndQuery, Scheme, Uri};
use percent_encoding::percent_decode_str;
use thiserror::Error;

use crate::oci::{Algorithm, Digest};

/// Why a text is no receiver's URL. The text is not in it: it may hold a password.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("--webhook takes URLs such as https://user:password@host:port/path: {0}")]
pub struct WebhookError(&'static str);

/// Where events are posted to.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl {
    tls: bool,
    host: String,
    port: u16,
    path: PathAndQuery,
    authorization: Option<HeaderValue>,
}

impl WebhookUrl {
    pub(super) fn tls(&self) -> bool {
        self.tls
    }

    /// A name or an address, without brackets.
    pub(super) fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// As `Host` has it.
    pub(super) fn authority(&self) -> String {
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    pub(super) fn path(&self) -> &PathAndQuery {
        &self.path
    }

    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// A name for the receiver, the same whatever its password is.
    pub(super) fn id(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let text = format!("{scheme}://{}:{}{}", self.host, self.port, self.path);
        Digest::of(Algorithm::Sha256, text.as_bytes()).hex()[..32].to_owned()
    }
}

impl FromStr for WebhookUrl {
    type Err = WebhookError;

    fn from_str(text: &str) -> Result<WebhookUrl, WebhookError> {
        let (text, _) = text.split_once('#').unwrap_or((text, ""));
        let uri: Uri = text.parse().map_err(|_| WebhookError("this is none"))?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(WebhookError("begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or(WebhookError("there is no host"))?;
        let host = authority.host().to_ascii_lowercase();
        if host.is_empty() {
            return Err(WebhookError("there is no host"));
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let login = authority.as_str().rsplit_once('@').map(|(login, _)| login);
        let authorization = login.map(basic).transpose()?;
        let path = uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(WebhookUrl { tls, host, port, path, authorization })
    }
}

/// `user:password` of a URL as a header.
fn basic(login: &str) -> Result<HeaderValue, WebhookError> {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let decoded = [user, ":", password].map(|part| percent_decode_str(part).collect::<Vec<u8>>());
    let value = format!("Basic {}", STANDARD.encode(decoded.concat()));
    let mut value =
        HeaderValue::from_str(&value).map_err(|_| WebhookError("its password cannot be sent"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Without password and query.
impl fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path.path())
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_shows_no_password_and_is_known_without_it() {
        let url = |text: &str| text.parse::<WebhookUrl>();
        let one = url("https://me:s%40cret@Hooks.example:8443/a/b?key=k#x").unwrap();
        assert_eq!(one.to_string(), "https://hooks.example:8443/a/b");
        assert_eq!(format!("{one:?}"), one.to_string());
        assert_eq!(one.authorization().unwrap(), "Basic bWU6c0BjcmV0");
        assert!(!format!("{:?}", one.authorization()).contains("bWU6"));
        assert_eq!(one.path().as_str(), "/a/b?key=k");
        let other = url("https://me:other@hooks.example:8443/a/b?key=k").unwrap();
        assert_eq!(one.id(), other.id());
        assert_ne!(one.id(), url("https://hooks.example:8443/a/b?key=l").unwrap().id());
        let plain = url("http://[::1]").unwrap();
        assert_eq!((plain.host(), plain.port(), plain.path().as_str()), ("::1", 80, "/"));
        assert_eq!((plain.authority(), plain.tls()), ("[::1]".to_owned(), false));
        for bad in ["", "host/path", "ftp://u:secret@h/", "http://", "https:///x", "a b"] {
            let error = url(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
