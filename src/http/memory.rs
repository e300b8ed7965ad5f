//! Memory that clients make the server hold by what they send or do not take: bounded over all of
//! them, whatever each one does.
//!
//! Every request may hold [`FREE`] bytes of its body or answer without asking. What is larger is
//! counted here for as long as it lies in memory. Where no more is to be had, blobs go out in small
//! pieces, and large documents have to be asked for again.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::errors::Refusal;

/// What a request may hold without asking.
pub(super) const FREE: usize = 64 * 1024;

/// How much of blobs, and of documents, may be in memory beyond that.
const BLOBS: usize = 128 * 1024 * 1024;
const DOCUMENTS: usize = 256 * 1024 * 1024;

/// So many documents are made at once: each may take several times its length meanwhile.
const MADE_AT_ONCE: usize = 64;

/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes are counted in pieces of this size.
const UNIT: usize = 1024;

/// What is in memory now.
#[derive(Debug)]
pub(super) struct Memory {
    blobs: Arc<Semaphore>,
    documents: Arc<Semaphore>,
    makers: Semaphore,
}

/// Some of it, for as long as this lives.
pub(super) type Held = OwnedSemaphorePermit;

impl Default for Memory {
    fn default() -> Memory {
        Memory {
            blobs: Arc::new(Semaphore::new(BLOBS / UNIT)),
            documents: Arc::new(Semaphore::new(DOCUMENTS / UNIT)),
            makers: Semaphore::new(MADE_AT_ONCE),
        }
    }
}

impl Memory {
    /// Room for so many bytes of a blob, if there is some right now.
    pub(super) fn blob(&self, bytes: usize) -> Option<Held> {
        hold(&self.blobs, bytes)
    }

    /// Room for a document of so many bytes, if there is some right now.
    pub(super) fn document(&self, bytes: usize) -> Result<Held, Refusal> {
        hold(&self.documents, bytes).ok_or(Refusal::Overloaded)
    }

    /// Waits for a turn to make a document, and not for ever.
    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        if let Ok(turn) = self.makers.try_acquire() {
            return Ok(turn);
        }
        let turn = tokio::time::timeout(PATIENCE, self.makers.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or(Refusal::Overloaded)
    }

    /// Counts an answer that was made, until all of it is sent.
    pub(super) async fn count(&self, response: Response) -> Result<Response, Refusal> {
        let Some(length) = response.body().size_hint().exact() else { return Ok(response) };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length <= FREE {
            return Ok(response);
        }
        let held = self.document(length)?;
        let (head, body) = response.into_parts();
        // A document is one piece, and nothing of it can fail.
        let whole = body.into_data_stream().next().await.and_then(Result::ok).unwrap_or_default();
        Ok(Response::from_parts(head, Body::from(counted(whole, held))))
    }

    /// None left for blobs and documents.
    #[cfg(test)]
    pub(super) fn none() -> Memory {
        let none = || Arc::new(Semaphore::new(0));
        Memory { blobs: none(), documents: none(), makers: Semaphore::new(1) }
    }
}

fn hold(of: &Arc<Semaphore>, bytes: usize) -> Option<Held> {
    let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
    Arc::clone(of).try_acquire_many_owned(units).ok()
}

struct Counted {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes that count until the last of them is dropped.
pub(super) fn counted(bytes: Bytes, held: Held) -> Bytes {
    Bytes::from_owner(Counted { bytes, _held: held })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_counts_until_it_is_sent() {
        let memory = Memory::default();
        let free = || memory.documents.available_permits();
        let (all, large) = (free(), vec![7; FREE + 1]);
        let small = memory.count(Response::new(Body::from(vec![7; FREE]))).await.unwrap();
        assert_eq!(free(), all);
        let response = memory.count(Response::new(Body::from(large.clone()))).await.unwrap();
        assert_eq!(free(), all - FREE / UNIT - 1);
        assert_eq!(response.body().size_hint().exact(), Some(large.len() as u64));
        let sent = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(sent, large);
        let part = sent.slice(..9);
        drop((sent, small));
        assert!(free() < all);
        drop(part);
        assert_eq!(free(), all);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_and_not_for_ever() {
        let memory = Memory::none();
        let turn = memory.turn().await.unwrap();
        assert!(matches!(memory.turn().await, Err(Refusal::Overloaded)));
        drop(turn);
        assert!(memory.turn().await.is_ok());
    }

    #[tokio::test]
    async fn what_is_large_is_refused_where_there_is_no_room() {
        let memory = Memory::none();
        let large = memory.count(Response::new(Body::from(vec![7; FREE + 1]))).await;
        assert!(matches!(large, Err(Refusal::Overloaded)));
        assert!(memory.count(Response::new(Body::from(vec![7; FREE]))).await.is_ok());
        assert!(memory.blob(1).is_none());
        let streamed =
            Body::from_stream(futures_util::stream::empty::<Result<Bytes, axum::Error>>());
        assert!(memory.count(Response::new(streamed)).await.is_ok());
    }
}
