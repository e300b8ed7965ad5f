//! The socket of a connection that sends files.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::{Part, Windows};

/// So much of a file is sent in one call: longer, and the worker's other clients would wait for it.
const AT_ONCE: usize = 2 * 1024 * 1024;

/// A TCP connection which sends a file where it is given a slice that stands for one.
pub(in crate::http) struct Outlet {
    stream: TcpStream,
    windows: Windows,
}

impl Outlet {
    /// A connection over which files of `windows` may be sent.
    pub(in crate::http) fn new(stream: TcpStream, windows: Windows) -> Outlet {
        Outlet { stream, windows }
    }

    /// Makes a call that writes, when there is room to write.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        mut call: impl FnMut(&TcpStream) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || Ok(call(&self.stream)?));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    /// Sends what is not of a file, and says that more follows at once.
    fn poll_lead(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        self.poll_send(cx, |stream| {
            rustix::net::sendmsg(stream, slices, &mut SendAncillaryBuffer::default(), flags)
        })
    }

    fn poll_file(&self, cx: &mut Context<'_>, part: &Part) -> Poll<io::Result<usize>> {
        let Part { source, at, len } = part;
        let sent = ready!(self.poll_send(cx, |stream| {
            let mut at = *at;
            rustix::fs::sendfile(stream.as_fd(), &source.file, Some(&mut at), (*len).min(AT_ONCE))
        }));
        Poll::Ready(match sent {
            Ok(0) => Err(source.shorter(*at)),
            Err(error) if is_of_the_client(&error) => Err(error),
            Err(error) => Err(source.unreadable(error, *at)),
            sent => sent,
        })
    }
}

/// Whether it was not the file that failed.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

impl AsyncRead for Outlet {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Outlet {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let begin = slices.iter().take_while(|slice| slice.is_empty()).count();
        let slices = &slices[begin..];
        let lead = slices.iter().take_while(|slice| self.windows.find(slice).is_none()).count();
        match (lead, slices.get(lead)) {
            (0, Some(slice)) => match self.windows.find(slice) {
                Some(part) => self.poll_file(cx, &part),
                None => Poll::Ready(Ok(0)),
            },
            (_, Some(_)) => self.poll_lead(cx, &slices[..lead]),
            (_, None) => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
