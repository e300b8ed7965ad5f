//! Bodies: requests' with a time limit on silence, blobs' as a pump from the file.

use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use tokio::time::{Instant, Sleep};

use super::errors::Refusal;
use crate::registry::OpenBlob;

/// How much of a blob is read at once, and so held in memory for one download.
const PIECE: usize = 256 * 1024;

/// A request's body. A client that sends nothing for too long ends it with an error.
pub(super) struct Upload {
    data: BodyDataStream,
    patience: Duration,
    limit: Pin<Box<Sleep>>,
    begun: Instant,
    still: Option<Still>,
}

/// Asked at the end of a body: whether what it is for is still allowed.
type Still = Box<dyn FnOnce() -> Result<(), Refusal> + Send>;

/// A body that took longer is asked about again: its sender decides how long it takes, and what was
/// allowed when it began may have been taken away.
const FRESH: Duration = Duration::from_secs(1);

impl Upload {
    pub(super) fn new(body: Body, patience: Duration) -> Upload {
        Upload {
            data: body.into_data_stream(),
            patience,
            limit: Box::pin(tokio::time::sleep(patience)),
            begun: Instant::now(),
            still: None,
        }
    }

    /// The same, which ends with an error if `still` says so at its end.
    pub(super) fn allowed_while(
        self,
        still: impl FnOnce() -> Result<(), Refusal> + Send + 'static,
    ) -> Upload {
        Upload { still: Some(Box::new(still)), ..self }
    }

    /// Whether a body that has ended may be used.
    fn last_word(&mut self) -> Result<(), Refusal> {
        match self.still.take() {
            Some(still) if self.begun.elapsed() > FRESH => still(),
            _ => Ok(()),
        }
    }

    /// Everything, if it is no longer than `most`; `None` if it is. What comes after is not read.
    pub(super) async fn collect(mut self, most: usize) -> io::Result<Option<Bytes>> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.next().await {
            let piece = piece?;
            if piece.len() > most - all.len() {
                return Ok(None);
            }
            all.extend_from_slice(&piece);
        }
        Ok(Some(all.freeze()))
    }
}

impl Stream for Upload {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.data.poll_next_unpin(cx) {
            Poll::Ready(None) => {
                let refused = self.last_word().err();
                Poll::Ready(refused.map(|refusal| Err(io::Error::other(refusal))))
            }
            Poll::Ready(piece) => {
                let next = Instant::now() + self.patience;
                self.limit.as_mut().reset(next);
                Poll::Ready(piece.map(|piece| piece.map_err(io::Error::other)))
            }
            Poll::Pending => match self.limit.as_mut().poll(cx) {
                Poll::Ready(()) => {
                    let stalled = Refusal::Stalled(self.patience);
                    Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, stalled))))
                }
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

/// The bytes of a blob from `first` on, `len` of them, read piece by piece on the blocking pool.
///
/// A file that turns out shorter, or that somebody changes meanwhile, ends the connection: length and
/// digest were promised already.
pub(super) fn of_blob(blob: OpenBlob, first: u64, len: u64) -> Body {
    if len == 0 {
        return Body::empty();
    }
    let blob = Arc::new(blob);
    Body::from_stream(stream::try_unfold((first, len), move |(at, left)| {
        read_piece(Arc::clone(&blob), at, left)
    }))
}

type Piece = Option<(Bytes, (u64, u64))>;

async fn read_piece(blob: Arc<OpenBlob>, at: u64, left: u64) -> io::Result<Piece> {
    let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
    if want == 0 {
        return Ok(None);
    }
    let read = tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; want];
        let got = blob.file.read_at(&mut piece, at)?;
        piece.truncate(got);
        if !blob.is_unchanged()? {
            tracing::error!(at, "a blob was changed while it was sent");
            return Err(io::Error::other("the blob was changed while it was sent"));
        }
        Ok::<_, io::Error>(piece)
    });
    let piece = read.await.map_err(io::Error::other)??;
    if piece.is_empty() {
        tracing::error!(at, missing = left, "a blob is shorter than it was when it was opened");
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let got = piece.len() as u64;
    Ok(Some((piece.into(), (at + got, left - got))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn of_file(bytes: &[u8], first: u64, len: u64) -> Body {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        of_blob(OpenBlob::sealed(file, bytes.len() as u64), first, len)
    }

    async fn read(body: Body) -> Result<Vec<u8>, axum::Error> {
        let mut stream = body.into_data_stream();
        let mut all = Vec::new();
        while let Some(piece) = stream.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_file_comes_whole_or_in_part() {
        let bytes: Vec<u8> = (0..=250).cycle().take(PIECE * 2 + 77).collect();
        let len = bytes.len() as u64;
        assert_eq!(read(of_file(&bytes, 0, len)).await.unwrap(), bytes);
        let part = read(of_file(&bytes, 100, PIECE as u64)).await.unwrap();
        assert_eq!(part, bytes[100..100 + PIECE]);
        assert_eq!(read(of_file(b"", 0, 0)).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_file_that_shrank_is_an_error() {
        assert!(read(of_file(b"short", 0, 6)).await.is_err());
    }

    #[tokio::test]
    async fn what_is_too_long_is_not_collected() {
        let upload = |len| Upload::new(Body::from(vec![7; len]), Duration::from_secs(9));
        assert_eq!(upload(8).collect(8).await.unwrap().unwrap().len(), 8);
        assert!(upload(9).collect(8).await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_took_long_is_asked_about_at_its_end() {
        let body = |late: bool| {
            let pieces =
                stream::iter([Ok::<_, io::Error>("one")]).chain(stream::once(async move {
                    tokio::time::sleep(if late { FRESH * 2 } else { FRESH / 2 }).await;
                    Ok("two")
                }));
            let upload = Upload::new(Body::from_stream(pieces), Duration::from_secs(60));
            upload.allowed_while(|| Err(Refusal::Revoked("a/b".into())))
        };
        assert_eq!(body(false).collect(99).await.unwrap().unwrap(), "onetwo");
        let refused = body(true).collect(99).await.unwrap_err();
        assert!(matches!(super::super::errors::body(&refused), Refusal::Revoked(_)), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_body() {
        let pieces = stream::iter([Ok::<_, io::Error>("one")]).chain(stream::pending());
        let mut upload = Upload::new(Body::from_stream(pieces), Duration::from_secs(60));
        assert_eq!(upload.next().await.unwrap().unwrap(), "one");
        let error = upload.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
