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
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};

use super::errors::Refusal;
use super::memory::{self, Held, Memory};
use crate::registry::OpenBlob;

/// How much of a blob is read at once; and where there is no memory left for that, of which a
/// download may hold two pieces.
const PIECE: usize = 256 * 1024;
const SMALL_PIECE: usize = 32 * 1024;

/// So many bytes a second a body has to bring, on average over [`WINDOW`] times the patience. A
/// modem does; who sends a byte now and then holds a place and a lock for as long as they like.
const LEAST: u64 = 128;
const WINDOW: u32 = 5;

/// A request's body. A client that sends nothing for too long, or too little for much longer, ends
/// it with an error.
pub(super) struct Upload {
    data: BodyDataStream,
    patience: Duration,
    limit: Pin<Box<Sleep>>,
    begun: Instant,
    still: Option<Still>,
    pace: Pace,
}

/// How fast a body comes: while nobody asks for more of it, no time passes.
#[derive(Default)]
struct Pace {
    waits: Option<Instant>,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn waits(&mut self) {
        self.waits.get_or_insert_with(Instant::now);
    }

    /// Whether what came is enough for the time that it took.
    fn came(&mut self, bytes: usize, patience: Duration) -> Result<(), Refusal> {
        self.waited += self.waits.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.waited < patience * WINDOW {
            return Ok(());
        }
        if self.bytes < LEAST * self.waited.as_secs() {
            return Err(Refusal::Slow(LEAST));
        }
        *self = Pace::default();
        Ok(())
    }
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
            pace: Pace::default(),
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
    pub(super) async fn collect(
        mut self,
        most: usize,
        memory: &Memory,
    ) -> io::Result<Option<Bytes>> {
        let mut all = BytesMut::new();
        let mut held = None;
        while let Some(piece) = self.next().await {
            let piece = piece?;
            if piece.len() > most - all.len() {
                return Ok(None);
            }
            if held.is_none() && all.len() + piece.len() > memory::FREE {
                held = Some(memory.document(most).map_err(io::Error::other)?);
            }
            all.extend_from_slice(&piece);
        }
        let all = all.freeze();
        Ok(Some(match held {
            Some(held) => memory::counted(all, held),
            None => all,
        }))
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
                let (len, patience) = (length(piece.as_ref()), self.patience);
                if let Err(slow) = self.pace.came(len, patience) {
                    let slow = io::Error::new(io::ErrorKind::TimedOut, slow);
                    return Poll::Ready(Some(Err(slow)));
                }
                let next = Instant::now() + self.patience;
                self.limit.as_mut().reset(next);
                Poll::Ready(piece.map(|piece| piece.map_err(io::Error::other)))
            }
            Poll::Pending => match self.limit.as_mut().poll(cx) {
                Poll::Ready(()) => {
                    let stalled = Refusal::Stalled(self.patience);
                    Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, stalled))))
                }
                Poll::Pending => {
                    self.pace.waits();
                    Poll::Pending
                }
            },
        }
    }
}

fn length<E>(piece: Option<&Result<Bytes, E>>) -> usize {
    piece.and_then(|piece| piece.as_ref().ok()).map_or(0, Bytes::len)
}

/// The bytes of a blob from `first` on, `len` of them, read piece by piece on the blocking pool.
///
/// A file that turns out shorter, or that somebody changes meanwhile, ends the connection: length and
/// digest were promised already.
pub(super) fn of_blob(blob: OpenBlob, first: u64, len: u64, memory: &Arc<Memory>) -> Body {
    if len == 0 {
        return Body::empty();
    }
    let (blob, memory) = (Arc::new(blob), Arc::clone(memory));
    let small = Arc::new(Semaphore::new(2));
    Body::from_stream(stream::try_unfold((first, len), move |(at, left)| {
        let (blob, memory, small) = (Arc::clone(&blob), Arc::clone(&memory), Arc::clone(&small));
        async move {
            let (want, held) = room(left, &memory, small).await;
            read_piece(blob, at, left, want, held).await
        }
    }))
}

/// How much to read, and the leave to hold it until it is sent.
async fn room(left: u64, memory: &Memory, small: Arc<Semaphore>) -> (usize, Option<Held>) {
    let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
    if want > SMALL_PIECE
        && let Some(held) = memory.blob(want)
    {
        return (want, Some(held));
    }
    // Nobody closes it; it waits until the client has taken the pieces before.
    (want.min(SMALL_PIECE), small.acquire_owned().await.ok())
}

