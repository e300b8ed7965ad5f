//! What is to be sent next, brought into memory where it is not.
//!
//! sendfile(2) waits for the disk, and with it every other client of the same worker. So a piece is
//! handed out when it is in memory: who is not yet is read on the blocking pool, one piece ahead of
//! what is being sent.

use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;
use tokio::task::JoinHandle;

use super::{Part, Source};

/// How much is handed out at once: it is also what is read ahead for a client, however slow.
const PIECE: usize = 4 * 1024 * 1024;

/// How much is read at once where the disk is asked.
const READ: usize = 256 * 1024;

/// A file's bytes, in pieces that are in memory.
pub(super) fn pieces(
    source: Arc<Source>,
    bytes: Bytes,
    first: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let next = Next { source, bytes, at: first, piece: None };
    stream::try_unfold(next, |mut next| async move {
        let piece = next.take().await?;
        Ok(piece.map(|piece| (piece, next)))
    })
}

/// What is left.
struct Next {
    source: Arc<Source>,
    bytes: Bytes,
    at: u64,
    /// The next piece, if somebody looked for it already.
    piece: Option<Warming>,
}

/// A piece that is in memory, or on the way there.
enum Warming {
    There,
    Coming(JoinHandle<io::Result<()>>),
}

impl Next {
    async fn take(&mut self) -> io::Result<Option<Bytes>> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let warming = self.piece.take().unwrap_or_else(|| self.look());
        if let Warming::Coming(reading) = warming {
            reading.await.map_err(io::Error::other)??;
        }
        let piece = self.bytes.split_to(self.bytes.len().min(PIECE));
        self.at += piece.len() as u64;
        if !self.bytes.is_empty() {
            self.piece = Some(self.look());
        }
        Ok(Some(piece))
    }

    /// Looks for the next piece, and has it read where it is not in memory.
    fn look(&self) -> Warming {
        let (source, len) = (Arc::clone(&self.source), self.bytes.len().min(PIECE));
        let part = Part { source, at: self.at, len };
        if part.is_in_memory() {
            return Warming::There;
        }
        Warming::Coming(tokio::task::spawn_blocking(move || part.bring()))
    }
}

impl Part {
    /// Whether its ends are in memory: a file is read, and forgotten, in long runs.
    fn is_in_memory(&self) -> bool {
        self.has(self.at) && self.has(self.at + self.len as u64 - 1)
    }

    pub(super) fn has(&self, at: u64) -> bool {
        let mut byte = [0];
        let mut buf = [IoSliceMut::new(&mut byte)];
        let flags = ReadWriteFlags::NOWAIT;
        // Where it is not known (EOPNOTSUPP) every piece is read before it is sent.
        matches!(rustix::io::preadv2(&self.source.file, &mut buf, at, flags), Ok(1))
    }

    /// Reads it, so that it is in memory.
    fn bring(&self) -> io::Result<()> {
        let Part { source, at, len } = self;
        // Asked for at once, it is read at once; without that, in the file system's own steps.
        let wanted = std::num::NonZero::new(*len as u64);
        let _ = rustix::fs::fadvise(&source.file, *at, wanted, Advice::WillNeed);
        let mut scratch = vec![0; READ.min(*len)];
        let end = at + *len as u64;
        let mut at = *at;
        while at < end {
            match source.file.read_at(&mut scratch, at) {
                Ok(0) => return Err(source.shorter(at)),
                Ok(read) => at += read as u64,
                Err(error) => return Err(source.unreadable(error, at)),
            }
        }
        Ok(())
    }
}

impl Source {
    /// A file that ends too early: its length was promised already.
    pub(super) fn shorter(&self, at: u64) -> io::Error {
        let path = self.path.display();
        tracing::error!(%path, at, "a blob is shorter than it was when it was opened");
        io::ErrorKind::UnexpectedEof.into()
    }

    /// A file of which a part cannot be read.
    pub(super) fn unreadable(&self, error: io::Error, at: u64) -> io::Error {
        tracing::error!(%error, path = %self.path.display(), at, "a blob cannot be read");
        error
    }
}
