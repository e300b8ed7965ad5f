//! The reading side of an HTTP/1 connection: hyper gets what [`Framing`] lets pass.
//!
//! A head that is refused never reaches hyper. In its place hyper reads a request that stands for
//! it, the last one of the connection, and the service answers that with what is wrong: so the
//! refusal is written after the answers to earlier requests, has a body and a line in the log.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::errors::Refusal;
use super::framing::{Framing, Look, Refused, Violation};

/// What hyper reads instead of a head that was refused.
const STAND_IN: &[u8] = b"- * HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n";

/// How much is read at once while a head is not whole.
const SCRATCH: usize = 8 * 1024;

/// What the reader of a connection tells its service.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    served: AtomicU64,
    refused: OnceLock<Refused>,
}

impl Refusals {
    /// To be asked once for every request, in order: what it stands for, if it is no request of the
    /// client's. Requests are told apart by their number, which no client can choose.
    pub(super) fn next(&self) -> Option<&Refused> {
        let before = self.served.fetch_add(1, Ordering::Relaxed);
        self.refused.get().filter(|refused| refused.after == before)
    }
}

/// A connection whose requests are read strictly.
pub(super) struct Strict<S> {
    inner: S,
    framing: Framing,
    /// What was read and not handed on, and how much of it may be.
    held: BytesMut,
    passed: usize,
    ended: Option<Ended>,
    refusals: Arc<Refusals>,
}

/// Why no more is read.
#[derive(Clone, Copy)]
enum Ended {
    Head,
    Body,
}

impl<S> Strict<S> {
    pub(super) fn new(inner: S) -> Strict<S> {
        Strict {
            inner,
            framing: Framing::default(),
            held: BytesMut::new(),
            passed: 0,
            ended: None,
            refusals: Arc::default(),
        }
    }

    /// What the service has to ask.
    pub(super) fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.refusals)
    }

    /// Takes over what a look at `held` came to.
    fn settle(&mut self, look: Look) {
        self.passed = look.passed;
        let Some(violation) = look.violation else { return };
        self.held.truncate(look.passed);
        match violation {
            Violation::Head(refused) => {
                self.held.extend_from_slice(STAND_IN);
                self.passed = self.held.len();
                // There is only one: nothing is read after it.
                let _ = self.refusals.refused.set(*refused);
                self.ended = Some(Ended::Head);
            }
            Violation::Body => self.ended = Some(Ended::Body),
        }
    }
}

impl<S: AsyncRead + Unpin> Strict<S> {
    /// Reads into hyper's own buffer; what may not pass yet is taken out again.
    fn read_straight(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Read {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        let is_end = new.is_empty();
        let Look { passed, violation } = self.framing.look(new);
        self.held = BytesMut::from(&new[passed..]);
        buf.set_filled(before + passed);
        self.settle(Look { passed: 0, violation });
        Poll::Ready(Ok(is_end || passed > 0))
    }

    /// Reads what belongs to a head of which the beginning is held.
    fn read_on(&mut self, cx: &mut Context<'_>) -> Read {
        let mut scratch = [0; SCRATCH];
        let mut buf = ReadBuf::new(&mut scratch);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
        self.held.extend_from_slice(buf.filled());
        let look = self.framing.look(&self.held);
        self.settle(look);
        Poll::Ready(Ok(buf.filled().is_empty()))
    }
}

/// Whether the reader has something to hand on: bytes, or the end of the connection.
type Read = Poll<io::Result<bool>>;

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.passed > 0 {
                let len = this.passed.min(buf.remaining());
                buf.put_slice(&this.held.split_to(len));
                this.passed -= len;
                return Poll::Ready(Ok(()));
            }
            match this.ended {
                // The service answers and closes. An end would make hyper give up the answer.
                Some(Ended::Head) => return Poll::Pending,
                Some(Ended::Body) => {
                    let kind = io::ErrorKind::InvalidData;
                    return Poll::Ready(Err(io::Error::new(kind, Refusal::Chunks)));
                }
                None => {}
            }
            let done = if this.held.is_empty() {
                ready!(this.read_straight(cx, buf))?
            } else {
                ready!(this.read_on(cx))?
            };
            if done {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Sends these bytes in pieces, and gives what hyper would read, until it would wait.
    async fn through(bytes: &[u8], piece: usize) -> (Vec<u8>, Option<Refused>) {
        let (mut client, server) = tokio::io::duplex(piece);
        let mut strict = Strict::new(server);
        let refusals = strict.refusals();
        let sending = async {
            let _ = client.write_all(bytes).await;
            drop(client);
        };
        let reading = async {
            let mut read = Vec::new();
            let reading = strict.read_to_end(&mut read);
            let _ = tokio::time::timeout(std::time::Duration::from_millis(200), reading).await;
            drop(strict);
            read
        };
        let ((), read) = tokio::join!(sending, reading);
        (read, refusals.refused.get().cloned())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_right_passes_unchanged() {
        let text = b"\r\nPOST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcdePUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        for piece in [1, 2, 7, 50, 1000] {
            let (read, refused) = through(text, piece).await;
            assert_eq!((read.as_slice(), refused), (text.as_slice(), None), "{piece}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_head_is_stood_in_for() {
        let good = b"GET / HTTP/1.1\r\n\r\n";
        let text = [&good[..], b"GET /x HTTP/1.1\r\nA: b\nC: d\r\n\r\n", good].concat();
        for piece in [1, 2, 7, 50, 1000] {
            let (read, refused) = through(&text, piece).await;
            assert_eq!(read, [good, STAND_IN].concat(), "{piece}");
            assert_eq!(refused.unwrap().after, 1);
        }
    }

    #[test]
    fn only_the_request_of_that_number_is_refused() {
        let refusals = Refusals::default();
        assert!(refusals.next().is_none());
        let why = super::super::framing::Wrong::Folded;
        refusals.refused.set(Refused { why, asked: None, after: 2 }).unwrap();
        assert!(refusals.next().is_none());
        assert!(refusals.next().is_some());
    }
}
