//! A client's connection: what happens to it besides HTTP.
//!
//! - What a client sends is looked at by [`Framing`] before hyper reads it.
//! - A client that takes nothing of its answer for too long is cut off.
//! - A connection is closed so that its last answer arrives: the kernel answers bytes that nobody
//!   read with a reset, and a reset takes away what the client has not read yet.
//! - A client that speaks TLS is told so in words that it understands.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::framing::{Framing, Violation};

/// How much of an unread body is taken off the socket before it is closed, and for how long.
const DRAIN: usize = 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The first byte of a TLS handshake; no HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What is said to a client that speaks TLS: containerd goes on without TLS after just this.
const NO_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 49\r\nConnection: close\r\n\r\nThis server speaks HTTP; the client speaks TLS.\r\n";

/// The socket as hyper sees it.
pub(super) struct Socket {
    stream: TcpStream,
    patience: Duration,
    framing: Framing,
    /// No more is read: the client sent what cannot be understood.
    ended: Option<Violation>,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    closing: Option<Closing>,
}

struct Closing {
    limit: Pin<Box<Sleep>>,
    left: usize,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, patience: Duration) -> Socket {
        Socket {
            stream,
            patience,
            framing: Framing::new(),
            ended: None,
            stalled: None,
            closing: None,
        }
    }

    /// Waits for the client's first byte: does it speak TLS?
    pub(super) async fn speaks_tls(&self) -> io::Result<bool> {
        let mut first = [0];
        let peek = self.stream.peek(&mut first);
        match tokio::time::timeout(self.patience, peek).await {
            Ok(read) => Ok(read? == 1 && first[0] == TLS_HANDSHAKE),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Tells a client that there is no TLS here, and closes.
    pub(super) async fn refuse_tls(mut self) -> io::Result<()> {
        self.write_all(NO_TLS).await?;
        self.shutdown().await
    }

    /// What a write came to, with the clock started or stopped.
    fn timed<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let limit = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(limit.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.ended {
            None => {}
            Some(Violation::Head(_)) => return Poll::Ready(Ok(())),
            Some(Violation::Body(_)) => {
                let error = "the chunks of the body are malformed";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let Err(violation) = self.framing.take(&buf.filled()[before..]) else {
            return Poll::Ready(Ok(()));
        };
        self.ended = Some(violation);
        match violation {
            Violation::Head(at) => {
                // No head may hold a NUL: hyper answers 400 and closes.
                buf.filled_mut()[before + at] = 0;
                buf.set_filled(before + at + 1);
            }
            // What stands before it is whole; after it comes the error.
            Violation::Body(at) if at > 0 => buf.set_filled(before + at),
            Violation::Body(_) => {
                buf.set_filled(before);
                return self.poll_read(cx, buf);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.timed(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Ends our side, then reads what the client still sends until it ends its own side too, or
    /// until enough was read or waited.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let closing = this.closing.get_or_insert_with(|| Closing {
            limit: Box::pin(tokio::time::sleep(DRAIN_TIME)),
            left: DRAIN,
        });
        let mut scratch = [0; 16 * 1024];
        while closing.left > 0 && closing.limit.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf));
            let len = buf.filled().len();
            if read.is_err() || len == 0 {
                break;
            }
            closing.left = closing.left.saturating_sub(len);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[test]
    fn the_answer_to_tls_is_as_long_as_it_says() {
        let text = str::from_utf8(NO_TLS).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }

    #[tokio::test]
    async fn an_answer_arrives_although_the_body_was_not_read() {
        let (mut client, server) = pair().await;
        let body = vec![7; DRAIN / 2];
        client.write_all(&body).await.unwrap();
        let mut socket = Socket::new(server, Duration::from_secs(9));
        let closing = async {
            socket.write_all(b"refused").await.unwrap();
            socket.shutdown().await.unwrap();
            drop(socket);
        };
        let reading = async {
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            // Still sending: no reset meets it, which could overtake the answer.
            for piece in body[..DRAIN / 4].chunks(10_000) {
                client.write_all(piece).await.unwrap();
            }
            client.shutdown().await.unwrap();
            answer
        };
        let ((), answer) = tokio::join!(closing, reading);
        assert_eq!(answer, b"refused");
    }

    #[tokio::test]
    async fn who_takes_nothing_is_cut_off() {
        let (_client, server) = pair().await;
        let mut socket = Socket::new(server, Duration::from_millis(100));
        let piece = vec![7; 1024 * 1024];
        let error = loop {
            if let Err(error) = socket.write_all(&piece).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
