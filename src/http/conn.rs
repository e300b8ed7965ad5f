//! A client's connection: what happens to it besides HTTP.
//!
//! - A client that takes nothing of its answer for too long is cut off.
//! - A connection is closed so that its last answer arrives: the kernel answers bytes that nobody
//!   read with a reset, and a reset takes away what the client has not read yet.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How much of an unread body is taken off the socket before it is closed, and for how long.
const DRAIN: usize = 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// A TCP connection, or TLS over one, as hyper sees it.
pub(super) struct Socket<S> {
    stream: S,
    patience: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    closing: Option<Closing>,
}

struct Closing {
    limit: Pin<Box<Sleep>>,
    left: usize,
}

impl<S> Socket<S> {
    pub(super) fn new(stream: S, patience: Duration) -> Socket<S> {
        Socket { stream, patience, stalled: None, closing: None }
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

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
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
        // TLS holds back what the client does not take.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.timed(cx, flushed)
    }

    /// Ends our side, then reads what the client still sends until it ends its own side too, or
    /// until enough was read or waited.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            let ended = Pin::new(&mut this.stream).poll_shutdown(cx);
            ready!(this.timed(cx, ended))?;
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        (client.unwrap(), server.unwrap().0)
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
