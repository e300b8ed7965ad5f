//! HTTP/2, which many requests share a connection in: what a client may do to it.
//!
//! - Limits on streams, headers and resets are hyper's and h2's, set here.
//! - A stream of which the client takes nothing for too long is reset; the others go on.
//! - A client that takes back its requests by the hundred, each of which costs us and not it, loses
//!   the connection ("rapid reset").
//! - A connection without requests is closed.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::TokioTimer;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::head::{MAX_HEAD, MAX_LINES, MAX_TARGET, Wrong};
use super::places::Place;

/// How many requests one connection may have at once. Each may hold a piece of a blob in memory.
const STREAMS: u32 = 32;

/// h2 answers larger heads itself, with a bare 431; up to here, twice what is accepted, they are
/// answered with words.
const MAX_HEADERS: u32 = 128 * 1024;

/// So many requests may be taken back before they are answered, if no more than those that were
/// answered.
const TAKEN_BACK: u64 = 200;

tokio::task_local! {
    static PRESENT: Arc<Present>;
}

/// The present stream.
#[derive(Debug, Default)]
struct Present {
    /// Whether it has its answer, so that only the client can make it wait.
    answered: AtomicBool,
    /// Its place among all requests.
    place: OnceLock<Place>,
}

/// The streams of one connection.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    patience: Duration,
    /// How many there are now.
    open: watch::Sender<u64>,
    answered: AtomicU64,
    taken_back: AtomicU64,
    too_many: Notify,
}

impl Streams {
    pub(super) fn new(patience: Duration) -> Streams {
        let inner = Inner {
            patience,
            open: watch::Sender::new(0),
            answered: AtomicU64::new(0),
            taken_back: AtomicU64::new(0),
            too_many: Notify::new(),
        };
        Streams { inner: Arc::new(inner) }
    }

    /// A connection with all its limits.
    pub(super) fn builder(&self) -> Builder<Streams> {
        let mut builder = Builder::new(self.clone());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .max_pending_accept_reset_streams(STREAMS as usize)
            .max_local_error_reset_streams(128)
            .max_send_buf_size(256 * 1024)
            .keep_alive_interval(self.inner.patience / 2)
            .keep_alive_timeout(self.inner.patience / 2);
        builder
    }

    /// Answers one request, and notes if the client takes it back first.
    pub(super) async fn answer(
        &self,
        answer: impl Future<Output = Response>,
    ) -> Result<Response, Infallible> {
        let mut asked = Asked { inner: &self.inner, answered: false };
        let response = answer.await;
        asked.answered = true;
        let _ = PRESENT.try_with(|present| present.answered.store(true, Ordering::Relaxed));
        Ok(response)
    }

    /// Waits until the client has taken back too many requests.
    pub(super) async fn too_many_taken_back(&self) {
        self.inner.too_many.notified().await;
    }

    /// Waits until there has been no request for too long.
    pub(super) async fn idle(&self) {
        let mut open = self.inner.open.subscribe();
        loop {
            // The sender is held by us.
            let _ = open.wait_for(|open| *open == 0).await;
            tokio::select! {
                () = sleep(self.inner.patience) => return,
                _ = open.changed() => {}
            }
        }
    }
}

/// A request that waits for its answer.
struct Asked<'a> {
    inner: &'a Inner,
    answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let Inner { answered, taken_back, too_many, .. } = self.inner;
        if self.answered {
            answered.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let taken_back = taken_back.fetch_add(1, Ordering::Relaxed) + 1;
        if taken_back > TAKEN_BACK.max(answered.load(Ordering::Relaxed)) {
            too_many.notify_one();
        }
    }
}

/// hyper hands over every stream from here, as a future.
impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let open = Open::new(Arc::clone(&self.inner));
        let patience = self.inner.patience;
        tokio::spawn(async move {
            let _open = open;
            patient(stream, patience).await;
        });
    }
}

struct Open(Arc<Inner>);

impl Open {
    fn new(inner: Arc<Inner>) -> Open {
        inner.open.send_modify(|open| *open += 1);
        Open(inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

/// Runs a stream to its end, or until it has its answer and nothing wakes it for too long: then the
/// client takes nothing of it. Dropped, it is reset.
///
/// A stream is woken when the client has room for more, after each piece of a blob (256 KB).
async fn patient(stream: impl Future<Output = ()>, patience: Duration) {
    let present = Arc::new(Present::default());
    let mut stream = pin!(PRESENT.scope(Arc::clone(&present), stream));
    let mut limit = pin!(sleep(patience));
    poll_fn(|cx| {
        let is_over =
            limit.as_mut().poll(cx).is_ready() && present.answered.load(Ordering::Relaxed);
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if is_over {
            return Poll::Ready(());
        }
        limit.as_mut().reset(Instant::now() + patience);
        // Due only later, and registered to wake us then.
        let _ = limit.as_mut().poll(cx);
        Poll::Pending
    })
    .await;
}

/// What HTTP/1 refuses while a head arrives: h2 knows other limits.
pub(super) fn check(request: &Request<Incoming>) -> Result<(), Wrong> {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let headers = request.headers();
    let lines = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    if target > MAX_TARGET {
        Err(Wrong::TargetTooLong)
    } else if headers.len() > MAX_LINES {
        Err(Wrong::TooManyLines)
    } else if lines.sum::<usize>() > MAX_HEAD {
        Err(Wrong::TooLarge)
    } else {
        Ok(())
    }
}

/// Keeps a place until the present stream is over: its answer has to be sent, too.
pub(super) fn keep(place: Place) {
    let _ = PRESENT.try_with(|present| present.place.set(place));
}

/// The request with a body of the common type.
pub(super) fn plain(request: Request<Incoming>) -> Request<Body> {
    request.map(Body::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn an_answered_stream_that_is_not_taken_ends() {
        let begin = Instant::now();
        let answered = async {
            sleep(PATIENCE * 2).await;
            PRESENT.with(|present| present.answered.store(true, Ordering::Relaxed));
            // Taken slowly, then not at all.
            for _ in 0..3 {
                sleep(PATIENCE / 2).await;
            }
            pending().await
        };
        patient(answered, PATIENCE).await;
        let took = begin.elapsed();
        assert!(took >= PATIENCE * 4 && took <= PATIENCE * 5, "{took:?}");
        let unanswered = patient(pending(), PATIENCE);
        assert!(tokio::time::timeout(PATIENCE * 9, unanswered).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_taken_back_by_the_hundred_are_too_many() {
        let streams = Streams::new(PATIENCE);
        let is_over = |streams: &Streams| {
            let streams = streams.clone();
            async move {
                let over = streams.too_many_taken_back();
                tokio::time::timeout(Duration::from_secs(1), over).await.is_ok()
            }
        };
        let take_back = || drop(Asked { inner: &streams.inner, answered: false });
        for _ in 0..TAKEN_BACK {
            take_back();
        }
        assert!(!is_over(&streams).await);
        for _ in 0..=TAKEN_BACK {
            streams.answer(async { Response::new(Body::empty()) }).await.unwrap();
        }
        take_back();
        assert!(!is_over(&streams).await);
        take_back();
        assert!(is_over(&streams).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_without_streams() {
        let streams = Streams::new(PATIENCE);
        let begin = Instant::now();
        streams.execute(sleep(PATIENCE * 3));
        streams.idle().await;
        assert!(begin.elapsed() >= PATIENCE * 4, "{:?}", begin.elapsed());
    }
}
