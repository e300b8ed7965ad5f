//! Bodies of requests, with a time limit on silence.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, Sleep};

use super::errors::Refusal;
use super::memory::{self, Memory};

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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

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
