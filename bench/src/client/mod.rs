//! An HTTP/1.1 client that costs little: blocking sockets, no allocation for each request but a head's,
//! and bodies that nobody looks at are dropped in the kernel.

mod body;
mod transport;

pub(crate) use body::Body;
pub(crate) use transport::{Target, Trust};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::content::{self, Content};
use transport::Transport;

/// Longer heads no server here sends.
const HEAD: usize = 16 << 10;

/// One connection, kept alive.
pub(crate) struct Connection {
    transport: Transport,
    /// What was read and is not yet used begins at `at`.
    buffer: Vec<u8>,
    at: usize,
    host: String,
}

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Body,
    /// Where an upload goes on: a path and query.
    pub(crate) location: Option<String>,
    /// Where a list goes on: a path and query.
    pub(crate) next: Option<String>,
}

impl Answer {
    /// An answer with another status is an error that says what was asked.
    pub(crate) fn expect(self, status: u16, asked: &str) -> Result<Answer> {
        ensure!(self.status == status, "{asked}: {} instead of {status}", self.status);
        Ok(self)
    }
}

impl Connection {
    pub(crate) fn open(target: &Target) -> Result<Connection> {
        let transport = Transport::connect(target)?;
        let host = target.address.to_string();
        Ok(Connection { transport, buffer: Vec::with_capacity(HEAD), at: 0, host })
    }

    /// Sends a head without a body and reads the head of the answer.
    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &str) -> Result<Answer> {
        self.begin(method, path, headers)?;
        self.answer(method == "HEAD")
    }

    /// The same with a body of pieces; `length` is that of all of them.
    pub(crate) fn send<'a>(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        length: u64,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Answer> {
        let mut head = self.head(method, path, &format!("{headers}Content-Length: {length}\r\n"));
        for piece in pieces {
            // A small body goes out with its head, as every client does it.
            if !head.is_empty() && piece.len() <= HEAD {
                head.extend_from_slice(piece);
                continue;
            }
            self.write(&head, method, path)?;
            head.clear();
            self.write(piece, method, path)?;
        }
        self.write(&head, method, path)?;
        self.answer(false)
    }

    /// GET of what must be there: how many bytes came.
    pub(crate) fn get(&mut self, path: &str, headers: &str) -> Result<u64> {
        let answer = self.ask("GET", path, headers)?.expect(200, path)?;
        self.skip(&answer)
    }

    /// GET of a list with all its pages: how many bytes came.
    pub(crate) fn list(&mut self, path: &str, page: &mut dyn FnMut(Vec<u8>)) -> Result<u64> {
        let mut next = Some(path.to_owned());
        let mut all = 0;
        while let Some(path) = next {
            let answer = self.ask("GET", &path, "")?.expect(200, &path)?;
            let body = self.read(&answer)?;
            all += body.len() as u64;
            page(body);
            next = answer.next;
        }
        Ok(all)
    }

    /// GET of what must have this content: checks status, length and digest.
    pub(crate) fn check(
        &mut self,
        path: &str,
        headers: &str,
        length: u64,
        digest: &str,
    ) -> Result<()> {
        let answer = self.ask("GET", path, headers)?.expect(200, path)?;
        let mut hash = Sha256::new();
        let got = self.body(&answer, &mut |piece| hash.update(piece))?;
        ensure!(got == length, "{path}: {got} bytes instead of {length}");
        let got = content::written(&hash.finalize());
        ensure!(got == digest, "{path}: {got} instead of {digest}");
        Ok(())
    }

    /// The whole body.
    pub(crate) fn read(&mut self, answer: &Answer) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        self.body(answer, &mut |piece| all.extend_from_slice(piece))?;
        Ok(all)
    }

    /// Reads the body and drops it: how many bytes it had.
    pub(crate) fn skip(&mut self, answer: &Answer) -> Result<u64> {
        match answer.body {
            Body::Length(length) => self.drop_some(length).map(|()| length),
            Body::Chunked => self.body(answer, &mut |_| ()),
        }
    }

    /// Reads so many bytes of a body that goes on, and drops them.
    pub(crate) fn drop_some(&mut self, length: u64) -> Result<()> {
        let here = length.min((self.buffer.len() - self.at) as u64);
        self.at += usize::try_from(here)?;
        self.transport.discard(length - here)
    }

    fn begin(&mut self, method: &str, path: &str, headers: &str) -> Result<()> {
        let head = self.head(method, path, headers);
        self.write(&head, method, path)
    }

    fn head(&self, method: &str, path: &str, headers: &str) -> Vec<u8> {
        format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", self.host).into_bytes()
    }

    fn write(&mut self, bytes: &[u8], method: &str, path: &str) -> Result<()> {
        self.transport.write_all(bytes).with_context(|| format!("{method} {path}: sending"))
    }

    /// The head of the next answer.
    fn answer(&mut self, headless: bool) -> Result<Answer> {
        let end = loop {
            let unused = &self.buffer[self.at..];
            if let Some(end) = unused.windows(4).position(|four| four == b"\r\n\r\n") {
                break self.at + end + 4;
            }
            self.fill()?;
        };
        let answer = parse(&self.buffer[self.at..end], headless);
        self.at = end;
        answer
    }

    /// Reads what comes next. What is used up makes room for it.
    fn fill(&mut self) -> Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        ensure!(self.buffer.len() < HEAD, "a head or line of more than {HEAD} bytes");
        let got = self.transport.read_into(&mut self.buffer, HEAD)?;
        if got == 0 {
            bail!("the server closed the connection");
        }
        Ok(())
    }
}

