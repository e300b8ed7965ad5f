//! The head of an HTTP/1 request, checked while it arrives: its size, its lines, and what it says
//! of its body.
//!
//! What passes here passes hyper too: it reads no head that is not read alike by everybody.

use http::{Method, Uri};
use thiserror::Error;

/// The most bytes of a request's head, of its target, and the most of its lines.
pub(super) const MAX_HEAD: usize = 64 * 1024;
pub(super) const MAX_TARGET: usize = 16 * 1024;
pub(super) const MAX_LINES: usize = 100;

/// What stands around the target in the first line: a method and a version, with room to spare.
const AROUND_TARGET: usize = 256;

/// hyper keeps some of the largest numbers for itself.
const MAX_LENGTH: u64 = i64::MAX as u64;

/// What is wrong with a request's head.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum Wrong {
    #[error("a line of the request's head ends in a line feed without a carriage return before it")]
    LineFeed,
    #[error("a carriage return in the request's head is not followed by a line feed")]
    CarriageReturn,
    #[error("the request's head holds the control character {0:#04x}")]
    Control(u8),
    #[error("the request line is not METHOD, URL and HTTP version with one blank between them")]
    RequestLine,
    #[error("the URL in the request line is malformed")]
    Target,
    #[error("{0} is not spoken here, but HTTP/1.1")]
    Version(String),
    #[error("the URL is longer than {MAX_TARGET} bytes")]
    TargetTooLong,
    #[error("the request's head is larger than {MAX_HEAD} bytes")]
    TooLarge,
    #[error("the request's head has more than {MAX_LINES} header lines")]
    TooManyLines,
    #[error("a header line is folded: it begins with a blank")]
    Folded,
    #[error("a header line has no colon")]
    NoColon,
    #[error("the header name {0:?} is malformed")]
    Name(String),
    #[error("the header Content-Length is no plain number")]
    Length,
    #[error("the header {0} stands twice")]
    Twice(&'static str),
    #[error("Content-Length and Transfer-Encoding stand side by side")]
    TwoLengths,
    #[error("the header Transfer-Encoding says something else than chunked")]
    Encoding,
    #[error("HTTP/1.0 knows no Transfer-Encoding")]
    OldEncoding,
}

/// A head that arrives.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Where the line begins that is not whole yet, and how far it was looked at.
    line: usize,
    seen: usize,
    lines: usize,
    /// What the first line says: method, target, and whether it is HTTP/1.0.
    request: Option<(Method, Uri, bool)>,
    length: Option<u64>,
    chunked: bool,
}

impl Head {
    /// Looks at the head's bytes so far, from its first one on: its length, if it is whole.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Result<Option<usize>, Wrong> {
        let within = &bytes[..bytes.len().min(MAX_HEAD)];
        while let Some(end) = self.line_end(within)? {
            let line = &within[self.line..end - 2];
            let is_empty = line.is_empty();
            if self.request.is_none() {
                // Empty lines before a request are allowed (RFC 9112, 2.2).
                if !is_empty {
                    self.request = Some(request_line(line)?);
                }
            } else if is_empty {
                self.check_lengths()?;
                return Ok(Some(end));
            } else {
                self.header(line)?;
            }
            self.line = end;
        }
        if self.request.is_none() && within.len() - self.line > MAX_TARGET + AROUND_TARGET {
            return Err(Wrong::TargetTooLong);
        }
        if within.len() == MAX_HEAD {
            return Err(Wrong::TooLarge);
        }
        Ok(None)
    }

    /// What is asked for, as far as it is known.
    pub(super) fn asked(&self) -> Option<(Method, Uri)> {
        self.request.as_ref().map(|(method, target, _)| (method.clone(), target.clone()))
    }

    /// How long the body is, where the head says so.
    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Whether the body comes in chunks.
    pub(super) fn is_chunked(&self) -> bool {
        self.chunked
    }

    /// Whether anything of it has arrived.
    #[cfg(test)]
    pub(super) fn has_begun(&self) -> bool {
        self.request.is_some() || self.seen > self.line
    }

    /// Where the present line ends, after its line feed. Every byte is looked at once.
    fn line_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Wrong> {
        while let Some(byte) = bytes.get(self.seen) {
            let after_return = self.seen > self.line && bytes[self.seen - 1] == b'\r';
            match byte {
                b'\n' if !after_return => return Err(Wrong::LineFeed),
                b'\n' => {
                    self.seen += 1;
                    return Ok(Some(self.seen));
                }
                _ if after_return => return Err(Wrong::CarriageReturn),
                b'\r' | b'\t' => {}
                0..b' ' | 0x7f => return Err(Wrong::Control(*byte)),
                _ => {}
            }
            self.seen += 1;
        }
        Ok(None)
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Wrong> {
        self.lines += 1;
        if self.lines > MAX_LINES {
            return Err(Wrong::TooManyLines);
        }
        if is_blank(&line[0]) {
            // Some readers join it to the line before.
            return Err(Wrong::Folded);
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Wrong::NoColon)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || !name.iter().all(is_token) {
            return Err(Wrong::Name(shown(name)));
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err(Wrong::Twice("Content-Length"));
            }
            self.length = Some(length(value)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked {
                return Err(Wrong::Twice("Transfer-Encoding"));
            }
            if !trim(value).eq_ignore_ascii_case(b"chunked") {
                return Err(Wrong::Encoding);
            }
            self.chunked = true;
        }
        Ok(())
    }

    /// Whether the body's length has one meaning.
    fn check_lengths(&self) -> Result<(), Wrong> {
        let is_old = self.request.as_ref().is_some_and(|(_, _, is_old)| *is_old);
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Wrong::TwoLengths),
            (true, None) if is_old => Err(Wrong::OldEncoding),
            _ => Ok(()),
        }
    }
}

fn request_line(line: &[u8]) -> Result<(Method, Uri, bool), Wrong> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Wrong::RequestLine);
    };
    let method = Method::from_bytes(method).map_err(|_| Wrong::RequestLine)?;
    let is_old = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(Wrong::Version(shown(version)));
        }
        _ => return Err(Wrong::RequestLine),
    };
    if target.len() > MAX_TARGET {
        return Err(Wrong::TargetTooLong);
    }
    // A fragment is never sent (RFC 9112, 3.2), and readers differ in what they make of one.
    if target.contains(&b'\t') || target.contains(&b'#') {
        return Err(Wrong::Target);
    }
    let target = Uri::try_from(target).map_err(|_| Wrong::Target)?;
    Ok((method, target, is_old))
}

fn length(value: &[u8]) -> Result<u64, Wrong> {
    let value = trim(value);
    if value.is_empty() || value.len() > 20 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Wrong::Length);
    }
    let number = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.filter(|number| *number <= MAX_LENGTH).ok_or(Wrong::Length)
}

/// Without the blanks around it: other white space belongs to the value.
fn trim(value: &[u8]) -> &[u8] {
    let Some(begin) = value.iter().position(|byte| !is_blank(byte)) else {
        return &[];
    };
    let end = value.iter().rposition(|byte| !is_blank(byte)).unwrap_or(begin);
    &value[begin..=end]
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// RFC 9110, 5.6.2.
fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned()
}