type Piece = Option<(Bytes, (u64, u64))>;

async fn read_piece(
    blob: Arc<OpenBlob>,
    at: u64,
    left: u64,
    want: usize,
    held: Option<Held>,
) -> io::Result<Piece> {
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
    let piece = match held {
        Some(held) => memory::counted(piece.into(), held),
        None => piece.into(),
    };
    Ok(Some((piece, (at + got, left - got))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn of_file(bytes: &[u8], first: u64, len: u64) -> Body {
        of_file_in(bytes, first, len, Memory::default())
    }

    fn of_file_in(bytes: &[u8], first: u64, len: u64, memory: Memory) -> Body {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        of_blob(OpenBlob::sealed(file, bytes.len() as u64), first, len, &Arc::new(memory))
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
    async fn without_memory_a_file_goes_out_in_two_small_pieces_at_a_time() {
        let bytes: Vec<u8> = (0..=250).cycle().take(SMALL_PIECE * 5 + 77).collect();
        let body = of_file_in(&bytes, 0, bytes.len() as u64, Memory::none());
        let mut stream = body.into_data_stream();
        let first = [stream.next().await.unwrap().unwrap(), stream.next().await.unwrap().unwrap()];
        assert!(first.iter().all(|piece| piece.len() == SMALL_PIECE));
        let more = tokio::time::timeout(Duration::from_millis(50), stream.next());
        assert!(more.await.is_err(), "a third piece while two are not sent");
        let mut all = first.concat();
        drop(first);
        while let Some(piece) = stream.next().await {
            all.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(all, bytes);
    }

    #[tokio::test]
    async fn a_file_that_shrank_is_an_error() {
        assert!(read(of_file(b"short", 0, 6)).await.is_err());
    }

    #[tokio::test]
    async fn what_is_too_long_is_not_collected() {
        let upload = |len| Upload::new(Body::from(vec![7; len]), Duration::from_secs(9));
        let memory = Memory::default();
        assert_eq!(upload(8).collect(8, &memory).await.unwrap().unwrap().len(), 8);
        assert!(upload(9).collect(8, &memory).await.unwrap().is_none());
        let (large, none) = (memory::FREE + 1, Memory::none());
        assert_eq!(upload(large).collect(large, &memory).await.unwrap().unwrap().len(), large);
        let refused = upload(large).collect(large, &none).await.unwrap_err();
        assert!(matches!(super::super::errors::body(&refused), Refusal::Overloaded), "{refused}");
        assert!(upload(memory::FREE).collect(large, &none).await.unwrap().is_some());
    }

    /// A body of pieces of one size, each a minute's two thirds after the one before.
    fn dripping(piece: usize) -> Upload {
        let pieces = stream::unfold((), move |()| async move {
            tokio::time::sleep(Duration::from_secs(40)).await;
            Some((Ok::<_, io::Error>(vec![7; piece]), ()))
        });
        Upload::new(Body::from_stream(pieces), Duration::from_secs(60))
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_a_byte_now_and_then_is_not_waited_for() {
        let begun = Instant::now();
        let mut upload = dripping(1);
        let error = loop {
            if let Err(error) = upload.next().await.unwrap() {
                break error;
            }
        };
        assert!(matches!(super::super::errors::body(&error), Refusal::Slow(_)), "{error}");
        let took = begun.elapsed();
        assert!(took > Duration::from_secs(240) && took < Duration::from_secs(360), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_line_is_waited_for_and_a_slow_disk_is_no_fault_of_the_clients() {
        let mut slow = dripping(40 * 130);
        for _ in 0..100 {
            slow.next().await.unwrap().unwrap();
        }
        // Nobody asks for more, for a long time each.
        let pieces = stream::repeat_with(|| Ok::<_, io::Error>("x"));
        let mut upload = Upload::new(Body::from_stream(pieces), Duration::from_secs(60));
        for _ in 0..100 {
            upload.next().await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_secs(50)).await;
        }
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
        let memory = Memory::default();
        assert_eq!(body(false).collect(99, &memory).await.unwrap().unwrap(), "onetwo");
        let refused = body(true).collect(99, &memory).await.unwrap_err();
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