fn parse(head: &[u8], headless: bool) -> Result<Answer> {
    let head = std::str::from_utf8(head).context("an answer's head")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.with_context(|| format!("no answer: {head:?}"))?;
    let mut answer = Answer { status, body: Body::Length(0), location: None, next: None };
    for line in lines {
        let Some((name, value)) = line.split_once(": ") else { continue };
        if name.eq_ignore_ascii_case("content-length") && !headless {
            answer.body = Body::Length(value.parse().context("Content-Length")?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") && !headless {
            answer.body = Body::Chunked;
        } else if name.eq_ignore_ascii_case("location") {
            answer.location = Some(relative(value).to_owned());
        } else if name.eq_ignore_ascii_case("link") && value.contains("rel=\"next\"") {
            let url = value.strip_prefix('<').and_then(|rest| rest.split('>').next());
            answer.next = url.map(|url| relative(url).to_owned());
        }
    }
    Ok(answer)
}

/// The path and query of a URL, which docker-registry gives whole.
fn relative(location: &str) -> &str {
    let Some((_, rest)) = location.split_once("://") else { return location };
    rest.find('/').map_or("/", |at| &rest[at..])
}

/// Pushes a blob as docker does: POST, PATCH with all of it, PUT.
pub(crate) fn push_blob(
    connection: &mut Connection,
    repository: &str,
    content: &Content,
    digest: &str,
) -> Result<()> {
    let location = begin_upload(connection, repository)?;
    let headers = "Content-Type: application/octet-stream\r\n";
    let answer =
        connection.send("PATCH", &location, headers, content.length(), content.pieces())?;
    let answer = answer.expect(202, "PATCH")?;
    connection.skip(&answer)?;
    let location = answer.location.context("PATCH: no Location")?;
    finish_upload(connection, &location, digest, std::iter::empty(), 0)
}

/// Opens an upload session: where it goes on.
pub(crate) fn begin_upload(connection: &mut Connection, repository: &str) -> Result<String> {
    let path = format!("/v2/{repository}/blobs/uploads/");
    let answer = connection.send("POST", &path, "", 0, std::iter::empty())?.expect(202, "POST")?;
    connection.skip(&answer)?;
    answer.location.context("POST: no Location")
}

/// PUT with the digest and whatever is left of the blob.
pub(crate) fn finish_upload<'a>(
    connection: &mut Connection,
    location: &str,
    digest: &str,
    pieces: impl Iterator<Item = &'a [u8]>,
    length: u64,
) -> Result<()> {
    let mark = if location.contains('?') { '&' } else { '?' };
    let path = format!("{location}{mark}digest={digest}");
    let headers = "Content-Type: application/octet-stream\r\n";
    let answer = connection.send("PUT", &path, headers, length, pieces)?;
    let answer = answer.expect(201, "PUT of a blob")?;
    connection.skip(&answer)?;
    Ok(())
}

/// PUT of a manifest under a tag or its digest.
pub(crate) fn push_manifest(
    connection: &mut Connection,
    repository: &str,
    reference: &str,
    manifest: &[u8],
) -> Result<()> {
    let path = format!("/v2/{repository}/manifests/{reference}");
    let headers = format!("Content-Type: {}\r\n", content::MANIFEST);
    let length = manifest.len() as u64;
    let answer = connection.send("PUT", &path, &headers, length, std::iter::once(manifest))?;
    let answer = answer.expect(201, "PUT of a manifest")?;
    connection.skip(&answer)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_for_what_is_needed() {
        let head = b"HTTP/1.1 202 Accepted\r\ncontent-length: 12\r\nLocation: http://h:1/v2/a?_state=x\r\n\r\n";
        let answer = parse(head, false).unwrap();
        assert_eq!((answer.status, answer.body), (202, Body::Length(12)));
        assert_eq!(answer.location.as_deref(), Some("/v2/a?_state=x"));
        let head = b"HTTP/1.1 200 OK\r\nLink: </v2/a/tags/list?last=t9>; rel=\"next\"\r\n\r\n";
        let next = parse(head, false).unwrap().next;
        assert_eq!(next.as_deref(), Some("/v2/a/tags/list?last=t9"));
        let head = b"HTTP/1.1 202 Accepted\r\nContent-Length: 12\r\n\r\n";
        assert_eq!(parse(head, true).unwrap().body, Body::Length(0));
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(parse(head, false).unwrap().body, Body::Chunked);
        assert!(parse(b"nonsense\r\n\r\n", false).is_err());
    }
}
